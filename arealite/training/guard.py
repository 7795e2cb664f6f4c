"""What a training step does about NaN and inf: leave the update out, keep its batch, end soon."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arealite.data.batch import Sample
from arealite.errors import NonFinite
from arealite.telemetry.run_folder import write_atomically

log = logging.getLogger("arealite.training")

PATIENCE = 3
"""Updates in a row that may be left out; the last of them ends the run."""


class Guard:
    """Counts updates whose numbers are not finite.

    folder: where their samples are written, one file each; None: nowhere. learner: whose updates
    they are, as its section of the configuration is called.
    """

    def __init__(self, folder: Path | None = None, learner: str = "actor") -> None:
        self._folder, self._learner, self._in_a_row = folder, learner, 0

    def passed(self) -> None:
        """An update was made: what was odd before it has passed."""
        self._in_a_row = 0

    def left_out(self, reason: str, version: int, update: int, samples: Sequence[Sample]) -> None:
        """An update was not made. Raises NonFinite where it is the third in a row.

        reason: a clause like "the loss is nan". version: the one that the update was to give.
        """
        self._in_a_row += 1
        kept = ""
        if self._folder is not None:
            of = "" if self._learner == "actor" else f"{self._learner}-"
            file = self._folder / f"{of}version-{version}-update-{update}.json"
            told = {"version": version, "reason": reason, "samples": [_plain(s) for s in samples]}
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(told, allow_nan=False) + "\n")
                kept = f"; the batches are kept in {self._folder}"
            except OSError as error:  # a full disk costs this evidence, not the run
                kept = f"; their batch could not be kept in {self._folder} ({error.strerror})"
                log.warning("%s at version %d%s", reason, version, kept)
        if self._in_a_row >= PATIENCE:
            raise NonFinite(
                f"{reason} at version {version}, the update number {PATIENCE} in a row that would "
                f"have spoiled the weights{kept}: lower {self._learner}.optimizer.lr, or see what "
                "is odd in them"
            )


def _plain(sample: Sample) -> dict[str, Any]:
    told = asdict(sample)
    told["tokens"], told["trained"] = list(sample.tokens), list(sample.trained)
    for name in ("behave", "values", "returns", "prox"):
        told[name] = _numbers(told[name])
    if isinstance(sample.advantage, Sequence):
        told["advantage"] = _numbers(sample.advantage)
    else:
        told["advantage"] = _number(sample.advantage)
    told["weight"] = _number(sample.weight)
    return told


def _numbers(values: Iterable[float]) -> list[float | str]:
    return [_number(value) for value in values]


def _number(value: float) -> float | str:
    """JSON has no NaN: what is not finite becomes a text."""
    return value if math.isfinite(value) else str(value)
