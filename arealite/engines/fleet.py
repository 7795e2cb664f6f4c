"""Which servers may serve: the health of each as a pure state machine, and those who wait for one.

    starting --answered--> serving                 nothing was published yet, nothing to verify
    any but dead --begun--> updating --verified--> serving
                                     `-refused---> quarantined --begun--> updating
    serving --failed--> suspect --verified--> serving
                                `-refused---> stale --begun--> updating
    any but starting --silent--> dead --answered--> stale

Only `serving` serves, and only with weights that were verified there as the version that is wanted
now. A server that was lost comes back by `begun` and `verified` alone, also when it is the same
process: nobody knows what became of it meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from arealite.engines.dialect import Abilities
from arealite.errors import EngineError, EnginesExhausted
from arealite.telemetry.waits import Waits

State = Literal["starting", "serving", "suspect", "stale", "updating", "quarantined", "dead"]


@dataclass(frozen=True, slots=True)
class Health:
    """verified: the version that it has shown to compute with; wanted: the one it must have."""

    state: State = "serving"
    verified: int | None = None
    wanted: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """What was seen of a server, or is done to it.

    awaited: it is expected to come up. answered, silent: a look at it succeeded, or did not.
    failed: an attempt to use it failed. begun: it is told to load `version`, from now on the one
    wanted. verified, refused: it computes with `version` as the trainer does, or it does not.
    """

    kind: Literal["awaited", "answered", "silent", "failed", "begun", "verified", "refused"]
    version: int | None = None
    reason: str = ""


def after(now: Health, event: Event) -> Health:
    """The health after the event; what does not concern this state changes nothing."""
    state, kind, reason = now.state, event.kind, event.reason
    is_about_wanted = event.version == now.wanted
    if kind == "begun":
        next_state: State = "dead" if state == "dead" else "updating"
        return replace(now, state=next_state, wanted=event.version)
    if kind == "silent" and state not in ("starting", "dead"):
        return replace(now, state="dead", verified=None, reason=reason)
    if kind == "failed" and state == "serving":
        return replace(now, state="suspect", reason=reason)
    if kind == "refused" and is_about_wanted and state in ("updating", "suspect"):
        left: State = "quarantined" if state == "updating" else "stale"
        return replace(now, state=left, verified=None, reason=reason)
    if kind == "verified" and is_about_wanted and state in ("updating", "suspect"):
        return replace(now, state="serving", verified=event.version, reason="")
    if kind == "answered" and now.wanted is None and state in ("starting", "suspect", "dead"):
        return replace(now, state="serving", reason="")
    if kind == "answered" and state in ("starting", "dead"):
        return replace(now, state="stale")
    if kind == "awaited" and state == "serving" and now.wanted is None:
        return replace(now, state="starting")
    return now


@dataclass(eq=False)
class Server:
    """One inference server: what it owes us, its health, and which versions it can have.

    floor: a version verified or reported here; what is asked from now on cannot be older.
    ceiling: the newest version that it was told to load; None before the first.
    difference: what the last probe showed, in nats. since: when its state last changed, unix.
    is_whole: no update of its weights has been broken off.
    """

    address: str
    running: int = 0
    floor: int = 0
    ceiling: int | None = None
    difference: float = 0.0
    is_whole: bool = True
    abilities: Abilities = field(default_factory=Abilities)
    health: Health = Health()
    since: float = field(default_factory=time.time)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def state(self) -> State:
        return self.health.state

    def loading(self, version: int) -> None:
        """It is told to load this version (an older one than before is a rollback)."""
        self.floor = min(self.floor, version)
        self.ceiling = version if self.ceiling is None else max(self.ceiling, version)

    def check(self, versions: Sequence[int], floor: int) -> None:
        """The versions of a reply whose request was sent when `floor` held. Raises EngineError."""
        if not versions:
            return
        oldest, newest = min(versions), max(versions)
        floor = min(floor, self.floor)  # it may have been told to go back meanwhile
        if oldest < floor:
            raise EngineError(
                f"it sampled with version {oldest} after it had served version {floor}: it was "
                "restarted or its weights were changed by others; it serves again once it is "
                "verified"
            )
        if self.ceiling is not None and newest > self.ceiling:
            raise EngineError(
                f"it sampled with version {newest}, but the newest that it was given is "
                f"{self.ceiling}: let nobody else load weights into it"
            )
        self.floor = max(self.floor, newest)


class Fleet:
    """All servers. told(server, before): is called after every change, and none is left out.

    patience_s: how long none may serve, nor be at loading weights, before waiting is given up.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        waits: Waits,
        patience_s: float,
        told: Callable[[Server, Health], None],
    ) -> None:
        self.servers = [Server(address) for address in addresses]
        self._waits, self._patience_s, self._told = waits, patience_s, told
        self._changed = asyncio.Event()
        self._hopeless_since: float | None = None
        self._closed = False

    @property
    def serving(self) -> list[Server]:
        return [server for server in self.servers if server.state == "serving"]

    def tell(self, server: Server, event: Event) -> None:
        """The one place where a server's health changes."""
        before = server.health
        server.health = after(before, event)
        if server.health == before:
            return
        if server.state != before.state:
            server.since = time.time()
        self._changed.set()
        self._changed = asyncio.Event()
        if any(other.state in ("serving", "updating") for other in self.servers):
            self._hopeless_since = None
        elif self._hopeless_since is None:
            self._hopeless_since = asyncio.get_running_loop().time()
        if server.state in ("suspect", "stale"):
            server.news.set()
        self._told(server, before)

    async def some(self) -> list[Server]:
        """The servers that serve, as soon as there are any. Raises EnginesExhausted."""
        if found := self.serving:
            return found
        with self._waits.on("the servers", "one that serves", self._patience_s):
            while not (found := self.serving):
                if self._closed:
                    raise EngineError("the client is closed")
                left = None
                if self._hopeless_since is not None:
                    now = asyncio.get_running_loop().time()
                    left = self._hopeless_since + self._patience_s - now
                try:
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                except TimeoutError:
                    raise EnginesExhausted(
                        f"no inference server has served for {self._patience_s:g} s: {self}"
                    ) from None
        return found

    async def settled(self, server: Server) -> None:
        """Returns when it is not being updated."""
        while server.state == "updating":
            await self._changed.wait()

    def close(self) -> None:
        """Nobody need wait any more."""
        self._closed = True
        self._changed.set()

    def report(self) -> list[Mapping[str, Any]]:
        """For status.json."""
        return [
            {
                "address": server.address,
                "state": server.state,
                "since": round(server.since, 3),
                "reason": server.health.reason,
            }
            for server in self.servers
        ]

    def __str__(self) -> str:
        """Each server, its state and why."""
        return "; ".join(
            f"server {server.address} is {server.state} ({server.health.reason or 'no reason'})"
            for server in self.servers
        )
