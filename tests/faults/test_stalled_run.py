"""A real run whose only server stands still: it ends by itself, and says who owes what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import CONFIG, ENVIRONMENT, small_folder

DEADLINE_S = 200.0


def _until_version(run: Path, version: int, launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert launcher.poll() is None, "the run ended too early"
        try:
            if json.loads((run / "status.json").read_text()).get("version", 0) >= version:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


def _server_of(launcher: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in map(int, children):
        if b"arealite.engines.embedded" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("the launcher has no server")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_server_that_stands_still_ends_the_run_with_a_report(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    settings = [
        *("train_dataset.batch_size=8", "gconfig.n_samples=4", "total_train_steps=2000"),
        *("valid_dataset.path=", "evaluator.freq_steps=null", "rollout.stall_timeout_s=6"),
        *("rollout.reward_fn=reward.py:compute_score", "recover.retries=0"),
    ]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "arealite.launch", "--config", CONFIG, *settings],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = folder / "runs/countdown-cpu/seed1"
    try:
        _until_version(run, 2, launcher)
        server = _server_of(launcher)
        os.kill(server, signal.SIGSTOP)
        printed, _ = launcher.communicate(timeout=DEADLINE_S)
    finally:
        launcher.kill()
    assert launcher.returncode == 6, printed
    assert "nothing has moved for" in printed
    assert "stall.txt" in printed
    assert not Path(f"/proc/{server}").exists(), "a server that stands still is ended all the same"
    report = (run / "stall.txt").read_text()
    assert "sent again, to another server where there is one" in report
    assert "server 127.0.0.1:" in report
    assert json.loads((run / "status.json").read_text())["phase"] == "failed"
