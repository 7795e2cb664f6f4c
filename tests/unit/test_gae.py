"""Token-level advantages and what a critic minimises, by hand and against the definitions.

GAE's is the weighted mean of all k-step estimates, here in plain floats.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arealite.algorithms.advantages import gae
from arealite.algorithms.values import explained_variance, value_loss


def test_three_tokens_by_hand() -> None:
    # delta_3 = 1 - 0.5 = 0.5; delta_2 = 0.9 * 0.5 - 0.4 = 0.05; delta_1 = 0.9 * 0.4 - 0.2 = 0.16
    # A_3 = 0.5; A_2 = 0.05 + 0.72 * 0.5 = 0.41; A_1 = 0.16 + 0.72 * 0.41 = 0.4552
    found = gae([0.0, 0.0, 1.0], [0.2, 0.4, 0.5], 0.9, 0.8)
    assert found == pytest.approx([0.4552, 0.41, 0.5], rel=1e-12)


def test_the_two_ends_of_lambda() -> None:
    rewards, values = [0.5, -1.0, 2.0], [0.3, 0.1, 0.7]
    # lambda 0: the one-step error; lambda 1: what is still to come, less what was expected
    assert gae(rewards, values, 1.0, 0.0) == pytest.approx([0.3, -0.4, 1.3])
    assert gae(rewards, values, 1.0, 1.0) == pytest.approx([1.2, 0.9, 1.3])
    assert gae(rewards, values, 0.5, 1.0) == pytest.approx([0.2, -0.1, 1.3])
    assert gae([3.0], [0.0], 0.9, 0.9) == [3.0]
    assert gae([], [], 1.0, 1.0) == []


def k_step(rewards: list[float], values: list[float], t: int, k: int, discount: float) -> float:
    """A_t^(k) = -V_t + r_t + gamma r_(t+1) + ... + gamma^k V_(t+k)."""
    earned = sum(discount**i * rewards[t + i] for i in range(min(k, len(rewards) - t)))
    end = values[t + k] if t + k < len(values) else 0.0
    return earned + discount**k * end - values[t]


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.3, 0.95]),
)
def test_it_is_the_weighted_mean_of_all_k_step_estimates(
    n: int, seed: int, discount: float, gae_lambda: float
) -> None:
    rng = random.Random(seed)
    rewards, values = ([rng.gauss(0, 1) for _ in range(n)] for _ in range(2))
    for t, found in enumerate(gae(rewards, values, discount, gae_lambda)):
        # beyond the end all estimates are the same: their weights sum up to lambda^(n - t)
        terms = [
            (1 - gae_lambda) * gae_lambda ** (k - 1) * k_step(rewards, values, t, k, discount)
            for k in range(1, n - t + 1)
        ]
        rest = gae_lambda ** (n - t) * k_step(rewards, values, t, n - t, discount)
        assert found == pytest.approx(math.fsum([*terms, rest]), rel=1e-9, abs=1e-9)


def test_the_value_loss_by_hand() -> None:
    old, returns = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    values = torch.tensor([0.1, 0.5, -0.5, 1.0])
    loss, clipped = value_loss(values, old, returns, 0.2)
    # 0.9^2 / 2; moved by 0.5 it counts as moved by 0.2: 0.8^2 / 2; away from R it counts in full
    assert loss.tolist() == pytest.approx([0.405, 0.32, 1.125, 0.0])
    assert clipped.tolist() == [False, True, False, False]
    free, none = value_loss(values, old, returns, None)
    assert free.tolist() == pytest.approx([0.405, 0.125, 1.125, 0.0])
    assert not none.any()


def reference(v: float, old: float, r: float, eps: float) -> float:
    bound = old + min(max(v - old, -eps), eps)
    return max((v - r) ** 2, (bound - r) ** 2) / 2


@pytest.mark.parametrize("seed", range(4))
def test_the_value_loss_and_its_gradient_against_a_reference(seed: int) -> None:
    rng = random.Random(seed)
    told = [(rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 2)) for _ in range(60)]
    columns = [torch.tensor(c, dtype=torch.float64) for c in zip(*told, strict=True)]
    values = columns[0].requires_grad_()
    loss, _ = value_loss(values, columns[1], columns[2], 0.4)
    assert loss.tolist() == pytest.approx([reference(*t, 0.4) for t in told], rel=1e-12)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    for (v, old, r), slope in zip(told, values.grad.tolist(), strict=True):
        high, low = (reference(v + s, old, r, 0.4) for s in (1e-6, -1e-6))
        assert slope == pytest.approx((high - low) / 2e-6, rel=1e-5, abs=1e-7)


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0, 5.0])
    assert explained_variance(returns + 3.0, returns) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(4), returns) == 0.0
    # residuals 0, 0, 0, 4: variance 3; returns: mean 2, variance 14 / 4
    assert explained_variance(torch.tensor([0.0, 1.0, 2.0, 1.0]), returns) == pytest.approx(
        1 - 3 / 3.5
    )
    assert explained_variance(torch.zeros(2), torch.ones(2)) == 0.0
    assert explained_variance(torch.zeros(0), torch.zeros(0)) == 0.0
