"""A user's code is found, imported and checked at load; each mistake is one sentence."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arealite.errors import ConfigError
from arealite.loading import load_object, load_workflow
from arealite.rewards.signature import ACCEPTED, load_reward

OFFERED = {"gconfig": "g", "tokenizer": "t", "reward_fn": "r"}


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), sys.path.copy()
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, text: str, name: str = "task.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistake(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


def workflow_mistake(folder: Path, text: str, **given: object) -> str:
    return mistake(load_workflow, f"{write(folder, text)}:Task", OFFERED, given)


# --- finding


def test_an_object_is_found_by_module_and_by_file(tmp_path: Path) -> None:
    assert load_object("json:loads") is json.loads
    assert load_object(f"{write(tmp_path, 'x = 5')}:x") == 5


def test_a_relative_path_starts_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "x = 6")
    monkeypatch.chdir(tmp_path)
    assert load_object("task.py:x") == 6


@pytest.mark.parametrize("reference", ["", "json", "json:", ":loads", "task.py"])
def test_a_reference_without_module_or_name_is_shown_the_form(reference: str) -> None:
    assert mistake(load_object, reference) == (
        f"{reference!r} names no code; write pkg.mod:Name or path/file.py:name"
    )


def test_a_missing_file_says_where_paths_start(tmp_path: Path) -> None:
    sentence = mistake(load_object, f"{tmp_path}/none.py:x")
    assert sentence.startswith(f"{tmp_path}/none.py: there is no such file")
    assert str(Path.cwd()) in sentence


def test_a_missing_module_is_named() -> None:
    assert "no_such_module" in mistake(load_object, "no_such_module.at_all:x")


def test_a_missing_name_is_shown_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path, "def compute_score(s, g): return 0.0\n_private = 1\n")
    assert mistake(load_object, f"{path}:compute_scor") == (
        f"{path} has no 'compute_scor'; it has compute_score"
    )


# --- importing


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "x = 1\ny = 2\ndef broken(:\n")
    assert mistake(load_object, f"{path}:x").startswith(f"{path}, line 3 cannot be imported: Synt")


def test_an_import_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "x = 1\nimport no_such_package\n")
    sentence = mistake(load_object, f"{path}:x")
    assert sentence.startswith(f"{path}, line 2 cannot be imported: ModuleNotFoundError")
    assert "no_such_package" in sentence


def test_an_error_while_importing_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "def f():\n    return 1 / 0\n\nx = f()\n")
    assert mistake(load_object, f"{path}:x").startswith(f"{path}, line 2 cannot be imported: Zero")


def test_a_script_that_ends_the_interpreter_is_an_error_not_an_end(tmp_path: Path) -> None:
    path = write(tmp_path, "import sys\nsys.exit(0)\n")
    assert "line 2 cannot be imported: SystemExit: 0" in mistake(load_object, f"{path}:x")


def test_a_file_that_failed_can_be_mended_and_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, "x = 1 / 0  # first version\n")
    mistake(load_object, f"{path}:x")
    path.write_text("x = 11\n")
    assert load_object(f"{path}:x") == 11


def test_a_file_runs_once_and_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "value = []", "neighbour_of_task.py")
    text = (
        "import neighbour_of_task\nneighbour_of_task.value.append(1)\nx = neighbour_of_task.value"
    )
    path = write(tmp_path, text)
    assert load_object(f"{path}:x") == [1]
    assert load_object(f"{path}:x") == [1]


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, f"x = {value}")
    assert [load_object(f"{tmp_path}/{folder}/task.py:x") for folder in "aba"] == [1, 2, 1]


def test_a_file_named_like_a_library_module_takes_nothing_away(tmp_path: Path) -> None:
    assert load_object(f"{write(tmp_path, 'x = 1', 'random.py')}:x") == 1
    assert sys.modules["random"] is random


# --- rewards


def test_a_reward_with_the_contracts_arguments_is_accepted(tmp_path: Path) -> None:
    text = "def compute_score(solution_str, ground_truth, method='strict', format_score=0.1):\n"
    path = write(tmp_path, text + "    return 0.5\n")
    assert load_reward(f"{path}:compute_score").call("", {}) == 0.5


@pytest.mark.parametrize(
    "signature", ["()", "(solution_str)", "(a, b, c)", "(a, *, b)", "(solution_str, *, truth)"]
)
def test_a_reward_with_another_signature_is_shown_both(tmp_path: Path, signature: str) -> None:
    path = write(tmp_path, f"def compute_score{signature}: return 0.0\n")
    sentence = mistake(load_reward, f"{path}:compute_score")
    assert sentence.startswith(f"{path}:compute_score{signature} does not fit: ")
    assert sentence.endswith(ACCEPTED)


def test_a_reward_that_is_no_function_is_told_so(tmp_path: Path) -> None:
    path = write(tmp_path, "compute_score = 3\n")
    assert mistake(load_reward, f"{path}:compute_score").startswith(
        f"{path}:compute_score is a int, not a function"
    )


def test_a_reward_that_does_not_tell_its_signature_is_accepted() -> None:
    assert load_reward("builtins:max").call is max


# --- workflows

GOOD = """
class Task:
    def __init__(self, reward_fn, tokenizer, turns: int = 3):
        self.parts = (reward_fn, tokenizer, turns)

    async def arun_episode(self, engine, data):
        return [self.parts]
