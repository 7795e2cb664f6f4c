"""Configuration: what loads, and for each mistake one sentence with its place and remedy."""

import dataclasses
import math
import re
import string
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_config import BASE
from typos import TWENTY

from arealite.config import Config, load, to_yaml
from arealite.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path, yaml.safe_dump(BASE, sort_keys=False))


def mistake(path: Path, overrides: Sequence[str] = ()) -> str:
    """The sentence of the error that loading raises; anything but ConfigError fails the test."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def settings_of(cls: Any = Config, prefix: str = "") -> Iterator[str]:
    """The dotted key of every setting and section outside lists."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings_of(hints[field.name], f"{prefix}{field.name}.")


KEYS = sorted(settings_of())


def section_of(key: str) -> str:
    return key.rpartition(".")[0]


def typos(key: str) -> dict[str, str]:
    """One letter dropped, doubled, changed or swapped, at places that the key itself decides."""
    head, dot, leaf = key.rpartition(".")
    i = sum(map(ord, key)) % (len(leaf) - 1)
    other = string.ascii_lowercase[(ord(leaf[i]) + 7) % 26]
    return {
        "dropped": f"{head}{dot}{leaf[:i]}{leaf[i + 1 :]}",
        "doubled": f"{head}{dot}{leaf[: i + 1]}{leaf[i:]}",
        "changed": f"{head}{dot}{leaf[:i]}{other}{leaf[i + 1 :]}",
        "swapped": f"{head}{dot}{leaf[:i]}{leaf[i + 1]}{leaf[i]}{leaf[i + 2 :]}",
    }


ALL_TYPOS = [
    (key, typo)
    for key in KEYS
    if len(key.rpartition(".")[2]) >= 2
    for typo in typos(key).values()
    if typo not in KEYS
]


def suggestion(sentence: str) -> str:
    found = re.search(r"did you mean ([\w.]+)\?", sentence)
    return found[1] if found else ""


@pytest.mark.parametrize(("typo", "right"), TWENTY)
def test_a_typo_in_an_override_names_the_override_and_the_right_key(
    base: Path, typo: str, right: str
) -> None:
    sentence = mistake(base, [f"{typo}=1"])
    assert sentence == f"the override '{typo}=1': there is no setting {typo}; did you mean {right}?"


@pytest.mark.parametrize(("typo", "right"), TWENTY)
def test_a_typo_in_a_file_names_file_line_and_the_right_key(
    tmp_path: Path, typo: str, right: str
) -> None:
    lines = ["# a comment", "fileroot: runs"]
    for depth, part in enumerate(typo.split(".")):
        lines.append(f"{'  ' * depth}{part}:")
    lines[-1] += " 1"
    path = write(tmp_path, "\n".join(lines) + "\n")
    wrong = next(i for i, part in enumerate(typo.split(".")) if part not in right.split("."))
    sentence = mistake(path)
    assert sentence.startswith(f"{path}, line {3 + wrong}: there is no setting ")
    wanted = ".".join(right.split(".")[: wrong + 1])
    assert sentence.endswith(f"; did you mean {wanted}?")


def test_nearly_every_one_letter_typo_of_every_key_is_set_right(base: Path) -> None:
    assert len(ALL_TYPOS) >= 200
    wrong = []
    for key, typo in ALL_TYPOS:
        sentence = mistake(base, [f"{typo}=1"])
        assert sentence.startswith(f"the override '{typo}=1': there is no setting {typo}; ")
        if suggestion(sentence) != key:
            wrong.append((typo, key, sentence))
    assert len(wrong) <= 0.05 * len(ALL_TYPOS), wrong


@given(
    key=st.sampled_from(KEYS),
    letter=st.sampled_from(string.ascii_lowercase + "_-[]"),
    place=st.integers(0, 20),
)
@settings(max_examples=200, deadline=None)
def test_a_letter_put_in_anywhere_is_an_error_that_names_the_key(
    tmp_path_factory: pytest.TempPathFactory, key: str, letter: str, place: int
) -> None:
    head, dot, leaf = key.rpartition(".")
    place = min(place, len(leaf))
    typo = f"{head}{dot}{leaf[:place]}{letter}{leaf[place:]}"
    path = write(tmp_path_factory.getbasetemp(), yaml.safe_dump(BASE, sort_keys=False))
    assert f"'{typo}=1'" in mistake(path, [f"{typo}=1"])


