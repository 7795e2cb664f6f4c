"""What a run names: files that are there or will be made, code that can be found; and its lock."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from arealite.config import Config, load
from arealite.errors import ConfigError
from arealite.launch.inputs import check_code, check_models, hub_ids, missing, require
from arealite.telemetry.lock import claimed
from arealite.telemetry.run_folder import RunFolder

REWARD = """
from math import floor as imported
import os.path
assigned = lambda text, truth: 0.0
if True:
    def inside(text, truth): return "\\d"
class Workflow:
    def method(self): local = 1
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("reward.py").write_text(REWARD)
    return tmp_path


def config_of(*overrides: str, **sections: Any) -> Config:
    tree = {
        "experiment_name": "test",
        "actor": {"path": "owner/model"},
        "rollout": {"reward_fn": "reward.py:inside"},
        "gconfig": {"n_samples": 4},
        "train_dataset": {"path": "owner/rows"},
        **sections,
    }
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    return load("run.yaml", overrides)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("actor.path", "/nope/model"),
        ("actor.path", "./model"),
        ("actor.path", "models/of/mine"),
        ("tokenizer_path", "/nope"),
        ("train_dataset.path", "/nope.jsonl"),
        ("train_dataset.path", "nope.jsonl"),
        ("valid_dataset.path", "/nope.jsonl"),
        ("valid_dataset.path", "~/nope.jsonl"),
    ],
)
def test_a_local_path_that_is_not_there_is_named(key: str, path: str) -> None:
    absent = missing(config_of(f"{key}={path}"))
    assert absent == ((key, path),)
    with pytest.raises(ConfigError, match=f"^{key}: {path} is not there, and no prepare step"):
        require(absent)


def test_hub_ids_and_files_that_are_there_are_not_missing() -> None:
    Path("rows.jsonl").touch()
    config = config_of("train_dataset.path=rows.jsonl", "tokenizer_path=models/mine")
    assert missing(config) == ()
    require(())
    assert hub_ids(config) == (("actor.path", "owner/model"), ("tokenizer_path", "models/mine"))
    Path("models/mine").mkdir(parents=True)
    steps = [{"makes": "owner/model", "run": "x"}]
    config = config_of("train_dataset.path=rows.jsonl", "tokenizer_path=models/mine", prepare=steps)
    assert hub_ids(config) == ()


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("data/tiny/test.jsonl", True),
        ("data/tiny/train.jsonl", True),
        ("models/m/a/b", True),
        ("data/train.jsonl", False),
        ("data/tiny/deep/train.jsonl", False),
        ("models/other/a/b", False),
    ],
)
def test_what_a_prepare_step_will_make_is_not_missing(here: Path, path: str, made: bool) -> None:
    steps = [{"makes": "data/tiny/test.jsonl", "run": "x"}, {"makes": "models/m", "run": "x"}]
    for name in (path, str(here / path)):
        assert (missing(config_of(f"train_dataset.path={name}", prepare=steps)) == ()) == made


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["actor.path=empty"], r"^actor.path: the folder empty has no config.json; give a Hugging"),
        (["tokenizer_path=empty"], r"^tokenizer_path: the folder empty has no tokenizer_config.js"),
        (["tokenizer_path=full"], ""),
        (["actor.path=full", "ref.path=empty", "actor.kl_ctl=0.1"], r"^ref.path: the folder empty"),
        (
            ["actor.path=full", "critic.path=empty", "actor.algorithm=ppo"],
            r"^critic.path: the folder ",
        ),
    ],
)
def test_a_folder_that_is_used_holds_a_model_or_a_tokenizer(
    overrides: list[str], says: str
) -> None:
    Path("empty").mkdir()
    Path("full").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (Path("full") / name).touch()
    if says:
        with pytest.raises(ConfigError, match=says):
            check_models(config_of(*overrides))
    else:
        check_models(config_of(*overrides))


@pytest.mark.parametrize("makes", ["m", "m/config.json", "m/done"])
def test_a_folder_that_a_prepare_step_still_fills_may_be_there_already(makes: str) -> None:
    Path("m").mkdir()
    config = config_of("actor.path=m", prepare=[{"makes": makes, "run": "x"}])
    if makes == "m":  # it is there, so the step is skipped
        with pytest.raises(ConfigError, match="the folder m has no config"):
            check_models(config)
    else:
        check_models(config)


