"""The command lines of inference servers, as pure functions of the settings."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from arealite.config import Config
from arealite.config.logprobs import option
from arealite.errors import ConfigError
from arealite.launch.facts import Facts
from arealite.processes import KEY

LOOPBACK = "127.0.0.1"

_OURS = {
    "--port": "each server gets a free port",
    "--fd": "each server gets a listening socket",
    "--api-key": f"each run has a key of its own; one of yours goes into {KEY}",
}
"""What the launcher alone may give a server."""

SPARE = 8
"""Positions beyond the longest sequence: vLLM samples a token behind a probe, SGLang keeps one."""


@dataclass(frozen=True)
class Process:
    """One child: its name in logs, its command and what is added to its environment.

    The rest is of servers. listens: it is handed a listening socket (--fd), or told a port that is
    kept free for it (--port), on `host`. key: how it is told the run's key: by an environment
    variable of this name, or by a file in SGLang's format. is_foreign: it knows nothing of us,
    neither of lifelines nor where this package lies.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    listens: Literal["socket", "port"] = "socket"
    host: str = LOOPBACK
    key: str = ""
    is_foreign: bool = False


KEY_FILE = "--config"
"""As Process.key: the file's path follows this flag."""


def server_processes(config: Config, facts: Facts, threads: int, longest: int) -> list[Process]:
    """All servers that are launched. longest: sequence in tokens. Raises ConfigError."""
    rollout = config.rollout
    for flag, reason in _OURS.items():
        if any(word == flag or word.startswith(f"{flag}=") for word in rollout.server_args):
            raise ConfigError(f"rollout.server_args: leave out {flag}: {reason}")
    build = {"embedded": _embedded, "sglang": _sglang, "vllm": _vllm}[rollout.backend]
    if rollout.backend != "embedded":
        longest = min(longest + SPARE, facts.max_positions or longest + SPARE)
    first_gpu = 1 if config.actor.device == "cuda" else 0
    processes = []
    for index in range(rollout.n_servers):
        first = first_gpu + index * rollout.tensor_parallel_size
        gpus = range(first, first + rollout.tensor_parallel_size)
        seed = config.seed * 1000 + index
        environment = environment_of(rollout.device, threads, gpus)
        processes.append(build(config, facts, index, seed, longest, environment))
    return processes


def environment_of(device: str, threads: int, gpus: range) -> dict[str, str]:
    """What every process of ours gets. gpus: which it sees."""
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        # `deterministic` needs it; it costs 8 MB.
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return environment


def exposed(processes: list[Process]) -> Iterator[str]:
    """A plain warning for each server that others could reach."""
    for process in processes:
        if not is_loopback(process.host):
            yield (
                f"{process.name} listens on {process.host}: whoever reaches that address can use "
                f"it{_unguarded(process)}; leave --host out of rollout.server_args, or let a "
                "firewall admit this machine alone"
            )


def _unguarded(process: Process) -> str:
    if process.key == "VLLM_API_KEY":
        return ", and can change its weights (vLLM asks for its key on other routes only)"
    return " if they have the run's key"


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def _words(options: Mapping[str, object]) -> Iterator[str]:
    for key, value in options.items():
        yield from (f"--{key}",) if value is True else (f"--{key}", str(value))


def _embedded(
    config: Config, facts: Facts, index: int, seed: int, longest: int, environment: dict[str, str]
) -> Process:
    rollout = config.rollout
    options: dict[str, object] = {
        "model": config.actor.path,
        "dtype": config.actor.dtype,
        "device": rollout.device,
        "threads": environment["OMP_NUM_THREADS"],
        "max-running": rollout.max_running_requests,
        "context-length": longest,
        "seed": seed % 2**63,
    }
    if config.deterministic:
        options["deterministic"] = True
    command = (sys.executable, "-m", "arealite.engines.embedded", *_words(options))
    host = option(rollout.server_args, "--host") or LOOPBACK
    words = (*command, *rollout.server_args)
    return Process(f"server-{index}", words, environment, "socket", host, KEY)


def _sglang(
    config: Config, facts: Facts, index: int, seed: int, longest: int, environment: dict[str, str]
) -> Process:
    rollout = config.rollout
    options: dict[str, object] = {
        "model-path": config.actor.path,
        "dtype": config.actor.dtype,
        "context-length": longest,
        "max-running-requests": rollout.max_running_requests,
        "tp-size": rollout.tensor_parallel_size,
        "random-seed": seed % 2**31,
        "skip-server-warmup": True,
    }
    environment |= {"SGLANG_RETURN_ORIGINAL_LOGPROB": "0"}
    if rollout.device == "cpu":
        options |= {
            "device": "cpu",
            "attention-backend": "torch_native",
            "sampling-backend": "pytorch",
            "disable-overlap-schedule": True,
        }
        environment |= {"SGLANG_USE_CPU_ENGINE": "1"}
    command = ("-m", "sglang.launch_server", *_words(options))
    return _foreign(config, index, command, environment, KEY_FILE)


def _vllm(
    config: Config, facts: Facts, index: int, seed: int, longest: int, environment: dict[str, str]
) -> Process:
    """On a CPU with the worker extension that makes it take weights (engines/vllm_cpu)."""
    rollout = config.rollout
    options: dict[str, object] = {
        "dtype": config.actor.dtype,
        "max-model-len": longest,
        "max-num-seqs": rollout.max_running_requests,
        "tensor-parallel-size": rollout.tensor_parallel_size,
        "seed": seed % 2**31,
        "enable-scale-out": True,
        "logprobs-mode": "processed_logprobs",
    }
    environment |= {
        "VLLM_SERVER_DEV_MODE": "1",  # its weights can be changed in this mode alone
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": LOOPBACK,
    }
    if rollout.device == "cpu":
        options |= {
            "enforce-eager": True,
            "worker-extension-cls": "arealite.engines.vllm_cpu.Unpacked",
            "weight-transfer-config": json.dumps({"backend": "file"}),
        }
        cache = (facts.kv_bytes_per_token or 0) * longest * rollout.max_running_requests
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(cache / 2**30))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer is on the same cores
        }
    command = ("-m", "vllm.entrypoints.cli.main", "serve", config.actor.path, *_words(options))
    return _foreign(config, index, command, environment, "VLLM_API_KEY")


def _foreign(
    config: Config, index: int, command: tuple[str, ...], environment: dict[str, str], key: str
) -> Process:
    rollout = config.rollout
    host = option(rollout.server_args, "--host")
    where = () if host else ("--host", LOOPBACK)
    words = (rollout.python or sys.executable, *command, *where, *rollout.server_args)
    return Process(
        f"server-{index}", words, environment, "port", host or LOOPBACK, key, is_foreign=True
    )
