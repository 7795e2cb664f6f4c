"""Keeps servers in service: publishes weights to them, watches them, and brings back who returns.

A server that fails to load or to verify is quarantined, told to load once more and verified again;
after that it serves nothing until the next publication. What a server owes is made elsewhere as
soon as it is lost or its weights are in doubt.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from arealite.engines.dialect import Abilities, Dialect, told_version
from arealite.engines.fleet import Event, Fleet, Health, Server
from arealite.engines.http import Transport
from arealite.errors import ConfigError, EngineError, EnginesExhausted
from arealite.telemetry.waits import Waits, together, waited
from arealite.types import Probe, WeightUpdate

Report = Callable[[Sequence[Mapping[str, Any]]], None]
Refusal = Callable[[Abilities], str]
"""Why a server of these abilities cannot be used, or ""."""

INTRODUCTION_S = 60.0
"""Deadline of one question about abilities: vLLM looks at its whole machine before it tells."""

LOOKS = 4
"""How often a server is looked at in the time within which it must answer."""


class Names:
    """Names for requests, never used twice: the first of a name may still run somewhere."""

    def __init__(self) -> None:
        self.mark, self._serial = f"{uuid.uuid4().hex[:8]}-", itertools.count()

    def new(self, rid: str) -> str:
        return f"{self.mark}{rid}-{next(self._serial)}"


class Upkeep:
    """alarm: is told when a server is lost or quarantined; tell: the state of all, on each change.

    server_timeout_s: a server that answers nothing for so long is lost. patience_s: see Fleet.
    refusal: which servers are not used. say: is told what each server can do.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        waits: Waits,
        names: Names,
        dialect: Dialect,
        *,
        request_timeout_s: float,
        request_retries: int,
        server_timeout_s: float,
        patience_s: float,
        update_mode: str,
        key: str,
        refusal: Refusal,
        alarm: Callable[[str], None],
        tell: Report,
        say: Callable[[str], None],
    ) -> None:
        self.fleet = Fleet(addresses, waits, patience_s, self._changed)
        self.transport = Transport(waits, request_timeout_s, request_retries, self._failed, key)
        self._waits, self._names, self._dialect = waits, names, dialect
        self._refusal, self._say = refusal, say
        self._timeout_s, self._update_mode = server_timeout_s, update_mode
        self._alarm, self._tell = alarm, tell
        self._update: WeightUpdate | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- start and end

    async def wait_ready(self, deadline_s: float) -> None:
        """Returns when every server answers and has told what it can do.

        Raises EnginesExhausted; ConfigError for one that cannot be used as it was started.
        """
        for server in self.fleet.servers:
            self.fleet.tell(server, Event("awaited"))
        await together(self._ready(server, deadline_s) for server in self.fleet.servers)

    async def _ready(self, server: Server, deadline_s: float) -> None:
        last = ""

        async def answered() -> None:
            nonlocal last
            while True:
                try:
                    return await self._greet(server)
                except EngineError as error:
                    last = f"; the last try: {error}"
                    await asyncio.sleep(0.1)

        try:
            await waited(
                answered(),
                waits=self._waits,
                owner=f"server {server.address}",
                what="start-up",
                deadline_s=deadline_s,
                error=EnginesExhausted,
            )
        except EnginesExhausted as error:
            raise EnginesExhausted(f"{error}{last}") from None
        if reason := self._unfit(server):
            raise ConfigError(f"server {server.address} ({server.abilities.name}): {reason}")
        self.fleet.tell(server, Event("answered"))

    async def _greet(self, server: Server) -> None:
        """Raises EngineError as long as it may only be starting."""
        answer = await self.transport.ask(server, self._dialect.ALIVE, None, 5.0)
        is_there = answer.status == 200 and isinstance(answer.value, Mapping)
        if is_there or answer.status in (401, 403, 404):  # by now it may be able to say why
            await self._meet(server)
        if not is_there and not server.abilities.lacks:
            raise EngineError(
                f"server {server.address} answered {answer.status} to GET {self._dialect.ALIVE}: "
                f"{str(answer.value)[:100]}"
            )

    def _unfit(self, server: Server) -> str:
        return server.abilities.lacks or self._refusal(server.abilities)

    async def _meet(self, server: Server) -> None:
        """Asks it what it can do; one that came back may have been started differently."""
        questions = [
            self.transport.ask(server, question.path, question.body, INTRODUCTION_S)
            for question in self._dialect.QUESTIONS
        ]
        found = self._dialect.abilities(await together(questions))
        if found != server.abilities:
            server.abilities = found
            self._say(f"server {server.address}: {found}")

    async def some(self) -> list[Server]:
        """The servers that serve; waits while there are none. Raises EnginesExhausted."""
        self._start()
        return await self.fleet.some()

    def _start(self) -> None:
        """The watch begins with the first use: only then is an event loop running."""
        if not self._tasks and not self.transport.closed:
            for server in self.fleet.servers:
                self._spawn(self._watch(server))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        self.fleet.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.aclose()

    # --- publication

    async def publish(self, update: WeightUpdate) -> float:
        """Brings every server to this version; the worst difference of those that serve it.

        Raises EnginesExhausted when no server does, and none may come back in time.
        """
        self._start()
        self._update = update
        for server in self.fleet.servers:
            self.fleet.tell(server, Event("begun", update.version))
        there = [server for server in self.fleet.servers if server.state != "dead"]
        await together(self._bring(server, update) for server in there)
        if all(server.state == "quarantined" for server in self.fleet.servers):
            raise EnginesExhausted("; ".join(s.health.reason for s in self.fleet.servers))
        return max(server.difference for server in await self.fleet.some())

    async def _bring(self, server: Server, update: WeightUpdate) -> None:
        """Load and verify, and once more if that fails; each failure is told."""
        for what_next in ("it is told once more", "it serves nothing until the next version"):
            async with server.lock:
                if update is not self._update or server.state not in ("updating", "quarantined"):
                    return
                self.fleet.tell(server, Event("begun", update.version))
                await self._bring_once(server, update)
            if server.state != "quarantined":
                return
            self._alarm(f"{server.health.reason}; {what_next}")

    async def _bring_once(self, server: Server, update: WeightUpdate) -> None:
        try:
            worst = await self.transport.watched(self._load(server, update), server)
        except EngineError as error:
            reason = f"server {server.address} did not take weights version {update.version}"
            self.fleet.tell(server, Event("refused", update.version, f"{reason}: {error}"))
        else:
            server.difference, server.floor = worst, update.version
            self.fleet.tell(server, Event("verified", update.version))

    async def _load(self, server: Server, update: WeightUpdate) -> float:
        if reason := self._unfit(server):
            raise EngineError(reason)
        if not server.is_whole:
            for step in self._dialect.recovery_steps(server.abilities):
                with suppress(EngineError):
                    await self.transport.post(server, step.path, step.body, fresh=True)
        server.is_whole = False
        server.loading(update.version)
        for step in self._dialect.update_steps(update, self._update_mode, server.abilities):
            reply = await self.transport.post(server, step.path, step.body, fresh=True)
            told = reply if isinstance(reply, Mapping) else {}
            if step.confirmed and not told.get(step.confirmed):
                raise EngineError(str(told.get("message", "it gave no reason")))
        server.is_whole = True
        return await self._verify(server, update)

    async def _verify(self, server: Server, update: WeightUpdate) -> float:
        """The worst difference on the probe, in nats. Raises EngineError above the tolerance."""

        async def only() -> list[Server]:
            return [server]

        async def ask(_: Server) -> list[float]:
            dialect = self._dialect
            body = dialect.probe_body(update.probe.input_ids, self._names.new("probe"))
            reply = await self.transport.post(server, dialect.GENERATE, body)
            return dialect.parse_probe(reply, body, self._names.mark, update.version)

        worst = _difference(update.probe, await self.transport.exchange(only, 1, ask))
        if not worst <= update.probe.tolerance:  # also when it is NaN
            raise EngineError(
                f"it computes other log-probabilities than the trainer: they differ by "
                f"{worst:.3g}, at most {update.probe.tolerance:.3g} is allowed"
            )
        return worst

    # --- the watch

    async def _watch(self, server: Server) -> None:
        """Looks several times within the limit, and at once when there is news."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s / LOOKS):
                    await server.news.wait()
            server.news.clear()
            floor = server.floor
            try:
                reply = await self.transport.get(server, self._dialect.ALIVE, self._timeout_s)
            except EngineError as error:
                self.fleet.tell(server, Event("silent", reason=str(error)))
                continue
            self.fleet.tell(server, Event("answered"))
            self._look_at_version(server, reply, floor)
            if self._update is not None and server.state in ("suspect", "stale"):
                self._spawn(self._mend(server, self._update))

    def _look_at_version(self, server: Server, reply: Any, floor: int) -> None:
        """One that was started again between two looks shows it here, before it is asked."""
        told = told_version(reply)
        if told is None or server.ceiling is None or server.state != "serving":
            return
        try:
            server.check([told], floor)
        except EngineError as error:
            self._failed(server, EngineError(f"server {server.address}: {error}"))

    async def _mend(self, server: Server, update: WeightUpdate) -> None:
        """A suspect is verified; one that is stale gets the current weights."""
        async with server.lock:
            if update is not self._update:
                return
            if server.state == "suspect":
                await self._check(server, update)
            if server.state != "stale":
                return
            with suppress(EngineError):  # else it is as it was
                await self._meet(server)
            self.fleet.tell(server, Event("begun", update.version))
        await self._bring(server, update)

    async def _check(self, server: Server, update: WeightUpdate) -> None:
        try:
            await self.transport.watched(self._verify(server, update), server)
        except EngineError as error:
            reason = f"server {server.address} is not as it was: {error}"
            self.fleet.tell(server, Event("refused", update.version, reason))
        else:
            self.fleet.tell(server, Event("verified", update.version))

    def _failed(self, server: Server, error: EngineError) -> None:
        self.fleet.tell(server, Event("failed", reason=str(error)))

    def _changed(self, server: Server, before: Health) -> None:
        if server.state in ("dead", "stale", "quarantined"):
            self.transport.take_back(server)
        if server.state == "dead":
            self._alarm(f"server {server.address} is lost: {server.health.reason}")
        if server.state == "stale" and before.state == "suspect":
            self._alarm(f"{server.health.reason}; it is given the current weights again")
        self._tell(self.fleet.report())


def _difference(probe: Probe, answered: Sequence[float]) -> float:
    if len(answered) != len(probe.logprobs):
        return math.inf
    differences = [abs(a - b) for a, b in zip(answered, probe.logprobs, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)
