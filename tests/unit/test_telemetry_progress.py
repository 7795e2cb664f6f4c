"""The live view: drawn from files alone, on any terminal, from whatever the files hold."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from arealite.telemetry.metrics import Recorder
from arealite.telemetry.panel import LivePanel
from arealite.telemetry.progress import PlainLines, follow
from arealite.telemetry.run_folder import RunFolder, write_atomically
from arealite.telemetry.view import View, Watcher, seconds, short, sparkline

NUMBERS = {
    "reward/mean": 0.41, "staleness/mean": 1.2, "staleness/max": 2, "rollout/tokens_per_s": 6100,
    "train/tokens_per_s": 7000, "rollout/completion_length": 45.2, "loss/entropy": 1.234,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.of(tmp_path, "countdown", "trial1").create()


def status(folder: RunFolder, **fields: Any) -> None:
    now = time.time()
    base = {"phase": "training", "version": 12, "total_versions": 80, "time": now, "pid": 1}
    wait = {"owner": "engine :41233", "what": "a reply", "count": 64, "seconds": 0.31}
    base |= {"started": now - 90, "waiting_for": [wait], "eta_s": 240.0}
    base |= {"counts": {"in_flight": 64, "buffered": 12, "filtered": 3, "failed": 0}, "alarms": []}
    write_atomically(folder.status, json.dumps({**base, **fields}))


def history(folder: RunFolder, upto: int = 12) -> None:
    with Recorder(folder) as recorder:
        recorder.record(0, {"eval/test/mean": 0.14})
        for version in range(1, upto + 1):
            recorder.record(version, {**NUMBERS, "reward/mean": 0.1 + version / 40})
        recorder.record(8, {"eval/test/mean": 0.37})


def drawn(view: View, width: int = 100, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, **options)
    with console.capture() as capture:
        console.print(LivePanel(view))
    return capture.get()


def test_the_panel_says_what_a_user_asks(folder: RunFolder) -> None:
    history(folder)
    status(folder, alarms=[{"time": 0, "text": "wandb is not reachable", "count": 1}])
    text = drawn(Watcher(folder).look(), no_color=True, color_system=None)
    for part in (
        "countdown / trial1", "training", "12/80", "ETA 4 min", "0.400", "0.140 -> 0.370",
        "at version 8", "mean 1.2", "max 2", "engine 6.1k", "trainer 7.0k", "in flight 64",
        "buffered 12", "filtered 3", "failed 0", "entropy 1.23", "tokens 45",
        "engine :41233, a reply, 0.3 s (64 times)", "wandb is not reachable", "█",
    ):  # fmt: skip
        assert part in text
    assert "\x1b[3" not in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(folder: RunFolder, width: int) -> None:
    history(folder)
    status(folder, alarms=[{"text": "a very long sentence " * 9}], phase="failed", error="x " * 99)
    text = drawn(Watcher(folder).look(), width, color_system=None)
    assert max(len(line) for line in text.splitlines()) <= width
    if width >= 60:
        assert "0.140 -> 0.370" in text
        assert "12/80" in text


def test_an_absent_folder_draws_too(tmp_path: Path) -> None:
    view = Watcher(RunFolder(tmp_path / "no" / "run")).look()
    assert "no status yet" in drawn(view)
    assert PlainLines().new(view, last=True) == []


def test_a_dead_run_is_told_apart_from_a_slow_one(folder: RunFolder) -> None:
    status(folder, time=time.time() - 100, pid=4711)
    text = drawn(Watcher(folder).look(), color_system=None)
    assert "no sign of life for" in text
    assert "process 4711" in text
    status(folder, time=time.time() - 100, phase="done")
    assert "no sign of life" not in drawn(Watcher(folder).look())


def test_text_from_outside_cannot_steer_the_terminal(folder: RunFolder) -> None:
    status(folder, phase="failed", error="red \x1b[31m\x1b]0;title\x07 and\na new line [bold]x[/]")
    view = Watcher(folder).look()
    assert view.error == "red [31m ]0;title and a new line [bold]x[/]"
    assert "[bold]x[/]" in drawn(view, color_system=None)


def test_an_ascii_terminal_is_enough(folder: RunFolder) -> None:
    history(folder)
    status(folder, alarms=[{"text": "gr\u00fc\u00df dich \ud800"}])
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    follow(folder, lambda: True, Console(file=out, width=70, force_terminal=True))
    out.flush()
    assert b"gr?? dich" in raw.getvalue()
    assert b"reward" in raw.getvalue()


def test_plain_lines_of_a_finished_run(folder: RunFolder) -> None:
    history(folder)
    status(folder)
    out = io.StringIO()
    follow(folder, lambda: True, Console(file=out, width=40))
    assert out.getvalue().splitlines() == [
        "evaluation  version 0  eval/test/mean 0.140",
        "evaluation  version 8  eval/test/mean 0.370  (first 0.140)",
        "version 12/80  reward 0.40  held-out 0.37  staleness 1.2/2  engine 6.1k tok/s  "
        "trainer 7.0k tok/s  waiting for: engine :41233, a reply, 0.3 s (64 times)  ETA 4 min",
        "phase training  after 90 s",
    ]


def look(version: int, now: float, **fields: Any) -> View:
    told = {"phase": "training", "version": version, "total_versions": 80, "time": now}
    return View("t", {**told, **fields}, [], now)


def test_plain_lines_are_few_but_lose_no_event() -> None:
    plain = PlainLines(every_s=5, quiet_s=30)
    assert [line.split("  ")[0] for line in plain.new(look(0, 100))] == [
        "version 0/80",
        "phase training",
    ]
    printed = [line for i in range(1, 100) for line in plain.new(look(i // 10, 100 + i / 10))]
    assert len(printed) == 1
    assert printed[0].startswith("version 5/80")
    news = plain.new(look(9, 110.0, alarms=[{"text": "careful"}], phase="saving"))
    assert news[0] == "alarm: careful"
    assert news[1].startswith("version 9/80")
    assert news[2].startswith("phase saving")
    assert plain.new(look(9, 111.0, alarms=[{"text": "careful"}], phase="saving")) == []
    (quiet,) = plain.new(look(9, 141.0, phase="saving"))
    assert quiet == "saving  waiting for: -"
    assert plain.new(look(10, 142.0, phase="saving"), last=True)[0].startswith("version 10/80")


def test_a_lost_terminal_ends_the_showing_and_not_the_run(folder: RunFolder) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    status(folder)
    asked = iter([False, False, False, True])
    follow(folder, lambda: next(asked), Console(file=Gone()), poll_s=0.01)
    assert next(asked, "all asked") == "all asked"


def test_a_closed_pipe_leaves_the_exit_code_alone(folder: RunFolder) -> None:
    code = (
        "import sys, time; from arealite.telemetry.progress import follow\n"
        "from arealite.telemetry.run_folder import RunFolder\n"
        "sys.stdin.read(); end = time.time() + 0.3\n"
        "follow(RunFolder(sys.argv[1]), lambda: time.time() > end, poll_s=0.05)\n"
        "print('after'); sys.exit(7)"
    )
    status(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, trouble = process.communicate(timeout=20)
    assert trouble == b""
    assert process.returncode == 7


def test_the_view_follows_the_files(folder: RunFolder) -> None:
    watcher = Watcher(folder)
    history(folder, 3)
    assert watcher.look().version == 3
    status(folder, eta_s=None, version=3, total_versions=13)
    with Recorder(folder, clock=lambda: time.time() + 10) as recorder:
        recorder.record(4, NUMBERS)
    view = watcher.look()
    assert view.last("reward/mean") == 0.41
    assert view.eta_s is not None
    assert 20 < view.eta_s < 40  # 4 versions took 10 s, 10 are left
    folder.metrics.unlink()
    with Recorder(folder) as recorder:
        recorder.record(1, {"reward/mean": 0.9})
    assert [row["version"] for row in watcher.look().rows] == [1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
keys = st.sampled_from(
    ["phase", "version", "total_versions", "started", "time", "eta_s", "waiting_for", "counts",
     "alarms", "error", "metrics", "pid"]
)  # fmt: skip


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(
    st.dictionaries(keys, json_values), st.dictionaries(st.sampled_from([*NUMBERS]), json_values)
)
def test_any_file_can_be_drawn(
    folder: RunFolder, fields: dict[str, Any], numbers: dict[str, Any]
) -> None:
    write_atomically(folder.status, json.dumps(fields))
    write_atomically(folder.metrics, json.dumps({"version": 1, "time": 5.0, **numbers}) + "\n")
    view = Watcher(folder).look()
    assert drawn(view, 60)
    PlainLines().new(view, last=True)


def test_small_numbers_in_words() -> None:
    cases = [0.31, 9.97, 42.4, 90, 240, 7600, None]
    assert [seconds(x) for x in cases] == [
        "0.3 s", "10 s", "42 s", "90 s", "4 min", "2.1 h", "-",
    ]  # fmt: skip
    assert [short(x) for x in (0, 980, 6100, 99_960, 999_700, 2.3e6, None)] == [
        "0", "980", "6.1k", "100k", "1.0M", "2.3M", "-",
    ]  # fmt: skip
    assert sparkline([], 8) == ""
    assert sparkline([1, 1], 8) == "▁▁"
    assert sparkline(list(range(800)), 8) == "▁▂▃▄▅▆▇█"
