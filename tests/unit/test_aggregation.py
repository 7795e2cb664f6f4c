"""The four aggregations by hand, and through the trainer: how a batch is cut never shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from training_support import ByReward, algorithm, config_for, tiny_model, trajectory

from arealite.algorithms import aggregation
from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.data.batch import to_batch
from arealite.training.policy import Policy
from arealite.types import Episode

LENGTHS = [[2, 4], [6, 0]]  # twelve tokens, three samples with tokens, two groups


def test_weights_by_hand() -> None:
    assert aggregation.token_mean(LENGTHS) == [[1.0, 1.0], [1.0, 1.0]]
    assert aggregation.sequence_mean(LENGTHS) == [[12 / 6, 12 / 12], [12 / 18, 0.0]]
    assert aggregation.prompt_mean(LENGTHS) == [[1.0, 1.0], [1.0, 0.0]]
    assert aggregation.prompt_mean([[1, 1], [6]]) == [[2.0, 2.0], [8 / 12]]
    assert aggregation.constant(LENGTHS, 10) == [[12 / 40] * 2] * 2


def test_all_but_the_constant_weigh_1_on_average() -> None:
    for mean in (aggregation.token_mean, aggregation.sequence_mean, aggregation.prompt_mean):
        total = sum(
            w * k
            for ws, ks in zip(mean(LENGTHS), LENGTHS, strict=True)
            for w, k in zip(ws, ks, strict=True)
        )
        assert total == pytest.approx(12)


@pytest.mark.parametrize("mode", ["token", "sequence", "prompt", "constant"])
def test_nothing_to_weigh(mode: str) -> None:
    assert algorithm(loss_agg_mode=mode).weigh([]) == []
    assert algorithm(loss_agg_mode=mode).weigh([[0, 0]])[0][0] in (0.0, 1.0)


def _episodes() -> list[Episode]:
    """Groups behind one prompt; lengths and lags differ, so that some tokens are too old."""
    groups = []
    for g, lengths in enumerate([[1, 9, 3], [4, 4], [12, 2, 5, 7]]):
        prompt = [3 + g] * (4 + 2 * g)
        played = []
        for i, n in enumerate(lengths):
            t = trajectory(
                [1.0, -0.5, 0.7, 0.0][i], [0] * (n // 3) + [2] * (n - n // 3), len(prompt), g
            )
            played.append(type(t)([*prompt, *t.tokens[len(prompt) :]], t.loss_mask, t.logprobs,
                                  t.versions, t.reward))  # fmt: skip
        groups.append(Episode(f"0:{g}", 0, tuple(played)))
    return groups


class _Rewarded(ByReward):
    """The rewards as advantages, under a configuration's own loss and aggregation."""

    def __init__(self, rule: PolicyGradient) -> None:
        self.weigh, self.loss = rule.weigh, rule.loss  # type: ignore[method-assign]


def _step(budget: int, share: bool, **actor: Any) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of one step of the trainer."""
    rule = algorithm(8, **actor)
    model = tiny_model(dtype=torch.float64)
    config = config_for(max_tokens=budget, eps=1e-2)
    config = replace(config, actor=replace(config.actor, share_prompts=share))
    policy = Policy(model, config, 1)
    batch = to_batch(_episodes(), _Rewarded(rule), version=2, max_lag=1)
    seen: list[torch.Tensor] = []
    policy.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in model.parameters())
    )
    return policy.update(batch, rule.loss)["loss/policy"], seen


@pytest.mark.parametrize("policy_loss", ["ppo", "gspo"])
@pytest.mark.parametrize("mode", ["token", "sequence", "prompt", "constant"])
def test_k_micro_batches_and_shared_prompts_equal_one_batch(mode: str, policy_loss: str) -> None:
    rule = {"loss_agg_mode": mode, "policy_loss": policy_loss, "use_decoupled_loss": False}
    whole, gradient = _step(10**6, False, **rule)
    for budget, share in ((1, False), (40, False), (40, True), (10**6, True)):
        cut, cut_gradient = _step(budget, share, **rule)
        assert cut == pytest.approx(whole, rel=1e-5, abs=1e-6)
        for mine, other in zip(cut_gradient, gradient, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_aggregations_differ_where_lengths_do() -> None:
    losses = {
        mode: _step(10**6, False, loss_agg_mode=mode)[0]
        for mode in ("token", "sequence", "prompt", "constant")
    }
    assert len({round(x, 6) for x in losses.values()}) == 4
