"""Settings of the learning rule that contradict each other: one sentence with key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from plain_config import BASE

from arealite.config import Config, load
from arealite.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(BASE))


def loaded(*overrides: str) -> Config:
    return load("run.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["actor.c_clip=1"], "actor.c_clip", "it is 1.0, it must be above 1 (3 is usual)"),
        (["actor.c_clip=3", "actor.policy_loss=sapo"], "actor.c_clip", "no clipped ratio"),
        (["actor.c_clip=3", "actor.policy_loss=cispo"], "actor.c_clip", "no clipped ratio"),
        (
            ["actor.eps_clip_higher=0.3", "actor.policy_loss=reinforce"],
            "actor.eps_clip_higher",
            "actor.policy_loss: reinforce clips nothing; leave it out",
        ),
        (["gconfig.n_samples=1"], "gconfig.n_samples", "adv_baseline: group compares"),
        (
            [
                "gconfig.n_samples=1",
                "actor.adv_baseline=none",
                "actor.adv_norm=batch",
                "rollout.filters=[equal_rewards]",
            ],
            "rollout.filters",
            "equal_rewards would filter every episode",
        ),
        (["actor.adv_norm=group", "actor.adv_baseline=none"], "actor.adv_norm", "batch or none"),
        (
            ["actor.use_decoupled_loss=false"],
            "actor.use_decoupled_loss",
            "set actor.behave_imp_weight_mode=disabled",
        ),
        (
            ["actor.use_decoupled_loss=false", "actor.behave_imp_weight_mode=token_mask"],
            "actor.use_decoupled_loss",
            "actor.behave_imp_weight_mode: token_mask",
        ),
        (["actor.behave_imp_weight_floor=0.5"], "actor.behave_imp_weight_floor", "_mask"),
        (["actor.behave_imp_weight_floor=-1"], "actor.behave_imp_weight_floor", "negative"),
        (
            ["actor.behave_imp_weight_mode=token_mask", "actor.behave_imp_weight_floor=1"],
            "actor.behave_imp_weight_floor",
            "must leave 1 inside",
        ),
        (
            ["actor.behave_imp_weight_mode=geometric_mask", "actor.behave_imp_weight_cap=0.9"],
            "actor.behave_imp_weight_cap",
            "must leave 1 inside",
        ),
        (["actor.overlong_share=1.1"], "actor.overlong_share", "a share of gconfig.max_new_tokens"),
        (["actor.overlong_share=0"], "actor.overlong_share", "above 0"),
        (["actor.reward_clip=0"], "actor.reward_clip", "above 0"),
        (["actor.overlong_penalty_factor=-1"], "actor.overlong_penalty_factor", "above 0"),
        (["actor.kl_ctl=-0.1"], "actor.kl_ctl", "negative"),
        (["ref.path=models/r"], "ref.path", "actor.kl_ctl is 0"),
        (["actor.kl_ctl=0.1", "ref.path="], "ref.path", "it is empty"),
        (["actor.sapo_tau_neg=0"], "actor.sapo_tau_neg", "above 0"),
    ],
)
def test_a_contradiction_is_refused(overrides: list[str], key: str, says: str) -> None:
    with pytest.raises(ConfigError) as told:
        loaded(*overrides)
    sentence = str(told.value)
    assert f": {key}: " in sentence
    assert says in sentence
    assert "\n" not in sentence
    assert any(f"the override {o!r}" in sentence for o in overrides if o.startswith(key))


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor.c_clip=3"],
        ["actor.c_clip=3", "actor.policy_loss=gspo"],
        ["actor.eps_clip_higher=4", "actor.policy_loss=cispo"],
        ["actor.policy_loss=reinforce"],
        ["actor.kl_ctl=0.001"],
        ["actor.kl_ctl=0.001", "ref.path=models/r"],
        ["actor.overlong_share=1"],
        ["actor.use_decoupled_loss=false", "actor.behave_imp_weight_mode=disabled"],
        ["actor.behave_imp_weight_mode=token_mask", "actor.behave_imp_weight_floor=0.5"],
        ["actor.behave_imp_weight_cap=1"],
        ["gconfig.n_samples=1", "actor.adv_baseline=none", "actor.adv_norm=batch"],
        ["actor.adv_baseline=leave_one_out"],
    ],
)
def test_what_fits_together_loads(overrides: list[str]) -> None:
    loaded(*overrides)
