"""Another try after an answer that is not right: the workflow over engines that follow a script."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_conversation import Letters, learned, response, text_of

from arealite.errors import Unscorable
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse
from workflows.multi_turn import MultiTurnWorkflow

ROW = {"query": "2+2?", "answer": "4"}


class Says:
    """The samples of a group say these, turn by turn; '.' at an end: it was cut off there."""

    def __init__(self, *samples: list[str]) -> None:
        self.samples = samples
        self.seen: list[ModelRequest] = []

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        text = "".join(map(chr, request.input_ids))
        before = sum(r.input_ids == request.input_ids for r in self.seen)
        self.seen.append(request)
        said = [part.partition("$")[0] for part in text.split("<a>")[1:-1]]
        turn = len(said)
        going_on = [s[turn] for s in self.samples if s[:turn] == said and len(s) > turn]
        words = going_on[before]
        is_cut = words.endswith(".")
        stop = "length" if is_cut else "stop"
        return response(request.input_ids, words.rstrip(".") if is_cut else f"{words}$", 0, stop)


async def right(solution: str, truth: Any) -> float:
    return float(solution == truth)


def play(engine: Says, reward: Any = right, **options: Any) -> Any:
    gconfig = GenerationHyperparameters(n_samples=len(engine.samples), max_new_tokens=9)
    workflow = MultiTurnWorkflow(reward, gconfig, Letters(), feedback="no", **options)
    return asyncio.run(workflow.arun_episode(engine, ROW))


def test_it_tries_again_until_right_and_later_is_worth_less() -> None:
    engine = Says(["4"], ["3", "4"], ["1", "2", "5"])
    made = play(engine)
    assert [t.reward for t in made] == pytest.approx([1.0, 0.9, 0.0])
    assert [learned(t) for t in made] == ["4$", "3$4$", "1$2$5$"]
    assert text_of(made[1]) == "<u>2+2?$\n<a>3$\n<u>no$\n<a>4$"
    assert len(engine.seen) == 6
    first = engine.seen[0].input_ids
    names = [r.rid for r in engine.seen if r.input_ids == first]
    assert (len(names), len(set(names))) == (3, 1), "the first turn travels as one"


def test_turns_and_their_discount_are_settings() -> None:
    made = play(Says(["1", "4"], ["1", "2"]), max_turns=2, turn_discount=0.5)
    assert [t.reward for t in made] == [0.5, 0.0]


def test_an_answer_that_was_cut_off_ends_it() -> None:
    made = play(Says(["3."], ["3", "4"]))
    assert [(learned(t), t.truncated) for t in made] == [("3", True), ("3$4$", False)]


def test_a_conversation_ends_where_there_is_no_room_for_another_answer() -> None:
    first, behind = len("<u>2+2?$\n<a>3$"), len("\n<u>no$\n<a>")
    engine = Says(["3", "4"])
    play(engine, context_length=first + behind + 5)
    assert [r.gconfig.max_new_tokens for r in engine.seen] == [9, 5]
    [made] = play(Says(["3", "4"]), context_length=first + behind)
    assert learned(made) == "3$"


def test_components_are_discounted_by_name() -> None:
    async def parts(solution: str, truth: Any) -> dict[str, float]:
        return {"right": float(solution == truth), "form": 0.5 * (solution == truth)}

    made = play(Says(["4"], ["3", "4"]), parts)
    assert made[1].components == pytest.approx({"right": 0.9, "form": 0.45})


def test_a_sample_without_a_score_is_left_out() -> None:
    async def odd(solution: str, truth: Any) -> float:
        if solution == "9":
            raise Unscorable("it is nine", "exception")
        return float(solution == truth)

    assert [t.reward for t in play(Says(["4"], ["9"], ["3", "4"]), odd)] == [1.0, 0.9]
    with pytest.raises(Unscorable, match="it is nine"):
        play(Says(["4"], ["9"]), odd)


@pytest.mark.parametrize(
    "options", [{"max_turns": 0}, {"turn_discount": 0.0}, {"turn_discount": 2}]
)
def test_settings_that_cannot_be_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"max_turns is .* and turn_discount"):
        play(Says(["4"]), **options)
