"""A model as the trainer loads it: it computes the same twice, and says why it cannot be loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from training_support import ragged_samples, tiny_model

from arealite.config import ActorConfig
from arealite.data.micro_batch import micro_batches
from arealite.errors import ConfigError
from arealite.training.logprobs import check_model, token_logprobs
from arealite.training.model import load_model, load_tokenizer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_forwards_of_a_model_with_dropout_agree(tmp_path: Path, checkpointing: bool) -> None:
    plain = tiny_model()
    plain.config.attention_dropout = 0.5
    plain.save_pretrained(tmp_path)
    actor = ActorConfig(path=str(tmp_path), dtype="float32", device="cpu")
    model = load_model(replace(actor, gradient_checkpointing=checkpointing))
    check_model(model)
    (micro,) = micro_batches(ragged_samples(5), 10**6)
    first, second = (token_logprobs(model, micro, 1.0)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, token_logprobs(plain.eval(), micro, 1.0)[0])
    assert first.requires_grad
    assert model.config.attention_dropout == 0.5  # what is saved says the same of itself


def test_a_checkpointed_layer_is_computed_again_in_the_backward_pass(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    actor = ActorConfig(path=str(tmp_path), dtype="float32", gradient_checkpointing=True)
    model = load_model(actor)
    calls = []
    for layer in model.get_decoder().layers:  # type: ignore[operator,union-attr]
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    (micro,) = micro_batches(ragged_samples(5), 10**6)
    token_logprobs(model, micro, 1.0)[0].sum().backward()
    assert len(calls) == 4  # two layers, each forward and again


def test_what_may_be_a_hub_id_or_a_folder_that_is_not_there_is_told_as_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(path: str, **_: object) -> None:
        raise OSError(f"We couldn't connect to the hub for {path}\nCheck your connection ...")

    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", unreachable)
    monkeypatch.chdir(tmp_path)
    reason = "cannot be loaded: We couldn't connect to the hub for models/foo (give a "
    both = f"there is no folder models/foo here, and taken as a hub id it {reason}"
    for there, sentence in ((False, both), (True, f"models/foo {reason}")):
        if there:
            Path("models/foo").mkdir(parents=True)
        with pytest.raises(ConfigError) as told:
            load_model(ActorConfig(path="models/foo"))
        assert str(told.value).startswith(f"actor.path: {sentence}")
        with pytest.raises(ConfigError) as told:
            load_tokenizer("models/foo")
        assert str(told.value).startswith(f"tokenizer_path: {sentence}")
    with pytest.raises(ConfigError, match=r"^tokenizer_path: \./foo: there is no such folder$"):
        load_tokenizer("./foo")
