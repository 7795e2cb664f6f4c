"""What a run leaves behind for people: curves.png and the closing summary."""

import random
from pathlib import Path

import pytest

from arealite.telemetry.curves import draw_curves
from arealite.telemetry.metrics import Recorder
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import Status
from arealite.telemetry.summary import summarise
from arealite.telemetry.transcripts import Transcripts
from arealite.types import Trajectory


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.of(tmp_path, "countdown", "trial1").create()


def judged(transcripts: Transcripts, row: int, version: int, reward: float, text: str) -> None:
    transcripts.write(
        f"0:{row}", version, "evaluated",
        [Trajectory([1, 2], [0, 1], [0.0, -0.1], [-1, version], reward, text=text)],
        dataset="test", prompt=f"question {row}",
    )  # fmt: skip


def fill(folder: RunFolder) -> None:
    with Recorder(folder, clock=iter(range(1000, 2000)).__next__) as recorder:
        for version in range(1, 11):
            recorder.record(
                version,
                {
                    "reward/mean": version / 10, "staleness/max": version % 3,
                    "rollout/tokens_per_s": 6000, "train/tokens_per_s": 7000,
                    "train/samples": 512, "time/update_s": 1.5, "time/wait_batch_s": 0.5,
                },
            )  # fmt: skip
        for version, value in ((0, 0.14), (5, 0.4), (10, 0.61)):
            recorder.record(version, {"eval/test/mean": value, "eval/test/pass@4": 0.9})
    transcripts = Transcripts(folder)
    for version in (0, 5, 10):
        for row in range(4):
            solved = version == 10 and row in (1, 3)
            text = f"answer {row} of {version}" + " word" * (300 if row == 3 else 3)
            judged(transcripts, row, version, 1.0 if solved else 0.1, text)
    transcripts.write("0:9", 3, "trained")
    transcripts.close()


def test_the_summary_says_before_after_and_where(folder: RunFolder) -> None:
    fill(folder)
    folder.curves.write_bytes(b"")
    status = Status(folder)
    status.set(version=10, total_versions=10, counts={"trained": 640}, phase="done")
    text = summarise(folder)
    for part in (
        "countdown / trial1: done", "0.140 (version 0) -> 0.610 (version 10)", "+0.470, 4.4 times",
        "10 of 10", "5120 samples, 640 episodes", "engine 6.0k, trainer 7.0k", "2 versions",
        str(folder.path), str(folder.curves),
        "held-out row 0:1", "question 1", "version 0, reward 0.10: answer 1 of 0",
        "version 10, reward 1.00: answer 1 of 10", "held-out row 0:3", "[...]",
    ):  # fmt: skip
        assert part in text
    assert "row 0:0" not in text
    assert text.isascii()
    long = [line for line in text.splitlines() if str(folder.path) not in line and len(line) > 100]
    assert long == []


def test_a_run_that_failed_early_has_a_summary(folder: RunFolder) -> None:
    assert "no held-out evaluation" in summarise(folder)
    Status(folder).set(phase="failed", error="no inference server is left")
    text = summarise(folder)
    assert "trial1: failed" in text
    assert "no inference server is left" in text


def test_one_evaluation_is_not_called_progress(folder: RunFolder) -> None:
    with Recorder(folder) as recorder:
        recorder.record(0, {"eval/test/mean": 0.14})
    transcripts = Transcripts(folder)
    judged(transcripts, 0, 0, 0.1, "only once")
    transcripts.close()
    text = summarise(folder)
    assert "0.140 at version 0, not judged again" in text
    assert "only once" in text


def test_curves_are_drawn_whole_or_not_at_all(folder: RunFolder) -> None:
    assert draw_curves(folder) is None
    fill(folder)
    path = draw_curves(folder, staleness_bound=2)
    assert path == folder.curves
    data = folder.curves.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert len(data) > 20_000
    assert not list(folder.path.glob(".curves*"))


@pytest.mark.parametrize("versions", [1, 2])
def test_curves_of_a_young_run(folder: RunFolder, versions: int) -> None:
    with Recorder(folder) as recorder:
        for version in range(versions):
            recorder.record(version, {"time/update_s": random.random(), "reward/mean": 0.5})
    assert draw_curves(folder) == folder.curves
