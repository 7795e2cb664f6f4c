"""How each server is started on a CPU, in fp32, for tests."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server_environment import ROOT, override
from server_process import ServerProcess, free_port

CONTEXT = 2048
START_S = 600.0
"""About 30 s on two free cores; many times that where others work or Python has to compile all."""

TIMEOUT_S = START_S + 300.0
"""Of a test that may be the first of its server."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Kind:
    """module, options: the command's, beside model, host and port.

    ready: answers 200 once it serves. running: how many samples it works on. abort: the POSTs
    that abort all of them. is_uncut: its log-probabilities are before any cut, by top-p, top-k or
    a least length; where they are not, a run with cuts is refused.
    """

    name: str
    module: tuple[str, ...]
    options: tuple[str, ...]
    ready: str
    running: Callable[[ServerProcess], float]
    abort: tuple[tuple[str, Any], ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_uncut: bool = True

    @property
    def python(self) -> str | None:
        """The Python of its environment; None when `make test-NAME` has built none."""
        return sys.executable if self is EMBEDDED else os.environ.get(override(self.name))

    def start(self, model: Path, log: Path, *more: str, threads: int = 1) -> ServerProcess:
        port = free_port()
        assert self.python
        named = [*self.module, str(model), "--host", "127.0.0.1", "--port", str(port)]
        command = [self.python, "-m", *named, *self.options, *more]
        environment = {**OFFLINE, "OMP_NUM_THREADS": str(threads), **self.environment}
        return ServerProcess(command, environment, port, log, self.ready, START_S)


def _of_metrics(server: ServerProcess, name: str) -> float:
    """A gauge of Prometheus' text, summed over its labels."""
    lines = str(server.get("/metrics")).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


EMBEDDED = Kind(
    "embedded",
    ("arealite.engines.embedded", "--model"),
    ("--threads", "1", "--context-length", str(CONTEXT)),
    "/get_model_info",
    lambda server: float(server.get("/get_server_info")["running"]),
    (("/pause_generation", {"mode": "abort"}), ("/continue_generation", {})),
    {"PYTHONPATH": str(ROOT)},
)

PLAIN = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT)),
    *("--enable-scale-out", "--logprobs-mode", "processed_logprobs"),
)
UNPACKED = ("--worker-extension-cls", "arealite.engines.vllm_cpu.Unpacked")
FILE = ("--weight-transfer-config", json.dumps({"backend": "file"}))

VLLM = Kind(
    "vllm",
    ("vllm.entrypoints.cli.main", "serve"),
    (*PLAIN, *UNPACKED, *FILE),
    "/health",
    lambda server: _of_metrics(server, "vllm:num_requests_running"),
    (("/abort_requests", {}),),
    {
        "PYTHONPATH": str(ROOT),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # others work on these cores, too
    },
    is_uncut=False,
)

SGLANG = Kind(
    "sglang",
    ("sglang.launch_server", "--model-path"),
    (
        *("--device", "cpu", "--dtype", "float32", "--context-length", str(CONTEXT)),
        *("--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
        *("--grammar-backend", "none", "--disable-overlap-schedule", "--skip-server-warmup"),
        *("--mem-fraction-static", "0.1", "--max-total-tokens", "65536", "--enable-metrics"),
    ),
    "/get_model_info",
    lambda server: _of_metrics(server, "sglang:num_running_reqs"),
    (("/pause_generation", {"mode": "abort"}), ("/continue_generation", {})),
    {"SGLANG_USE_CPU_ENGINE": "1"},
)

SERVERS = {kind.name: kind for kind in (EMBEDDED, VLLM, SGLANG)}
