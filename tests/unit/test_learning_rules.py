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
        (
            ["actor.algorithm=ppo", "actor.adv_norm=group"],
            "actor.adv_norm",
            "actor.adv_baseline is critic; use batch or none",
        ),
        (
            ["critic.path=models/c"],
            "critic.path",
            "no critic learns with actor.adv_baseline: group",
        ),
        (
            ["critic.optimizer.lr=1e-4"],
            "critic.optimizer.lr",
            "set that to critic, or leave this out",
        ),
        (["actor.algorithm=ppo", "critic.path="], "critic.path", "it is empty"),
        (["actor.algorithm=ppo", "critic.optimizer.beta2=1"], "critic.optimizer.beta2", "below 1"),
        (["actor.algorithm=ppo", "critic.eps_clip_value=0"], "critic.eps_clip_value", "above 0"),
        (["actor.algorithm=ppo", "critic.ppo_epochs=0"], "critic.ppo_epochs", "above 0"),
        (["actor.algorithm=ppo", "critic.warmup_steps=-1"], "critic.warmup_steps", "negative"),
        (
            ["actor.algorithm=ppo", "critic.ppo_n_minibatches=1000"],
            "critic.ppo_n_minibatches",
            "more minibatches than samples",
        ),
        (["actor.gae_lambda=0.9"], "actor.gae_lambda", "group does not read it"),
        (["actor.discount=0.9"], "actor.discount", "group does not read it"),
        (["actor.algorithm=ppo", "actor.discount=1.1"], "actor.discount", "between 0 and 1"),
        (["actor.ppo_epochs=0"], "actor.ppo_epochs", "above 0"),
        (["actor.kl_in=reward"], "actor.kl_in", "actor.kl_ctl is 0"),
        (["actor.lora.alpha=16"], "actor.lora.alpha", "actor.lora.rank is 0"),
        (["actor.lora.targets=[q_proj]"], "actor.lora.targets", "set it, or leave this out"),
        (["actor.lora.rank=-1"], "actor.lora.rank", "negative"),
        (["actor.lora.rank=8", "actor.lora.alpha=0"], "actor.lora.alpha", "above 0"),
        (
            ["actor.lora.rank=8", "actor.kl_ctl=0.1", "ref.path=models/r"],
            "ref.path",
            "the reference is the policy without its adapter",
        ),
        (["actor.kl_ctl=0.1", "actor.kl_estimator=k1"], "actor.kl_estimator", "use k2 or k3"),
        (["actor.kl_ctl=0.1", "actor.kl_target=6"], "actor.kl_target", "actor.kl_in is loss"),
        (
            ["actor.kl_ctl=0.1", "actor.kl_in=reward", "actor.kl_target=0"],
            "actor.kl_target",
            "above 0",
        ),
        (
            ["actor.kl_ctl=0.1", "actor.kl_in=reward", "actor.kl_horizon=9"],
            "actor.kl_horizon",
            "actor.kl_target is null",
        ),
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
        ["actor.algorithm=ppo", "gconfig.n_samples=1", "critic.warmup_steps=5"],
        ["actor.algorithm=ppo", "actor.gae_lambda=0.95", "critic.path=models/c"],
        ["actor.adv_baseline=critic", "actor.adv_norm=none", "critic.eps_clip_value=null"],
        ["actor.ppo_epochs=2"],
        ["actor.lora.rank=8", "actor.kl_ctl=0.1", "actor.lora.targets=[q_proj, v_proj]"],
        ["actor.kl_ctl=0.1", "actor.kl_in=reward", "actor.kl_estimator=k1", "actor.kl_target=6"],
    ],
)
def test_what_fits_together_loads(overrides: list[str]) -> None:
    loaded(*overrides)
