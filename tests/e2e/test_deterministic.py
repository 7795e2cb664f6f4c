"""deterministic: true, with real processes: the same bits again, and asynchronous = sequential."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from small_run import CONFIG, small_folder, start

SETTINGS = [
    *("deterministic=true", "train_dataset.batch_size=8", "gconfig.n_samples=4"),
    *(
        "valid_dataset.path=",
        "evaluator.freq_steps=null",
        "rollout.reward_fn=reward.py:compute_score",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("deterministic"))


def bits(
    folder: Path, name: str, steps: int, *overrides: str, program: str = ""
) -> tuple[str, str]:
    """sha256 of the last weights and of all trained episodes (ids, versions, texts, rewards)."""
    begin = [program] if program else ["-m", "arealite.launch"]
    settings = [*SETTINGS, f"trial_name={name}", f"total_train_steps={steps}", *overrides]
    done = start([*begin, "--config", CONFIG, *settings], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "runs/countdown-cpu" / name
    weights = (run / f"checkpoints/{steps}/model.safetensors").read_bytes()
    episodes = hashlib.sha256()
    for line in (run / "transcripts.jsonl").read_text().splitlines():
        told = json.loads(line)
        del told["time"]
        if told["fate"] == "trained":
            episodes.update(json.dumps(told, sort_keys=True).encode())
    return hashlib.sha256(weights).hexdigest(), episodes.hexdigest()


def test_at_staleness_0_asynchronous_is_the_sequential_loop(folder: Path) -> None:
    program = str(Path(__file__).parent / "sequential.py")
    eta = "rollout.max_head_offpolicyness=0"
    sequential = bits(folder, "sequential", 10, eta, program=program)
    assert bits(folder, "asynchronous", 10, eta) == sequential


def test_two_stale_runs_are_the_same_bits(folder: Path) -> None:
    """With two servers, held-out sets beside training, and filtered groups that are replaced."""
    settings = (
        "rollout.max_head_offpolicyness=2",
        "rollout.n_servers=2",
        "gconfig.n_samples=2",
        "rollout.filters=[equal_rewards]",
        "valid_dataset.path=data/countdown/tiny/test_e.jsonl",
        "evaluator.freq_steps=2",
    )
    first = bits(folder, "first", 6, *settings)
    assert bits(folder, "second", 6, *settings) == first
    rows = (folder / "runs/countdown-cpu/first/metrics.jsonl").read_text().splitlines()
    lags = [json.loads(row).get("staleness/max", 0.0) for row in rows]
    assert max(lags) == 2.0, "the runs were stale"
    assert json.loads(rows[-2])["counts/filtered"] > 0
    other = ("seed=2", "actor.path=models/countdown-warmup-seed1", "prepare=[]")
    assert bits(folder, "other", 6, *settings, *other) != first
