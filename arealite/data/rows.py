"""Rows of a data set: endless, in an order fixed by the seed, each with an id for life."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arealite.config import DatasetConfig
from arealite.crash import crash_point
from arealite.errors import ConfigError

Row = dict[str, Any]


def load_rows(config: DatasetConfig, section: str) -> Any:
    """The data set of a section, as Hugging Face `datasets` loads it. Raises ConfigError.

    A path that ends in .json or .jsonl is a local file; anything else is a hub id.
    """
    from datasets import load_dataset  # slow to import, and the launcher never needs it

    local = config.path.endswith((".json", ".jsonl"))
    if local and not Path(config.path).is_file():
        raise ConfigError(f"{section}.path: {config.path}: there is no such file")
    try:
        if local:
            rows = load_dataset(path="json", split="train", data_files=config.path)
        else:
            rows = load_dataset(config.path, config.name, split=config.split)
    except Exception as error:  # the library wraps parser errors in several types of its own
        what = f"{config.path}{_bad_line(Path(config.path))}" if local else config.path
        if not Path(config.path).exists():
            what = f"there is no {config.path} here, and taken as a hub id it"
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        remedy = "" if local else " (give a .jsonl file, or a hub id that this machine can reach)"
        raise ConfigError(f"{section}.path: {what} cannot be loaded: {reason}{remedy}") from None
    if config.max_rows is not None:
        rows = rows.select(range(min(config.max_rows, len(rows))))
    if len(rows) == 0:
        raise ConfigError(f"{section}.path: {config.path} has no rows")
    return rows


def _bad_line(path: Path) -> str:
    """Where a JSON-lines file goes wrong, for the error message."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f", line {number} (not an object)"
            except ValueError:
                return f", line {number} (not JSON)"
    return ""


class Rows:
    """Endless (id, row) pairs. The id is "epoch:index", index counted in the file's own order."""

    def __init__(
        self,
        rows: Any,
        seed: int,
        shuffle: bool,
        *,
        first: Sequence[str] = (),
        is_done: Callable[[str], bool] = lambda sample_id: False,
        epoch: int = 0,
    ) -> None:
        """first: ids that come before all others. is_done: tells which ids never come again;
        asked for each from this epoch on."""
        if len(rows) == 0:
            raise ConfigError("a data set without rows cannot be an endless stream of them")
        self._rows, self._seed, self._shuffle = rows, seed, shuffle
        self._first, self._is_done, self._epoch = tuple(first), is_done, epoch

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for sample_id in self._first:
            yield sample_id, self.row(sample_id)
        first, epoch = set(self._first), self._epoch
        while True:
            for index in self.order(epoch):
                sample_id = f"{epoch}:{index}"
                if sample_id not in first and not self._is_done(sample_id):
                    yield sample_id, self._rows[index]
            epoch += 1
            crash_point("epoch_roll")

    def row(self, sample_id: str) -> Mapping[str, Any]:
        """The row of an id."""
        row: Mapping[str, Any] = self._rows[int(sample_id.partition(":")[2])]
        return row

    def order(self, epoch: int) -> list[int]:
        """The order of one epoch: a pure function of seed and epoch, so a resume finds it again."""
        order = list(range(len(self._rows)))
        if self._shuffle:
            random.Random(f"{self._seed}:{epoch}").shuffle(order)
        return order
