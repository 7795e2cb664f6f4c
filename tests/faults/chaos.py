"""Everything that can go wrong between client and engine, as named answers of a real server.

`WIRE` holds for any request, `ANSWERS` for replies to /generate alone; each names the words that
the error must say. The faults that need more than one request (duplicates, swaps, cancelled ones,
versions across replies) are tests of test_chaos_across.py, empty aborts without end are in
contract/test_client_aborts.py, and wrong weights, wrong shapes and wrong probes in
contract/test_client.py.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from client_support import Handler, hangs, sample, says

GOOD = sample([10])
TEN_MB = 10_000_000


@dataclass(frozen=True)
class Fault:
    """slow: it ends by the client's deadline alone."""

    answer: Handler
    words: str
    slow: bool = False


def raw(body: Any, head: str = "HTTP/1.1 200 OK", *, length: bool = True) -> bytes:
    """A whole reply as bytes, as it goes over the wire."""
    content = json.dumps(body).encode()
    lines = [head, "Content-Type: application/json"]
    lines += [f"Content-Length: {len(content)}"] if length else ["Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


def writes(data: bytes, then: str = "close", every_s: float | None = None) -> Handler:
    """Sends these very bytes; then closes (FIN), resets (RST) or says nothing more.

    every_s: one byte at a time, with this pause.
    """

    async def answer(request: web.Request, asked: Any) -> web.StreamResponse:
        assert request.transport is not None
        pieces = [data] if every_s is None else [data[i : i + 1] for i in range(len(data))]
        for piece in pieces:
            request.transport.write(piece)
            await asyncio.sleep(every_s or 0)
        if then == "hang":
            await hangs(request, asked)
        if then == "reset":
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        request.transport.close()
        return web.Response()

    return answer


async def endless(request: web.Request, asked: Any) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


def ends_early() -> dict[str, Fault]:
    """Connections that end at byte k of the reply, by FIN and by RST."""
    whole = raw(GOOD)
    body = whole.index(b"\r\n\r\n") + 4
    places = {
        "before the first byte": 0,
        "within the status line": 11,
        "within the headers": 30,
        "before the body": body,
        "after the body's first byte": body + 1,
        "within the body": body + 40,
        "before the last byte": len(whole) - 1,
    }
    faults = {
        f"{end} {place}": Fault(writes(whole[:at], end), "POST /[a-z_]*: ")
        for place, at in places.items()
        for end in ("close", "reset")
    }
    unsized = raw(GOOD, length=False)
    faults["close within a body of unknown length"] = Fault(
        writes(unsized[:-20]), "POST /[a-z_]*: .*output_ids"
    )
    return faults


_WHOLE = raw(GOOD)
_SILENT = "did not answer POST /[a-z_]* within"

WIRE: dict[str, Fault] = {
    **ends_early(),
    "half-open: accepted, then silent": Fault(hangs, _SILENT, slow=True),
    "stall in the headers": Fault(writes(_WHOLE[:30], "hang"), _SILENT, slow=True),
    "stall in the body": Fault(writes(_WHOLE[:-9], "hang"), _SILENT, slow=True),
    "a byte now and then": Fault(writes(_WHOLE, every_s=0.02), _SILENT, slow=True),
    "500": Fault(says("it broke", 500), "answered 500 to POST /[a-z_]*: it broke"),
    "503": Fault(says({"error": {"message": "loading"}}, 503), "answered 503 .*: loading"),
    "a reason without end": Fault(
        says({"error": {"message": "x" * 60_000}}, 503), "answered 503 to POST"
    ),
    "redirection": Fault(says("", 307, Location="http://127.0.0.1:1/"), "answered 307 to POST"),
    "HTML": Fault(says("<html>proxy</html>"), "<html>proxy</html>"),
    "truncated JSON": Fault(says('[{"output_ids": [1'), "POST /[a-z_]*: .*output_ids"),
    "nothing": Fault(says(""), "POST /[a-z_]*: "),
    "not HTTP": Fault(writes(b"SSH-2.0-OpenSSH_9.2\r\n"), "POST /[a-z_]*: "),
    "not UTF-8": Fault(writes(raw(GOOD).replace(b"stop", b"\xff\xfe\xfd\xfc")), "POST /[a-z_]*: "),
    "not what it is called": Fault(
        writes(_WHOLE.replace(b"application/json", b"x/y\r\nContent-Encoding: gzip")),
        "POST /[a-z_]*: ",
    ),
    "10 MB of text": Fault(says("x" * TEN_MB), "Expecting value.*xxx"),
    "10 MB of brackets": Fault(says("[" * TEN_MB), "recursion"),
    "10 MB with a 500": Fault(says("x" * TEN_MB, 500), "answered 500 to POST"),
    "a body without end": Fault(endless, "answered more than 2000000[01] bytes"),
}
"""Faults of the connection and of HTTP, of which the words hold for any path."""


def _one(**meta: Any) -> Handler:
    return says(sample([3, 4], **meta))


def _spans(*spans: tuple[str, int, int]) -> Handler:
    listed = [{"version": v, "start": start, "end": end} for v, start, end in spans]
    return _one(weight_versions=listed)


def _logprobs(*values: Any) -> Handler:
    tokens = [3, 4, 5][: len(values)]
    return _one(output_token_logprobs=[[v, t, None] for v, t in zip(values, tokens, strict=True)])


ANSWERS: dict[str, Fault] = {
    "null": Fault(says("null"), "malformed"),
    "text": Fault(says('"ok"'), "malformed"),
    "no meta": Fault(says({"output_ids": [1]}), "malformed: KeyError"),
    "meta is a list": Fault(says({"output_ids": [1], "meta_info": []}), "malformed"),
    "too few logprobs": Fault(_logprobs(-1.0), "2 tokens, 1 log-probabilities"),
    "too many logprobs": Fault(_logprobs(-1.0, -1.0, -1.0), "2 tokens, 3 log-probabilities"),
    "NaN": Fault(_logprobs(-1.0, float("nan")), "not finite"),
    "minus infinity": Fault(_logprobs(float("-inf"), -1.0), "not finite"),
    "null logprob": Fault(_logprobs(-1.0, None), "malformed"),
    "logprob of +0.1": Fault(_logprobs(-1.0, 0.1), r"above 0: 0\.1"),
    "logprobs of other tokens": Fault(
        _one(output_token_logprobs=[[-1.0, 4, None], [-1.0, 3, None]]), "are of other tokens"
    ),
    "tokens as text": Fault(says(sample([3]) | {"output_ids": ["3"]}), "no whole number"),
    "half a token": Fault(says(sample([3]) | {"output_ids": [3.5]}), "no whole number"),
    "a negative token": Fault(says(sample([-1])), "no whole number"),
    "longer than asked": Fault(says(sample(range(11))), "11 tokens, at most 10 were asked"),
    "too many samples": Fault(says([GOOD, GOOD]), "2 samples, 1 were asked for"),
    "no sample": Fault(says([]), "0 samples, 1 were asked for"),
    "unknown end": Fault(says(sample([3], "explosion")), "unknown reason: explosion"),
    "another request's name": Fault(_one(id="somebody-7"), "answered the request somebody-7, "),
    "another prompt": Fault(_one(prompt_tokens=77), "a prompt of 77 tokens, sent were 2"),
    "unknown version": Fault(says(sample([3], version="latest")), "malformed.*latest"),
    "a version before the first": Fault(says(sample([3], version=-1)), "sampled with version -1"),
    "spans with a gap": Fault(_spans(("0", 1, 2)), "leave a gap at token 0"),
    "spans too short": Fault(_spans(("0", 0, 1)), "2 tokens, 2 log-probabilities and 1 versions"),
    "spans without end": Fault(_spans(("0", 0, 10**15)), "spans end at token"),
    "spans that go backwards": Fault(_spans(("2", 0, 1), ("1", 1, 2)), "backwards, from 2 to 1"),
}
"""Faults in what a server answers to /generate for one sample of the prompt [1, 2]."""


WELCOME: dict[str, Handler] = {
    "10 MB of answer": says(sample([10]) | {"text": "x" * TEN_MB}),
    "one sample as a list": says([GOOD]),
    "compressed": writes(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"
        + gzip.compress(json.dumps(GOOD).encode())
    ),
    "in small pieces": writes(_WHOLE, every_s=0.0),
    "of unknown length": writes(raw(GOOD, length=False)),
}
"""Good answers of unusual shape, that must not be taken for faults."""


@asynccontextmanager
async def vanished() -> AsyncIterator[str]:
    """An address whose kernel accepts connections, and where nobody ever reads."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def names(address: str, words: str) -> str:
    """What an error must match: the server first, then what is wrong."""
    return f"server {re.escape(address)}.*{words}"