def test_a_key_in_the_wrong_section_is_shown_the_right_one(base: Path) -> None:
    assert suggestion(mistake(base, ["lr=1e-3"])) == "actor.optimizer.lr"
    assert suggestion(mistake(base, ["rollout.temperature=1"])) == "gconfig.temperature"
    assert suggestion(mistake(base, ["batch_size=8"])) == "train_dataset.batch_size"


def test_a_key_like_no_other_points_to_the_reference(base: Path) -> None:
    assert "docs/configuration.md" in mistake(base, ["zzzzqqqq=1"])


def test_a_dotted_key_in_a_file_is_told_how_to_write_it(tmp_path: Path) -> None:
    path = write(tmp_path, "actor.path: x\n")
    assert "actor.path is written as path, inside actor" in mistake(path)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=many", "seed"),
        ("seed=1.5", "seed"),
        ("seed=true", "seed"),
        ("seed=null", "seed"),
        ("seed=", "seed"),
        ("seed=[1]", "seed"),
        ("seed={a: 1}", "seed"),
        ("actor.optimizer.lr=fast", "actor.optimizer.lr"),
        ("actor.share_prompts=maybe", "actor.share_prompts"),
        ("gconfig.temperature=warm", "gconfig.temperature"),
        ("gconfig.stop_token_ids=[a]", "gconfig.stop_token_ids"),
        ("gconfig.stop=word", "gconfig.stop"),
        ("stats_logger.wandb.tags=word", "stats_logger.wandb.tags"),
        ("rollout.workflow_kwargs=[1]", "rollout.workflow_kwargs"),
        ("trial_name=!!set {a, b}", "trial_name"),
    ],
)
def test_a_value_of_the_wrong_type_names_key_and_place(base: Path, override: str, key: str) -> None:
    sentence = mistake(base, [override])
    assert sentence.startswith(f"the override {override!r}: {key}: ")
    assert "$" not in sentence


def test_a_wrong_value_in_a_file_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nactor:\n  path: m\n  optimizer:\n    lr: fast\n")
    assert mistake(path).startswith(f"{path}, line 5: actor.optimizer.lr: ")


def test_a_wrong_value_in_a_list_of_sections_names_item_and_line(tmp_path: Path) -> None:
    text = "prepare:\n  - {makes: a, run: b}\n  - makes: c\n    run: d\n    timeout_s: soon\n"
    path = write(tmp_path, text)
    assert mistake(path).startswith(f"{path}, line 5: prepare[1].timeout_s: ")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("mode=ppo", ("rl", "sft")),
        ("actor.dtype=fp16", ("float32", "bfloat16")),
        ("rollout.late=never", ("mask", "drop")),
        ("scheduler.type=kubernetes", ("local",)),
        ("stats_logger.wandb.mode=on", ("disabled", "offline", "online")),
    ],
)
def test_a_wrong_choice_lists_the_right_ones(
    base: Path, override: str, allowed: tuple[str, ...]
) -> None:
    sentence = mistake(base, [override])
    assert sentence.startswith(f"the override {override!r}: ")
    assert all(repr(choice) in sentence for choice in allowed)


@pytest.mark.parametrize("value", ["3", "word", "[3]", "null", ""])
def test_a_section_that_is_given_a_value_is_told_its_keys(base: Path, value: str) -> None:
    sentence = mistake(base, [f"actor={value}"])
    assert sentence.startswith(f"the override 'actor={value}': actor is a section with keys")
    assert "path, dtype, device" in sentence


@pytest.mark.parametrize("override", ["", "seed", "=3", " =3"])
def test_an_override_without_key_or_sign_is_shown_the_form(base: Path, override: str) -> None:
    assert mistake(base, [override]) == (
        f"{override!r} is not an override; write section.key=value"
    )


