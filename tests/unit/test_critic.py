"""The critic: what it computes, what it does to a batch, how it learns, and that it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    trajectory,
    weights_of,
)

from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.checkpoints.store import Checkpoint
from arealite.config import Config, CriticConfig, OptimizerConfig
from arealite.data.batch import Batch, Sample, to_batch
from arealite.data.micro_batch import MicroBatch, micro_batches
from arealite.errors import CheckpointError, ConfigError, NonFinite
from arealite.training.credit import TokenCredit
from arealite.training.critic import Critic
from arealite.training.guard import Guard
from arealite.training.policy import Policy, critic_updates
from arealite.training.state import save_trainer
from arealite.types import Episode


def config_with(
    max_tokens: int = 4096,
    norm: str = "none",
    discount: float = 1.0,
    gae_lambda: float = 1.0,
    **critic: Any,
) -> Config:
    """PPO; the critic's settings may be given."""
    config = config_for(max_tokens)
    actor = replace(
        config.actor,
        adv_baseline="critic",
        adv_norm=norm,
        discount=discount,
        gae_lambda=gae_lambda,
    )
    own = {"optimizer": OptimizerConfig(lr=1e-2)} | critic
    return replace(config, actor=actor, critic=CriticConfig(**own))


def credited(batch: Batch, critic: Any, config: Config) -> Batch:
    return TokenCredit(config, critic)(batch)[0]


def critic_of(config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> Critic:
    return Critic(tiny_model(seed, dtype), config, 10)


def learned(critic: Critic) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in critic.tensors().values()]


def moved_head(critic: Critic) -> Critic:
    """With values that are not all 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        critic.model.head.weight.copy_(torch.randn(1, 32, generator=generator))
    return critic


def test_it_starts_at_zero_and_sees_what_lies_before_a_token() -> None:
    critic = critic_of(config_with())
    sample = Sample([5, 6, 7, 8, 9], [2, 4], [-1.0, -1.0], 1.0)
    assert critic.values([sample]) == [[0.0, 0.0]]
    moved_head(critic)
    ((first, second),) = critic.values([sample])
    assert first != second
    states = critic.model.body(input_ids=torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0]
    expected = critic.model.head(states[[1, 3]]).flatten()
    assert [first, second] == pytest.approx(expected.tolist(), abs=1e-5)
    ((again, other),) = critic.values([replace(sample, tokens=[5, 6, 1, 8, 2])])
    assert again == pytest.approx(first, abs=1e-6)
    assert abs(other - second) > 1e-3


def test_packed_and_padded_values_are_the_same_in_the_samples_own_order() -> None:
    prompt = [3, 1, 4, 1, 5]
    group = [
        Sample([*prompt, *a], range(5, 5 + len(a)), [0.0] * len(a), 1.0, 0)
        for a in ([7, 8], [9], [1, 2, 3])
    ]
    samples = [*group, *ragged_samples(7, seed=2)]
    packed = moved_head(critic_of(config_with())).values(samples)
    config = config_with(max_tokens=50)
    spec = replace(config.actor.mb_spec, packing=False)
    padded = moved_head(critic_of(replace(config, actor=replace(config.actor, mb_spec=spec))))
    for mine, other, sample in zip(packed, padded.values(samples), samples, strict=True):
        assert len(mine) == len(sample.trained)
        assert mine == pytest.approx(other, abs=1e-5)


class Foretells:
    """In a critic's place: values that are known."""

    def __init__(self, *values: list[float]) -> None:
        self._values = list(values)

    def values(self, samples: Sequence[Sample]) -> list[list[float]]:
        return self._values


def test_a_batch_gets_an_advantage_for_each_token() -> None:
    samples = [Sample([1, 2, 3, 4], [1, 2, 3], [-1.0] * 3, 1.0), Sample([1, 2], [1], [-1.0], 0.0)]
    config = config_with(discount=0.9, gae_lambda=0.8)
    critic: Any = Foretells([0.2, 0.4, 0.5], [0.3])
    batch = credited(batch_of(samples), critic, config)
    first, second = batch.samples
    assert first.advantages == pytest.approx([0.4552, 0.41, 0.5])  # as in test_gae
    assert first.values == [0.2, 0.4, 0.5]
    assert first.returns == pytest.approx([0.6552, 0.81, 1.0])
    assert second.advantages == pytest.approx([-0.3])
    assert second.returns == [0.0]
    normed = replace(config, actor=replace(config.actor, adv_norm="batch"))
    scaled = credited(batch_of(samples), critic, normed)
    told = [a for sample in scaled.samples for a in sample.advantages]
    assert sum(told) == pytest.approx(0.0, abs=1e-9)
    assert sum(a * a for a in told) / 4 == pytest.approx(1.0, abs=1e-4)
    assert [s.returns for s in scaled.samples] == [s.returns for s in batch.samples]
    (micro,) = micro_batches(batch.samples, 100, True)
    assert micro.advantages.tolist() == pytest.approx([0.4552, 0.41, 0.5, -0.3])
    assert micro.values is not None
    assert micro.values.tolist() == pytest.approx([0.2, 0.4, 0.5, 0.3])


