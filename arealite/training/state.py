"""The trainer's own state beside the model: optimizer, master weights, random streams.

It is copied to memory between two steps, and written from there while training goes on.
safetensors and JSON only: nothing that is read can run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arealite.errors import CheckpointError

TRAINER = "trainer.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True)
class PolicyState:
    """One version, copied to memory. model: as its state_dict, tied weights still one tensor.
    adapter: what has been learned, by peft's names, where that is all that learns; `model` is
    merged then. facts: what else the trainer goes on with, as numbers."""

    version: int
    updates: int
    model: Mapping[str, Tensor]
    trainer: Mapping[str, Tensor]
    facts: Mapping[str, float] = field(default_factory=dict)
    adapter: Mapping[str, Tensor] = field(default_factory=dict)


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
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    model: nn.Module,
    prefix: str = "",
) -> Iterator[tuple[str, Tensor]]:
    """By name. masters: what the optimizer moves, by the parameter's name. prefix: see
    learned_tensors."""
    yield from learned_tensors(optimizer, masters, model, prefix)
    yield "random/cpu", torch.get_rng_state()
    for index, state in enumerate(torch.cuda.get_rng_state_all()):
        yield f"random/cuda{index}", state


def learned_tensors(
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    model: nn.Module,
    prefix: str = "",
) -> Iterator[tuple[str, Tensor]]:
    """What has been learned beside the model's own folder; with a prefix, which is of a model that
    has no folder, its weights as well."""
    weights = dict(model.named_parameters())
    for name, master in masters.items():
        if master is not weights[name]:
            yield f"{prefix}master/{name}", master
        elif prefix:
            yield f"{prefix}weight/{name}", master
        for moment, value in optimizer.state.get(master, {}).items():
            if isinstance(value, Tensor):  # SGD without momentum has None
                yield f"{prefix}{moment}/{name}", value


def save_trainer(state: PolicyState, folder: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state.trainer.items()}
    told = {"updates": json.dumps(state.updates), "facts": json.dumps(dict(state.facts))}
    save_file(tensors, folder / TRAINER, told)


def load_trainer(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    model: nn.Module,
    prefix: str = "",
) -> int:
    """Puts it all in its place; returns the number of updates. Raises CheckpointError."""
    with _opened(folder) as file:
        _place(file, optimizer, masters, model, prefix)
        names = set(file.keys())
        torch.set_rng_state(file.get_tensor("random/cpu"))
        for index in range(torch.cuda.device_count()):
            if f"random/cuda{index}" in names:
                torch.cuda.set_rng_state(file.get_tensor(f"random/cuda{index}"), index)
        return int(json.loads(file.metadata()["updates"]))


def load_learned(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    model: nn.Module,
    prefix: str,
) -> None:
    """Puts in its place what learned_tensors gave with this prefix. Raises CheckpointError."""
    with _opened(folder) as file:
        _place(file, optimizer, masters, model, prefix)


def load_facts(folder: Path) -> dict[str, float]:
    """PolicyState.facts; none of a checkpoint that an older release wrote. Raises
    CheckpointError."""
    with _opened(folder) as file:
        facts = json.loads(file.metadata().get("facts", "{}"))
        return {name: float(value) for name, value in facts.items()}


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    try:
        with safe_open(folder / TRAINER, "pt") as file, torch.no_grad():
            yield file
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / TRAINER} does not fit this model: {error}") from None


def _place(
    file: Any,
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    model: nn.Module,
    prefix: str = "",
) -> None:
    weights, names = dict(model.named_parameters()), set(file.keys())
    for name, master in masters.items():
        if master is not weights[name]:
            master.copy_(file.get_tensor(f"{prefix}master/{name}"))
            weights[name].copy_(master)
        elif prefix:
            master.copy_(_fitting(file.get_tensor(f"{prefix}weight/{name}"), master))
        moments = {
            moment: _moment(file.get_tensor(f"{prefix}{moment}/{name}"), moment, master)
            for moment in _MOMENTS
            if f"{prefix}{moment}/{name}" in names
        }
        if moments:
            optimizer.state[master] = moments


def _moment(tensor: Tensor, moment: str, master: nn.Parameter) -> Tensor:
    fits = tensor if moment == "step" else _fitting(tensor, master)
    return fits.to(master.device)


def _fitting(tensor: Tensor, master: nn.Parameter) -> Tensor:
    if tensor.shape != master.shape:
        raise ValueError(f"a shape is {tuple(tensor.shape)}, not {tuple(master.shape)}")
    return tensor
