"""Log-probabilities of trained tokens, and of nothing else.

The vocabulary projection runs only at the positions that predict a trained token: prompts and
padding never meet it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from arealite.data.batch import MicroBatch
from arealite.errors import ConfigError


def token_logprobs(
    model: nn.Module, batch: MicroBatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """([tokens] log pi(target | prefix) in nats, [tokens] entropy in nats), both float32.

    Both under the sampling temperature: the trainer computes what the engine reported.
    """
    body, head = _parts(model)
    hidden = body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    logits = head(hidden.flatten(0, 1)[batch.source]).float()
    if temperature != 1.0:
        logits = logits / temperature
    everything = torch.log_softmax(logits, dim=-1)
    chosen = everything.gather(1, batch.targets[:, None]).squeeze(1)
    with torch.no_grad():
        entropy = -(everything.exp() * everything).sum(-1)
    return chosen, entropy


def check_model(model: nn.Module) -> None:
    """Raises ConfigError when body + head is not this model's forward (a softcap, a scale)."""
    body, head = _parts(model)
    vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[operator,union-attr]
    ids = torch.arange(4, device=next(model.parameters()).device)[None] % vocabulary
    with torch.no_grad():
        ours = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
        theirs = model(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
        raise ConfigError(
            f"actor.path: {type(model).__name__} does more than a projection after its last layer; "
            "arealite would compute other log-probabilities than the engine"
        )


def _parts(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.get_decoder(), model.get_output_embeddings()
