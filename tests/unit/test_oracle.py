"""An outside oracle: the papers' formulas in plain Python floats, sample by sample and token by
token, beside the library's tensors on random ragged batches; gradients by finite differences.

Nothing of arealite computes here but what is under test.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from training_support import algorithm, tokens_of

from arealite.algorithms.corrections import effective_sample_size
from arealite.config.presets import PRESETS
from arealite.data.micro_batch import MicroBatch


@dataclass(frozen=True)
class Told:
    """A sample: log-probabilities of its tokens by three policies, and its advantage."""

    theta: tuple[float, ...]
    prox: tuple[float, ...]
    behave: tuple[float, ...]
    advantage: float


Groups = list[list[Told]]


def ragged(seed: int, spread: float = 0.4, extreme: bool = True) -> Groups:
    """Groups of 1 to 5 samples of 0 to 12 tokens; 0: masked, as truncated or stale ones are."""
    rng = random.Random(seed)

    def sample() -> Told:
        n = rng.choice([0, 1, 2, 5, 12])
        behave = [-rng.expovariate(0.5) for _ in range(n)]
        prox = [b + rng.gauss(0, spread) for b in behave]
        theta = [p + rng.gauss(0, spread) for p in prox]
        advantage = rng.choice([-2.0, -0.5, 0.3, 1.7])
        return Told(tuple(theta), tuple(prox), tuple(behave), advantage)

    groups = [[sample() for _ in range(rng.randint(1, 5))] for _ in range(5)]
    if extreme:  # ratios of e^9, e^-29 and e^17
        groups[0].append(Told((-0.01, -3.0), (-9.0, -2.0), (-14.0, -2.5), 1.7))
        groups[0].append(Told((-30.0,), (-1.0,), (-0.01,), -0.5))
        groups[1].append(Told((-0.2, -1.0), (-17.2, -1.1), (-17.0, -1.0), -2.0))
    return groups


# --- the formulas


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, 1.0 - low), 1.0 + high)


def ppo(r: float, a: float, s: dict[str, Any]) -> float:
    """arXiv:1707.06347, equation 7; arXiv:1912.09729."""
    low, high = s.get("eps_clip", 0.2), s.get("eps_clip_higher") or s.get("eps_clip", 0.2)
    inner = min(r * a, clip(r, low, high) * a)
    return max(inner, s["c_clip"] * a) if s.get("c_clip") and a < 0 else inner


def sapo(r: float, a: float, s: dict[str, Any]) -> float:
    """arXiv:2511.20347."""
    tau = s.get("sapo_tau_pos", 1.0) if a > 0 else s.get("sapo_tau_neg", 1.05)
    return 4.0 / tau / (1.0 + math.exp(-tau * (r - 1.0))) * a


def objective(now: Told, t: int, theta: Sequence[float], s: dict[str, Any]) -> float:
    """J_t; `theta` may be moved for a difference quotient, what is held fixed is in `now`."""
    kind, a = s.get("policy_loss", "ppo"), now.advantage
    old = now.prox if s.get("use_decoupled_loss", True) else now.behave
    if kind == "reinforce":
        return a * theta[t]
    if kind == "gspo":  # arXiv:2507.18071, equations 5 and 7
        mean = sum(x - o for x, o in zip(theta, old, strict=True)) / len(theta)
        return ppo(math.exp(mean), a, s)
    if kind == "cispo":  # arXiv:2506.13585, equations 4 and 5
        held = math.exp(now.theta[t] - old[t])
        low, high = s.get("eps_clip", 0.2), s.get("eps_clip_higher") or s.get("eps_clip", 0.2)
        return clip(held, low, high) * a * theta[t]
    r = math.exp(theta[t] - old[t])
    return sapo(r, a, s) if kind == "sapo" else ppo(r, a, s)


def correction(now: Told, t: int, s: dict[str, Any]) -> float:
    """The weight of pi_prox against pi_behave."""
    if not s.get("use_decoupled_loss", True):
        return 1.0
    mode, cap = (
        s.get("behave_imp_weight_mode", "token_truncate"),
        s.get("behave_imp_weight_cap", 5.0),
    )
    floor = s.get("behave_imp_weight_floor", 0.0)
    logs = [p - b for p, b in zip(now.prox, now.behave, strict=True)]
    if mode == "token_truncate":  # arXiv:2505.24298, equation 5
        return min(math.exp(logs[t]), cap)
    if mode == "sequence_truncate":
        return min(math.prod(math.exp(x) for x in logs), cap)
    if mode == "token_mask":  # arXiv:2510.18855, IcePop's M(k)
        return math.exp(logs[t]) if floor <= math.exp(logs[t]) <= cap else 0.0
    if mode == "sequence_mask":
        whole = math.prod(math.exp(x) for x in logs)
        return whole if floor <= whole <= cap else 0.0
    if mode == "geometric_mask":
        mean = math.prod(math.exp(x) for x in logs) ** (1 / len(logs))
        return 1.0 if floor <= mean <= cap else 0.0
    return 1.0


def mean_over(groups: list[list[list[float]]], mode: str, max_new_tokens: int) -> float:
    """The four aggregations of per-token numbers."""
    samples = [sample for group in groups for sample in group]
    tokens = [x for sample in samples for x in sample]
    if mode == "token":
        return sum(tokens) / len(tokens)
    if mode == "sequence":
        means = [sum(sample) / len(sample) for sample in samples if sample]
        return sum(means) / len(means)
    if mode == "prompt":
        flat = [[x for sample in group for x in sample] for group in groups]
        means = [sum(group) / len(group) for group in flat if group]
        return sum(means) / len(means)
    return sum(tokens) / (len(samples) * max_new_tokens)


def reference(groups: Groups, s: dict[str, Any], thetas: list[list[Sequence[float]]]) -> float:
    """The whole loss of a batch."""
    each = [
        [
            [-correction(sample, t, s) * objective(sample, t, theta, s) for t in range(len(theta))]
            for sample, theta in zip(group, thetas_of_group, strict=True)
        ]
        for group, thetas_of_group in zip(groups, thetas, strict=True)
    ]
    return mean_over(each, s.get("loss_agg_mode", "token"), MAX_NEW_TOKENS)


# --- the library on the same numbers

MAX_NEW_TOKENS = 16


def library(
    groups: Groups, s: dict[str, Any], thetas: torch.Tensor, cuts: int = 1
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a batch in `cuts` micro-batches, as the trainer sums and divides it.

    thetas: [tokens] float64, sample by sample in the groups' order.
    """
    rule = algorithm(MAX_NEW_TOKENS, **s)
    weights = rule.weigh([[len(sample.theta) for sample in group] for group in groups])
    flat = [
        (sample, weight)
        for group, weights_of_group in zip(groups, weights, strict=True)
        for sample, weight in zip(group, weights_of_group, strict=True)
    ]
    own = thetas.split([len(sample.theta) for sample, _ in flat])
    samples = [(*pair, theta) for pair, theta in zip(flat, own, strict=True) if len(theta)]
    total, sums = torch.zeros((), dtype=torch.float64), {}
    for part in filter(None, (samples[i::cuts] for i in range(cuts))):
        loss, stats = rule.loss(torch.cat([theta for _, _, theta in part]), collated(part))
        total = total + loss
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in stats.items()}
    return total / len(thetas), {name: value / len(thetas) for name, value in sums.items()}


