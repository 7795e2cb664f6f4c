"""Rows: an id for life, an order fixed by seed and epoch, and errors that name the line."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from arealite.config import DatasetConfig
from arealite.data.rows import Rows, load_rows
from arealite.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _file(tmp_path: Path, *lines: str) -> DatasetConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return DatasetConfig(path=str(path))


GOOD = [json.dumps({"query": f"q{i}", "answer": {"target": i}}) for i in range(5)]


def test_ids_name_epoch_and_place_in_the_file() -> None:
    rows = Rows(["a", "b", "c"], seed=1, shuffle=False)
    assert list(islice(rows, 5)) == [
        ("0:0", "a"), ("0:1", "b"), ("0:2", "c"), ("1:0", "a"), ("1:1", "b")
    ]  # fmt: skip
    assert len(rows) == 3


def test_every_epoch_is_a_new_order_of_all_rows_and_the_id_stays() -> None:
    data = list("abcdefghij")
    seen = list(islice(Rows(data, seed=3, shuffle=True), 30))
    epochs = [seen[i : i + 10] for i in (0, 10, 20)]
    for number, epoch in enumerate(epochs):
        assert sorted(row for _, row in epoch) == data
        for sample_id, row in epoch:
            assert sample_id == f"{number}:{data.index(row)}"
    orders = [[row for _, row in epoch] for epoch in epochs]
    assert orders[0] != orders[1] != orders[2]


def test_the_order_is_a_pure_function_of_the_seed() -> None:
    data = list(range(50))
    assert Rows(data, 3, True).order(4) == Rows(data, 3, True).order(4)
    assert Rows(data, 3, True).order(4) != Rows(data, 5, True).order(4)
    assert Rows(data, 3, False).order(4) == data


def test_an_empty_stream_is_refused_rather_than_searched_for_ever() -> None:
    with pytest.raises(ConfigError, match="without rows"):
        Rows([], 0, True)


def test_a_file_is_loaded_with_its_nested_columns(tmp_path: Path) -> None:
    rows: Any = load_rows(_file(tmp_path, *GOOD), "train_dataset")
    assert len(rows) == 5
    assert rows[2] == {"query": "q2", "answer": {"target": 2}}


def test_max_rows_takes_the_first(tmp_path: Path) -> None:
    path = _file(tmp_path, *GOOD).path
    assert len(load_rows(DatasetConfig(path=path, max_rows=2), "train_dataset")) == 2
    assert len(load_rows(DatasetConfig(path=path, max_rows=99), "train_dataset")) == 5


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"query": "q", "answer": ', r"line 4 \(not JSON\)"),
        ("[1, 2]", r"line 4 \(not an object\)"),
        ("<html>", r"line 4 \(not JSON\)"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, bad: str, words: str) -> None:
    config = _file(tmp_path, *GOOD[:3], bad, GOOD[4])
    with pytest.raises(ConfigError, match=rf"valid_dataset.path: .*rows.jsonl, {words}"):
        load_rows(config, "valid_dataset")


def test_a_missing_file_and_an_empty_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_dataset.path: .*none.jsonl: there is no such"):
        load_rows(DatasetConfig(path=str(tmp_path / "none.jsonl")), "train_dataset")
    with pytest.raises(ConfigError, match=r"train_dataset.path: .*rows.jsonl"):
        load_rows(_file(tmp_path), "train_dataset")


def test_what_may_be_a_hub_id_or_a_folder_that_is_not_there_is_told_as_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as told:
        load_rows(DatasetConfig(path="data/foo"), "train_dataset")
    assert str(told.value) == (
        "train_dataset.path: there is no data/foo here, and taken as a hub id it cannot be loaded: "
        "Couldn't reach the Hub (give a .jsonl file, or a hub id that this machine can reach)"
    )


def test_a_hub_data_set_is_asked_for_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"question": "?"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_rows(DatasetConfig(path="openai/gsm8k", name="main", split="test"), "valid_dataset")
    load_rows(DatasetConfig(path="owner/rows"), "train_dataset")
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test"}),
        (("owner/rows", None), {"split": "train"}),
    ]
