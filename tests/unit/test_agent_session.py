"""What an agent's requests become: a tree of turns in which each sampled token is learned once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import Letters, Speaker, learned, response, text_of, user

from arealite.agents.asked import Answer, Asked
from arealite.agents.session import Session
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse, Trajectory

GCONFIG = GenerationHyperparameters(max_new_tokens=10)


def said(text: str) -> Mapping[str, str]:
    return {"role": "assistant", "content": text}


def asked_in_order(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    texts: Sequence[str],
    kind: str = "plain",
    names: Sequence[str] = (),
) -> tuple[Session, list[str]]:
    """The session after these requests, one after another, and its answers' ids."""
    engine = Speaker(lambda prompt, serial: texts[serial])

    async def play() -> tuple[Session, list[str]]:
        session = Session(engine, Letters(kind), GCONFIG)
        ids = []
        for i, messages in enumerate(conversations):
            asked = Asked(messages, name=names[i] if names else "", prefix=f"{i}-")
            ids.append((await session.ask(asked)).id)
        return session, ids

    return asyncio.run(play())


A, B, C = user("a"), user("b"), user("c")


def test_a_fork_shares_the_turns_before_it() -> None:
    session, _ = asked_in_order([[A], [A, said("1"), B], [A, said("1"), C]], ["1$", "2$", "3$"])
    made = session.trajectories(1.0)
    assert [text_of(t) for t in made] == [
        "<u>a$\n<a>1$\n<u>b$\n<a>2$",
        "<u>a$\n<a>1$\n<u>c$\n<a>3$",
    ]
    assert [learned(t) for t in made] == ["1$2$", "3$"]
    assert [t.text for t in made] == ["1\n[user] b\n2", "1\n[user] c\n3"]


def test_a_history_that_was_rewritten_is_a_prompt() -> None:
    session, _ = asked_in_order([[A], [A, said("other"), B], [C]], ["1$", "2$", "3$"])
    made = session.trajectories(1.0)
    assert [text_of(t) for t in made] == [
        "<u>a$\n<a>1$",
        "<u>a$\n<a>other$\n<u>b$\n<a>2$",
        "<u>c$\n<a>3$",
    ]
    assert [learned(t) for t in made] == ["1$", "2$", "3$"]


def test_what_the_agent_writes_as_the_models_is_given() -> None:
    """Behind an answer of ours: it is context, and ours is still not tokenised again."""
    session, _ = asked_in_order([[A], [A, said("1"), B, said("mine"), C]], ["1$", "2$"])
    [made] = session.trajectories(1.0)
    assert text_of(made) == "<u>a$\n<a>1$\n<u>b$\n<a>mine$\n<u>c$\n<a>2$"
    assert learned(made) == "1$2$"


def test_where_the_last_answer_was_rewritten_the_one_before_is_gone_on_from() -> None:
    """The template leaves out the second answer's thinking; the first had none."""
    session, _ = asked_in_order(
        [[A], [A, said("1"), B], [A, said("1"), B, said("so/2"), C]],
        ["1$", "so/2$", "3$"],
        "forgetful",
    )
    made = session.trajectories(1.0)
    assert [text_of(t) for t in made] == [
        "<u>a$\n<a>1$\n<u>b$\n<a>so/2$",
        "<u>a$\n<a>1$\n<u>b$\n<a>2$\n<u>c$\n<a>3$",
    ]
    assert [learned(t) for t in made] == ["1$so/2$", "3$"]


def test_white_space_around_an_answer_makes_no_other_history() -> None:
    session, _ = asked_in_order([[A], [A, said("1"), B]], [" 1\n$", "2$"])
    [made] = session.trajectories(1.0)
    assert learned(made) == " 1\n$2$"


def test_equal_answers_to_equal_requests_are_learned_each() -> None:
    session, _ = asked_in_order([[A], [A], [A, said("1"), B]], ["1$", "1$", "2$"])
    assert [learned(t) for t in session.trajectories(1.0)] == ["1$", "1$2$"]


