"""A run that goes on: from which checkpoint, with which settings, and with which files.

Supervised fine-tuning, which needs no server; tests/faults/kill_matrix.py does it with episodes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_support import saved, tiny_tokenizer

from arealite import commits, stopping
from arealite.commits import Commits
from arealite.config import Config, load
from arealite.errors import CheckpointError, ConfigError, Preempted
from arealite.main import finetune
from arealite.processes import ROLE
from arealite.run import Run
from arealite.telemetry.run_folder import RunFolder, read_lines
from arealite.telemetry.status import read_status

LAST = 6
FOLDER = Path("runs/e/trial0")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(ROLE, raising=False)
    tiny_tokenizer().save_pretrained(saved(tmp_path / "model"))
    rows = [{"prompt": f"{a}+{b}", "completion": f"{a + b}"} for a in range(4) for b in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    stopping._received.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def slow_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of this model takes less time than its checkpoint: as if it took more."""
    make = Commits._make

    def made(self: Commits, version: int) -> None:
        make(self, version)
        self._wait()

    monkeypatch.setattr(Commits, "_make", made)


def config_of(*overrides: str) -> Config:
    tree: dict[str, Any] = {
        "experiment_name": "e",
        "mode": "sft",
        "deterministic": True,
        "actor": {
            "path": "model",
            "dtype": "bfloat16",
            "optimizer": {"lr": 1e-2, "warmup_steps": 3},
        },
        "train_dataset": {"path": "rows.jsonl", "batch_size": 4},
        "valid_dataset": {"path": "rows.jsonl"},
        "evaluator": {"freq_steps": 2},
        "recover": {"freq_steps": 2},
        "total_train_steps": LAST,
    }
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    return load("run.yaml", overrides)


class Crash(Exception):
    """Stands for kill -9: nothing is kept after it."""


def crash_at(version: int, *overrides: str) -> None:
    """A run that dies when this version is told."""
    record = Run.record

    def dying(self: Run, told: int, *args: Any, **options: Any) -> None:
        record(self, told, *args, **options)
        if told == version:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record", dying)
        with pytest.raises(Crash):
            finetune(config_of(*overrides))


def weights(folder: Path = FOLDER) -> bytes:
    return (folder / f"checkpoints/{LAST}/model.safetensors").read_bytes()


def versions(folder: Path = FOLDER) -> list[int]:
    rows = read_lines(folder / "metrics.jsonl")
    return [row["version"] for row in rows if "loss/policy" in row]


def trials() -> list[str]:
    return sorted(path.name for path in Path("runs/e").iterdir())


@pytest.fixture
def undisturbed() -> bytes:
    finetune(config_of("trial_name=undisturbed"))
    return weights(Path("runs/e/undisturbed"))


@pytest.mark.parametrize("version", [3, 5])
def test_the_same_bits_and_no_line_twice(undisturbed: bytes, version: int) -> None:
    """bfloat16 weights: their float32 masters and the schedule's place must come back, too."""
    crash_at(version)
    finetune(config_of())
    assert weights() == undisturbed
    assert versions() == [1, 2, 3, 4, 5, 6]
    losses = [r["version"] for r in read_lines(FOLDER / "metrics.jsonl") if "eval/valid/loss" in r]
    assert losses == [0, 2, 4, 6]
    assert trials() == ["trial0", "undisturbed"]


def test_a_crash_before_the_first_checkpoint_begins_anew_and_keeps_what_was() -> None:
    crash_at(1)
    finetune(config_of())
    assert versions() == [1, 2, 3, 4, 5, 6]
    assert len(trials()) == 2


def test_a_run_that_has_ended_is_moved_aside() -> None:
    finetune(config_of())
    finetune(config_of())
    assert len(trials()) == 2


def test_off_begins_anew_and_required_wants_something_to_go_on_from() -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint to go on from"):
        finetune(config_of("recover.mode=required"))
    crash_at(5)
    finetune(config_of("recover.mode=off"))
    assert versions() == [1, 2, 3, 4, 5, 6]
    assert len(trials()) == 2


