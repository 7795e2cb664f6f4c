"""Whole runs as the launcher starts them: every kind of process dies, every phase is stopped.

    python tests/faults/launch_matrix.py [--short] [--only TEXT] [--at-once 2] [--keep FOLDER]

Each case is a run of its own, deterministic and small, with a launcher, a server, a trainer and
reward workers. In mid-run one process is killed (SIGKILL), or the launcher is asked to stop in a
phase of the run; where the launcher has ended, it is started again. Shown for each case: how and
how soon after the signal the launcher ended, rows lost, rows trained twice, whether the ledger
closes, whether the final weights are those of a run that nobody has disturbed, and what is left:
processes, weights in memory, scratch folders. Exit code 1 where one case is not as it must be.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from matrix_support import Found, examine, last_lines, prepare  # noqa: E402

from arealite.crash import CRASH_AT  # noqa: E402
from arealite.errors import Preempted  # noqa: E402

DEADLINE_S, LEFT_S = 180.0, 20.0
SHM = Path("/dev/shm")
PREPARE = """
prepare:
  - makes: made
    run: sh -c 'if [ -e begun ]; then touch made; else touch begun; sleep 100; fi'
"""
HOLDING = """
import os, time
from pathlib import Path

def compute_score(text, truth):
    while Path("{folder}/hold").exists():
        Path(f"{folder}/held.{{os.getpid()}}").touch()
        time.sleep(0.02)
    return sum(text.encode()) % 3 / 2
