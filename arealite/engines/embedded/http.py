"""The routes: SGLang's names and bodies over one scheduler. Errors are one sentence in JSON."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web

from arealite.engines.embedded.request import (
    Job,
    Limits,
    RequestError,
    Sample,
    parse_generate,
    reply,
)
from arealite.engines.embedded.scheduler import Scheduler
from arealite.engines.embedded.text import NoTokenizer, load_decode
from arealite.engines.embedded.weights import BadWeights, Weights, read_folder
from arealite.engines.stops import Decode, StopWatch

MAX_BODY_BYTES = 64 * 1024 * 1024
_PAUSE_MODES = ("abort", "retract", "in_place")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """What the routes share.

    `say` writes one log line; folder: where the tokenizer lies; key: what every request must carry
    as its bearer token, if it is not empty.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        weights: Weights,
        limits: Limits,
        model_path: str,
        folder: Path,
        seed: int | None,
        say: Callable[[str], None],
        key: str = "",
    ) -> None:
        self._key = key
        self.scheduler, self.weights, self.limits = scheduler, weights, limits
        self.model_path, self.folder, self.say = model_path, folder, say
        self._random = Random(secrets.randbits(63) if seed is None else seed)
        self._updating, self._loading = asyncio.Lock(), asyncio.Lock()
        self._decode: Decode | None = None

    def application(self) -> web.Application:
        """The aiohttp application with every route."""
        app = web.Application(
            client_max_size=MAX_BODY_BYTES, middlewares=[_plain_errors, self._guard]
        )
        app.add_routes(
            [
                web.post("/generate", self.generate),
                web.post("/abort_request", self.abort_request),
                web.post("/update_weights_from_disk", self.update_weights_from_disk),
                web.post("/update_weight_version", self.update_weight_version),
                web.post("/pause_generation", self.pause_generation),
                web.post("/continue_generation", self.continue_generation),
                web.post("/flush_cache", self.flush_cache),
                web.get("/flush_cache", self.flush_cache),
                web.get("/health", self.health),
                web.get("/get_model_info", self.get_model_info),
                web.get("/get_server_info", self.get_server_info),
                web.get("/metrics", self.metrics),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if self._key and not secrets.compare_digest(given, f"Bearer {self._key}".encode()):
            raise RequestError("this server wants its API key as the bearer token", status=401)
        return await handler(request)

    async def generate(self, request: web.Request) -> web.Response:
        """Samples; the reply comes when all samples of the request have ended."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job = parse_generate(await _body(request), self.limits, self._new_seed, future)
        await self._watch([sample for sample in job.samples if sample.params.stop])
        self.scheduler.submit(job)
        try:
            await future
        except asyncio.CancelledError:  # the client is gone
            self.scheduler.abort(lambda sample: sample.job is job)
            raise
        _raise_broken(job)
        return _json(reply(job, self.scheduler.version))

    async def _watch(self, samples: Sequence[Sample]) -> None:
        """Lets samples be watched for their stop strings; the first ones load the tokenizer."""
        if not samples:
            return
        async with self._loading:
            if self._decode is None:
                try:
                    self._decode = await asyncio.to_thread(load_decode, self.folder)
                except NoTokenizer as error:
                    raise RequestError(f"stop: {error}; use stop_token_ids") from None
        for sample in samples:
            sample.watch = StopWatch(sample.params.stop, self._decode)

    async def abort_request(self, request: web.Request) -> web.Response:
        """Ends all samples of one rid, or everything; they reply with what they have."""
        body = await _body(request)
        rid, everything = body.get("rid"), body.get("abort_all", False)
        if not everything and not isinstance(rid, str):
            raise RequestError("rid must be a string")
        self.scheduler.abort(lambda sample: everything or sample.rid == rid)
        return web.Response()

    async def update_weights_from_disk(self, request: web.Request) -> web.Response:
        """Loads a folder in place between two steps; on any doubt nothing changes (400)."""
        body = await _body(request)
        path, version = body.get("model_path"), body.get("weight_version")
        if not isinstance(path, str):
            raise RequestError("model_path must be a string")
        name = None if version is None else _version("weight_version", version)
        async with self._updating:
            try:
                staged = await asyncio.to_thread(read_folder, Path(path))
                self.weights.check(staged)
            except BadWeights as error:
                self.say(f"weights not updated: {error}")
                return _json({"success": False, "message": str(error)}, status=400)
            if body.get("abort_all_requests"):
                self.scheduler.abort(lambda sample: True)
            self.weights.load(staged)
            self.model_path = path
            self.scheduler.stamp(self.scheduler.version if name is None else name)
        self.say(f"weights updated to version {self.scheduler.version} from {path}")
        return _json({"success": True, "message": "the weights were updated"})

    async def update_weight_version(self, request: web.Request) -> web.Response:
        """Renames the served version. Unlike SGLang's, it aborts nothing unless told to."""
        body = await _body(request)
        version = _version("new_version", body.get("new_version"))
        if body.get("abort_all_requests"):
            self.scheduler.abort(lambda sample: True)
        self.scheduler.stamp(version, swapped=False)
        return _json({"success": True, "new_version": self.scheduler.version})

    async def pause_generation(self, request: web.Request) -> web.Response:
        """Stops decoding until /continue_generation."""
        mode = (await _body(request)).get("mode", "abort")
        if mode not in _PAUSE_MODES:
            raise RequestError(f"mode is {mode!r}, it must be one of {', '.join(_PAUSE_MODES)}")
        self.scheduler.pause(mode)
        return _json({"success": True, "message": f"paused ({mode})"})

    async def continue_generation(self, request: web.Request) -> web.Response:
        """Goes on after a pause."""
        self.scheduler.resume()
        return _json({"success": True, "message": "generating"})

    async def flush_cache(self, request: web.Request) -> web.Response:
        """Nothing is cached beyond running sequences; answered for the protocol's sake."""
        return _json({"success": True, "message": "nothing to flush"})

    async def health(self, request: web.Request) -> web.Response:
        """200 as long as the event loop turns, paused or not."""
        return web.Response()

    async def get_model_info(self, request: web.Request) -> web.Response:
        """What is served."""
        return _json(
            {
                "model_path": self.model_path,
                "is_generation": True,
                "weight_version": self.scheduler.version,
                "model_type": self.weights.spec.model_type,
                "context_length": self.limits.context,
                "vocab_size": self.limits.vocab,
            }
        )

    async def get_server_info(self, request: web.Request) -> web.Response:
        """Counters since the start."""
        named = {"server": "embedded", "weight_version": self.scheduler.version}
        return _json({**named, **self._counters()})

    async def metrics(self, request: web.Request) -> web.Response:
        """The same counters in Prometheus' text format."""
        lines = []
        for name, value in self._counters().items():
            kind = "gauge" if name in _GAUGES else "counter"
            lines += [f"# TYPE arealite_{name} {kind}", f"arealite_{name} {value}"]
        return web.Response(text="\n".join(lines) + "\n")

    def _counters(self) -> dict[str, float]:
        scheduler, counters = self.scheduler, self.scheduler.counters
        return {
            "requests_total": counters.requests,
            "tokens_generated": counters.tokens_generated,
            "prompt_tokens": counters.prompt_tokens,
            "cached_tokens": counters.cached_tokens,
            "aborted": counters.aborted,
            "steps": counters.steps,
            "weight_updates": counters.weight_updates,
            "busy_s": counters.busy_s,
            "decode_s": counters.decode_s,
            "idle_s": counters.idle_s,
            "running": scheduler.running,
            "waiting": scheduler.waiting,
            "paused": float(scheduler.paused is not None),
            "decode_tokens_per_s": counters.tokens_generated / max(counters.decode_s, 1e-9),
        }

    def _new_seed(self) -> int:
        return self._random.getrandbits(63)


_GAUGES = ("running", "waiting", "paused", "decode_tokens_per_s")


def _raise_broken(job: Job) -> None:
    for sample in job.samples:
        if sample.finish_reason is not None and sample.finish_reason["type"] == "error":
            raise RequestError(str(sample.finish_reason["message"]), status=500)


def _version(name: str, value: Any) -> str:
    """A version's name: what else JSON can hold would stand behind every token that it samples."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RequestError(f"{name} must be a string or a whole number, not {_kind(value)}")
    return str(value)


def _kind(value: Any) -> str:
    """What a JSON value is called in JSON."""
    names = {dict: "an object", list: "a list", bool: "true or false", float: "a fraction"}
    return names.get(type(value), "null")


async def _body(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; an empty one counts as {}."""
    raw = await request.read()
    try:
        body = json.loads(raw) if raw else {}
    except (ValueError, RecursionError) as error:  # the latter from brackets without end
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def _json(value: Any, status: int = 200) -> web.Response:
    body = json.dumps(value, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, content_type="application/json")


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as {"error": {"message": one sentence}}; a bug goes up to the boundary."""
    try:
        return await handler(request)
    except RequestError as error:
        response = _json({"error": {"message": str(error)}}, error.status)
        if error.status == 429:
            response.headers["Retry-After"] = "1"
        return response
    except web.HTTPRequestEntityTooLarge:
        message = f"the body is over {MAX_BODY_BYTES} bytes"
        return _json({"error": {"message": message}}, status=413)
    except web.HTTPException as error:
        return _json({"error": {"message": f"{request.path}: {error.reason}"}}, error.status)
