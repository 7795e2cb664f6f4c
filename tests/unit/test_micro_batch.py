"""Packed and padded micro-batches: the same numbers and gradients, over fewer positions."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_support import VOCABULARY, algorithm, config_for, tiny_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from arealite.config import MicroBatchSpec
from arealite.data.batch import Batch, Sample
from arealite.data.micro_batch import micro_batches
from arealite.training.attention import NAME
from arealite.training.logprobs import token_logprobs, use_packing
from arealite.training.policy import Policy

LOSS = algorithm().loss


def groups(
    sizes: list[int], seed: int = 0, shortest: int = 2, longest: int = 9, frame: int = 0
) -> list[Sample]:
    """Groups of samples behind one prompt each; -1 is a sample of its own; a beginning of all."""
    rng = random.Random(seed)
    beginning = [rng.randrange(VOCABULARY) for _ in range(frame)]
    samples = []
    for number, size in enumerate(sizes):
        own = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 12))]
        prompt = [*beginning, *own]
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


def loss_and_gradient(
    model: Any, samples: list[Sample], budget: int, packed: bool, share: bool = True
) -> list[torch.Tensor]:
    """Of the mean over tokens, as the training step divides it."""
    n_tokens = sum(len(s.trained) for s in samples)
    total = torch.zeros(())
    for micro in micro_batches(samples, budget, packed, share):
        loss = LOSS(token_logprobs(model, micro, 0.9)[0], micro)[0] / n_tokens
        loss.backward()
        total += loss.detach()
    return [total, *(p.grad for p in model.parameters())]


def positions(samples: list[Sample], budget: int, packed: bool, share: bool = False) -> int:
    return sum(m.input_ids.numel() for m in micro_batches(samples, budget, packed, share))


SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "head_dim": 8,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "llama": lambda: LlamaConfig(**SHAPE),
    "gemma": lambda: GemmaConfig(**SHAPE, pad_token_id=0),
    # its first layer sees six tokens, fewer than a sample has
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE,
        pad_token_id=0,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


def of_family(family: str) -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


@pytest.mark.parametrize(("budget", "frame"), [(40, 0), (150, 7), (10**6, 0), (10**6, 7)])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_padded_give_the_same_loss_and_gradients(
    family: str, budget: int, frame: int
) -> None:
    samples = groups([5, 4, -1, 6, 1], seed=3, frame=frame)
    padded = loss_and_gradient(of_family(family), samples, budget, packed=False)
    for share in (False, True):
        model = of_family(family)
        assert use_packing(model)
        packed = loss_and_gradient(model, samples, budget, True, share)
        for mine, other in zip(packed, padded, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([-2, -1, 1, 2, 5]), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    budget=st.sampled_from([1, 25, 80, 10**6]),
    packed=st.booleans(),
    share=st.booleans(),
    frame=st.sampled_from([0, 5]),
)
def test_every_token_once_and_within_the_budget(
    sizes: list[int], seed: int, budget: int, packed: bool, share: bool, frame: int
) -> None:
    samples = groups(sizes, seed, frame=frame)
    seen = []
    for micro in micro_batches(samples, budget, packed, share):
        n_samples = len(set(micro.sequence.tolist()))
        assert micro.input_ids.numel() <= budget or n_samples == 1
        assert micro.sequence.tolist() == sorted(micro.sequence.tolist())
        before = micro.input_ids.flatten()[micro.source]
        seen += zip(before.tolist(), micro.targets.tolist(), micro.behave.tolist(), strict=True)
    expected = [
        (s.tokens[i - 1], s.tokens[i], b)
        for s in samples
        for i, b in zip(s.trained, s.behave, strict=True)
    ]
    for mine, other in zip(sorted(seen), sorted(expected), strict=True):
        assert mine == pytest.approx(other, abs=1e-5)


def test_packing_computes_no_padding_and_a_prompt_once() -> None:
    samples = groups([3, -2], seed=2)
    lengths = [len(s.tokens) - 1 for s in samples]
    prompt = samples[0].trained[0]
    assert positions(samples, 10**6, packed=True) == sum(lengths)
    assert positions(samples, 10**6, packed=True, share=True) == sum(lengths) - 2 * prompt
    assert positions(samples, 10**6, packed=False) == len(samples) * max(lengths)


def test_a_prompt_of_many_samples_is_computed_once() -> None:
    prompt, answers = list(range(10)), [[20 + i, 30 + i] for i in range(3)] + [[50]]
    samples = [
        Sample([*prompt, *a], range(10, 10 + len(a)), [0.0] * len(a), 1.0, group=7) for a in answers
    ]
    samples.append(Sample([60, 61], [1], [0.0], 1.0))
    (micro,) = micro_batches(samples, 1000, True, True)
    assert micro.packing is not None
    # an answer's last token predicts nothing
    assert micro.input_ids.tolist() == [[*prompt, 20, 21, 22, 60]]
    assert micro.packing.position_ids.tolist() == [[*range(10), 10, 10, 10, 0]]
    # the prompt's last token predicts every answer's first one
    assert micro.source.tolist() == [9, 10, 9, 11, 9, 12, 9, 13]
    assert micro.targets.tolist() == [20, 30, 21, 31, 22, 32, 50, 61]


def test_a_group_above_the_budget_repeats_its_prompt() -> None:
    samples = groups([8], seed=4)
    prompt = samples[0].trained[0]
    pieces = list(micro_batches(samples, prompt + 20, True, True))
    assert len(pieces) > 1
    assert all(m.input_ids[0, :prompt].tolist() == samples[0].tokens[:prompt] for m in pieces)


def test_what_all_samples_begin_with_is_computed_once() -> None:
    system, prompts = [7, 8, 9], [[10, 11], [20, 21], [30]]
    samples = [
        Sample([*system, *p, 40 + i, 50 + i], [len(p) + 3, len(p) + 4], [0.0] * 2, 1.0)
        for i, p in enumerate(prompts)
    ]
    samples[1:1] = [replace(samples[0], group=5)] * 2
    (micro,) = micro_batches(samples, 1000, True, True)
    assert micro.packing is not None
    ids, places = micro.input_ids[0].tolist(), micro.packing.position_ids[0].tolist()
    assert sorted(zip(places[3:], ids[3:], strict=True)) == [
        *[(3, 10)] * 2, (3, 20), (3, 30), *[(4, 11)] * 2, (4, 21), (4, 42), *[(5, 40)] * 3, (5, 41),
    ]  # fmt: skip
    assert (ids[:3], places[:3]) == (system, [0, 1, 2])
    long = [*range(9), *[1] * 99]
    barely = [replace(s, tokens=[*s.tokens, *long], trained=[99], behave=[0.0]) for s in samples]
    # 3 of 99 tokens are not worth a mask; the group's two samples are the same all through
    assert positions(barely, 10**6, True, True) == 4 * 99


def test_a_workflow_that_varies_the_prompt_shares_what_is_left() -> None:
    samples = groups([4])
    samples[2] = replace(samples[2], tokens=[60 - t for t in samples[2].tokens])
    assert positions(samples, 1000, True, True) == positions(samples, 1000, True, False)


def test_what_follows_the_last_trained_token_is_not_computed() -> None:
    sample = replace(groups([-1], seed=1)[0], trained=[3, 5], behave=[0.0, 0.0])
    assert positions([sample], 1000, packed=True) == positions([sample], 1000, packed=False) == 5


class _Foreign(nn.Module):
    """A model whose attention hears nothing of packing, or that refuses to be told."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.inner, self.refuses = tiny_model(), refuses
        self.config = self.inner.config

    def set_attn_implementation(self, name: str) -> None:
        if name == NAME and self.refuses:
            raise NotImplementedError("no other attention here")

    def get_decoder(self) -> Any:
        return self.inner.get_decoder()

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()


