"""The subtraction example: its data, its rewards through the scorer, its tiny model's tokens."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_files import EXAMPLES, load_example, rows_of

from arealite.config import load
from arealite.rewards.opening import open_reward
from arealite.types import Completion

subtraction = load_example("subtraction/subtraction")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("subtraction")
    assert subtraction.main(["--out", str(out), "--demos", "300"]) == 0
    return out


def test_rows_are_those_of_the_known_run_with_the_second_minus_the_first(data: Path) -> None:
    rng = np.random.default_rng(42)
    first, second = rng.integers(0, 1000, 8000), rng.integers(0, 1000, 8000)
    expected = {f"{a} {b}": int(b - a) for a, b in zip(first, second, strict=True)}
    train, test = (rows_of(data / f"{name}.jsonl") for name in ("train", "test"))
    assert {row["input"]: row["difference"] for row in train + test} == expected
    assert not {row["input"] for row in train} & {row["input"] for row in test}
    assert len(test) == round(0.2 * len(expected))
    assert len(train) + len(test) >= 7960, "a pair that comes twice is trained twice"
    for row in test[:20]:
        system, user = row["prompt"]
        assert (system["role"], user["role"], user["content"]) == ("system", "user", row["input"])
        assert "the second minus the first number only" in system["content"]


def test_the_same_options_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert subtraction.main(["--out", str(tmp_path), "--demos", "300"]) == 0
    for path in data.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


SAID = {
    "<think>105 - 5 = 100</think><answer>100</answer>": (1.0, 1.0),
    "<think>105 - 5 = 100</think><answer> 100 </answer>": (1.0, 1.0),
    "<think>5 - 105</think><answer>-100</answer>": (1.0, 0.0),
    "<think>so</think>\n<answer>100</answer>": (0.0, 1.0),
    "<think>so\nso</think><answer>100</answer>": (0.0, 1.0),
    "<answer>100</answer>": (0.0, 1.0),
    "<think></think><answer></answer>": (1.0, 0.0),
    "<think>a</answer>": (0.0, 0.0),
    "<think>a</think><answer>b": (0.0, 0.0),
    "</think><answer>": (0.0, 0.0),
    "100": (0.0, 0.0),
    "": (0.0, 0.0),
}
"""(format, accuracy) of answers to "5 105"."""


def test_the_two_rewards_through_the_configuration(data: Path) -> None:
    row = subtraction.row((5, 105))
    config = load(EXAMPLES / "subtraction/cpu.yaml")

    async def scored() -> list[Any]:
        with open_reward(config, print) as reward:
            asked = [Completion(t, 100, row["prompt"], "", (), (), row) for t in SAID]
            return await reward.group(asked)

    assert asyncio.run(scored()) == [
        {"format": form, "accuracy": accuracy} for form, accuracy in SAID.values()
    ]


@pytest.mark.parametrize(("misread", "sloppy", "right"), [(0, 0, 200), (1, 0, 0), (0, 1, 0)])
def test_demonstrations_are_right_as_often_as_asked(
    misread: float, sloppy: float, right: int
) -> None:
    rng, rewards = random.Random(1), load_example("subtraction/rewards")
    pairs = [(a, b) for a, b in subtraction.pairs(300, 49, 1) if a != b][:200]
    texts = [subtraction.demonstration(pair, rng, misread, sloppy) for pair in pairs]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    form = rewards.format_reward(messages)
    accuracy = rewards.accuracy_reward(messages, [b - a for a, b in pairs])
    assert sum(f * a for f, a in zip(form, accuracy, strict=True)) == right


def test_the_tiny_model_reads_a_row_in_few_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert subtraction.main(["--out", str(tmp_path), "--largest", "29", "--demos", "200"]) == 0
    phrases = json.loads((tmp_path / "phrases.json").read_text())
    tokenizer = load_example("countdown/tiny_model").make_tokenizer(phrases, ())
    config = load(EXAMPLES / "subtraction/cpu.yaml")
    for row in rows_of(tmp_path / "demos.jsonl"):
        framed = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=False
        )
        assert len(tokenizer.encode(framed)) <= config.train_dataset.max_length
        ids = tokenizer.encode(row["completion"])
        assert len(ids) < config.gconfig.max_new_tokens
        assert tokenizer.decode(ids) == row["completion"]


@pytest.mark.parametrize("options", [["--rows", "1"], ["--largest", "1"], ["--misread", "2"]])
def test_wrong_options_exit_2(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as leaving:
        subtraction.main(["--out", str(tmp_path / "x"), *options])
    assert leaving.value.code == 2


def test_the_gpu_recipe_has_the_known_runs_numbers() -> None:
    config = load(EXAMPLES / "subtraction/qwen.yaml")
    assert config.actor.path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (config.actor.optimizer.lr, config.gconfig.max_new_tokens) == (1e-5, 128)
    assert (config.recover.freq_steps, config.evaluator.freq_steps) == (10, 100)
