"""Speed of the training step: against a bare PyTorch loop, and packed against padded.

    python benchmarks/training_step.py [--rounds 5] [--threads 1] [--out FOLDER]

All ways train one model (a Qwen2 of the demo's shape unless --hidden and --layers say otherwise) on
the same samples, in turn, so that a machine whose speed drifts slows all of them. Seconds are the
process's own on a core (with more than one thread, on all of them together), so that neighbours on
the machine hardly count. Tokens are those of the samples, without padding and without repetition.

packed, padded: `Policy.update`, cutting and collating included; padded rows are sorted by length.
bare: forward, cross entropy, backward, clipping and fused AdamW written by hand over tensors made
beforehand, with the same attention over the same packed rows. bare_padded: the same, padded, rows
in the samples' own order. bare_block_mask: packed, with transformers' own mask over the row.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from saving import save
from transformers import Qwen2Config, Qwen2ForCausalLM

from arealite.config import ActorConfig, Config, MicroBatchSpec, OptimizerConfig
from arealite.data.batch import Batch, Sample
from arealite.data.micro_batch import MicroBatch, micro_batches
from arealite.training.attention import NAME
from arealite.training.policy import Policy
from arealite.training.sft import cross_entropy

SHORTEST, LONGEST = 16, 256
Pieces = list[MicroBatch]


def make_model(options: argparse.Namespace) -> Qwen2ForCausalLM:
    """Random weights; the same each time."""
    torch.manual_seed(1)
    heads = max(options.hidden // 32, 1)
    config = Qwen2Config(
        vocab_size=576,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def make_samples(n: int) -> list[Sample]:
    """Lengths uniform from 16 to 256; all but the first eight tokens are trained."""
    rng = random.Random(1)
    samples = []
    for _ in range(n):
        tokens = [rng.randrange(576) for _ in range(rng.randint(SHORTEST, LONGEST) + 1)]
        samples.append(Sample(tokens, range(8, len(tokens)), [0.0] * (len(tokens) - 8), 1.0))
    return samples


def step_of(options: argparse.Namespace, packing: bool) -> Callable[[Batch], None]:
    """The trainer's own step."""
    spec = MicroBatchSpec(options.budget, packing=packing)
    actor = ActorConfig(dtype="float32", mb_spec=spec, optimizer=OptimizerConfig(lr=1e-4))
    policy = Policy(make_model(options), replace(Config(), mode="sft", actor=actor), 10**6)

    def step(batch: Batch) -> None:
        policy.update(batch, cross_entropy)

    return step


def bare(options: argparse.Namespace, block_mask: bool = False) -> Callable[[Pieces], None]:
    """What one would write by hand, over tensors that are ready."""
    model: Any = make_model(options)
    if not block_mask:
        model.set_attn_implementation(NAME)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step(pieces: Pieces) -> None:
        n_tokens = sum(len(micro.targets) for micro in pieces)
        for micro in pieces:
            how: dict[str, Any] = {}
            if micro.packing is not None:
                how["position_ids"] = micro.packing.position_ids
                if not block_mask:
                    how["packing"] = micro.packing
            output = model.model(input_ids=micro.input_ids, use_cache=False, **how)
            logits = model.lm_head(output.last_hidden_state.flatten(0, 1)[micro.source])
            loss: Any = F.cross_entropy(logits, micro.targets, reduction="sum") / n_tokens
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def as_given(samples: list[Sample], budget: int) -> Pieces:
    """Padded rows in the samples' own order."""
    size = max(budget // LONGEST, 1)
    lots = [samples[i : i + size] for i in range(0, len(samples), size)]
    return [micro for lot in lots for micro in micro_batches(lot, size * LONGEST)]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    samples = make_samples(options.samples)
    batch = Batch(samples, sum(len(s.trained) for s in samples))
    rows, given = (
        list(micro_batches(samples, options.budget, True)),
        as_given(samples, options.budget),
    )
    tokens = sum(len(s.tokens) - 1 for s in samples)
    ways = {
        "bare": partial(bare(options), rows),
        "packed": partial(step_of(options, True), batch),
        "padded": partial(step_of(options, False), batch),
        "bare_padded": partial(bare(options), given),
        "bare_block_mask": partial(bare(options, block_mask=True), rows),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, step in ways.items():
            started = time.process_time()
            step()
            if number:  # the first round warms up
                rates[name].append(tokens / (time.process_time() - started))

    def ratio(one: str, other: str) -> float:
        pairs = zip(rates[one], rates[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "tokens": tokens,
        "micro_batches": len(rows),
        "padding_as_given": round(1 - tokens / sum(m.input_ids.numel() for m in given), 3),
        "tokens_per_cpu_s": {name: round(statistics.median(of)) for name, of in rates.items()},
        **{f"packed/{other}": ratio("packed", other) for other in ways if other != "packed"},
        "bare/bare_padded": ratio("bare", "bare_padded"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--budget", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for training-step-<date>.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.__dict__.pop("out")
    result = {"torch": torch.__version__, **vars(options), **measure(options)}
    print(json.dumps(result, indent=1))
    save(folder, "training-step", result)


if __name__ == "__main__":
    main()
