"""The configuration's reward functions as one, ready to be awaited."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from arealite.config import Config
from arealite.config.schema import RewardFunctionConfig
from arealite.protocols import ChecksRows
from arealite.rewards.compose import Component, Composed
from arealite.rewards.pool import Pool
from arealite.rewards.scorer import Scorer
from arealite.rewards.signature import label_of, load_reward, time_limit
from arealite.rewards.template import Limits
from arealite.telemetry.waits import Waits

log = logging.getLogger("arealite.rewards")


@contextmanager
def open_reward(
    config: Config, alarm: Callable[[str], None] = log.warning, waits: Waits | None = None
) -> Iterator[Composed]:
    """rollout.reward_fn or reward.functions, run as `reward` says. ConfigError where one cannot be.

    alarm: hears it where this machine cannot isolate the workers as the configuration asks.
    """
    reward, waits = config.reward, waits or Waits()
    functions = functions_of(config)
    if reward.mode == "inline":
        yield Composed([_here(f, reward.timeout_s) for f in functions], waits)
        return
    limits = Limits(
        reward.workers,
        reward.timeout_s,
        reward.memory_mb,
        reward.isolation,
        config.rollout.setup_timeout_s,
    )
    with in_pool(functions, limits) as (components, isolation, is_as_asked):
        (_say if is_as_asked else alarm)(isolation)
        yield Composed(components, waits)


def _say(sentence: str) -> None:
    """Into the trainer's log."""
    print(sentence, flush=True)


@contextmanager
def in_pool(
    functions: Sequence[RewardFunctionConfig], limits: Limits
) -> Iterator[tuple[list[Component], str, bool]]:
    """The functions, in workers where they are not async.

    Also what holds of their isolation, in words, and whether this machine does all that was asked.
    """
    pool = Pool(functions, limits)
    try:
        outside = [signature.is_async for signature in pool.signatures]
        components = [
            _here(function, limits.timeout_s) if is_outside else _in(pool, index, function)
            for index, (function, is_outside) in enumerate(zip(functions, outside, strict=True))
        ]
        told = [] if all(outside) else [pool.isolation]
        if all(outside):
            pool.close()
        if any(outside):
            names = ", ".join(c.label for c in components if c.signature.is_async)
            told.append(f"in the trainer, where nothing is refused, because async: {names}")
        yield components, "; ".join(told), pool.is_as_asked
    finally:
        pool.close()


def functions_of(config: Config) -> list[RewardFunctionConfig]:
    """reward.functions, each with its component's name; or rollout.reward_fn, without one."""
    if not config.reward.functions:
        return [RewardFunctionConfig(path=config.rollout.reward_fn)]
    return [replace(function, name=function.component) for function in config.reward.functions]


def _in(pool: Pool, index: int, function: RewardFunctionConfig) -> Component:
    return Component(
        label_of(function),
        pool.signatures[index],
        partial(pool.group, index=index),
        function.name,
        function.weight,
    )


def _here(function: RewardFunctionConfig, default_s: float) -> Component:
    """In the trainer: inline, or async."""
    label, loaded = label_of(function), load_reward(function)
    timeout_s, setting = time_limit(function, default_s)
    scorer = Scorer(loaded.call, label, timeout_s, function.max_concurrent, setting)
    check = loaded.call.check_row if isinstance(loaded.call, ChecksRows) else None
    return Component(label, scorer.signature, scorer.group, function.name, function.weight, check)
