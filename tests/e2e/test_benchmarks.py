"""Benchmarks speak the protocol too: in small, they must still come to their end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_scale_of_rollouts_over_http_is_measured(tmp_path: Path) -> None:
    small = ("--part", "http", "--at-once", "20", "--episodes", "40", "--seconds", "0.05", "0.1")
    done = subprocess.run(
        [sys.executable, "benchmarks/rollout_scale.py", *small, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    measured = json.loads(path.read_text())["http"]["over_http"]
    assert (measured["episodes"], measured["errors"]) == (40, 0)


def test_the_cost_of_agents_sessions_is_measured(tmp_path: Path) -> None:
    small = ("--sessions", "5", "--turns", "2", "--seconds", "0.01", "0.02")
    done = subprocess.run(
        [sys.executable, "benchmarks/agent_sessions.py", *small, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    measured = json.loads(path.read_text())
    assert {measured[name]["errors"] for name in ("openai", "bare", "conversation")} == {0}
    assert measured["openai"]["turns"] == 10
