"""The benchmark of what ledger and checkpoints cost: in small, it still comes to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matrix_support import prepare
from small_run import ROOT, start


def test_what_ledger_and_checkpoints_cost_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", "")  # so that it is restored
    prepare(tmp_path)
    program = str(ROOT / "benchmarks" / "recovery_cost.py")
    options = ["--config", "run.yaml", "--steps", "3", "--pairs", "1", "--out", "found"]
    done = start([program, *options], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = Path("found").iterdir()
    found = json.loads(path.read_text())
    [pair] = found["pairs"]
    assert set(pair["without"]) == {"run_s"}, "neither ledger nor checkpoint"
    assert all(pair["with"][key] > 0 for key in ("ledger_s", "copying_s", "writing_cpu_s"))
    assert found["ratios"] == [pair["with"]["run_s"] / pair["without"]["run_s"]]
