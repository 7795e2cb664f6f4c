"""The ledger over every interleaving of a run's life, its crashes, and what they leave of the file.

A state machine drives the real Ledger beside plain sets of ids, one per fate; it crashes at any
moment, with the last lines lost or torn, and goes on from any checkpoint that is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from arealite.ledger import AccountError, Ledger, read_ledger
from arealite.ledger.account import FATES


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "ledger.jsonl"
        self.alarms: list[str] = []
        self.in_flight: set[str] = set()
        self.finished: dict[str, int] = {}
        self.fates: dict[str, str] = {}
        self.checkpoints: list[tuple[int, dict[str, Any], dict[str, int], dict[str, str], int]] = []
        self.version = 0

    @initialize(rows=st.integers(1, 12), compact_bytes=st.sampled_from([1, 2000, 1 << 20]))
    def begin(self, rows: int, compact_bytes: int) -> None:
        self.rows, self.compact_bytes = rows, compact_bytes
        self.ledger = Ledger(self.path, rows, self.alarms.append, compact_bytes=compact_bytes)

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @property
    def to_do(self) -> list[str]:
        ids = [f"{e}:{i}" for e in range(3) for i in range(self.rows)]
        known = self.in_flight | self.finished.keys() | self.fates.keys()
        return [i for i in ids if i not in known]

    @precondition(lambda self: self.to_do)
    @rule(data=st.data())
    def plan(self, data: Any) -> None:
        sample_id = data.draw(st.sampled_from(self.to_do))
        self.ledger.note("planned", id=sample_id, version=self.version)
        self.in_flight.add(sample_id)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), event=st.sampled_from(["finished", "filtered", "failed"]))
    def end(self, data: Any, event: str) -> None:
        sample_id = data.draw(st.sampled_from(sorted(self.in_flight)))
        tokens = {} if event == "failed" else {"tokens": data.draw(st.integers(0, 9))}
        self.ledger.note(event, id=sample_id, **tokens)
        self.in_flight.remove(sample_id)
        if event == "finished":
            self.finished[sample_id] = tokens["tokens"]
        else:
            self.fates[sample_id] = event

    @precondition(lambda self: self.finished)
    @rule(data=st.data())
    def train(self, data: Any) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.finished)), min_size=1, unique=True))
        self.version += 1
        self.ledger.note("trained", ids=ids, version=self.version)
        for sample_id in ids:
            del self.finished[sample_id]
            self.fates[sample_id] = "trained"

    @precondition(lambda self: "trained" in self.fates.values())
    @rule()
    def leave_out(self) -> None:
        before = self.ledger.account.counts["left_out"]
        self.ledger.note("left_out", rows=1, version=self.version, updates=1)
        assert self.ledger.account.counts["left_out"] == before + 1

    @precondition(lambda self: self.finished)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        sample_id = data.draw(st.sampled_from(sorted(self.finished)))
        self.ledger.note("stale", id=sample_id)
        del self.finished[sample_id]
        self.fates[sample_id] = "stale"

    @rule()
    def commit(self) -> None:
        sequence, state = self.ledger.state()
        self.ledger.committed(self.version, sequence)
        kept = (sequence, state, dict(self.finished), dict(self.fates), self.version)
        self.checkpoints = [*self.checkpoints[-1:], kept]

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data(), older=st.booleans())
    def crash(self, data: Any, older: bool) -> None:
        """Lines that were not yet written are lost; the last one may be there by half."""
        self.ledger.close()
        found = self.path.read_bytes()
        kept = data.draw(st.integers(0, len(found)) | st.just(len(found)))
        self.path.write_bytes(found[:kept])
        checkpoint = self.checkpoints[0 if older else -1]
        sequence, state, finished, fates, version = checkpoint
        self.ledger = Ledger(
            self.path, self.rows, self.alarms.append, state, sequence,
            compact_bytes=self.compact_bytes,
        )  # fmt: skip
        self.in_flight, self.finished, self.fates = set(), dict(finished), dict(fates)
        self.checkpoints, self.version = [checkpoint], version
        assert not self.alarms, "a torn tail is no damage"

    @rule(data=st.data(), event=st.sampled_from(["planned", "finished", "stale", "trained"]))
    def what_cannot_be_true_is_refused(self, data: Any, event: str) -> None:
        if event == "planned":
            ids = {*self.in_flight, *self.finished, *self.fates, f"0:{self.rows}"}
        elif event == "finished":
            ids = {*self.finished, *self.fates, *self.to_do}
        else:
            ids = {*self.in_flight, *self.fates, *self.to_do}
        if not ids:
            return
        sample_id = data.draw(st.sampled_from(sorted(ids)))
        fields: dict[str, Any] = {"id": sample_id, "ids": [sample_id], "tokens": 1, "version": 0}
        before = self.ledger.state()
        with pytest.raises(AccountError):
            self.ledger.note(event, **fields)
        assert self.ledger.state() == before

    @invariant()
    def every_id_is_in_exactly_one_place(self) -> None:
        if not hasattr(self, "ledger"):
            return
        account = self.ledger.account
        assert account.problems() == []
        flying = {i for i, tokens in account.open.items() if tokens < 0}
        assert flying == self.in_flight
        assert {i: t for i, t in account.open.items() if t >= 0} == self.finished
        assert all(i in account.settled for i in self.fates)
        assert len(account.settled) == len(self.fates)
        for fate in FATES:
            assert account.counts[fate] == list(self.fates.values()).count(fate)
        assert [i for i in self.to_do if account.is_known(i)] == []

    @invariant()
    def the_file_says_the_same(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.flush()
        reading = read_ledger(self.path)
        assert not reading.damage
        assert reading.account is not None
        assert reading.account.to_json() == self.ledger.account.to_json()
        assert reading.sequence == self.ledger.sequence


def test_every_id_is_accounted_exactly_once_in_every_interleaving() -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(max_examples=80, stateful_step_count=30, deadline=None, derandomize=True),
    )


def lines_of(path: Path, n: int = 6) -> list[bytes]:
    ledger = Ledger(path, 4)
    for i in range(n):
        ledger.note("planned", id=f"{i // 4}:{i % 4}", version=0)
    ledger.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b"0:1", b"0:3"), *lines[3:]], "its digest"),
        (lambda lines: [*lines[:2], *lines[3:]], "number 3 follows 1"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "number 2 follows 0"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "number 2 follows 2"),
        (lambda lines: [*lines[:2], b"{}\n", *lines[3:]], "its digest"),
        (lambda lines: lines[1:], "it does not begin with an account"),
    ],
    ids=["changed", "deleted", "swapped", "twice", "foreign", "beheaded"],
)
def test_a_line_that_was_touched_is_found(tmp_path: Path, damage: Any, says: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(damage(lines_of(path))))
    reading = read_ledger(path)
    assert says in reading.damage
    assert not reading.torn


def test_the_ledger_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, 100, compact_bytes=5000)
    for epoch in range(50):
        ids = [f"{epoch}:{i}" for i in range(100)]
        for sample_id in ids:
            ledger.note("planned", id=sample_id, version=epoch)
            ledger.note("finished", id=sample_id, tokens=3)
        ledger.note("trained", ids=ids, version=epoch + 1)
        ledger.committed(epoch + 1, ledger.state()[0])
    ledger.close()
    assert path.stat().st_size < 30_000
    reading = read_ledger(path)
    assert reading.account is not None
    assert reading.account.counts["trained"] == 5000
    assert reading.account.settled.whole == 50
