"""`python -m arealite.rewards check`: what is wrong with a reward file, in sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arealite.errors import ConfigError
from arealite.rewards.check import main
from arealite.rewards.probes import hacks

ROOT = Path(__file__).resolve().parents[2]
COUNTDOWN = str(ROOT / "examples" / "countdown" / "reward_score.py")

EVALUATES = """
import re
def compute_score(solution_str, ground_truth):
    found = re.search("<answer>([0-9+*/() .-]+)</answer>", solution_str)
    try:
        return float(eval(found[1]) == ground_truth["target"]) if found else 0.0
    except Exception:
        return 0.1
"""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    truths = [{"target": 24, "numbers": [7, 3, 6]}, {"target": 17, "numbers": [5, 3, 2]}]
    lines = [json.dumps({"query": f"Reach {t['target']}.", "answer": t}) for t in truths]
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["check", *arguments])
    return code, capsys.readouterr().out


def test_nothing_is_wrong_with_the_countdown_reward(
    rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = told(capsys, COUNTDOWN, "--rows", rows, "--timeout", "30")
    assert code == 0, text
    assert "calls on hostile text and 2 row(s); reward.isolation standard:" in text
    assert "scores from 0 to 0.1" in text
    assert text.endswith("nothing is wrong with it, as far as these texts can tell\n")


def test_a_reward_that_evaluates_text_hangs_and_pays_for_hacks(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluates.py").write_text(EVALUATES)
    code, text = told(capsys, str(tmp_path / "evaluates.py"), "--rows", rows, "--timeout", "1")
    assert code == 1
    assert "wrong: it does not return in time, on " in text
    assert "wrong: it pays for what is no answer, " in text
    assert ": 1 for the target itself, '<answer>24</answer>'" in text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return random.random()", "it is not deterministic, on "),
        ("return None", "it returns what is no finite number, on "),
        ("os._exit(0)", "it ends its process, on "),
        ("return 1", "1 for nothing at all, ''"),
        ("return int('>42<' in solution_str)", "1 for many answers, '<answer>-987654321"),
        ("return bytes(10**12)", "it takes too much memory, on "),
        ("return len(solution_str) / len(solution_str)", "it raises, on "),
    ],
)
def test_what_is_wrong_is_told_with_an_example(
    rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, says: str
) -> None:
    code = f"import os, random\ndef compute_score(solution_str, ground_truth):\n    {body}\n"
    (tmp_path / "wrong.py").write_text(code)
    number, text = told(
        capsys, str(tmp_path / "wrong.py"), "--rows", rows, "--timeout", "30", "--max-rows", "1"
    )
    assert number == 1
    assert says in text


FORMS = """
import itertools, re
count = itertools.count()
def right(prompt, completions, prompt_ids, completion_ids, answer, **data):
    assert len(prompt_ids) == len(prompt.encode()), "bytes stand for tokens"
    return float(completions.strip() == f"the answer is {answer['target']}")
def trl(completions, answer, **columns):
    return [float(c == f"the answer is {a['target']}") for c, a in zip(completions, answer)]
def one(completions, **columns):
    return [0.0]
def place(completions, **columns):
    return list(range(len(completions)))
async def later(solution_str, ground_truth):
    return 0.0 if solution_str else 1.0
def numbered(solution_str, ground_truth, start):
    return start
"""


@pytest.mark.parametrize(
    ("function", "code", "says"),
    [
        ("right", 0, "nothing is wrong with it"),
        ("trl", 0, "nothing is wrong with it"),
        ("one", 1, "returned 1 scores; it must return a list of 2, one per sample"),
        ("place", 1, "it is not deterministic"),
        ("later", 1, "1 for nothing at all, ''"),
    ],
)
def test_functions_of_every_form_are_checked(
    rows: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    function: str,
    code: int,
    says: str,
) -> None:
    (tmp_path / "forms_to_check.py").write_text(FORMS)
    path = f"{tmp_path / 'forms_to_check.py'}:{function}"
    number, text = told(capsys, path, "--rows", rows, "--timeout", "30", "--max-rows", "1")
    assert (number, says in text) == (code, True), text
    assert ("in the trainer, where nothing is refused" in text) == (function == "later")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["trl"], "trl takes answer, and the row has no such column; .*; give --rows data.jsonl"),
        (["one", "--kwargs", "{"], "--kwargs '{' is no JSON"),
        (["one", "--kwargs", "[]"], r"--kwargs '\[\]' is no JSON object"),
        (["numbered", "--kwargs", '{"stop": 1}'], "kwargs.stop: it takes no such argument"),
        (["numbered"], "numbered.* does not fit: missing a required argument: 'start'"),
    ],
)
def test_a_function_that_cannot_be_called_is_bad_input(
    tmp_path: Path, options: list[str], says: str
) -> None:
    (tmp_path / "forms_to_check.py").write_text(FORMS)
    function, *rest = options
    with pytest.raises(ConfigError, match=says):
        main(["check", f"{tmp_path / 'forms_to_check.py'}:{function}", *rest])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rows", "nowhere.jsonl"], "--rows nowhere.jsonl: there is no such file"),
        (["--answer-key", "truth"], "no column 'truth'; its columns are query, answer: give --ans"),
    ],
)
def test_rows_that_cannot_be_used_are_bad_input(rows: str, options: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        main(["check", COUNTDOWN, "--rows", rows, *options])


def test_the_command_has_the_exit_code_of_bad_input() -> None:
    command = [sys.executable, "-m", "arealite.rewards", "check", "nowhere.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("arealite: nowhere.py: there is no such file")


def test_the_hacks_are_made_for_the_row() -> None:
    texts = dict(hacks({"target": 15, "numbers": [3, 5, 2]}, "Reach 15."))
    assert texts["a decimal point (the 3.5*2 family)"] == "<answer>7.5 * 2</answer>"
    assert texts["the prompt again"] == "Reach 15."
    assert len(texts) > 20
    assert len(dict(hacks("15", None))) == 7
