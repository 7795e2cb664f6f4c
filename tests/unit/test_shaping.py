"""Rewards on their way to the advantages, by hand."""

from __future__ import annotations

import pytest
from training_support import algorithm, trajectory

from arealite.algorithms.shaping import overlong_penalty, shaped
from arealite.data.batch import to_batch
from arealite.types import Episode


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(1, 0.0), (12, 0.0), (13, -0.25), (14, -0.5), (16, -1.0), (40, -1.0)],
)
def test_the_overlong_penalty_is_a_straight_line_to_its_end(length: int, penalty: float) -> None:
    assert overlong_penalty(length, 16, 4, 1.0) == penalty
    assert overlong_penalty(length, 16, 4, 0.5) == 0.5 * penalty


def test_rewards_are_moved_then_scaled_then_clipped() -> None:
    assert shaped(1.0, -0.5, 10.0, None) == 5.0
    assert shaped(1.0, -0.5, 10.0, 2.0) == 2.0
    assert shaped(0.0, -0.5, 10.0, 2.0) == -2.0
    assert shaped(0.6, -0.5, 10.0, 2.0) == pytest.approx(1.0)


def test_shaping_reaches_the_advantages_and_not_the_samples() -> None:
    plain = {"adv_baseline": "none", "adv_norm": "none"}
    long, brief = trajectory(1.0, [0] * 14), trajectory(1.0, [0] * 3)
    rule = algorithm(
        16,
        overlong_share=0.25,
        overlong_penalty_factor=2.0,
        reward_scaling=3.0,
        reward_clip=2.5,
        **plain,
    )
    assert rule.credit([Episode("0:0", 0, (long, brief))]) == [[0.0, 2.5]]
    assert long.reward == 1.0


def test_a_truncated_sample_leaves_the_loss_but_not_the_baseline() -> None:
    cut = trajectory(1.0, [0] * 5, truncated=True)
    group = Episode("0:0", 0, (cut, trajectory(0.0, [0] * 2), trajectory(0.5, [0] * 3)))
    rule = algorithm(adv_norm="none", mask_truncated_completions=True)
    assert rule.credit([group]) == [[None, -0.5, 0.0]]  # the mean is 0.5, of all three
    batch = to_batch([group], rule, 0, 0)
    assert batch.n_tokens == 5
    assert [s.advantage for s in batch.samples] == [-0.5]
    assert algorithm(adv_norm="none").credit([group]) == [[0.5, -0.5, 0.0]]


def test_truncated_samples_do_not_count_in_the_norm_of_the_batch() -> None:
    cut = trajectory(9.0, [0] * 5, truncated=True)
    group = Episode("0:0", 0, (cut, trajectory(0.0, [0]), trajectory(1.0, [0])))
    rule = algorithm(adv_baseline="none", adv_norm="batch", mask_truncated_completions=True)
    (found,) = rule.credit([group])
    assert found[0] is None
    assert found[1:] == pytest.approx([-1.0, 1.0], abs=1e-5)
