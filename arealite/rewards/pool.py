"""Reward functions in worker processes that can be killed: a call that hangs costs itself.

Own code rather than a library: pebble and concurrent.futures fork from, or start anew in, the
trainer, which holds torch, an event loop and threads, so a replacement takes seconds or is unsafe;
and they read what an untrusted worker says as pickles. See benchmarks/rewards.py for the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from arealite.errors import ArealiteError, ConfigError, ErrorBudgetSpent, Unscorable
from arealite.rewards.confine import Isolation, environment, in_words
from arealite.rewards.scorer import checked
from arealite.rewards.seat import Seat

MOST_RESTARTS = 10
END_S = 5.0
"""The template ends its workers and itself in milliseconds; after this it is killed."""


@dataclass(frozen=True)
class Limits:
    """What one call may take, and how many run at once."""

    workers: int = 2
    timeout_s: float = 10.0
    memory_mb: int = 1024
    isolation: Isolation = "standard"
    load_timeout_s: float = 300.0


class Template:
    """The process that has loaded the reward file and forks the workers; see worker.py."""

    def __init__(self, reference: str, limits: Limits) -> None:
        self.scratch = tempfile.mkdtemp(prefix="arealite-reward-")
        ours, theirs = socket.socketpair()
        with theirs:
            number = str(theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "arealite.rewards.worker", number],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment(limits.isolation),
            )
        self.control = ours
        setting = {"reference": reference, "path": sys.path, "scratch": self.scratch}
        setting |= asdict(limits)
        try:
            ours.sendall(json.dumps(setting).encode() + b"\n")
            answer = self._loaded(reference, limits.load_timeout_s)
        except BaseException:
            self.end()
            raise
        self.is_async: bool = answer["is_async"]
        self.level: dict[str, bool] = answer["level"]
        ours.setblocking(False)

    def _loaded(self, reference: str, timeout_s: float) -> dict[str, Any]:
        self.control.settimeout(timeout_s)
        try:
            with self.control.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError:
            raise ConfigError(
                f"{reference} is not loaded after {timeout_s:g} s (rollout.setup_timeout_s); what "
                "takes long belongs behind the reward function's first call"
            ) from None
        if not line:
            raise ConfigError(f"loading {reference} ended its process: {ending(self.wait())}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer

    def tell(self, line: str, descriptors: list[int]) -> None:
        """Raises OSError where it has ended."""
        socket.send_fds(self.control, [line.encode() + b"\n"], descriptors)

    def end(self) -> None:
        self.control.close()
        self.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def wait(self) -> int:
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:  # the user's file hangs while it is loaded
            self.process.kill()
            return self.process.wait()


class Pool:
    """`await pool(solution_str, ground_truth)`, as Scorer: the score, or named components.

    Made outside the event loop, which loads the reward file: ConfigError where it cannot be used.
    All calls belong to one event loop. More calls than workers wait for their turn; a call's
    time limit starts with its turn. Raises Unscorable with the reason; the number of workers is
    always the same.
    """

    def __init__(self, reference: str, limits: Limits) -> None:
        self._name, self._limits = reference, limits
        self._template = Template(reference, limits)
        self._restarts = 0
        self._serial = 0
        self._seats: dict[int, Seat] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._heard = b""
        self._idle: asyncio.Queue[Seat | None] = asyncio.Queue()  # None: there will be no more
        self._death: ArealiteError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_async(self) -> bool:
        """Whether the function is an `async def`, which is made for the event loop."""
        return self._template.is_async

    @property
    def isolation(self) -> str:
        """What holds of the isolation on this machine, in words."""
        return in_words(self._limits.isolation, self._template.level)

    @property
    def is_as_asked(self) -> bool:
        """Whether this machine does all that the isolation asks of it."""
        return all(self._template.level.values())

    async def __call__(self, solution_str: str, ground_truth: Any) -> float | dict[str, float]:
        line = _encoded(solution_str, ground_truth)
        if self._loop is None:
            self._open()
        answer = await self._answer(line)
        if "score" in answer:
            return checked(answer["score"], self._name)
        raise Unscorable(str(answer["error"]), str(answer["reason"]), str(answer["tail"]))

    def close(self) -> None:
        """No process is left. A loop that still turns in another thread keeps its sockets."""
        if self._loop is not None and (_is_here(self._loop) or not self._loop.is_running()):
            if not self._loop.is_closed() and self._death is None:
                self._loop.remove_reader(self._template.control)
            for seat in self._seats.values():
                seat.close()
        self._template.end()

    async def _answer(self, line: bytes) -> Mapping[str, Any]:
        seat = await self._free()
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                said = await seat.ask(line)
        except TimeoutError:
            self._replace(seat)
            raise Unscorable(
                f"{self._name} did not return within reward.timeout_s = "
                f"{self._limits.timeout_s:g} s and was killed",
                "timeout",
            ) from None
        except BaseException:  # nobody waits for the score any more
            self._replace(seat)
            raise
        answer = _decoded(said)
        if answer is None:
            status = await self._replace(seat)
            after = time.monotonic() - started
            raise Unscorable(
                f"{self._name} ended its worker process after {after:.1f} s: {ending(status)}",
                "killed",
            )
        is_used_up = answer["is_spent"] or answer.get("reason") == "memory"
        if is_used_up or self._limits.isolation == "strict":
            self._replace(seat)
        else:
            self._idle.put_nowait(seat)
        return answer

    async def _free(self) -> Seat:
        """The next seat that nobody uses."""
        while True:
            seat = await self._idle.get()
            if seat is None:
                self._idle.put_nowait(None)  # for whoever waits, too
                assert self._death is not None
                raise self._death
            if seat.is_open:  # else it ended while nobody asked it, and was replaced
                return seat

    def _open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._template.control, self._hear)
        for _ in range(self._limits.workers):
            self._spawn()

    def _spawn(self) -> None:
        """A new seat, which can be asked at once: the worker reads it when it is there."""
        self._serial += 1
        ours, theirs = socket.socketpair()
        with theirs:
            self._tell(f"spawn {self._serial}", [theirs.fileno()])
        if self._death is not None:
            ours.close()
            return
        seat = Seat(self._serial, self._restarts, ours, self._replace)
        self._seats[seat.number] = seat
        self._idle.put_nowait(seat)

    def _replace(self, seat: Seat) -> asyncio.Future[int]:
        """Another worker takes its place, and it is killed. The future holds how it ended."""
        assert self._loop is not None
        seat.close()
        del self._seats[seat.number]
        ended = self._loop.create_future()
        self._spawn()
        if seat.generation == self._restarts and self._death is None:
            self._ends[seat.number] = ended
            self._tell(f"end {seat.number}", [])
        if seat.number not in self._ends and not ended.done():  # it died with its template
            ended.set_result(-signal.SIGKILL)
        return ended

    def _tell(self, line: str, descriptors: list[int]) -> None:
        if self._death is None and not self._is_told(line, descriptors):
            self._restart()
            if descriptors and self._death is None:  # whom it should end has ended with it
                self._is_told(line, descriptors)

    def _is_told(self, line: str, descriptors: list[int]) -> bool:
        try:
            self._template.tell(line, descriptors)
        except OSError:
            return False
        return True

    def _hear(self) -> None:
        """How workers ended, as the template says."""
        try:
            data = self._template.control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._restart()
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            ended = self._ends.pop(said["ended"])
            if not ended.done():
                ended.set_result(said["status"])

    def _restart(self) -> None:
        """The template was killed from outside; every worker went with it."""
        assert self._loop is not None
        self._restarts += 1
        self._loop.remove_reader(self._template.control)
        self._template.end()
        for ended in self._ends.values():
            with contextlib.suppress(asyncio.InvalidStateError):
                ended.set_result(-signal.SIGKILL)
        self._ends.clear()
        self._heard = b""
        try:
            if self._restarts > MOST_RESTARTS:
                raise ErrorBudgetSpent(
                    f"the process from which reward workers are made ended {self._restarts} times; "
                    f"the last time: {ending(self._template.wait())}"
                )
            self._template = Template(self._name, self._limits)
        except ArealiteError as error:
            self._death = error
            self._idle.put_nowait(None)
        else:
            self._loop.add_reader(self._template.control, self._hear)


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _encoded(solution_str: str, ground_truth: Any) -> bytes:
    try:
        return json.dumps([solution_str, ground_truth]).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"the ground truth cannot be sent to a reward worker as JSON: {error}; hand over "
            "another column (answer_key of rollout.workflow_kwargs), or set reward.mode=inline"
        ) from None


def _decoded(said: bytes | None) -> dict[str, Any] | None:
    """A worker is not trusted: what is no answer is as good as none."""
    try:
        answer = json.loads(said or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or "is_spent" not in answer:
        return None
    return answer if "score" in answer or {"error", "reason", "tail"} <= set(answer) else None


def ending(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
