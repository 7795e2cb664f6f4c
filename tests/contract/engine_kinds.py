"""Engines of every kind over the same small model, for tests that hold for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from embedded_support import Server
from served_model import ServedModel, VllmFlags, serving, sglang_app, vllm_app

from arealite.config.logprobs import untrainable
from arealite.data.micro_batch import MicroBatch
from arealite.engines.client import DIALECTS, RemoteEngine
from arealite.engines.dialect import Abilities
from arealite.telemetry.waits import Waits
from arealite.training.logprobs import token_logprobs
from arealite.types import (
    GenerationHyperparameters,
    LogprobMeaning,
    ModelRequest,
    ModelResponse,
    Probe,
    WeightUpdate,
)

PROBE_IDS = (5, 17, 42, 8, 100, 3, 77)
TOLERANCE = 1e-3


@dataclass
class Bench:
    """One client in front of servers of one kind. folders: the weights of each version.

    asked: the requests that the servers got, where they tell. models: the stand-ins' own.
    """

    engine: RemoteEngine
    folders: Mapping[int, Path]
    trainers: Mapping[int, Any]
    asked: list[tuple[str, Any]] = field(default_factory=list)
    models: list[ServedModel] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def update(self, version: int, folder: Path | None = None) -> WeightUpdate:
        """These weights, with the probe of the trainer that has them."""
        trainer = self.trainers[version]
        wanted = logprobs_of(trainer, PROBE_IDS[:1], PROBE_IDS[1:], 1.0)
        probe = Probe(PROBE_IDS, tuple(wanted), TOLERANCE)
        return WeightUpdate(version, str(folder or self.folders[version]), probe)

    def worst(self, response: ModelResponse, temperature: float) -> float:
        """The largest difference of the engine's log-probabilities from the trainer's, each
        token's by the version that it says it is of."""
        prompt, output = response.input_tokens, response.output_tokens
        by_version = {
            version: logprobs_of(self.trainers[version], prompt, output, temperature)
            for version in set(response.output_versions)
        }
        return max(
            abs(reported - by_version[version][i])
            for i, (reported, version) in enumerate(
                zip(response.output_logprobs, response.output_versions, strict=True)
            )
        )

    async def group(self, n: int = 1, **gconfig: Any) -> list[ModelResponse]:
        shared = request(**gconfig)
        return await asyncio.gather(*[self.engine.agenerate(shared) for _ in range(n)])


class Kind(Protocol):
    """Opens servers of this kind with these weights; yields their addresses and the stand-ins."""

    def __call__(
        self, stack: AsyncExitStack, folder: Path, count: int, asked: list[tuple[str, Any]]
    ) -> Awaitable[tuple[list[str], list[ServedModel]]]: ...


def standing_in(backend: str, meaning: LogprobMeaning, flags: VllmFlags | None = None) -> Kind:
    """A stand-in for SGLang or vLLM, in this process."""

    async def start(
        stack: AsyncExitStack, folder: Path, count: int, asked: list[tuple[str, Any]]
    ) -> tuple[list[str], list[ServedModel]]:
        models = [ServedModel(folder, meaning) for _ in range(count)]
        apps = [
            vllm_app(model, asked, flags) if backend == "vllm" else sglang_app(model, asked)
            for model in models
        ]
        return [await stack.enter_async_context(serving(app)) for app in apps], models

    return start


_running: dict[Path, list[Server]] = {}
"""Embedded servers that the tests of a module share, by their first weights."""


async def embedded(
    stack: AsyncExitStack, folder: Path, count: int, asked: list[tuple[str, Any]]
) -> tuple[list[str], list[ServedModel]]:
    """The embedded server, in processes of its own; a module ends them by end_processes."""
    servers = _running.setdefault(folder, [])
    while len(servers) < count:
        servers.append(Server(folder, "--max-running", "8", "--seed", "3"))
    return [server.url.removeprefix("http://") for server in servers[:count]], []


def end_processes() -> None:
    """Whatever a test did to them, they end well."""
    ended = [server.ended() for servers in _running.values() for server in servers]
    _running.clear()
    assert [code for code, _ in ended] == [0] * len(ended), ended


KINDS: Mapping[str, tuple[str, Kind]] = {
    "embedded": ("embedded", embedded),
    "fake-sglang": ("sglang", standing_in("sglang", "barred")),
    "fake-vllm": ("vllm", standing_in("vllm", "processed")),
    "fake-vllm-reload": ("vllm", standing_in("vllm", "processed", VllmFlags(transfer=None))),
}
"""By name: the backend, and how its servers are started."""


@asynccontextmanager
async def bench_of(
    backend: str,
    kind: Kind,
    folders: Mapping[int, Path],
    trainers: Mapping[int, Any],
    count: int = 1,
    trained: GenerationHyperparameters | None = None,
    **options: Any,
) -> AsyncIterator[Bench]:
    """Ready servers behind a client; when it is closed, nothing of it may be left.

    trained: the sampling whose log-probabilities the trainer will compute.
    """

    def refusal(abilities: Abilities) -> str:
        if trained is None or abilities.meaning is None:
            return ""
        found = untrainable(abilities.meaning, trained)
        return ": ".join(found) if found else ""

    async with AsyncExitStack() as stack:
        asked: list[tuple[str, Any]] = []
        said: list[str] = []
        addresses, models = await kind(stack, folders[0], count, asked)
        waits = Waits()
        defaults = {"request_timeout_s": 30.0, "setup_timeout_s": 60.0}
        engine = RemoteEngine(
            addresses, waits, DIALECTS[backend], refusal=refusal, say=said.append,
            **(defaults | options),
        )  # fmt: skip
        stack.push_async_callback(engine.aclose)
        await engine.wait_ready(60.0)
        found = Bench(engine, folders, trainers, asked, models, said)
        if not models:  # they may have other weights from the test before
            await engine.update_weights(found.update(0))
        yield found
        await engine.aclose()
        assert waits.count() == 0
        assert [server.running for server in engine.servers] == [0] * count


def request(*tokens: int, **gconfig: Any) -> ModelRequest:
    options = {"max_new_tokens": 12} | gconfig
    return ModelRequest(tokens or (7, 8, 9), GenerationHyperparameters(**options))


def logprobs_of(
    model: Any, prompt: Sequence[int], output: Sequence[int], temperature: float
) -> list[float]:
    """What the trainer computes for these sampled tokens, by its own code."""
    ids = torch.tensor([[*prompt, *output]])
    n = len(output)
    nothing = torch.zeros(n)
    batch = MicroBatch(
        input_ids=ids[:, :-1],
        source=torch.arange(len(prompt) - 1, len(prompt) - 1 + n),
        targets=ids[0, len(prompt) :],
        behave=nothing,
        advantages=nothing,
        sequence=torch.zeros(n, dtype=torch.int64),
        weights=nothing,
    )
    with torch.no_grad():
        found, _ = token_logprobs(model, batch, temperature)
    return found.tolist()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """On a fresh loop, with a watchdog: no fault may become a silent wait."""

    async def main() -> None:
        async with asyncio.timeout(120.0):
            await test()

    asyncio.run(main())
