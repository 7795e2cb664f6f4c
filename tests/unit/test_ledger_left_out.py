"""Rows whose update was left out count as trained, and the ledger says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arealite.config import load
from arealite.ledger import Ledger, read_ledger
from arealite.run import Run
from arealite.telemetry.run_folder import RunFolder
from arealite.types import Episode, Trajectory

YAML = """
experiment_name: e
actor: {path: model}
rollout: {reward_fn: "reward.py:compute_score"}
gconfig: {n_samples: 2, max_new_tokens: 4}
train_dataset: {path: rows.jsonl, batch_size: 2, max_length: 8}
total_train_steps: 9
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(YAML)
    folder = RunFolder(tmp_path / "runs/e/t").create()
    run = Run(load("run.yaml"), folder)
    run.rows = [{}] * 8
    run.ledger = Ledger(folder.ledger, 8)
    return run


def train(run: Run, version: int, skipped: float) -> None:
    """Two rows, and what the update told of them."""
    assert run.ledger is not None
    ids = [f"0:{2 * version}", f"0:{2 * version + 1}"]
    for sample_id in ids:
        run.ledger.note("planned", id=sample_id, version=version)
        run.ledger.note("finished", id=sample_id, tokens=5)
    run.ledger.note("trained", ids=ids, version=version + 1)
    trajectory = Trajectory([1, 2], [0, 1], [0.0, -1.0], [-1, version], 1.0)
    episodes = [Episode(sample_id, version, (trajectory,), {}) for sample_id in ids]
    run.record(version + 1, {"train/skipped_updates": skipped}, episodes)


def told(run: Run) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "arealite.ledger", str(run.folder.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_rows_of_an_update_that_was_left_out_are_told(run: Run) -> None:
    train(run, 0, skipped=0.0)
    train(run, 1, skipped=1.0)
    train(run, 2, skipped=0.0)
    run.close()
    lines = told(run)
    [index] = [i for i, line in enumerate(lines) if line.startswith("  trained")]
    assert lines[index].split()[:2] == ["trained", "6"]
    assert lines[index + 1].split()[:3] == ["left", "out", "2"]
    assert lines[-1].startswith("closes")


def test_where_every_update_was_made_nothing_is_said(run: Run) -> None:
    train(run, 0, skipped=0.0)
    run.close()
    assert not any("left out" in line for line in told(run))


def test_a_run_that_goes_on_still_knows(run: Run) -> None:
    train(run, 0, skipped=1.0)
    assert run.ledger is not None
    sequence, state = run.ledger.state()
    run.close()
    again = Ledger(run.folder.ledger, 8, state=state, sequence=sequence)
    again.close()
    reading = read_ledger(run.folder.ledger)
    assert reading.account is not None
    assert reading.account.counts["left_out"] == 2
    assert reading.problems() == []
