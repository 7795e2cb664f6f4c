"""The model card: what it says is what the configuration and the metrics say."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from plain_config import BASE

from arealite.card import METHODS, model_card
from arealite.config import Config, load
from arealite.config.presets import PRESETS


def config_of(tmp_path: Path, **changes: Any) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return load(path)


ROWS = [
    {"version": 0, "eval/valid/accuracy": 0.25, "eval/valid/mean": 0.3},
    {"version": 1, "reward/mean": 0.1, "reward/right": 0.05},
    {"version": 2, "reward/mean": 0.3, "reward/right": 0.25, "eval/valid/accuracy": 0.5},
    {"version": 3, "reward/mean": 9.0, "eval/valid/accuracy": 0.9},
]


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def code(card: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ast.parse(found)
    return str(found)


def test_it_says_how_the_model_was_trained_and_what_it_earned(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        actor={"path": "Qwen/Qwen2-0.5B", "algorithm": "rloo", "optimizer": {"lr": 3e-6}},
        gconfig={"n_samples": 8, "temperature": 0.1, "max_new_tokens": 250},
        train_dataset={"path": "openai/gsm8k", "batch_size": 2},
        saver={"export": "models/countdown-rloo"},
    )
    card = model_card(config, 2, ROWS, "How many?", is_chat=True)
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "Qwen/Qwen2-0.5B",
        "datasets": ["openai/gsm8k"],
        "tags": ["arealite", "reinforcement-learning", "rloo"],
    }
    for part in (
        "# countdown-rloo, version 2",
        "after 2 versions of RLOO",
        "learning rate 3e-06",
        "2 rows x 8 samples",
        "temperature 0.1, at most 250 tokens",
        "`reward.py:compute_score`",
        "| eval/valid/accuracy | 0.250 | 0.500 (version 2) |",
        "| reward/right, mean of 2 batches | 0.150 | 0.150 |",
    ):
        assert part in card
    assert "9.0" not in card, "a later version's"
    assert '{"role": "user", "content": "How many?"}' in code(card)


@pytest.mark.parametrize("algorithm", sorted(PRESETS))
def test_every_algorithm_has_a_name(tmp_path: Path, algorithm: str) -> None:
    actor = {"path": "models/m", "algorithm": algorithm, "kl_ctl": 0.1}
    card = model_card(config_of(tmp_path, actor=actor), 1, [])
    assert f"- method: {METHODS[algorithm]}" in card
    assert ("- critic: learning rate" in card) == (algorithm == "ppo")
    assert "- KL to the reference: 0.1 x k3 in the loss" in card


def test_weights_of_several_rewards_are_told(tmp_path: Path) -> None:
    functions = [{"path": "arealite.rewards.formats:soft_format", "weight": 0.3},
                 {"path": "r.py:score", "name": "right", "weight": 2.0}]  # fmt: skip
    config = config_of(tmp_path, reward={"functions": functions}, rollout={})
    card = model_card(config, 1, ROWS)
    assert "- 0.3 x soft_format (`arealite.rewards.formats:soft_format`)" in card
    assert "- 2 x right (`r.py:score`)" in card


def test_paths_of_this_machine_are_not_told_to_the_hub(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        actor={"path": str(tmp_path / "model")},
        train_dataset={"path": str(tmp_path / "train.jsonl")},
        rollout={"reward_fn": f"{tmp_path}/reward.py:score"},
    )
    card = model_card(config, 1, [])
    assert {"base_model", "datasets"}.isdisjoint(front_matter(card))
    assert str(tmp_path) not in card
    for name in ("model", "train.jsonl", "reward.py:score"):
        assert name in card


def test_secrets_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    card = model_card(config_of(tmp_path), 1, [], "the token is hf_abcdefgh")
    assert "hf_abcdefgh" not in card


def test_a_base_model_is_asked_with_text(tmp_path: Path) -> None:
    text = 'Using the numbers [3, "4"],\n\\ $x = '
    found = code(model_card(config_of(tmp_path), 1, [], text))
    assigned = next(n for n in ast.parse(found).body if isinstance(n, ast.Assign)
                    and ast.unparse(n.targets[0]) == "prompt")  # fmt: skip
    assert ast.literal_eval(assigned.value) == text
    assert "apply_chat_template" not in found


@pytest.mark.parametrize("prompt", [None, "x" * 5000, [{"role": "user", "content": "x" * 5000}]])
@pytest.mark.parametrize("is_chat", [True, False])
def test_what_cannot_be_shown_is_left_open(tmp_path: Path, prompt: Any, is_chat: bool) -> None:
    card = model_card(config_of(tmp_path), 1, [], prompt, is_chat)
    assert "..." in code(card)
    assert "xxxx" not in card


def test_the_systems_words_stand_before_the_question(tmp_path: Path) -> None:
    rollout = {"reward_fn": "r.py:f", "workflow_kwargs": {"system": "Be brief."}}
    found = code(model_card(config_of(tmp_path, rollout=rollout), 1, [], "Why?", is_chat=True))
    assert found.index("Be brief.") < found.index("Why?")


def test_fine_tuning_tells_its_loss(tmp_path: Path) -> None:
    rows = [{"version": 0, "eval/valid/loss": 2.0}, {"version": 5, "eval/valid/loss": 0.5}]
    card = model_card(config_of(tmp_path, mode="sft", rollout={}), 5, rows)
    assert "supervised fine-tuning" in card
    assert "| eval/valid/loss | 2.000 | 0.500 (version 5) |" in card
    assert "## Rewards" not in card
