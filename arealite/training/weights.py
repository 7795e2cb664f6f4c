"""A policy on its way to the engines: complete folders, visible only when whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arealite.processes import WEIGHTS_DIR
from arealite.types import Probe

PROBE_TOKENS = 32
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.5}
"""Largest difference in nats that two implementations of one model may show in this dtype."""


def weights_folder() -> Path:
    """Where versions are published: memory-backed where the system has such a place."""
    given = os.environ.get(WEIGHTS_DIR)
    if given:
        return Path(given)
    shm = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="arealite-", dir=shm if shm.is_dir() else None))


def export_folder(model: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Writes a Hugging Face folder beside `folder` and renames it: there or not, never half.

    weights: in place of the model's own state_dict."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, safe_serialization=True, state_dict=weights)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


class Publisher:
    """Writes versions and removes all but the newest two: an engine may still read the older."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._written: list[Path] = []

    def write(self, model: Any, version: int, weights: Mapping[str, Tensor] | None = None) -> Path:
        """The version's folder. Raises ValueError for one that engines may be reading."""
        folder = self._folder / f"v{version}"
        if folder in self._written:
            raise ValueError(
                f"version {version} is published already, and engines may be reading {folder}; "
                "export each version once"
            )
        export_folder(model, folder, weights)
        self._written.append(folder)
        while len(self._written) > 2:
            shutil.rmtree(self._written.pop(0), ignore_errors=True)
        return folder

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@torch.no_grad()
def make_probe(model: nn.Module, vocabulary: int) -> Probe:
    """The trainer's own log-probabilities of fixed tokens, spread over the vocabulary."""
    parameter = next(model.parameters())
    ids = [(i * 7919 + 13) % vocabulary for i in range(PROBE_TOKENS)]
    tokens = torch.tensor([ids], device=parameter.device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    logprobs = torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None]).squeeze(1)
    tolerance = TOLERANCE.get(parameter.dtype, 0.5)
    return Probe(tuple(ids), tuple(logprobs.tolist()), tolerance)
