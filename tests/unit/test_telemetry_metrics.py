"""metrics.jsonl: one line per version, late numbers merged, trackers at arm's length."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arealite.telemetry.metrics import Recorder, evaluation_keys, load_metrics, series
from arealite.telemetry.run_folder import RunFolder, read_lines


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.of(tmp_path, "e", "t").create()


class Heard:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, version: int, metrics: Mapping[str, float]) -> None:
        self.lines.append((version, dict(metrics)))

    def close(self) -> None:
        self.closed = True


class Broken:
    def log(self, version: int, metrics: Mapping[str, float]) -> None:
        raise ConnectionError("no route")

    def close(self) -> None:
        raise ConnectionError("still no route")


def test_one_flat_line_per_version_readable_at_once(folder: RunFolder) -> None:
    sink = Heard()
    with Recorder(folder, [sink], clock=lambda: 12.5) as recorder:
        recorder.record(1, {"reward/mean": 0.25, "counts/trained": 64})
        assert list(read_lines(folder.metrics)) == [
            {"version": 1, "time": 12.5, "reward/mean": 0.25, "counts/trained": 64}
        ]
    assert sink.lines == [(1, {"reward/mean": 0.25, "counts/trained": 64})]
    assert sink.closed


def test_late_numbers_join_their_version(folder: RunFolder) -> None:
    times = iter(range(100, 200))
    with Recorder(folder, clock=lambda: next(times)) as recorder:
        recorder.record(0, {"eval/test/mean": 0.1})
        recorder.record(1, {"reward/mean": 0.2})
        recorder.record(2, {"reward/mean": 0.3})
        recorder.record(1, {"eval/test/mean": 0.15})
        recorder.record(4, {"eval/test/mean": 0.4})
        recorder.record(4, {"reward/mean": 0.5})
    rows = load_metrics(folder.metrics)
    assert [row["version"] for row in rows] == [0, 1, 2, 4]
    assert rows[1] == {"version": 1, "time": 101, "reward/mean": 0.2, "eval/test/mean": 0.15}
    assert rows[3]["time"] == 105  # when it was trained
    assert series(rows, "eval/test/mean") == ([0, 1, 4], [0.1, 0.15, 0.4])


def test_a_resumed_run_voids_what_came_after(folder: RunFolder) -> None:
    with Recorder(folder) as recorder:
        for version in range(1, 6):
            recorder.record(version, {"reward/mean": version, "old": 1})
        recorder.resumed(3)
        recorder.record(4, {"reward/mean": 40})
    rows = load_metrics(folder.metrics)
    assert series(rows, "reward/mean") == ([1, 2, 3, 4], [1, 2, 3, 40])
    assert "old" not in rows[3]


def test_numbers_that_are_not_finite_are_null_and_named(folder: RunFolder) -> None:
    sink = Heard()
    with Recorder(folder, [sink]) as recorder:
        recorder.record(1, {"a": math.nan, "b": -math.inf, "c": 1.0})
    (line,) = read_lines(folder.metrics)
    assert line["a"] is None
    assert line["b"] is None
    assert line["nonfinite"] == "a=nan b=-inf"
    assert sink.lines == [(1, {"c": 1.0})]
    assert series(load_metrics(folder.metrics), "a") == ([], [])


def test_a_value_that_is_no_number_is_left_out_with_one_alarm(folder: RunFolder) -> None:
    class Tensor:
        def __float__(self) -> float:
            return 1.5

    heard = list[str]()
    with Recorder(folder, alarm=heard.append) as recorder:
        for version in range(3):
            recorder.record(version, {"x": Tensor(), "y": "text", "version": 99, "time": 0})
    assert heard == ["the metric y is not a number (str)"]
    assert [line["version"] for line in read_lines(folder.metrics)] == [0, 1, 2]
    assert series(load_metrics(folder.metrics), "x")[1] == [1.5] * 3


def test_a_broken_tracker_costs_one_alarm_and_no_line(folder: RunFolder) -> None:
    heard, good = list[str](), Heard()
    with Recorder(folder, [Broken(), good], alarm=heard.append) as recorder:
        for version in range(20):
            recorder.record(version, {"x": 1})
    assert len(load_metrics(folder.metrics)) == len(good.lines) == 20
    assert len(heard) == 2
    assert "metrics.jsonl is complete" in heard[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(codec=None, exclude_categories=()), max_size=8),
        st.floats() | st.integers() | st.booleans(),
        max_size=5,
    )
)
def test_any_numbers_survive(folder: RunFolder, metrics: dict[str, float]) -> None:
    folder.metrics.unlink(missing_ok=True)
    with Recorder(folder) as recorder:
        recorder.record(7, metrics)
    (text,) = folder.metrics.read_text("utf-8").splitlines()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert line["version"] == 7
    for key, value in metrics.items():
        if key.isascii() and key not in ("version", "time", "nonfinite"):
            expected = value if isinstance(value, int) or math.isfinite(value) else None
            assert line[key] == expected


def test_evaluation_keys_prefer_accuracy() -> None:
    rows = [
        {"version": 0, "eval/test/mean": 1, "eval/a/b/mean": 1, "eval/odd": 1, "reward/mean": 0},
        {"version": 1, "eval/test/accuracy": 1, "eval/test/mean": 1, "eval/test/pass@4": 1},
    ]
    assert evaluation_keys(rows) == {"test": "eval/test/accuracy", "a/b": "eval/a/b/mean"}
