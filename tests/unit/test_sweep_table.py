"""`python -m arealite.sweep`: the grid, what is done already, the table, the picture, failures."""

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plain_config import BASE
from seeing_support import small_run

from arealite.config import load, to_yaml
from arealite.errors import ConfigError
from arealite.sweep.__main__ import is_done, main
from arealite.sweep.grid import Trial, choices, grid
from arealite.sweep.picture import picture
from arealite.sweep.table import as_csv, as_text, metric_of, outcome_of
from arealite.telemetry.run_folder import RunFolder, write_atomically
from arealite.telemetry.status import Status


def test_the_grid_is_the_product_of_settings_and_seeds() -> None:
    trials = grid(["gconfig.temperature=0.6,1.2", "actor.kl_ctl=0", "actor.optimizer.lr=1e-4,2e-4"],
                  "1,2")  # fmt: skip
    assert [trial.name for trial in trials] == [
        f"temperature{t}-lr{lr}-seed{s}" for t in ("0.6", "1.2") for lr in ("1e-4", "2e-4")
        for s in (1, 2)
    ]  # fmt: skip
    assert trials[5].overrides == (
        "actor.kl_ctl=0", "gconfig.temperature=1.2", "actor.optimizer.lr=1e-4", "seed=2",
        "trial_name=temperature1.2-lr1e-4-seed2",
    )  # fmt: skip
    assert trials[5].label == "temperature 1.2, lr 1e-4"
    assert grid(["a.x=1,2", "b.x=1,2"])[0].name == "a.x1-b.x1"
    assert [t.name for t in grid([], "3,4")] == ["seed3", "seed4"]
    assert grid([])[0].overrides == ("trial_name=only",)


def test_commas_in_brackets_and_quotes_do_not_part() -> None:
    assert choices("a,[b,c],{d: 1, e: 2},\"f,g\",h'i,j'") == [
        "a", "[b,c]", "{d: 1, e: 2}", '"f,g"', "h'i,j'"
    ]  # fmt: skip
    assert choices("") == [""]


@given(st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
def test_different_values_have_different_names_which_are_folders(values: list[str]) -> None:
    parts = [part for value in values for part in choices(value)]
    if len(set(parts)) < len(parts) or len(parts) < 2 or len(choices(",".join(parts))) < 2:
        return
    try:
        trials = grid([f"key={','.join(parts)}"])
    except ConfigError:
        return
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names)
    assert all(len(name) < 220 and "/" not in name and name[0].isalnum() for name in names)


