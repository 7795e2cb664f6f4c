"""Saved models: complete, unchanged in what they say, and never in place of somebody's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_support import saved, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from arealite.checkpoints.export import check_export
from arealite.checkpoints.manifest import MANIFEST
from arealite.config import ActorConfig
from arealite.errors import ConfigError
from arealite.training.checkpoint import save_model
from arealite.training.model import load_model


def _save(folder: Path, version: int) -> Path:
    save_model(tiny_model(version), tiny_tokenizer(), folder, version)
    return folder


@pytest.fixture
def former(tmp_path: Path) -> Path:
    return _save(tmp_path / "deep" / "model", 1)


def test_a_former_save_is_replaced_as_a_whole(former: Path) -> None:
    check_export(former)
    _save(former, 2)
    assert [path.name for path in former.parent.iterdir()] == ["model"]
    manifest = json.loads((former / MANIFEST).read_text())
    assert manifest["version"] == 2
    assert {*manifest["files"], MANIFEST} == {path.name for path in former.iterdir()}
    loaded = AutoModelForCausalLM.from_pretrained(former)
    assert torch.equal(loaded.lm_head.weight, tiny_model(2).lm_head.weight)


def test_an_empty_folder_and_a_link_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    check_export(tmp_path / "link")
    _save(tmp_path / "link", 3)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / MANIFEST).is_file()


@pytest.mark.parametrize("name", ["thesis.txt", "notes/day1"])
def test_a_save_with_foreign_files_beside_it_is_refused(former: Path, name: str) -> None:
    (former / name).parent.mkdir(exist_ok=True)
    (former / name).write_text("precious")
    _is_refused(former, rf"saver.export: {former} also holds {name.split('/')[0]}; .* new one")
    assert (former / name).read_text() == "precious"


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"files": 3}', '{"name": "other"}'])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    _is_refused(tmp_path, rf"saver.export: {tmp_path} .*give saver.export a new one")
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    _is_refused(tmp_path / "file", "is a file")
    assert (tmp_path / "file").read_text() == "precious"


def _is_refused(folder: Path, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_export(folder)
    with pytest.raises(ConfigError, match=sentence):
        _save(folder, 2)


def test_a_trained_model_says_the_same_of_itself_as_before(tmp_path: Path) -> None:
    actor = ActorConfig(path=str(saved(tmp_path / "first")), dtype="float32", device="cpu")
    save_model(load_model(actor), tiny_tokenizer(), tmp_path / "second", 1)
    before, after = (
        json.loads((tmp_path / n / "config.json").read_text()) for n in ("first", "second")
    )
    assert before["use_cache"] is True
    assert after == before
