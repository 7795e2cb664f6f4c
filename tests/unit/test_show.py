"""`python -m arealite.show`: the right transcripts with what is known of them, and no harm done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seeing_support import HOSTILE, VERSIONS, small_run

from arealite.show import main
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.view import harmless

CaptureFixture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return small_run(tmp_path)


def shown(capsys: CaptureFixture, folder: RunFolder, *options: str) -> str:
    main([str(folder.path), *options])
    return capsys.readouterr().out


def test_a_trained_sample_with_all_that_is_known(folder: RunFolder, capsys: CaptureFixture) -> None:
    assert shown(capsys, folder, "--grep", "answer 1 to 1 at 3") == (
        "row 3:1  trained into version 4, admitted at 2\n"
        "  query: row 1\n"
        "  answer: 5\n"
        "sample 2 of 2  reward 1.25 (right 0.5, brevity 0.75)  3 tokens  lag 1"
        "  cut off by its length\n"
        "tokens: 2 given, 2 by version 2, 1 by version 3\n"
        "  answer 1 to 1 at 3\n\n"
    )


def test_a_group_has_one_heading(folder: RunFolder, capsys: CaptureFixture) -> None:
    text = shown(capsys, folder, "--fate", "trained", "--version", "1", "-n", "0")
    headings = [line for line in text.splitlines() if line.startswith("row ")]
    assert [line.split()[1] for line in headings] == ["0:0", "0:1"]
    assert text.count("sample ") == 4


def test_a_version_is_what_it_was_made_of_and_what_it_answered(
    folder: RunFolder, capsys: CaptureFixture
) -> None:
    text = shown(capsys, folder, "--version", str(VERSIONS), "-n", "0")
    rows = {line.split()[1] for line in text.splitlines() if line.startswith("row ")}
    assert rows == {"3:0", "3:1", "test:0", "test:1", "test:2"}


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--sort", "reward"], ["reward 1.25", "reward 1.25", "reward 1 "]),
        (["--sort", "reward", "--lowest"], ["reward 0 ", "reward 0 ", "reward 0 "]),
        (["--sort", "length", "--fate", "trained"], ["4 tokens"] * 3),
        (["--sort", "lag"], ["lag 1"] * 3),
        (["--sort", "lag", "--lowest"], ["lag 0"] * 3),
    ],
)
def test_sorting(
    folder: RunFolder, capsys: CaptureFixture, options: list[str], facts: list[str]
) -> None:
    text = shown(capsys, folder, *options, "-n", "3")
    lines = [line + " " for line in text.splitlines() if line.startswith("sample ")]
    assert len(lines) == 3
    assert all(fact in line for fact, line in zip(facts, lines, strict=True))


def test_unsorted_the_newest_come_in_their_order(folder: RunFolder, capsys: CaptureFixture) -> None:
    rows = [r.split()[1] for r in shown(capsys, folder, "-n", "2").splitlines() if r[:4] == "row "]
    assert rows == ["9:0", "9:1"]


def test_an_episode_that_failed_says_of_what(folder: RunFolder, capsys: CaptureFixture) -> None:
    text = shown(capsys, folder, "--fate", "failed")
    assert text == "row 9:0  failed, admitted at version 2\n  engine: no server answered\n\n"


def test_a_hostile_text_steers_nothing(folder: RunFolder, capsys: CaptureFixture) -> None:
    text = shown(capsys, folder, "--fate", "dropped_stale")
    assert "<script>alert(1)</script> [red]x[/] \\x1b[31m\\x1b]0;owned\\x07 \\u202etxt.exe" in text
    assert all(c.isprintable() for c in text.replace("\n", ""))


@given(st.text())
def test_harmless_text_is_printable_and_keeps_its_lines(text: str) -> None:
    safe = harmless(text)
    assert all(c.isprintable() for c in safe.replace("\n", ""))
    assert safe.count("\n") == text.count("\n")


def test_a_torn_last_line_and_foreign_ones_are_passed_over(
    folder: RunFolder, capsys: CaptureFixture
) -> None:
    with open(folder.transcripts, "ab") as file:
        file.write(b'[1]\n{"fate":"trained","trajectories":"?","version":"x","error":7}\n')
        file.write(b'{"fate":"trained","trajectories":[{"versions":[[1],["a",2],[3,4]],"text":5}]}')
        file.write(b'\n{"sample_id":"10:0","fate":"trai')
    text = shown(capsys, folder, "-n", "3")
    assert "10:0" not in text
    assert "tokens: 4 by version 3" in text


def test_a_terminal_gets_colours_and_a_pipe_none(folder: RunFolder) -> None:
    command = [sys.executable, "-m", "arealite.show", str(folder.path), "-n", "1"]
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    piped = subprocess.run(command, capture_output=True, check=True, env=plain, timeout=60)
    assert b"\x1b" not in piped.stdout
    coloured = subprocess.run(
        command, capture_output=True, check=True, timeout=60,
        env={**plain, "FORCE_COLOR": "1", "TERM": "xterm-256color"},
    )  # fmt: skip
    assert b"\x1b[" in coloured.stdout
    assert b"\x1b]" not in coloured.stdout, "the text's own title sequence"


def test_a_reader_who_has_read_enough_is_no_error(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    folder.transcripts.write_bytes(folder.transcripts.read_bytes() * 200)
    command = f"{sys.executable} -m arealite.show {folder.path} -n 0 | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("row ")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["nowhere"], "not a folder"),
        (["."], "give one of those in it: trial1"),
        (["trial1", "-n", "-1"], "at least 0"),
        (["trial1", "--lowest"], "--sort"),
        (["trial1", "--fate", "eaten"], "invalid choice"),
        (["empty"], "no transcripts.jsonl"),
    ],
)
def test_mistakes_are_sentences(
    folder: RunFolder,
    capsys: CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(folder.path.parent)
    RunFolder(Path("empty")).create().metrics.touch()
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert part in told
    assert len(told.splitlines()) == 1


def test_the_hostile_text_is_hostile() -> None:
    assert not HOSTILE.isprintable()
