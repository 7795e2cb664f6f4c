"""Rules between the settings of the learning rule: nothing that is asked for is left undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from arealite.config.schema import Config
from arealite.config.training import ActorConfig, CriticConfig, LoraConfig

Broken = tuple[str, str]
"""(the dotted key to blame, what is wrong and what to do)."""


def learning_rules(config: Config) -> Iterator[Broken]:
    """What is broken in `mode: rl`."""
    yield from _groups(config)
    yield from _critic(config)
    yield from _shaping(config.actor)
    yield from _clipping(config.actor)
    yield from _correction(config.actor)
    yield from _reference(config)


def lora(config: Config) -> Iterator[Broken]:
    """What is broken in actor.lora, in any mode."""
    if config.actor.lora.rank == 0:
        for key in _changed("actor.lora", config.actor.lora, LoraConfig()):
            yield (
                key,
                "actor.lora.rank is 0, so that there is no adapter; set it, or leave this out",
            )
    elif config.mode == "rl" and config.actor.kl_ctl > 0 and config.ref.path != config.actor.path:
        yield (
            "ref.path",
            "with actor.lora the reference is the policy without its adapter; leave ref.path out",
        )


def _groups(config: Config) -> Iterator[Broken]:
    actor, n = config.actor, config.gconfig.n_samples
    if n < 2 and actor.adv_baseline in ("group", "leave_one_out"):
        yield (
            "gconfig.n_samples",
            f"it is {n}, but actor.adv_baseline: {actor.adv_baseline} compares the samples of one "
            "row with each other; use at least 2",
        )
    if n < 2 and "equal_rewards" in config.rollout.filters:
        yield (
            "rollout.filters",
            "equal_rewards would filter every episode where gconfig.n_samples is 1; leave it out",
        )
    if actor.adv_norm == "group" and actor.adv_baseline in ("critic", "none"):
        yield (
            "actor.adv_norm",
            "group divides differences from the group's mean, but actor.adv_baseline is "
            f"{actor.adv_baseline}; use batch or none",
        )


def _critic(config: Config) -> Iterator[Broken]:
    actor, critic = config.actor, config.critic
    if actor.adv_baseline == "critic":
        if not critic.path:
            yield "critic.path", "it is empty; give the folder or hub id of a model"
        if config.train_dataset.batch_size * config.gconfig.n_samples < critic.ppo_n_minibatches:
            yield "critic.ppo_n_minibatches", "there are more minibatches than samples in a batch"
        return
    for key in _changed("critic", critic, CriticConfig(path=actor.path)):
        yield (
            key,
            f"no critic learns with actor.adv_baseline: {actor.adv_baseline}; set that to critic, "
            "or leave this out",
        )
    for name in ("discount", "gae_lambda"):
        if getattr(actor, name) != 1.0:
            yield (
                f"actor.{name}",
                f"actor.adv_baseline: {actor.adv_baseline} does not read it; use critic, or leave "
                "it out",
            )


def _changed(prefix: str, section: Any, untouched: Any) -> Iterator[str]:
    """The keys whose values differ."""
    for field in dataclasses.fields(section):
        key = f"{prefix}.{field.name}"
        one, other = getattr(section, field.name), getattr(untouched, field.name)
        if dataclasses.is_dataclass(one):
            yield from _changed(key, one, other)
        elif one != other:
            yield key


def _shaping(actor: ActorConfig) -> Iterator[Broken]:
    share = actor.overlong_share
    if share is not None and not 0 < share <= 1:
        yield (
            "actor.overlong_share",
            f"it is {share}, it must be above 0 and at most 1: a share of gconfig.max_new_tokens",
        )


def _clipping(actor: ActorConfig) -> Iterator[Broken]:
    if actor.eps_clip_higher is not None and actor.policy_loss in ("sapo", "reinforce"):
        yield (
            "actor.eps_clip_higher",
            f"actor.policy_loss: {actor.policy_loss} clips nothing; leave it out",
        )
    if actor.c_clip is None:
        return
    if actor.c_clip <= 1:
        yield "actor.c_clip", f"it is {actor.c_clip}, it must be above 1 (3 is usual)"
    if actor.policy_loss not in ("ppo", "gspo"):
        yield (
            "actor.c_clip",
            f"actor.policy_loss: {actor.policy_loss} has no clipped ratio to bound; leave it out",
        )


def _correction(actor: ActorConfig) -> Iterator[Broken]:
    mode, floor, cap = (
        actor.behave_imp_weight_mode,
        actor.behave_imp_weight_floor,
        actor.behave_imp_weight_cap,
    )
    if not actor.use_decoupled_loss and mode != "disabled":
        yield (
            "actor.use_decoupled_loss",
            f"false leaves out the policy that actor.behave_imp_weight_mode: {mode} corrects "
            "towards, and with it the correction; set actor.behave_imp_weight_mode=disabled",
        )
    if floor < 0:
        yield "actor.behave_imp_weight_floor", f"it is {floor}, it must not be negative"
    if not mode.endswith("_mask"):
        if floor > 0:
            yield (
                "actor.behave_imp_weight_floor",
                f"actor.behave_imp_weight_mode: {mode} masks nothing; use a mode that ends in "
                "_mask, or leave it out",
            )
    elif not floor < 1 < cap:
        key = "cap" if cap <= 1 else "floor"
        yield (
            f"actor.behave_imp_weight_{key}",
            f"weights outside {floor} to {cap} are masked, which must leave 1 inside: the weight "
            "of a token that the trained policy itself sampled",
        )


def _reference(config: Config) -> Iterator[Broken]:
    if config.actor.kl_ctl == 0 and config.ref.path != config.actor.path:
        yield (
            "ref.path",
            "actor.kl_ctl is 0, so that no reference model is read; set it above 0, or leave "
            "ref.path out",
        )
    actor = config.actor
    if actor.kl_in == "reward" and actor.kl_ctl == 0:
        yield "actor.kl_in", "actor.kl_ctl is 0, so that nothing is taken off; set it above 0"
    if actor.kl_in == "loss" and actor.kl_estimator == "k1":
        yield (
            "actor.kl_estimator",
            "the gradient of k1 in a loss is 0 on average; use k2 or k3, or actor.kl_in=reward",
        )
    if actor.kl_in == "loss" and actor.kl_target is not None:
        yield "actor.kl_target", "actor.kl_in is loss, whose coefficient is fixed; use reward"
    if actor.kl_target is None and actor.kl_horizon != ActorConfig().kl_horizon:
        yield "actor.kl_horizon", "actor.kl_target is null, so that nothing adapts; leave it out"
    if config.actor.kl_ctl > 0 and not config.ref.path:
        yield "ref.path", "it is empty; give the folder or hub id of a model"
