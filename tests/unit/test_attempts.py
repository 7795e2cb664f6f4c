"""When a run that has ended is started again."""

from __future__ import annotations

import pytest

from arealite.errors import (
    ArealiteError,
    CheckpointError,
    ConfigError,
    EnginesExhausted,
    ErrorBudgetSpent,
    Killed,
    NonFinite,
    Preempted,
    Stall,
)
from arealite.launch.attempts import Attempts

LOOP = "two starts in a row have added no checkpoint"


@pytest.mark.parametrize("kind", [EnginesExhausted, Stall, Killed, Preempted])
def test_what_may_pass_is_tried_again_up_to_the_cap(kind: type[ArealiteError]) -> None:
    newest = iter(range(10))
    attempts = Attempts(3, lambda: next(newest))
    assert [attempts.why_not(kind("x"), False) for _ in range(4)] == [
        "", "", "", "recover.retries allows 3",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [ConfigError, ErrorBudgetSpent, CheckpointError, NonFinite])
def test_what_would_come_again_is_not_tried(kind: type[ArealiteError]) -> None:
    assert Attempts(3, lambda: 1).why_not(kind("x"), False)


def test_a_crash_by_a_signal_is_tried_again_and_a_bug_is_not() -> None:
    assert Attempts(3, lambda: 1).why_not(ArealiteError("SIGSEGV"), True) == ""
    assert Attempts(3, lambda: 1).why_not(ArealiteError("a bug"), False)


def test_a_crash_loop_is_refused() -> None:
    versions = iter([-1, -1, -1])
    attempts = Attempts(9, lambda: next(versions))
    assert [attempts.why_not(Killed("x"), True) for _ in range(2)] == ["", LOOP]


def test_a_checkpoint_in_between_makes_it_none() -> None:
    versions = iter([-1, -1, 4, 4, 4])
    attempts = Attempts(9, lambda: next(versions))
    assert [attempts.why_not(Killed("x"), True) for _ in range(4)] == ["", "", "", LOOP]


def test_it_waits_longer_each_time() -> None:
    versions = iter(range(100))
    attempts = Attempts(9, lambda: next(versions))
    pauses = []
    for _ in range(8):
        attempts.why_not(Killed("x"), True)
        pauses.append(attempts.pause_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
