"""Which settings may change while a run goes on, compared field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from arealite.config import Config, to_yaml
from arealite.errors import ConfigError

_SHARE = "actor.threads"
"""The launcher's division of the cores: nobody set it."""

_BITS = ("actor.device", "actor.mb_spec", "actor.share_prompts", "actor.gradient_checkpointing")
_LENGTH = ("total_train_steps", "total_train_epochs")

FREE = (
    *("experiment_name", "trial_name", "fileroot", "prepare", "scheduler", "stats_logger"),
    *("saver", "recover", "evaluator", "valid_dataset", _SHARE, *_BITS, *_LENGTH),
    *(f"reward.{key}" for key in ("mode", "workers", "timeout_s", "memory_mb", "isolation")),
    *(f"rollout.{key}" for key in ("backend", "n_servers", "device", "threads")),
    *(f"rollout.{key}" for key in ("servers", "python", "tensor_parallel_size", "server_args")),
    *("rollout.weights_dir", "rollout.setup_timeout_s", "rollout.stall_timeout_s"),
    *(f"rollout.{key}" for key in ("max_running_requests", "max_concurrent_rollouts")),
    *(f"rollout.{key}" for key in ("update_mode", "concurrency", "episode_timeout_s")),
    *(f"rollout.{key}" for key in ("request_timeout_s", "request_retries", "server_timeout_s")),
)
"""Settings, and sections, of how a run is carried out; all others are of what it learns."""


@dataclass(frozen=True)
class Change:
    """One setting that differs. harm: why a run cannot go on with it; "" where it can."""

    key: str
    before: Any
    now: Any
    harm: str = ""

    def __str__(self) -> str:
        return f"{self.key} was {self.before!r} and is {self.now!r}"


def plain(config: Config) -> dict[str, Any]:
    """The configuration as JSON, with secrets masked: what a checkpoint keeps of it."""
    tree: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return tree


def changes(before: Mapping[str, Any], config: Config) -> list[Change]:
    """What differs from the configuration of a checkpoint, in its order. A setting that one of
    the two does not know, as another release of arealite may, is no change."""
    old, new = dict(_flat(before)), dict(_flat(plain(config)))
    return [
        Change(key, old[key], new[key], _harm(key, config))
        for key in old
        if key in new and old[key] != new[key] and key != _SHARE
    ]


def check_changes(before: Mapping[str, Any], config: Config, where: str) -> list[Change]:
    """The harmless ones. Raises ConfigError with the first that is harmful."""
    found = changes(before, config)
    for change in found:
        if change.harm:
            raise ConfigError(
                f"{change}, but {where} goes on with what it was: {change.harm}; set it back, give "
                "another trial_name, or start anew with recover.mode=off"
            )
    return found


def _harm(key: str, config: Config) -> str:
    if key in _LENGTH and _rate_depends_on_length(config):
        return "the learning rate's course depends on where the run ends"
    if config.deterministic and _is_in(key, _BITS):
        return "a deterministic run would compute other bits"
    return "" if _is_in(key, FREE) else "it is part of what is learned"


def _rate_depends_on_length(config: Config) -> bool:
    return any(
        optimizer.lr_scheduler_type != "constant"
        or (optimizer.warmup_steps is None and optimizer.warmup_steps_proportion > 0)
        for optimizer in (config.actor.optimizer, config.critic.optimizer)
    )


def _is_in(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and key != "workflow_kwargs":
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
