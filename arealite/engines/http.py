"""The pool and the wire: which server is asked, how often, and what came back.

- A failed attempt is repeated, on another server where there is one, with a pause that doubles.
- A busy server (429) is no failure: the request waits for it, or goes to one that is free.
- Every attempt has a deadline, and a reply a largest size: no fault becomes a silent wait.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp

from arealite.engines.dialect import Answer
from arealite.engines.fleet import Server
from arealite.errors import EngineError
from arealite.replies import content, pause_s, retry_after_s
from arealite.telemetry.waits import Waits

T = TypeVar("T")

MAX_REPLY_BYTES = 256 * 1024 * 1024
"""A longer reply is a fault: 64 samples of 32,768 tokens with their log-probabilities are half."""

MAX_REFUSAL_BYTES = 64 * 1024
"""How much of a refusal is read: its first words say why."""

LONG_REPLY_BYTES = 16 * 1024
"""Longer replies are decoded one per turn of the event loop, however many have come at once."""

MOST_UNCLEAN = 64
"""Pooled connections that one attempt may throw away."""


class Refused(EngineError):
    """A server answered 4xx: the request itself is wrong, and would be so everywhere."""


class TakenBack(EngineError):
    """The attempt was given up from here, to be made elsewhere."""


class Busy(EngineError):
    """A server answered 429. retry_after_s: how long it asks to be left alone, if it says so."""

    retry_after_s: float | None = None


class _Connector(aiohttp.TCPConnector):
    """Lends no connection on which something came that nobody had asked for.

    The second copy of a reply, come late, would otherwise answer the next request.
    """

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        for _ in range(MOST_UNCLEAN):
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()
        raise aiohttp.ClientConnectionError("it sends before it is asked")


class _Tried:
    """What became of one exchange's attempts so far. failed: those that count as retries."""

    def __init__(self) -> None:
        self.failed = self._given_up = 0
        self.failures: Counter[str] = Counter()
        self._busy: Counter[str] = Counter()
        self._not_before: defaultdict[str, float] = defaultdict(float)  # loop time

    def best_of(self, servers: Sequence[Server]) -> tuple[Server, float]:
        """The server with least against it, and in how many seconds it may be asked."""
        now = asyncio.get_running_loop().time()

        def burden(server: Server) -> tuple[int, float, int]:
            wait = max(0.0, self._not_before[server.address] - now)
            return self.failures[server.address], wait, server.running

        best = min(servers, key=burden)
        return best, burden(best)[1]

    def give_up(self) -> int:
        """An attempt was taken back; the first time for nothing. Returns the retries used up."""
        self._given_up += 1
        self.failed += self._given_up > 1
        return self.failed

    def refuse(self, server: Server, after_s: float | None) -> float:
        """It was busy; returns the loop time before which it is left alone."""
        pause = pause_s(self._busy[server.address]) if after_s is None else after_s
        self._busy[server.address] += 1
        self._not_before[server.address] = asyncio.get_running_loop().time() + pause
        return self._not_before[server.address]


