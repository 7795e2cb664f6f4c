"""Algorithms by name: plain settings, overridden one by one, and shown as what they come to."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from plain_config import BASE

from arealite.config import ActorConfig, Config, load, to_yaml
from arealite.config.presets import PRESETS, describe, keys_of
from arealite.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(BASE))


def value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_every_algorithm_of_the_schema_is_a_preset() -> None:
    names = typing.get_args(typing.get_type_hints(ActorConfig)["algorithm"])
    assert list(PRESETS) == list(names)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_says_and_nothing_else(name: str) -> None:
    config, plain = load("run.yaml", [f"actor.algorithm={name}"]), load("run.yaml")
    preset = dict(keys_of(PRESETS[name]))
    for key, value in preset.items():
        assert value_of(config, key) == value != value_of(plain, key), key
    for key in [f.name for f in ActorConfig.__dataclass_fields__.values()]:
        if f"actor.{key}" not in preset and key != "algorithm":
            assert getattr(config.actor, key) == getattr(plain.actor, key)


def test_grpo_is_the_default_and_changes_nothing() -> None:
    assert load("run.yaml") == load("run.yaml", ["actor.algorithm=grpo"])
    assert ActorConfig() == ActorConfig(algorithm="grpo")
    assert PRESETS["grpo"] == {}


def test_what_is_written_wins_wherever_it_stands(tmp_path: Path) -> None:
    tree = BASE | {"actor": {"path": "m", "algorithm": "dapo", "eps_clip_higher": None}}
    Path("dapo.yaml").write_text(yaml.safe_dump(tree))
    config = load("dapo.yaml", ["rollout.filters=[]", "actor.overlong_share=0.5"])
    assert config.actor.eps_clip_higher is None
    assert config.actor.overlong_share == 0.5
    assert config.rollout.filters == []
    assert load("dapo.yaml", ["actor.eps_clip_higher=0.3"]).actor.eps_clip_higher == 0.3


@pytest.mark.parametrize("name", PRESETS)
def test_a_runs_own_config_yaml_loads_as_the_same(name: str) -> None:
    config = load("run.yaml", [f"actor.algorithm={name}", "actor.eps_clip=0.25"])
    Path("resolved.yaml").write_text(to_yaml(config))
    assert load("resolved.yaml") == config


def test_a_name_that_is_none_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"the override 'actor.algorithm=pop': actor.algorithm:"):
        load("run.yaml", ["actor.algorithm=pop"])


def test_a_contradiction_with_a_preset_names_the_preset() -> None:
    with pytest.raises(ConfigError) as told:
        load("run.yaml", ["actor.algorithm=cispo", "actor.behave_imp_weight_mode=token_mask"])
    assert str(told.value).startswith("actor.algorithm: cispo: actor.use_decoupled_loss: false")


def test_what_it_comes_to_is_told() -> None:
    def told(*overrides: str) -> list[str]:
        return list(describe(load("run.yaml", overrides)))

    plain = told()
    assert plain[0] == "grpo sets nothing beyond the defaults"
    assert len(plain) == 2
    sets, changed, whole = told("actor.algorithm=dapo", "actor.eps_clip_higher=0.3")
    assert sets == (
        "dapo sets actor.eps_clip_higher=0.28, actor.overlong_share=0.2, "
        "rollout.filters=[equal_rewards]"
    )
    assert changed == "changed: actor.eps_clip_higher=0.3 (not 0.28)"
    for part in ("eps_clip_higher=0.3,", "use_decoupled_loss=true", "c_clip=null",
                 "rollout.filters=[equal_rewards]", "adv_norm=group"):  # fmt: skip
        assert part in whole


def test_every_setting_of_the_learning_rule_is_told() -> None:
    whole = list(describe(Config()))[-1]
    elsewhere = {  # of the model, the machine and the optimizer
        "path", "dtype", "device", "threads", "gradient_checkpointing", "mb_spec", "share_prompts",
        "optimizer", "lora", "ppo_n_minibatches", "ppo_epochs", "algorithm",
    }  # fmt: skip
    for name in set(ActorConfig.__dataclass_fields__) - elsewhere:
        assert f"{name}=" in whole, name
