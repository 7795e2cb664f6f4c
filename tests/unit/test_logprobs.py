"""Log-probabilities of the trained tokens against the model's own full forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_support import batch_of, ragged_samples, tiny_model

from arealite.data.micro_batch import micro_batches
from arealite.errors import ConfigError
from arealite.training.logprobs import check_model, token_logprobs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_they_are_the_full_log_softmax_at_the_trained_positions(
    tied: bool, temperature: float
) -> None:
    model = tiny_model(seed=1, tied=tied)
    (micro,) = micro_batches(ragged_samples(7, seed=1), 10**6)
    chosen, entropy = token_logprobs(model, micro, temperature)
    full = (model(input_ids=micro.input_ids).logits.float() / temperature).log_softmax(-1)
    rows = full.flatten(0, 1)[micro.source]
    expected = rows.gather(1, micro.targets[:, None])[:, 0]
    torch.testing.assert_close(chosen, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, -(rows.exp() * rows).sum(-1), rtol=1e-5, atol=1e-5)
    assert chosen.dtype == entropy.dtype == torch.float32
    assert not entropy.requires_grad


def test_the_gradient_is_the_full_forwards_gradient() -> None:
    (micro,) = micro_batches(ragged_samples(7, seed=2), 10**6)
    ours, theirs = tiny_model(seed=1), tiny_model(seed=1)
    token_logprobs(ours, micro, 0.8)[0].sum().backward()
    full = (theirs(input_ids=micro.input_ids).logits / 0.8).log_softmax(-1).flatten(0, 1)
    full[micro.source].gather(1, micro.targets[:, None]).sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_bfloat16_weights_give_float32_numbers() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    (micro,) = micro_batches(ragged_samples(4, seed=3), 10**6)
    chosen, entropy = token_logprobs(model, micro, 1.0)
    assert chosen.dtype == entropy.dtype == torch.float32
    exact, _ = token_logprobs(tiny_model(), micro, 1.0)
    assert float((chosen - exact).detach().abs().mean()) < 0.2


def test_the_vocabulary_projection_meets_trained_positions_only() -> None:
    model = tiny_model()
    samples = ragged_samples(5, seed=4)
    (micro,) = micro_batches(samples, 10**6)
    seen: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape))
    )
    token_logprobs(model, micro, 1.0)
    assert seen == [(batch_of(samples).n_tokens, 32)]


class _Softcapped(nn.Module):
    """A head that does more than a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()
        self.config = self.inner.config

    def get_decoder(self) -> nn.Module:
        return self.inner.get_decoder()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()  # type: ignore[no-any-return]

    def forward(self, **inputs: object) -> object:
        output = self.inner(**inputs)
        output.logits = torch.tanh(output.logits)
        return output


def test_a_head_that_does_more_is_refused() -> None:
    check_model(tiny_model())
    with pytest.raises(ConfigError, match="more than a projection"):
        check_model(_Softcapped())
