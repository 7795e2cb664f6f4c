"""Log-probabilities of trained tokens, and of nothing else.

The vocabulary projection runs only at the positions that predict a trained token: prompts and
padding never meet it. A prompt that several samples share runs once, through the model's own
key-value cache, with its gradient summed over them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from arealite.data.micro_batch import MicroBatch, Prefix
from arealite.errors import ConfigError
from arealite.training.model import vocabulary_of


def token_logprobs(
    model: nn.Module, batch: MicroBatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """([tokens] log pi(target | prefix) in nats, [tokens] entropy in nats), both float32.

    Both under the sampling temperature: the trainer computes what the engine reported.
    """
    body, head = _parts(model)
    hidden = _hidden(body, batch.input_ids, batch.prefix)
    logits = head(hidden.flatten(0, 1)[batch.source]).float()
    if temperature != 1.0:
        logits = logits / temperature
    everything = torch.log_softmax(logits, dim=-1)
    chosen = everything.gather(1, batch.targets[:, None]).squeeze(1)
    with torch.no_grad():
        entropy = -(everything.exp() * everything).sum(-1)
    return chosen, entropy


def _hidden(body: Any, input_ids: Tensor, prefix: Prefix | None) -> Tensor:
    """[n, T, d], the last layer's states of the rows behind their prefixes."""
    if prefix is None:
        return body(input_ids=input_ids, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
    cache = body(input_ids=prefix.ids, use_cache=True).past_key_values
    cache.batch_select_indices(prefix.of_row)
    lengths = prefix.lengths[prefix.of_row][:, None]
    in_prefix = torch.arange(prefix.ids.shape[1], device=input_ids.device)
    return body(  # type: ignore[no-any-return]
        input_ids=input_ids,
        past_key_values=cache,
        attention_mask=torch.cat([in_prefix < lengths, torch.ones_like(input_ids).bool()], dim=1),
        position_ids=lengths + torch.arange(input_ids.shape[1], device=input_ids.device),
        use_cache=True,
    ).last_hidden_state


def check_model(model: nn.Module, key: str = "actor.path") -> None:
    """Raises ConfigError when body + head is not this model's forward (a softcap, a scale)."""
    body, head = _parts(model)
    ids = torch.arange(4, device=next(model.parameters()).device)[None] % vocabulary_of(model)
    with torch.no_grad():
        ours = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
        theirs = model(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
        raise ConfigError(
            f"{key}: {type(model).__name__} does more than a projection after its last layer; "
            "arealite would compute other log-probabilities than the engine"
        )


def can_share_prompts(model: nn.Module) -> bool:
    """Whether this model's cache gives the same states, and gradients, as a complete sequence.

    False for models that keep no plain cache.
    """
    body, _ = _parts(model)
    device = next(model.parameters()).device
    ids = torch.arange(6, device=device)[None] % vocabulary_of(model)
    prefix = Prefix(ids[:, :4], torch.tensor([3], device=device), torch.tensor([0], device=device))
    try:
        behind = _hidden(body, ids[:, 3:], prefix)
        whole = body(input_ids=ids, use_cache=False).last_hidden_state[:, 3:]
    except Exception:  # whatever a foreign model raises: it cannot, and need not
        return False
    tolerance = 1e-3 if whole.dtype == torch.float32 else 5e-2
    has_gradient = behind.requires_grad == whole.requires_grad  # a frozen model has none
    return has_gradient and torch.allclose(behind, whole, atol=tolerance, rtol=tolerance)


def _parts(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.get_decoder(), model.get_output_embeddings()
