"""status.json: what the run does now, and for whom it waits.

Fields, a contract (a reader takes an absent one as unknown):

    phase           preparing | starting | evaluating | training | saving | done | failed
    version         the newest published version; total_versions: where the run ends
    pid             of the writer; started, time: unix seconds of the start and of this file.
                    `time` is renewed every second: an old one in an unfinished phase is a dead run
    eta_s           seconds to the end, as the run estimates it
    waiting_for     [{owner, what, count, seconds, deadline_s}], oldest first, at most 32 groups;
                    what is made of other waits (an episode, a batch) stands after them
    waits           how many waits are open in all
    counts          {admitted, in_flight, buffered, trained, filtered, dropped_stale, failed, ...}
    metrics         the last metrics of interest, flat keys as in metrics.jsonl
    servers         [{address, state, since, reason}]; state: starting | serving | suspect | stale |
                    updating | quarantined | dead (docs/engines.md), since: unix seconds
    alarms          [{time, text, count}], the last 20; the same text counts up
    errors          {kind: {count, first, traceback}} of failed episodes
    error           the sentence that ended the run, in phase failed

Any further field given to set() is written too.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from arealite.telemetry.run_folder import RunFolder, to_line, write_atomically
from arealite.telemetry.waits import Waits

Phase = Literal["preparing", "starting", "evaluating", "training", "saving", "done", "failed"]
PHASES: tuple[str, ...] = get_args(Phase)
FINAL_PHASES = ("done", "failed")

_MIN_INTERVAL_S = 0.5
_MAX_GROUPS = 32
_MAX_ALARMS = 20

log = logging.getLogger("arealite.telemetry")


class Status:
    """Writes status.json; thread-safe. A disk that refuses is logged once and never raised."""

    def __init__(
        self,
        run_folder: RunFolder,
        waits: Waits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = 0
        self._path = run_folder.status
        self._waits = Waits() if waits is None else waits
        self._clock = clock
        self._lock = threading.Lock()
        self._dirty = True
        self._written_at = float("-inf")
        self._fields: dict[str, Any] = {
            "phase": "preparing",
            "pid": os.getpid(),
            "started": round(time.time(), 3),
            "waiting_for": [],
            "waits": 0,
            "counts": {},
            "alarms": [],
            "error": None,
        }

    def set(self, **fields: Any) -> None:
        """Changes fields; a new phase is written at once, other changes at most every 0.5 s."""
        phase = fields.get("phase", "preparing")
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}, it must be one of {', '.join(PHASES)}")
        with self._lock:
            new_phase = "phase" in fields and fields["phase"] != self._fields["phase"]
            if any(self._fields.get(key, self) != value for key, value in fields.items()):
                self._fields.update(fields)
                self._dirty = True
            if new_phase:
                self._look_at_waits()
            self._write_if_due(at_once=new_phase)

    def beat(self, counts: Mapping[str, float] | None = None) -> None:
        """The heartbeat, called every second: renews time, waiting_for and counts."""
        with self._lock:
            if counts is not None:
                self._fields["counts"] = dict(counts)
            self._look_at_waits()
            self._dirty = True
            self._write_if_due()

    def alarm(self, sentence: str) -> None:
        """Something that the user should know, and that does not end the run."""
        log.warning("%s", sentence)
        with self._lock:
            alarms = [a for a in self._fields["alarms"] if a["text"] != sentence]
            count = 1 + sum(a["count"] for a in self._fields["alarms"] if a["text"] == sentence)
            alarms.append({"time": round(time.time(), 3), "text": sentence, "count": count})
            self._fields["alarms"] = alarms[-_MAX_ALARMS:]
            self._dirty = True
            self._write_if_due()

    def flush(self) -> None:
        """Writes now if anything changed."""
        with self._lock:
            self._write_if_due(at_once=True)

    def _look_at_waits(self) -> None:
        groups = self._waits.summary()
        self._fields["waiting_for"] = groups[:_MAX_GROUPS]
        self._fields["waits"] = sum(group["count"] for group in groups)

    def _write_if_due(self, at_once: bool = False) -> None:
        now = self._clock()
        if not self._dirty or not (at_once or now - self._written_at >= _MIN_INTERVAL_S):
            return
        self._fields["time"] = round(time.time(), 3)
        self._written_at = now  # also when it fails: a full disk is not asked 1000 times a second
        try:
            write_atomically(self._path, to_line(self._fields))
            self._dirty = False
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("status.json cannot be written: %s; the run goes on", error)


def read_status(run_folder: RunFolder) -> dict[str, Any]:
    """The fields of status.json; empty when it is absent or unreadable."""
    try:
        value = json.loads(run_folder.status.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