"""


class World:
    """One case's folder, and the launcher that works in it."""

    def __init__(self, name: str, prepared: Path, settings: Sequence[str] = ()) -> None:
        self.trial = "".join(c if c.isalnum() else "-" for c in name)
        self.folder = prepared / self.trial
        self.run = self.folder / "runs/kill" / self.trial
        self.weights = (SHM if SHM.is_dir() else prepared / "shm") / f"{prepared.name}-{self.trial}"
        self.scratch = self.folder / "tmp"
        self.scratch.mkdir(parents=True)
        for file in ("model", "rows.jsonl", "held_out.jsonl"):
            (self.folder / file).symlink_to(prepared / file)
        for file in ("run.yaml", "reward.py"):
            shutil.copy(prepared / file, self.folder)
        self._settings = (f"trial_name={self.trial}", "reward.mode=pool", *settings)
        self.crash_at = ""
        self.launcher: subprocess.Popen[bytes]

    def start(self, crash_at: str = "") -> None:
        self.crash_at = crash_at
        command = [sys.executable, "-m", "arealite.launch", "--config", "run.yaml"]
        threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(self.folder / "output", "ab") as output:
            self.launcher = subprocess.Popen(
                [*command, f"rollout.weights_dir={self.weights}", *self._settings],
                cwd=self.folder,
                env={**os.environ, **threads, "TMPDIR": str(self.scratch), CRASH_AT: crash_at},
                stdout=output,
                stderr=output,
            )

    def until(self, what: Callable[[World], object]) -> None:
        """Waits for it, or for the launcher's end."""
        deadline = time.monotonic() + DEADLINE_S
        while not what(self) and self.launcher.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError("it does not come so far")
            time.sleep(0.01)

    def ended(self) -> int:
        try:
            return self.launcher.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError("it does not end") from None

    def processes(self) -> dict[int, str]:
        """All that work in this folder, by their command lines; who has ended is none of them."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = Path(os.readlink(path / "cwd")).is_relative_to(self.folder)
                words = (path / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
            if is_ours and words:
                found[int(path.name)] = words
        return found

    def pids(self, words: str) -> list[int]:
        return sorted(pid for pid, line in self.processes().items() if words in line)

    def left(self) -> list[str]:
        """What is still there after a while, once nothing should be."""
        deadline = time.monotonic() + LEFT_S
        while found := list(self._left()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return found

    def _left(self) -> Iterator[str]:
        yield from (f"process {pid}: {line}" for pid, line in self.processes().items())
        yield from map(str, self.weights.glob("*"))
        yield from map(str, self.scratch.glob("arealite-*"))

    def close(self) -> None:
        if self.launcher.poll() is None:
            self.launcher.terminate()
            self.launcher.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.weights, ignore_errors=True)


def has_version(version: int) -> Callable[[World], bool]:
    return lambda world: (world.run / "checkpoints" / str(version)).exists()


def has_said(words: str) -> Callable[[World], bool]:
    return lambda world: words in (world.folder / "output").read_text(errors="replace")


# --- how a run is disturbed: each returns when the signal was sent


def kill(words: str, index: int = 0) -> Callable[[World], float]:
    """kill -9 of the process with these words in its command line, in mid-run."""

    def disturb(world: World) -> float:
        world.until(has_version(2))
        os.kill(world.pids(words)[index], signal.SIGKILL)
        return time.monotonic()

    return disturb


def kill_launcher(world: World) -> float:
    world.until(has_version(2))
    world.launcher.kill()
    return time.monotonic()


def kill_in_call(world: World) -> float:
    """A reward worker that is at work."""
    hold = world.folder / "hold"
    world.until(has_version(2))
    hold.touch()
    world.until(lambda _: list(world.folder.glob("held.*")))
    for held in world.folder.glob("held.*"):
        os.kill(int(held.suffix[1:]), signal.SIGKILL)
        break
    hold.unlink()
    return time.monotonic()


def ask(
    when: Callable[[World], object], *numbers: signal.Signals, pause_s: float = 0.3
) -> Callable[[World], float]:
    """These signals to the launcher, one after the other."""

    def disturb(world: World) -> float:
        world.until(when)
        for number in numbers or (signal.SIGTERM,):
            world.launcher.send_signal(number)
            sent = time.monotonic()
            time.sleep(pause_s if len(numbers) > 1 else 0)
        return sent

    return disturb


def asked_there(world: World) -> float:
    """The trainer itself signals the launcher, at the place that its environment names."""
    world.ended()
    place = world.crash_at.partition(":")[0]
    log = world.run / "logs/trainer.log"
    at = [line.split()[-1] for line in log.read_text().splitlines() if f"{place} at " in line]
    assert at, f"it did not come to {place}"
    return time.monotonic() - (time.time() - float(at[0]))


@dataclass(frozen=True)
class Case:
    """place: where the trainer signals its launcher, or dies. ends: how the launcher may end.
    same: whether the final weights must be the undisturbed run's."""

    name: str
    disturb: Callable[[World], float] = asked_there
    place: str = ""
    ends: tuple[int, ...] = (Preempted.exit_code,)
    settings: tuple[str, ...] = ()
    same: bool = True
    text: str = ""
    reward: str = ""
    short: bool = False


def stop(name: str, place: str, **options: object) -> Case:
    return Case(f"stop: {name}", place=f"{place}:SIGTERM", **options)  # type: ignore[arg-type]


