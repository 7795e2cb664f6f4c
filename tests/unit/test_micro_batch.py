"""A group's prompt computed once: the same numbers and gradients, fewer positions."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_support import VOCABULARY, algorithm, config_for, tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from arealite.data.batch import Batch, Sample
from arealite.data.micro_batch import micro_batches
from arealite.training.logprobs import can_share_prompts, token_logprobs
from arealite.training.policy import Policy

LOSS = algorithm().loss


def groups(sizes: list[int], seed: int = 0, shortest: int = 2, longest: int = 9) -> list[Sample]:
    """Groups of samples behind one prompt each; -1 is a sample of its own."""
    rng = random.Random(seed)
    samples = []
    for number, size in enumerate(sizes):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12))]
        for _ in range(abs(size)):
            answer = [rng.randrange(VOCABULARY) for _ in range(rng.randint(shortest, longest))]
            trained = range(len(prompt), len(prompt) + len(answer))
            samples.append(
                Sample(
                    [*prompt, *answer],
                    trained,
                    [-rng.uniform(0.5, 6.0) for _ in trained],
                    rng.choice([-1.5, -0.3, 0.4, 2.0]),
                    group=number if size > 0 else None,
                )
            )
    return samples


def gradient(model: Any, samples: list[Sample], budget: int, share: bool) -> list[torch.Tensor]:
    for micro in micro_batches(samples, budget, share):
        LOSS(token_logprobs(model, micro, 0.9)[0], micro)[0].backward()
    return [p.grad for p in model.parameters()]


def positions(samples: list[Sample], budget: int, share: bool) -> int:
    return sum(
        m.input_ids.numel() + (m.prefix.ids.numel() if m.prefix else 0)
        for m in micro_batches(samples, budget, share)
    )


SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize("budget", [40, 150, 10**6])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_sharing_changes_no_gradient(family: str, budget: int) -> None:
    def model() -> Any:
        if family == "qwen2":
            return tiny_model()
        torch.manual_seed(1)
        config = Qwen3Config if family == "qwen3" else LlamaConfig
        return AutoModelForCausalLM.from_config(config(**SHAPE))

    samples = groups([5, 4, -1, 6, 1], seed=3)
    assert any(m.prefix is not None for m in micro_batches(samples, budget, True))
    shared = gradient(model(), samples, budget, share=True)
    alone = gradient(model(), samples, budget, share=False)
    for mine, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([-2, -1, 1, 2, 5]), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    budget=st.sampled_from([1, 25, 80, 10**6]),
)
def test_every_token_once_and_within_the_budget(sizes: list[int], seed: int, budget: int) -> None:
    samples = groups(sizes, seed)
    seen = []
    for micro in micro_batches(samples, budget, True):
        size = micro.input_ids.numel() + (micro.prefix.ids.numel() if micro.prefix else 0)
        assert size <= budget or len(micro.input_ids) == 1
        seen += micro.behave.tolist()
        before = micro.input_ids.flatten()[micro.source]
        assert len(before) == len(micro.targets) == len(micro.advantages)
    assert sorted(seen) == pytest.approx(sorted(b for s in samples for b in s.behave), abs=1e-5)
    assert positions(samples, budget, True) <= positions(samples, budget, False)


def test_a_prompt_of_many_samples_is_computed_once() -> None:
    prompt, answers = list(range(10)), [[20 + i, 30 + i] for i in range(4)]
    samples = [Sample([*prompt, *a], [10, 11], [0.0, 0.0], 1.0, group=7) for a in answers]
    (micro,) = micro_batches(samples, 1000, True)
    assert micro.prefix is not None
    assert micro.prefix.ids.tolist() == [prompt[:9]]  # the last one predicts the first answer token
    assert micro.input_ids.tolist() == [[9, a[0]] for a in answers]
    assert micro.prefix.of_row.tolist() == [0, 0, 0, 0]


def test_a_workflow_that_varies_the_prompt_shares_nothing() -> None:
    samples = groups([4])
    samples[2] = replace(samples[2], tokens=[60 - t for t in samples[2].tokens])
    assert all(m.prefix is None for m in micro_batches(samples, 1000, True))


def test_ragged_groups_are_sorted_by_length_where_that_is_cheaper() -> None:
    samples = groups([2] * 20, seed=1, shortest=2, longest=90)
    for budget in (100, 1000):
        assert positions(samples, budget, True) <= positions(samples, budget, False)
    long_answers = [
        replace(s, tokens=[*s.tokens[:-1], *([5] * (300 if i % 2 else 0)), s.tokens[-1]])
        for i, s in enumerate(groups([2] * 20, seed=1))
    ]
    long_answers = [replace(s, trained=[len(s.tokens) - 1], behave=[0.0]) for s in long_answers]
    assert all(m.prefix is None for m in micro_batches(long_answers, 1000, True))


class _NoCache(nn.Module):
    """A model whose cache is not what it seems."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.inner, self.wrong = tiny_model(), wrong
        self.config = self.inner.config

    def get_decoder(self) -> Any:
        def body(**inputs: Any) -> Any:
            if self.wrong and inputs.get("past_key_values") is not None:
                inputs["attention_mask"] = None
                inputs["position_ids"] = None
            elif not self.wrong and inputs.get("use_cache"):
                raise NotImplementedError("no cache here")
            return self.inner.get_decoder()(**inputs)

        return body

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()


def test_a_model_without_a_plain_cache_is_found_out() -> None:
    assert can_share_prompts(tiny_model())
    assert can_share_prompts(tiny_model(dtype=torch.bfloat16))
    assert not can_share_prompts(_NoCache(wrong=True))
    assert not can_share_prompts(_NoCache(wrong=False))


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_whole_step_is_the_same(minibatches: int) -> None:
    samples = groups([4, 3, 5], seed=5)
    batch = Batch(samples, sum(len(s.trained) for s in samples))
    after = []
    for share in (True, False):
        config = config_for(minibatches=minibatches, eps=1e-3)
        config = replace(config, actor=replace(config.actor, share_prompts=share))
        policy = Policy(tiny_model(), config, 2)
        assert policy.update(batch, LOSS)["time/update_s"] > 0
        after.append([p.detach().clone() for p in policy.model.parameters()])
    for mine, other in zip(*after, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
