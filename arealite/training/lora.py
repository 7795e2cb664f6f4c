"""LoRA by peft: small matrices that learn beside frozen weights, and their way out of the trainer.

peft is imported only here, where actor.lora.rank asks for it. The layers are put inside the model
itself, so that all else (packing, log-probabilities) sees the model that it knows.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from arealite.config import LoraConfig
from arealite.errors import ConfigError, require_extra

FOLDER = "adapter"
"""Of peft's files, in a checkpoint and in an exported model."""

_INSIDE, _LEARNED = ".base_layer.", ".lora_"


class Adapter:
    """What learns of a model with LoRA; and the model without it, or with it merged in.

    Merged weights are W + alpha / rank B A, computed in float32 and rounded to W's type.
    Source: Hu et al., arXiv:2106.09685, section 4.1.
    """

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        """Puts the layers into the model and freezes all else: what they add is 0 at first.

        Raises ConfigError where peft is not installed, or a target is no layer that can have one.
        """
        peft = _peft()
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=list(config.targets) or "all-linear",
            lora_dropout=0.0,  # a ratio compares two forwards
            bias="none",
            task_type="CAUSAL_LM",
        )
        try:
            self._wrapped: Any = peft.get_peft_model(model, settings)
        except ValueError as error:
            reason = str(error).split("\n")[0]
            raise ConfigError(f"actor.lora.targets: {reason}") from None
        layer = importlib.import_module("peft.tuners.lora").LoraLayer
        self._layers = [module for module in model.modules() if isinstance(module, layer)]
        ends: Any = model
        embeddings = (ends.get_input_embeddings(), ends.get_output_embeddings())
        if any(isinstance(end, layer) for end in embeddings):
            raise ConfigError(
                "actor.lora.targets: the embeddings and the output layer cannot have an adapter "
                "here; name linear layers between them, like q_proj"
            )
        self._wrapped.eval()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model computes as if nothing had been learned. Without gradients."""
        with torch.no_grad(), self._wrapped.disable_adapter():
            yield

    @contextmanager
    def merged(self) -> Iterator[dict[str, Tensor]]:
        """Inside, the model computes with merged weights; its state_dict, as of a plain model.

        The frozen weights are put aside and back, never computed back: not a bit of them changes.
        """
        kept = [
            (layer.get_base_layer(), layer.get_base_layer().weight.data) for layer in self._layers
        ]
        try:
            for layer, (base, weight) in zip(self._layers, kept, strict=True):
                (name,) = layer.active_adapters
                added = layer.get_delta_weight(name).detach().float()
                base.weight.data = (weight.float() + added).to(weight.dtype)
            with self.off():
                yield self._plain()
        finally:
            for base, weight in kept:
                base.weight.data = weight

    def _plain(self) -> dict[str, Tensor]:
        state = self._wrapped.get_base_model().state_dict()
        return {name.replace(_INSIDE, "."): t for name, t in state.items() if _LEARNED not in name}

    def tensors(self) -> dict[str, Tensor]:
        """What has been learned, by peft's names."""
        return dict(_peft().get_peft_model_state_dict(self._wrapped))

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """peft's files: PeftModel.from_pretrained(base, folder) reads them. tensors: as tensors()
        gave them, perhaps copied."""
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(own, folder / "adapter_model.safetensors", {"format": "pt"})
        (settings,) = map(copy.copy, self._wrapped.peft_config.values())
        settings.inference_mode = True
        settings.save_pretrained(str(folder))


def _peft() -> Any:
    require_extra("peft", "actor.lora.rank is above 0", "lora")
    return importlib.import_module("peft")