GOES_ON = (0,)
TRAINER, SERVER, REWARDS = "arealite.main", "arealite.engines.embedded", "arealite.rewards.worker"
KILLED = (
    Case("kill: server", kill(SERVER), ends=GOES_ON, short=True),
    Case("kill: trainer", kill(TRAINER), ends=GOES_ON, short=True),
    Case("kill: launcher", kill_launcher, ends=(-signal.SIGKILL,), short=True),
    Case("kill: reward template", kill(REWARDS), ends=GOES_ON, same=False, short=True),
    Case("kill: reward worker", kill(REWARDS, 1), ends=GOES_ON, same=False),
    Case("kill: reward worker at work", kill_in_call, ends=GOES_ON, same=False, reward=HOLDING,
         short=True),
)  # fmt: skip
STOPPED = (
    Case("stop: preparing", ask(lambda world: (world.folder / "begun").exists()), text=PREPARE,
         short=True),
    Case("stop: processes starting", ask(lambda world: (world.run / "logs/trainer.log").exists())),
    stop("trainer reads its folder", "recovery.files_cut:1"),
    stop("first publication", "before_update:1"),
    stop("first evaluation", "evaluation_start:1"),
    stop("waiting for a batch", "after_dispatch:20"),
    stop("training", "after_backward:4"),
    stop("publishing", "before_update:4", short=True),
    stop("evaluating", "evaluation_start:2"),
    stop("checkpoint being written", "checkpoint.file_written:5"),
    stop("saving the last version", "checkpoint.copied:3", settings=("recover.freq_steps=3",)),
    stop("ending", "shutdown.committed:1"),
    Case("stop: pause before a restart", ask(has_said("is started again in")),
         place="metrics_written:4", short=True),
    Case("stop: asked twice", ask(has_version(2), signal.SIGTERM, signal.SIGTERM, pause_s=0.1)),
    Case("stop: warned, then SIGTERM", ask(has_version(2), signal.SIGUSR1, signal.SIGTERM)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one case of each kind")
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other")
    parser.add_argument("--keep", type=Path, help="leave the run folders there")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="launch-matrix-"))
    folder = folder.absolute()
    prepare(folder)
    started = time.monotonic()
    try:
        base = play(Case("undisturbed", lambda world: time.monotonic(), ends=GOES_ON), folder)
        if base is None:
            raise SystemExit("the run that nobody disturbs did not end well")
        chosen = [case for case in (*KILLED, *STOPPED) if arguments.only in case.name]
        chosen = [case for case in chosen if case.short or not arguments.short]
        with ThreadPoolExecutor(arguments.at_once) as pool:
            found = list(pool.map(lambda case: play(case, folder, base), chosen))
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    failed = found.count(None)
    print(f"{failed} case(s) failed; {time.monotonic() - started:.0f} s")
    raise SystemExit(1 if failed else 0)


def play(case: Case, prepared: Path, base: Found | None = None) -> Found | None:
    """None where it is not as it must be."""
    world = World(case.name, prepared, case.settings)
    with open(world.folder / "run.yaml", "a") as config:
        config.write(case.text)
    if case.reward:
        (world.folder / "reward.py").write_text(case.reward.format(folder=world.folder))
    world.start(case.place)
    try:
        sent = case.disturb(world)
        code = world.ended()
        seconds = time.monotonic() - sent
        left = world.left()
        if code:
            world.start()
            if world.ended():
                raise AssertionError("it does not go on")
        found = examine(world.run)
        return found if told(case, code, seconds, [*left, *world.left()], found, base) else None
    except (AssertionError, OSError, IndexError) as error:
        print(f"{case.name:<32} {error!r} {last_lines(world.folder / 'output')}", flush=True)
        return None
    finally:
        world.close()


def told(
    case: Case, code: int, seconds: float, left: list[str], found: Found, base: Found | None
) -> bool:
    """Prints the case's line; whether it is as it must be."""
    if base is None:
        heading = f"{'case':<32}{'exit':>5}{'after':>8}{'lost':>6}{'twice':>6}  ledger  weights"
        print(f"{heading}    left", flush=True)
        return not found.problems and not found.lost
    same = found.weights == base.weights
    bits = "same bits" if same else "OTHER BITS" if case.same else "other bits"
    closes = "; ".join(found.problems) or "closes"
    print(
        f"{case.name:<32}{code:>5}{seconds:>6.1f} s{found.lost:>6}{found.twice:>6}  {closes}  "
        f"{bits:<10} {'; '.join(left) or 'nothing'}",
        flush=True,
    )
    is_well = same or not case.same
    is_whole = not (found.lost or found.twice or found.problems or left)
    return is_well and is_whole and code in case.ends


if __name__ == "__main__":
    main()
