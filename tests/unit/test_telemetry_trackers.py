"""wandb as it is installed: offline, unreachable, hanging, missing; the run never notices."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arealite.errors import ConfigError
from arealite.telemetry.metrics import load_metrics, wandb_sink
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.trackers import NoSink

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed"
)

SCRIPT = """
import sys, time
from arealite.telemetry.metrics import Recorder, wandb_sink
from arealite.telemetry.run_folder import RunFolder
folder, mode, heard = RunFolder(sys.argv[1]).create(), sys.argv[2], []
sink = wandb_sink(mode, "project", None, "name", "group", ["tag"], {"lr": 0.5}, folder.path,
                  alarm=heard.append, init_s=1.5, close_s=3)
worst = 0.0
with Recorder(folder, [sink]) as recorder:
    for version in range(30):
        began = time.perf_counter()
        recorder.record(version, {"reward/mean": version / 30})
        worst = max(worst, time.perf_counter() - began)
        time.sleep(0.01)
    recorder.record(8, {"eval/test/mean": 0.5})
print(len(heard), worst, *heard)
"""


def run(folder: Path, mode: str, **env: str) -> tuple[int, float, str]:
    """(alarms, longest record() in seconds, what was heard), in a process of its own."""
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), mode],
        capture_output=True, text=True, timeout=45, check=True, env={**os.environ, **env},
    )  # fmt: skip
    count, worst, *heard = out.stdout.split(maxsplit=2)
    return int(count), float(worst), heard[0] if heard else ""


def binary_log(folder: Path) -> bytes:
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return path.read_bytes()


@needs_wandb
@pytest.mark.timeout(60)
def test_offline_keeps_the_run_in_the_run_folder(tmp_path: Path) -> None:
    alarms, worst, _ = run(tmp_path, "offline")
    assert alarms == 0
    assert worst < 1.0
    assert len(load_metrics(tmp_path / "metrics.jsonl")) == 30
    log = binary_log(tmp_path)
    assert b"reward/mean" in log
    assert b"eval/test/mean" in log
    assert b"version" in log


@needs_wandb
@pytest.mark.timeout(60)
def test_an_unreachable_server_costs_one_alarm_and_bounded_time(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        alarms, worst, heard = run(
            tmp_path, "online", WANDB_API_KEY="a" * 40,
            WANDB_BASE_URL=f"http://127.0.0.1:{taken.getsockname()[1]}",
        )  # fmt: skip
    assert alarms == 1
    assert "not reachable" in heard
    assert worst < 1.0
    assert time.monotonic() - began < 30
    assert len(load_metrics(tmp_path / "metrics.jsonl")) == 30
    assert b"eval/test/mean" in binary_log(tmp_path)


@needs_wandb
@pytest.mark.timeout(60)
def test_a_server_that_never_answers_costs_the_same(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        alarms, worst, heard = run(
            tmp_path, "online", WANDB_API_KEY="a" * 40,
            WANDB_BASE_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )  # fmt: skip
    assert alarms >= 1
    assert "wandb" in heard
    assert worst < 1.0
    assert time.monotonic() - began < 40
    assert len(load_metrics(tmp_path / "metrics.jsonl")) == 30


def test_disabled_does_not_even_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from arealite.telemetry.metrics import wandb_sink\n"
        "s = wandb_sink('disabled'); s.log(1, {}); s.close(); print('wandb' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
    assert isinstance(wandb_sink("disabled"), NoSink)


def test_missing_wandb_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="must be disabled, offline or online"):
        wandb_sink("on")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install arealite\[wandb\]"):
        wandb_sink("offline", folder=RunFolder(tmp_path).path)
