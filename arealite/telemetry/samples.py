"""transcripts.jsonl, read back one sample at a time: what every view of transcripts is made of.

Files are streamed, since they grow for days; a torn or foreign line is passed over, and a field of
the wrong type counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from arealite.telemetry.run_folder import RunFolder, read_lines
from arealite.telemetry.view import number
from arealite.types import NOT_SAMPLED

Line = Mapping[str, Any]
Name = tuple[str, str]
"""(held-out set, sample id)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of an episode, or an episode without any: then `trajectory` is empty.

    index: from 0, of `count` answers to the same row.
    """

    episode: Line
    trajectory: Line
    index: int = 0
    count: int = 0

    @property
    def sample_id(self) -> str:
        return str(self.episode.get("sample_id", "?"))

    @property
    def fate(self) -> str:
        return str(self.episode.get("fate", "?"))

    @property
    def version(self) -> int | None:
        """Of the line in metrics.jsonl that it belongs to: the version that was made of it, the
        one that it judged; of an episode that was neither, the one at its admission."""
        return _whole(self.episode.get("trained_version", self.episode.get("version")))

    @property
    def reward(self) -> float | None:
        return number(self.trajectory.get("reward"))

    @property
    def components(self) -> dict[str, float]:
        """The reward's named parts."""
        found = self.trajectory.get("components")
        parts = found if isinstance(found, Mapping) else {}
        return {str(k): value for k, v in parts.items() if (value := number(v)) is not None}

    @property
    def tokens(self) -> int | None:
        """How many were sampled."""
        return _whole(self.trajectory.get("tokens"))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(version, how many tokens), in order; version -1: not sampled."""
        found = self.trajectory.get("versions")
        pairs = [p for p in found if isinstance(p, list)] if isinstance(found, list) else []
        wholes = [tuple(map(_whole, pair)) for pair in pairs]
        return [(p[0], p[1]) for p in wholes if len(p) == 2 and p[0] is not None and p[1]]

    @property
    def lags(self) -> list[tuple[int, int]]:
        """(lag in versions, how many sampled tokens), in order; only of what was trained."""
        trained = _whole(self.episode.get("trained_version"))
        if trained is None:
            return []
        # Version v + 1 is made by training version v.
        return [(trained - 1 - v, count) for v, count in self.spans if v != NOT_SAMPLED]

    @property
    def lag(self) -> int | None:
        """Of its oldest token, in versions."""
        return max((lag for lag, _ in self.lags), default=None)

    @property
    def text(self) -> str:
        return str(self.trajectory.get("text") or "")

    @property
    def asked(self) -> str:
        """The prompt; where it was not kept, the row."""
        prompt, query = self.episode.get("prompt"), self.episode.get("query")
        if prompt or query is None:
            return str(prompt or "")
        if not isinstance(query, Mapping):
            return str(query)
        return "\n".join(f"{key}: {_words(value)}" for key, value in query.items())

    @property
    def error(self) -> str:
        """What a failed episode died of, or nothing."""
        error = self.episode.get("error")
        if not isinstance(error, Mapping):
            return ""
        return f"{error.get('kind')}: {error.get('sentence')}"

    def says(self, text: str) -> bool:
        """Whether the text is anywhere in what was asked, answered or told as an error."""
        return any(text in part for part in (self.text, self.asked, self.error))


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def samples_of(episode: Line) -> list[Sample]:
    """All its answers; one empty sample if it has none."""
    found = episode.get("trajectories")
    answers = [t for t in found if isinstance(t, Mapping)] if isinstance(found, list) else []
    if not answers:
        return [Sample(episode, {})]
    return [Sample(episode, answer, i, len(answers)) for i, answer in enumerate(answers)]


def read_samples(run_folder: RunFolder, fate: str | None = None) -> Iterator[Sample]:
    """In the order of the file. fate: only of such episodes; other lines are not even parsed."""
    containing = None if fate is None else b'"fate":' + json.dumps(fate).encode()
    for line in read_lines(run_folder.transcripts, containing=containing):
        if fate is None or line.get("fate") == fate:
            yield from samples_of(line)


def judged(run_folder: RunFolder) -> tuple[dict[Name, Sample], dict[Name, Sample]]:
    """The held-out rows' answers at the first and at the last evaluation; no second: {}.

    Of several answers to a row the first: none is picked for its reward. One pass that holds two
    versions at most, since the file may be long.
    """
    first: dict[Name, Sample] = {}
    last: dict[Name, Sample] = {}
    low = high = None
    for sample in read_samples(run_folder, "evaluated"):
        version = sample.version
        if version is None or sample.index or not sample.count:
            continue
        name = (str(sample.episode.get("dataset", "")), sample.sample_id)
        if low is None or version < low:
            low, first = version, {}
        if high is None or version > high:
            high, last = version, {}
        if version == low:
            first[name] = sample
        if version == high:
            last[name] = sample
    return first, last if high != low else {}


def most_gained(first: Mapping[Name, Sample], last: Mapping[Name, Sample], n: int) -> list[Name]:
    """The rows whose reward rose most; of equals the shortest, since they will be read."""

    def gain(name: Name) -> tuple[float, int, Name]:
        before, after = first[name], last[name]
        length = len(before.text) + len(after.text)
        return (before.reward or 0.0) - (after.reward or 0.0), length, name

    return sorted(first.keys() & last.keys(), key=gain)[:n]
