"""The least that plays: numbered rows, a version of weights, a workflow of one sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from arealite.types import ModelRequest, Probe, Trajectory, WeightUpdate


def numbered_rows(n: int | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """n of them, or without end; each tells its number."""
    numbers = itertools.count() if n is None else range(n)
    return ((f"0:{i}", {"row": i}) for i in numbers)


def update(version: int) -> WeightUpdate:
    return WeightUpdate(version, f"/v{version}", Probe((1, 2), (-1.0,), tolerance=0.1))


class Solo:
    """One sample of every row, worth 1."""

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        return [Trajectory.from_response(await engine.agenerate(ModelRequest([1, 2])), 1.0)]
