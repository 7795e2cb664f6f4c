"""A disk that is really full: a small file system of memory, in a user's own namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("full_disk.py")
MOUNT = 'mount -t tmpfs -o size={size}k tmpfs "$0" && exec "$@"'


def _refusal() -> str:
    """Why this machine cannot do it; "" where it can."""
    try:
        command = ["unshare", "-rm", "sh", "-c", MOUNT.format(size=64), "/mnt", "true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return "there is no program unshare"
    return done.stderr.strip() if done.returncode else ""


REFUSAL = _refusal()
pytestmark = pytest.mark.skipif(
    bool(REFUSAL), reason=f"the kernel allows no file system of one's own: {REFUSAL}"
)


def on_small_disk(what: str, folder: Path, size_kb: int) -> dict[str, Any]:
    disk = folder / "disk"
    disk.mkdir()
    program = [sys.executable, str(PROGRAM), what, str(disk)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT.format(size=size_kb), str(disk), *program],
        env={**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_wherever_a_checkpoint_finds_no_room_the_one_before_is_whole(tmp_path: Path) -> None:
    found = on_small_disk("checkpoints", tmp_path, size_kb=4096)
    assert found["refused"] >= min(found["needed"], 20), "else the disk was never full"
    assert found["refused"] == found["tried"] - 1, "with enough room it is written"
    assert found["good"] == found["tried"]
    assert found["left"] == 0


def test_a_run_goes_on_without_room_and_says_so(tmp_path: Path) -> None:
    found = on_small_disk("run", tmp_path, size_kb=8192)
    assert found["found"] == [1, 1, 1], "the checkpoint of before the disk was full"
    assert found["versions"] == list(range(1, 9)), "no line is lost"
    assert (found["phase"], found["checkpoints"][-1]) == ("done", 8)
    told = [text for text in found["alarms"] if "could not be written" in text]
    assert any("version 3" in text for text in told), found["alarms"]
    assert "No space left on device" in told[0]
    assert max(found["refused"]) >= 3