@pytest.mark.parametrize(
    "override", ["seed.x=1", "actor.path.x=1", "seed[0]=1", "actor..path=1", ".seed=1"]
)
def test_an_override_below_a_plain_setting_is_unknown(base: Path, override: str) -> None:
    assert mistake(base, [override]).startswith(f"the override {override!r}: there is no setting")


@pytest.mark.parametrize("index", ["1", "-1", "x", ""])
def test_an_override_of_an_item_that_is_not_there_counts_the_items(
    tmp_path: Path, index: str
) -> None:
    path = write(tmp_path, yaml.safe_dump({**BASE, "prepare": [{"makes": "a", "run": "b"}]}))
    assert "prepare has 1 items" in mistake(path, [f"prepare[{index}].run=c"])
    assert load(path, ["prepare[0].run=c"]).prepare[0].run == "c"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nactor:\n\t- b\n", 3),
        ("seed: [1\n", 2),
        ("seed: 1\n  path: 2\n", 2),
        ("seed: 'x\n", 2),
        ("seed: 1\n---\nseed: 2\n", 2),
        ("seed: 1\nseed: 2\n", 2),
        ("seed: 1\nactor: {path: a,\n path: b}\n", 3),
        ("seed: 1\nactor: &x\n  path: *x\n", 3),
        ("prepare: &x [*x]\n", 1),
        ("seed: !!python/object/apply:os.getcwd []\n", 1),
        ("seed: 1\nnull: 2\n", 2),
        ("seed: 1\n? [a, b]\n: 2\n", 2),
        (b"seed: 1\nfileroot: \xff\n", 2),
    ],
)
def test_a_broken_file_names_its_line(tmp_path: Path, text: str | bytes, line: int) -> None:
    path = write(tmp_path, text)
    found = re.match(rf"{re.escape(str(path))}, line (\d+): ", mistake(path))
    assert found
    # Recursive anchors and open quotes may be reported where they begin.
    assert abs(int(found[1]) - line) <= 1


@pytest.mark.parametrize("text", ["- a\n- b\n", "hello\n", "42\n"])
def test_a_file_without_keys_says_what_is_wanted(tmp_path: Path, text: str) -> None:
    assert "must hold keys and values" in mistake(write(tmp_path, text))


@pytest.mark.parametrize("text", ["", "# only a comment\n", b"\xef\xbb\xbf"])
def test_an_empty_file_lacks_its_first_setting(tmp_path: Path, text: str | bytes) -> None:
    assert "experiment_name: it is empty" in mistake(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert mistake(path) == f"{path}: there is no such file; give one with --config"


def test_a_folder_or_binary_file_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in mistake(tmp_path)
    assert "not valid YAML" in mistake(write(tmp_path, b"a: \0\n"))


@pytest.mark.parametrize("text", ["2026-01-31", "2024-13-45", "007", "1e5", "0x10", "1_000"])
def test_a_name_stays_as_it_was_typed(base: Path, text: str) -> None:
    assert load(base, [f"trial_name={text}"]).trial_name == text


def test_overrides_win_over_the_file_and_later_over_earlier(base: Path) -> None:
    config = load(base, ["seed=3", "seed=4", "actor.path=other", "saver={freq_steps: 5}"])
    assert (config.seed, config.actor.path, config.saver.freq_steps) == (4, "other", 5)
    assert load(base, ["actor.optimizer.lr=1e-3"]).actor.optimizer.lr == 1e-3
    assert load(base, ["stats_logger.wandb.name=null"]).stats_logger.wandb.name is None
    assert load(base, ["rollout.workflow_kwargs.chat=false"]).rollout.workflow_kwargs == {
        "chat": False
    }


def test_settings_may_name_each_other_the_environment_and_files_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "elsewhere")
    tree = {
        **BASE,
        "trial_name": "seed${seed}",
        "fileroot": "${oc.env:WHERE}",
        "tokenizer_path": "${here:tokenizer}",
        "valid_dataset": "${train_dataset}",
    }
    config = load(write(tmp_path, yaml.safe_dump(tree)), ["seed=7"])
    assert config.trial_name == "seed7"
    assert config.fileroot == "elsewhere"
    assert config.tokenizer_path == str(tmp_path / "tokenizer")
    assert config.valid_dataset == config.train_dataset
    assert load(write(tmp_path, yaml.safe_dump(BASE))).tokenizer_path == "models/m"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${oc.env:AREALITE_NOT_SET}", "AREALITE_NOT_SET"),
        ("${nowhere}", "nowhere"),
        ("${strange:1}", "strange"),
        ("${trial_name}", "ecursive"),
        ("${open", "${open"),
    ],
)
def test_a_reference_that_leads_nowhere_names_its_place(
    tmp_path: Path, value: str, says: str
) -> None:
    path = write(tmp_path, yaml.safe_dump(BASE) + f"trial_name: {value}\n")
    line = len(yaml.safe_dump(BASE).splitlines()) + 1
    sentence = mistake(path)
    assert sentence.startswith(f"{path}, line {line}: trial_name: ")
    assert says in sentence


