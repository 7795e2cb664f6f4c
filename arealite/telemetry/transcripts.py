"""transcripts.jsonl: what was said, by which versions, what it earned and what became of it.

One line per episode, kept or not:

    sample_id        the row, "epoch:index"
    version          published version when the episode was admitted (evaluated: the one judged)
    trained_version  the version that its batch made, only when trained
    fate             trained | dropped_stale | filtered | failed | evaluated
    dataset          held-out set, only of its rows: evaluated, or failed
    time             unix seconds
    query            the row, or what the caller chose to show of it;  prompt: its text
    trajectories     [{text, reward, components, versions, tokens, truncated, name?}]
    error            {kind, sentence}, only when failed

`versions` are runs [[version, count], ...] over the whole token stream in order; version -1 is a
token that no policy sampled, the prompt above all. `tokens` counts the sampled ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal, get_args

from arealite.telemetry.run_folder import JsonLines, RunFolder
from arealite.types import Trajectory

Fate = Literal["trained", "dropped_stale", "filtered", "failed", "evaluated"]
FATES: tuple[str, ...] = get_args(Fate)


class Transcripts:
    """Appends to transcripts.jsonl; thread-safe; never raises for what a text or a disk does."""

    def __init__(
        self,
        run_folder: RunFolder,
        *,
        alarm: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lines = JsonLines(run_folder.transcripts, alarm)
        self._clock = clock

    def write(
        self,
        sample_id: str,
        version: int,
        fate: Fate,
        trajectories: Sequence[Trajectory] = (),
        *,
        query: Any = None,
        prompt: str | None = None,
        trained_version: int | None = None,
        dataset: str | None = None,
        error: BaseException | None = None,
    ) -> None:
        """One episode. version: at admission. error: what a failed episode died of."""
        if fate not in FATES:
            raise ValueError(f"fate is {fate!r}, it must be one of {', '.join(FATES)}")
        optional = {
            "trained_version": trained_version,
            "dataset": dataset,
            "query": query,
            "prompt": prompt,
            "error": None if error is None else _failure(error),
        }
        self._lines.write(
            {
                "sample_id": sample_id,
                "version": version,
                "fate": fate,
                "time": round(self._clock(), 3),
                **{key: value for key, value in optional.items() if value is not None},
                "trajectories": [_trajectory(t) for t in trajectories],
            }
        )

    def position(self) -> int:
        """Bytes of the file once all episodes taken so far are in it."""
        return self._lines.position()

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()


def _failure(error: BaseException) -> dict[str, str]:
    return {"kind": getattr(error, "kind", type(error).__name__), "sentence": str(error)}


def _trajectory(trajectory: Trajectory) -> dict[str, Any]:
    spans = version_spans(trajectory.versions)
    return {
        "text": trajectory.text,
        "reward": trajectory.reward,
        "components": dict(trajectory.components),
        "versions": spans,
        "tokens": trajectory.sampled,
        "truncated": trajectory.truncated,
        **({"name": trajectory.name} if trajectory.name else {}),
    }


def version_spans(versions: Sequence[int]) -> list[list[int]]:
    """[3, 3, 4] -> [[3, 2], [4, 1]], in order; a version may come again."""
    values = list(versions)
    spans: list[list[int]] = []
    at = 0
    while at < len(values):
        version = values[at]
        count = values.count(version)
        # Versions nearly always come in one run each: one comparison at C speed settles it.
        if values[at : at + count] != [version] * count:
            rest = groupby(values[at:])
            return spans + [[v, sum(1 for _ in run)] for v, run in rest]
        spans.append([version, count])
        at += count
    return spans