def test_a_step_that_is_skipped_makes_nothing() -> None:
    Path("test.jsonl").touch()
    steps = [{"makes": "test.jsonl", "run": "x"}]
    config = config_of("train_dataset.path=train.jsonl", prepare=steps)
    assert missing(config) == (("train_dataset.path", "train.jsonl"),)


@pytest.mark.parametrize("name", ["inside", "assigned", "imported", "os", "Workflow"])
def test_code_that_is_defined_in_any_way_is_found(here: Path, name: str) -> None:
    check_code(config_of(f"rollout.reward_fn=reward.py:{name}"))
    check_code(config_of(f"rollout.reward_fn={here}/reward.py:{name}"))
    check_code(config_of(f"rollout.reward_fn=reward:{name}"))


def test_the_code_of_several_reward_functions_is_looked_at(here: Path) -> None:
    several = "reward.functions=[{path: 'reward.py:inside'}, {path: 'reward.py:insde', name: b}]"
    with pytest.raises(ConfigError, match=r"reward.functions\[1\].path: reward.py has no 'insde'"):
        check_code(config_of("rollout.reward_fn=", several))


@pytest.mark.parametrize("key", ["rollout.reward_fn", "rollout.workflow"])
@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("reward_score", "'reward_score' names no code; write pkg.mod:Name or path/file.py:name"),
        ("reward.py:", "names no code"),
        (":name", "names no code"),
        ("reward.py:two words", "names no code"),
        ("/nope.py:compute_score", "/nope.py: there is no such file"),
        ("no_such_module:name", "there is no module no_such_module"),
        ("no_such.part:name", "there is no module no_such.part"),
        ("workflows.no_such:name", "there is no module workflows.no_such"),
        ("reward.py:compute_score", "reward.py has no 'compute_score'; it has imported, os, "),
        ("reward:method", "has no 'method'"),
        ("reward.py:local", "has no 'local'"),
        ("broken.py:name", "broken.py, line 2: this is not valid Python: "),
        ("null.py:name", "null.py"),
    ],
)
def test_a_reference_that_names_no_code_is_told(key: str, reference: str, says: str) -> None:
    Path("broken.py").write_text("x = 1\ndef name(:\n")
    Path("null.py").write_bytes(b"\0")
    with pytest.raises(ConfigError) as caught:
        check_code(config_of(f"{key}={reference}"))
    assert str(caught.value).startswith(f"{key}: ")
    assert says in str(caught.value)


def test_code_is_read_and_never_run() -> None:
    Path("loud.py").write_text("from os import *\nraise SystemExit('it was run')\n")
    check_code(config_of("rollout.reward_fn=loud.py:anything"))


def test_code_is_not_looked_for_where_none_is_used_or_a_step_makes_it() -> None:
    check_code(config_of("rollout.reward_fn=nope.py:x", "mode=sft"))
    steps = [{"makes": "made/reward.py", "run": "x"}]
    check_code(config_of("rollout.reward_fn=made/reward.py:x", prepare=steps))
    with pytest.raises(ConfigError, match="no such file"):
        check_code(config_of("rollout.reward_fn=made/rewrad.py:x", prepare=steps))


def test_a_run_folder_has_one_launcher_at_a_time(here: Path) -> None:
    folder = RunFolder(here / "runs" / "e" / "t")
    with claimed(folder) as aside:
        assert aside is None
        folder.status.touch()
        with pytest.raises(ConfigError, match=rf"is in use by pid {os.getpid()}; give another"):
            with claimed(folder):
                pass
        assert folder.status.exists()


def test_older_runs_are_each_kept_under_a_name_of_their_own(here: Path) -> None:
    folder = RunFolder(here / "runs" / "e" / "t")
    kept = set()
    for number in range(4):
        with claimed(folder) as aside:
            assert not folder.status.exists()
            folder.status.write_text(str(number))
        if aside:
            kept.add((aside / "status.json").read_text())
    assert kept == {"0", "1", "2"}
    assert len(list(folder.path.parent.iterdir())) == 4
