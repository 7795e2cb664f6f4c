"""Which episodes are trained, and how many run at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arealite.errors import ConfigError
from arealite.rollout.concurrency import Concurrency
from arealite.rollout.filters import keep_of
from arealite.types import Episode, Trajectory


def _episode(*samples: tuple[float, bool]) -> Episode:
    return Episode(
        "0:0",
        0,
        tuple(
            Trajectory([1, 2], [0, 1], [0.0, -1.0], [-1, 0], reward, truncated=truncated)
            for reward, truncated in samples
        ),
    )


def test_nothing_is_filtered_unless_asked() -> None:
    assert keep_of([])(_episode((0.0, True), (0.0, True)))


def test_rewards_of_different_names_are_not_compared() -> None:
    keep = keep_of(["equal_rewards"])
    one, other = (
        Trajectory([1, 2], [0, 1], [0.0, -1.0], [-1, 0], reward, name=name)
        for name, reward in (("player", 1.0), ("judge", 0.5))
    )
    assert not keep(Episode("0:0", 0, (one, other, one, other)))
    assert keep(Episode("0:0", 0, (one, other, replace(one, reward=0.0), other)))


def test_equal_rewards_teach_nothing() -> None:
    keep = keep_of(["equal_rewards"])
    assert not keep(_episode((0.1, False), (0.1, False)))
    assert keep(_episode((0.1, False), (1.0, False)))


def test_overlong_is_an_episode_without_a_complete_sample() -> None:
    keep = keep_of(["overlong"])
    assert not keep(_episode((0.0, True), (1.0, True)))
    assert keep(_episode((0.0, True), (1.0, False)))


def test_a_users_filter_is_one_of_several(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def should_accept(episode):\n    return episode.reward > 0.5\n")
    keep = keep_of(["equal_rewards", f"{file}:should_accept"])
    assert keep(_episode((0.5, False), (1.0, False)))
    assert not keep(_episode((0.1, False), (0.2, False)))  # the user's says no
    assert not keep(_episode((1.0, False), (1.0, False)))  # the shipped one says no


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("equal_reward", "'equal_reward' names no code"),
        ("no.such:thing", "cannot be imported"),
        ("math:pi", "is a float, not a function; a filter is called as should_accept"),
        ("os:getcwd", "does not fit"),
    ],
)
def test_a_filter_that_is_none_is_told(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        keep_of([name])


@pytest.mark.parametrize(
    "code",
    [
        "async def should_accept(episode):\n    return False\n",
        "class Filter:\n    async def __call__(self, episode):\n        return False\n"
        "should_accept = Filter()\n",
    ],
)
def test_an_async_filter_is_refused_before_anything_runs(tmp_path: Path, code: str) -> None:
    """Its answer would be a coroutine, which is true: everything would be kept."""
    (file := tmp_path / "waits.py").write_text(code)
    with pytest.raises(ConfigError, match=r"waits\.py:should_accept is async; write `def should"):
        keep_of([f"{file}:should_accept"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return episode.row['level'] > 1", r"raised KeyError: 'level' \(.*, line 2\) for row 0:0"),
        ("raise SystemExit(3)", r"raised SystemExit: 3 \(.*, line 2\) for row 0:0"),
        (
            "class Dumb(Exception):\n        def __str__(self): raise ValueError\n    raise Dumb",
            r"raised Dumb: \(its __str__ raises ValueError\) \(.*, line 4\) for row 0:0",
        ),
        ("pass", "returned None for row 0:0; it returns True, which trains the episode, or False"),
        ("return 0.0", r"returned 0\.0 for row 0:0"),
        ("return 'no'", "returned 'no' for row 0:0"),
    ],
)
def test_a_filter_that_breaks_is_named_with_its_row(tmp_path: Path, body: str, words: str) -> None:
    (file := tmp_path / "breaks.py").write_text(f"def should_accept(episode):\n    {body}\n")
    keep = keep_of([f"{file}:should_accept"])
    with pytest.raises(ConfigError, match=rf"^filter .*breaks\.py:should_accept {words}"):
        keep(_episode((1.0, False)))


@pytest.mark.parametrize("true", [True, False])
def test_numpys_truth_values_are_answers(tmp_path: Path, true: bool) -> None:
    code = f"import numpy as np\ndef should_accept(episode):\n    return np.bool_({true})\n"
    (file := tmp_path / "counts.py").write_text(code)
    assert keep_of([f"{file}:should_accept"])(_episode((1.0, False))) is true


def test_concurrency_grows_while_used_and_backs_off_from_a_queue() -> None:
    flow = Concurrency(start=8, most=20)
    assert flow.look(episodes=8, running=64, waiting=0, refused=0) == 10
    assert flow.look(episodes=9, running=64, waiting=0, refused=0) == 10  # not all of it is used
    assert flow.look(episodes=10, running=64, waiting=16, refused=0) == 12  # a short queue is good
    assert flow.look(episodes=12, running=64, waiting=17, refused=0) == 9
    assert flow.look(episodes=9, running=64, waiting=0, refused=1) == 6  # 429
    assert flow.look(episodes=6, running=64, waiting=0, refused=1) == 8  # an old 429 is forgotten
    for refused in range(2, 12):
        flow.look(episodes=8, running=64, waiting=0, refused=refused)
    assert flow.limit == 1
    for _ in range(10):
        flow.look(episodes=99, running=64, waiting=0, refused=11)
    assert flow.limit == 20
