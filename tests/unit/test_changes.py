"""Which settings may change while a run goes on."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from arealite.checkpoints.changes import FREE, changes, check_changes, plain
from arealite.config import Config
from arealite.config.load import _known_keys
from arealite.errors import ConfigError


def config_of(**actor: object) -> Config:
    config = replace(Config(), experiment_name="e")
    return replace(config, actor=replace(config.actor, path="model", **actor))  # type: ignore[arg-type]


def test_the_same_is_no_change() -> None:
    assert changes(plain(config_of()), config_of()) == []


def test_what_only_changes_how_a_run_is_carried_out_passes() -> None:
    now = config_of(threads=7, share_prompts=False)
    now = replace(now, total_train_steps=9, trial_name="other")
    found = check_changes(plain(config_of()), now, "the checkpoint of version 3")
    assert [str(change) for change in found] == [
        "trial_name was 'trial0' and is 'other'",
        "total_train_steps was None and is 9",
        "actor.share_prompts was True and is False",
    ]


def test_a_run_may_go_on_with_other_servers() -> None:
    rollout = replace(
        Config().rollout,
        servers=["elsewhere:1"],
        python="/env/bin/python",
        tensor_parallel_size=2,
        server_args=["--enable-metrics"],
        weights_dir="/everywhere",
    )
    found = check_changes(plain(config_of()), replace(config_of(), rollout=rollout), "it")
    assert len(found) == 5
    assert not any(change.harm for change in found)


@pytest.mark.parametrize(
    ("now", "key"),
    [
        (replace(config_of(), seed=2), "seed"),
        (config_of(algorithm="rloo"), "actor.algorithm"),
        (config_of(dtype="float32"), "actor.dtype"),
        (replace(config_of(), train_dataset=replace(Config().train_dataset, batch_size=8)),
         "train_dataset.batch_size"),
        (replace(config_of(), rollout=replace(Config().rollout, filters=["overlong"])),
         "rollout.filters"),
        (config_of(optimizer=replace(Config().actor.optimizer, lr=1.0)), "actor.optimizer.lr"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_changes_the_learning_is_refused_by_name(now: Config, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} was .*; set it back, .* recover.mode=off"):
        check_changes(plain(config_of()), now, "the checkpoint of version 3")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_length_matters_where_the_learning_rate_follows_it(schedule: str) -> None:
    optimizer = replace(Config().actor.optimizer, lr_scheduler_type=schedule)  # type: ignore[arg-type]
    before = config_of(optimizer=optimizer)
    with pytest.raises(ConfigError, match="the learning rate's course"):
        check_changes(plain(before), replace(before, total_train_steps=9), "it")


def test_a_deterministic_run_keeps_what_its_bits_depend_on() -> None:
    before = replace(config_of(), deterministic=True)
    now = replace(before, actor=replace(before.actor, share_prompts=False))
    with pytest.raises(ConfigError, match="other bits"):
        check_changes(plain(before), now, "it")


def test_a_setting_that_the_older_release_did_not_know_is_no_change() -> None:
    before = plain(config_of())
    del before["recover"]
    before["gone"] = 1
    assert changes(before, config_of()) == []


def test_every_free_setting_exists() -> None:
    assert set(FREE) <= {*_known_keys(), *(field.name for field in fields(Config))}
