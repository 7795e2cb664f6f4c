"""Speeds measured by a finished run: read from its folder, nothing else."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arealite.errors import ConfigError
from arealite.simulate.speeds import Speeds

SKIP = 2
"""The first versions fill the pipeline and warm everything up."""
LEAST_VERSIONS = 6
MOST_GROUPS = 4000

NEEDED = (
    *("time", "time/wait_batch_s", "time/publish_s"),
    *("train/samples", "rollout/completion_length"),
)
OF_ENGINE = ("engine/steps", "engine/tokens_generated", "engine/decode_s", "engine/idle_s")
COUNTS = ("counts/admitted", "counts/failed", "counts/filtered", "engine/servers")


def speeds_of(folder: Path) -> Speeds:
    """What a run's metrics.jsonl and transcripts.jsonl say. Raises ConfigError."""
    path = folder / "metrics.jsonl"
    lines = [(n, line) for n, line in _lines(path) if "train/samples" in line]
    if len(lines) < LEAST_VERSIONS:
        raise ConfigError(
            f"--profile {folder}: its metrics.jsonl has {len(lines)} trained version(s), at least "
            f"{LEAST_VERSIONS} are needed to tell how fast it was"
        )
    needed = NEEDED + (OF_ENGINE if "engine/steps" in lines[SKIP][1] else ())
    rows = [_figures(f"{path} line {n}", line, needed) for n, line in lines[SKIP:]]
    if rows[-1]["time"] <= rows[0]["time"] or not any(r["train/samples"] for r in rows[1:]):
        raise ConfigError(
            f"--profile: {path} tells of no time or no sample after its version {SKIP}; give the "
            "folder of another run"
        )
    speeds = _trainer(Speeds(), rows)
    speeds = _lengths(speeds, folder, rows)
    return _engine(speeds, rows) if "engine/steps" in rows[0] else speeds


def _figures(where: str, line: dict[str, Any], needed: Sequence[str]) -> dict[str, float]:
    """Of one version, all that is used here."""
    missing = [key for key in needed if key not in line]
    if missing:
        raise ConfigError(
            f"--profile: {where} lacks {', '.join(missing)}; give the folder of a run by "
            "arealite.launch, or take that line out"
        )
    figures = {key: line[key] for key in (*needed, *COUNTS) if key in line}
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
            raise ConfigError(
                f"--profile: {where}: {key} is {value!r}, it must be a number from 0 up; take that "
                "line out"
            )
    return figures


def _trainer(speeds: Speeds, rows: Sequence[dict[str, float]]) -> Speeds:
    """All of the trainer's time that is not waiting or publishing belongs to its samples."""
    seconds = rows[-1]["time"] - rows[0]["time"]
    busy = seconds - sum(r["time/wait_batch_s"] + r["time/publish_s"] for r in rows[1:])
    samples = sum(r["train/samples"] for r in rows[1:])
    admitted = max(1.0, _grown(rows, "counts/admitted"))
    return replace(
        speeds,
        train_s=0.0,
        train_per_sample_s=max(0.0, busy) / samples,
        publish_s=statistics.median(r["time/publish_s"] for r in rows),
        failed=_grown(rows, "counts/failed") / admitted,
        filtered=_grown(rows, "counts/filtered") / admitted,
    )


def _lengths(speeds: Speeds, folder: Path, rows: Sequence[dict[str, float]]) -> Speeds:
    """The groups as they were sampled; without transcripts, their mean length."""
    mean = statistics.fmean(r["rollout/completion_length"] for r in rows)
    path = folder / "transcripts.jsonl"
    if not path.exists():
        return replace(speeds, length_mean=mean)
    groups = [_group(f"{path} line {n}", line) for n, line in _lines(path)]
    played = tuple(group for group in groups if group)
    return replace(speeds, length_mean=mean, groups=played[-MOST_GROUPS:])


def _group(where: str, line: dict[str, Any]) -> tuple[int, ...]:
    """The lengths of an episode's samples; none where it is not of the training's."""
    if line.get("fate") not in ("trained", "dropped_stale", "filtered"):
        return ()
    try:
        lengths = [t["tokens"] for t in line["trajectories"]]
        if all(type(n) is int and n > 0 for n in lengths):
            return tuple(lengths)
    except (KeyError, TypeError):
        pass
    raise ConfigError(
        f"--profile: {where} has no trajectories with their numbers of tokens; take that line out, "
        "or take the file away: then the mean length of metrics.jsonl is used"
    )


def _engine(speeds: Speeds, rows: Sequence[dict[str, float]]) -> Speeds:
    """A step takes s + n p: over any stretch, decode seconds = s * steps + p * tokens.

    Least squares over the versions. Where all steps had like many samples, s and p cannot be told
    apart; then their ratio is the default's. What a server does besides decoding while it has
    work (prefill, requests and replies) is spread over the prompts.
    """
    pairs = list(itertools.pairwise(rows))
    steps, tokens, decode = (
        [_growth(a, b, f"engine/{key}") for a, b in pairs]
        for key in ("steps", "tokens_generated", "decode_s")
    )
    step_s, per_sample_s = _fit(steps, tokens, decode, speeds)
    groups = max(1.0, _grown(rows, "counts/admitted"))
    seconds = (rows[-1]["time"] - rows[0]["time"]) * rows[-1].get("engine/servers", 1.0)
    rest = seconds - _grown(rows, "engine/idle_s") - sum(decode)
    return replace(
        speeds,
        step_s=step_s,
        step_per_sample_s=per_sample_s,
        prompt_tokens=1,
        prefill_per_token_s=max(0.0, rest) / groups,
    )


def _fit(
    steps: Sequence[float], tokens: Sequence[float], seconds: Sequence[float], prior: Speeds
) -> tuple[float, float]:
    ss, tt = sum(s * s for s in steps), sum(t * t for t in tokens)
    st = sum(s * t for s, t in zip(steps, tokens, strict=True))
    sy = sum(s * y for s, y in zip(steps, seconds, strict=True))
    ty = sum(t * y for t, y in zip(tokens, seconds, strict=True))
    determinant = ss * tt - st * st
    if determinant > 0.01 * ss * tt:
        fit = (sy * tt - ty * st) / determinant, (ty * ss - sy * st) / determinant
        if min(fit) >= 0:
            return fit
    expected = prior.step_s * sum(steps) + prior.step_per_sample_s * sum(tokens)
    scale = sum(seconds) / expected if expected else 1.0
    return prior.step_s * scale, prior.step_per_sample_s * scale


def _growth(before: dict[str, float], after: dict[str, float], key: str) -> float:
    """A counter that has fallen began anew: its process was started again."""
    old, new = before.get(key, 0.0), after.get(key, 0.0)
    return new - old if new >= old else new


def _grown(rows: Sequence[dict[str, float]], key: str) -> float:
    return sum(_growth(a, b, key) for a, b in itertools.pairwise(rows))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line with its number, from 1. Those that a crash cut off are left out."""
    try:
        with path.open("rb") as lines:
            for n, line in enumerate(lines, 1):
                row = _parsed(line)
                if isinstance(row, dict):
                    yield n, row
                elif line.endswith(b"\n") and not _is_half(line):
                    raise ConfigError(
                        f"--profile: {path} line {n} is not a JSON object in UTF-8; take that "
                        "line out"
                    )
    except OSError as error:
        raise ConfigError(f"--profile: {path} cannot be read: {error.strerror}") from None


def _is_half(line: bytes) -> bool:
    """A run that was resumed ends the half line of the one before it."""
    return line.startswith(b"{") and not line.rstrip().endswith(b"}")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