def test_names_are_conversations_of_their_own() -> None:
    session, _ = asked_in_order([[A], [A, said("1"), B]], ["1$", "2$"], names=["x", "y"])
    made = session.trajectories(1.0)
    assert [(t.name, learned(t)) for t in made] == [("x", "1$"), ("y", "2$")]


def rewarded(session: Session, ids: Sequence[str], *rewards: float | None) -> list[float]:
    given = {i: r for i, r in zip(ids, rewards, strict=True) if r is not None}
    return [t.reward for t in session.trajectories(given, turn_discount=0.5)]


def test_a_return_is_the_reward_and_the_discounted_return_of_what_follows() -> None:
    """By hand: 8; 2 + 0.5 x 8 = 6; 0 + 0.5 x 6 = 3."""
    session, ids = asked_in_order(
        [[A], [A, said("1"), B], [A, said("1"), B, said("2"), C]], ["1$", "2$", "3$"]
    )
    assert rewarded(session, ids, None, 2.0, 8.0) == [3.0, 6.0, 8.0]
    made = session.trajectories({ids[2]: 1.0})
    assert [learned(t) for t in made] == ["1$", "2$", "3$"]
    assert text_of(made[2]) == "<u>a$\n<a>1$\n<u>b$\n<a>2$\n<u>c$\n<a>3$"


def test_what_follows_is_the_conversation_also_where_the_template_rewrites_it() -> None:
    """A fork's returns count with their mean: 0.5 x (4 + 8) / 2 = 3."""
    session, ids = asked_in_order(
        [[A], [A, said("so/1"), B], [A, said("so/1"), C]], ["so/1$", "2$", "3$"], "forgetful"
    )
    assert rewarded(session, ids, None, 4.0, 8.0) == [3.0, 4.0, 8.0]


def test_a_history_that_is_not_known_follows_the_last_answer_of_its_name() -> None:
    conversations = [[A], [B], [user("summary")], [C]]
    session, ids = asked_in_order(
        conversations, ["1$", "2$", "3$", "4$"], names=["x", "y", "x", "z"]
    )
    assert rewarded(session, ids, None, 1.0, 8.0, 2.0) == [4.0, 1.0, 8.0, 2.0]


def test_an_answer_waits_for_no_other() -> None:
    """The later request is answered first: the tree is that of the requests."""
    first, ended = asyncio.Event(), []

    class Slow(Speaker):
        async def agenerate(self, request: ModelRequest) -> ModelResponse:
            if not self.requests:
                self.requests.append(request)
                await first.wait()
                return response(request.input_ids, "slow$")
            return await super().agenerate(request)

    async def play() -> Session:
        session = Session(Slow(lambda prompt, serial: "fast$"), Letters(), GCONFIG)
        slow = session.ask(Asked([A]))
        slow.add_done_callback(lambda task: ended.append("slow"))
        await asyncio.sleep(0)
        await session.ask(Asked([A]))
        first.set()
        await slow
        return session

    assert [learned(t) for t in asyncio.run(play()).trajectories(1.0)] == ["fast$", "slow$"]


# --- any tree of requests

Step = tuple[str, int, int, str]
steps = st.lists(
    st.tuples(
        st.sampled_from(["goes on", "forks", "cuts", "rewrites", "puts in", "begins", "again"]),
        st.integers(0, 20),  # which conversation so far
        st.integers(0, 20),  # where in it
        st.text("ab /!$\n", max_size=4),  # told, or put in
    ),
    min_size=1,
    max_size=10,
)
answers = st.lists(st.text("ab /!$\n", min_size=1, max_size=12), min_size=10, max_size=10)