@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer_path": "${actor.path}/tokenizer"}])
@pytest.mark.parametrize("value", ["${oc.env:AREALITE_NOT_SET}", "${nowhere}/x"])
def test_not_what_refers_to_a_broken_reference_is_blamed_but_that_itself(
    tmp_path: Path, tokenizer: dict[str, str], value: str
) -> None:
    tree = {**tokenizer, **BASE, "actor": {"path": value}}
    path = write(tmp_path, yaml.safe_dump(tree, sort_keys=False))
    line = path.read_text().splitlines().index(f"  path: {value}") + 1
    assert mistake(path).startswith(f"{path}, line {line}: actor.path: ")


def test_secrets_are_masked_in_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "sesame-0123456789")
    tree = {**BASE, "stats_logger": {"wandb": {"group": "key ${oc.env:WANDB_API_KEY} here"}}}
    tree["rollout"] = {**BASE["rollout"], "workflow_kwargs": {"api_key": "plain", "max_tokens": 5}}
    config = load(write(tmp_path, yaml.safe_dump(tree)))
    assert config.stats_logger.wandb.group == "key sesame-0123456789 here"
    written = to_yaml(config)
    assert "sesame" not in written
    assert "plain" not in written
    again = yaml.safe_load(written)
    assert again["stats_logger"]["wandb"]["group"] == "key *** here"
    assert again["rollout"]["workflow_kwargs"] == {"api_key": "***", "max_tokens": 5}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("api_key", "x", "***"),
        ("auth_header", "x", "***"),
        ("credentials", "x", "***"),
        ("passwd", "x", "***"),
        ("client_secret_id", "x", "***"),
        ("hf_token", "x", "***"),
        ("tokenizer_path", "x", "x"),
        ("max_tokens_per_mb", "x", "x"),
        ("stop_token_ids", "x", "x"),
        ("max_new_tokens", "x", "x"),
        ("answer_key", "x", "x"),
        ("author", "x", "x"),
        ("anything", "${oc.env:AREALITE_TEST_VALUE}", "***"),
        ("copied", "at ${.anything}", "at ***"),
        ("home", "${oc.env:HOME}", None),
    ],
)
def test_a_setting_is_masked_by_its_name_or_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, shown: str | None
) -> None:
    monkeypatch.setenv("AREALITE_TEST_VALUE", "from-the-environment")
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = {"anything": "${oc.env:AREALITE_TEST_VALUE}", key: value}
    tree = {**BASE, "rollout": {**BASE["rollout"], "workflow_kwargs": arguments}}
    written = yaml.safe_load(to_yaml(load(write(tmp_path, yaml.safe_dump(tree)))))
    assert written["rollout"]["workflow_kwargs"][key] == (shown or str(tmp_path))


