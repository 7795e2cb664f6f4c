"""Advantages and losses against numbers computed by hand and an independent float64 reference."""

from __future__ import annotations

import math
import random

import pytest
import torch
from training_support import algorithm, tokens_of

from arealite.types import Episode, Trajectory


def decoupled_ppo_loss(
    logprobs: torch.Tensor,
    prox: torch.Tensor,
    behave: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
    cap: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    grpo = algorithm(eps_clip=low, eps_clip_higher=high, behave_imp_weight_cap=cap)
    return grpo.loss(logprobs, tokens_of(behave, advantages, prox=prox))


def _loss(
    ratio: float, weight: float, advantage: float, low: float = 0.2, high: float = 0.3
) -> tuple[float, float, float]:
    """Loss, clipped and capped tokens of one token with pi/pi_prox and pi_prox/pi_behave given."""
    behave = torch.tensor([-2.0])
    prox = behave + math.log(weight)
    loss, stats = decoupled_ppo_loss(
        prox + math.log(ratio), prox, behave, torch.tensor([advantage]), low, high, 5.0
    )
    return float(loss), float(stats["clip_fraction"]), float(stats["cap_fraction"])


@pytest.mark.parametrize(
    ("ratio", "weight", "advantage", "loss", "clipped", "capped"),
    [
        (1.0, 1.0, 1.0, -1.0, 0, 0),
        (1.1, 1.0, 2.0, -2.2, 0, 0),
        (1.25, 1.0, 1.0, -1.25, 0, 0),  # above 1 + low, below 1 + high: clip-higher lets it
        (1.5, 1.0, 1.0, -1.3, 1, 0),  # cut at 1 + high
        (0.5, 1.0, 1.0, -0.5, 0, 0),  # a good token that became rarer may always come back
        (0.5, 1.0, -1.0, 0.8, 1, 0),  # cut at 1 - low
        (1.5, 1.0, -1.0, 1.5, 0, 0),  # a bad token that became likelier is never clipped
        (1.0, 3.0, 1.0, -3.0, 0, 0),  # the behaviour weight multiplies
        (1.5, 0.5, -2.0, 1.5, 0, 0),
        (1.0, 9.0, 1.0, -5.0, 0, 1),  # ... up to its cap
        (0.5, 9.0, -1.0, 4.0, 1, 1),
    ],
)
def test_the_loss_of_one_token_by_hand(
    ratio: float, weight: float, advantage: float, loss: float, clipped: int, capped: int
) -> None:
    found = _loss(ratio, weight, advantage)
    assert found == pytest.approx((loss, clipped, capped), abs=1e-5)


def test_with_prox_equal_to_behave_it_is_plain_ppo() -> None:
    generator = torch.Generator().manual_seed(1)
    behave = -torch.rand(200, generator=generator) * 5
    logprobs = behave + 0.4 * torch.randn(200, generator=generator)
    advantages = torch.randn(200, generator=generator)
    ratio = (logprobs - behave).exp()
    plain = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()
    loss, stats = decoupled_ppo_loss(logprobs, behave, behave, advantages, 0.2, 0.2, 5.0)
    torch.testing.assert_close(loss, plain)
    assert float(stats["behave_weight"]) == 200.0


def _as_at_first(
    logprobs: torch.Tensor, prox: torch.Tensor, behave: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """The loss as the first version of the demo had it (commit 5a4eca7), operation by operation."""
    ratio = torch.exp(logprobs - prox)
    objective = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return -(torch.exp(prox - behave).clamp(max=5.0) * objective).sum()


@pytest.mark.parametrize("annotated", [False, True])
def test_the_demos_loss_and_gradient_are_what_they_were_bit_for_bit(annotated: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    behave = -torch.rand(3000, generator=generator) * 5
    theta = (behave + 0.5 * torch.randn(3000, generator=generator)).requires_grad_()
    prox = behave + 0.7 * torch.randn(3000, generator=generator) if annotated else None
    advantages = torch.randn(3000, generator=generator)
    total, _ = algorithm().loss(theta, tokens_of(behave, advantages, prox=prox))
    old = theta.detach() if prox is None else prox
    (now,) = torch.autograd.grad(total / 7, theta)
    first = _as_at_first(theta, old, behave, advantages)
    assert torch.equal(total, first)
    assert torch.equal(now, torch.autograd.grad(first / 7, theta)[0])


@pytest.mark.parametrize("seed", range(5))
def test_the_demos_advantages_are_what_they_were_bit_for_bit(seed: int) -> None:
    rng = random.Random(seed)
    rewards = [rng.choice([0.0, 0.1, 1.0]) for _ in range(8)]
    mean = math.fsum(rewards) / len(rewards)
    centred = [r - mean for r in rewards]
    std = math.sqrt(math.fsum(c * c for c in centred) / len(rewards))
    first = [c / (std + 1e-6) for c in centred]
    assert algorithm().credit([_episode(*rewards)]) == [first]


def _reference(
    rows: list[list[tuple[float, float, float]]],
    advantages: list[float],
    low: float,
    high: float,
    cap: float,
) -> float:
    """Equation 5 of AReaL in Python floats, token by token over a ragged batch."""
    total = 0.0
    for row, advantage in zip(rows, advantages, strict=True):
        for theta, prox, behave in row:
            u = math.exp(theta) / math.exp(prox)
            kept = min(max(u, 1.0 - low), 1.0 + high)
            objective = min(u * advantage, kept * advantage)
            total -= min(math.exp(prox) / math.exp(behave), cap) * objective
    return total


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_of_a_ragged_batch_against_float64(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        [
            (base + rng.gauss(0, 0.5), base + rng.gauss(0, 0.5), base)
            for base in (-rng.expovariate(0.5) for _ in range(rng.randint(1, 40)))
        ]
        for _ in range(12)
    ]
    rows[0][0] = (-0.01, -9.0, -30.0)  # extreme ratios
    rows[1][0] = (-30.0, -1.0, -0.01)
    advantages = [rng.choice([-2.0, -0.5, 0.5, 3.0]) for _ in rows]
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.float64)
    each = torch.tensor(
        [a for row, a in zip(rows, advantages, strict=True) for _ in row], dtype=torch.float64
    )
    low, high, cap = 0.2, 0.28, 4.0
    loss, _ = decoupled_ppo_loss(flat[:, 0], flat[:, 1], flat[:, 2], each, low, high, cap)
    assert float(loss) == pytest.approx(_reference(rows, advantages, low, high, cap), rel=1e-10)


def test_the_gradient_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    behave = -torch.rand(60, generator=generator, dtype=torch.float64) * 5
    prox = behave + 0.5 * torch.randn(60, generator=generator, dtype=torch.float64)
    logprobs = prox + 0.3 * torch.randn(60, generator=generator, dtype=torch.float64)
    advantages = torch.randn(60, generator=generator, dtype=torch.float64)
    near = torch.stack([(logprobs - prox - math.log(edge)).abs() for edge in (0.8, 1.3)])
    logprobs = torch.where(near.amin(0) < 1e-3, prox, logprobs)  # the loss has a corner there

    def loss(values: torch.Tensor) -> torch.Tensor:
        return decoupled_ppo_loss(values, prox, behave, advantages, 0.2, 0.3, 2.0)[0]

    assert torch.autograd.gradcheck(loss, logprobs.clone().requires_grad_(), eps=1e-6, atol=1e-6)


def test_neither_prox_nor_behave_receives_a_gradient() -> None:
    theta = torch.tensor([-1.0, -2.0], requires_grad=True)
    behave = torch.tensor([-1.5, -1.5])
    loss, _ = decoupled_ppo_loss(
        theta, theta.detach(), behave, torch.tensor([1.0, -1.0]), 0.2, 0.2, 5.0
    )
    loss.backward()  # type: ignore[no-untyped-call]
    weights = (theta.detach() - behave).exp()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, -weights * torch.tensor([1.0, -1.0]))


def test_the_kl_estimate_is_k3_and_never_negative() -> None:
    behave, theta = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    _, stats = decoupled_ppo_loss(theta, theta, behave, torch.ones(2), 0.2, 0.2, 5.0)
    by_hand = (math.exp(-0.5) + 0.5 - 1.0) + (math.exp(1.0) - 1.0 - 1.0)
    assert float(stats["behave_kl"]) == pytest.approx(by_hand, rel=1e-5)


def _episode(*rewards: float) -> Episode:
    return Episode(
        "0:0", 0, tuple(Trajectory([1, 2], [0, 1], [0.0, -1.0], [-1, 0], r) for r in rewards)
    )


def test_rewards_are_scaled_after_the_bias() -> None:
    shaped = algorithm(adv_norm="none", reward_bias=-0.5, reward_scaling=10.0)
    (found,) = shaped.credit([_episode(0.0, 1.0)])
    assert found == pytest.approx([-5.0, 5.0])


def test_the_proximal_policy_is_chosen() -> None:
    logprobs, behave, one = torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([1.0])
    batch = tokens_of(behave, one)
    free, clipped = (
        float(algorithm(use_decoupled_loss=decoupled).loss(logprobs, batch)[0])
        for decoupled in (True, False)
    )
    assert free == pytest.approx(-math.e, rel=1e-5)  # ratio 1, behaviour weight e
    assert clipped == pytest.approx(-1.2, rel=1e-5)  # ratio e, cut at 1.2
    held = tokens_of(behave, one, prox=behave + 0.5)
    found = float(algorithm().loss(logprobs, held)[0])
    assert found == pytest.approx(-1.2 * math.exp(0.5), rel=1e-5)
