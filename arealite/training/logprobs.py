"""Log-probabilities of trained tokens, and of nothing else.

The vocabulary projection runs only at the positions that predict a trained token: prompts and
padding never meet it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from arealite.data.batch import Sample
from arealite.data.micro_batch import MicroBatch, micro_batches
from arealite.errors import ConfigError
from arealite.training.attention import NAME
from arealite.training.model import vocabulary_of


def token_logprobs(
    model: nn.Module, batch: MicroBatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """([tokens] log pi(target | prefix) in nats, [tokens] entropy in nats), both float32.

    Both under the sampling temperature: the trainer computes what the engine reported.
    """
    body, head = decoder_and_head(model)
    hidden = hidden_states(body, batch)
    logits = head(hidden.flatten(0, 1)[batch.source]).float()
    if temperature != 1.0:
        logits = logits / temperature
    everything = torch.log_softmax(logits, dim=-1)
    chosen = everything.gather(1, batch.targets[:, None]).squeeze(1)
    with torch.no_grad():
        entropy = -everything.exp().mul_(everything).sum(-1)
    return chosen, entropy


def hidden_states(body: Any, batch: MicroBatch) -> Tensor:
    """[n, T, d], the last layer's states of the rows."""
    packing = batch.packing
    how = {} if packing is None else {"packing": packing, "position_ids": packing.position_ids}
    return body(input_ids=batch.input_ids, use_cache=False, **how).last_hidden_state  # type: ignore[no-any-return]


def check_model(model: nn.Module, key: str = "actor.path") -> None:
    """Raises ConfigError when body + head is not this model's forward (a softcap, a scale)."""
    body, head = decoder_and_head(model)
    ids = torch.arange(4, device=next(model.parameters()).device)[None] % vocabulary_of(model)
    with torch.no_grad():
        ours = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
        theirs = model(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3):
        raise ConfigError(
            f"{key}: {type(model).__name__} does more than a projection after its last layer; "
            "arealite would compute other log-probabilities than the engine"
        )


def use_packing(model: Any) -> bool:
    """Gives the model attention that reads packed rows; False where it cannot, or is another then.

    It is another where more than attention mixes positions (state space models), or where
    attention follows more than order and window (chunks).
    """
    text, former = model.config.get_text_config(), model.config._attn_implementation
    kinds = set(getattr(text, "layer_types", None) or ())
    known = kinds <= {"full_attention", "sliding_attention"}
    if not known or not hasattr(model, "set_attn_implementation"):
        return False
    try:
        whole = _probe(model, packed=False)
        model.set_attn_implementation(NAME)
        packed = _probe(model, packed=True)
    except Exception:  # whatever a foreign model raises: it cannot, and need not
        packed = None
    if packed is not None and packed.requires_grad == whole.requires_grad:
        tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 5e-2
        if torch.allclose(packed, whole, atol=tolerance, rtol=tolerance):
            return True
    model.set_attn_implementation(former)
    return False


def _probe(model: Any, packed: bool) -> Tensor:
    """[tokens] log-probabilities of two samples behind one prompt and one of its own, in order."""
    ids = [i * 7919 % vocabulary_of(model) for i in range(12)]
    made = [(ids[:6], 0), ([*ids[:4], *ids[7:11]], 0), (ids[3:], None)]
    samples = [
        Sample(tokens, [4, 5], [2.0 * number, 2.0 * number + 1.0], 1.0, group)
        for number, (tokens, group) in enumerate(made)
    ]
    (micro,) = micro_batches(samples, 1000, packed, share_prompts=True)
    micro = micro.to(next(model.parameters()).device)
    return token_logprobs(model, micro, 1.0)[0][micro.behave.argsort()]


def decoder_and_head(model: Any) -> tuple[nn.Module, nn.Module]:
    """A language model's layers, and the projection onto its vocabulary."""
    return model.get_decoder(), model.get_output_embeddings()
