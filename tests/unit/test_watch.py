"""`python -m arealite.watch`: shows a run that another process has started, and how it ended."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from seeing_support import small_run

from arealite.telemetry.lock import claimed, is_claimed
from arealite.telemetry.run_folder import RunFolder, write_atomically
from arealite.telemetry.status import Status
from arealite.watch import Ending, main

CaptureFixture = pytest.CaptureFixture[str]


def heartbeat(folder: RunFolder, phase: str, age_s: float = 0.0) -> None:
    told = {"phase": phase, "version": 2, "total_versions": 4, "time": time.time() - age_s}
    write_atomically(folder.status, json.dumps({**told, "pid": 4711}))


def test_a_finished_run_is_shown_once_with_its_closing_words(
    tmp_path: Path, capsys: CaptureFixture
) -> None:
    main([str(small_run(tmp_path).path)])
    text = capsys.readouterr().out
    assert "phase done" in text
    assert "bound by training (trainer idle 25%)" in text
    assert "0.100 (version 0) -> 0.500 (version 4)" in text


def test_a_failed_run_is_over_too(tmp_path: Path, capsys: CaptureFixture) -> None:
    folder = small_run(tmp_path)
    Status(folder).set(phase="failed", error="no inference server is left")
    main([str(folder.path)])
    assert "error: no inference server is left" in capsys.readouterr().out


def test_a_run_whose_processes_are_gone_is_dead(tmp_path: Path, capsys: CaptureFixture) -> None:
    folder = small_run(tmp_path)
    heartbeat(folder, "training", age_s=100)
    main([str(folder.path)])
    text = capsys.readouterr().out
    assert "the run is dead" in text
    assert "in phase training" in text


@pytest.mark.parametrize("phase", ["preparing", "training"])
def test_a_silent_run_that_is_held_is_not_dead(tmp_path: Path, phase: str) -> None:
    folder = RunFolder.of(tmp_path, "countdown", "trial1")
    with claimed(folder):
        heartbeat(folder, phase, age_s=100)
        ending = Ending(folder)
        assert is_claimed(folder)
        assert not ending()
        assert (ending.view.silent_s is None) == (phase == "preparing")
    assert not is_claimed(folder)
    assert ending()


def test_a_failed_run_that_is_held_may_be_started_again(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "countdown", "trial1")
    with claimed(folder):
        heartbeat(folder, "failed")
        assert not Ending(folder)()
    assert Ending(folder)()


def test_a_fresh_heartbeat_is_life_without_a_lock(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "countdown", "trial1").create()
    heartbeat(folder, "training")
    assert not Ending(folder)()


def test_it_follows_a_run_to_its_end(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    heartbeat(folder, "training")
    watching = subprocess.Popen(
        [sys.executable, "-m", "arealite.watch", str(folder.path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stdout is not None
    first = [watching.stdout.readline() for _ in range(4)]
    assert "phase training" in "".join(first)
    heartbeat(folder, "done")
    rest = watching.communicate(timeout=60)[0]
    assert watching.returncode == 0
    assert "phase done" in rest
    assert "countdown / trial1: done" in rest
