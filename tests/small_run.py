"""The main job in small, for tests that start real runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNTDOWN = ROOT / "examples" / "countdown"
CONFIG = str(COUNTDOWN / "cpu.yaml")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
"""Of real runs: this checkout's code, and a thread each, since machines for tests are small."""


def start(
    arguments: list[str], cwd: Path, timeout_s: float = 280.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=ENVIRONMENT,
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def small_folder(folder: Path) -> Path:
    """A working folder in which data and the warm-up model are small and already there."""
    data = "--out data/countdown/tiny --prompt short --sizes 3 --weights 1 --max-number 12"
    data += " --max-target 50 --train 300 --test 20 --demos 2000"
    for command in (
        [str(COUNTDOWN / "countdown.py"), *data.split()],
        ["-m", "arealite.launch", "--config", str(COUNTDOWN / "warmup.yaml"),
         "total_train_steps=30"],
    ):  # fmt: skip
        done = start(command, folder)
        assert done.returncode == 0, done.stdout + done.stderr
    # Of any text some score differs: a model this raw would earn the same for every answer.
    reward = (
        "def compute_score(solution_str, ground_truth):\n    return len(solution_str) % 7 / 7\n"
    )
    (folder / "reward.py").write_text(reward)
    return folder
