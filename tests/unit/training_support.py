"""Tiny models, tokenizers and ragged samples for the trainer's tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.config import ActorConfig, Config, MicroBatchSpec, OptimizerConfig
from arealite.data.batch import Batch, Sample
from arealite.data.micro_batch import MicroBatch
from arealite.types import Episode, Trajectory

VOCABULARY = 61


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = True) -> Any:
    """A random Qwen2 whose weights are large enough that every token matters."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else 0.15 * noise)
    return model.to(dtype)


def tiny_tokenizer(chat: bool = True) -> Any:
    """One token per character."""
    characters = ["<pad>", "<eos>", "<unk>", *"0123456789+-*/()= abcdefghijklmnopqrstuvwxyz:?\n"]
    tokenizer = Tokenizer(
        models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    if chat:
        fast.chat_template = (
            "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}"
        )
    return fast


def config_for(max_tokens: int = 4096, minibatches: int = 1, **optimizer: Any) -> Config:
    """A CPU configuration; the optimizer's fields may be given."""
    actor = ActorConfig(
        dtype="float32",
        device="cpu",
        mb_spec=MicroBatchSpec(max_tokens),
        ppo_n_minibatches=minibatches,
        optimizer=OptimizerConfig(**({"lr": 1e-2} | optimizer)),
    )
    return replace(Config(), experiment_name="unit", actor=actor)


def algorithm(max_new_tokens: int = 256, **actor: Any) -> PolicyGradient:
    """The algorithm with some of the actor's settings given."""
    config = replace(Config(), actor=ActorConfig(**actor))
    return PolicyGradient(
        replace(config, gconfig=config.gconfig.new(max_new_tokens=max_new_tokens))
    )


class ByReward:
    """An algorithm whose advantages are the rewards themselves, under the token mean."""

    idle_at_zero = True

    def credit(self, episodes: Sequence[Episode]) -> list[list[float | None]]:
        return [[t.reward for t in episode.trajectories] for episode in episodes]

    def weigh(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[1.0] * len(group) for group in lengths]

    def loss(
        self, logprobs: torch.Tensor, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return -(logprobs * batch.advantages).sum(), {}


def tokens_of(
    behave: torch.Tensor,
    advantages: torch.Tensor,
    sequence: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    prox: torch.Tensor | None = None,
) -> MicroBatch:
    """A micro-batch as a loss sees it: without tokens to compute; by default one sample."""
    n = len(behave)
    nothing = torch.zeros(n, dtype=torch.int64)
    return MicroBatch(
        input_ids=nothing[None],
        source=nothing,
        targets=nothing,
        behave=behave,
        advantages=advantages,
        sequence=nothing if sequence is None else sequence,
        weights=torch.ones_like(advantages) if weights is None else weights,
        prox=prox,
    )


def ragged_samples(n: int, seed: int = 0, longest: int = 24) -> list[Sample]:
    """Random samples of different lengths, with holes in what is trained."""
    rng = random.Random(seed)
    samples = []
    for _ in range(n):
        length = rng.randint(4, longest)
        prompt = rng.randint(1, length - 2)
        trained = [i for i in range(prompt, length) if rng.random() < 0.8] or [length - 1]
        samples.append(
            Sample(
                tokens=[rng.randrange(VOCABULARY) for _ in range(length)],
                trained=trained,
                behave=[-rng.uniform(0.5, 6.0) for _ in trained],
                advantage=rng.choice([-1.5, -0.3, 0.4, 2.0]),
            )
        )
    return samples


def batch_of(samples: list[Sample]) -> Batch:
    return Batch(samples, sum(len(s.trained) for s in samples))


def trajectory(
    reward: float, versions: list[int], prompt: int = 2, seed: int = 0, **fields: Any
) -> Trajectory:
    """A trajectory with one sampled token per version."""
    rng = random.Random(f"{seed}:{reward}:{versions}")
    m = len(versions)
    return Trajectory(
        tokens=[rng.randrange(VOCABULARY) for _ in range(prompt + m)],
        loss_mask=[0] * prompt + [1] * m,
        logprobs=[0.0] * prompt + [-rng.uniform(0.5, 6.0) for _ in range(m)],
        versions=[-1] * prompt + versions,
        reward=reward,
        **fields,
    )


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def saved(folder: Path, seed: int = 0) -> Path:
    """The tiny model as a Hugging Face folder."""
    tiny_model(seed).save_pretrained(folder)
    return folder
