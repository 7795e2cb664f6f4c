"""Reward functions in worker processes that can be killed: a call that hangs costs itself.

Own code rather than a library: pebble and concurrent.futures fork from, or start anew in, the
trainer, which holds torch, an event loop and threads, so a replacement takes seconds or is unsafe;
and they read what an untrusted worker says as pickles. See benchmarks/rewards.py for the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ArealiteError, ConfigError, ErrorBudgetSpent, Unscorable
from arealite.rewards.confine import in_words
from arealite.rewards.scorer import Outcome, Score, alone, checked
from arealite.rewards.seat import Seat
from arealite.rewards.signature import Arguments, Signature, label_of, time_limit
from arealite.rewards.template import Limits, Template, ending
from arealite.telemetry.waits import together
from arealite.types import Completion

MOST_RESTARTS = 10


class _Lost(Unscorable):
    """The worker ended because the process that makes them did: nothing of its own doing."""


class Pool:
    """`await pool(solution_str, ground_truth)`, as Scorer: the score, or named components.

    functions: one or more, which the same workers run; `group` takes the index of the one that is
    asked. Made outside the event loop, which loads them: ConfigError where one cannot be used.
    All calls belong to one event loop. More calls than workers wait for their turn; a call's
    time limit starts with its turn. Unscorable tells the reason; the number of workers is always
    the same.
    """

    def __init__(self, functions: str | Sequence[RewardFunctionConfig], limits: Limits) -> None:
        if isinstance(functions, str):
            functions = [RewardFunctionConfig(path=functions)]
        self._functions, self._limits = functions, limits
        self._template = Template(functions, limits)
        self._calls = [(label_of(f), *time_limit(f, limits.timeout_s)) for f in functions]
        self._restarts = 0
        self._serial = 0
        self._seats: dict[int, Seat] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._heard = b""
        self._idle: asyncio.Queue[Seat | None] = asyncio.Queue()  # None: there will be no more
        self._death: ArealiteError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def signatures(self) -> list[Signature]:
        """One for each function; an `async def` is made for the event loop, not for a worker."""
        return self._template.signatures

    @property
    def isolation(self) -> str:
        """What holds of the isolation on this machine, in words."""
        return in_words(self._limits.isolation, self._template.level)

    @property
    def is_as_asked(self) -> bool:
        """Whether this machine does all that the isolation asks of it."""
        return all(self._template.level.values())

    async def __call__(self, solution_str: str, ground_truth: Any) -> Score:
        return alone(await self._asked(0, [Completion(solution_str, ground_truth)]))

    async def group(self, completions: Sequence[Completion], index: int = 0) -> list[Outcome]:
        """The samples of one prompt, by the function of this index: a call each, or one for all."""
        if len(completions) == 1 or self._template.signatures[index].is_group:
            return await self._asked(index, completions)
        asked = await together(self._asked(index, [completion]) for completion in completions)
        return [outcome for [outcome] in asked]

    async def _asked(self, index: int, completions: Sequence[Completion]) -> list[Outcome]:
        """One call."""
        name = self._calls[index][0]
        arguments = self._template.signatures[index].arguments(completions, name)
        line = _encoded(index, arguments, name)
        if self._loop is None:
            self._open()
        try:
            return _outcomes(await self._answer(index, line), len(completions), name)
        except Unscorable as error:
            return [error] * len(completions)

    async def text(self, text: str, index: int = 0) -> str | Unscorable:
        """What a tool says (limits.are_tools), or why it says nothing.

        Raises Unscorable where its processes were ended from outside.
        """
        line = _encoded(index, ([text], {}), self._calls[index][0])
        if self._loop is None:
            self._open()
        try:
            answer = await self._answer(index, line)
        except _Lost:
            raise
        except Unscorable as error:
            return error
        if "text" in answer:
            return str(answer["text"])
        reason = "memory" if answer.get("reason") == "memory" else "raised"
        return Unscorable(str(answer.get("error")), reason)

    def close(self) -> None:
        """No process is left. A loop that still turns in another thread keeps its sockets."""
        if self._loop is not None and (_is_here(self._loop) or not self._loop.is_running()):
            if not self._loop.is_closed() and self._death is None:
                self._loop.remove_reader(self._template.control)
            for seat in self._seats.values():
                seat.close()
        self._template.end()

    async def _answer(self, index: int, line: bytes) -> dict[str, Any]:
        name, timeout_s, setting = self._calls[index]
        seat = await self._free()
        started = time.monotonic()
        try:
            said = await seat.ask(line, timeout_s)
        except TimeoutError:
            self._replace(seat)
            raise Unscorable(
                f"{name} did not return within {setting} = {timeout_s:g} s and was killed",
                "timeout",
            ) from None
        except BaseException:  # nobody waits for the score any more
            self._replace(seat)
            raise
        answer = _decoded(said)
        if answer is None:
            status = await self._replace(seat)
            after = time.monotonic() - started
            is_lost = seat.generation != self._restarts
            raise (_Lost if is_lost else Unscorable)(
                f"{name} ended its worker process after {after:.1f} s: {ending(status)}",
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
            self._template.end()
            self._template = Template(self._functions, self._limits)
        except Exception as error:  # nobody may wait for a worker that will never be
            told = f"the process from which reward workers are made has no successor: {error}"
            self._death = error if isinstance(error, ArealiteError) else ErrorBudgetSpent(told)
            self._idle.put_nowait(None)
        else:
            self._loop.add_reader(self._template.control, self._hear)


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _encoded(index: int, arguments: Arguments, name: str) -> bytes:
    try:
        return json.dumps([index, *arguments]).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"what {name} is called with cannot be sent to a reward worker as JSON: {error}; hand "
            "over another column (answer_key of rollout.workflow_kwargs), or set "
            "reward.mode=inline"
        ) from None


def _decoded(said: bytes | None) -> dict[str, Any] | None:
    """A worker is not trusted: what is no answer is as good as none."""
    try:
        answer = json.loads(said or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or "is_spent" not in answer:
        return None
    is_said = isinstance(answer.get("scores"), list) or isinstance(answer.get("text"), str)
    return answer if is_said or {"error", "reason", "tail"} <= set(answer) else None


def _outcomes(answer: dict[str, Any], n: int, name: str) -> list[Outcome]:
    if "scores" not in answer:
        raise Unscorable(str(answer["error"]), str(answer["reason"]), str(answer["tail"]))
    if len(answer["scores"]) != n:
        raise Unscorable(f"{name} answered {len(answer['scores'])} scores for {n}", "junk")
    told = (Unscorable(s, "junk") if isinstance(s, str) else s for s in answer["scores"])
    return [o if isinstance(o, Unscorable) else checked(o, name) for o in told]
