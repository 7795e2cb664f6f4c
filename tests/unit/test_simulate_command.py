"""`python -m arealite.simulate`: what it prints, what it reads from a run, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arealite.errors import ConfigError
from arealite.simulate.__main__ import main
from arealite.simulate.profile import speeds_of

CONFIG = str(Path(__file__).resolve().parents[2] / "examples" / "countdown" / "cpu.yaml")

VERSIONS, SAMPLES, SECONDS = 12, 16.0, 2.0


def _run_folder(folder: Path, steps: list[float] | None = None, **changes: Any) -> Path:
    """A run of one version in 2 s: 0.5 s of waiting, 0.1 s of publishing, so 1.4 s of training 16
    samples. Its server: a step of n samples takes 0.01 + 0.001 n s; 20 steps a version, of 16 and
    of 48 samples in turn; and 0.2 s of other work for 8 prompts."""
    total = {"steps": 0.0, "tokens_generated": 0.0, "decode_s": 0.0, "idle_s": 0.0}
    with (folder / "metrics.jsonl").open("w") as lines:
        for version in range(1, VERSIONS + 1):
            n = (steps or [16.0, 48.0])[version % len(steps or [16.0, 48.0])]
            decode = 20 * (0.01 + 0.001 * n)
            total["steps"] += 20
            total["tokens_generated"] += 20 * n
            total["decode_s"] += decode
            total["idle_s"] += SECONDS - decode - 0.2
            row = {
                "version": version,
                "time": 1000.0 + SECONDS * version,
                "train/samples": SAMPLES,
                "time/wait_batch_s": 0.5,
                "time/publish_s": 0.1,
                "rollout/completion_length": 30.0,
                "counts/admitted": 8.0 * version,
                "counts/failed": 2.0 * version,
                "counts/filtered": 1.0 * version,
                **{f"engine/{key}": value for key, value in total.items()},
                **changes,
            }
            lines.write(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n")
        lines.write('{"version": 13, "ti')  # the run was killed here
    return folder


def test_speeds_are_those_of_the_run(tmp_path: Path) -> None:
    speeds = speeds_of(_run_folder(tmp_path))
    assert speeds.train_per_sample_s == pytest.approx(1.4 / 16)
    assert speeds.publish_s == pytest.approx(0.1)
    assert speeds.step_s == pytest.approx(0.01)
    assert speeds.step_per_sample_s == pytest.approx(0.001)
    assert speeds.prompt_tokens * speeds.prefill_per_token_s == pytest.approx(0.2 / 8)
    assert (speeds.failed, speeds.filtered) == (0.25, 0.125)
    assert (speeds.length_mean, speeds.groups) == (30.0, ())


def test_the_first_versions_are_not_counted(tmp_path: Path) -> None:
    """They compile and warm up: an hour each, endless answers, and all of their rows filtered."""
    expected = speeds_of(_run_folder(tmp_path))
    metrics = tmp_path / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    for index in range(2):
        row = json.loads(lines[index])
        row["time"] -= 3600.0 * (2 - index)
        row |= {"time/publish_s": 600.0, "rollout/completion_length": 9e5}
        row |= {"engine/decode_s": 0.0, "counts/failed": 0.0, "counts/admitted": 0.0}
        lines[index] = json.dumps(row)
    metrics.write_text("\n".join(lines))
    assert speeds_of(tmp_path) == expected


def test_a_counter_that_began_anew_has_not_fallen(tmp_path: Path) -> None:
    """The run was resumed at version 9: its counts begin at 0 again, after a half line."""
    _run_folder(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()[:VERSIONS]]
    for row in rows[8:]:
        row["counts/admitted"] -= 64.0
        row["counts/failed"] -= 16.0
        row["counts/filtered"] -= 8.0
    lines = [json.dumps(row) for row in rows]
    metrics.write_text("\n".join([*lines[:8], '{"version": 9, "ti', *lines[8:]]))
    speeds = speeds_of(tmp_path)
    assert (speeds.failed, speeds.filtered) == (0.25, 0.125)


def test_lengths_are_the_groups_of_the_transcripts(tmp_path: Path) -> None:
    with (tmp_path / "transcripts.jsonl").open("w") as lines:
        for fate, lengths in (("trained", [3, 4]), ("evaluated", [9, 9]), ("dropped_stale", [7])):
            played = {"fate": fate, "trajectories": [{"tokens": n} for n in lengths]}
            lines.write(json.dumps(played) + "\n")
    assert speeds_of(_run_folder(tmp_path)).groups == ((3, 4), (7,))


def test_steps_of_one_size_are_told_apart_by_the_defaults_ratio(tmp_path: Path) -> None:
    """0.01 + 0.001 * 16 s a step is all that such a run shows."""
    speeds = speeds_of(_run_folder(tmp_path, steps=[16.0]))
    assert speeds.step_s + 16 * speeds.step_per_sample_s == pytest.approx(0.026)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train/samples": None}, "has 0 trained version"),
        ({"time/publish_s": None}, "lacks time/publish_s"),
    ],
)
def test_a_folder_that_tells_too_little_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        speeds_of(_run_folder(tmp_path, **changes))
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read"):
        speeds_of(tmp_path / "nowhere")


def test_the_command_prints_grid_and_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = str(_run_folder(tmp_path))
    main(
        [
            *("--config", CONFIG, "--profile", profile, "--eta", "0,1", "--batch", "4"),
            *("--servers", "1,2", "--versions", "12", "gconfig.n_samples=2"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[-1].startswith("advice: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eta", "x"], "--eta x: give whole numbers"),
        (["--servers", "0"], "--servers 0: every number must be at least 1"),
        (["--set", "stp_s=1"], "there is no such speed"),
        (["--profile", "nowhere"], "metrics.jsonl cannot be read"),
        (["rollout.lat=mask"], "rollout.late"),
        (["--versions", "0"], "give at least --versions 24"),
        (["--versions", "11", "--eta", "0,1"], "at staleness 1; give at least --versions 12"),
        (["--set", "length_mean=0"], "length_mean is 0, it must be above 0"),
        (["--set", "step_s=0", "--set", "step_per_sample_s=0"], "a decode step takes no time"),
        (["--set", "failed=1"], "failed is 1, the share of episodes that fail; it may be at most"),
        (["--set", "failed=0.6"], "correct the profile or --set failed="),
        (["--set", "filtered=1"], "filtered is 1, the share of episodes that a filter rejects"),
        (["--set", "long_share=1.5"], "a share is at most 1"),
        (["--set", "length_sigma=9"], "length_sigma is 9, it may be at most 5"),
        (["--set", "publish_s=1e9"], "at most 1e+06"),
        (["--set", "prompt_tokens=1.5"], "must be a whole number"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--config", CONFIG, *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


def test_a_simulated_run_that_fails_too_often_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """39 % fail: sooner or later more than half of 64 do."""
    with pytest.raises(SystemExit) as ended:
        main(["--config", CONFIG, "--set", "failed=0.39", "--eta", "1", "--versions", "900"])
    assert ended.value.code == 2
    assert "the shares of simulated episodes that fail" in capsys.readouterr().err


BAD_LINES = [
    ("metrics.jsonl", b"\xff\xfe\n", "line 14 is not a JSON object in UTF-8; take that line out"),
    ("metrics.jsonl", b"5\n", "line 14 is not a JSON object"),
    ("metrics.jsonl", b'{"train/samples": 16}\n', "line 14 lacks time, time/wait_batch_s"),
    ("transcripts.jsonl", b"5\n", "line 2 is not a JSON object"),
    ("transcripts.jsonl", b'{"fate": "trained"}\n', "line 2 has no trajectories with their"),
    ("transcripts.jsonl", b'{"fate": "trained", "trajectories": [5]}\n', "line 2 has no traj"),
    ("transcripts.jsonl", b'{"fate": "trained", "trajectories": [{"tokens": 0}]}\n', "line 2"),
]


@pytest.mark.parametrize(("name", "line", "words"), BAD_LINES)
def test_a_bad_line_of_a_profile_is_told_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, line: bytes, words: str
) -> None:
    folder = _run_folder(tmp_path)
    (folder / "transcripts.jsonl").write_text('{"fate": "evaluated"}\n')
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().rpartition(b"\n")[0] + b"\n{}\n")
    with (folder / name).open("ab") as lines:
        lines.write(line)
    with pytest.raises(SystemExit) as ended:
        main(["--config", CONFIG, "--profile", str(folder)])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("time/publish_s", "soon", "line 3: time/publish_s is 'soon', it must be a number"),
        ("counts/admitted", -1, "line 3: counts/admitted is -1"),
        ("time", 5.0, "tells of no time"),
        ("train/samples", 0, "or no sample"),
        ("engine/decode_s", None, "line 3 lacks engine/decode_s"),
    ],
)
def test_a_bad_figure_of_a_profile_is_told(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        speeds_of(_run_folder(tmp_path, **{key: value}))


def test_it_starts_without_torch() -> None:
    code = "import sys, arealite.simulate.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
