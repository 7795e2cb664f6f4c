"""Rules that hold between settings. Each broken one is a sentence with its place and remedy."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from arealite.config.learning import Broken, learning_rules, lora
from arealite.config.logprobs import launched_meaning, untrainable
from arealite.config.schema import Config
from arealite.config.training import OptimizerConfig
from arealite.errors import ConfigError
from arealite.types import LEAST_TEMPERATURE

Where = Callable[[str], str]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check(config: Config, where: Where) -> None:
    """Raises ConfigError with the first rule that is broken."""
    rules = [_names(config), _finite(config), _numbers(config), _ranges(config), _sampling(config)]
    rules.append(lora(config))
    rules.append(_sft(config) if config.mode == "sft" else _rl(config))
    for rule in rules:
        for key, sentence in rule:
            raise ConfigError(f"{where(key)}: {key}: {sentence}")


def _names(config: Config) -> Iterator[Broken]:
    for key in ("experiment_name", "trial_name"):
        value = getattr(config, key)
        if not value:
            yield key, "it is empty; give the run a name, like countdown-grpo"
        elif not _NAME.fullmatch(value):
            yield key, f"{value!r} names a folder: use letters, digits, dot, dash, underscore"
    if not config.actor.path:
        yield "actor.path", "it is empty; give the folder or hub id of a model"
    if not config.train_dataset.path:
        yield "train_dataset.path", "it is empty; give a .jsonl file or a data set's hub id"
    for index, step in enumerate(config.prepare):
        if not step.makes.strip() or not step.run.strip():
            yield f"prepare[{index}]", "it needs both `makes` and `run`"


def _finite(section: Any, prefix: str = "") -> Iterator[Broken]:
    """No comparison with NaN is true, so that no other rule would see it."""
    for field in dataclasses.fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _finite(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield key, f"it is {value}, it must be a finite number"


_POSITIVE = (
    "train_dataset.batch_size",
    "train_dataset.max_length",
    "total_train_epochs",
    "total_train_steps",
    "actor.mb_spec.max_tokens_per_mb",
    "actor.ppo_n_minibatches",
    "actor.ppo_epochs",
    "critic.ppo_n_minibatches",
    "critic.ppo_epochs",
    "critic.eps_clip_value",
    "actor.threads",
    "actor.behave_imp_weight_cap",
    "actor.eps_clip_higher",
    "actor.reward_clip",
    "actor.lora.alpha",
    "actor.kl_target",
    "actor.kl_horizon",
    "actor.overlong_penalty_factor",
    "actor.sapo_tau_pos",
    "actor.sapo_tau_neg",
    "rollout.threads",
    "rollout.n_servers",
    "rollout.tensor_parallel_size",
    "rollout.max_running_requests",
    "rollout.context_length",
    "rollout.max_concurrent_rollouts",
    "rollout.episode_timeout_s",
    "rollout.request_timeout_s",
    "rollout.server_timeout_s",
    "rollout.setup_timeout_s",
    "rollout.stall_timeout_s",
    "reward.workers",
    "reward.timeout_s",
    "reward.memory_mb",
    "evaluator.freq_steps",
    "evaluator.n_samples",
    "evaluator.temperature",
    "saver.freq_steps",
    "recover.freq_steps",
    "recover.freq_secs",
    "recover.keep",
    "recover.timeout_s",
    "train_dataset.max_rows",
    "valid_dataset.max_rows",
)


def _numbers(config: Config) -> Iterator[Broken]:
    for key in _POSITIVE:
        value = attrgetter(key)(config)
        if value is not None and value <= 0:
            yield key, f"it is {value}, it must be above 0"


def _optimizer(section: str, optimizer: OptimizerConfig) -> Iterator[Broken]:
    for name in ("eps", "lr_scheduler_power"):
        if (value := getattr(optimizer, name)) <= 0:
            yield f"{section}.{name}", f"it is {value}, it must be above 0"
    for name in ("lr", "weight_decay", "warmup_steps", "gradient_clipping"):
        value = getattr(optimizer, name)
        if value is not None and value < 0:
            yield f"{section}.{name}", f"it is {value}, it must not be negative"
    for name in ("warmup_steps_proportion", "min_lr_ratio"):
        if not 0 <= (value := getattr(optimizer, name)) <= 1:
            yield f"{section}.{name}", f"it is {value}, it must lie between 0 and 1"
    for name in ("beta1", "beta2", "momentum"):
        if not 0 <= (value := getattr(optimizer, name)) < 1:
            yield f"{section}.{name}", f"it is {value}, it must be at least 0 and below 1"
    if optimizer.type != "sgd" and optimizer.momentum > 0:
        yield (
            f"{section}.momentum",
            f"{section}.type: adamw has beta1 for it; set that, or leave it out",
        )


def _ranges(config: Config) -> Iterator[Broken]:
    natural = {
        "actor.kl_ctl": config.actor.kl_ctl,
        "actor.lora.rank": config.actor.lora.rank,
        "critic.warmup_steps": config.critic.warmup_steps,
        "rollout.request_retries": config.rollout.request_retries,
        "scheduler.grace_s": config.scheduler.grace_s,
        "scheduler.restarts": config.scheduler.restarts,
        "recover.retries": config.recover.retries,
    }
    for key, value in natural.items():
        if value is not None and value < 0:
            yield key, f"it is {value}, it must not be negative"
    shares = {
        "actor.eps_clip": config.actor.eps_clip,
        "actor.discount": config.actor.discount,
        "actor.gae_lambda": config.actor.gae_lambda,
    }
    for key, share in shares.items():
        if not 0 <= share <= 1:
            yield key, f"it is {share}, it must lie between 0 and 1"
    yield from _optimizer("actor.optimizer", config.actor.optimizer)
    yield from _optimizer("critic.optimizer", config.critic.optimizer)
    if config.rollout.max_head_offpolicyness < 0:
        yield "rollout.max_head_offpolicyness", "it is negative; 0 is the synchronous run"


def _sampling(config: Config) -> Iterator[Broken]:
    for key, seed in (("seed", config.seed), ("gconfig.seed", config.gconfig.seed)):
        if seed is not None and not 0 <= seed < 2**63:
            yield key, f"it is {seed}, it must be at least 0 and below 2**63"
    for section in ("gconfig", "evaluator"):
        temperature = getattr(config, section).temperature
        if temperature is not None and temperature < LEAST_TEMPERATURE:
            yield (
                f"{section}.temperature",
                f"it is {temperature}, it must be at least {LEAST_TEMPERATURE:g}; "
                "for the likeliest token use evaluator.greedy",
            )


_ADDRESS = re.compile(r"[^\s/:]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}")
_VLLM_TEMPERATURES = (0.01, 2.0)
"""It refuses higher ones, and takes lower ones for the lowest."""


def _servers(config: Config) -> Iterator[Broken]:
    rollout = config.rollout
    for address in rollout.servers:
        if not _ADDRESS.fullmatch(address):
            yield "rollout.servers", f"{address!r} is no address; write host:port"
    if len(set(rollout.servers)) < len(rollout.servers):
        yield "rollout.servers", "an address is given twice; each server is one"
    if rollout.backend == "embedded":
        for key, given in (
            ("python", rollout.python),
            ("tensor_parallel_size", rollout.tensor_parallel_size > 1),
        ):
            if given:
                yield f"rollout.{key}", "only servers of the backend sglang or vllm have it"
    elif config.deterministic:
        yield (
            "deterministic",
            f"{rollout.backend}'s numbers depend on who shares a batch; only rollout.backend: "
            "embedded repeats them bit by bit",
        )
    if rollout.backend == "vllm":
        low, high = _VLLM_TEMPERATURES
        for section in ("gconfig", "evaluator"):
            temperature = getattr(config, section).temperature
            if temperature is not None and not low <= temperature <= high:
                yield (
                    f"{section}.temperature",
                    f"it is {temperature:g}, vLLM samples with {low:g} to {high:g}",
                )


def _engine(config: Config) -> Iterator[Broken]:
    meaning = launched_meaning(config.rollout)
    if meaning is not None and (found := untrainable(meaning, config.gconfig)):
        yield found
    if config.gconfig.greedy:
        yield (
            "gconfig.greedy",
            "a group of equal samples teaches nothing; use evaluator.greedy, for evaluation alone",
        )


def _rl(config: Config) -> Iterator[Broken]:
    yield from _servers(config)
    yield from _engine(config)
    yield from learning_rules(config)
    yield from _reward_functions(config)
    n = config.gconfig.n_samples
    longest = config.train_dataset.max_length + config.gconfig.max_new_tokens
    budget = config.actor.mb_spec.max_tokens_per_mb
    if longest > budget:
        yield (
            "actor.mb_spec.max_tokens_per_mb",
            f"a sequence may have {longest} tokens (train_dataset.max_length "
            f"{config.train_dataset.max_length} + gconfig.max_new_tokens "
            f"{config.gconfig.max_new_tokens}), more than this budget of {budget}; raise it",
        )
    if config.train_dataset.batch_size * n < config.actor.ppo_n_minibatches:
        yield "actor.ppo_n_minibatches", "there are more minibatches than samples in a batch"


def _reward_functions(config: Config) -> Iterator[Broken]:
    functions, alone = config.reward.functions, config.rollout.reward_fn
    if not (functions or alone) and config.rollout.workflow == "workflows.rlvr:RLVRWorkflow":
        yield (
            "rollout.reward_fn",
            "it is empty; name a function, like reward_score.py:compute_score, or several in "
            "reward.functions",
        )
    if functions and alone:
        yield "rollout.reward_fn", "reward.functions are given, too; put it among them"
    names: dict[str, int] = {}
    for index, function in enumerate(functions):
        key, name = f"reward.functions[{index}]", function.component
        if not function.path:
            yield key, "it has no path; give pkg.mod:function or path/file.py:function"
        if name in names:
            yield (
                key,
                f"its component is called {name!r}, as that of reward.functions[{names[name]}]; "
                "give one of them another name",
            )
        elif not _NAME.fullmatch(name) or name == "mean":
            why = "that is the whole reward" if name == "mean" else "use letters, digits and _ . -"
            yield f"{key}.name", f"{name!r} cannot name a component: {why}"
        names[name] = index
        if not math.isfinite(function.weight) or not function.weight:
            yield f"{key}.weight", f"it is {function.weight}; leave out what shall not count"
        for field in ("timeout_s", "max_concurrent"):
            value = getattr(function, field)
            if value is not None and not (math.isfinite(value) and value > 0):
                yield f"{key}.{field}", f"it is {value}, it must be above 0"


def _sft(config: Config) -> Iterator[Broken]:
    budget = config.actor.mb_spec.max_tokens_per_mb
    for section in ("train_dataset", "valid_dataset"):
        dataset = getattr(config, section)
        if dataset.path and dataset.max_length > budget:
            yield (
                "actor.mb_spec.max_tokens_per_mb",
                f"a sequence may have {section}.max_length = {dataset.max_length} tokens, more "
                f"than this budget of {budget}; raise it",
            )
