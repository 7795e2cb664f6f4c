"""status.json: always whole, never too often, and true about the waits."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from arealite.telemetry import status as module
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import PHASES, Status, read_status
from arealite.telemetry.waits import Waits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.of(tmp_path, "e", "t").create()


def read(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.status.read_text()))


def test_a_phase_is_written_at_once_and_other_changes_later(folder: RunFolder) -> None:
    clock = Clock()
    status = Status(folder, Waits(), clock=clock)
    status.set(phase="starting", total_versions=80)
    assert read(folder)["phase"] == "starting"
    clock.now += 0.1
    status.set(version=3)
    assert "version" not in read(folder)
    status.set(phase="training")
    assert read(folder)["version"] == 3
    clock.now += 0.4
    status.set(version=4)
    assert read(folder)["version"] == 3
    clock.now += 0.1
    status.set(version=4)  # nothing new, but a change is owed
    assert read(folder)["version"] == 4
    found = read(folder)
    assert found["pid"] == os.getpid()
    assert found["total_versions"] == 80
    assert found["time"] >= found["started"]


def test_nothing_is_written_when_nothing_changed(folder: RunFolder) -> None:
    clock = Clock()
    status = Status(folder, clock=clock)
    status.set(phase="training", version=1)
    folder.status.unlink()
    clock.now += 100
    status.set(phase="training", version=1)
    status.flush()
    assert not folder.status.exists()


def test_the_heartbeat_tells_who_is_waited_for(folder: RunFolder) -> None:
    clock, waits = Clock(), Waits()
    status = Status(folder, waits, clock=clock)
    with waits.on("engine :1", "a reply", 60.0), waits.on("engine :1", "a reply"):
        status.beat({"in_flight": 2})
    found = read(folder)
    assert found["waits"] == 2
    assert found["counts"] == {"in_flight": 2}
    (group,) = found["waiting_for"]
    assert (group["owner"], group["what"], group["count"]) == ("engine :1", "a reply", 2)
    assert group["seconds"] >= 0
    clock.now += 1
    status.beat()
    assert read(folder)["waiting_for"] == []
    assert read(folder)["counts"] == {"in_flight": 2}


def test_alarms_are_kept_counted_and_bounded(folder: RunFolder) -> None:
    status = Status(folder, clock=Clock())
    for i in range(50):
        status.alarm(f"alarm {i}")
    status.alarm("alarm 40")
    status.flush()
    alarms = read(folder)["alarms"]
    assert len(alarms) == 20
    assert alarms[-1]["text"] == "alarm 40"
    assert alarms[-1]["count"] == 2


def test_an_unknown_phase_is_a_bug(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="it must be one of preparing, starting"):
        Status(folder).set(phase="resting")
    assert PHASES[-2:] == ("done", "failed")


def test_a_disk_that_refuses_never_raises(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", refuse)
        status = Status(folder, clock=clock)
        status.set(phase="training")
        clock.now += 1
        status.beat()
        assert status.failures == 2
    clock.now += 1
    status.beat()
    assert read(folder)["phase"] == "training"


def test_many_threads_leave_one_whole_file(folder: RunFolder) -> None:
    status = Status(folder)

    def work(k: int) -> None:
        for i in range(50):
            status.set(version=i, phase=PHASES[(i + k) % 4])
            status.beat({"k": k})

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status.set(version=99)
    status.flush()
    assert read_status(folder)["version"] == 99
    assert {p.name for p in folder.path.iterdir()} == {"status.json", "checkpoints", "logs"}


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\xff"])
def test_an_unreadable_status_is_empty(folder: RunFolder, text: str | None) -> None:
    if text is not None:
        folder.status.write_text(text, encoding="latin-1")
    assert read_status(folder) == {}
