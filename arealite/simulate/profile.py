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


def speeds_of(folder: Path) -> Speeds:
    """What a run's metrics.jsonl and transcripts.jsonl say. Raises ConfigError."""
    rows = [row for row in _lines(folder / "metrics.jsonl") if "train/samples" in row]
    if len(rows) < LEAST_VERSIONS:
        raise ConfigError(
            f"--profile {folder}: its metrics.jsonl has {len(rows)} trained version(s), at least "
            f"{LEAST_VERSIONS} are needed to tell how fast it was"
        )
    rows = rows[SKIP:]
    missing = [key for key in ("time/wait_batch_s", "time/publish_s") if key not in rows[0]]
    if missing:
        raise ConfigError(f"--profile {folder}: its metrics.jsonl lacks {', '.join(missing)}")
    speeds = _trainer(Speeds(), rows)
    speeds = _lengths(speeds, folder, rows)
    return _engine(speeds, rows) if "engine/steps" in rows[0] else speeds


def _trainer(speeds: Speeds, rows: Sequence[dict[str, Any]]) -> Speeds:
    """All of the trainer's time that is not waiting or publishing belongs to its samples."""
    seconds = rows[-1]["time"] - rows[0]["time"]
    busy = seconds - sum(r["time/wait_batch_s"] + r["time/publish_s"] for r in rows[1:])
    samples = sum(r["train/samples"] for r in rows[1:])
    return replace(
        speeds,
        train_s=0.0,
        train_per_sample_s=max(0.0, busy) / samples,
        publish_s=statistics.median(r["time/publish_s"] for r in rows),
        failed=_grown(rows, "counts/failed") / max(1.0, _grown(rows, "counts/admitted")),
    )


def _lengths(speeds: Speeds, folder: Path, rows: Sequence[dict[str, Any]]) -> Speeds:
    """The groups as they were sampled; without transcripts, their mean length."""
    mean = statistics.fmean(r["rollout/completion_length"] for r in rows)
    path = folder / "transcripts.jsonl"
    if not path.exists():
        return replace(speeds, length_mean=mean)
    played = (line for line in _lines(path) if line.get("fate") in ("trained", "dropped_stale"))
    groups = [tuple(t["tokens"] for t in line["trajectories"]) for line in played]
    return replace(speeds, length_mean=mean, groups=tuple(groups[-MOST_GROUPS:]))


def _engine(speeds: Speeds, rows: Sequence[dict[str, Any]]) -> Speeds:
    """A step takes s + n p: over any stretch, decode seconds = s * steps + p * tokens.

    Least squares over the versions. Where all steps had like many samples, s and p cannot be told
    apart; then their ratio is the default's. What a server does besides decoding while it has
    work (prefill, requests and replies) is spread over the prompts.
    """
    pairs = list(itertools.pairwise(rows))
    steps = [b["engine/steps"] - a["engine/steps"] for a, b in pairs]
    tokens = [b["engine/tokens_generated"] - a["engine/tokens_generated"] for a, b in pairs]
    decode = [b["engine/decode_s"] - a["engine/decode_s"] for a, b in pairs]
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


def _grown(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(rows[-1].get(key, 0.0) - rows[0].get(key, 0.0))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """A last line that was cut off is left out."""
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    return
    except OSError as error:
        raise ConfigError(f"--profile: {path} cannot be read: {error.strerror}") from None