def test_what_is_written_loads_again_as_the_same(base: Path, tmp_path: Path) -> None:
    config = load(
        base, ["gconfig.stop_token_ids=[1,2]", "actor.optimizer.lr=3e-4", "trial_name=0042"]
    )
    assert load(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["experiment_name="], "experiment_name", "empty"),
        (["trial_name="], "trial_name", "empty"),
        (["trial_name=a/b"], "trial_name", "folder"),
        (["trial_name=.."], "trial_name", "folder"),
        (['trial_name="a\\n"'], "trial_name", "folder"),
        (["actor.path="], "actor.path", "empty"),
        (["train_dataset.path="], "train_dataset.path", "empty"),
        (["prepare=[{makes: a}]"], "prepare[0]", "both"),
        (["prepare=[{makes: a, run: ' '}]"], "prepare[0]", "both"),
        (["train_dataset.batch_size=0"], "train_dataset.batch_size", "above 0"),
        (["train_dataset.max_rows=-1"], "train_dataset.max_rows", "above 0"),
        (["total_train_steps=0"], "total_train_steps", "above 0"),
        (["evaluator.freq_steps=0"], "evaluator.freq_steps", "above 0"),
        (["evaluator.temperature=0"], "evaluator.temperature", "above 0"),
        (["rollout.n_servers=0"], "rollout.n_servers", "above 0"),
        (["rollout.max_concurrent_rollouts=0"], "rollout.max_concurrent_rollouts", "above 0"),
        (["actor.eps_clip=1.5"], "actor.eps_clip", "between 0 and 1"),
        (["actor.optimizer.beta1=-0.1"], "actor.optimizer.beta1", "below 1"),
        (["actor.optimizer.beta2=1"], "actor.optimizer.beta2", "below 1"),
        (["actor.optimizer.momentum=0.9"], "actor.optimizer.momentum", "beta1"),
        (["actor.optimizer.lr_scheduler_power=0"], "actor.optimizer.lr_scheduler_power", "above 0"),
        (["actor.optimizer.eps=0"], "actor.optimizer.eps", "above 0"),
        (["seed=-1"], "seed", "at least 0"),
        (["seed=9223372036854775808"], "seed", "below 2**63"),
        (["gconfig.seed=-1"], "gconfig.seed", "at least 0"),
        (["gconfig.temperature=0.00009"], "gconfig.temperature", "at least 0.0001"),
        (["evaluator.temperature=0.00009"], "evaluator.temperature", "evaluator.greedy"),
        (["gconfig.greedy=true"], "gconfig.greedy", "use evaluator.greedy"),
        (["actor.optimizer.lr=-1"], "actor.optimizer.lr", "negative"),
        (["actor.optimizer.gradient_clipping=-1"], "actor.optimizer.gradient_clipping", "negative"),
        (["actor.optimizer.lr=.nan"], "actor.optimizer.lr", "finite"),
        (["actor.behave_imp_weight_cap=.inf"], "actor.behave_imp_weight_cap", "finite"),
        (["rollout.request_retries=-1"], "rollout.request_retries", "negative"),
        (["rollout.max_head_offpolicyness=-1"], "rollout.max_head_offpolicyness", "negative"),
        (["gconfig.n_samples=1"], "gconfig.n_samples", "at least 2"),
        (["rollout.reward_fn="], "rollout.reward_fn", "empty"),
        (
            ["reward.functions=[{path: a.py:f}]", "rollout.reward_fn=a.py:g"],
            "rollout.reward_fn",
            "put it among them",
        ),
        *(
            (["rollout.reward_fn=", f"reward.functions=[{{{items}}}]"], key, says)
            for items, key, says in (
                ("name: f", "reward.functions[0]", "it has no path"),
                ("path: a.py:f}, {path: b.py:f", "reward.functions[1]", "give one of them another"),
                ("path: a.py:f, name: x/y", "reward.functions[0].name", "cannot name a component"),
                ("path: a.py:mean", "reward.functions[0].name", "that is the whole reward"),
                ("path: a.py:f, weight: 0", "reward.functions[0].weight", "leave out what shall"),
                ("path: a.py:f, weight: .nan", "reward.functions[0].weight", "it is nan"),
                ("path: a.py:f, timeout_s: 0", "reward.functions[0].timeout_s", "above 0"),
                (
                    "path: a.py:f, max_concurrent: 0",
                    "reward.functions[0].max_concurrent",
                    "above 0",
                ),
            )
        ),
        (["actor.mb_spec.max_tokens_per_mb=1279"], "actor.mb_spec.max_tokens_per_mb", "1280"),
        (["actor.ppo_n_minibatches=129"], "actor.ppo_n_minibatches", "more minibatches"),
        (
            ["mode=sft", "actor.mb_spec.max_tokens_per_mb=1023"],
            "actor.mb_spec.max_tokens_per_mb",
            "train_dataset.max_length = 1024",
        ),
        (
            [
                "mode=sft",
                "valid_dataset={path: v, max_length: 2000}",
                "actor.mb_spec.max_tokens_per_mb=1999",
            ],
            "actor.mb_spec.max_tokens_per_mb",
            "valid_dataset.max_length = 2000",
        ),
    ],
)
def test_a_broken_rule_names_setting_place_and_remedy(
    base: Path, overrides: list[str], key: str, says: str
) -> None:
    sentence = mistake(base, overrides)
    assert sentence.startswith(f"the override {overrides[-1]!r}: {key}: ")
    assert says in sentence


