"""A reward function is known by its signature, and called as its form is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ConfigError, WorkflowError
from arealite.rewards.signature import ACCEPTED, Form, load_reward, signature_of
from arealite.types import Completion

ROW = {"answer": "4", "level": 2, "prompt": "2+2?", "completion": "never handed over"}
GROUP = [
    Completion(text, "4", "2+2?", "<user>2+2?", (7, 8), ids, ROW)
    for text, ids in (("four", (1, 2)), ("4", (3,)))
]


def load(folder: Path, text: str, **settings: Any) -> Any:
    (folder / "forms.py").write_text(text)
    return load_reward(RewardFunctionConfig(f"{folder / 'forms.py'}:f", **settings))


@pytest.mark.parametrize(
    ("parameters", "form"),
    [
        ("solution_str, ground_truth", "own"),
        ("s, t, method='strict', *, score=1.0", "own"),
        ("*args, **kwargs", "own"),
        ("completion, answer", "own"),
        ("prompt, completions, prompt_ids, completion_ids, **data", "areal"),
        ("prompt, completions, prompt_ids, completion_ids, answer, **kwargs", "areal"),
        ("prompt, completions, prompt_ids, completion_ids", "areal"),
        ("question, completion, prompt_ids, completion_ids, *, answer", "areal"),
        ("completions, **kwargs", "trl"),
        ("completions", "trl"),
        ("prompts, completions, answer, **kwargs", "trl"),
        ("completions, ground_truth", "trl"),
        ("prompts, completions, prompt_ids, completion_ids, **kwargs", "trl"),
        ("*, completions, answer", "trl"),
    ],
)
@pytest.mark.parametrize("style", ["def", "async def"])
def test_the_form_by_the_parameters(
    tmp_path: Path, parameters: str, form: Form, style: str
) -> None:
    loaded = load(tmp_path, f"{style} f({parameters}): ...")
    assert loaded.signature.form == form
    assert loaded.signature.is_async == (style == "async def")


@pytest.mark.parametrize(
    "parameters",
    ["", "text", "completion", "a, b, c", "completion, **kwargs", "completions, /", "a, *, b"],
)
def test_what_has_no_accepted_form_is_shown_them_all(tmp_path: Path, parameters: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(tmp_path, f"def f({parameters}): ...")
    assert f"forms.py:f({parameters}) does not fit: " in str(told.value)
    assert str(told.value).endswith(ACCEPTED)
    for form in ("(solution_str, ground_truth)", "prompt_ids, completion_ids, **data", "**columns"):
        assert form in ACCEPTED


def arguments(parameters: str, completions: Sequence[Completion] = GROUP) -> Any:
    names: dict[str, Any] = {}
    exec(f"def f({parameters}): ...", names)  # noqa: S102 - a literal of this file
    return signature_of(names["f"], "f").arguments(completions, "f")


def test_the_arguments_of_each_form() -> None:
    assert arguments("s, t") == (["four", "4"], {})
    areal = ["<user>2+2?", "four", [7, 8], [1, 2]]
    four = "prompt, completions, prompt_ids, completion_ids"
    assert arguments(four) == (areal, {})
    assert arguments(f"{four}, answer") == (areal, {"answer": "4"})
    assert arguments(f"{four}, answer, **data") == (areal, {"answer": "4", "level": 2})
    texts = {"completions": ["four", "4"]}
    assert arguments("completions, answer") == ([], {**texts, "answer": ["4", "4"]})
    assert arguments("prompts, completions, prompt_ids") == (
        [],
        {**texts, "prompts": ["2+2?", "2+2?"], "prompt_ids": [[7, 8], [7, 8]]},
    )
    assert arguments("completions, **columns") == (
        [],
        {
            **texts,
            "prompts": ["2+2?", "2+2?"],
            "completion_ids": [[1, 2], [3]],
            "answer": ["4", "4"],
            "level": [2, 2],
        },
    )


def test_a_chat_prompts_completions_are_messages_in_trls_form() -> None:
    asked = Completion("4", prompt=[{"role": "user", "content": "2+2?"}], row={})
    _, keywords = arguments("completions, **kwargs", [asked])
    assert keywords["completions"] == [[{"role": "assistant", "content": "4"}]]
    assert keywords["prompts"] == [asked.prompt]


def test_a_column_that_is_not_there_is_named() -> None:
    def reward(completions: Any, answer: Any, target: Any, level: Any = 1) -> Any: ...

    signature = signature_of(reward, "f")
    assert signature.lacking({"answer": "", "target": 3}) == ""
    assert signature.lacking({"answer": "", "query": ""}) == (
        "takes target, and the row has no such column; its columns are answer, query"
    )
    with pytest.raises(WorkflowError, match="f takes target, and the row has no such column"):
        signature.arguments(GROUP, "f")


@pytest.mark.parametrize(
    ("parameters", "taken"),
    [
        ("prompt, completions, prompt_ids, completion_ids", "prompt"),
        ("prompts, completions", "prompts"),
        ("completions, answer", "answer"),
    ],
)
def test_a_workflow_that_hands_over_too_little_is_told_how(parameters: str, taken: str) -> None:
    says = rf"^f takes {taken}.*; the workflow must hand over more: reward_fn.group"
    with pytest.raises(WorkflowError, match=says):
        arguments(parameters, [Completion("4", "4")])
    assert arguments("completions, **kwargs", [Completion("4", "4")])[1]["completions"] == ["4"]


COUNTED = """
made = 0
class f:
    def __init__(self, most, least=0):
        global made
        made += 1
        if most < least:
            raise ValueError("most < least")
        self.most = most
    {style} __call__(self, solution_str, ground_truth):
        return self.most
def plain(s, t, weight=1.0): return weight
"""


def test_a_class_is_built_with_its_kwargs_and_a_function_gets_them(tmp_path: Path) -> None:
    loaded = load(tmp_path, COUNTED.format(style="def"), kwargs={"most": 3})
    assert loaded.call("", "") == 3
    plain = f"{tmp_path / 'forms.py'}:plain"
    assert load_reward(RewardFunctionConfig(plain, kwargs={"weight": 2})).call("", "") == 2


def test_a_worker_builds_no_object_of_an_async_class(tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(COUNTED.format(style="async def"))
    function = RewardFunctionConfig(f"{tmp_path / 'judges.py'}:f", kwargs={"most": 3})
    assert load_reward(function, "worker").call is None
    here = load_reward(function)
    assert here.signature.is_async
    assert here.call is not None
    assert type(here.call).__name__ == "f"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({}, r"good \(.*forms.py:f\): it cannot be built: missing a required argument: 'most'"),
        ({"most": 1, "mots": 2}, "kwargs.mots: it takes no such argument; it takes most, least"),
        ({"most": 1, "least": 2}, "line 8 cannot be built: ValueError: most < least"),
    ],
)
def test_a_class_that_cannot_be_built_is_bad_input(
    tmp_path: Path, kwargs: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, COUNTED.format(style="def"), kwargs=kwargs, name="good")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("f = 3", "is a int, not a function"),
        ("class f: ...", "is a class without `def __call__`"),
        ("class f:\n    def __call__(self, text): ...", "(text) does not fit"),
    ],
)
def test_what_is_no_function_is_told_so(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load(tmp_path, text)
