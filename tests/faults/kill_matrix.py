"""The kill matrix: the trainer dies at every named place, and at random times; nothing is lost.

    python tests/faults/kill_matrix.py [--random 3] [--only checkpoint] [--seed 1] [--keep FOLDER]
        [key=value ...]

Each case is a run of its own, deterministic and small, with a real inference server: its trainer is
killed (SIGKILL; some are asked to stop, by SIGTERM), started again without being told, and compared
with a run that nobody has killed.
Shown for each case: rows lost, rows trained twice, whether the ledger closes, and whether the final
weights are the same bits. Exit code 1 where one case is not as it must be.

The trainers are forked from this process, which has imported everything, so that a case takes
seconds; they share one server, which each of them brings to its own version.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import datasets  # noqa: E402  (all that a trainer needs is imported once, before the forks)
import torch  # noqa: E402
import transformers  # noqa: E402,F401
from matrix_support import Found, examine, last_lines, prepare  # noqa: E402

from arealite import crash  # noqa: E402
from arealite.config import load  # noqa: E402
from arealite.errors import Preempted  # noqa: E402
from arealite.launch.facts import gather  # noqa: E402
from arealite.launch.plan import make_plan  # noqa: E402
from arealite.main import train  # noqa: E402
from arealite.processes import ADDRESSES, WEIGHTS_DIR  # noqa: E402
from arealite.run import run_trainer  # noqa: E402

DEADLINE_S = 180.0
SETTINGS: list[str] = []
"""Of all runs, from the command line."""

POINTS = (
    *("after_plan:9", "after_dispatch:11", "after_reply_before_ledger:12", "after_finish:14"),
    *("after_filtered:2", "epoch_roll:1", "batch_popped:3", "after_backward:3"),
    *("after_optimizer_step:1", "after_optimizer_step:3", "after_optimizer_step:8"),
    *("weights_written:4", "after_version_bump:4", "before_update:3", "weights_verified:3"),
    *("metrics_written:4", "evaluation_start:1", "evaluation_start:2", "evaluation_end:2"),
    *("checkpoint.copied:3", "checkpoint.begun:1", "checkpoint.begun:3"),
    *(f"checkpoint.file_written:{n}" for n in (10, 14)),
    *("checkpoint.file_synced:12", "checkpoint.before_manifest:2", "checkpoint.manifest_synced:2"),
    *("checkpoint.renamed:1", "checkpoint.renamed:3", "checkpoint.folder_synced:2"),
    *("checkpoint.latest_moved:2", "checkpoint.committed:2", "checkpoint.old_deleted:1"),
    "shutdown.committed:1",
)
AGAIN = (
    *("recovery.verified", "recovery.files_cut", "recovery.weights_loaded"),
    *("recovery.ledger_read", "before_update", "weights_verified", "after_plan"),
)
"""Where the second start is killed as well, before a third goes through."""


@dataclass(frozen=True)
class Case:
    name: str
    first: str = ""
    """The crash point of the first start; "" with after_s: it gets the signal at that time."""
    second: str = ""
    after_s: float = 0.0
    number: int = signal.SIGKILL

    @property
    def ends(self) -> tuple[int, ...]:
        """How the first start may end."""
        if not self.after_s:
            return (-signal.SIGKILL,)
        return (0, -signal.SIGKILL if self.number == signal.SIGKILL else Preempted.exit_code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=3, help="kills, and stops, at random times")
    parser.add_argument("--seed", type=int, default=1, help="of these times")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--keep", type=Path, help="leave the run folders there")
    parser.add_argument("settings", nargs="*", help="of all runs, like actor.algorithm=ppo")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="kill-matrix-"))
    prepare(folder)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.disable_progress_bars()
    try:
        with server() as address:
            SETTINGS.extend(arguments.settings)
            failed = matrix(address, arguments.random, arguments.seed, arguments.only)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(1 if failed else 0)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A real one, as the launcher would start it."""
    config = load("run.yaml", ["trial_name=server"])
    process = make_plan(config, gather(config), "run.yaml").servers[0]
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as listener,
        open("server.log", "w") as log,
    ):
        running = subprocess.Popen(
            [*process.command, "--fd", str(listener.fileno())],
            env={**os.environ, **process.environment, "PYTHONPATH": str(ROOT)},
            pass_fds=(listener.fileno(),),
            stdout=log,
            stderr=log,
        )
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.kill()
            running.wait()


