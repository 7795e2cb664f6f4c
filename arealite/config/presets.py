"""Algorithms by name: each is settings that a user could have written, and may override one by one.

A preset lies between the defaults and what is written: `load` merges it, and nothing else knows
its name. docs/algorithms.md says where each comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from arealite.config.schema import Config
from arealite.config.training import ActorConfig

COUPLED = {"use_decoupled_loss": False, "behave_imp_weight_mode": "disabled"}
"""The ratio is against the policy that sampled; it is itself the correction."""

PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"actor": {"adv_norm": "none", "loss_agg_mode": "constant"}},
    "rloo": {
        "actor": {
            "adv_baseline": "leave_one_out",
            "adv_norm": "none",
            "policy_loss": "reinforce",
            "loss_agg_mode": "constant",
        }
    },
    "reinforce_pp": {"actor": {"adv_baseline": "none", "adv_norm": "batch"}},
    "dapo": {
        "actor": {"eps_clip_higher": 0.28, "overlong_share": 0.2},
        "rollout": {"filters": ["equal_rewards"]},
    },
    "gspo": {
        "actor": {
            "policy_loss": "gspo",
            "loss_agg_mode": "sequence",
            "eps_clip": 3e-4,
            "eps_clip_higher": 4e-4,
        }
    },
    "cispo": {
        "actor": {"policy_loss": "cispo", "eps_clip": 1.0, "eps_clip_higher": 4.0, **COUPLED}
    },
    "sapo": {"actor": {"policy_loss": "sapo", "loss_agg_mode": "sequence", **COUPLED}},
    "ppo": {"actor": {"adv_baseline": "critic", "adv_norm": "batch"}},
}

_LEARNING = (
    "policy_loss", "loss_agg_mode", "eps_clip", "eps_clip_higher", "c_clip", "sapo_tau_pos",
    "sapo_tau_neg", "use_decoupled_loss", "behave_imp_weight_mode", "behave_imp_weight_floor",
    "behave_imp_weight_cap", "adv_baseline", "adv_norm", "discount", "gae_lambda", "kl_ctl",
    "kl_in", "kl_estimator", "kl_target", "kl_horizon", "reward_bias", "reward_scaling",
    "reward_clip", "overlong_share", "overlong_penalty_factor", "mask_truncated_completions",
)  # fmt: skip


def keys_of(preset: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that a preset sets."""
    for name, value in preset.items():
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def describe(config: Config) -> Iterator[str]:
    """What the preset sets, what was changed in it, and every setting of the learning rule."""
    name = config.actor.algorithm
    preset = dict(keys_of(PRESETS[name]))
    sets = ", ".join(f"{key}={_shown(value)}" for key, value in preset.items())
    yield f"{name} sets {sets or 'nothing beyond the defaults'}"
    resolved = {f"actor.{key}": getattr(config.actor, key) for key in _LEARNING}
    resolved["rollout.filters"] = config.rollout.filters
    defaults = {f"actor.{f.name}": f.default for f in dataclasses.fields(ActorConfig)}
    expected = defaults | {"rollout.filters": []} | preset
    changed = ", ".join(
        f"{key}={_shown(value)} (not {_shown(expected[key])})"
        for key, value in resolved.items()
        if value != expected[key]
    )
    if changed:
        yield f"changed: {changed}"
    yield "in full: " + ", ".join(
        f"{key.removeprefix('actor.')}={_shown(value)}" for key, value in resolved.items()
    )


def _shown(value: Any) -> str:
    """As it is written in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    )
