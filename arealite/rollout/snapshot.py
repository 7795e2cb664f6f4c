"""All that the rollouts of a run must know to go on after a crash, as lines of JSON.

The first line holds what is in flight, the others one finished episode each. Rows are not written:
they are found again by their ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from arealite.errors import CheckpointError
from arealite.types import Episode, Trajectory

Ready = tuple[int, Episode | None]
"""A place in the order of admission, and the finished episode in it; None: it was filtered."""


@dataclass(frozen=True)
class Snapshot:
    """ready: finished and not trained. running: ids in flight with their places, which they keep
    when they are played again. admissions: places given so far."""

    ready: tuple[Ready, ...] = ()
    running: Mapping[str, int] = field(default_factory=dict)
    admissions: int = 0


def to_lines(snapshot: Snapshot) -> Iterator[str]:
    """Floats come back bit for bit. Raises TypeError for a trajectory of no plain numbers."""
    head = {"running": dict(snapshot.running), "admissions": snapshot.admissions}
    yield json.dumps(head) + "\n"
    for place, episode in snapshot.ready:
        fields = None if episode is None else _episode(episode)
        yield json.dumps([place, fields], default=_number, separators=(",", ":")) + "\n"


def from_lines(lines: Iterator[str], row: Callable[[str], Mapping[str, Any]]) -> Snapshot:
    """row(sample_id): the data that was played. Raises CheckpointError."""
    try:
        head = json.loads(next(lines))
        ready = tuple(_ready(json.loads(line), row) for line in lines)
        running = {str(i): int(place) for i, place in head["running"].items()}
        return Snapshot(ready, running, int(head["admissions"]))
    except (ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise CheckpointError(f"the rollouts of the checkpoint cannot be read: {error!r}") from None


def _episode(episode: Episode) -> dict[str, Any]:
    trajectories = [_trajectory(t) for t in episode.trajectories]
    return {"id": episode.sample_id, "version": episode.version, "trajectories": trajectories}


def _trajectory(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "tokens": list(trajectory.tokens),
        "mask": _runs(list(trajectory.loss_mask)),
        "logprobs": _runs(list(trajectory.logprobs)),
        "versions": _runs(list(trajectory.versions)),
        "reward": trajectory.reward,
        "components": dict(trajectory.components),
        "truncated": trajectory.truncated,
        "text": trajectory.text,
        "name": trajectory.name,
    }


def _runs(values: list[Any]) -> list[Any]:
    """[0, 0, 0, 1] -> [[3, 0], [1, 1]]"""
    return [[sum(1 for _ in run), value] for value, run in groupby(values)]


def _values(runs: list[Any]) -> list[Any]:
    return [value for count, value in runs for _ in range(count)]


def _ready(line: Any, row: Callable[[str], Mapping[str, Any]]) -> Ready:
    place, fields = line
    if fields is None:
        return int(place), None
    trajectories = tuple(
        Trajectory(
            tokens=t["tokens"],
            loss_mask=_values(t["mask"]),
            logprobs=_values(t["logprobs"]),
            versions=_values(t["versions"]),
            reward=t["reward"],
            components=t["components"],
            truncated=t["truncated"],
            text=t["text"],
            name=t.get("name", ""),  # a checkpoint of before names were has none
        )
        for t in fields["trajectories"]
    )
    sample_id = str(fields["id"])
    return int(place), Episode(sample_id, int(fields["version"]), trajectories, row(sample_id))


def _number(value: Any) -> Any:
    """A scalar of a numeric library as its number."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"a trajectory holds a {type(value).__name__}")
