"""A run that is asked to stop, by whichever signals in whichever order, stops as it promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arealite import stopping
from arealite.errors import Preempted
from arealite.launch import command
from arealite.launch.local import Child, Supervisor
from arealite.launch.plan import Plan, Process

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
CONFIG = """
mode: sft
experiment_name: e
actor: {path: m}
train_dataset: {path: t.jsonl}
scheduler: {grace_s: 100}
"""
LAUNCHER = """
from arealite.launch import attempts, launch
attempts.BACK_OFF_S = attempts.LONGEST_S = 100.0
launch(trainer=("trainer.py",))
"""
UP = 'open("weights", "w").write(os.environ["AREALITE_WEIGHTS_DIR"]); os.rename("weights", "up")\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(CONFIG)
    Path("t.jsonl").write_text("{}\n" * 32)
    Path("launcher.py").write_text(LAUNCHER)
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    stopping._received.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


def eventually(what: Callable[[], bool], name: str) -> None:
    """Waits for a condition; only what never comes true takes long."""
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < end, f"{name} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.02)


@contextmanager
def running(trainer: str) -> Iterator[subprocess.Popen[bytes]]:
    Path("trainer.py").write_text(f"import os, signal, sys, time\n{trainer}")
    with open("output", "wb") as output:
        launcher = subprocess.Popen(
            [sys.executable, "launcher.py", "--config", "run.yaml"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.wait()


def said() -> str:
    return Path("output").read_text()


# --- a process that listens


def receive(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGTERM, signal.SIGUSR1],
        [signal.SIGUSR1, signal.SIGTERM],
        [signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT, signal.SIGUSR1],
    ],
)
def test_what_the_launcher_and_a_job_scheduler_both_send_is_one_request(
    numbers: list[signal.Signals],
) -> None:
    """A scheduler signals every process, and the launcher passes its own on: nobody urges."""
    stopping.listen()
    receive(*numbers)
    assert stopping.is_asked()
    assert not stopping.is_urgent()
    with pytest.raises(Preempted, match=f"stopped by {numbers[0].name}"):
        stopping.check()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_who_asks_twice_urges(second: signal.Signals) -> None:
    stopping.listen()
    receive(signal.SIGTERM)
    with pytest.raises(Preempted):
        receive(second)
    assert stopping.is_urgent()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- the launcher

SAVES = f"""
def save(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("asked", "w").close()
    while not os.path.exists("may-save"):
        time.sleep(0.02)
    open("saved", "w").close()
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
{UP}
time.sleep(100)
"""


def test_a_warning_and_then_the_schedulers_sigterm_leave_time_to_save() -> None:
    with running(SAVES) as launcher:
        eventually(Path("up").exists, "the start of the trainer")
        launcher.send_signal(signal.SIGUSR1)
        eventually(Path("asked").exists, "the request to the trainer")
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            launcher.send_signal(number)
            time.sleep(0.05)  # so that none stands for another
        Path("may-save").touch()
        assert launcher.wait(DEADLINE_S) == 75, said()
    assert Path("saved").exists()
    assert "arealite: stopped by SIGUSR1" in said()
    assert not Path(Path("up").read_text()).exists()


def test_a_second_signal_ends_everything_at_once_and_cleanly() -> None:
    """The trainer would go on for as long as the grace, which is longer than this test."""
    with running(SAVES) as launcher:
        eventually(Path("up").exists, "the start of the trainer")
        launcher.send_signal(signal.SIGTERM)
        eventually(Path("asked").exists, "the request to the trainer")
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(DEADLINE_S) == 75, said()
    assert not Path("saved").exists()
    assert not Path(Path("up").read_text()).exists()
    assert "Traceback" not in said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_the_pause_before_another_start_ends_the_run(number: signal.Signals) -> None:
    """The pause of this launcher is longer than this test."""
    with running("print('arealite: no server', flush=True); sys.exit(5)\n") as launcher:
        eventually(lambda: "started again in 100 s" in said(), "the pause")
        launcher.send_signal(number)
        assert launcher.wait(DEADLINE_S) == 75, said()
    assert f"arealite: stopped by {number.name}" in said()


ASKING = """
import os, signal, time
def ask(*_):
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.5)
    os._exit(0)
signal.signal(signal.SIGTERM, ask)
open("up", "w").close()
time.sleep(100)
"""


@pytest.mark.parametrize(("code", "ends"), [(5, 75), (3, 3)])
def test_a_signal_while_a_failed_run_is_ended_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, ends: int
) -> None:
    """A run that would be started again is not; what ends it for good is still told."""
    Path("trainer.py").write_text(
        "import os, time\nwhile not os.path.exists('up'): time.sleep(0.02)\n"
        f"print('arealite: the cause', flush=True); raise SystemExit({code})\n"
    )
    start = Supervisor.start

    def with_a_server(self: Supervisor) -> Child:
        self._start(Process("server-0", (sys.executable, "-c", ASKING)), Path("server.log"))
        return start(self)

    monkeypatch.setattr(Supervisor, "start", with_a_server)
    with pytest.raises(SystemExit) as ended:
        command.launch(["--config", "run.yaml"], ("trainer.py",))
    error = capsys.readouterr().err
    assert ended.value.code == ends, error
    assert "the cause" in error
    assert ("asked to stop, so the run does not go on" in error) == (ends == 75)


def test_a_child_that_starts_at_the_moment_of_a_signal_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def signalled(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        os.kill(os.getpid(), signal.SIGTERM)  # before anybody knows of it
        return started[0]

    popen = subprocess.Popen
    trainer = Process("trainer", (sys.executable, "-c", "import time; time.sleep(100)"))
    supervisor = Supervisor(Plan(tmp_path / "run", (), (), trainer, ()), grace_s=100)
    monkeypatch.setattr(subprocess, "Popen", signalled)
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        with supervisor.signals(), supervisor:
            supervisor.start()
    assert len(started) == 1
    assert started[0].poll() == -signal.SIGUSR1


@pytest.mark.parametrize(("took", "left"), [(0.0, 10.0), (7.0, 3.0), (9.5, 2.0), (60.0, 2.0)])
def test_the_grace_is_one_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, left: float
) -> None:
    """What the trainer has used of it, or more where it saved, the servers do not have."""
    now, given = 100.0, list[float]()

    def end(
        self: Supervisor, children: Any, number: int, grace_s: float, save_s: float = 0
    ) -> None:
        nonlocal now
        given.append(grace_s)
        now += took

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Supervisor, "_end", end)
    with Supervisor(Plan(tmp_path / "run", (), (), Process("trainer", ()), ()), grace_s=10.0):
        pass
    assert given == [10.0, left]


def test_a_signal_before_anything_has_started_says_75() -> None:
    Path("launcher.py").write_text(
        "import os, signal\nfrom arealite.launch import command\n"
        "command.gather = lambda config: os.kill(os.getpid(), signal.SIGTERM)\ncommand.launch()\n"
    )
    with running("") as launcher:
        assert launcher.wait(DEADLINE_S) == 75, said()
    assert said() == "arealite: stopped by SIGTERM\n"