"""


def test_a_workflow_gets_what_its_init_names(tmp_path: Path) -> None:
    workflow = load_workflow(f"{write(tmp_path, GOOD)}:Task", OFFERED, {"turns": 5})
    assert asyncio.run(workflow.arun_episode(None, {})) == [("r", "t", 5)]  # type: ignore[arg-type]


def test_a_workflow_that_takes_anything_gets_the_given(tmp_path: Path) -> None:
    text = "class Task:\n    def __init__(self, **rest): self.rest = rest\n"
    text += "    async def arun_episode(self, engine, data): return self.rest\n"
    workflow = load_workflow(f"{write(tmp_path, text)}:Task", OFFERED, {"own": 1})
    assert asyncio.run(workflow.arun_episode(None, {})) == {"own": 1}  # type: ignore[arg-type]


def test_a_workflow_must_be_a_class(tmp_path: Path) -> None:
    assert "is not a class" in workflow_mistake(tmp_path, "def Task(): pass")


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "def arun_episode(self, engine, data): return []",
        "arun_episode = 3",
        "async def run_episode(self, engine, data): return []",
    ],
)
def test_a_workflow_needs_an_async_arun_episode(tmp_path: Path, body: str) -> None:
    sentence = workflow_mistake(tmp_path, f"class Task:\n    {body}\n")
    assert sentence.endswith("has no `async def arun_episode(self, engine, data)`")


@pytest.mark.parametrize("signature", ["(self)", "(self, data)", "(self, engine, data, more)"])
def test_an_arun_episode_with_other_arguments_does_not_fit(tmp_path: Path, signature: str) -> None:
    sentence = workflow_mistake(
        tmp_path, f"class Task:\n    async def arun_episode{signature}: return []\n"
    )
    assert "does not fit" in sentence
    assert sentence.endswith("it is called with engine, data")


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("def check_row(self): ...", "(self) does not fit: too many positional arguments; it is "),
        ("async def check_row(self, data): ...", " is async; write `def check_row(self, data)`"),
    ],
)
def test_a_check_of_rows_that_could_not_be_asked_is_told(
    tmp_path: Path, check: str, says: str
) -> None:
    sentence = workflow_mistake(tmp_path, f"{GOOD}\n    {check}\n")
    assert f":Task.check_row{says}" in sentence


def test_an_end_that_could_not_be_awaited_is_told(tmp_path: Path) -> None:
    sentence = workflow_mistake(tmp_path, f"{GOOD}\n    def aclose(self): ...\n")
    assert sentence.endswith(":Task.aclose is not async; write `async def aclose(self)`")


def test_an_unknown_workflow_argument_is_shown_the_known_ones(tmp_path: Path) -> None:
    sentence = workflow_mistake(tmp_path, GOOD, turn=5)
    assert sentence.startswith("rollout.workflow_kwargs.turn: ")
    assert sentence.endswith("it takes turns")


def test_an_init_that_wants_more_than_is_offered_is_told_what_there_is(tmp_path: Path) -> None:
    text = GOOD.replace("turns: int = 3", "database, turns=3")
    sentence = workflow_mistake(tmp_path, text)
    assert "cannot be built: missing a required argument: 'database'" in sentence
    assert "gconfig, tokenizer, reward_fn" in sentence


def test_an_init_that_raises_names_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("self.parts =", "raise ValueError('turns must be even')  #")
    sentence = workflow_mistake(tmp_path, text)
    assert sentence.endswith(", line 4 cannot be built: ValueError: turns must be even")


def test_the_repositorys_own_workflow_fits() -> None:
    from arealite.types import GenerationHyperparameters

    class Tokenizer:
        eos_token_id, pad_token_id = 1, None

    offered = {
        "gconfig": GenerationHyperparameters(n_samples=2),
        "tokenizer": Tokenizer(),
        "reward_fn": max,
    }
    workflow = load_workflow("workflows.rlvr:RLVRWorkflow", offered, {"chat": False})
    assert workflow.gconfig.stop_token_ids == (1,)  # type: ignore[attr-defined]


def test_a_users_own_folder_of_workflows_does_not_hide_the_one_shipped(tmp_path: Path) -> None:
    package = tmp_path / "workflows"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("VALUE = 7\n")
    code = (
        "from arealite.loading import load_object; print(load_object('workflows.mine:VALUE'), "
        "load_object('workflows.rlvr:RLVRWorkflow').__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["7", "RLVRWorkflow"], done.stderr