def test_a_reward_of_nothing_is_not_set_aside() -> None:
    rule = PolicyGradient(config_with(norm="batch"))
    group = Episode("0:0", 0, (trajectory(0.0, [0, 0]), trajectory(3.0, [0], seed=1)))
    batch = to_batch([group], rule, 0, 0)
    assert [s.advantage for s in batch.samples] == [0.0, 3.0]  # the batch's norm comes later


def policy_of(config: Config, **options: Any) -> Policy:
    return Policy(tiny_model(), config, 10, critic=critic_of(config, seed=3), **options)


def test_it_learns_what_a_prompt_is_worth_and_takes_it_off_the_reward() -> None:
    """Prompts 5 and 6 earn 1 and 0 whatever is answered: in the end no answer is any better."""
    samples = [
        Sample([50 + good, i, i + 1, i + 2], [1, 2, 3], [-4.0] * 3, float(good))
        for good in (0, 1)
        for i in range(8)
    ]
    config = config_with(eps_clip_value=None, ppo_epochs=4)
    critic = critic_of(config)
    first = last = 0.0
    for version in range(12):
        batch = credited(batch_of(samples), critic, config)
        last = max(abs(a) for s in batch.samples for a in s.advantages)
        first = first or last
        stats = critic.update(batch, version + 1)
    assert first == 1.0
    assert last < 0.2
    assert stats["critic/explained_variance"] > 0.95
    assert stats["critic/loss"] < 0.01
    assert critic.updates == 48


@pytest.mark.parametrize("budget", [1, 40])
def test_k_micro_batches_equal_one_batch(budget: int) -> None:
    smooth = OptimizerConfig(lr=1e-2, eps=1e-1)  # a step does not enlarge rounding
    samples = ragged_samples(9, seed=1)
    critics = []
    for max_tokens in (4096, budget):
        config = config_with(max_tokens, optimizer=smooth)
        critics.append(moved_head(critic_of(config)))
        for version in range(2):
            batch = credited(batch_of(samples), critics[-1], config)
            critics[-1].update(batch, version + 1)
    other = weights_of(critics[1].model)
    for name, weight in weights_of(critics[0].model).items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-5)


def test_the_step_is_the_value_losss_gradient() -> None:
    """Against a step by hand in float64, by difference quotients over the head's weights."""
    samples = ragged_samples(5, seed=6)
    config = config_with(optimizer=OptimizerConfig(type="sgd", lr=1.0, gradient_clipping=0.0))
    critic = moved_head(critic_of(config))
    batch = credited(batch_of(samples), critic, config)
    before = critic.model.head.weight.detach().double().clone()
    with torch.no_grad():
        states = [
            critic.model.body(input_ids=torch.tensor([s.tokens])).last_hidden_state[0].double()
            for s in samples
        ]

    def loss(weight: torch.Tensor) -> float:
        total = 0.0
        for sample, state in zip(batch.samples, states, strict=True):
            told = zip(sample.trained, sample.values, sample.returns, strict=True)
            for place, old, wanted in told:
                value = float(state[place - 1] @ weight[0])
                bound = old + min(max(value - old, -0.2), 0.2)
                total += max((value - wanted) ** 2, (bound - wanted) ** 2) / 2
        return total / batch.n_tokens

    slopes = []
    for i in range(32):
        ends = []
        for sign in (1.0, -1.0):
            weight = before.clone()
            weight[0, i] += sign * 1e-5
            ends.append(loss(weight))
        slopes.append((ends[0] - ends[1]) / 2e-5)
    critic.update(batch, 1)
    step = (before - critic.model.head.weight.detach().double())[0]
    torch.testing.assert_close(step, torch.tensor(slopes).double(), rtol=1e-3, atol=1e-5)


def test_in_the_warm_up_only_the_critic_learns() -> None:
    config = config_with(warmup_steps=2)
    policy, rule = policy_of(config), PolicyGradient(config)
    assert policy.critic is not None
    for version in range(4):
        weights, values = weights_of(policy.model), learned(policy.critic)
        stats = policy.update(batch_of(ragged_samples(6, seed=version)), rule.loss)
        policy.version += 1
        after = weights_of(policy.model)
        stays = all(torch.equal(weights[name], after[name]) for name in weights)
        assert stays is (version < 2)
        assert ("loss/policy" in stats) is (version >= 2)
        pairs = zip(values, learned(policy.critic), strict=False)
        assert not all(torch.equal(one, other) for one, other in pairs)
        assert all(math.isfinite(value) for value in stats.values())
        for name in ("loss", "explained_variance", "clip_fraction"):
            assert f"critic/{name}" in stats


