"""Carries a plan out on this machine: starts, watches and ends its processes.

Ports are free of races: the launcher binds each server's socket to port 0 and hands it down, or,
to a server that takes no socket, keeps it bound and hands down the port (launch/ports); so the
address is known before the server runs, and stays when it is started again. No child outlives the
launcher: each holds the read end of a pipe that the kernel closes with the launcher
(arealite/processes.py).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from arealite import stopping
from arealite.errors import (
    EXIT_BUG,
    ArealiteError,
    ConfigError,
    EnginesExhausted,
    Killed,
    Preempted,
    Stall,
)
from arealite.launch import endings
from arealite.launch.plan import Plan, Prepare
from arealite.launch.ports import address_of, bound
from arealite.launch.scratch import Scratch
from arealite.launch.servers import KEY_FILE, Process
from arealite.processes import ADDRESSES, KEY, LIFELINE, ROLE, WEIGHTS_DIR
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import read_status

TRAINER = "trainer"
TAIL_LINES = 20
NO_WORD = "no word in its log"
LEAST_GRACE_S = 2.0
"""For servers, which have nothing to keep, where the trainer has used the grace up."""


class Child:
    """A running process and its log. restarts: how often its like has been started again."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process, self.name, self.log = process, name, log
        self.restarts = 0

    def kill(self) -> None:
        """At once, with what it has started: each child leads a process group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def sweep(self) -> None:
        """What it has left behind: a server's workers may hold the memory that its like needs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_lines(self) -> str:
        lines = self._lines()[-TAIL_LINES:] or [NO_WORD]
        return "\n".join(f"  {self.name} | {line}" for line in lines)

    def last_line(self) -> str:
        return next((line for line in reversed(self._lines()) if line.strip()), NO_WORD)

    def sentence(self) -> str:
        """What the child told of its own failure, or ""."""
        told = (line for line in reversed(self._lines()) if line.startswith("arealite: "))
        return next(told, "").removeprefix("arealite: ")

    def _lines(self) -> list[str]:
        try:
            return self.log.read_text(errors="replace").splitlines()
        except OSError:
            return []