def collated(part: list[tuple[Told, float, torch.Tensor]]) -> MicroBatch:
    def column(of: Callable[[Told, float], Sequence[float]]) -> torch.Tensor:
        return torch.tensor([x for told, w, _ in part for x in of(told, w)], dtype=torch.float64)

    counts = torch.tensor([len(told.theta) for told, _, _ in part])
    return tokens_of(
        behave=column(lambda told, _: told.behave),
        advantages=column(lambda told, _: [told.advantage] * len(told.theta)),
        sequence=torch.arange(len(part)).repeat_interleave(counts),
        weights=column(lambda told, weight: [weight] * len(told.theta)),
        prox=column(lambda told, _: told.prox),
    )


def all_thetas(groups: Groups) -> torch.Tensor:
    return torch.tensor([x for g in groups for told in g for x in told.theta], dtype=torch.float64)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "ppo": {},
    "clip-higher": {"eps_clip": 0.2, "eps_clip_higher": 0.28},
    "dual clip": {"c_clip": 3.0},
    "coupled": {"use_decoupled_loss": False},
    "gspo": {"policy_loss": "gspo", "eps_clip": 0.03, "eps_clip_higher": 0.04},
    "gspo, dual clip": {"policy_loss": "gspo", "c_clip": 1.5},
    "cispo": {"policy_loss": "cispo", "eps_clip": 1.0, "eps_clip_higher": 4.0},
    "cispo, coupled": {"policy_loss": "cispo", "use_decoupled_loss": False},
    "sapo": {"policy_loss": "sapo"},
    "sapo, steep": {"policy_loss": "sapo", "sapo_tau_pos": 2.0, "sapo_tau_neg": 5.0},
    "reinforce": {"policy_loss": "reinforce"},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "no correction": {"behave_imp_weight_mode": "disabled"},
    "TIS": {"behave_imp_weight_mode": "token_truncate", "behave_imp_weight_cap": 1.3},
    "TIS of sequences": {"behave_imp_weight_mode": "sequence_truncate"},
    "IcePop": {"behave_imp_weight_mode": "token_mask", "behave_imp_weight_floor": 0.7,
               "behave_imp_weight_cap": 1.5},
    "MIS": {"behave_imp_weight_mode": "sequence_mask", "behave_imp_weight_cap": 2.0},
    "geometric": {"behave_imp_weight_mode": "geometric_mask", "behave_imp_weight_floor": 0.8,
                  "behave_imp_weight_cap": 1.2},
    "geometric, gspo": {"behave_imp_weight_mode": "geometric_mask", "policy_loss": "gspo"},
}  # fmt: skip
PRESET_LOSSES = {name: preset.get("actor", {}) for name, preset in PRESETS.items()}
COUPLED = {"use_decoupled_loss": False, "behave_imp_weight_mode": "disabled"}
AGGREGATIONS = ["token", "sequence", "prompt", "constant"]
every_objective = pytest.mark.parametrize(
    "chosen", (OBJECTIVES | CORRECTIONS).values(), ids=list(OBJECTIVES | CORRECTIONS)
)


