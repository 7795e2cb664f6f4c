"""trace.json: what it holds, that its spans nest, and that it is whole at any moment."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from small_run import ENVIRONMENT
from trace_support import check_nesting, named, processes, read, spans

from arealite.telemetry.quarantine import SAMPLE_ID
from arealite.telemetry.trace import MOST_LANES, Trace, span
from arealite.telemetry.waits import Waits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def traced(path: Path, clock: Clock, **options: Any) -> tuple[Trace, list[str]]:
    alarms: list[str] = []
    return Trace(path, alarms.append, 3, clock=clock, **options), alarms


def test_the_trainers_work_stands_inside_its_version(tmp_path: Path) -> None:
    clock = Clock()
    trace, alarms = traced(tmp_path / "trace.json", clock)
    with trace.span("update"):
        clock.now += 2.0
    clock.now += 0.5
    trace.told(4, {"share/training": 0.8, "counts/in_flight": 5.0, "loss/policy": 1.0})
    with trace.span("update"):
        clock.now += 0.25
    trace.close()
    events = read(tmp_path / "trace.json")
    assert [(e["name"], e["dur"], e["args"].get("version")) for e in spans(events)] == [
        ("update", 2_000_000, 3),
        ("start, version 4", 2_500_000, 4),
        ("update", 250_000, 4),
    ]
    version = named(events, "start, version 4")[0]
    assert version["args"]["share/training"] == 0.8
    assert version["args"]["bound by"] == "training"
    assert "loss/policy" not in version["args"]
    check_nesting(events)
    (counter,) = [e for e in events if e["ph"] == "C"]
    assert (counter["name"], counter["args"]) == ("episodes", {"in_flight": 5.0})
    assert alarms == []


def test_waits_become_spans_of_their_process_with_row_and_version(tmp_path: Path) -> None:
    trace, _ = traced(tmp_path / "trace.json", Clock())
    trace._clock = __import__("time").monotonic
    waits = Waits(trace.waited)

    async def episode() -> None:
        SAMPLE_ID.set("0:7")
        with waits.on("workflow", "an episode", whole=True):
            with waits.on("server 127.0.0.1:4000", "POST /generate"):
                await asyncio.sleep(0)
            with pytest.raises(KeyError), waits.on("reward function r.py:score", "scores"):
                raise KeyError

    asyncio.run(episode())
    for owner, what in (
        ("server 127.0.0.1:4000", "GET /health"), ("engines", "weights version 4"),
        ("the servers", "one that serves"), ("workflow", "the held-out set at version 3"),
        ("somebody", "else"),
    ):  # fmt: skip
        with waits.on(owner, what):
            pass
    trace.close()
    events = read(tmp_path / "trace.json")
    of = processes(events)
    assert [(of[e["pid"]], e["name"], e["args"].get("row")) for e in spans(events)] == [
        ("server 127.0.0.1:4000", "POST /generate", "0:7"),
        ("rewards", "r.py:score", "0:7"),
        ("episodes", "an episode", "0:7"),
        ("trainer", "publish weights version 4", None),
        ("queue", "one that serves", None),
        ("evaluations", "the held-out set at version 3", None),
    ]
    assert {e["args"]["version"] for e in spans(events)} == {3}
    check_nesting(events)


def test_what_overlaps_stands_in_lanes(tmp_path: Path) -> None:
    clock = Clock()
    trace, _ = traced(tmp_path / "trace.json", clock)
    waits = Waits(trace.waited)
    for since, until in ((0.0, 4.0), (1.0, 5.0), (4.0, 6.0), (3.0, 7.0)):
        wait = waits.on("workflow", "an episode")
        with wait:
            wait.since, clock.now = 100.0 + since, 100.0 + until
    trace.close()
    events = read(tmp_path / "trace.json")
    assert [e["tid"] for e in spans(events)] == [1, 2, 1, 3]
    labels = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert labels == ["episodes", "episodes 2", "episodes 3"]
    check_nesting(events)


def test_too_many_lanes_are_left_out(tmp_path: Path) -> None:
    clock = Clock()
    trace, _ = traced(tmp_path / "trace.json", clock)
    waits = Waits(trace.waited)
    for _ in range(MOST_LANES + 5):
        wait = waits.on("workflow", "an episode")
        with wait:
            wait.since, clock.now = 99.0, 101.0
    trace.close()
    assert len(spans(read(tmp_path / "trace.json"))) == MOST_LANES
    assert trace.left_out == 5


def test_a_full_trace_goes_on_with_the_trainer_alone(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "trace.json"
    trace, alarms = traced(path, clock, most_bytes=10_000)
    for _ in range(200):
        with trace.span("scores", "rewards"):
            clock.now += 0.1
    with trace.span("update"):
        clock.now += 1.0
    trace.told(4, {})
    for _ in range(200):
        with trace.span("update"):
            clock.now += 1.0
    trace.close()
    assert 9_000 < path.stat().st_size <= 12_500 + 10
    names = [e["name"] for e in spans(read(path))]
    assert names.index("update") > 20
    assert "start, version 4" in names
    assert len(alarms) == 1
    assert "trace.json is full" in alarms[0]


def test_a_second_start_goes_on_behind_the_first(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for _ in range(2):
        trace, _ = traced(path, Clock())
        with trace.span("update"):
            pass
        trace.close()
    assert len(named(read(path), "update")) == 2
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b",\n") + 20])  # torn, as by a crash of the machine
    trace, _ = traced(path, Clock())
    with trace.span("export"):
        pass
    trace.close()
    assert [e["name"] for e in spans(read(path))] == ["update", "export"]


def test_a_disk_that_refuses_costs_one_alarm(tmp_path: Path) -> None:
    trace, alarms = traced(tmp_path / "absent" / "trace.json", Clock())
    for _ in range(3):
        with trace.span("update"):
            pass
        trace.told(4, {})
    trace.close()
    assert len(alarms) == 1
    assert "trace.json cannot be written" in alarms[0]


def test_without_a_trace_nothing_is_made(tmp_path: Path) -> None:
    assert span("update") is span("export"), "one object that does nothing"
    trace, _ = traced(tmp_path / "trace.json", Clock())
    trace.install()
    with span("update"):
        pass
    trace.close()
    assert span("update") is span("export")
    assert len(named(read(tmp_path / "trace.json"), "update")) == 1


def test_threads_write_whole_events(tmp_path: Path) -> None:
    import time

    trace, _ = traced(tmp_path / "trace.json", Clock())
    trace._clock = time.monotonic

    def work() -> None:
        for _ in range(200):
            with trace.span("scores", "rewards"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace.close()
    events = read(tmp_path / "trace.json")
    assert len(spans(events)) == 800
    check_nesting(events)


KILLED = """
import sys, time
from pathlib import Path
from arealite.telemetry import trace
trace.FLUSH_S = 0.0
told = trace.Trace(Path(sys.argv[1]), print)
for version in range(10**9):
    with told.span("scores", "rewards"):
        pass
    if version == 500:
        print("going", flush=True)
"""


def test_it_is_whole_when_the_run_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        os.kill(process.pid, signal.SIGKILL)
    assert len(spans(json.loads(path.read_bytes()))) > 400