def test_the_newest_is_damaged_and_the_one_before_is_taken(undisturbed: bytes) -> None:
    crash_at(5)
    os.truncate(FOLDER / "checkpoints/4/trainer.safetensors", 100)
    finetune(config_of())
    assert weights() == undisturbed
    assert versions() == [1, 2, 3, 4, 5, 6]
    assert (FOLDER / "checkpoints/4.damaged").is_dir()
    told = read_status_alarms()
    assert any("checkpoint 4 is damaged" in text for text in told)


def read_status_alarms() -> list[str]:
    return [alarm["text"] for alarm in read_status(RunFolder(FOLDER))["alarms"]]


def test_all_are_damaged_is_exit_4_and_nothing_is_lost() -> None:
    crash_at(5)
    for version in (2, 4):
        os.truncate(FOLDER / f"checkpoints/{version}/model.safetensors", 100)
    lines = (FOLDER / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"4/model.safetensors has 100 bytes, not \d+; .*2/"):
        finetune(config_of())
    assert (FOLDER / "metrics.jsonl").read_bytes() == lines
    assert {"2", "4"} <= {path.name for path in (FOLDER / "checkpoints").iterdir()}


def test_a_harmful_change_is_exit_2_and_a_harmless_one_passes(undisturbed: bytes) -> None:
    crash_at(5)
    with pytest.raises(ConfigError, match=r"^actor.optimizer.lr was 0.01 and is 0.02, but the"):
        finetune(config_of("actor.optimizer.lr=0.02"))
    finetune(config_of("scheduler.grace_s=3"))
    assert weights() == undisturbed


def test_a_run_that_is_asked_to_stop_keeps_the_version_as_it_is(undisturbed: bytes) -> None:
    record = Run.record

    def asked(self: Run, told: int, *args: Any, **options: Any) -> None:
        record(self, told, *args, **options)
        if told == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    stopping.listen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record", asked)
        with pytest.raises(Preempted, match="stopped by SIGTERM") as told:
            finetune(config_of())
    assert told.value.exit_code == 75
    assert os.readlink(FOLDER / "checkpoints/latest") == "3"
    stopping._received.clear()
    finetune(config_of())
    assert weights() == undisturbed
    assert versions() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_that_is_asked_at_its_very_end_draws_nothing(
    monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    def export(self: Run, policy: Any) -> None:
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)

    stopping.listen()
    monkeypatch.setattr(Run, "export", export)
    finetune(config_of())
    assert (FOLDER / "curves.png").exists() != asked
    assert read_status(RunFolder(FOLDER))["phase"] == "done"


def test_a_second_signal_ends_it_at_once() -> None:
    record = Run.record

    def asked(self: Run, told: int, *args: Any, **options: Any) -> None:
        record(self, told, *args, **options)
        if told == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    stopping.listen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "record", asked)
        with pytest.raises(Preempted):
            finetune(config_of())
    assert os.readlink(FOLDER / "checkpoints/latest") == "2"


def test_a_disk_that_refuses_costs_a_checkpoint_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, undisturbed: bytes
) -> None:
    real, refused = commits.save_trainer, []

    def full(state: Any, folder: Path) -> None:
        if state.version < LAST:
            refused.append(state.version)
            raise OSError(28, "No space left on device")
        real(state, folder)

    monkeypatch.setattr(commits, "save_trainer", full)
    finetune(config_of())
    assert weights() == undisturbed
    assert 2 in refused
    assert any("version 2 could not be written" in text for text in read_status_alarms())
    assert not list((FOLDER / "checkpoints").glob(".*"))


def test_the_last_checkpoint_of_a_run_must_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(commits, "save_trainer", full)
        with pytest.raises(CheckpointError, match="the last checkpoint, of version 6, could not"):
            finetune(config_of())


def test_an_export_that_cannot_be_written_says_where_the_model_is() -> None:
    with pytest.raises(CheckpointError, match=r"saver.export: rows.jsonl/m cannot be .*/6: make"):
        finetune(config_of("saver.export=rows.jsonl/m"))
    assert os.readlink(FOLDER / "checkpoints/latest") == str(LAST)