@every_objective
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_of_a_ragged_batch(chosen: dict[str, Any], aggregation: str, seed: int) -> None:
    s = chosen | {"loss_agg_mode": aggregation}
    groups = ragged(seed, extreme=seed % 2 == 1)
    thetas = [[told.theta for told in group] for group in groups]
    expected = reference(groups, s, thetas)
    for cuts in (1, 3, 7):
        found, _ = library(groups, s, all_thetas(groups), cuts)
        assert float(found) == pytest.approx(expected, rel=1e-10), cuts


@pytest.mark.parametrize("name", PRESETS)
def test_the_loss_of_every_preset(name: str) -> None:
    groups = ragged(23)
    thetas = [[told.theta for told in group] for group in groups]
    found, _ = library(groups, PRESET_LOSSES[name], all_thetas(groups), cuts=4)
    assert float(found) == pytest.approx(reference(groups, PRESET_LOSSES[name], thetas), rel=1e-10)


@every_objective
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_gradient_by_finite_differences(chosen: dict[str, Any], aggregation: str) -> None:
    s = chosen | {"loss_agg_mode": aggregation}
    groups = ragged(11, extreme=False)
    theta = all_thetas(groups).requires_grad_()
    library(groups, s, theta, cuts=2)[0].backward()
    assert theta.grad is not None
    step, place = 1e-6, 0
    for g, group in enumerate(groups):
        for i, told in enumerate(group):
            for t in range(len(told.theta)):
                losses = []
                for sign in (1, -1):
                    moved = [[list(sample.theta) for sample in other] for other in groups]
                    moved[g][i][t] += sign * step
                    losses.append(reference(groups, s, moved))
                quotient = (losses[0] - losses[1]) / (2 * step)
                assert float(theta.grad[place]) == pytest.approx(quotient, abs=1e-8, rel=1e-5)
                place += 1
    assert place == len(theta) > 50


@every_objective
def test_extreme_ratios_give_finite_gradients(chosen: dict[str, Any]) -> None:
    far = [[Told((-0.01, -1.0), (-400.0, -1.0), (-90.0, -1.0), a) for a in (1.0, -1.0)]]
    far[0] += [Told((-400.0, -1.0), (-0.01, -1.0), (-90.0, -1.0), a) for a in (1.0, -1.0)]
    theta = all_thetas(far).float().requires_grad_()
    loss, stats = library(far, chosen, theta)
    loss.backward()
    assert theta.grad is not None
    assert bool(theta.grad.isfinite().all())
    assert math.isfinite(float(loss.detach()))
    assert all(math.isfinite(value) for value in stats.values())


@pytest.mark.parametrize("mode", [{}, {"behave_imp_weight_mode": "disabled"}, COUPLED])
def test_what_is_logged_of_the_mismatch_does_not_depend_on_the_correction(
    mode: dict[str, Any],
) -> None:
    groups = ragged(5)
    _, stats = library(groups, mode, all_thetas(groups), cuts=3)
    logs = [
        p - b
        for group in groups
        for told in group
        for p, b in zip(told.prox, told.behave, strict=True)
    ]
    ratios = [math.exp(x) for x in logs]
    kl = sum(r - 1.0 - x for r, x in zip(ratios, logs, strict=True)) / len(logs)
    assert stats["mismatch_kl"] == pytest.approx(kl, rel=1e-9)
    found = effective_sample_size(stats["is_ratio"], stats["is_ratio_squared"])
    expected = sum(ratios) ** 2 / sum(r * r for r in ratios) / len(ratios)
    assert found == pytest.approx(expected, rel=1e-9)
    assert 0.0 < found < 1.0
    assert effective_sample_size(1.0, 1.0) == 1.0
