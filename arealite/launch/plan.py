"""Config + facts -> processes, as a pure function; `--check` prints it and starts nothing."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arealite.config import Config
from arealite.config.lengths import context_length, longest_prompt
from arealite.config.presets import describe
from arealite.config.secrets import hide, hide_command
from arealite.errors import ConfigError
from arealite.launch.facts import Facts
from arealite.launch.servers import (
    Process,
    environment_of,
    exposed,
    is_loopback,
    server_processes,
)
from arealite.telemetry.run_folder import RunFolder


@dataclass(frozen=True)
class Prepare:
    """Made before the run when `makes` is absent."""

    makes: Path
    command: tuple[str, ...]
    timeout_s: float
    shown: str
    """The command as it may be printed: secrets are masked."""


@dataclass(frozen=True)
class Plan:
    """Everything that will run.

    addresses: of servers that run already; none is launched then. weights: in which folder new
    weights are published; None: in memory. warnings: what the user should know before it starts.
    """

    run_folder: Path
    prepare: tuple[Prepare, ...]
    servers: tuple[Process, ...]
    trainer: Process
    report: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    weights: Path | None = None
    warnings: tuple[str, ...] = ()


def make_plan(
    config: Config,
    facts: Facts,
    config_path: str,
    overrides: Sequence[str] = (),
    trainer: Sequence[str] = ("-m", "arealite.main"),
) -> Plan:
    """Raises ConfigError where facts and settings contradict each other."""
    _check(config, facts)
    threads = _threads(config, facts)
    arguments = ["--config", config_path, *overrides, f"actor.threads={threads['trainer']}"]
    prepare = tuple(
        Prepare(Path(step.makes), _command(step.run), step.timeout_s, hide_command(step.run))
        for step in config.prepare
    )
    folder = RunFolder.of(config.fileroot, config.experiment_name, config.trial_name)
    addresses = _addresses(config, facts)
    servers: list[Process] = []
    if config.mode == "rl" and not addresses:
        servers = server_processes(config, facts, threads["server"], context_length(config))
    warnings = tuple(_warnings(config, servers, addresses))
    told = _report(config, facts, threads, prepare, servers, addresses)
    weights_dir = config.rollout.weights_dir
    return Plan(
        run_folder=folder.path,
        prepare=prepare,
        servers=tuple(servers),
        trainer=Process(
            "trainer",
            (sys.executable, *trainer, *arguments),
            environment_of(config.actor.device, threads["trainer"], range(1)),
        ),
        report=tuple(hide(line) for line in (*told, *(f"warning        {w}" for w in warnings))),
        addresses=addresses,
        weights=Path(weights_dir).expanduser() if weights_dir else None,
        warnings=warnings,
    )


def _addresses(config: Config, facts: Facts) -> tuple[str, ...]:
    """The servers that the user brings."""
    if config.mode != "rl":
        return ()
    return tuple(config.rollout.servers) or facts.servers


def _warnings(
    config: Config, servers: Sequence[Process], addresses: Sequence[str]
) -> Iterator[str]:
    yield from exposed(list(servers))
    outside = [a for a in addresses if not is_loopback(a.rpartition(":")[0])]
    if outside:
        yield (
            f"{', '.join(outside)}: whoever reaches these servers can change their weights, unless "
            "they ask for a key on every route (vLLM does not): let a firewall admit this machine "
            "alone"
        )
        if not config.rollout.weights_dir:
            yield (
                "new weights are published in this machine's memory; for servers on other machines "
                "set rollout.weights_dir to a folder that they see, too"
            )


def _check(config: Config, facts: Facts) -> None:
    size = config.train_dataset.batch_size
    if facts.train_rows is not None and facts.train_rows < size:
        raise ConfigError(
            f"train_dataset.batch_size is {size}, but {config.train_dataset.path} has only "
            f"{facts.train_rows} rows; lower it or make more rows"
        )
    longest = context_length(config) if config.mode == "rl" else longest_prompt(config)
    if facts.max_positions is not None and longest > facts.max_positions:
        raise ConfigError(
            f"sequences may have {longest} tokens ({_longest_words(config)}), but "
            f"{config.actor.path} has {facts.max_positions} positions; lower it"
        )


def _longest_words(config: Config) -> str:
    prompt = longest_prompt(config)
    section = "train_dataset" if prompt == config.train_dataset.max_length else "valid_dataset"
    words = f"{section}.max_length {prompt}"
    if config.mode == "sft":
        return words
    if config.rollout.context_length:
        return "rollout.context_length"
    return f"{words} + gconfig.max_new_tokens {config.gconfig.max_new_tokens}"


def _threads(config: Config, facts: Facts) -> dict[str, int]:
    """The trainer and the servers share the cores; what runs on a GPU needs only one."""
    launched = config.mode == "rl" and not _addresses(config, facts)
    n_servers = config.rollout.n_servers if launched else 0
    on_cpu = (config.actor.device == "cpu") + n_servers * (config.rollout.device == "cpu")
    share = max(1, facts.cores // max(on_cpu, 1))
    return {
        "trainer": config.actor.threads or (share if config.actor.device == "cpu" else 1),
        "server": config.rollout.threads or (share if config.rollout.device == "cpu" else 1),
    }


def _command(line: str) -> tuple[str, ...]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"prepare: `{line}` is not a command line: {error}") from None
    return (sys.executable, *words[1:]) if words[0] in ("python", "python3") else tuple(words)


def _report(
    config: Config,
    facts: Facts,
    threads: Mapping[str, int],
    prepare: tuple[Prepare, ...],
    servers: Sequence[Process],
    addresses: Sequence[str],
) -> Iterator[str]:
    """The plan in sentences."""
    rows, size = facts.train_rows, config.train_dataset.batch_size
    yield f"run folder     {config.fileroot}/{config.experiment_name}/{config.trial_name}"
    for step in prepare:
        state = "is there" if step.makes.exists() else f"will be made by: {step.shown}"
        yield f"prepare        {step.makes}: {state}"
    yield (
        f"trainer        1 process, {config.actor.device}, {threads['trainer']} thread(s), "
        f"{config.actor.dtype}: {config.actor.path}"
    )
    known = f"{rows} rows" if rows is not None else "rows not counted yet"
    if config.mode == "sft":
        yield f"batch          {size} rows of {config.train_dataset.path} ({known})"
    else:
        yield from _servers_report(config, threads, servers, addresses)
        yield from _rollout_report(config, known)
    steps = config.total_train_steps or (
        config.total_train_epochs * (rows // size) if rows is not None else None
    )
    yield f"versions       {steps if steps is not None else 'by the epochs, once rows are counted'}"
    yield from _memory(config, facts)
    for key, path in facts.hub_ids:
        yield f"hub            there is no {path} here: {key} is taken as a hub id"
    for key, path in facts.missing:
        yield f"missing: {key} {path} is not there yet; the run cannot start without it"


def _servers_report(
    config: Config,
    threads: Mapping[str, int],
    servers: Sequence[Process],
    addresses: Sequence[str],
) -> Iterator[str]:
    rollout = config.rollout
    if addresses:
        yield f"servers        {rollout.backend}, running already: {', '.join(addresses)}"
        return
    yield (
        f"servers        {rollout.n_servers} x {rollout.backend}, {rollout.device}, "
        f"{threads['server']} thread(s), {servers[0].host}, free ports"
    )
    for server in servers:
        variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in server.environment.items())
        yield f"{server.name:<15}{variables} {hide_command(shlex.join(server.command))}"


def _rollout_report(config: Config, known: str) -> Iterator[str]:
    rollout, size, n = config.rollout, config.train_dataset.batch_size, config.gconfig.n_samples
    yield (
        f"batch          {size} rows x {n} samples = {size * n} samples of "
        f"{config.train_dataset.path} ({known})"
    )
    eta = rollout.max_head_offpolicyness
    capacity = (eta + 1) * size
    limit = rollout.max_concurrent_rollouts or capacity
    yield (
        f"staleness      at most {eta} versions per trained token: up to {capacity} episodes "
        f"admitted ahead, {min(limit, capacity)} in flight"
    )
    most, new = context_length(config), config.gconfig.max_new_tokens
    if rollout.context_length:
        yield f"sequences      up to {most} tokens in all turns, up to {new} new ones in a turn"
    else:
        yield f"sequences      up to {longest_prompt(config)} prompt + {new} new tokens = {most}"
    yield f"workflow       {rollout.workflow}, reward {rollout.reward_fn or _rewards(config)}"
    lines = [line for part in describe(config) for line in textwrap.wrap(part, 85)]
    yield f"algorithm      {lines[0]}"
    yield from (f"               {line}" for line in lines[1:])


def _rewards(config: Config) -> str:
    functions = config.reward.functions
    return " + ".join(f"{f.weight:g} x {f.component}" for f in functions) or "by the workflow"


def _memory(config: Config, facts: Facts) -> Iterator[str]:
    if facts.parameters is None:
        yield "memory         not known before the model is there"
        return
    width = 2 if config.actor.dtype == "bfloat16" else 4
    # weights, gradients, two moments; bfloat16 weights keep float32 copies of them all
    trainer = (18 if width == 2 else 16) * facts.parameters
    yield (
        f"memory         about {facts.parameters:,} parameters; trainer "
        f"{_size(trainer)} for weights, gradients and AdamW, activations not counted"
    )
    if config.mode == "rl" and config.actor.kl_ctl > 0:
        yield f"               reference {_size(width * facts.parameters)}, if it has as many"
    if config.mode == "rl":
        cache = (facts.kv_bytes_per_token or 0) * config.rollout.max_running_requests
        cache *= context_length(config)
        kv = f", cache {_size(cache)}" if cache else ""
        yield f"               each server {_size(width * facts.parameters)} for weights{kv}"


def _size(n_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