def test_several_reward_functions_take_the_place_of_one(base: Path) -> None:
    several = "reward.functions=[{path: a.py:f, weight: 0.5}, {path: b.py:f, name: g}]"
    config = load(base, ["rollout.reward_fn=", several, "reward.functions[0].kwargs.k=1"])
    assert [f.component for f in config.reward.functions] == ["f", "g"]
    assert [(f.weight, f.kwargs) for f in config.reward.functions] == [(0.5, {"k": 1}), (1.0, {})]
    sentence = mistake(base, ["rollout.reward_fn=", "reward.functions=[{path: a.py:f, wieght: 1}]"])
    assert "reward.functions[0].wieght; did you mean reward.functions.weight?" in sentence


VLLM, SGLANG = "rollout.backend=vllm", "rollout.backend=sglang"
RAW = "rollout.server_args=['--logprobs-mode','raw_logprobs']"
OWN = "rollout.servers=['h:1']"


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        ([VLLM, "gconfig.top_p=0.9"], "gconfig.top_p", "renormalised over the tokens kept"),
        ([VLLM, "gconfig.top_k=5"], "gconfig.top_k", "renormalised over the tokens kept"),
        ([VLLM, "gconfig.min_new_tokens=2"], "gconfig.min_new_tokens", "without the stop tokens"),
        ([VLLM, RAW, "gconfig.temperature=0.6"], "gconfig.temperature", "raw"),
        ([VLLM, RAW, "gconfig.top_p=0.9"], "gconfig.top_p", "before the cut (raw)"),
        ([SGLANG, "gconfig.min_new_tokens=2"], "gconfig.min_new_tokens", "without the stop tokens"),
        ([VLLM, "gconfig.temperature=2.5"], "gconfig.temperature", "samples with 0.01 to 2"),
        ([VLLM, "evaluator.temperature=0.001"], "evaluator.temperature", "0.01 to 2"),
        ([VLLM, "deterministic=true"], "deterministic", "rollout.backend: embedded"),
        (["rollout.python=/usr/bin/python3"], "rollout.python", "sglang or vllm"),
        (["rollout.tensor_parallel_size=2"], "rollout.tensor_parallel_size", "sglang or vllm"),
        ([VLLM, "rollout.tensor_parallel_size=0"], "rollout.tensor_parallel_size", "above 0"),
        (["rollout.servers=['http://h:1']"], "rollout.servers", "write host:port"),
        (["rollout.servers=[h]"], "rollout.servers", "write host:port"),
        (["rollout.servers=['h:1','h:1']"], "rollout.servers", "given twice"),
    ],
)
def test_servers_that_cannot_do_what_is_asked_are_refused(
    base: Path, overrides: list[str], key: str, says: str
) -> None:
    sentence = mistake(base, overrides)
    assert f"{key}: " in sentence
    assert says in sentence


