"""TensorBoard's event files as they are written: complete, and the run never notices a fault."""

import importlib.util
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arealite.errors import ConfigError
from arealite.telemetry.metrics import Recorder, load_metrics, tensorboard_sink
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.trackers import NoSink, TensorBoardSink

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)


def events(folder: Path) -> Iterator[Any]:
    """The events of the one file: each a length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events*")
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, pytest.approx(value.simple_value))
        for event in events(folder)
        for value in event.summary.value
    ]


@needs_tensorboard
def test_every_number_is_in_the_event_file(tmp_path: Path) -> None:
    folder, heard = RunFolder(tmp_path).create(), []
    sink = tensorboard_sink("tensorboard", tmp_path, alarm=heard.append)
    with Recorder(folder, [sink]) as recorder:
        recorder.record(1, {"reward/mean": 0.25, "loss/policy": float("nan")})
        recorder.record(2, {"reward/mean": 0.5})
        recorder.record(1, {"eval/test/mean": 0.75})
    assert scalars(tmp_path / "tensorboard") == [
        ("reward/mean", 1, 0.25), ("reward/mean", 2, 0.5), ("eval/test/mean", 1, 0.75)
    ]  # fmt: skip
    assert heard == []


@needs_tensorboard
def test_what_a_resumed_run_makes_void_is_no_longer_shown(tmp_path: Path) -> None:
    sink = tensorboard_sink("tensorboard", tmp_path)
    with Recorder(RunFolder(tmp_path).create(), [sink]) as recorder:
        recorder.resumed(4)
        recorder.record(5, {"reward/mean": 0.5})
    starts = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert starts == [5]
    assert scalars(tmp_path / "tensorboard") == [("reward/mean", 5, 0.5)]


@needs_tensorboard
def test_a_disk_that_refuses_costs_one_alarm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder, heard = RunFolder(tmp_path).create(), []
    sink = tensorboard_sink("file/tensorboard", tmp_path, alarm=heard.append)
    with Recorder(folder, [sink]) as recorder:
        for version in range(2000):
            recorder.record(version, {"reward/mean": 0.5})
    assert len(heard) == 1
    assert "tensorboard stopped" in heard[0]
    assert len(load_metrics(folder.metrics)) == 2000


def test_a_tracker_that_hangs_is_given_up(tmp_path: Path) -> None:
    """And neither the lines nor the end of the run wait for it."""
    released, heard = threading.Event(), []

    class Hanging(TensorBoardSink):
        def track(self, lines: object) -> None:
            released.wait(60)

    sink = Hanging(tmp_path, heard.append, close_s=0.01)
    with Recorder(RunFolder(tmp_path).create(), [sink]) as recorder:
        for version in range(1100):
            recorder.record(version, {"reward/mean": 0.5})
    released.set()
    assert heard == [
        "tensorboard is too slow and misses lines; metrics.jsonl is complete",
        "tensorboard did not finish in time; metrics.jsonl is complete",
    ]
    assert sink.dropped >= 100
    assert len(load_metrics(tmp_path / "metrics.jsonl")) == 1100


def test_without_a_path_it_is_not_even_imported() -> None:
    code = (
        "import sys; from arealite.telemetry.metrics import tensorboard_sink\n"
        "s = tensorboard_sink(None); s.log(1, {}); s.close(); print('tensorboardX' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
    assert isinstance(tensorboard_sink(None), NoSink)


def test_a_missing_package_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install arealite\[tensorboard\]"):
        tensorboard_sink("tensorboard")
