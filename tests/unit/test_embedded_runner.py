"""The runner's prefill, decode, copy and move against a transformers forward, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from arealite.engines.embedded.runner import Runner
from arealite.engines.embedded.spec import read_spec
from arealite.engines.embedded.weights import Weights, read_folder

CONFIG = Qwen3Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
LENGTHS = (9, 1, 23, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    model = Qwen3ForCausalLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn_like(parameter)
            parameter.copy_(parameter + noise if parameter.dim() == 1 else noise)
    path = tmp_path_factory.mktemp("qwen3")
    model.save_pretrained(path)
    return path


def make(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Runner:
    weights = Weights(read_spec(folder), torch.device("cpu"), dtype)
    staged = read_folder(folder)
    weights.check(staged)
    weights.load(staged)
    return Runner(weights, slots=5, context=64, **options)


def worst_difference(runner: Runner, folder: Path, steps: int = 6) -> float:
    """Teacher-forced decoding of ragged sequences, with a copy and a move on the way."""
    model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = [torch.randint(0, 61, (n + steps,)).tolist() for n in LENGTHS]
    rows[3] = rows[2][: LENGTHS[2]] + torch.randint(0, 61, (steps,)).tolist()
    starts = [n - 1 for n in (*LENGTHS[:3], LENGTHS[2])]
    fill = [0, 2, 4]  # slot 4 plays the one that is moved to 0 later
    runner.prefill([rows[i][: starts[i]] for i in (0, 2, 0)], fill)
    runner.copy(2, [3], starts[3])
    runner.see([4], [starts[0]])
    runner.see(range(4), starts)
    runner.clear(0)
    runner.move(4, 0, starts[0])
    worst = 0.0
    with torch.inference_mode():
        wanted = [model(torch.tensor([row])).logits[0].log_softmax(-1) for row in rows]
        for step in range(steps):
            at = [start + step for start in starts]
            tokens = torch.tensor([row[i] for row, i in zip(rows, at, strict=True)] + [0])
            logits = runner.decode(tokens, torch.tensor([*at, 0]), 4, max(at) + 1)
            got = logits.log_softmax(-1)
            for slot, position in enumerate(at):
                difference = (got[slot] - wanted[slot][position]).abs().max()
                worst = max(worst, float(difference))
    return worst


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_ragged_decoding_is_the_models_forward(
    folder: Path, fused: bool, deterministic: bool
) -> None:
    torch.manual_seed(0)
    runner = make(folder, deterministic=deterministic)
    if fused:  # the way a GPU goes
        runner._on_cpu = False
    assert worst_difference(runner, folder) < 1e-4


@pytest.mark.parametrize("fused", [False, True])
def test_bfloat16_is_near(folder: Path, fused: bool) -> None:
    torch.manual_seed(0)
    runner = make(folder, torch.bfloat16)
    if fused:
        runner._on_cpu = False
    assert worst_difference(runner, folder) < 0.3


def test_score_is_the_models_forward_and_touches_no_slot(folder: Path) -> None:
    runner = make(folder)
    model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(0, 61, (40,)).tolist()
    with torch.inference_mode():
        logprobs = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    wanted = logprobs.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert torch.allclose(torch.tensor(runner.score(tokens)), wanted, atol=1e-4)
    assert not runner.cache.any()
    assert runner.score([3]) == []
