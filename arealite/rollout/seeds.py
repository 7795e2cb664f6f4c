"""Deterministic sampling: a seed for every request that depends on nothing but the row."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

from arealite.protocols import InferenceEngine
from arealite.types import ModelRequest, ModelResponse


class SeededEngine:
    """The engine as one episode sees it.

    A request without a seed gets one made of the run's seed, the row's id, the prompt, and how
    often the episode has asked for this prompt before; not of the time. Requests that are equal
    and made in the same turn of the event loop are one group: they share the seed, and the server
    draws sample i of the group from seed + i.
    """

    def __init__(self, engine: InferenceEngine, seed: int, sample_id: str) -> None:
        self._engine, self._name = engine, f"{seed}:{sample_id}"
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._open: dict[Hashable, int] = {}

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        if request.gconfig.seed is not None:
            return await self._engine.agenerate(request)
        prompt = tuple(request.input_ids)
        group = (prompt, request.gconfig, request.rid)
        if group not in self._open:
            self._open[group] = self._seed(prompt)
            asyncio.get_running_loop().call_soon(self._open.pop, group)
        seeded = replace(request, gconfig=request.gconfig.new(seed=self._open[group]))
        return await self._engine.agenerate(seeded)

    def _seed(self, prompt: tuple[int, ...]) -> int:
        """Below 2^62, so that no sample's own seed passes the largest one that servers take."""
        self._asked[prompt] += 1
        text = f"{self._name}:{self._asked[prompt]}:{prompt}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 2
