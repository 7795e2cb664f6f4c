"""Advantages against numbers computed by hand, an independent reference, and their invariants."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_support import algorithm

from arealite.algorithms.advantages import (
    less_group_mean,
    less_others_mean,
    over_group_std,
    whitened,
)
from arealite.types import Episode, Trajectory

Group = list[tuple[float, int]]
"""(reward, sampled tokens) of each sample."""


def credited(groups: list[Group], **actor: Any) -> list[list[float]]:
    episodes = [
        Episode(f"0:{g}", 0, tuple(Trajectory([1] * (k + 1), [0] + [1] * k, [0.0] * (k + 1),
                                              [-1] + [0] * k, r) for r, k in group))
        for g, group in enumerate(groups)
    ]  # fmt: skip
    return [
        [float(a) for a in group if a is not None] for group in algorithm(**actor).credit(episodes)
    ]


def test_grpo_by_hand() -> None:
    # mean 0.5, population standard deviation 0.5
    rewards = [1.0, 0.0, 1.0, 0.0]
    centred = less_group_mean(rewards)
    assert centred == [0.5, -0.5, 0.5, -0.5]
    assert over_group_std(centred, rewards) == pytest.approx([1.0, -1.0, 1.0, -1.0], abs=1e-5)
    # mean 1/3; deviations 2/3, -1/3, -1/3; standard deviation sqrt(2)/3
    root = math.sqrt(2.0)
    assert credited([[(1.0, 3), (0.0, 1), (0.0, 2)]]) == [
        pytest.approx([root, -root / 2, -root / 2], abs=1e-5)
    ]


def test_rloo_by_hand() -> None:
    assert less_others_mean([1.0, 0.0, 0.5]) == pytest.approx([0.75, -0.75, 0.0])
    assert less_others_mean([0.7]) == [0.0]


def test_reinforce_pp_by_hand() -> None:
    # tokens: 1, 1, 1 and -1: mean 0.5, variance (3 * 0.25 + 2.25) / 4 = 0.75
    found = credited([[(1.0, 3)], [(-1.0, 1)]], adv_baseline="none", adv_norm="batch")
    root = math.sqrt(0.75)
    assert found == [[pytest.approx(0.5 / root, abs=1e-5)], [pytest.approx(-1.5 / root, abs=1e-5)]]


def test_rewards_are_compared_with_those_of_the_same_name() -> None:
    def of(name: str, reward: float) -> Trajectory:
        return Trajectory([1, 2], [0, 1], [0.0, -1.0], [-1, 0], reward, name=name)

    # Two games of a player against a judge: player 1 and 0, judge 5 and 7.
    episode = Episode("0:0", 0, (of("player", 1), of("judge", 5), of("player", 0), of("judge", 7)))
    assert algorithm(adv_norm="none").credit([episode]) == [[0.5, -1.0, -0.5, 1.0]]
    assert algorithm(adv_norm="none", adv_baseline="leave_one_out").credit([episode]) == [
        [1.0, -2.0, -1.0, 2.0]
    ]
    [divided] = algorithm().credit([episode])
    assert divided == pytest.approx([1.0, -1.0, -1.0, 1.0], abs=1e-4)


def test_samples_outside_the_loss_do_not_count_in_the_batch() -> None:
    assert whitened([[1.0, 100.0], [-1.0]], [[2, 0], [2]]) == [
        pytest.approx([1.0, 100.0], abs=1e-3),
        pytest.approx([-1.0], abs=1e-5),
    ]
    assert whitened([[3.0, 3.0], [3.0]], [[1, 1], [4]]) == [[0.0, 0.0], [0.0]]
    assert whitened([[3.0]], [[0]]) == [[0.0]]
    assert whitened([], []) == []


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_equal_rewards_and_lone_samples_are_worth_exactly_nothing(baseline: str, norm: str) -> None:
    groups = [[(0.1, 1)] * 3, [(0.7, 2)]]
    found = credited(groups, adv_baseline=baseline, adv_norm=norm)
    assert found == [[0.0, 0.0, 0.0], [0.0]]


GROUPS = st.lists(
    st.lists(
        st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 7.0]), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=5,
)
CHOICES = [
    (baseline, norm)
    for baseline in ("group", "leave_one_out", "none")
    for norm in ("group", "batch", "none")
    if (baseline, norm) != ("none", "group")
]


def _reference(groups: list[Group], baseline: str, norm: str) -> list[list[float]]:
    """The formulas with the standard library's statistics, sample by sample."""
    found = []
    for group in groups:
        rewards = [r for r, _ in group]
        row = []
        for i, r in enumerate(rewards):
            others = rewards[:i] + rewards[i + 1 :]
            take = {"group": statistics.mean(rewards), "none": 0.0}.get(
                baseline, statistics.mean(others) if others else r
            )
            row.append(r - take)
        if norm == "group":
            row = [a / (statistics.pstdev(rewards) + 1e-6) for a in row]
        found.append(row)
    if norm == "batch":
        flat = [
            a
            for row, group in zip(found, groups, strict=True)
            for a, (_, k) in zip(row, group, strict=True)
            for _ in range(k)
        ]
        mean, std = statistics.mean(flat), statistics.pstdev(flat)
        found = [[(a - mean) / (std + 1e-6) for a in row] for row in found]
    return found


@pytest.mark.parametrize(("baseline", "norm"), CHOICES)
@settings(max_examples=60, deadline=None)
@given(groups=GROUPS)
def test_every_combination_against_a_reference(
    baseline: str, norm: str, groups: list[Group]
) -> None:
    found = credited(groups, adv_baseline=baseline, adv_norm=norm)
    for mine, other in zip(found, _reference(groups, baseline, norm), strict=True):
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-6)


def test_advantages_do_not_see_an_offset_or_a_scale() -> None:
    rewards = [(0.1, 1), (0.4, 2), (1.0, 3), (0.1, 4)]
    moved = [(3.0 + 20.0 * r, k) for r, k in rewards]
    for norm in ("group", "batch"):
        (found,), (expected,) = credited([moved], adv_norm=norm), credited([rewards], adv_norm=norm)
        assert found == pytest.approx(expected, abs=1e-4)
    assert sum(credited([rewards])[0]) == pytest.approx(0.0, abs=1e-12)
