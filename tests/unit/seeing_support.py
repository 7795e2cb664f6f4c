"""A small finished run in files, as the views of a run read it."""

from pathlib import Path

from arealite.errors import EngineError
from arealite.ledger.book import Ledger
from arealite.telemetry.metrics import Recorder
from arealite.telemetry.run_folder import RunFolder, write_atomically
from arealite.telemetry.status import Status
from arealite.telemetry.transcripts import Transcripts
from arealite.types import Trajectory

VERSIONS = 4
HOSTILE = "<script>alert(1)</script> [red]x[/] \x1b[31m\x1b]0;owned\x07 \u202etxt.exe"
"""What a model may say: markup of the web and of the terminal library, colours, a new title, and a
text that reads backwards."""


def answer(reward: float, text: str, versions: list[int], **more: object) -> Trajectory:
    n = len(versions)
    return Trajectory(
        [7] * (n + 2), [0, 0] + [1] * n, [0.0] * (n + 2), [-1, -1, *versions], reward, text=text,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def small_run(root: Path, trial: str = "trial1", lr: float = 1e-4, gain: float = 0.1) -> RunFolder:
    """Versions 1 to 4 of two episodes of two samples each; evaluations of 0 and 4; phase done.

    Version v + 1 trains one episode of lag 0, and one that began a version earlier.
    """
    folder = RunFolder.of(root, "countdown", trial).create()
    write_atomically(folder.config, f"actor:\n  optimizer:\n    lr: {lr}\nseed: 1\n")
    with Recorder(folder, clock=iter(range(1000, 2000)).__next__) as recorder:
        recorder.record(0, {"eval/test/mean": 0.1, "eval/test/accuracy": 0.1})
        for version in range(1, VERSIONS + 1):
            recorder.record(
                version,
                {
                    "reward/mean": gain * version, "staleness/max": 1, "staleness/mean": 0.5,
                    "rollout/tokens_per_s": 6000, "train/tokens_per_s": 7000, "train/samples": 4,
                    "time/update_s": 0.5, "time/wait_batch_s": 0.25, "time/publish_s": 0.05,
                    "share/training": 0.5, "share/waiting": 0.25,
                    "rollout/completion_length": 3, "loss/entropy": 1.0,
                },
            )  # fmt: skip
        recorder.record(VERSIONS, {"eval/test/mean": 0.1 + gain, "eval/test/accuracy": 0.5})
    _transcripts(folder)
    _ledger(folder)
    status = Status(folder)
    status.set(phase="done", version=VERSIONS, total_versions=VERSIONS)
    status.flush()
    return folder


def _ledger(folder: RunFolder) -> None:
    """Of four rows one is trained, one waits, one failed and one is in flight."""
    ledger = Ledger(folder.ledger, rows=10)
    for row in range(4):
        ledger.note("planned", id=f"0:{row}", version=0)
    for row in range(2):
        ledger.note("finished", id=f"0:{row}", tokens=1500)
    ledger.note("failed", id="0:2")
    ledger.note("trained", ids=["0:0"], version=1)
    ledger.close()


def _transcripts(folder: RunFolder) -> None:
    transcripts = Transcripts(folder)
    for version in (0, VERSIONS):
        for row in range(3):
            text = f"<answer>{row} of {version}</answer>" + (HOSTILE if row == 2 else "")
            reward = 1.0 if version and row else 0.0
            answered = [answer(reward, text, [version] * 3)]
            prompt = f"question {row}"
            transcripts.write(
                f"test:{row}", version, "evaluated", answered, dataset="test", prompt=prompt
            )
    for version in range(VERSIONS):
        before = max(0, version - 1)
        for row, sampled in ((0, [version] * 4), (1, [before, before, version])):
            answers = [
                answer(
                    0.25 * version + 0.5 * i, f"answer {i} to {row} at {version}", sampled,
                    components={"right": 0.5 * i, "brevity": 0.25 * version}, truncated=i == 1,
                )
                for i in range(2)
            ]  # fmt: skip
            transcripts.write(
                f"{version}:{row}", sampled[0], "trained", answers,
                query={"query": f"row {row}", "answer": 5}, trained_version=version + 1,
            )  # fmt: skip
    transcripts.write("9:0", 2, "failed", error=EngineError("no server answered"))
    transcripts.write("9:1", 2, "dropped_stale", [answer(0.75, HOSTILE, [2, 2])])
    transcripts.close()
