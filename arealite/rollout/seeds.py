"""Deterministic sampling: a seed for every sample that depends on the row and the workflow's code.

A *line* is one task of the workflow with all that it has asked so far; a task that it creates
goes on from there. A sample's seed is made of the run's seed, the row's id, the line, the prompt,
and how many requests for this prompt the line has made at once. So the samples do not depend on
time where the workflow gathers, loops, or gathers branches that each ask by their own pace.

Not covered: what the workflow itself lets time decide, as "take the first four that end"; and
branches that ask nothing before they wait for something else, and then all ask for one prompt:
each sample is the same, which of the branches gets it is up to who asks first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Coroutine, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from arealite.protocols import InferenceEngine
from arealite.types import ModelRequest, ModelResponse


@dataclass(slots=True)
class _Asked:
    """A request: on which line, for what (`key` holds the line too), the how manieth of these."""

    engine: SeededEngine
    line: str
    key: str
    count: int
    is_started: bool = False


_LAST: ContextVar[_Asked | None] = ContextVar("the last request of this line", default=None)
"""Each task has its own; it begins with that of the task that created it."""


class SeededEngine:
    """The engine as one episode sees it: a request without a seed gets one, as told above.

    Equal requests that are under way in the same turn of the event loop are one group: they carry
    the seed of its first, and the server draws sample i of the group from seed + i.
    """

    def __init__(self, engine: InferenceEngine, seed: int, sample_id: str) -> None:
        self._engine, self._name = engine, f"{seed}:{sample_id}"
        self._asked: Counter[str] = Counter()
        self._groups: dict[Hashable, tuple[int, int]] = {}  # (count of the first, size so far)

    def agenerate(self, request: ModelRequest) -> Coroutine[Any, Any, ModelResponse]:
        """Not `async`, so that the place on the line is taken here, in the order of the workflow's
        code, even where another task (gather makes one of each) awaits the answer."""
        last = _LAST.get()
        if last is None or last.engine is not self:
            line = self._name
        elif not last.is_started:  # the last and this one are asked at once
            line = last.line
        else:
            line = f"{last.key}:{last.count}"
        text = f"{line}:{request.gconfig.seed}:{tuple(request.input_ids)}"
        key = hashlib.sha256(text.encode()).hexdigest()
        asked = _Asked(self, line, key, self._asked[key])
        self._asked[key] += 1
        _LAST.set(asked)
        return self._ask(request, asked)

    async def _ask(self, request: ModelRequest, asked: _Asked) -> ModelResponse:
        asked.is_started = True
        if request.gconfig.seed is not None:
            return await self._engine.agenerate(request)
        group = (asked.key, request.gconfig, request.rid)
        first, size = self._groups.get(group, (asked.count, 0))
        if first + size != asked.count:  # sample `size` of that group would be another one
            first, size = asked.count, 0
        if group not in self._groups:
            asyncio.get_running_loop().call_soon(self._groups.pop, group)
        self._groups[group] = (first, size + 1)
        seed = _number(asked.key) + first
        return await self._engine.agenerate(
            replace(request, gconfig=request.gconfig.new(seed=seed))
        )


def _number(key: str) -> int:
    """Below 2^62, so that no sample's own seed passes the largest one that servers take."""
    return int(key[:16], 16) >> 2
