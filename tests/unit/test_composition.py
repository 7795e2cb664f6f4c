"""The composition of a run: what it refuses before anything is played, and what sft evaluates."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_support import saved, tiny_tokenizer

from arealite.assembly import open_rollouts
from arealite.config import Config, load
from arealite.engines.client import RemoteEngine
from arealite.errors import ConfigError
from arealite.main import finetune
from arealite.processes import ROLE
from arealite.run import open_run
from arealite.telemetry.lock import claimed
from arealite.telemetry.metrics import load_metrics, series
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import read_status

ROWS = [{"prompt": f"{a}+{b}", "completion": f"{a + b}"} for a in range(4) for b in range(4)]
FUSSY = """
class Fussy:
    async def arun_episode(self, engine, data): ...
    def check_row(self, data):
        if "row" in data:
            raise {}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its tokenizer, rows, and a reward."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a user's folder is put there
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(ROLE, raising=False)
    tiny_tokenizer().save_pretrained(saved(tmp_path / "model"))
    write("rows.jsonl", ROWS)
    Path("composed_reward.py").write_text("def compute_score(text, truth): return 0.0\n")
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(*overrides: str) -> Config:
    tree: Mapping[str, Any] = {
        "experiment_name": "e",
        "actor": {"path": "model", "dtype": "float32", "optimizer": {"lr": 1e-2}},
        "rollout": {"reward_fn": "composed_reward.py:compute_score"},
        "gconfig": {"n_samples": 2},
        "train_dataset": {"path": "rows.jsonl", "batch_size": 4},
        "total_train_steps": 4,
    }
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    return load("run.yaml", overrides)


def refused(*overrides: str) -> str:
    """The sentence with which the rollouts are refused; no server is asked for anything."""
    with pytest.raises(ConfigError) as told:
        with open_run(config_of(*overrides)) as run:
            open_rollouts(run, ["127.0.0.1:1"])
    return str(told.value)


KEYS = "rollout.workflow_kwargs={prompt_key: prompt, answer_key: completion}"


@pytest.mark.parametrize("section", ["train_dataset", "valid_dataset"])
def test_a_column_that_is_not_there_is_told_before_anything_is_played(section: str) -> None:
    write("other.jsonl", [{"question": "x", "completion": ""}] * 4)
    assert refused(KEYS, f"{section}.path=other.jsonl") == (
        f"{section}.path: other.jsonl, row 0: there is no column 'prompt', which prompt_key of "
        "rollout.workflow_kwargs names; its columns are question, completion"
    )


def test_a_tokenizer_without_a_chat_template_is_told_before_anything_is_played(here: Path) -> None:
    tiny_tokenizer(chat=False).save_pretrained(here / "plain")
    plain = ["tokenizer_path=plain", "trial_name=plain"]
    assert "row 0: the tokenizer has no chat template; give" in refused(KEYS, *plain)
    with open_run(config_of(KEYS, *plain, "rollout.workflow_kwargs.chat=false")) as run:
        open_rollouts(run, ["127.0.0.1:1"])


@pytest.mark.parametrize(
    ("error", "says"),
    [("ValueError('no such game')", "no such game"), ("KeyError('game')", "KeyError: 'game'")],
)
def test_a_workflow_of_the_users_own_may_check_rows(error: str, says: str) -> None:
    Path("fussy.py").write_text(FUSSY.format(error))
    fussy = "rollout.workflow=fussy.py:Fussy"
    with open_run(config_of(fussy)) as run:
        open_rollouts(run, ["127.0.0.1:1"])
    write("other.jsonl", [{"row": i} for i in range(4)])
    sentence = refused(fussy, "train_dataset.path=other.jsonl")
    assert sentence == f"train_dataset.path: other.jsonl, row 0: {says}"


def test_the_client_knows_the_tokenizer_and_whom_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Spy(RemoteEngine):
        def __init__(self, *args: Any, **options: Any) -> None:
            given.update(options)
            super().__init__(*args, **options)

    monkeypatch.setattr("arealite.assembly.RemoteEngine", Spy)
    with open_run(config_of(KEYS)) as run:
        open_rollouts(run, ["127.0.0.1:1"])
        ids = run.tokenizer.encode("1+2<eos>")
        assert given["decode"](ids) == run.tokenizer.decode(ids)
        assert "<eos>" in given["decode"](ids), "a stop string may be a special token"
        given["alarm"]("versions are not told")
        run.status.flush()
        assert read_status(run.folder)["alarms"][0]["text"] == "versions are not told"


def test_a_run_folder_in_use_is_refused_also_without_the_launcher(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    with open_run(config):
        with pytest.raises(ConfigError, match=r"run folder runs/e/trial0 is in use by pid"):
            with open_run(config):
                pass
        assert Path("runs/e/trial0/status.json").exists(), "the first is left alone"
    with open_run(config):  # freed, and moved aside
        pass
    assert len(list(Path("runs/e").iterdir())) == 2
    monkeypatch.setenv(ROLE, "trainer")
    with claimed(RunFolder(Path("runs/e/trial0"))), open_run(config):  # the launcher's own trainer
        pass


def test_a_script_may_bring_rows_of_its_own(here: Path) -> None:
    own = [{"prompt": "1+1", "completion": "2"}] * 8
    with open_run(config_of(KEYS, "total_train_steps=null"), own) as run:
        assert (len(run.rows), run.total_versions) == (8, 2)
        open_rollouts(run, ["127.0.0.1:1"])
    with pytest.raises(ConfigError, match="batch_size is 4"):
        with open_run(config_of("trial_name=few"), own[:3]):
            pass


def losses(config: Config) -> dict[int, float]:
    finetune(config)
    rows = load_metrics(RunFolder.of("runs", "e", config.trial_name).metrics)
    return dict(zip(*series(rows, "eval/valid/loss"), strict=True))


def test_sft_evaluates_before_at_its_steps_and_after() -> None:
    write("held_out.jsonl", [{"prompt": "1+4", "completion": "5"}])
    sft = ["mode=sft", "valid_dataset.path=held_out.jsonl"]
    found = losses(config_of(*sft, "evaluator.freq_steps=2"))
    assert list(found) == [0, 2, 4]
    assert found[4] < found[0]
    assert list(losses(config_of(*sft, "trial_name=ends"))) == [0, 4]
    assert losses(config_of("mode=sft", "trial_name=none")) == {}
    assert "eval/valid/loss" in Path("runs/e/ends/summary.txt").read_text()


def test_the_held_out_loss_is_the_loss_of_a_step_that_learns_nothing() -> None:
    same = ["mode=sft", "valid_dataset.path=rows.jsonl", "train_dataset.batch_size=16"]
    found = losses(config_of(*same, "actor.optimizer.lr=0", "total_train_steps=1"))
    rows = load_metrics(RunFolder.of("runs", "e", "trial0").metrics)
    assert series(rows, "loss/policy")[1][0] == pytest.approx(found[0], rel=1e-5)
    assert found[0] == found[1]


def test_a_held_out_row_that_cannot_be_used_is_named_before_training() -> None:
    write("held_out.jsonl", [{"prompt": "1+4", "completion": None}, ROWS[0]])
    with pytest.raises(ConfigError, match=r"^valid_dataset: row 0: completion is null; give text"):
        losses(config_of("mode=sft", "valid_dataset.path=held_out.jsonl"))