def next_request(past: Sequence[list[Any]], step: Step) -> list[Any]:
    """What such an agent asks next. past: conversations with the answers it was given."""
    what, which, where, text = step
    if not past or what == "begins":
        return [user(text)]
    messages = list(past[which % len(past)])
    spot = where % len(messages)
    if what == "again":
        return messages[:-1]
    if what == "forks":  # goes on from an earlier answer
        messages = messages[: 2 * (spot // 2) + 2]
    if what == "cuts":  # the oldest messages are forgotten
        messages = messages[spot:]
    if what == "rewrites":
        messages[spot] = {**messages[spot], "content": text}
    if what == "puts in":
        messages.insert(spot, said(text))
    return [*messages, user(text)]


@settings(max_examples=300, deadline=None)
@given(steps, answers, st.sampled_from(["plain", "trimmed", "forgetful", "marked"]))
def test_each_sampled_token_is_learned_once_behind_what_the_engine_saw(
    script: Sequence[Step], texts: Sequence[str], kind: str
) -> None:
    engine, asked = Speaker(lambda prompt, serial: texts[serial]), list[str]()

    async def play() -> tuple[Session, list[Answer]]:
        session, past, found = Session(engine, Letters(kind), GCONFIG), [], []
        for version, step in enumerate(script):
            engine.version = version
            messages = next_request(past, step)
            asked.append(Letters(kind).apply_chat_template(messages))
            found.append(await session.ask(Asked(messages, prefix="c-")))
            past.append([*messages, said(found[-1].content)])
        return session, found

    session, found = asyncio.run(play())
    prompts = ["".join(map(chr, log.input_tokens)) for log in engine.log]
    assert [_words(text) for text in prompts] == [_words(text) for text in asked]
    at_end = session.trajectories(1.0)
    assert _learned_of(at_end) == _sampled(engine)
    for made in at_end:
        _is_of_the_engine(made, engine)
    each = session.trajectories({found[0].id: 1.0})
    assert _learned_of(each) == _sampled(engine)
    for made, log in zip(each, engine.log, strict=True):
        assert made.tokens == [*log.input_tokens, *log.output_tokens]
        assert made.sampled == log.output_len


def _words(text: str) -> str:
    """White space at an answer's ends, and a second end of it, are no other conversation."""
    return re.sub(r"[\s$]", "", text)


def _sampled(engine: Speaker) -> list[tuple[int, float, int]]:
    """Each token once: the version tells which request it was."""
    return sorted(
        (version, -logprob, token)
        for log in engine.log
        for token, logprob, version in zip(
            log.output_tokens, log.output_logprobs, log.output_versions, strict=True
        )
    )


def _learned_of(made: Sequence[Trajectory]) -> list[tuple[int, float, int]]:
    return sorted(
        (version, -logprob, token)
        for t in made
        for token, logprob, version, mask in zip(
            t.tokens, t.logprobs, t.versions, t.loss_mask, strict=True
        )
        if mask
    )


def _is_of_the_engine(made: Trajectory, engine: Speaker) -> None:
    """Wherever its tokens are learned, the engine was asked what stands before them."""
    for log in engine.log:
        version = log.output_versions[0]
        if version in made.versions:
            start = made.versions.index(version)
            assert made.tokens[:start] == list(log.input_tokens)
            assert made.tokens[start : start + log.output_len] == list(log.output_tokens)
            assert made.loss_mask[start : start + log.output_len] == [1] * log.output_len


@pytest.mark.parametrize("kind", ["plain", "forgetful"])
def test_the_tokens_of_old_answers_are_never_made_anew(kind: str) -> None:
    """The template's text would be other tokens: Letters has one spelling, this tokenizer two."""

    class Pairs(Letters):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1000 if pair == "oo" else ord(pair) for pair in _pairs(text)]

        def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
            return "".join(
                "oo" if i == 1000 else super(Pairs, self).decode([i], skip_special_tokens)
                for i in ids
            )

    async def play() -> Session:
        session = Session(Speaker(lambda prompt, serial: "foo$"), Pairs(kind), GCONFIG)
        await session.ask(Asked([A]))
        await session.ask(Asked([A, said("foo"), user("moo")]))
        return session

    [made] = asyncio.run(play()).trajectories(1.0)
    told = [1000 if p == "oo" else ord(p) for p in _pairs("\n<u>moo$\n<a>")]
    spelt = [ord(c) for c in "foo$"]  # as sampled, letter by letter
    assert made.tokens == [*(ord(c) for c in "<u>a$\n<a>"), *spelt, *told, *spelt]


def _pairs(text: str) -> list[str]:
    found: list[str] = []
    for letter in text:
        if letter == "o" and found and found[-1] == "o":
            found[-1] = "oo"
        else:
            found.append(letter)
    return found
