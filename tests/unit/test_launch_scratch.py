"""The folder of published weights outlives neither its launcher nor, for long, a killed one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from arealite.launch.scratch import YOUNG_S, WeightsFolder, sweep


def age(folder: Path) -> None:
    long_ago = time.time() - 2 * YOUNG_S
    os.utime(folder, (long_ago, long_ago))


def test_a_folder_is_made_empty_and_removed_whole(tmp_path: Path) -> None:
    weights = WeightsFolder(tmp_path)
    assert list(weights.path.iterdir()) == []
    (weights.path / "v1").mkdir()
    (weights.path / "v1" / "model.safetensors").write_bytes(b"x")
    weights.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_never_swept(tmp_path: Path) -> None:
    weights = WeightsFolder(tmp_path)
    age(weights.path)
    sweep(tmp_path)
    assert weights.path.is_dir()
    weights.remove()


def test_what_a_killed_launcher_left_is_swept_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from arealite.launch.scratch import WeightsFolder\n"
        "folder = WeightsFolder(Path(sys.argv[1])).path\n"
        "(folder / 'v1').mkdir()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    sweep(tmp_path)
    assert left.is_dir(), "a young folder may belong to a trainer that is still ending"
    age(left)
    (tmp_path / "another").mkdir()
    age(tmp_path / "another")
    weights = WeightsFolder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([weights.path, tmp_path / "another"])
    weights.remove()