def test_a_model_that_cannot_be_packed_is_found_out_and_padded() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert use_packing(tiny_model(dtype=dtype))
    assert use_packing(tiny_model().requires_grad_(False))  # a reference model
    for refuses in (False, True):
        model = _Foreign(refuses)
        assert not use_packing(model)
        assert model.config._attn_implementation == "sdpa"
    chunked = tiny_model()
    chunked.config.layer_types = ["chunked_attention", "full_attention"]
    assert not use_packing(chunked)


def test_a_saved_model_knows_nothing_of_packing(tmp_path: Path) -> None:
    model = tiny_model()
    assert use_packing(model)
    model.save_pretrained(tmp_path)
    assert "arealite" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_whole_step_is_the_same(minibatches: int, checkpointing: bool) -> None:
    samples = groups([4, 3, 5], seed=5)
    batch = Batch(samples, sum(len(s.trained) for s in samples))
    after = []
    for packing in (True, False):
        config = config_for(minibatches=minibatches, eps=1e-3)
        spec = MicroBatchSpec(40, packing=packing)
        config = replace(config, actor=replace(config.actor, mb_spec=spec))
        model = tiny_model()
        if packing and checkpointing:
            model.gradient_checkpointing_enable()
            model.train()
        policy = Policy(model, config, 2)
        policy.update(batch, LOSS)
        assert math.isfinite(policy.loss_of(samples, LOSS))
        after.append([p.detach().clone() for p in policy.model.parameters()])
    for mine, other in zip(*after, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