@pytest.mark.parametrize(
    ("overrides", "seeds", "sentence"),
    [
        (["trial_name=x"], "", "names its trials itself"),
        (["experiment_name=x,y"], "", "one experiment_name"),
        (["a=1,2", "a=3"], "", "a is given twice"),
        (["a=1,1"], "", "1 is given twice"),
        (["seed=1,2"], "3", "seed is given beside --seeds"),
        (["seed=1"], "3,4", "seed is given beside --seeds"),
        ([], "1,1", "1 is given twice"),
        (["nothing"], "", "is not an override"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(
    overrides: list[str], seeds: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        grid(overrides, seeds)


def test_table_and_picture_of_what_is_there(tmp_path: Path) -> None:
    trials = grid(["actor.optimizer.lr=1e-4,2e-4"], "1,2")
    gains = {"lr1e-4-seed1": 0.1, "lr1e-4-seed2": 0.3, "lr2e-4-seed1": 0.2}
    for name, gain in gains.items():
        small_run(tmp_path, name, gain=gain)
    outcomes = [outcome_of(t, RunFolder.of(tmp_path, "countdown", t.name)) for t in trials]
    assert metric_of(outcomes) == "eval/test/accuracy"
    text = as_text(outcomes, "eval/test/mean")
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["lr", "1e-4", "2", "0.100", "0.300", "0.200", "0.400", "0.0", "2", "done"],
        ["lr", "2e-4", "2", "0.100", "0.300", "0.300", "0.300", "0.0", "1", "done,", "1", "not",
         "begun"],
    ]  # fmt: skip
    rows = list(csv.DictReader(as_csv(outcomes, "eval/test/mean").splitlines()))
    assert [row["trial"] for row in rows] == [t.name for t in trials]
    assert [row["eval/test/mean last"] for row in rows] == ["0.2", "0.4", "0.30000000000000004", ""]
    assert (rows[1]["actor.optimizer.lr"], rows[1]["seed"], rows[1]["version"]) == (
        "1e-4", "2", "4"
    )  # fmt: skip
    assert picture(outcomes, "eval/test/mean").startswith(b"\x89PNG")
    assert picture(outcomes[3:], "eval/test/mean").startswith(b"\x89PNG"), "nothing to draw yet"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(BASE))
    return tmp_path


def done(*overrides: str) -> RunFolder:
    """A run that has ended well with these settings."""
    config = load("run.yaml", overrides)
    folder = RunFolder.of(config.fileroot, config.experiment_name, config.trial_name).create()
    write_atomically(folder.config, to_yaml(load("run.yaml", [*overrides, "actor.threads=3"])))
    status = Status(folder)
    status.set(phase="done")
    status.flush()
    return folder


def test_a_run_is_done_where_it_ended_well_with_the_same_settings(here: Path) -> None:
    folder = done()
    config = load("run.yaml")
    assert is_done(config, folder), "the launcher's share of threads is no setting"
    assert not is_done(load("run.yaml", ["total_train_steps=9"]), folder)
    Status(folder).set(phase="failed")
    assert not is_done(config, folder)
    assert not is_done(config, RunFolder.of("runs", "test", "other"))


def _launcher(text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands where the interpreter is called: `$@` is the launcher's command line."""
    path = Path("launcher").absolute()
    path.write_text(f'#!/bin/sh\necho "$@" >> called.txt\n{text}\n')
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def called() -> list[str]:
    return [line.split("trial_name=")[1] for line in Path("called.txt").read_text().splitlines()]


def test_the_first_failure_is_the_exit_code_and_the_others_are_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done("gconfig.temperature=0.5", "trial_name=temperature0.5")
    _launcher('case "$@" in *ture0.6*) exit 5;; *ture0.7*) exit 3;; *0.8*) kill -9 $$;; esac',
              monkeypatch)  # fmt: skip
    command = ["--config", "run.yaml", "gconfig.temperature=0.5,0.6,0.7,0.8,0.9"]
    with pytest.raises(SystemExit) as leaving:
        main(command)
    assert leaving.value.code == 5
    assert called() == [f"temperature0.{i}" for i in (6, 7, 8, 9)], "the finished one is not"
    told = capsys.readouterr()
    assert "temperature0.5: is done already" in told.out
    assert "its launcher was killed by SIGKILL" in told.out
    assert "exit code 5" in told.err
    table = Path("runs/test/sweep.temperature/table.txt").read_text()
    assert table in told.out
    assert Path("runs/test/sweep.temperature/metric.png").exists()


def test_a_setting_that_cannot_be_is_told_before_anything_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _launcher("exit 0", monkeypatch)
    with pytest.raises(SystemExit) as leaving:
        main(["--config", "run.yaml", "gconfig.temperature=0.5,-1"])
    assert leaving.value.code == 2
    assert "temperature" in capsys.readouterr().err
    assert not Path("called.txt").exists()


def test_a_check_lists_the_trials(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done("gconfig.temperature=0.5", "seed=2", "trial_name=temperature0.5-seed2")
    main(["--config", "run.yaml", "gconfig.temperature=0.5", "actor.eps_clip=0.1,0.2", "--check"])
    assert capsys.readouterr().out.splitlines() == [
        "eps_clip0.1: will be run", "eps_clip0.2: will be run"
    ]  # fmt: skip


def test_a_sweep_that_is_asked_to_stop_passes_it_on_and_starts_no_other(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _launcher("trap 'echo asked > asked.txt; exit 75' TERM\ntouch begun\n"
              "while :; do sleep 0.05; done", monkeypatch)  # fmt: skip

    def stop() -> None:
        while not Path("begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit) as leaving:
        main(["--config", "run.yaml", "gconfig.temperature=0.5,0.6"])
    assert leaving.value.code == 75
    assert Path("asked.txt").exists()
    assert called() == ["temperature0.5"]


def test_a_label_of_no_setting() -> None:
    assert Trial("seed1", (), "1").label == ""
