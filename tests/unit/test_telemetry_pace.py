"""What holds a version up: shares by hand, and the one word for them."""

import pytest

from arealite.telemetry.pace import Pace, bound_by, verdict


def test_shares_are_of_the_time_between_two_versions() -> None:
    pace = Pace(iter([100.0, 110.0, 114.0]).__next__)
    first = {"time/update_s": 3.0, "engine/idle_s": 7.0, "engine/servers": 2}
    assert pace.shares(first) == {}, "nobody knows when it began"
    second = {
        "time/wait_batch_s": 2.0, "time/annotate_s": 1.0, "time/update_s": 4.0,
        "time/publish_s": 0.5, "engine/idle_s": 9.0, "engine/servers": 2,
    }  # fmt: skip
    assert pace.shares(second) == pytest.approx(
        {
            "share/waiting": 0.2,
            "share/training": 0.5,
            "share/publishing": 0.05,
            "share/engine_idle": 2 / 2 / 10,
        }
    )
    restarted = {"time/update_s": 1.0, "engine/idle_s": 0.5, "engine/servers": 2}
    assert pace.shares(restarted) == pytest.approx(
        {"share/waiting": 0.0, "share/training": 0.25, "share/publishing": 0.0}
    )


def test_a_share_is_never_more_than_the_whole() -> None:
    pace = Pace(iter([0.0, 1.0]).__next__)
    pace.shares({})
    assert pace.shares({"time/wait_batch_s": 1.5})["share/waiting"] == 1.0


@pytest.mark.parametrize(
    ("waiting", "training", "publishing", "engine_idle", "word"),
    [
        (0.6, 0.3, 0.1, 0.05, "generation"),
        (0.6, 0.3, 0.1, None, "generation"),
        (0.1, 0.8, 0.1, 0.7, "training"),
        (0.2, 0.3, 0.5, 0.5, "publishing"),
        # Synchronous: the servers are idle while the trainer trains, not while it waits.
        (0.6, 0.4, 0.0, 0.4, "generation"),
        # Both stand still for 0.5 of the time at least: somebody else works.
        (0.7, 0.2, 0.1, 0.8, "reward"),
    ],
)
def test_the_word(
    waiting: float, training: float, publishing: float, engine_idle: float | None, word: str
) -> None:
    row = {
        "share/waiting": waiting, "share/training": training, "share/publishing": publishing,
        "share/engine_idle": engine_idle,
    }  # fmt: skip
    assert bound_by(row) == word


def test_the_line() -> None:
    row = {"share/waiting": 0.62, "share/training": 0.3, "share/engine_idle": 0.031}
    assert verdict(row) == "generation (trainer idle 62%, engine idle 3%)"
    assert verdict({"reward/mean": 0.5}) == ""
