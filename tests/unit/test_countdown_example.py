"""The Countdown example: reward, data, demonstrations, and the tiny model's folder."""

import asyncio
import itertools
import operator
import random
import re
import shutil
import unicodedata
from collections import Counter
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from example_files import EXAMPLES, load_example, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from arealite.config import load
from arealite.engines.scripted import ScriptedEngine
from arealite.loading import load_workflow
from arealite.types import GenerationHyperparameters
from workflows.multi_turn import FEEDBACK
from workflows.tools import calculator

EXAMPLE = EXAMPLES / "countdown"


def _load(name: str) -> ModuleType:
    return load_example(f"countdown/{name}")


countdown = _load("countdown")
games, demonstrations = import_module("game"), import_module("demonstrations")
reward_score = _load("reward_score")
score = reward_score.compute_score

GAME = {"target": 24, "numbers": [3, 5, 7, 8]}


def _answered(expression: str) -> str:
    return f"<think>\n1\n</think>\n<answer> {expression} </answer>"


# --- reward


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (_answered("(7 - (5 - 3)) * 8"), 0.1, 0.1),  # the wrong value: 40
        (_answered("(7 - 5) * (8 + 3) + 2"), 0.1, 0.1),  # 24, but 2 is not given
        (_answered("3 * 8"), 0.1, 1.0),
        (_answered("(7 - 5 + 3 - 2) * 8"), 0.1, 0.1),
        (_answered("3 * 8 * (7 - 5) / (7 - 5)"), 0.1, 0.1),  # 5 and 7 twice
        ("(7 - 5) * 3 * 8", 0.0, 0.0),
        ("<answer>3 * 8", 0.0, 0.0),
        ("", 0.0, 0.0),
        (_answered("none"), 0.1, 0.1),
    ],
)
def test_scores(text: str, strict: float, flexible: float) -> None:
    assert score(text, GAME) == strict
    assert score(text, GAME, method="flexible") == flexible


def test_right_answers_score_one_and_the_last_answer_counts() -> None:
    game = {"target": 31, "numbers": [7, 3, 10]}
    right, wrong = "<answer> (7 * 3) + 10 </answer>", "<answer> 7 + 3 + 10 </answer>"
    assert score(right, game) == score(wrong + right, game) == 1.0
    assert score(right + wrong, game) == 0.1
    assert score(right, game, score=5.0) == 5.0
    assert score(wrong, game, format_score=0.0) == 0.0
    assert score("<answer>8 / 3 * 3</answer>", {"target": 8, "numbers": [3, 8, 3]}) == 1.0


@pytest.mark.parametrize(
    ("answer", "target", "numbers"),
    [
        ("3.5*2", 7, [3, 5, 2]),
        ("7//2+9", 12, [7, 2, 9]),
        ("2**5+1", 33, [2, 5, 1]),
        ("35 + 2", 37, [3, 5, 2]),  # digits glued together
        ("(1 + 2) / 3", 24, [3, 5, 7, 8]),  # the prompt's example
        ("-3 + 8", 5, [3, 8]),
        ("7 * 3 + 10 = 31", 31, [7, 3, 10]),
        ("31", 31, [7, 3, 10]),
        ("7 * 3 + 10 <answer>", 31, [7, 3, 10]),
        ("9**9**9**9", 1, [9, 9, 9, 9]),
        ("\u0667 * 3 + 10", 31, [7, 3, 10]),
    ],
)
def test_hacks_earn_no_more_than_the_format(answer: str, target: int, numbers: list[int]) -> None:
    for method in ("strict", "flexible"):
        assert score(_answered(answer), {"target": target, "numbers": numbers}, method) == 0.1


