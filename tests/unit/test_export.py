"""`python -m arealite.export`: the model of a checkpoint, whole and true, or one clear sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_support import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from arealite.checkpoints.manifest import MANIFEST, verify
from arealite.checkpoints.store import STATE_FILES, Store
from arealite.export import main
from arealite.telemetry.run_folder import RunFolder
from arealite.training.checkpoint import write_model

CaptureFixture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """With checkpoints of versions 2 and 4; each version's model is another."""
    folder = RunFolder(tmp_path / "runs/e/t").create()
    folder.status.write_text("{}")
    for version in (2, 4):
        with Store(folder.checkpoints).writing(version, {"sequence": 1}) as target:
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template = "{{ messages[0].content }}"
            write_model(tiny_model(version), tokenizer, target)
            for name in STATE_FILES:
                (target / name).write_text("the trainer's own")
    return folder


def refused(capsys: CaptureFixture, code: int, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in arguments])
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (code, 1), error
    return error


@pytest.mark.parametrize(("options", "version"), [([], 4), (["--version", "2"], 2)])
def test_the_model_of_a_version_is_loaded_by_anything(
    run: RunFolder, tmp_path: Path, capsys: CaptureFixture, options: list[str], version: int
) -> None:
    out = tmp_path / "deep" / "model"
    main([str(run.path), *options, "--out", str(out)])
    assert capsys.readouterr().out == f"version {version} of e/t is in {out}\n"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model.lm_head.weight, tiny_model(version).lm_head.weight)
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages[0].content }}"
    manifest = verify(out)
    assert (manifest["version"], "state" in manifest) == (version, False)
    assert {path.name for path in out.iterdir()} == {MANIFEST, *manifest["files"]}
    assert not set(STATE_FILES) & set(manifest["files"])
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_a_former_export_is_replaced(run: RunFolder, tmp_path: Path) -> None:
    for version in ("2", "4"):
        main([str(run.path), "--version", version, "--out", str(tmp_path / "model")])
    assert verify(tmp_path / "model")["version"] == 4


def test_a_version_that_is_not_there_names_those_that_are(
    run: RunFolder, tmp_path: Path, capsys: CaptureFixture
) -> None:
    said = refused(capsys, 2, run.path, "--version", "3", "--out", tmp_path / "model")
    assert f"{run.path} has no checkpoint of version 3; give --version 2 or 4" in said


def test_a_run_without_checkpoints(tmp_path: Path, capsys: CaptureFixture) -> None:
    folder = RunFolder(tmp_path / "runs/e/new").create()
    folder.status.write_text("{}")
    assert "has no checkpoint yet" in refused(capsys, 4, folder.path, "--out", tmp_path / "model")


def test_a_folder_of_somebody_else_is_left_alone(
    run: RunFolder, tmp_path: Path, capsys: CaptureFixture
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    said = refused(capsys, 2, run.path, "--out", tmp_path)
    assert f"--out: {tmp_path} was not written by arealite; " in said
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["2", "4", "model"])
def test_a_runs_own_checkpoints_are_never_replaced(
    run: RunFolder, capsys: CaptureFixture, name: str
) -> None:
    said = refused(capsys, 2, run.path, "--out", run.checkpoints / name)
    assert "is among the run's own checkpoints" in said
    assert verify(run.checkpoints / "4")["state"] == {"sequence": 1}


def test_another_runs_checkpoint_is_never_replaced(
    run: RunFolder, tmp_path: Path, capsys: CaptureFixture
) -> None:
    other = RunFolder(tmp_path / "runs/e/other").create()
    (run.checkpoints / "2").rename(other.checkpoints / "2")
    said = refused(capsys, 2, run.path, "--out", other.checkpoints / "2")
    assert "is a checkpoint, from which a run goes on" in said
    assert verify(other.checkpoints / "2")["state"] == {"sequence": 1}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_what_is_damaged_is_exit_4_and_nothing_is_written(
    run: RunFolder, tmp_path: Path, capsys: CaptureFixture, name: str, damage: str
) -> None:
    path = run.checkpoints / "4" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if damage == "truncate" else data)
    if damage == "delete":
        path.unlink()
    main([str(run.path), "--version", "2", "--out", str(tmp_path / "model")])
    capsys.readouterr()
    said = refused(capsys, 4, run.path, "--out", tmp_path / "model")
    assert str(path) in said
    assert said.endswith("; of this run there is also version 2\n")
    assert verify(tmp_path / "model")["version"] == 2, "the former export is as it was"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["model", "runs"]


def test_damage_to_the_trainers_state_alone_is_no_matter(run: RunFolder, tmp_path: Path) -> None:
    os.truncate(run.checkpoints / "4" / "trainer.safetensors", 3)
    main([str(run.path), "--out", str(tmp_path / "model")])


def test_an_out_that_cannot_be_written_is_a_sentence(
    run: RunFolder, tmp_path: Path, capsys: CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    said = refused(capsys, 2, run.path, "--out", tmp_path / "file" / "model")
    assert f"--out: {tmp_path}/file/model cannot be written: " in said


def test_the_command_starts_without_torch(run: RunFolder, tmp_path: Path) -> None:
    code = (
        "import sys; from arealite.export import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    words = [str(run.path), "--out", str(tmp_path / "model")]
    done = subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model" / MANIFEST).read_text())["version"] == 4