def test_the_schedules_end_with_the_run() -> None:
    config = config_with(warmup_steps=3, ppo_n_minibatches=4)
    config = replace(config, actor=replace(config.actor, ppo_n_minibatches=2, ppo_epochs=5))
    # 10 versions, of which the actor learns in 7, with 10 updates in each
    assert critic_updates(config, 70) == 40


def test_every_epoch_is_measured_against_the_policy_that_took_the_batch() -> None:
    config = config_with()
    config = replace(config, actor=replace(config.actor, ppo_n_minibatches=2, ppo_epochs=3))
    policy, seen = policy_of(config), list[tuple[torch.Tensor, torch.Tensor]]()

    def loss(logprobs: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        assert batch.prox is not None
        seen.append((logprobs.detach(), batch.prox))
        return PolicyGradient(config).loss(logprobs, batch)

    stats = policy.update(batch_of(ragged_samples(6, seed=3)), loss)
    assert len(seen) == 6
    torch.testing.assert_close(seen[0][0], seen[0][1])
    for number in range(2, 6):
        assert torch.equal(seen[number][1], seen[number - 2][1])
        assert float((seen[number][0] - seen[number][1]).abs().max()) > 1e-3
    assert stats["train/skipped_updates"] == 0.0
    assert stats["loss/clip_fraction"] > 0.0


def test_an_update_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    config = config_with()
    critic = Critic(tiny_model(), config, 10, Guard(tmp_path, "critic"))
    batch = credited(batch_of(ragged_samples(4)), critic, config)
    first = replace(batch.samples[0], returns=[math.nan] * len(batch.samples[0].trained))
    spoiled = Batch([first, *batch.samples[1:]], batch.n_tokens)
    before = learned(critic)
    assert critic.update(spoiled, 1)["critic/skipped_updates"] == 1.0
    critic.update(spoiled, 2)
    with pytest.raises(NonFinite, match=r"lower critic\.optimizer\.lr"):
        critic.update(spoiled, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, learned(critic), strict=True))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"critic-version-{n}-update-{n}.json" for n in (1, 2, 3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_goes_on_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    config = config_with(ppo_epochs=2, norm="batch")
    path = str(saved(tmp_path / "m"))
    actor = replace(config.actor, path=path, dtype=dtype)
    config = replace(config, actor=actor, critic=replace(config.critic, path=path))
    rule = PolicyGradient(config)

    def learn(policy: Policy, versions: Sequence[int]) -> None:
        for version in versions:
            policy.update(batch_of(ragged_samples(6, seed=version)), rule.loss)
            policy.version = version + 1

    policy = Policy.load(config, 10)
    learn(policy, [0, 1])
    state, folder = policy.state(), tmp_path / "checkpoint"
    policy.model.save_pretrained(folder, state_dict=state.model)
    save_trainer(state, folder)
    learn(policy, [2, 3])
    again = Policy.load(config, 10, Checkpoint(folder, 2, {}))
    learn(again, [2, 3])
    assert policy.critic is not None
    assert again.critic is not None
    assert again.critic.updates == policy.critic.updates == 8
    for mine, other in ((policy.model, again.model), (policy.critic.model, again.critic.model)):
        ours = weights_of(other)
        assert all(torch.equal(ours[name], weight) for name, weight in weights_of(mine).items())
    without = replace(policy.state(), trainer={"random/cpu": torch.get_rng_state()})
    save_trainer(without, folder)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        Policy.load(config, 10, Checkpoint(folder, 2, {}))


def test_a_critic_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    config = config_with(path="./nowhere")
    config = replace(config, actor=replace(config.actor, path=str(saved(tmp_path / "m"))))
    with pytest.raises(ConfigError, match=r"^critic\.path: \./nowhere: there is no such folder"):
        Policy.load(config, 1)
    other = tiny_model()
    other.resize_token_embeddings(70)
    other.save_pretrained(tmp_path / "wide")
    wide = replace(config, critic=replace(config.critic, path=str(tmp_path / "wide")))
    with pytest.raises(ConfigError, match=r"^critic\.path: .* 70 tokens, .* actor\.path has 61"):
        Policy.load(wide, 1)
    assert Policy.load(replace(wide, mode="sft"), 1).critic is None
