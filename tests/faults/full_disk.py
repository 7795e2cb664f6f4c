"""What a disk without room does to checkpoints and runs; test_full_disk.py starts it.

    unshare -rm sh -c 'mount -t tmpfs -o size=8m tmpfs DISK && exec python full_disk.py WHAT DISK'

DISK is a real file system that is really full, so that whoever writes, in Python or below it, gets
the kernel's own answer. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/unit")]

import yaml  # noqa: E402
from training_support import saved, tiny_model, tiny_tokenizer  # noqa: E402

from arealite.checkpoints.store import Store  # noqa: E402
from arealite.commits import Commits  # noqa: E402
from arealite.config import Config, load  # noqa: E402
from arealite.main import finetune  # noqa: E402
from arealite.run import Run  # noqa: E402
from arealite.telemetry.run_folder import RunFolder, read_lines  # noqa: E402
from arealite.telemetry.status import read_status  # noqa: E402
from arealite.training.checkpoint import write_model  # noqa: E402

PAGE = os.sysconf("SC_PAGESIZE")
STATE = {"sequence": 1}
FULL_FROM, FULL_TO, LAST = 2, 5, 8


def fill(disk: Path, free: int) -> None:
    """Leaves so many pages; the rest is ballast."""
    ballast = disk / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):
        while True:
            os.write(descriptor, bytes(PAGE))
    os.close(descriptor)
    os.truncate(ballast, max(0, ballast.stat().st_size // PAGE - free) * PAGE)


def pages(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 // PAGE for path in folder.iterdir())


def write(store: Store, version: int) -> None:
    with store.writing(version, STATE) as folder:
        write_model(tiny_model(version), tiny_tokenizer(), folder)
        (folder / "rollouts.jsonl").write_text("a line\n" * 2000)
        (folder / "ledger.json").write_text("{}")


def checkpoints(disk: Path) -> dict[str, Any]:
    """A second checkpoint is written with 0, 1, 2 ... free pages, until it fits."""
    store = Store(disk / "checkpoints")
    write(store, 1)
    needed = pages(store.folder / "1")
    refused, good, left = 0, 0, 0
    for free in range(needed + 8):
        fill(disk, free)
        with suppress(Exception):  # the libraries that write have errors of their own
            write(store, 2)
        refused += 2 not in store.versions()
        found = store.newest()
        good += found is not None and found.version == store.versions()[-1]
        left += len([path for path in store.folder.iterdir() if path.name.endswith(".tmp")])
        if 2 in store.versions():
            break
    return {"needed": needed, "tried": free + 1, "refused": refused, "good": good, "left": left}


def run(disk: Path) -> dict[str, Any]:
    """A run whose folder is full for some versions, and has room again before its end."""
    os.chdir(disk.parent)
    record, make, found = Run.record, Commits._make, list[int]()
    folder = RunFolder(disk / "runs/e/trial0")

    def told(self: Run, version: int, *args: Any, **options: Any) -> None:
        if version == FULL_FROM:
            fill(disk, 0)
        if FULL_FROM < version <= FULL_TO:  # the checkpoint of before, again and again
            newest = Store(folder.checkpoints).newest()
            found.append(-1 if newest is None else newest.version)
        if version == FULL_TO:
            (disk / "ballast").unlink()
        record(self, version, *args, **options)

    def made(self: Commits, version: int) -> None:
        make(self, version)
        self._wait()  # a version of this model takes less time than its checkpoint

    with patched(Run, "record", told), patched(Commits, "_make", made):
        finetune(config(disk))
    rows = list(read_lines(folder.metrics))
    return {
        "found": found,
        "versions": [row["version"] for row in rows if "loss/policy" in row],
        "refused": [row.get("counts/checkpoints_refused", 0.0) for row in rows],
        "alarms": [alarm["text"] for alarm in read_status(folder)["alarms"]],
        "phase": read_status(folder)["phase"],
        "checkpoints": Store(folder.checkpoints).versions(),
    }


@contextmanager
def patched(owner: type, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def config(disk: Path) -> Config:
    tiny_tokenizer().save_pretrained(saved(Path("model").absolute()))
    rows = [{"prompt": f"{a}+{b}", "completion": f"{a + b}"} for a in range(4) for b in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "experiment_name": "e",
        "fileroot": str(disk / "runs"),
        "mode": "sft",
        "actor": {"path": "model", "dtype": "float32"},
        "train_dataset": {"path": "rows.jsonl", "batch_size": 4},
        "recover": {"freq_steps": 1},
        "total_train_steps": LAST,
    }
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    return load("run.yaml")


if __name__ == "__main__":
    what = {"checkpoints": checkpoints, "run": run}[sys.argv[1]]
    print(json.dumps(what(Path(sys.argv[2]))))