@pytest.mark.parametrize("truth", [{}, {"target": 1}, {"target": "1", "numbers": [1]}])
def test_a_bad_row_raises_instead_of_scoring(truth: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        score(_answered("1"), truth)
    with pytest.raises(ValueError, match="method"):
        score(_answered("1"), GAME, "lenient")


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_answer_scores(text: str) -> None:
    assert score(text, GAME) in (0.0, 0.1, 1.0)
    assert score(f"<answer>{text}</answer>", GAME) in (0.1, 1.0)


# --- data


def _solvable(numbers: tuple[int, ...], target: int) -> bool:
    """Independent check: brute force over all pairs, in exact fractions."""
    signs = (operator.add, operator.sub, operator.mul, operator.truediv)

    def reaches(values: tuple[Fraction, ...]) -> bool:
        if len(values) == 1:
            return values[0] == target
        for i, j in itertools.permutations(range(len(values)), 2):
            rest = tuple(value for k, value in enumerate(values) if k not in (i, j))
            for sign in signs:
                if sign is operator.truediv and not values[j]:
                    continue
                if reaches((*rest, sign(values[i], values[j]))):
                    return True
        return False

    return reaches(tuple(map(Fraction, numbers)))


@pytest.mark.parametrize("seed", [1, 2])
def test_every_problem_is_solvable_and_new(seed: int) -> None:
    game = games.Game(sizes=(2, 3, 4), weights=(1, 4, 1))
    found = games.problems(game, 150, random.Random(seed))
    assert len({problem.key for problem in found}) == 150
    for problem in found:
        assert 1 <= problem.target <= game.max_target
        assert all(1 <= number <= game.max_number for number in problem.numbers)
        assert _solvable(problem.numbers, problem.target)


def _key(row: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(row["answer"]["numbers"])), row["answer"]["target"]


def test_files_are_disjoint_deterministic_and_complete(tmp_path: Path) -> None:
    options = ["--train", "300", "--test", "60", "--demos", "400", "--seed", "7"]
    for name in ("a", "b"):
        assert countdown.main(["--out", str(tmp_path / name), *options]) == 0
    names = ["demos.jsonl", "test_e.jsonl", "train_e.jsonl"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    train, test = (rows_of(tmp_path / "a" / f"{name}_e.jsonl") for name in ("train", "test"))
    demos = rows_of(tmp_path / "a" / "demos.jsonl")
    assert (len(train), len(test), len(demos)) == (300, 60, 400)
    assert not {_key(row) for row in train} & {_key(row) for row in test}
    assert {row["prompt"] for row in demos} == {row["query"] for row in train}
    numbers = ", ".join(map(str, train[0]["answer"]["numbers"]))
    assert train[0]["query"].startswith(
        f"Using the numbers [{numbers}], create an equation that equals "
    )


def test_sizes_keep_their_weights_and_ranges_hold(tmp_path: Path) -> None:
    options = ["--sizes", "2,4", "--weights", "1,3", "--max-number", "40", "--max-target", "90"]
    assert countdown.main(["--out", str(tmp_path), "--train", "400", "--test", "20", *options]) == 0
    sizes = Counter(len(row["answer"]["numbers"]) for row in rows_of(tmp_path / "train_e.jsonl"))
    assert set(sizes) == {2, 4}
    assert 240 < sizes[4] < 360


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sizes", "2,x"], "numbers separated by commas"),
        (["--sizes", "1,3"], "--sizes must be"),
        (["--weights", "1"], "one weight above 0 per size"),
        (["--max-number", "0"], "--max-number must not be below"),
        (["--min-target", "0"], "--min-target must be at least 1"),
        (["--give-up", "2"], "--give-up must be between"),
        (["--test", "0"], "must be at least 1"),
        (["--prompt", "poem"], "--prompt"),
    ],
)
def test_wrong_options_are_one_sentence_and_exit_2(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        countdown.main(["--out", str(tmp_path / "x"), *options])
    assert leaving.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_too_narrow_ranges_and_bad_folders_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = ["--sizes", "2", "--weights", "1", "--max-number", "3", "--out", str(tmp_path / "x")]
    assert countdown.main(narrow) == 2
    assert "too narrow" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert countdown.main(["--train", "9", "--test", "1", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("countdown.py: error: ")


# --- demonstrations


def _is_true(step: str) -> bool:
    left, sign, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step).groups()  # type: ignore[union-attr]
    a, b, c = int(left), int(right), int(result)
    return {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": a == b * c}[sign]


def test_demonstrations_calculate_truly_but_are_often_wrong() -> None:
    rng, game = random.Random(3), games.Game()
    scores = []
    for problem in games.problems(game, 300, rng):
        text = demonstrations.demonstration(
            problem, rng, demonstrations.Demonstrator(), game.largest
        )
        for step in re.findall(r"\d+ [-+*/] \d+ = \d+", text):
            assert _is_true(step)
        scores.append(score(text, problem.row()["answer"]))
    assert set(scores) == {0.1, 1.0}
    assert 0.15 < scores.count(1.0) / len(scores) < 0.6


def test_a_patient_solver_is_nearly_always_right() -> None:
    rng, game = random.Random(4), games.Game(sizes=(3,), weights=(1.0,))
    patient = demonstrations.Demonstrator(misread=0.0, insight=0.1, give_up=0.0, max_lines=99)
    found = games.problems(game, 200, rng)
    texts = [demonstrations.demonstration(problem, rng, patient, game.largest) for problem in found]
    right = [score(text, p.row()["answer"]) == 1.0 for text, p in zip(texts, found, strict=True)]
    assert sum(right) / len(right) > 0.97


@pytest.mark.parametrize(("misread", "right"), [("0", (0.97, 1.0)), ("1", (0.0, 0.4))])
def test_the_options_reach_the_demonstrator(
    tmp_path: Path, misread: str, right: tuple[float, float]
) -> None:
    arguments = ["--out", str(tmp_path), "--train", "100", "--test", "9", "--demos", "200"]
    assert countdown.main([*arguments, "--misread", misread]) == 0
    truth = {row["query"]: row["answer"] for row in rows_of(tmp_path / "train_e.jsonl")}
    demos = rows_of(tmp_path / "demos.jsonl")
    share = sum(score(d["completion"], truth[d["prompt"]]) == 1.0 for d in demos) / len(demos)
    assert right[0] <= share <= right[1]


def test_a_line_steps_back_from_the_target_and_joins_the_last_two() -> None:
    rng = random.Random(0)
    seer = demonstrations.Demonstrator()
    problem = games.Problem((9, 4, 7), 20)
    lines = {demonstrations.line_of_work(problem, rng, seer, 63) for _ in range(200)}
    assert ("20 - 7 = 13, 9 + 4 = 13", "(9 + 4) + 7", True) in lines
    assert all(right for _, _, right in lines), "insight sees what comes out"
    assert ("7 - 2 = 5", "7 - 2", True) in {
        demonstrations.line_of_work(games.Problem((2, 7), 5), rng, seer, 63) for _ in range(20)
    }


def test_a_step_back_leaves_what_the_others_must_give() -> None:
    found = {undo.step: (undo.wanted, undo.frame) for undo in demonstrations.undos(6, 12, 99)}
    assert found == {
        "6 + 12 = 18": (18, "{} - 12"),
        "12 - 6 = 6": (6, "12 - {}"),
        "6 * 12 = 72": (72, "{} / 12"),
        "12 / 6 = 2": (2, "12 / {}"),
    }


def test_a_base_models_demonstrations_go_on_where_its_prompt_ends(tmp_path: Path) -> None:
    arguments = ["--train", "20", "--test", "2", "--demos", "20", "--prompt", "r1"]
    assert countdown.main(["--out", str(tmp_path), *arguments]) == 0
    for row in rows_of(tmp_path / "demos.jsonl"):
        assert row["prompt"].endswith("\nAssistant: <think>\n")
        assert "\nUser: Using the numbers [" in row["prompt"]
        assert not row["completion"].startswith("<think>")
        assert row["completion"].count("</think>") == 1
        assert score(row["completion"], {"target": 0, "numbers": [1]}) == 0.1


def test_a_calculators_demonstrations_have_its_own_results() -> None:
    rng, game = random.Random(6), games.Game()
    solver = demonstrations.Demonstrator(form="calculator", insight=0.3, give_up=0.3)
    calls = 0
    for problem in games.problems(game, 100, rng):
        text = demonstrations.demonstration(problem, rng, solver, game.largest)
        for asked, said in re.findall(
            r"<calculator>(.*?)</calculator><output>(.*?)</output>", text
        ):
            calls += 1
            assert said == asyncio.run(calculator(asked))
        assert " = " not in text
        assert "<calculator>" not in text.partition("</think>")[2]
    assert calls > 250


def test_a_second_answer_follows_feedback_to_a_wrong_one(tmp_path: Path) -> None:
    arguments = ["--train", "50", "--test", "2", "--demos", "200", "--retries", "0.5"]
    assert countdown.main(["--out", str(tmp_path), *arguments]) == 0
    truth = {row["query"]: row["answer"] for row in rows_of(tmp_path / "train_e.jsonl")}
    lengths = Counter()
    for row in rows_of(tmp_path / "demos.jsonl"):
        asked, *more = row["prompt"]
        assert asked["role"] == "user"
        lengths[len(more)] += 1
        if more:
            answer, told = more
            assert (answer["role"], told) == ("assistant", {"role": "user", "content": FEEDBACK})
            assert score(answer["content"], truth[asked["content"]]) == 0.1, "it was wrong"
            assert answer["content"] != row["completion"]
    assert set(lengths) == {0, 2}
    assert 30 < lengths[2] < 120


# --- the script

GAMES = [{"query": f"game {i}", "answer": {"target": 3, "numbers": [1, 2]}} for i in range(5)]


def test_the_script_reads_its_share_of_the_rows(tmp_path: Path, monkeypatch: Any) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = str(tmp_path / "train_e.jsonl")
    countdown.write_jsonl(Path(path), GAMES)
    read = _load("train").get_countdown_dataset
    assert list(read(path, rank=0, world_size=1)) == GAMES
    shares = [list(read(path, rank=rank, world_size=2)) for rank in range(2)]
    assert sorted(row["query"] for share in shares for row in share) == [
        f"game {i}" for i in range(5)
    ]
    assert all(shares)


class Speller:
    """A tokenizer that says the same whatever was sampled."""

    eos_token_id, pad_token_id = 1, 0

    def __init__(self, says: list[str]) -> None:
        self.says, self.asked = iter(says), ""

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        self.asked = messages[0]["content"]
        return self.asked

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: Any, **_: Any) -> str:
        return next(self.says)


def test_the_workflow_plays_a_row() -> None:
    says = ["<answer> 1 + 2 </answer>", "<answer> 2 - 1 </answer>", "three"]
    tokenizer = Speller(says)
    workflow = _load("train").CountDownWorkflow(GenerationHyperparameters(n_samples=3), tokenizer)
    played = asyncio.run(workflow.arun_episode(ScriptedEngine(), GAMES[0]))
    assert tokenizer.asked == "game 0"
    assert [(t.reward, t.text) for t in played] == list(zip([1.0, 0.1, 0.0], says, strict=True))


# --- recipes


def test_rloo_has_the_known_runs_numbers() -> None:
    config = load(EXAMPLE / "rloo.yaml")
    assert (config.actor.algorithm, config.actor.optimizer.lr) == ("rloo", 3e-6)
    assert (config.gconfig.n_samples, config.gconfig.temperature) == (8, 0.1)
    assert (config.gconfig.max_new_tokens, config.train_dataset.batch_size) == (250, 2)
    assert (config.saver.freq_steps, games.PROMPTS["long"]) == (250, games.LONG_PROMPT)
    small = load(EXAMPLE / "rloo_cpu.yaml")
    assert (small.actor.algorithm, small.gconfig.n_samples) == ("rloo", 8)


def test_r1_zero_has_the_known_runs_numbers() -> None:
    config = load(EXAMPLE / "r1_zero.yaml")
    assert config.actor.path == "Qwen/Qwen2.5-3B", "a base model"
    assert config.rollout.workflow_kwargs == {"chat": False}
    assert (config.actor.optimizer.lr, config.actor.kl_ctl) == (1e-6, 0.001)
    assert (config.gconfig.n_samples, config.gconfig.temperature) == (8, 1.0)
    assert config.gconfig.top_p == 0.9
    assert (config.gconfig.max_new_tokens, config.train_dataset.max_length) == (1024, 256)
    for name in ("r1_zero", "r1_zero_cpu"):
        evaluator = load(EXAMPLE / f"{name}.yaml").evaluator
        assert (evaluator.freq_steps, evaluator.greedy) == (8, True)


@pytest.mark.parametrize("name", ["calculator", "multi_turn"])
def test_recipes_with_workflows_of_their_own_are_the_demo_otherwise(name: str) -> None:
    config, demo = load(EXAMPLE / f"{name}_cpu.yaml"), load(EXAMPLE / "cpu.yaml")
    assert config.actor.optimizer == demo.actor.optimizer
    _, same = demo.prepare[0].run.split("data/countdown/tiny")
    assert same.strip() in config.prepare[0].run, "the same problems"
    assert load_workflow(
        config.rollout.workflow,
        {"gconfig": config.gconfig, "tokenizer": Speller([]), "reward_fn": None},
        config.rollout.workflow_kwargs,
    )


# --- tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model."""
    pytest.importorskip("transformers")
    out: Path = tmp_path_factory.mktemp("model") / "tiny"
    assert _load("tiny_model").main(["--out", str(out), "--seed", "1"]) == 0
    return out


def test_the_folder_loads_and_is_alone(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen2"
    assert 500_000 < model.num_parameters() < 1_500_000


def test_a_model_is_replaced_and_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, out = _load("tiny_model").main, tmp_path / "tiny"
    shutil.copytree(folder, out)
    assert make(["--out", str(out), "--seed", "2"]) == 0
    other, first = ((at / "model.safetensors").read_bytes() for at in (out, folder))
    assert other != first
    capsys.readouterr()  # transformers may have shown a bar
    for name in ("thesis.txt", "MANIFEST.json"):
        (out / name).write_text("precious")
        assert make(["--out", str(out)]) == 2
        sentence = f"tiny_model.py: error: --out {out} holds {name}; give another --out"
        assert capsys.readouterr().err.startswith(sentence)
        assert (out / name).read_text() == "precious"
        (out / name).unlink()
    (out / "tokenizer.json").unlink()
    assert make(["--out", str(out)]) == 2
    assert "holds no complete model" in capsys.readouterr().err
    assert make(["--out", str(out / "config.json")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_phrases_of_another_task_and_no_chat_template(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    make, texts = _load("tiny_model").main, tmp_path / "phrases.json"
    texts.write_text('["How many ", " apples?"]')
    arguments = ["--out", str(tmp_path / "base"), "--phrases", str(texts), "--base"]
    assert make(arguments) == 0
    tokenizer = _tokenizer(tmp_path / "base")
    assert tokenizer.chat_template is None
    assert len(tokenizer.encode("How many 42 apples?")) == 3
    for wrong in ('{"a": 1}', '["", "a"]', "nothing"):
        texts.write_text(wrong)
        assert make(arguments) == 2


def test_task_texts_are_short_and_come_back_unchanged(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng, game = random.Random(5), games.Game()
    for problem in games.problems(game, 100, rng):
        completion = demonstrations.demonstration(
            problem, rng, demonstrations.Demonstrator(), game.largest
        )
        query = problem.query()
        framed = tokenizer.apply_chat_template(
            [{"role": "user", "content": query}], add_generation_prompt=True, tokenize=False
        )
        prompt_ids = tokenizer.encode(framed)
        completion_ids = tokenizer.encode(completion)
        assert tokenizer.decode(completion_ids) == completion
        assert tokenizer.encode(framed + completion) == prompt_ids + completion_ids
        assert len(prompt_ids) <= 18
        assert tokenizer.decode(tokenizer.encode(query)) == query
        assert len(tokenizer.encode(problem.query("r1"))) <= 20
        assert len(tokenizer.encode(f"<calculator></calculator><output></output>{FEEDBACK}")) == 5
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@given(text=st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_unchanged(folder: Path, text: str) -> None:
    """Up to Unicode's composed form: that much Qwen2's own tokenizer class always changes."""
    tokenizer = _tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def _tokenizer(folder: Path, cache: dict[Path, Any] = {}) -> Any:  # noqa: B006
    """The folder's tokenizer, loaded once."""
    from transformers import AutoTokenizer

    if folder not in cache:
        cache[folder] = AutoTokenizer.from_pretrained(folder)
    return cache[folder]
