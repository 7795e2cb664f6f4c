"""The reference model: estimates by hand, its forward pass, and what it does to a step."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import (
    algorithm,
    batch_of,
    config_for,
    ragged_samples,
    saved,
    tiny_model,
    tokens_of,
    trajectory,
    weights_of,
)

from arealite.algorithms.kl import k2, k3
from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.config import Config, RefConfig
from arealite.data.batch import Sample, to_batch
from arealite.data.micro_batch import MicroBatch, micro_batches
from arealite.errors import ConfigError
from arealite.training.logprobs import token_logprobs
from arealite.training.policy import Policy
from arealite.types import Episode


def config_with(kl_ctl: float, estimator: str = "k3", **options: Any) -> Config:
    config = config_for(**options)
    return replace(config, actor=replace(config.actor, kl_ctl=kl_ctl, kl_estimator=estimator))


def test_estimates_by_hand() -> None:
    theta, ref = torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-2.0, -1.0, -1.0])
    assert k2(theta, ref).tolist() == [0.5, 0.5, 0.0]
    # q = 1/e, e and 1
    assert k3(theta, ref).tolist() == pytest.approx([math.exp(-1), math.e - 2, 0.0], rel=1e-6)
    assert bool(k3(torch.tensor([-200.0]), torch.tensor([-0.1])).isfinite().all())


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_against_a_reference_in_float64(estimator: str, seed: int) -> None:
    rng = random.Random(seed)
    n, beta = 40, 0.3
    ref = [-rng.expovariate(0.5) for _ in range(n)]
    theta = [r + rng.gauss(0, 0.7) for r in ref]
    weights = [rng.choice([0.5, 1.0, 2.0]) for _ in range(n)]

    def told(values: list[float]) -> float:
        each = [
            (t - r) ** 2 / 2 if estimator == "k2" else math.exp(r - t) - (r - t) - 1
            for t, r in zip(values, ref, strict=True)
        ]
        return beta * sum(w * k for w, k in zip(weights, each, strict=True))

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    rule = algorithm(kl_ctl=beta, kl_estimator=estimator)
    batch = tokens_of(column(theta), column([0.0] * n), weights=column(weights))
    batch = replace(batch, ref=column(ref))
    logprobs = column(theta).requires_grad_()
    loss, stats = rule.loss(logprobs, batch)
    assert loss.item() == pytest.approx(told(theta), rel=1e-12)
    assert float(stats["ref_kl"]) > 0
    (gradient,) = torch.autograd.grad(loss, logprobs)
    for i in range(n):
        high, low = ([*theta[:i], theta[i] + s, *theta[i + 1 :]] for s in (1e-6, -1e-6))
        quotient = (told(high) - told(low)) / 2e-6
        assert float(gradient[i]) == pytest.approx(quotient, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_every_micro_batch_carries_the_reference(minibatches: int, share: bool) -> None:
    config = config_with(0.1, max_tokens=40, minibatches=minibatches)
    config = replace(config, actor=replace(config.actor, share_prompts=share))
    reference = tiny_model(seed=5).requires_grad_(False)
    before = weights_of(reference)
    policy = Policy(tiny_model(), config, 2, reference)
    seen: list[MicroBatch] = []

    def loss(logprobs: torch.Tensor, micro: MicroBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        assert micro.ref is not None
        with torch.no_grad():
            torch.testing.assert_close(micro.ref, token_logprobs(reference, micro, 1.0)[0])
        seen.append(micro)
        return PolicyGradient(config).loss(logprobs, micro)

    stats = policy.update(batch_of(_groups()), loss)
    assert len(seen) >= 2
    expected = [
        micro.input_ids.numel()
        for part in range(minibatches)
        for micro in micro_batches(_groups()[part::minibatches], 40, True, share)
    ]
    assert [m.input_ids.numel() for m in seen] == expected
    assert stats["loss/ref_kl"] > 0
    for name, weight in weights_of(reference).items():
        assert torch.equal(weight, before[name])


def _groups() -> list[Sample]:
    """Four samples behind one prompt each."""
    samples = []
    for number, sample in enumerate(ragged_samples(4, seed=1)):
        prompt = [7, 8, 9, 10 + number] * 3
        for answer in ([1, 2, 3], [4, 5], [6, 7], [8]):
            trained = range(len(prompt), len(prompt) + len(answer))
            samples.append(
                Sample([*prompt, *answer], trained, [-2.0] * len(answer), sample.advantage, number)
            )
    return samples


def test_the_policy_is_pulled_to_its_reference() -> None:
    """Also by samples whose advantage is 0: they are not set aside."""
    group = Episode("0:0", 0, tuple(trajectory(0.5, [0] * n, seed=n) for n in (4, 6, 8)))
    config = config_with(1.0, lr=3e-3)
    policy = Policy(tiny_model(), config, 60, tiny_model(seed=5).requires_grad_(False))
    rule = PolicyGradient(config)
    batch = to_batch([group], rule, 0, 0)
    assert [s.advantage for s in batch.samples] == [0.0, 0.0, 0.0]
    found = [policy.update(batch, rule.loss)["loss/ref_kl"] for _ in range(40)]
    assert found[-1] < 0.2 * found[0]


def test_without_a_coefficient_there_is_no_reference(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    config = config_with(0.0)
    config = replace(config, actor=replace(config.actor, path=str(folder)))
    assert Policy.load(config, 1)._reference is None
    asked = replace(config, actor=replace(config.actor, kl_ctl=0.1))
    asked = replace(asked, ref=RefConfig(str(saved(tmp_path / "other", seed=3))))
    policy = Policy.load(asked, 1)
    assert policy._reference is not None
    assert not any(p.requires_grad for p in policy._reference.parameters())
    stats = policy.update(batch_of(ragged_samples(4)), PolicyGradient(asked).loss)
    assert stats["loss/ref_kl"] > 0.01
    assert Policy.load(replace(asked, mode="sft"), 1)._reference is None


def test_a_reference_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    config = config_with(0.1)
    config = replace(config, actor=replace(config.actor, path=str(saved(tmp_path / "m"))))
    with pytest.raises(ConfigError, match=r"^ref\.path: \./nowhere: there is no such folder"):
        Policy.load(replace(config, ref=RefConfig("./nowhere")), 1)
    other = tiny_model()
    other.resize_token_embeddings(70)
    other.save_pretrained(tmp_path / "wide")
    with pytest.raises(
        ConfigError, match=r"^ref\.path: .* has 70 tokens, but .* actor\.path has 61"
    ):
        Policy.load(replace(config, ref=RefConfig(str(tmp_path / "wide"))), 1)