class Transport:
    """Talks to servers. request_timeout_s: of one attempt; retries: attempts beyond the first.

    failed(server, error): is told of every attempt that a server spoiled. key: the servers' API
    key, if they have one. closed: from now on every request is an error. refused: how often a
    server said 429.
    """

    def __init__(
        self,
        waits: Waits,
        request_timeout_s: float,
        retries: int,
        failed: Callable[[Server, EngineError], None],
        key: str = "",
    ) -> None:
        self._waits, self._timeout_s, self._retries = waits, request_timeout_s, retries
        self._failed, self._key = failed, key
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._attempts: dict[asyncio.Future[Any], Server] = {}
        self._decoding = asyncio.Lock()
        self.closed, self.refused = False, 0

    async def exchange(
        self,
        choose: Callable[[], Awaitable[Sequence[Server]]],
        n: int,
        attempt: Callable[[Server], Awaitable[T]],
    ) -> T:
        """One good answer, from the server that failed least and owes least (n samples more).

        choose: those that may be asked now; it waits while there are none. Raises EngineError
        after `retries` failures beyond the first, or when servers were busy until
        request_timeout_s had passed in all.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        tried = _Tried()
        rest = 0.0
        while True:
            await asyncio.sleep(rest)
            server, rest = tried.best_of(await choose())
            if rest:  # by then another one may be better
                continue
            server.running += n
            try:
                return await self.watched(attempt(server), server)
            except TakenBack:
                tried.failures[server.address] += 1
                if tried.give_up() > self._retries:  # or it could go on like this for ever
                    raise
            except Busy as error:
                self.refused += 1
                if tried.refuse(server, error.retry_after_s) >= deadline:
                    raise EngineError(
                        f"no server was free within {self._timeout_s:g} s: {error}"
                    ) from None
            except EngineError as error:
                tried.failures[server.address] += 1
                tried.failed += 1
                if isinstance(error, Refused) or self.closed:
                    raise
                self._failed(server, error)
                if tried.failed > self._retries:
                    raise
                rest = pause_s(tried.failed - 1)
            finally:
                server.running -= n

    def take_back(self, server: Server | None = None) -> int:
        """What this server owes, or all do, is given up and made again elsewhere; how many."""
        given_up = [task for task, at in self._attempts.items() if server in (None, at)]
        for task in given_up:
            del self._attempts[task]
            task.cancel()
        return len(given_up)

    async def watched(self, attempt: Awaitable[T], server: Server) -> T:
        """The attempt's result. Raises TakenBack when the server is given up meanwhile."""
        task = asyncio.ensure_future(attempt)
        self._attempts[task] = server
        try:
            return await task
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if task in self._attempts or (waiter is not None and waiter.cancelling()):
                raise  # whoever waits for it was cancelled, not the attempt alone
            raise TakenBack(f"server {server.address} was given up: nothing moved") from None
        finally:
            self._attempts.pop(task, None)

    async def post(
        self, server: Server, path: str, body: Mapping[str, Any], *, fresh: bool = False
    ) -> Any:
        """The JSON value that answers. Raises EngineError naming the server, Busy or Refused.

        fresh: over a connection of its own, for what must not fail because a server has closed
        the one that was kept (vLLM does after each error).
        """
        return await self._request("POST", server, path, body, self._timeout_s, fresh)

    async def get(self, server: Server, path: str, deadline_s: float) -> Any:
        """As post, within deadline_s."""
        return await self._request("GET", server, path, None, deadline_s)

    async def ask(self, server: Server, path: str, body: Any, deadline_s: float) -> Answer:
        """Whatever it answers, of any status; without a body it is a GET. Raises EngineError."""
        method = "GET" if body is None else "POST"
        return await self._exchange(method, server, path, body, deadline_s, _anything)

    async def aclose(self) -> None:
        """Ends what is open."""
        self.closed = True
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def _request(
        self,
        method: str,
        server: Server,
        path: str,
        sent: Any,
        deadline_s: float,
        fresh: bool = False,
    ) -> Any:
        async def whole(reply: aiohttp.ClientResponse) -> bytes:
            if reply.status != 200:
                raise await _refusal(server, f"{method} {path}", reply)
            return await content(reply, MAX_REPLY_BYTES)

        body = await self._exchange(method, server, path, sent, deadline_s, whole, fresh)
        try:
            if len(body) <= LONG_REPLY_BYTES:
                return _json(body)
            async with self._decoding:
                value = _json(body)
                await asyncio.sleep(0)  # held until the next turn
                return value
        except ValueError as error:
            raise EngineError(f"server {server.address}: {method} {path}: {error!r}") from None

    async def _exchange(
        self,
        method: str,
        server: Server,
        path: str,
        sent: Any,
        deadline_s: float,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        fresh: bool = False,
    ) -> T:
        if self.closed:
            raise EngineError("the client is closed")
        timeout = aiohttp.ClientTimeout(total=deadline_s)
        what = f"{method} {path}"
        try:
            with self._waits.on(f"server {server.address}", what, deadline_s):
                async with self._session(fresh).request(
                    method, server.url + path, json=sent, timeout=timeout, allow_redirects=False
                ) as reply:
                    return await read(reply)
        except TimeoutError:
            raise EngineError(
                f"server {server.address} did not answer {what} within {deadline_s:g} s"
            ) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise EngineError(f"server {server.address}: {what}: {error!r}") from None

    def _session(self, fresh: bool) -> aiohttp.ClientSession:
        """Made when it is first needed: a session belongs to the running loop."""
        if fresh not in self._sessions:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else None
            connector = _Connector(limit=0, force_close=fresh)
            self._sessions[fresh] = aiohttp.ClientSession(connector=connector, headers=headers)
        return self._sessions[fresh]


async def _anything(reply: aiohttp.ClientResponse) -> Answer:
    body = await content(reply, MAX_REPLY_BYTES)
    try:
        return Answer(reply.status, json.loads(body))
    except (ValueError, RecursionError):
        return Answer(reply.status, _text(body))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # the latter from brackets without end
        raise ValueError(f"{error}; it answered {_text(body[:100])!r}") from None


def _text(body: bytes) -> str:
    return body.decode(errors="replace")


async def _refusal(server: Server, what: str, reply: aiohttp.ClientResponse) -> EngineError:
    """The error for an answer other than 200."""
    wrong = 400 <= reply.status < 500 and reply.status not in (404, 408)
    kind = Busy if reply.status == 429 else Refused if wrong else EngineError
    error = kind(
        f"server {server.address} answered {reply.status} to {what}: {await _message(reply)}"
    )
    if isinstance(error, Busy):
        error.retry_after_s = retry_after_s(reply)
    return error


async def _message(reply: aiohttp.ClientResponse) -> str:
    """The server's own words, from the shapes that servers use."""
    raw = bytearray()
    async for piece in reply.content.iter_any():
        raw += piece
        if len(raw) > MAX_REFUSAL_BYTES:
            break
    text = _text(bytes(raw[:500]))
    try:
        body = _json(bytes(raw))
    except ValueError:
        return text
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            error = error.get("message", body.get("detail", text))
        return str(error)[:500]
    return text
