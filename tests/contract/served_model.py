"""A real model behind the protocols of servers that cannot run here: SGLang's and vLLM's.

It computes naively (a whole forward for every token) and plainly; routes, bodies, versions, pauses
and what the log-probabilities mean are the server's own, as its source says. Tests that a real
server must pass as well need nothing else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM

from arealite.types import LogprobMeaning

STOP_STRINGS = "stop strings need a tokenizer, and this server has none"


@dataclass
class Settings:
    """What both protocols call by other names."""

    most: int
    least: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None


@dataclass
class Sample:
    """spans: [version, start, end], end exclusive."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "length"

    def add(self, token: int, logprob: float, version: str) -> None:
        if not self.spans or self.spans[-1]["version"] != version:
            self.spans.append({"version": version, "start": len(self.tokens), "end": 0})
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.spans[-1]["end"] = len(self.tokens)


class ServedModel:
    """The model, its version's name, and who may compute. token_s: time that a token takes."""

    def __init__(self, folder: Path, meaning: LogprobMeaning) -> None:
        self.meaning, self.version = meaning, "default"
        self.running = self.generated = 0
        self.token_s = 0.0
        self.free = asyncio.Event()
        self.free.set()
        self.load(folder)

    def load(self, folder: Path) -> None:
        """Raises OSError when there is no model."""
        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """[len(ids), vocabulary] float32."""
        return self.model(torch.tensor([ids])).logits[0].float()

    def prompt_logprobs(self, ids: list[int]) -> list[float]:
        rows = self.logits(ids)[:-1].log_softmax(-1)
        return rows.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()

    async def sample(self, prompt: list[int], settings: Settings) -> Sample:
        """One completion; paused between two tokens for as long as the server is."""
        sample, chance = Sample(), Random(settings.seed)
        self.running += 1
        try:
            while len(sample.tokens) < settings.most:
                await asyncio.sleep(self.token_s)
                await self.free.wait()
                logits = self.logits([*prompt, *sample.tokens])[-1]
                token, logprob = self._draw(logits, settings, len(sample.tokens), chance)
                sample.add(token, logprob, self.version)
                self.generated += 1
                if token in settings.stop_ids and len(sample.tokens) >= settings.least:
                    sample.finish = "stop"
                    break
        finally:
            self.running -= 1
        return sample

    def _draw(
        self, logits: torch.Tensor, settings: Settings, done: int, chance: Random
    ) -> tuple[int, float]:
        """The token, and its log-probability as this server means it."""
        told: dict[str, torch.Tensor] = {"raw": logits.log_softmax(-1)}
        if settings.temperature:
            logits = logits / settings.temperature
        told["temperature"] = logits.log_softmax(-1)
        if done + 1 < settings.least and settings.stop_ids:
            logits = logits.index_fill(0, torch.tensor(settings.stop_ids), -torch.inf)
        told["barred"] = logits.log_softmax(-1)
        order = logits.argsort(descending=True)
        p = logits[order].softmax(-1)
        kept = p.cumsum(-1) - p < settings.top_p
        kept[max(1, settings.top_k) if settings.top_k > 0 else len(kept) :] = False
        logits = logits.index_fill(0, order[~kept], -torch.inf)
        told["processed"] = logits.log_softmax(-1)
        cdf = told["processed"].exp().cumsum(-1)
        token = int(torch.searchsorted(cdf, chance.random() * float(cdf[-1]), right=True))
        token = int(logits.argmax()) if not settings.temperature else min(token, len(cdf) - 1)
        return token, float(told[self.meaning][token])

    async def group(self, prompt: list[int], n: int, settings: Settings, step: int) -> list[Sample]:
        """n samples, each by the seed of the one before + step."""
        seeds = [None if settings.seed is None else settings.seed + i * step for i in range(n)]
        each = [Settings(**{**vars(settings), "seed": seed}) for seed in seeds]
        return await asyncio.gather(*[self.sample(prompt, one) for one in each])


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """The address of this application for as long as the context is open."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def body_of(request: web.Request) -> Any:
    text = await request.text()
    return json.loads(text) if text else {}


def sglang_app(served: ServedModel, asked: list[tuple[str, Any]]) -> web.Application:
    """SGLang 0.5.23. asked: is told every request."""

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await body_of(request)
        asked.append((request.path, body))
        params, ids = body["sampling_params"], body["input_ids"]
        meta: dict[str, Any] = {"prompt_tokens": len(ids), "weight_version": served.version}
        if body.get("logprob_start_len") == 0:
            values = [None, *served.prompt_logprobs(ids)]
            meta["input_token_logprobs"] = [
                [value, token, None] for value, token in zip(values, ids, strict=True)
            ]
            return web.json_response({"output_ids": [], "meta_info": {**meta, "id": body["rid"]}})
        settings = Settings(
            params["max_new_tokens"], params["min_new_tokens"], params["temperature"],
            params["top_p"], params["top_k"], tuple(params["stop_token_ids"]),
            params.get("sampling_seed"),
        )  # fmt: skip
        samples = await served.group(ids, params["n"], settings, step=0)
        replies = [
            {
                "output_ids": sample.tokens,
                "meta_info": meta
                | {
                    "id": body["rid"] if len(samples) == 1 else f"{index:032x}",
                    "finish_reason": {"type": sample.finish},
                    "weight_version": served.version,
                    "weight_versions": sample.spans,
                    "output_token_logprobs": [
                        [logprob, token, None]
                        for logprob, token in zip(sample.logprobs, sample.tokens, strict=True)
                    ],
                },
            }
            for index, sample in enumerate(samples)
        ]
        return web.json_response(replies[0] if len(replies) == 1 else replies)

    async def update(request: web.Request) -> web.StreamResponse:
        body = await body_of(request)
        try:
            served.load(Path(body["model_path"]))
        except OSError as error:
            return web.json_response({"success": False, "message": str(error)}, status=400)
        served.version = body["weight_version"]
        return web.json_response({"success": True, "message": "Succeeded to update weights."})

    async def info(request: web.Request) -> web.StreamResponse:
        return web.json_response({"model_path": "m", "weight_version": served.version})

    async def server_info(request: web.Request) -> web.StreamResponse:
        settings = {"port": 30000, "enable_deterministic_inference": True}
        return web.json_response({"version": "0.5.23", "internal_states": [{}], **settings})

    async def loads(request: web.Request) -> web.StreamResponse:
        load = {"dp_rank": 0, "num_running_reqs": served.running, "num_waiting_reqs": 0}
        return web.json_response({"loads": [load]})

    app = web.Application()
    app.add_routes(
        [
            web.post("/generate", generate),
            web.post("/update_weights_from_disk", update),
            web.post("/pause_generation", _switch(served, False)),
            web.post("/continue_generation", _switch(served, True)),
            web.get("/get_model_info", info),
            web.get("/get_server_info", server_info),
            web.get("/v1/loads", loads),
        ]
    )
    return app


def _switch(served: ServedModel, runs: bool) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        served.free.set() if runs else served.free.clear()
        return web.json_response({"status": "ok"})

    return answer


@dataclass
class VllmFlags:
    """How it was started. transfer: the backend of --weight-transfer-config."""

    scale_out: bool = True
    dev_mode: bool = True
    most_seqs: int = 4
    transfer: str | None = "file"
    key: str = ""


_MODES: Mapping[LogprobMeaning, str] = {
    "raw": "raw_logprobs",
    "processed": "processed_logprobs",
}


def vllm_app(
    served: ServedModel, asked: list[tuple[str, Any]], flags: VllmFlags | None = None
) -> web.Application:
    """vLLM 0.32. asked: is told every request."""
    flags = flags or VllmFlags()
    session = {"open": False, "folder": Path()}

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        wanted = f"Bearer {flags.key}"
        guarded = request.path.startswith(("/v1", "/inference"))
        if flags.key and guarded and request.headers.get("Authorization") != wanted:
            return web.json_response({"error": "Unauthorized"}, status=401)
        result: web.StreamResponse = await handler(request)
        return result

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await body_of(request)
        if not flags.scale_out:
            return _refuse("Scale-out endpoints are disabled.", 403)
        if "token_ids" not in body:
            return _refuse("token_ids: Field required", 400)
        asked.append((request.path, body))
        return await _vllm_generate(served, body, flags.most_seqs)

    async def start(request: web.Request) -> web.StreamResponse:
        if flags.transfer is None or session["open"]:
            return _refuse("start_weight_update called while one is active, or none set up", 500)
        session["open"] = True
        return web.json_response({"message": "Weight update started"})

    async def transfer(request: web.Request) -> web.StreamResponse:
        try:
            served.load(Path((await body_of(request))["update_info"]["path"]))
        except OSError as error:
            session["open"] = False
            return _refuse(str(error), 500)
        return web.json_response({"message": "Weights updated"})

    async def finish(request: web.Request) -> web.StreamResponse:
        if not session["open"]:
            return _refuse("finish_weight_update without a matching start_weight_update", 500)
        session["open"] = False
        served.version = (await body_of(request)).get("weight_version") or served.version
        return web.json_response({"message": "Weight update finished"})

    async def rpc(request: web.Request) -> web.StreamResponse:
        body = await body_of(request)
        assert body["method"] == "reload_weights"
        try:
            served.load(Path(body["kwargs"]["weights_path"]))
        except OSError as error:
            return _refuse(str(error), 500)
        return web.json_response({"results": [None]})

    async def stamp(request: web.Request) -> web.StreamResponse:
        served.version = (await body_of(request))["new_version"]
        return web.json_response({"success": True, "new_version": served.version})

    async def weight_info(request: web.Request) -> web.StreamResponse:
        return web.json_response({"weight_version": served.version})

    async def server_info(request: web.Request) -> web.StreamResponse:
        config = {
            "model_config": {"logprobs_mode": _MODES[served.meaning]},
            "scheduler_config": {"max_num_seqs": flags.most_seqs},
            "weight_transfer_config": flags.transfer and {"backend": flags.transfer},
        }
        return web.json_response({"vllm_config": config})

    async def version(request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "0.32.0"})

    async def metrics(request: web.Request) -> web.StreamResponse:
        mark = '{engine="0",model_name="m"}'
        return web.Response(
            text=f"# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{mark} {float(served.running)}\n"
            f"vllm:generation_tokens_total{mark} {float(served.generated)}\n"
        )

    app = web.Application(middlewares=[guard])
    app.add_routes(
        [
            web.post("/inference/v1/generate", generate),
            web.get("/version", version),
            web.get("/metrics", metrics),
        ]
    )
    if flags.dev_mode:
        app.add_routes(
            [
                web.post("/pause", _switch(served, False)),
                web.post("/resume", _switch(served, True)),
                web.post("/start_weight_update", start),
                web.post("/update_weights", transfer),
                web.post("/finish_weight_update", finish),
                web.post("/collective_rpc", rpc),
                web.post("/update_weight_version", stamp),
                web.get("/weight_info", weight_info),
                web.get("/server_info", server_info),
            ]
        )
    return app


async def _vllm_generate(served: ServedModel, body: Any, most: int) -> web.StreamResponse:
    params, ids = body["sampling_params"], body["token_ids"]
    if params["n"] > most:
        return _refuse(f"sampling_params.n must be at most the server's max_num_seqs ({most})", 400)
    if not 0 <= params["temperature"] <= 2:
        return _refuse(f"temperature must be in [0, 2], got {params['temperature']}.", 400)
    if params.get("stop"):
        return _refuse(STOP_STRINGS, 400)
    settings = Settings(
        params["max_tokens"], params.get("min_tokens", 0), params["temperature"],
        params.get("top_p", 1.0), params.get("top_k", 0),
        tuple(params.get("stop_token_ids", ())), params.get("seed"),
    )  # fmt: skip
    prompt: list[Any] | None = None
    if params.get("prompt_logprobs") is not None:
        values = zip(ids[1:], served.prompt_logprobs(ids), strict=True)
        prompt = [None, *({str(token): {"logprob": value, "rank": 1}} for token, value in values)]
    samples = await served.group(ids, params["n"], settings, step=1)
    choices = [
        {
            "index": index,
            "finish_reason": sample.finish,
            "token_ids": sample.tokens,
            "logprobs": {
                "content": [
                    {"token_id": token, "logprob": logprob, "rank": 1, "top_logprobs": []}
                    for token, logprob in zip(sample.tokens, sample.logprobs, strict=True)
                ]
            },
            "weight_versions": sample.spans,
        }
        for index, sample in enumerate(samples)
    ]
    made = sum(len(sample.tokens) for sample in samples)
    usage = {"prompt_tokens": len(ids), "completion_tokens": made, "total_tokens": len(ids) + made}
    name = f"generate-tokens-{body['request_id']}"
    return web.json_response(
        {"request_id": name, "choices": choices, "usage": usage, "prompt_logprobs": prompt}
    )


def _refuse(message: str, status: int) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)
