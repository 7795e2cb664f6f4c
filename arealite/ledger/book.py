"""The writer of ledger.jsonl: one per run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from arealite.ledger.account import Account
from arealite.ledger.reading import Reading, checked_line, read_ledger
from arealite.telemetry.run_folder import JsonLines, write_atomically

log = logging.getLogger("arealite.ledger")

COMPACT_BYTES = 4 << 20
"""A ledger longer than this is made one line at the next checkpoint."""


class Ledger:
    """Appends events and keeps their account; thread-safe. A full disk never ends the caller.

    Raises AccountError, from note, for an event that cannot be true: that is a bug.
    """

    def __init__(
        self,
        path: Path,
        rows: int,
        alarm: Callable[[str], None] | None = None,
        state: Mapping[str, Any] | None = None,
        sequence: int = -1,
        *,
        compact_bytes: int = COMPACT_BYTES,
    ) -> None:
        """state, sequence: what a checkpoint holds; the run goes on from there. Else it is new.

        What the file tells beyond the checkpoint is rolled back, and counted as that.
        """
        self._alarm, self._compact_bytes = alarm or log.warning, compact_bytes
        self._lock = threading.Lock()
        self.path, self.sequence = path, sequence
        found = self._found()
        if state is None:
            self.account, why = Account(rows), "new"
        else:
            self.account, why = Account.from_json(state), "recovered"
        self.account.roll_back(found.account if found is not None else None)
        if found is not None:
            self.sequence = max(self.sequence, found.sequence)
        self._lines = JsonLines(path, self._alarm)
        self._lost = 0
        self._begin(why, sequence)

    def note(self, event: str, **fields: Any) -> None:
        """Takes one event of account.py."""
        with self._lock:
            self.account.apply(event, fields)
            self._write(event, fields)

    def state(self) -> tuple[int, dict[str, Any]]:
        """The sequence number of now, and the account as JSON."""
        with self._lock:
            return self.sequence, self.account.to_json()

    def committed(self, version: int, sequence: int) -> None:
        """A checkpoint of this version holds all up to `sequence`: what was before may go."""
        self.note("committed", version=version, to=sequence)
        self._lines.flush()
        with self._lock:
            lost, self._lost = self._lines.lost - self._lost, self._lines.lost
            if lost or self._size() > self._compact_bytes:
                self._compact()

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()

    def _found(self) -> Reading | None:
        """What an earlier life has left, cut back to its last good line."""
        try:
            found = read_ledger(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._alarm(f"{self.path.name} cannot be read ({error.strerror}); it begins anew")
            return None
        if found.damage:
            if not found.torn:
                self._alarm(f"{self.path.name} is damaged, and cut there: {found.damage}")
            with suppress(OSError):  # whoever appends tells of it
                os.truncate(self.path, found.size)
        return found

    def _begin(self, why: str, to: int) -> None:
        self.sequence += 1
        head = {"n": self.sequence, "event": "account", "why": why, "to": to}
        self._lines.append(checked_line({**head, "state": self.account.to_json()}))

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        self.sequence += 1
        self._lines.append(checked_line({"n": self.sequence, "event": event, **fields}))

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _compact(self) -> None:
        """One line says what all before have said; also where lines were lost to a full disk."""
        self.sequence += 1
        head = {"n": self.sequence, "event": "account", "why": "compacted", "to": self.sequence - 1}
        try:
            write_atomically(
                self.path, checked_line({**head, "state": self.account.to_json()}), fsync=True
            )
        except OSError as error:
            self.sequence -= 1
            self._alarm(f"{self.path.name} cannot be compacted ({error.strerror or error})")
            return
        self._lines.replaced()