@pytest.mark.parametrize(
    "overrides",
    [
        [VLLM, "gconfig.temperature=0.6"],
        [VLLM, RAW, "gconfig.min_new_tokens=2"],
        [VLLM, OWN, "gconfig.top_p=0.9"],  # they are asked how they were started
        [SGLANG, "gconfig.temperature=0.6", "gconfig.top_p=0.9"],
        ["rollout.servers=['h:1','[::1]:2']", "gconfig.min_new_tokens=2"],
        [VLLM, "mode=sft", "gconfig.top_p=0.9"],
    ],
)
def test_servers_that_can_are_not(base: Path, overrides: list[str]) -> None:
    load(base, overrides)


def test_the_rules_bounds_are_allowed(base: Path) -> None:
    load(base, ["actor.mb_spec.max_tokens_per_mb=1280", "actor.ppo_n_minibatches=128"])
    load(base, ["actor.eps_clip=1", "actor.optimizer.lr=0", "rollout.max_head_offpolicyness=0"])
    load(base, ["actor.optimizer.beta1=0", "seed=0", "gconfig.seed=9223372036854775807"])
    load(base, ["gconfig.temperature=1e-4", "evaluator.greedy=true"])
    load(base, ["mode=sft", "gconfig.n_samples=1", "actor.mb_spec.max_tokens_per_mb=1024"])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("n_samples=0", "n_samples"),
        ("max_new_tokens=0", "max_new_tokens"),
        ("min_new_tokens=257", "min_new_tokens"),
        ("temperature=0", "temperature"),
        ("temperature=.nan", "temperature"),
        ("top_p=0", "top_p"),
        ("top_p=1.01", "top_p"),
        ("top_k=0", "top_k"),
    ],
)
def test_sampling_rules_name_their_override(base: Path, value: str, name: str) -> None:
    sentence = mistake(base, ["evaluator.n_samples=1", f"gconfig.{value}"])
    assert sentence.startswith(f"the override 'gconfig.{value}': gconfig.{name} is ")
    assert "it must be" in sentence


def test_sampling_rules_name_their_line_though_another_section_has_the_same_key(
    tmp_path: Path,
) -> None:
    tree = {"evaluator": {"temperature": 0.5}, **BASE, "gconfig": {"n_samples": 2}}
    path = write(tmp_path, yaml.safe_dump(tree, sort_keys=False) + "  temperature: -1.0\n")
    path.write_text(
        yaml.safe_dump({"evaluator": {"temperature": 0.5}}) + "gconfig:\n  temperature: -1.0\n"
    )
    assert mistake(path).startswith(f"{path}, line 4: gconfig.temperature is -1.0")


@given(st.dictionaries(st.sampled_from(KEYS), st.floats() | st.integers() | st.text(max_size=5)))
@settings(max_examples=100, deadline=None)
def test_any_values_load_or_are_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    path = write(tmp_path_factory.getbasetemp(), yaml.safe_dump(BASE))
    try:
        config = load(path, [f"{key}={value}" for key, value in values.items()])
    except ConfigError:  # anything else fails the test
        return
    assert math.isfinite(config.actor.optimizer.lr)


EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_in_the_repository_loads(path: Path) -> None:
    config = load(path)
    assert config.experiment_name


def test_the_laptop_configuration_stays_short() -> None:
    text = (ROOT / "examples" / "countdown" / "cpu.yaml").read_text()
    assert len(text.splitlines()) <= 35


@pytest.mark.parametrize("word", ["off", "no", "false", "False"])
def test_off_is_a_value_and_also_false(tmp_path: Path, word: str) -> None:
    """YAML 1.1 would read `off` as false, and no setting could have it as a value."""
    (tmp_path / "x.yaml").write_text(
        "experiment_name: e\nactor: {path: m}\nrollout: {reward_fn: 'a:b'}\n"
        f"gconfig: {{n_samples: 2}}\nreward: {{isolation: off}}\n"
        f"train_dataset: {{path: d, shuffle: {word}}}\n"
    )
    config = load(tmp_path / "x.yaml", ["recover.mode=off", f"actor.share_prompts={word}"])
    assert (config.reward.isolation, config.recover.mode) == ("off", "off")
    assert (config.train_dataset.shuffle, config.actor.share_prompts) == (False, False)
