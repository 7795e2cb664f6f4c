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
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import aiohttp

from arealite.errors import EngineError
from arealite.telemetry.waits import Waits

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0

MAX_REPLY_BYTES = 256 * 1024 * 1024
"""A longer reply is a fault: 64 samples of 32,768 tokens with their log-probabilities are half."""

MAX_REFUSAL_BYTES = 64 * 1024
"""How much of a refusal is read: its first words say why."""

MOST_UNCLEAN = 64
"""Pooled connections that one attempt may throw away."""


class Refused(EngineError):
    """A server answered 4xx: the request itself is wrong, and would be so everywhere."""


class TakenBack(EngineError):
    """The attempt was given up from here, to be made elsewhere."""


class Busy(EngineError):
    """A server answered 429. retry_after_s: how long it asks to be left alone, if it says so."""

    retry_after_s: float | None = None


@dataclass
class Server:
    """One inference server: what it owes us, and which versions it can have.

    floor: a version verified or reported here; what is asked from now on cannot be older.
    ceiling: the newest version that it was told to load; None before the first.
    """

    address: str
    running: int = 0
    floor: int = 0
    ceiling: int | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def loading(self, version: int) -> None:
        """It is told to load this version (an older one than before is a rollback)."""
        self.floor = min(self.floor, version)
        self.ceiling = version if self.ceiling is None else max(self.ceiling, version)

    def verified(self, version: int) -> None:
        """It has shown that it computes with this version."""
        self.floor = version

    def check(self, versions: Sequence[int], floor: int) -> None:
        """The versions of a reply whose request was sent when `floor` held. Raises EngineError."""
        if not versions:
            return
        oldest, newest = min(versions), max(versions)
        if oldest < floor:
            raise EngineError(
                f"it sampled with version {oldest} after it had served version {floor}: it was "
                "restarted or its weights were changed by others; it serves again after the next "
                "publication"
            )
        if self.ceiling is not None and newest > self.ceiling:
            raise EngineError(
                f"it sampled with version {newest}, but the newest that it was given is "
                f"{self.ceiling}: let nobody else load weights into it"
            )
        self.floor = max(self.floor, newest)


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


class Transport:
    """Talks to servers. request_timeout_s: of one attempt; retries: attempts beyond the first.

    closed: from now on every request is an error. refused: how often a server said 429.
    """

    def __init__(self, waits: Waits, request_timeout_s: float, retries: int) -> None:
        self._waits, self._timeout_s, self._retries = waits, request_timeout_s, retries
        self._session: aiohttp.ClientSession | None = None
        self._attempts: set[asyncio.Future[Any]] = set()
        self.closed, self.refused = False, 0

    async def exchange(
        self, servers: Sequence[Server], n: int, attempt: Callable[[Server], Awaitable[T]]
    ) -> T:
        """One good answer, from the server that failed least and owes least (n samples more).

        Raises EngineError after `retries` failures beyond the first, or when servers were busy
        until request_timeout_s had passed in all.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeout_s
        failures: Counter[str] = Counter()
        busy: Counter[str] = Counter()
        not_before: defaultdict[str, float] = defaultdict(float)  # loop time, per busy server
        rest, failed = 0.0, 0
        while True:
            wait = {s.address: max(0.0, not_before[s.address] - now()) for s in servers}
            server = min(servers, key=partial(_burden, failures=failures, wait=wait))
            await asyncio.sleep(max(rest, wait[server.address]))
            server.running += n
            try:
                return await self._watched(attempt(server), server)
            except TakenBack:
                rest = 0.0
                failures[server.address] += 1
            except Busy as error:
                rest = 0.0
                self.refused += 1
                busy[server.address] += 1
                asked = error.retry_after_s
                pause = pause_s(busy[server.address] - 1) if asked is None else asked
                not_before[server.address] = now() + pause
                if not_before[server.address] >= deadline:
                    raise EngineError(
                        f"no server was free within {self._timeout_s:g} s: {error}"
                    ) from None
            except EngineError as error:
                failures[server.address] += 1
                failed += 1
                if isinstance(error, Refused) or failed > self._retries:
                    raise
                rest = pause_s(failed - 1)
            finally:
                server.running -= n

    def take_back(self) -> int:
        """Every attempt under way is made again, on another server where there is one; how many."""
        attempts, self._attempts = self._attempts, set()
        for task in attempts:
            task.cancel()
        return len(attempts)

    async def _watched(self, attempt: Awaitable[T], server: Server) -> T:
        task = asyncio.ensure_future(attempt)
        self._attempts.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if task in self._attempts or (waiter is not None and waiter.cancelling()):
                raise  # whoever waits for it was cancelled, not the attempt alone
            raise TakenBack(f"server {server.address} was given up") from None
        finally:
            self._attempts.discard(task)

    async def post(self, server: Server, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON value that answers. Raises EngineError naming the server, Busy or Refused."""
        return await self._request("POST", server, path, body, self._timeout_s)

    async def get(self, server: Server, path: str, deadline_s: float) -> Any:
        """As post, within deadline_s."""
        return await self._request("GET", server, path, None, deadline_s)

    async def aclose(self) -> None:
        """Ends what is open."""
        self.closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _request(
        self, method: str, server: Server, path: str, body: Any, deadline_s: float
    ) -> Any:
        if self.closed:
            raise EngineError("the client is closed")
        if self._session is None:  # made here: a session belongs to the running loop
            self._session = aiohttp.ClientSession(connector=_Connector(limit=0))
        timeout = aiohttp.ClientTimeout(total=deadline_s)
        what = f"{method} {path}"
        try:
            with self._waits.on(f"server {server.address}", what, deadline_s):
                async with self._session.request(
                    method, server.url + path, json=body, timeout=timeout, allow_redirects=False
                ) as reply:
                    if reply.status != 200:
                        raise await _refusal(server, what, reply)
                    return _json(await _content(reply))
        except TimeoutError:
            raise EngineError(
                f"server {server.address} did not answer {what} within {deadline_s:g} s"
            ) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise EngineError(f"server {server.address}: {what}: {error!r}") from None


def pause_s(count: int) -> float:
    """Seconds before the next try: doubling from the first pause to the longest."""
    return min(FIRST_PAUSE_S * 2.0 ** min(count, 32), LONGEST_PAUSE_S)


def _burden(
    server: Server, failures: Mapping[str, int], wait: Mapping[str, float]
) -> tuple[int, float, int]:
    """What speaks against a server: the request goes to the one with least."""
    return failures[server.address], wait[server.address], server.running


async def _content(reply: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises ValueError when it is longer than any answer can be."""
    body = bytearray()
    async for piece in reply.content.iter_any():
        body += piece
        if len(body) > MAX_REPLY_BYTES:
            raise ValueError(f"it answered more than {MAX_REPLY_BYTES} bytes")
    return bytes(body)


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
        try:  # seconds; the other form that HTTP allows, a date, is ignored
            seconds = float(reply.headers.get("Retry-After", ""))
            error.retry_after_s = seconds if seconds >= 0 else None
        except ValueError:
            pass
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
            return str(error.get("message", text))[:500]
    return text
