"""Puts the server together, and runs it on one event loop."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from aiohttp import web

from arealite.engines.embedded.http import Api
from arealite.engines.embedded.request import Limits
from arealite.engines.embedded.runner import Runner
from arealite.engines.embedded.scheduler import Scheduler
from arealite.engines.embedded.slots import SlotTable
from arealite.engines.embedded.spec import ModelSpec, read_spec
from arealite.engines.embedded.weights import BadWeights, Weights, read_folder
from arealite.errors import ConfigError
from arealite.processes import KEY

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}
SHUTDOWN_S = 2.0


def model_folder(model: str) -> Path:
    """The folder itself, or where the hub's snapshot of this id lies. Raises ConfigError."""
    folder = Path(model).expanduser()
    if folder.is_dir() or model.startswith((".", "/", "~")):
        return folder
    from huggingface_hub import snapshot_download  # only a hub id needs it

    try:
        files = ["*.json", "*.safetensors", "*.txt", "*.model"]  # the last are tokenizers'
        return Path(snapshot_download(model, allow_patterns=files))
    except Exception as error:  # the client raises a dozen types of several libraries
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"there is no folder {model} here, and taken as a hub id it cannot be loaded: {reason} "
            "(give a Hugging Face folder, or a hub id that this machine can reach)"
        ) from None


def build(args: argparse.Namespace, say: Callable[[str], None], default_context: int) -> Api:
    """Loads the model and allocates the cache. Raises ConfigError."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no CUDA GPU")
    device = torch.device(args.device)
    dtype = getattr(torch, args.dtype or ("float32" if args.device == "cpu" else "bfloat16"))
    folder = model_folder(args.model)
    spec = read_spec(folder)
    context = args.context_length or min(spec.context, default_context)
    if context > spec.context:
        raise ConfigError(f"--context-length {context} is over the model's own {spec.context}")
    weights = Weights(spec, device, dtype)
    try:
        staged = read_folder(folder)
        weights.check(staged)
    except BadWeights as error:
        raise ConfigError(f"{args.model}: {error}") from None
    weights.load(staged)
    _check_memory(spec, args.max_running, context, device, dtype)
    runner = Runner(weights, args.max_running, context, args.deterministic)
    table = SlotTable(args.max_running, context, device)
    scheduler = Scheduler(
        runner,
        table,
        args.max_waiting,
        args.prefill_tokens or PREFILL_TOKENS[args.device],
        args.weight_version,
    )
    say(
        f"{spec.model_type} with {weights.parameters:,} parameters, {str(dtype)[6:]} on {device}, "
        f"{torch.get_num_threads()} threads, {args.max_running} slots of {context} tokens "
        f"({_cache_bytes(spec, args.max_running, context, dtype) / 2**20:,.0f} MiB of cache)"
    )
    limits = Limits(spec.vocab, context, spec.eos_ids, args.max_waiting + args.max_running)
    key = os.environ.get(KEY, "")
    return Api(scheduler, weights, limits, args.model, folder, args.seed, say, key)


def _cache_bytes(spec: ModelSpec, slots: int, context: int, dtype: torch.dtype) -> int:
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * slots * context * dtype.itemsize


def _check_memory(
    spec: ModelSpec, slots: int, context: int, device: torch.device, dtype: torch.dtype
) -> None:
    """On a GPU the cache is real at once; on a CPU its pages come as sequences grow."""
    if device.type != "cuda":
        return
    wanted, (free, _) = _cache_bytes(spec, slots, context, dtype), torch.cuda.mem_get_info(device)
    if wanted > 0.9 * free:
        raise ConfigError(
            f"the cache of {slots} slots of {context} tokens needs {wanted / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free: lower --max-running or --context-length"
        )


async def serve(
    api: Api, listener: socket.socket, stop: asyncio.Event, say: Callable[[str], None]
) -> None:
    """Serves on `listener` until `stop`; what still runs is answered with what it has.

    Raises whatever ended the scheduler: without it the server is of no use.
    """
    app = web.AppRunner(
        api.application(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_S,
    )
    await app.setup()
    await web.SockSite(app, listener).start()
    host, port = listener.getsockname()[:2]
    say(f"listening on http://{host}:{port}")
    loop = asyncio.create_task(api.scheduler.run(), name="scheduler")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({loop, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loop.done():
            loop.result()
    finally:
        api.scheduler.pause("abort")
        await app.cleanup()
        for task in (loop, stopping):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
