"""LoRA: only the adapter learns; what is published is merged; the reference is the adapter off."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_micro_batch import groups, loss_and_gradient, of_family
from training_support import (
    VOCABULARY,
    batch_of,
    config_for,
    ragged_samples,
    saved,
    tiny_model,
    tiny_tokenizer,
    weights_of,
)
from transformers import AutoModelForCausalLM

from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.checkpoints.export import check_export
from arealite.checkpoints.manifest import MANIFEST, seal, verify
from arealite.checkpoints.store import Checkpoint
from arealite.config import Config, LoraConfig
from arealite.data.micro_batch import MicroBatch, micro_batches
from arealite.errors import ConfigError
from arealite.export import write_whole_model
from arealite.training.attention import NAME
from arealite.training.logprobs import token_logprobs, use_packing
from arealite.training.lora import FOLDER, Adapter
from arealite.training.policy import Policy
from arealite.training.sft import cross_entropy
from arealite.training.state import save_trainer
from arealite.training.weights import WEIGHTS_DIR, make_probe

pytest.importorskip("peft")

FAMILIES = ["qwen2", "llama"]


def folder_of(family: str, folder: Path) -> str:
    of_family(family).save_pretrained(folder)
    return str(folder)


def config_with(path: str = "", dtype: str = "float32", **actor: Any) -> Config:
    config = config_for(max_tokens=120)
    own = {"lora": LoraConfig(rank=4, alpha=8.0), "dtype": dtype, "path": path} | actor
    config = replace(config, actor=replace(config.actor, **own))
    return replace(config, ref=replace(config.ref, path=path))


def learn(policy: Policy, versions: Sequence[int]) -> dict[str, float]:
    rule, stats = PolicyGradient(policy.config), dict[str, float]()
    for version in versions:
        stats = policy.update(batch_of(ragged_samples(6, seed=version)), rule.loss)
        policy.version = version + 1
    return stats


def of_adapter(name: str) -> bool:
    return ".lora_" in name


@pytest.fixture
def weights_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_adapter_learns_and_is_in_the_optimizer(
    tmp_path: Path, family: str, dtype: str
) -> None:
    policy = Policy.load(config_with(folder_of(family, tmp_path), dtype), 10)
    before = weights_of(policy.model)
    assert learn(policy, [0, 1])["loss/grad_norm"] > 0
    after = weights_of(policy.model)
    learned = {name for name in before if of_adapter(name)}
    assert len(learned) == 2 * 2 * 7, "two matrices at each of seven layers of two blocks"
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) is (name not in learned), name
    moved = [p for group in policy.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in moved} == {
        id(p) for name, p in policy.model.named_parameters() if of_adapter(name)
    }
    assert all(p.dtype == torch.float32 for p in moved), "no copies are needed"


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_padded_give_the_same_loss_and_gradients(family: str) -> None:
    samples = groups([5, 4, -1, 6, 1], seed=3, frame=7)

    def gradients(packed: bool) -> list[torch.Tensor]:
        model = of_family(family)
        Adapter(model, LoraConfig(rank=4))
        for name, weight in model.named_parameters():  # B is 0 at first, and A learns nothing
            if "lora_B" in name:
                weight.data.copy_(torch.linspace(-0.1, 0.1, weight.numel()).view_as(weight))
        if packed:
            assert use_packing(model)
            assert model.config._attn_implementation == NAME
        loss, *_ = found = [
            g for g in loss_and_gradient(model, samples, 150, packed) if g is not None
        ]
        assert float(loss) != 0.0
        return found

    packed, padded = gradients(True), gradients(False)
    assert len(packed) == len(padded) == 1 + 28
    for mine, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_the_same_with_gradient_checkpointing(
    tmp_path: Path, checkpointing: bool
) -> None:
    path = folder_of("qwen2", tmp_path)
    plain = Policy.load(config_with(path), 10)
    other = Policy.load(config_with(path, gradient_checkpointing=checkpointing), 10)
    for policy in (plain, other):
        learn(policy, [0, 1])
    theirs = weights_of(other.model)
    for name, weight in weights_of(plain.model).items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)


def by_hand(model: Any, alpha_over_rank: float) -> dict[str, torch.Tensor]:
    """W + alpha / rank B A, in float64."""
    state = model.state_dict()
    merged = {}
    for name, weight in state.items():
        if of_adapter(name):
            continue
        plain = name.replace(".base_layer.", ".")
        if plain != name and name.endswith("weight"):
            a, b = (
                state[name.replace("base_layer", f"lora_{part}.default")].double() for part in "AB"
            )
            merged[plain] = (weight.double() + alpha_over_rank * (b @ a)).to(weight.dtype)
        else:
            merged[plain] = weight
    return merged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_published_is_merged_and_so_is_the_probe(
    tmp_path: Path, weights_dir: Path, family: str, dtype: str
) -> None:
    with Policy.load(config_with(folder_of(family, tmp_path / "m"), dtype), 10) as policy:
        learn(policy, [0, 1, 2])
        before = weights_of(policy.model)
        update = policy.export(3)
        after = weights_of(policy.model)
        assert all(torch.equal(after[name], before[name]) for name in before), "not a bit moved"
        assert all(p.requires_grad is of_adapter(n) for n, p in policy.model.named_parameters())
        wide = torch.float32 if dtype == "float32" else torch.bfloat16
        loaded = AutoModelForCausalLM.from_pretrained(update.path, dtype=wide).eval()
        expected = by_hand(policy.model, 2.0)
        assert set(loaded.state_dict()) == set(expected)
        for name, weight in loaded.state_dict().items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-2 if dtype != "float32"
                                       else 1e-6, atol=1e-6)  # fmt: skip
        probed = make_probe(loaded, VOCABULARY).logprobs
        assert update.probe.logprobs == pytest.approx(probed, abs=1e-5)
        own = make_probe(policy.model, VOCABULARY).logprobs
        near = 1e-4 if dtype == "float32" else 0.1
        assert own == pytest.approx(probed, abs=near)
        fresh = AutoModelForCausalLM.from_pretrained(policy.config.actor.path, dtype=wide)
        moved = max(
            abs(x - y) for x, y in zip(probed, make_probe(fresh, VOCABULARY).logprobs, strict=True)
        )
        assert moved > 5 * near or dtype != "float32"
        learn(policy, [3])  # and it goes on learning


def test_version_0_is_the_model_itself(tmp_path: Path, weights_dir: Path) -> None:
    path = str(saved(tmp_path / "m"))
    with Policy.load(config_with(path), 10) as policy:
        loaded = AutoModelForCausalLM.from_pretrained(policy.export(0).path)
        plain = weights_of(AutoModelForCausalLM.from_pretrained(path))
        assert all(torch.equal(plain[n], w) for n, w in weights_of(loaded).items())


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_the_reference_is_the_adapter_switched_off(tmp_path: Path, kl_in: str) -> None:
    path = str(saved(tmp_path / "m"))
    policy = Policy.load(config_with(path, kl_ctl=0.1, kl_in=kl_in), 10)
    assert policy._reference is None, "no second model"
    assert learn(policy, [0])["loss/ref_kl"] == pytest.approx(0.0, abs=1e-5)
    fresh = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    samples = ragged_samples(6, seed=1)

    def loss(logprobs: torch.Tensor, micro: MicroBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        assert logprobs.requires_grad
        (padded,) = micro_batches(micro.samples, 10**6)
        if micro.ref is not None:
            wanted = dict(zip(padded.targets.tolist(), token_logprobs(fresh, padded, 1.0)[0],
                              strict=True))  # fmt: skip
            for target, found in zip(micro.targets.tolist(), micro.ref, strict=True):
                if micro.targets.tolist().count(target) == 1:
                    torch.testing.assert_close(found, wanted[target], rtol=0, atol=1e-4)
        assert (micro.ref is not None) is (kl_in == "loss")
        return PolicyGradient(policy.config).loss(logprobs, micro)

    assert policy.update(batch_of(samples), loss)["loss/ref_kl"] > 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_goes_on_bit_for_bit_and_is_saved_for_peft(tmp_path: Path, dtype: str) -> None:
    from peft import PeftModel

    config = config_with(str(saved(tmp_path / "m")), dtype, kl_ctl=0.01)
    policy = Policy.load(config, 10)
    learn(policy, [0, 1])
    state, folder = policy.state(), tmp_path / "2"
    policy.write(state, tiny_tokenizer(), folder)
    save_trainer(state, folder)
    seal(folder, 2)
    assert {name for name in verify(folder)["files"] if "/" in name} == {
        f"{FOLDER}/adapter_config.json",
        f"{FOLDER}/adapter_model.safetensors",
    }
    (tmp_path / "whole").mkdir()
    write_whole_model(folder, verify(folder)["files"], tmp_path / "whole")
    assert {p.name for p in (tmp_path / "whole" / FOLDER).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    learn(policy, [2, 3])
    torch.manual_seed(77)
    again = Policy.load(config, 10, Checkpoint(folder, 2, {}))
    learn(again, [2, 3])
    ours = weights_of(again.model)
    assert all(torch.equal(ours[name], w) for name, w in weights_of(policy.model).items())

    wide = torch.float32 if dtype == "float32" else torch.bfloat16
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=wide).eval()
    base = AutoModelForCausalLM.from_pretrained(config.actor.path, dtype=wide)
    by_peft = PeftModel.from_pretrained(base, folder / FOLDER).eval()
    near = 1e-4 if dtype == "float32" else 0.1
    found = make_probe(by_peft, VOCABULARY).logprobs
    assert found == pytest.approx(make_probe(merged, VOCABULARY).logprobs, abs=near)


def test_an_export_is_merged_has_the_adapter_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    policy = Policy.load(config_with(str(saved(tmp_path / "m"))), 10)
    folder = tmp_path / "export"
    for version in (1, 2):
        learn(policy, [version - 1])
        check_export(folder)
        policy.save(tiny_tokenizer(), folder)
    assert json.loads((folder / MANIFEST).read_text())["version"] == 2
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = by_hand(policy.model, 2.0)
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)
    (folder / FOLDER / "notes.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"also holds adapter/notes\.txt"):
        check_export(folder)


def test_fine_tuning_learns_an_adapter_too(tmp_path: Path) -> None:
    config = replace(config_with(str(saved(tmp_path / "m"))), mode="sft")
    policy, samples = Policy.load(config, 30), ragged_samples(6, seed=2)
    before = weights_of(policy.model)
    losses = [policy.update(batch_of(samples), cross_entropy)["loss/policy"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    after = weights_of(policy.model)
    assert all(torch.equal(after[n], w) for n, w in before.items() if not of_adapter(n))


@pytest.mark.parametrize(
    ("targets", "says"), [(["q_prj"], "q_prj"), (["lm_head"], "the output layer cannot have")]
)
def test_targets_that_cannot_be_are_named(targets: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^actor\.lora\.targets: .*{says}"):
        Adapter(tiny_model(), LoraConfig(rank=2, targets=targets))


def test_some_layers_alone(tmp_path: Path) -> None:
    model = tiny_model()
    Adapter(model, LoraConfig(rank=2, targets=["q_proj", "v_proj"]))
    learned = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(learned) == 8
    assert all("q_proj" in name or "v_proj" in name for name in learned)


def test_without_peft_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^actor\.lora\.rank .* pip install arealite\[lora\]$"):
        Adapter(tiny_model(), LoraConfig(rank=2))
