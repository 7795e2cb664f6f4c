"""The trainer's own state beside the model: optimizer, master weights, random streams.

It is copied to memory between two steps, and written from there while training goes on.
safetensors and JSON only: nothing that is read can run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arealite.errors import CheckpointError

TRAINER = "trainer.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True)
class PolicyState:
    """One version, copied to memory. model: as its state_dict, tied weights still one tensor."""

    version: int
    updates: int
    model: Mapping[str, Tensor]
    trainer: Mapping[str, Tensor]


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In CPU memory; what shares its storage here does so there."""
    seen: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    copies = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in seen:
            seen[key] = tensor.detach().to("cpu", copy=True)
        copies[name] = seen[key]
    return copies


def trainer_tensors(
    optimizer: torch.optim.Optimizer, masters: Mapping[str, nn.Parameter], model: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """By name. masters: what the optimizer moves, by the parameter's name."""
    weights = dict(model.named_parameters())
    for name, master in masters.items():
        if master is not weights[name]:
            yield f"master/{name}", master
        for moment, value in optimizer.state.get(master, {}).items():
            if isinstance(value, Tensor):  # SGD without momentum has None
                yield f"{moment}/{name}", value
    yield "random/cpu", torch.get_rng_state()
    for index, state in enumerate(torch.cuda.get_rng_state_all()):
        yield f"random/cuda{index}", state


def save_trainer(state: PolicyState, folder: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state.trainer.items()}
    save_file(tensors, folder / TRAINER, {"updates": json.dumps(state.updates)})


def load_trainer(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    model: nn.Module,
) -> int:
    """Puts it all in its place; returns the number of updates. Raises CheckpointError."""
    weights = dict(model.named_parameters())
    try:
        with safe_open(folder / TRAINER, "pt") as file, torch.no_grad():
            names = set(file.keys())
            for name, master in masters.items():
                if master is not weights[name]:
                    master.copy_(file.get_tensor(f"master/{name}"))
                moments = {
                    moment: _placed(file.get_tensor(f"{moment}/{name}"), moment, master)
                    for moment in _MOMENTS
                    if f"{moment}/{name}" in names
                }
                if moments:
                    optimizer.state[master] = moments
            torch.set_rng_state(file.get_tensor("random/cpu"))
            for index in range(torch.cuda.device_count()):
                if f"random/cuda{index}" in names:
                    torch.cuda.set_rng_state(file.get_tensor(f"random/cuda{index}"), index)
            return int(json.loads(file.metadata()["updates"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / TRAINER} does not fit this model: {error}") from None


def _placed(tensor: Tensor, moment: str, master: nn.Parameter) -> Tensor:
    if moment != "step" and tensor.shape != master.shape:
        raise ValueError(f"a shape is {tuple(tensor.shape)}, not {tuple(master.shape)}")
    return tensor.to(master.device)