class Supervisor:
    """Owns every child of a run. Use as a context: leaving it ends them all, by pid.

    restarts: how often each server that has died in mid-run is started again; say: tells people.
    save_s: how long the trainer may save when it is ended, beyond grace_s.
    """

    def __init__(
        self,
        plan: Plan,
        grace_s: float,
        restarts: int = 0,
        say: Callable[[str], None] = lambda sentence: None,
        save_s: float = 0.0,
    ) -> None:
        self._plan, self._grace_s = plan, grace_s
        self._restarts, self.say, self._save_s = restarts, say, save_s
        self.is_asked = False
        """Whether a signal has asked the launcher to stop."""
        self._children: list[Child] = []
        self._sockets: dict[str, socket.socket] = {}
        self._stack = ExitStack()
        self._ending = self._starting = False
        self._stopped: Preempted | None = None
        self._scratch: Scratch | None = None
        self._key = os.environ.get(KEY) or (secrets.token_urlsafe(24) if plan.servers else "")
        self._oom_kills = endings.count_oom_kills()

    def __enter__(self) -> Supervisor:
        read_end, self._lifeline = os.pipe()
        self._read_end = read_end
        self._stack.callback(os.close, self._lifeline)
        self._stack.callback(os.close, read_end)
        self._stack.callback(self._remove_scratch)  # after the children: they write there
        self._stack.callback(self._end_children)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._ending = False

    def prepare(self, step: Prepare, say: Callable[[str], None]) -> None:
        """Makes what is absent. Raises ConfigError naming the step when it cannot."""
        if step.makes.exists():
            return
        say(f"preparing {step.makes}: {step.shown}")
        if shutil.which(step.command[0]) is None:
            raise ConfigError(f"{step.command[0]} cannot be started: there is no such program")
        # Any program may be named here; one that knows nothing of lifelines is led by one that does
        leader = (sys.executable, "-m", "arealite.processes", *step.command)
        child = self._start(Process("prepare", leader), None)
        try:
            code = self._wait(child, step.timeout_s)
        except subprocess.TimeoutExpired:
            raise Stall(f"preparing {step.makes} took longer than {step.timeout_s:g} s") from None
        self._children.remove(child)
        if code or not step.makes.exists():
            raise ConfigError(
                f"preparing {step.makes} failed: `{step.shown}` ended with "
                f"{endings.ending(code)}" + ("" if code else f" and did not make {step.makes}")
            )

    def start(self) -> Child:
        """Starts the servers and the trainer; returns the trainer."""
        logs = self._plan.run_folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._scratch = Scratch(self._plan.weights)
        for server in self._plan.servers:
            door = bound(server.host, listens=server.listens == "socket")
            self._sockets[server.name] = self._stack.enter_context(door)
            self._serve(server)
        addresses = self._plan.addresses or tuple(map(self._address, self._sockets))
        environment = {
            **self._plan.trainer.environment,
            ADDRESSES: ",".join(addresses),
            WEIGHTS_DIR: str(self._scratch.weights),
            ROLE: "trainer",
            **({KEY: self._key} if self._key else {}),
        }
        trainer = Process(TRAINER, self._plan.trainer.command, environment)
        return self._start(trainer, logs / "trainer.log")

    def _serve(self, server: Process) -> Child:
        """Its socket stays open here, so that its successor has the same address."""
        assert self._scratch is not None
        door = self._sockets[server.name]
        command, environment = list(server.command), dict(server.environment)
        if server.listens == "socket":
            command += ["--fd", str(door.fileno())]
        else:
            command += ["--port", str(door.getsockname()[1])]
        if server.key == KEY_FILE:
            command += [KEY_FILE, str(self._scratch.key_file(self._key))]
        elif server.key:
            environment[server.key] = self._key
        if server.is_foreign:
            command = [sys.executable, "-m", "arealite.processes", *command]
            environment["PYTHONPATH"] = self._scratch.python_path()
        handed = (door.fileno(),) if server.listens == "socket" else ()
        log = self._plan.run_folder / "logs" / f"{server.name}.log"
        log.touch(mode=0o600)  # SGLang writes its settings there, with the key
        return self._start(Process(server.name, tuple(command), environment), log, handed)

    def _address(self, name: str) -> str:
        return address_of(self._sockets[name])

    def watch(self, trainer: Child) -> bool:
        """True when the trainer has ended well. Raises what ended it, or a server, else.

        A server that has died after it had come up is started again, while it may.
        """
        for child in list(self._children):
            code = child.process.poll()
            if code is None:
                continue
            if child is trainer:
                if code:
                    raise _failure(child, code, self._oom_kills)
                return True
            if trainer.process.poll() == 0:
                return True
            has_served = self._has_served(child)
            if code == ConfigError.exit_code and not has_served:
                raise ConfigError(f"{child.name}: {child.sentence() or child.last_line()}")
            if trainer.process.poll() is None:  # a server that dies first is the cause
                self._lost(child, code, has_served)
        return False

    @property
    def crashed(self) -> bool:
        """Whether a signal has ended the trainer."""
        codes = (c.process.poll() for c in self._children if c.name == TRAINER)
        return any(code is not None and code < 0 for code in codes)

    def _has_served(self, child: Child) -> bool:
        """Whether the trainer has seen this server up, as it tells in status.json."""
        if child.name not in self._sockets:
            return False
        address = self._address(child.name)
        told = read_status(RunFolder(self._plan.run_folder)).get("servers", [])
        return any(s["address"] == address and s["state"] != "starting" for s in told)

    def _lost(self, child: Child, code: int, has_served: bool) -> None:
        """Starts it again. Raises EnginesExhausted when it never served, or has died too often."""
        ended = f"{child.name} ended with {endings.ending(code)}"
        ended += endings.suspect(code, self._oom_kills)
        lines = f"its last lines ({child.log}):\n{child.last_lines()}"
        if not has_served:
            raise EnginesExhausted(f"{ended}; {lines}")
        if child.restarts >= self._restarts:
            raise EnginesExhausted(
                f"{ended} and was started again {child.restarts} time(s) before, as often as "
                f"scheduler.restarts allows; {lines}"
            )
        child.sweep()
        count = child.restarts + 1
        self.say(f"{ended}; it is started again ({count} of {self._restarts}); {lines}")
        self._oom_kills = endings.count_oom_kills()
        again = self._serve(next(s for s in self._plan.servers if s.name == child.name))
        again.restarts = count
        self._children.remove(again)
        self._children[self._children.index(child)] = again  # the trainer stays the last

    @contextmanager
    def signals(self) -> Iterator[None]:
        """A signal ends the run the clean way; a second SIGTERM or Ctrl-C at once (see stopping).

        Enter it before the supervisor, so that it also holds while the children are ended.
        """
        urges = 0

        def stop(signum: int, frame: object) -> None:
            nonlocal urges
            urges += signum != stopping.REQUEST
            if urges > 1:
                for child in self._children:
                    child.kill()
            is_first, self.is_asked = not self.is_asked, True
            if is_first and not self._ending:
                self._stopped = Preempted(f"stopped by {signal.Signals(signum).name}")
                self._stop_unless_starting()

        before = {s: signal.signal(s, stop) for s in stopping.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_unless_starting(self) -> None:
        """A child that runs and is not yet known here would be forgotten."""
        if self._stopped is not None and not self._starting:
            raise self._stopped

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.remove()

    def _start(
        self, process: Process, log: Path | None, descriptors: tuple[int, ...] = ()
    ) -> Child:
        environment = {**os.environ, **process.environment, LIFELINE: str(self._read_end)}
        output: IO[bytes] | None = log.open("ab") if log else None
        self._starting = True
        try:
            popen = subprocess.Popen(
                process.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                pass_fds=(self._read_end, *descriptors),
                # Ctrl-C reaches the launcher alone, which then ends the children in order.
                start_new_session=True,
            )
            child = Child(popen, process.name, log or Path(os.devnull))
            self._children.append(child)
        except OSError as error:
            raise ConfigError(f"{process.command[0]} cannot be started: {error}") from None
        finally:
            self._starting = False
            if output:
                output.close()
        self._stop_unless_starting()
        return child

    def _wait(self, child: Child, timeout_s: float) -> int:
        return child.process.wait(timeout_s)

    def _end_children(self) -> None:
        """First the trainer, which may save, then the others; SIGKILL to what is left after the
        grace, which is one for all."""
        self._ending = True
        end = time.monotonic() + self._grace_s
        trainers = [c for c in self._children if c.name == TRAINER]
        others = [c for c in reversed(self._children) if c.name != TRAINER]
        self._end(trainers, stopping.REQUEST, self._grace_s, self._save_s)
        least = min(LEAST_GRACE_S, self._grace_s)
        self._end(others, signal.SIGTERM, max(end - time.monotonic(), least))

    def _end(
        self, children: Sequence[Child], number: int, grace_s: float, save_s: float = 0.0
    ) -> None:
        running = [c for c in children if c.process.poll() is None]
        for child in running:
            child.process.send_signal(number)
        started = time.monotonic()
        for child in running:
            while child.process.poll() is None:
                left = started + grace_s - time.monotonic()
                if left <= 0 and not (left > -save_s and self._is_saving()):
                    child.kill()
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(min(max(left, 0.1), 1.0))
            child.sweep()

    def _is_saving(self) -> bool:
        return read_status(RunFolder(self._plan.run_folder)).get("phase") == "saving"


def _failure(child: Child, code: int, oom_kills: int | None) -> ArealiteError:
    """The trainer's own error, told with its exit code, by the sentence in its log.

    oom_kills: what the machine's count was when the trainer was started.
    """
    sentence = child.sentence()
    if not sentence or code < 0 or code == EXIT_BUG:
        killed = f"was killed by {endings.name(-code)}"
        ended = killed if code < 0 else f"ended with {endings.ending(code)}"
        ended += endings.suspect(code, oom_kills)
        sentence = f"the trainer {ended}; its last lines ({child.log}):\n{child.last_lines()}"
    if -code in stopping.SIGNALS:  # before it could say so itself
        return Preempted(sentence)
    if code == -signal.SIGKILL:
        return Killed(sentence)
    error = ArealiteError(sentence)
    error.exit_code = code if code > 0 else EXIT_BUG
    return error
