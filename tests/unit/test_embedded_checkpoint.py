"""Reading checkpoints and configurations: what is accepted, what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from arealite.engines.embedded.server import model_folder
from arealite.engines.embedded.spec import read_spec
from arealite.engines.embedded.weights import BadWeights, Weights, read_folder
from arealite.errors import ConfigError

SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LlamaForCausalLM(LlamaConfig(**SIZES, eos_token_id=[3, 4])).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path) -> Weights:
    weights = Weights(read_spec(folder), torch.device("cpu"), torch.float32)
    staged = read_folder(folder)
    weights.check(staged)
    weights.load(staged)
    return weights


def test_a_sharded_checkpoint_is_the_same_as_a_whole_one(folder: Path) -> None:
    whole = load(folder)
    tensors = read_folder(folder)
    (folder / "model.safetensors").unlink()
    index = {}
    for part in (0, 1):
        name = f"model-{part}.safetensors"
        shard = {k: v for i, (k, v) in enumerate(sorted(tensors.items())) if i % 2 == part}
        save_file(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sharded = load(folder)
    assert torch.equal(whole.head, sharded.head)
    for one, other in zip(whole.layers, sharded.layers, strict=True):
        assert torch.equal(one.qkv, other.qkv)
        assert torch.equal(one.gate_up, other.gate_up)
    assert whole.parameters == sum(t.numel() for t in tensors.values())


def test_a_shard_that_is_missing_or_damaged_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadWeights, match="cannot be read"):
        read_folder(folder)
    path.unlink()
    with pytest.raises(BadWeights, match=r"no \*\.safetensors"):
        read_folder(folder)


def test_an_untied_head_must_be_there(folder: Path) -> None:
    staged = read_folder(folder)
    del staged["lm_head.weight"]
    weights = Weights(read_spec(folder), torch.device("cpu"), torch.float32)
    with pytest.raises(BadWeights, match=r"lm_head\.weight is missing"):
        weights.check(staged)


def test_the_end_tokens_come_from_the_config(folder: Path) -> None:
    assert read_spec(folder).eos_ids == (3, 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    Qwen2Config(**SIZES, **change).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "mamba"}'])
def test_a_config_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        read_spec(tmp_path)


def test_a_hub_id_is_served_from_the_hubs_own_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--who--what"
    snapshot = cached / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0a1b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert model_folder("who/what") == snapshot
    with pytest.raises(
        ConfigError, match="there is no folder who/else here, and taken as a hub id it cannot"
    ):
        model_folder("who/else")


def test_a_folder_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_folder("~/m") == tmp_path / "m"
