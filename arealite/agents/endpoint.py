"""An endpoint in front of the engine for agents that only know OpenAI's or Anthropic's client.

It listens on this machine alone, on the event loop of the rollouts, beside the episodes. A key
names a session (arealite.agents.session): it is made for one run of an agent, and is unknown when
that run has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from aiohttp import web

from arealite.agents import endpoint_chat, endpoint_messages, endpoint_responses
from arealite.agents.asked import Answer, Asked, Refused
from arealite.agents.session import Session
from arealite.errors import ArealiteError, words

NAME_HEADER = "X-Agent-Name"
"""A request's header with the name that its trajectory gets."""
MOST_BYTES = 64 * 2**20
"""The longest request."""
BACKLOG = 4096
"""Agents that connect in one turn of the event loop."""
NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI's and Anthropic's clients that what failed here fails again."""


class Api(Protocol):
    """A module that reads requests and writes answers."""

    def read(self, body: Mapping[str, Any], name: str) -> Asked: ...

    def reply(self, asked: Asked, answer: Answer) -> dict[str, Any]: ...

    def events(self, asked: Asked, answer: Answer) -> Iterator[str]: ...

    def error(self, sentence: str, status: int, code: str | None) -> dict[str, Any]: ...


APIS: Mapping[str, Api] = {
    "/v1/chat/completions": endpoint_chat,
    "/v1/responses": endpoint_responses,
    "/v1/messages": endpoint_messages,
}


class Endpoint:
    """url: its base, for either client; "" until it has started."""

    def __init__(self) -> None:
        self.url = ""
        self._sessions: dict[str, Session] = {}
        self._starting: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Returns when it listens; may be called any number of times. Raises OSError."""
        if self._starting is None:  # in a context of its own: it outlives whoever was the first
            self._starting = asyncio.create_task(
                self._start(), name="endpoint", context=contextvars.Context()
            )
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        app = web.Application(client_max_size=MOST_BYTES)
        for path, api in APIS.items():
            app.router.add_post(path, _handler(self, api))
            app.router.add_post(f"/v1{path}", _handler(self, api))  # Anthropic's client adds /v1
        app.router.add_get("/v1/models", self._models)
        app.router.add_route("*", "/{path:.*}", _unknown)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=BACKLOG).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def aclose(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._runner is not None:
            await self._runner.cleanup()
        self._starting = self._runner = None

    @contextmanager
    def opened(self, session: Session) -> Iterator[str]:
        """The session's key; unknown afterwards, and what was under way with it is given up."""
        key = f"sk-{secrets.token_urlsafe(24)}"
        self._sessions[key] = session
        try:
            yield key
        finally:
            del self._sessions[key]
            session.close()

    def session(self, request: web.Request) -> Session:
        """The one whose key this request has. Raises Refused."""
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        session = self._sessions.get(request.headers.get("x-api-key") or bearer)
        if session is None:
            raise Refused(
                "no run of an agent that is under way has this key; use the api_key that the agent "
                "is given, and only while it runs",
                status=401,
                code="invalid_api_key",
            )
        return session

    async def _models(self, request: web.Request) -> web.Response:
        try:
            self.session(request)
        except Refused as refused:
            return _refusal(endpoint_chat, refused)
        model = {"id": "policy", "object": "model", "created": 0, "owned_by": "arealite"}
        return web.json_response({"object": "list", "data": [model]})


def _handler(
    endpoint: Endpoint, api: Api
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            session = endpoint.session(request)
            try:
                asked = api.read(await _body(request), request.headers.get(NAME_HEADER, ""))
            except Refused as refused:
                session.refusals.append(str(refused))
                raise
            answer = await _awaited(session, asked)
        except Refused as refused:
            return _refusal(api, refused)
        except ArealiteError as error:
            return _error(api, str(error), 503, None)
        except Exception as error:  # the session tells it where tracebacks are read
            return _error(api, f"the endpoint failed: {words(error)}", 500, None)
        if not asked.is_streamed:
            return web.json_response(api.reply(asked, answer))
        stream = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await stream.prepare(request)
        await stream.write("".join(api.events(asked, answer)).encode())
        await stream.write_eof()
        return stream

    return answer


async def _body(request: web.Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.read())
    except web.HTTPRequestEntityTooLarge:
        raise Refused(f"the request has more than {MOST_BYTES} bytes", status=413) from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"the request is no JSON: {error}") from None
    if not isinstance(body, Mapping):
        raise Refused(f"the request is a {type(body).__name__}, it must be an object")
    return body


async def _awaited(session: Session, asked: Asked) -> Answer:
    task = session.ask(asked)
    try:
        return await task
    except asyncio.CancelledError:
        mine = asyncio.current_task()
        if mine is not None and mine.cancelling():  # the agent has gone
            raise
        raise Refused("the agent's run has ended meanwhile", status=401) from None


async def _unknown(request: web.Request) -> web.Response:
    served = ", ".join([*APIS, "/v1/models"])
    sentence = f"{request.method} {request.path} is not served here; served are {served}"
    return _error(endpoint_chat, sentence, 404, None)


def _refusal(api: Api, refused: Refused) -> web.Response:
    return _error(api, str(refused), refused.status, refused.code)


def _error(api: Api, sentence: str, status: int, code: str | None) -> web.Response:
    return web.json_response(api.error(sentence, status, code), status=status, headers=NO_RETRY)
