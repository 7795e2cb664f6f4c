"""New weights for a vLLM server on a CPU: a worker extension, and a transfer backend "file".

    vllm serve MODEL --worker-extension-cls arealite.engines.vllm_cpu.Unpacked \\
        --weight-transfer-config '{"backend": "file"}'

Runs inside vLLM's worker, in vLLM's environment (put arealite's folder on its PYTHONPATH), and is
imported before the model is built. GPUs need none of it: there vLLM's own `reload_weights` and its
own transfer backends load what they are given.

On a CPU vLLM packs each matrix for its kernels when it loads the first weights. An output head
that is tied to the embedding is in no checkpoint, so no later load packs it again: the server
answers 200 and goes on with the old head. Here every matrix stays as it was loaded and is used by
torch's own product, so a plain copy into it is a whole update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

BACKEND = "file"


class Unpacked:
    """What `--worker-extension-cls` names. Importing this module is its whole effect."""


@dataclass
class FileInit(WeightTransferInitInfo):
    """`{"init_info": {}}`: nothing has to be set up."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):
    """`{"update_info": {"path": ...}}`: a folder of safetensors files that this worker can read."""

    path: str


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):
    """Copies a checkpoint's tensors into the model, in place."""

    init_info_cls, update_info_cls = FileInit, FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, str]) -> None:
        """As in the base class, which then waits for an accelerator; a CPU has none."""
        self.receive_weights(self.parse_update_info(update_info))

    @torch.no_grad()
    def receive_weights(self, update_info: FileUpdate) -> None:
        """Raises ValueError when the folder does not hold every parameter of the model."""
        folder = Path(update_info.path)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no safetensors file")
        loaded = self.model.load_weights(_tensors(files))
        missing = sorted({name for name, _ in self.model.named_parameters()} - set(loaded))
        if missing:
            raise ValueError(
                f"{folder} holds no weights for {missing[0]} and {len(missing) - 1} other "
                "parameters of the model; some weights are old now and some new"
            )


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)


def _stay_unpacked(method: UnquantizedEmbeddingMethod, layer: nn.Module) -> None:
    layer.cpu_linear = nn.functional.linear  # type: ignore[assignment]


def _install() -> None:
    if not current_platform.is_cpu():
        raise RuntimeError("arealite.engines.vllm_cpu is for servers on a CPU: leave it out here")
    LinearBase._cpu_skip_gemm_dispatch = True  # vLLM's own way out, layer by layer
    UnquantizedEmbeddingMethod.process_weights_after_loading = _stay_unpacked
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)


_install()
