"""Episodes -> samples -> micro-batches: how the batch is cut must never show in what is learned."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from training_support import (
    VOCABULARY,
    ByReward,
    algorithm,
    batch_of,
    ragged_samples,
    tiny_model,
    trajectory,
)

from arealite.data.batch import Sample, to_batch
from arealite.data.micro_batch import micro_batches
from arealite.training.logprobs import token_logprobs
from arealite.types import Episode

LOSS = algorithm().loss


def _loss_and_gradient(samples: list[Sample], budget: int) -> tuple[float, dict[str, torch.Tensor]]:
    model = tiny_model(dtype=torch.float64)
    n_tokens = batch_of(samples).n_tokens
    total = 0.0
    for micro in micro_batches(samples, budget):
        logprobs, _ = token_logprobs(model, micro, 1.0)
        loss = LOSS(logprobs, micro)[0] / n_tokens
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("budget", [1, 30, 70, 200])
def test_any_cut_gives_the_same_loss_and_gradient(budget: int) -> None:
    samples = ragged_samples(11, seed=2)
    whole, gradient = _loss_and_gradient(samples, 10**6)
    shuffled = random.Random(budget).sample(samples, len(samples))
    cut, cut_gradient = _loss_and_gradient(shuffled, budget)
    # the forward's logits are float32 on their way into the softmax: 1e-5, not 1e-12
    assert cut == pytest.approx(whole, rel=1e-5)
    for name, expected in gradient.items():
        torch.testing.assert_close(cut_gradient[name], expected, rtol=1e-4, atol=1e-6)


def test_padding_never_leaks_into_a_log_probability() -> None:
    model = tiny_model()
    samples = ragged_samples(9, seed=3)
    ordered = sorted(samples, key=lambda s: s.trained[-1], reverse=True)
    (micro,) = micro_batches(samples, 10**6)
    together, _ = token_logprobs(model, micro, 1.0)
    alone = []
    for sample in ordered:
        logits = model(input_ids=torch.tensor([sample.tokens])).logits[0].float()
        logprobs = logits.log_softmax(-1)
        alone += [logprobs[i - 1, sample.tokens[i]] for i in sample.trained]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model = tiny_model()
    (micro,) = micro_batches(ragged_samples(6, seed=4), 10**6)
    before, _ = token_logprobs(model, micro, 1.0)
    lengths = sorted((s.trained[-1] for s in ragged_samples(6, seed=4)), reverse=True)
    for row, length in enumerate(lengths):
        micro.input_ids[row, length:] = VOCABULARY - 1
    after, _ = token_logprobs(model, micro, 1.0)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_micro_batches_keep_every_token_once_and_the_budget() -> None:
    samples = ragged_samples(20, seed=5)
    seen, widths = [], []
    for micro in micro_batches(samples, 60):
        rows, width = micro.input_ids.shape
        assert rows * width <= 60
        assert len(micro.source) == len(micro.targets) == len(micro.behave) == len(micro.advantages)
        before = micro.input_ids.flatten()[micro.source].tolist()
        behave = [round(b, 4) for b in micro.behave.tolist()]
        widths.append(width)
        seen += list(zip(before, micro.targets.tolist(), behave, strict=True))
    expected = [
        (s.tokens[i - 1], s.tokens[i], round(b, 4))
        for s in samples
        for i, b in zip(s.trained, s.behave, strict=True)
    ]
    assert sorted(seen) == sorted(expected)
    assert widths == sorted(widths, reverse=True)


def test_a_sample_longer_than_the_budget_travels_alone() -> None:
    samples = ragged_samples(3, seed=6, longest=20)
    assert [m.input_ids.shape[0] for m in micro_batches(samples, 1)] == [1, 1, 1]
    assert list(micro_batches([], 100)) == []


def test_a_sample_that_teaches_nothing_is_left_out_but_counted() -> None:
    group = Episode(
        "0:0", 0, (trajectory(0.0, [0, 0, 0]), trajectory(1.0, [0, 0]), trajectory(-1.0, [0]))
    )
    batch = to_batch([group], ByReward(), version=0, max_lag=0)
    assert [s.advantage for s in batch.samples] == [1.0, -1.0]
    assert batch.n_tokens == 3 + 2 + 1
    assert batch.samples[0].tokens == group.trajectories[1].tokens


def test_leaving_it_out_changes_nothing() -> None:
    samples = ragged_samples(5, seed=7)
    idle = Sample(samples[0].tokens, samples[0].trained, [b + 1 for b in samples[0].behave], 0.0)
    _, without = _loss_and_gradient(samples, 10**6)
    _, with_it = _loss_and_gradient([*samples, idle], 10**6)
    scale = (batch_of(samples).n_tokens + len(idle.trained)) / batch_of(samples).n_tokens
    for name, expected in without.items():
        torch.testing.assert_close(with_it[name] * scale, expected, rtol=1e-4, atol=1e-6)


def test_tokens_older_than_the_bound_are_masked() -> None:
    old_and_young = trajectory(1.0, [3, 4, 5, 6, 7])
    too_old = trajectory(2.0, [1, 2])
    episode = Episode("0:0", 3, (old_and_young, too_old))
    batch = to_batch([episode], ByReward(), version=7, max_lag=2)
    (sample,) = batch.samples
    assert list(sample.trained) == [4, 5, 6]  # versions 5, 6, 7
    assert list(sample.behave) == [old_and_young.logprobs[i] for i in sample.trained]
    assert batch.n_tokens == 3
    assert batch.stats["staleness/masked_tokens"] == 4.0
    assert batch.stats["staleness/max"] == 2.0
    assert batch.stats["staleness/mean"] == 1.0


def test_a_tools_tokens_are_context_and_never_trained() -> None:
    turns = trajectory(1.0, [0, 0, 0, 0])
    mixed = type(turns)(
        turns.tokens, [0, 0, 1, 0, 0, 1], turns.logprobs, [-1, -1, 0, -1, -1, 0], 1.0
    )
    (sample,) = to_batch([Episode("0:0", 0, (mixed,))], ByReward(), 0, 0).samples
    assert list(sample.trained) == [2, 5]
    (micro,) = micro_batches([sample], 100)
    assert micro.source.tolist() == [1, 4]
    assert micro.targets.tolist() == [mixed.tokens[2], mixed.tokens[5]]


def test_an_advantage_belongs_to_its_own_sample() -> None:
    group = (trajectory(0.5, [0] * 2, seed=1), trajectory(-2.0, [0] * 5, seed=2))
    batch = to_batch([Episode("0:0", 0, group)], ByReward(), 0, 0)
    (micro,) = micro_batches(batch.samples, 1000)
    assert micro.advantages.tolist() == [-2.0] * 5 + [0.5] * 2  # longest first


def test_a_batch_of_nothing_has_a_normaliser() -> None:
    equal = Episode("0:0", 0, (trajectory(0.0, [0]), trajectory(0.0, [0])))
    batch = to_batch([equal], ByReward(), version=9, max_lag=1)
    assert (batch.samples, batch.n_tokens) == ([], 1)


def test_what_is_known_before_the_step() -> None:
    group = (
        trajectory(1.0, [4, 4, 5], components={"right": 1.0}, truncated=True),
        trajectory(0.0, [5]),
    )
    stats = to_batch([Episode("0:0", 4, group)], ByReward(), version=5, max_lag=1).stats
    assert stats["reward/mean"] == 0.5
    assert stats["reward/right"] == 0.5
    assert stats["rollout/completion_length"] == 2.0
    assert stats["rollout/truncated"] == 0.5
    assert stats["staleness/mean"] == 0.5
    assert stats["staleness/max"] == 1.0


class _Choosing(ByReward):
    """Reward 9 is no credit at all; weights are the group's number."""

    def credit(self, episodes: Sequence[Episode]) -> list[list[float | None]]:
        return [[None if r == 9.0 else r for r in group] for group in super().credit(episodes)]

    def weigh(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        self.lengths = lengths
        return [[float(g)] * len(group) for g, group in enumerate(lengths)]


def test_a_sample_without_credit_leaves_the_loss_and_its_mean() -> None:
    episodes = [
        Episode("0:0", 5, (trajectory(1.0, [5, 5]), trajectory(9.0, [3, 5, 5]))),
        Episode("0:1", 5, (trajectory(0.0, [5]), trajectory(2.0, [3, 5]))),
    ]
    rule = _Choosing()
    batch = to_batch(episodes, rule, version=5, max_lag=1)
    assert rule.lengths == [[2, 0], [1, 1]]
    assert batch.n_tokens == 4
    assert [(s.advantage, s.weight, s.group) for s in batch.samples] == [
        (1.0, 0.0, 0),
        (2.0, 1.0, 1),
    ]
    assert batch.stats["train/samples"] == 4.0
    assert batch.stats["train/excluded_samples"] == 1.0
    assert batch.stats["train/idle_samples"] == 1.0
    assert batch.stats["staleness/masked_tokens"] == 1.0  # not those of the excluded sample
    (micro,) = micro_batches(batch.samples, 100)
    assert micro.weights.tolist() == [0.0, 0.0, 1.0]
    assert micro.sequence.tolist() == [0, 0, 1]
