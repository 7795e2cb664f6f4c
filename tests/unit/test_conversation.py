"""A conversation's tokens are what the engine saw and sampled; other histories are other lines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import Letters, Log, learned, response, text_of, user

from arealite.agents.chat import Chat
from arealite.agents.conversation import Conversation
from arealite.agents.turns import Turn, leaves, prompt
from arealite.engines.scripted import Sample
from arealite.errors import WorkflowError
from arealite.types import (
    NOT_SAMPLED,
    GenerationHyperparameters,
    Probe,
    WeightUpdate,
)


def talk(kind: str, *said: str) -> Conversation:
    """The policy says each of these, and is told "next" in between."""
    conversation = Conversation(Chat(Letters(kind)), [user("ask")])
    for turn, text in enumerate(said):
        if turn:
            conversation.tell(user("next"))
        conversation.answered(response(conversation.prompt, text, turn))
    return conversation


def test_turns_become_one_stream_in_which_answers_alone_are_learned() -> None:
    [made] = talk("plain", "one$", "two$").trajectories(0.5)
    assert text_of(made) == "<u>ask$\n<a>one$\n<u>next$\n<a>two$"
    assert learned(made) == "one$two$"
    first = len("<u>ask$\n<a>")
    assert made.logprobs[first : first + 4] == [-0.5, -1.5, -2.5, -3.5]
    assert made.versions[first : first + 5] == [0, 0, 0, 0, NOT_SAMPLED]
    assert made.versions[-4:] == [1] * 4
    assert (made.reward, made.truncated) == (0.5, False)
    assert made.text == "one\n[user] next\ntwo"


def test_an_answer_that_was_cut_off_is_ended_by_the_template() -> None:
    [made] = talk("plain", "one", "two").trajectories(1.0)
    assert text_of(made) == "<u>ask$\n<a>one$\n<u>next$\n<a>two"
    assert learned(made) == "onetwo"


def test_components_are_kept_and_the_last_turn_says_whether_it_was_cut() -> None:
    conversation = Conversation(Chat(Letters()), [user("ask")])
    conversation.answered(response(conversation.prompt, "on", 0, "length"))
    [made] = conversation.trajectories({"a": 1.0, "b": -0.25})
    assert (made.reward, made.components, made.truncated) == (0.75, {"a": 1.0, "b": -0.25}, True)


def test_white_space_that_a_template_trims_makes_no_other_history() -> None:
    [made] = talk("trimmed", " one $", "two$").trajectories(1.0)
    assert learned(made) == " one $two$"
    assert text_of(made) == "<u>ask$\n<a> one $\n<u>next$\n<a>two$"


def test_a_template_that_forgets_thinking_makes_a_line_for_each_turn() -> None:
    made = talk("forgetful", "hm/one$", "so/two$", "three$").trajectories(1.0)
    assert [text_of(t) for t in made] == [
        "<u>ask$\n<a>hm/one$",
        "<u>ask$\n<a>one$\n<u>next$\n<a>so/two$",
        "<u>ask$\n<a>one$\n<u>next$\n<a>two$\n<u>next$\n<a>three$",
    ]
    assert [learned(t) for t in made] == ["hm/one$", "so/two$", "three$"]


def test_a_template_that_writes_an_answer_otherwise_is_seen_too() -> None:
    assert [learned(t) for t in talk("marked", "one!$", "two$").trajectories(1.0)] == [
        "one!$",
        "two$",
    ]


def test_without_a_template_texts_are_joined() -> None:
    conversation = Conversation(Chat(Letters(), template=False), [user("ask:")])
    conversation.answered(response(conversation.prompt, "one"))
    conversation.tell({"role": "tool", "content": "[5]"})
    conversation.answered(response(conversation.prompt, "two$"))
    [made] = conversation.trajectories(1.0)
    assert (text_of(made), learned(made)) == ("ask:one[5]two$", "onetwo$")


def test_a_response_to_another_prompt_is_refused() -> None:
    conversation = talk("plain", "one$")
    with pytest.raises(WorkflowError, match="a response to 3 tokens is none to this turn's prompt"):
        conversation.answered(response([1, 2, 3], "x"))


def test_what_the_template_refuses_is_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^the tokenizer's chat template refuses .* no such role;"
    ):
        talk("plain", "one$").tell({"role": "refused", "content": ""})


def test_shared_turns_are_learned_once() -> None:
    root = Turn(None, [1], response([1], "a"))
    left = Turn(root, [2], response(prompt(root, [2]), "b"))
    right = Turn(root, [3, 4], response(prompt(root, [3, 4]), "c"))
    assert leaves([root, left, right]) == [left, right]
    made = right.trajectory(1.0, known={root, left})
    assert made.tokens == [1, ord("a"), 3, 4, ord("c")]
    assert made.loss_mask == [0, 0, 0, 0, 1]
    assert made.versions == [NOT_SAMPLED] * 4 + [0]
    assert made.logprobs == [0.0] * 4 + [-0.5]


turns = st.lists(
    st.tuples(
        st.integers(1, 12),  # tokens of the answer
        st.none() | st.integers(0, 11),  # aborted before this one
        st.lists(st.sampled_from(["user", "tool"]), min_size=1, max_size=3),  # told next
        st.text("ab /!$\n", max_size=8),
        st.booleans(),  # new weights meanwhile
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(turns, st.sampled_from(["plain", "trimmed", "forgetful", "marked"]))
def test_what_is_trained_is_what_the_engine_saw_and_sampled(script: Any, kind: str) -> None:
    async def play() -> tuple[Log, Conversation]:
        engine = Log(lambda request, serial: Sample(script[serial][0], abort_at=script[serial][1]))
        gconfig = GenerationHyperparameters(max_new_tokens=10)
        conversation = Conversation(Chat(Letters(kind)), [user("ask")])
        for version, (_, _, roles, text, is_new) in enumerate(script, 1):
            conversation.answered(await engine.agenerate(conversation.request(gconfig)))
            if is_new:
                await engine.update_weights(WeightUpdate(version, "", Probe((1, 2), (-1.0,), 1.0)))
            if version < len(script):
                conversation.tell(*({"role": role, "content": text} for role in roles))
        return engine, conversation

    engine, conversation = asyncio.run(play())
    log = iter(engine.log)
    for trajectory in conversation.trajectories(1.0):
        stream = list(zip(trajectory.tokens, trajectory.loss_mask, strict=True))
        done = 0
        while 1 in trajectory.loss_mask[done:]:
            asked, answer = next(log)
            n, m = len(asked), answer.output_len
            assert asked == trajectory.tokens[:n]
            assert not any(mask for _, mask in stream[done:n])
            assert stream[n : n + m] == [(token, 1) for token in answer.output_tokens]
            assert trajectory.logprobs[n : n + m] == answer.output_logprobs
            assert trajectory.versions[n : n + m] == answer.output_versions
            done = n + m
        assert done == len(stream)
    assert next(log, None) is None, "each answer is learned once"
