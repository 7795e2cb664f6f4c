"""The price of leaving the reference: what a token pays, how the price adapts, what it teaches."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import (
    batch_of,
    config_for,
    ragged_samples,
    saved,
    tiny_model,
    tokens_of,
    trajectory,
    weights_of,
)

from arealite.algorithms.kl import ESTIMATORS, adapted, k1
from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.checkpoints.store import Checkpoint
from arealite.config import Config, RefConfig
from arealite.data.batch import Sample, to_batch
from arealite.data.micro_batch import MicroBatch
from arealite.training.credit import TokenCredit
from arealite.training.policy import Policy
from arealite.training.state import save_trainer
from arealite.types import Episode


def config_with(actor: dict[str, Any] | None = None, **options: Any) -> Config:
    config = config_for(**options)
    settings = {"kl_ctl": 0.5, "kl_in": "reward", "kl_estimator": "k1"} | (actor or {})
    return replace(config, actor=replace(config.actor, **settings))


def test_the_controller_by_hand() -> None:
    # e = 9 / 6 - 1 is cut at 0.2; e = 5.4 / 6 - 1 = -0.1
    assert adapted(0.1, 9.0, 6.0, 0.1) == pytest.approx(0.102)
    assert adapted(0.1, 5.4, 6.0, 0.1) == pytest.approx(0.099)
    assert adapted(0.1, -50.0, 6.0, 0.5) == pytest.approx(0.09)
    assert adapted(0.1, 6.0, 6.0, 0.1) == 0.1
    assert adapted(0.1, math.nan, 6.0, 0.1) == 0.1


def test_k1_by_hand() -> None:
    assert k1(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.5])).tolist() == [1.0, -0.5]
    assert list(ESTIMATORS) == ["k1", "k2", "k3"]


SAMPLES = [Sample([1, 2, 3, 4], [1, 2, 3], [-1.0] * 3, 1.0), Sample([1, 2], [1], [-1.0], -0.5)]
KL = [[0.1, 0.2, 0.3], [-0.4]]


def test_each_token_pays_for_itself_and_those_after_it() -> None:
    credit = TokenCredit(config_with(), None)
    batch, told = credit(batch_of(SAMPLES), KL)
    # 1 - 0.5 (0.1 + 0.2 + 0.3), 1 - 0.5 (0.2 + 0.3), 1 - 0.5 * 0.3; -0.5 + 0.5 * 0.4
    assert batch.samples[0].advantages == pytest.approx([0.7, 0.75, 0.85])
    assert batch.samples[1].advantages == pytest.approx([-0.3])
    assert batch.samples[0].values == ()
    assert told == {
        "loss/ref_kl": pytest.approx(0.05),
        "kl/per_sample": pytest.approx(0.1),
        "kl/coefficient": 0.5,
    }
    assert TokenCredit(config_with({"kl_in": "loss"}), None)(batch_of(SAMPLES)) == (
        batch_of(SAMPLES),
        {},
    )


def test_over_the_batch_all_tokens_are_scaled_together() -> None:
    """REINFORCE++: the price is in what is centred and scaled."""
    batch, _ = TokenCredit(config_with({"adv_norm": "batch"}), None)(batch_of(SAMPLES), KL)
    plain = [0.7, 0.75, 0.85, -0.3]
    std = math.sqrt(sum((a - 0.5) ** 2 for a in plain) / 4)
    found = [a for sample in batch.samples for a in sample.advantages]
    assert found == pytest.approx([(a - 0.5) / std for a in plain], abs=1e-5)


class Foretells:
    def values(self, samples: Any) -> list[list[float]]:
        return [[0.2, 0.4, 0.5], [0.3]]


def test_a_critic_foresees_the_price_as_well() -> None:
    config = config_with({"adv_baseline": "critic", "discount": 0.9, "gae_lambda": 0.8})
    critic: Any = Foretells()
    batch, _ = TokenCredit(config, critic)(batch_of(SAMPLES), KL)
    # rewards -0.05, -0.1, 0.85: delta_3 = 0.35; delta_2 = -0.1 + 0.45 - 0.4 = -0.05;
    # delta_1 = -0.05 + 0.36 - 0.2 = 0.11; A_2 = -0.05 + 0.72 * 0.35; A_1 = 0.11 + 0.72 A_2
    assert batch.samples[0].advantages == pytest.approx([0.25544, 0.202, 0.35])
    assert batch.samples[0].returns == pytest.approx([0.45544, 0.602, 0.85])
    assert batch.samples[1].returns == pytest.approx([-0.3])


def test_the_price_adapts_after_the_batch() -> None:
    credit = TokenCredit(config_with({"kl_target": 0.05, "kl_horizon": 10}), None)
    assert credit(batch_of(SAMPLES), KL)[1]["kl/coefficient"] == 0.5
    # e is cut at 0.2; two samples over 10
    assert credit.kl_ctl == pytest.approx(0.5 * (1 + 0.2 * 0.2))
    assert credit(batch_of([]), [])[1] == {}


def test_its_expected_gradient_is_that_of_the_kl() -> None:
    """All sequences of two tokens out of three, weighed by the policy itself."""
    generator = torch.Generator().manual_seed(2)

    def table() -> torch.Tensor:  # a first token's logits, and a second's after each first
        return torch.randn(4, 3, generator=generator, dtype=torch.float64)

    theta, ref = table().requires_grad_(), table().log_softmax(-1)
    logprobs = theta.log_softmax(-1)

    def of(tables: torch.Tensor, y: tuple[int, int]) -> torch.Tensor:
        return torch.stack([tables[0, y[0]], tables[1 + y[0], y[1]]])

    everything = list(itertools.product(range(3), repeat=2))
    kl = torch.stack(
        [of(logprobs, y).sum().exp() * (of(logprobs, y) - of(ref, y)).sum() for y in everything]
    ).sum()
    (wanted,) = torch.autograd.grad(kl, theta, retain_graph=True)
    config = config_with({"policy_loss": "reinforce", "behave_imp_weight_mode": "disabled"})
    rule, credit, found = PolicyGradient(config), TokenCredit(config, None), torch.zeros_like(theta)
    for y in everything:
        own = of(logprobs, y)
        told = k1(own.detach(), of(ref, y)).tolist()
        sample = Sample([0, *y], [1, 2], own.tolist(), 0.0)
        (credited,) = credit(batch_of([sample]), [told])[0].samples
        batch = tokens_of(own.detach(), torch.tensor(credited.advantages, dtype=torch.float64))
        loss, _ = rule.loss(own, batch)
        (slope,) = torch.autograd.grad(loss, theta, retain_graph=True)
        found += own.detach().sum().exp() * slope
    torch.testing.assert_close(found, 0.5 * wanted, rtol=1e-9, atol=1e-12)


def logprobs_of(model: Any, sample: Sample) -> torch.Tensor:
    """[trained], without packing or padding, in float64 from the logits on."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sample.tokens])).logits[0].double()
    everything = logits.log_softmax(-1)
    return torch.stack([everything[i - 1, sample.tokens[i]] for i in sample.trained])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_step_pays_the_price_and_the_loss_has_no_second_one(
    estimator: str, minibatches: int
) -> None:
    config = config_with({"kl_estimator": estimator}, max_tokens=60, minibatches=minibatches)
    policy = Policy(tiny_model(), config, 2, tiny_model(seed=5).requires_grad_(False))
    samples = ragged_samples(7, seed=3)
    seen: dict[tuple[int, ...], MicroBatch] = {}

    def loss(logprobs: torch.Tensor, micro: MicroBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        assert micro.ref is None
        for index, sample in enumerate(micro.samples):
            seen[tuple(sample.tokens)] = micro
            mine = micro.sequence == index
            log_ratio = logprobs_of(policy_then, sample) - logprobs_of(reference, sample)
            kl = {
                "k1": log_ratio,
                "k2": log_ratio.square() / 2,
                "k3": (-log_ratio).exp() + log_ratio - 1,
            }[estimator]
            paid = 0.5 * kl.flip(0).cumsum(0).flip(0)
            wanted = earned[tuple(sample.tokens)] - paid
            torch.testing.assert_close(micro.advantages[mine].double(), wanted, rtol=0, atol=1e-4)
            assert micro.prox is not None
            prox = logprobs_of(policy_then, sample)
            torch.testing.assert_close(micro.prox[mine].double(), prox, rtol=0, atol=1e-4)
        return PolicyGradient(config).loss(logprobs, micro)

    policy_then, reference = tiny_model(), tiny_model(seed=5)
    earned = {tuple(sample.tokens): float(sample.advantages[0]) for sample in samples}
    stats = policy.update(batch_of(samples), loss)
    assert len(seen) == 7
    assert stats["kl/coefficient"] == 0.5
    each = [(logprobs_of(policy_then, s) - logprobs_of(reference, s)).tolist() for s in samples]
    if estimator == "k1":
        tokens = [k for of_sample in each for k in of_sample]
        assert stats["loss/ref_kl"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-3, abs=1e-4)
        assert stats["kl/per_sample"] == pytest.approx(sum(tokens) / 7, rel=1e-3, abs=1e-3)


def test_samples_that_are_worth_nothing_pay_as_well() -> None:
    equal = Episode("0:0", 0, (trajectory(1.0, [0, 0]), trajectory(1.0, [0], seed=1)))
    batch = to_batch([equal], PolicyGradient(config_with()), 0, 0)
    assert [s.advantage for s in batch.samples] == [0.0, 0.0]


def test_the_coefficient_goes_on_with_the_run(tmp_path: Path) -> None:
    path = str(saved(tmp_path / "m"))
    other = str(saved(tmp_path / "other", seed=5))
    config = config_with({"kl_target": 0.01, "kl_horizon": 10, "path": path})
    config = replace(config, ref=RefConfig(other))
    rule = PolicyGradient(config)

    def learn(policy: Policy, version: int) -> float:
        stats = policy.update(batch_of(ragged_samples(4, seed=version)), rule.loss)
        policy.version = version + 1
        return stats["kl/coefficient"]

    policy = Policy.load(config, 10)
    coefficients = [learn(policy, version) for version in range(2)]
    state, folder = policy.state(), tmp_path / "checkpoint"
    policy.model.save_pretrained(folder, state_dict=state.model)
    save_trainer(state, folder)
    again = Policy.load(config, 10, Checkpoint(folder, 2, {}))
    assert learn(again, 2) == learn(policy, 2)
    assert len({*coefficients, state.facts["kl_ctl"]}) == 3
    ours = weights_of(again.model)
    assert all(torch.equal(ours[name], w) for name, w in weights_of(policy.model).items())
