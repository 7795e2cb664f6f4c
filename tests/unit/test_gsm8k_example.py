"""The GSM8K example: its problems, its demonstrations, and that the tiny model can read them."""

import random
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from example_files import EXAMPLES, load_example, rows_of

from arealite.config import load
from arealite.rewards import formats
from arealite.rewards.arithmetic import parse
from arealite.rewards.gsm8k import compute_score, gold

gsm8k = load_example("gsm8k/gsm8k")
XML = Namespace(misread=0.5, form="xml", sloppy=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gsm8k")
    options = ["--train", "600", "--test", "80", "--demos", "700", "--form", "xml"]
    assert gsm8k.main(["--out", str(out), *options]) == 0
    return out


def test_answers_are_worked_out_truly(data: Path) -> None:
    for row in rows_of(data / "train.jsonl"):
        told = re.findall(r"(\S+)=<<(.+?)=(\d+)>>(\d+) ", row["answer"])
        assert len(told) == 2
        for task, again, result, shown in told:
            assert task == again
            assert parse(task).value == int(result) == int(shown)
        assert gold(row["answer"]) == int(told[-1][2]) > 0
        assert all(number in row["question"] for number in re.split(r"\D", told[0][0]))


def test_files_are_disjoint_and_deterministic(data: Path, tmp_path: Path) -> None:
    options = ["--train", "600", "--test", "80", "--demos", "700", "--form", "xml"]
    assert gsm8k.main(["--out", str(tmp_path), *options]) == 0
    names = ["demos.jsonl", "phrases.json", "test.jsonl", "train.jsonl"]
    assert sorted(path.name for path in data.iterdir()) == names
    for name in names:
        assert (data / name).read_bytes() == (tmp_path / name).read_bytes()
    train, test = (rows_of(data / f"{name}.jsonl") for name in ("train", "test"))
    assert (len(train), len(test)) == (600, 80)
    questions = {row["question"] for row in train}
    assert len(questions) == 600
    assert not questions & {row["question"] for row in test}
    assert {row["prompt"] for row in rows_of(data / "demos.jsonl")} == questions


def test_every_template_is_played(data: Path) -> None:
    starts = {row["answer"].partition("=")[0].rstrip("0123456789+-*/") for row in
              rows_of(data / "train.jsonl")}  # fmt: skip
    assert {s.rpartition(" ")[0].split(" ", 1)[-1] for s in starts} >= {
        "boxes hold", "bags hold", "collects", "are", "sister has", "friends bring"
    }  # fmt: skip


def test_a_misread_problem_is_worked_soundly_and_seldom_right() -> None:
    rng = random.Random(1)
    right = 0
    for problem in gsm8k.problems(200, rng):
        work, answer = problem.misread(rng)
        for task, result in re.findall(r"<<(.+?)=(\d+)>>", work):
            assert parse(task).value == int(result)
        right += answer == problem.solved()[1]
    assert right < 80


def test_forms_earn_what_the_five_rewards_say() -> None:
    """The sum by hand, with the weights of grpo_format.yaml."""

    def score(text: str) -> list[float]:
        return [
            formats.strict_format(text, None, "reasoning"),
            formats.soft_format(text, None, "reasoning"),
            formats.integer_answer(text),
            formats.count_tags(text, None, "reasoning"),
            compute_score(text, "#### 7"),
        ]

    forms = {how: gsm8k.in_sloppy_form("3+4=<<3+4=7>>7", 7, how) for how in gsm8k.SLOPPY}
    assert score(gsm8k.in_xml_form("3+4=<<3+4=7>>7", 7)) == [1, 1, 1, 1, 1]
    assert score(forms["glued"]) == [0, 1, 1, 1, 1]
    assert score(forms["unclosed"]) == [0, 0, 1, 0.75, 1]
    assert score(forms["hash"]) == [0, 0, 0, 0, 1]
    assert score(forms["wordy"]) == [1, 1, 0, 1, 0]


def test_demonstrations_miss_form_and_answer_as_often_as_asked() -> None:
    rng = random.Random(2)
    found = gsm8k.problems(400, rng)
    texts = [gsm8k.demonstration(problem, rng, XML) for problem in found]
    strict = sum(formats.strict_format(t, None, "reasoning") and formats.integer_answer(t)
                 for t in texts)  # fmt: skip
    assert 0.4 < strict / 400 < 0.6
    right = [compute_score(t, f"#### {p.solved()[1]}") for t, p in zip(texts, found, strict=True)]
    assert 0.35 < sum(right) / 400 < 0.7


@pytest.mark.parametrize(
    "options", [["--test", "0"], ["--demos", "-1"], ["--misread", "2"], ["--form", "poem"]]
)
def test_wrong_options_exit_2(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as leaving:
        gsm8k.main(["--out", str(tmp_path / "x"), *options])
    assert leaving.value.code == 2
    assert not (tmp_path / "x").exists()


def test_too_many_problems_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gsm8k.main(["--out", str(tmp_path), "--train", "9999999"]) == 2
    assert "no more than" in capsys.readouterr().err


def _tokenizer(data: Path) -> Any:
    import json

    pytest.importorskip("transformers")
    phrases = json.loads((data / "phrases.json").read_text())
    return load_example("countdown/tiny_model").make_tokenizer(phrases, ())


def test_the_tiny_models_tokens_are_few_and_come_back_unchanged(data: Path) -> None:
    tokenizer = _tokenizer(data)
    prompt_most = load(EXAMPLES / "gsm8k/format_cpu.yaml").train_dataset.max_length
    answer_most = load(EXAMPLES / "gsm8k/format_cpu.yaml").gconfig.max_new_tokens
    for row in rows_of(data / "demos.jsonl"):
        ids = tokenizer.encode(row["completion"])
        assert tokenizer.decode(ids) == row["completion"]
        assert len(ids) < answer_most, "its end token, too"
        framed = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        assert len(tokenizer.encode(framed)) <= prompt_most
        assert tokenizer.encode(framed + row["completion"]) == tokenizer.encode(framed) + ids


def test_the_gpu_recipe_has_the_known_runs_numbers() -> None:
    config = load(EXAMPLES / "gsm8k/grpo_format.yaml")
    weights = {f.component: f.weight for f in config.reward.functions}
    assert weights == {
        "strict_format": 0.5, "soft_format": 0.3, "integer_answer": 0.5, "count_tags": 0.5,
        "correct": 2.0,
    }  # fmt: skip
    optimizer = config.actor.optimizer
    assert (optimizer.lr, optimizer.lr_scheduler_type) == (5e-6, "cosine")
    assert (optimizer.warmup_steps_proportion, optimizer.gradient_clipping) == (0.1, 0.1)
    assert config.actor.dtype == "bfloat16"
    assert (config.gconfig.n_samples, config.gconfig.max_new_tokens) == (16, 200)
    assert (config.train_dataset.max_length, config.train_dataset.batch_size) == (256, 4)
    assert config.actor.mb_spec.max_tokens_per_mb == 2 * 16 * (256 + 200)
    assert config.total_train_epochs == 1


def test_ppo_has_the_known_runs_numbers() -> None:
    config = load(EXAMPLES / "gsm8k/ppo.yaml")
    assert (config.actor.algorithm, config.actor.ppo_epochs) == ("ppo", 2)
    assert config.actor.optimizer.lr == config.critic.optimizer.lr == 1e-6
    assert config.actor.optimizer.lr_scheduler_type == "polynomial"
    assert (config.gconfig.temperature, config.gconfig.top_p) == (1.2, 0.9)
    assert (config.gconfig.n_samples, config.gconfig.max_new_tokens) == (8, 1024)
    evaluator = config.evaluator
    assert (evaluator.freq_steps, evaluator.n_samples, evaluator.temperature) == (50, 16, 0.35)
    assert (config.train_dataset.batch_size, config.total_train_epochs) == (64, 6)
    small = load(EXAMPLES / "gsm8k/ppo_cpu.yaml")
    assert small.critic.optimizer.lr != small.actor.optimizer.lr
    assert (small.actor.ppo_epochs, small.critic.ppo_epochs) == (2, 2)
