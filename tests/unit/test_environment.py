"""Conversations with an environment: over engines that follow a script."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from test_conversation import Letters, learned, response, text_of

from arealite.errors import ConfigError, WorkflowError
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse
from workflows.environment import EnvironmentWorkflow

WORLD = """
ended = []
class Guess:
    '''A number is to be found; a guess that is too high or too low is told so.'''
    def __init__(self, found=1.0):
        self.found = found
    async def reset(self, data):
        self.number = data["number"]
        return data.get("begin", "guess!")
    async def step(self, text):
        match text:
            case "raise": raise KeyError("lost")
            case "short": return "more"
            case "silent": return [], 0, False
            case "odd": return 5, 0, False
            case "parts": return "go on", {"wit": 0.5, "form": 0.25}, False
            case "tool": return [{"role": "tool", "content": "[7]"}], 0, False
        off = int(text) - self.number
        return ("high" if off > 0 else "low"), (-0.1 if off else self.found), not off
    async def aclose(self):
        ended.append(self)
class Sync:
    async def reset(self, data): ...
    def step(self, text): ...
"""


class Says:
    """Answers one after another; '.' at an end: it was cut off there."""

    def __init__(self, *said: str) -> None:
        self.said, self.seen = iter(said), list[ModelRequest]()

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        self.seen.append(request)
        words = next(self.said)
        stop = "length" if words.endswith(".") else "stop"
        return response(request.input_ids, words.rstrip("."), len(self.seen), stop)


@pytest.fixture
def world(tmp_path: Path) -> str:
    path = tmp_path / f"world_{abs(hash(str(tmp_path)))}.py"
    path.write_text(WORLD)
    return f"{path}:Guess"


def made(world: str, n: int = 1, **options: Any) -> EnvironmentWorkflow:
    gconfig = GenerationHyperparameters(n_samples=n, max_new_tokens=9)
    return EnvironmentWorkflow(gconfig, Letters(), world, **options)


def play(engine: Says, workflow: EnvironmentWorkflow, **row: Any) -> Any:
    return asyncio.run(workflow.arun_episode(engine, {"number": 5, **row}))


def ended_in(workflow: EnvironmentWorkflow) -> list[Any]:
    import sys

    found: list[Any] = sys.modules[workflow.environment.__module__].ended
    return found


def test_a_conversation_goes_on_until_the_environment_ends_it(world: str) -> None:
    engine, workflow = Says("9$", "3$", "5$", "never"), made(world)
    [one] = play(engine, workflow)
    assert text_of(one) == "<u>guess!$\n<a>9$\n<u>high$\n<a>3$\n<u>low$\n<a>5$"
    assert learned(one) == "9$3$5$"
    assert one.reward == pytest.approx(1.0 - 0.1 - 0.1)
    assert [v for v in one.versions if v >= 0] == [1, 1, 2, 2, 3, 3]
    assert len(ended_in(workflow)) == 1


def test_later_answers_may_count_less(world: str) -> None:
    [one] = play(Says("9$", "3$", "5$"), made(world, turn_discount=0.5))
    assert one.reward == pytest.approx(-0.1 - 0.1 * 0.5 + 1.0 * 0.25)


def test_settings_of_the_environment_are_its_own(world: str) -> None:
    [one] = play(Says("5$"), made(world, environment_kwargs={"found": 3.0}))
    assert one.reward == 3.0
    with pytest.raises(ConfigError, match=r"cannot be built: .*'size'; give it in environment_kw"):
        made(world, environment_kwargs={"size": 3})


def test_named_parts_are_summed_by_name(world: str) -> None:
    [one] = play(Says("parts$", "parts$", "5$"), made(world))
    assert one.components == {"wit": 1.0, "form": 0.5, "score": 1.0}
    assert one.reward == 2.5


def test_messages_of_any_role_may_be_told(world: str) -> None:
    begin = [{"role": "system", "content": "play"}, {"role": "user", "content": "go"}]
    [one] = play(Says("tool$", "5$"), made(world), begin=begin)
    assert text_of(one) == "<s>play$\n<u>go$\n<a>tool$\n<t>[7]$\n<a>5$"


def test_it_ends_with_its_turns_and_with_an_answer_that_was_cut_off(world: str) -> None:
    [one] = play(Says("9$", "9$", "never"), made(world, max_turns=2))
    assert (one.reward, learned(one)) == (pytest.approx(-0.2), "9$9$")
    [one] = play(Says("9$", "9.", "never"), made(world))
    assert (one.reward, one.truncated) == (pytest.approx(-0.2), True)


def test_it_ends_where_there_is_no_room_for_another_answer(world: str) -> None:
    first = len("<u>guess!$\n<a>")
    behind = len("\n<u>high$\n<a>")
    engine = Says("9$", "9$", "never")
    play(engine, made(world, context_length=first + 2 + behind + 4))
    assert [r.gconfig.max_new_tokens for r in engine.seen] == [9, 4]


def test_each_sample_has_an_environment_and_like_beginnings_are_asked_as_one(world: str) -> None:
    engine, workflow = Says("5$", "9$", "5$"), made(world, n=2)
    assert [t.reward for t in play(engine, workflow)] == pytest.approx([1.0, 0.9])
    assert len({r.rid for r in engine.seen[:2]}) == 1
    assert len(set(map(id, ended_in(workflow)))) == 2


@pytest.mark.parametrize(
    ("said", "error", "says"),
    [
        ("raise", KeyError, "lost"),
        ("short", WorkflowError, "step returned 'more'; it must return what is told next"),
        ("silent", WorkflowError, r"told \[\]; it must be text, or a list of chat messages"),
        ("odd", WorkflowError, "told 5; it must be text"),
    ],
)
def test_what_fails_costs_the_episode_and_the_environments_end(
    world: str, said: str, error: type[Exception], says: str
) -> None:
    workflow = made(world, n=2)
    with pytest.raises(error, match=says):
        play(Says(f"{said}$", "5$"), workflow)
    assert len(ended_in(workflow)) == 2


def test_what_is_no_environment_is_one_sentence(world: str) -> None:
    with pytest.raises(ConfigError, match=r"Sync has no `async def step`"):
        made(world.replace("Guess", "Sync"))
    with pytest.raises(ConfigError, match="json:dumps has no `async def reset`"):
        made("json:dumps")
    with pytest.raises(ValueError, match="max_turns is 0"):
        made(world, max_turns=0)


def test_the_environment_that_the_page_shows_plays(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "workflows.md"
    found = re.search(r"```python guess\.py\n(.*?)```", page.read_text(), re.DOTALL)
    assert found
    (tmp_path / "guess.py").write_text(found[1])
    workflow = made(f"{tmp_path}/guess.py:Guess", environment_kwargs={"wrong": -0.05})
    [one] = play(Says("50$", "what$", "5$"), workflow)
    assert one.reward == pytest.approx(0.9)
    assert [w for w in ("Less.", "Say a number.") if w in text_of(one)] == [
        "Less.",
        "Say a number.",
    ]