def matrix(address: str, n_random: int, seed: int, only: str) -> int:
    started = time.monotonic()
    code = attempt(address, "base")
    seconds = time.monotonic() - started
    if code:
        raise SystemExit(f"the run that nobody kills ended with {code}: {log_of('base')}")
    base = examine(run_of("base"))
    print(f"{'case':<44}{'lost':>6}{'twice':>6}{'again':>7}  ledger  weights", flush=True)
    failed = 0
    for case in cases(n_random, seed, seconds):
        if only in case.name:
            failed += not play(address, case, base)
    print(f"{failed} case(s) failed; {time.monotonic() - started:.0f} s")
    return failed


def cases(n_random: int, seed: int, seconds: float) -> Iterator[Case]:
    yield from (Case(point, point) for point in POINTS)
    if "actor.algorithm=ppo" in SETTINGS:
        yield from (Case(p, p) for p in ("after_critic_update:1", "after_critic_update:4"))
    yield from (Case(f"metrics_written:4, then {p}", "metrics_written:4", p) for p in AGAIN)
    times = random.Random(seed)
    for index in range(n_random):
        for number in (signal.SIGKILL, signal.SIGTERM):
            share = times.uniform(0.1, 0.95)
            name = f"{number.name} {index}, at {share:.0%} of the time"
            yield Case(name, after_s=share * seconds, number=number)


def play(address: str, case: Case, base: Found) -> bool:
    trial = "".join(c if c.isalnum() or c in ".-_" else "-" for c in case.name)
    code = attempt(address, trial, case.first, case.after_s, case.number)
    if code not in case.ends:
        print(f"{case.name:<44}  was not ended so, but with {code}: {log_of(trial)}")
        return False
    if case.second:
        code = attempt(address, trial, case.second)
        if code != -signal.SIGKILL:
            print(f"{case.name:<44}  was not killed again, it ended with {code}: {log_of(trial)}")
            return False
    if code and (code := attempt(address, trial)):
        print(f"{case.name:<44}  did not go on, it ended with {code}: {log_of(trial)}")
        return False
    found = examine(run_of(trial))
    lost = len(set(base.trained) - set(found.trained)) + found.lost
    same = found.weights == base.weights
    closes = "; ".join(found.problems) or "closes"
    print(
        f"{case.name:<44}{lost:>6}{found.twice:>6}{found.rolled_back:>7}  {closes}  "
        f"{'same bits' if same else 'OTHER BITS'}",
        flush=True,
    )
    return same and not lost and not found.twice and not found.problems


def attempt(
    address: str,
    trial: str,
    crash_at: str = "",
    after_s: float = 0.0,
    number: int = signal.SIGKILL,
) -> int:
    """One start of a trainer; its exit code, or minus the number of the signal."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            become_trainer(address, trial, crash_at)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if after_s:
        code = waited(child, after_s)
        if code is not None:
            return code
        os.kill(child, number)
    code = waited(child, DEADLINE_S)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 1
    return code


def waited(child: int, seconds: float) -> int | None:
    """How it has ended; None where it has not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def become_trainer(address: str, trial: str, crash_at: str) -> None:
    log = os.open(f"{trial}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ[ADDRESSES] = address
    os.environ[WEIGHTS_DIR] = str(Path("weights", trial).absolute())
    torch.set_num_threads(1)
    crash.arm(crash_at)
    run_trainer(train, ["--config", "run.yaml", f"trial_name={trial}", *SETTINGS])


def run_of(trial: str) -> Path:
    return Path("runs", "kill", trial)


def log_of(trial: str) -> str:
    return last_lines(Path(f"{trial}.log"))


if __name__ == "__main__":
    main()
