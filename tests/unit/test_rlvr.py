"""One question, n answers, one reward each: the workflow over a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from training_support import algorithm

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import EngineError, Unscorable
from arealite.rewards.scorer import Scorer
from arealite.types import (
    Completion,
    Episode,
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
)
from workflows.rlvr import RLVRWorkflow


class Tokenizer:
    """One token per character."""

    eos_token_id, pad_token_id = 10, 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens  # the template has written them already
        return [ord(c) for c in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return "".join(map(chr, ids))

    def apply_chat_template(
        self, messages: list[Mapping[str, str]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert (tokenize, add_generation_prompt) == (False, True)
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


class Recorder(ScriptedEngine):
    """Keeps the requests."""

    seen: list[ModelRequest]

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        self.seen = [*getattr(self, "seen", []), request]
        return await super().agenerate(request)


async def _length(solution: str, truth: Any) -> float:
    return float(len(solution))


def _play(data: dict[str, Any], engine: ScriptedEngine | None = None, **options: Any) -> Any:
    options = {"reward_fn": _length, "gconfig": GenerationHyperparameters(n_samples=3)} | options
    workflow = RLVRWorkflow(tokenizer=Tokenizer(), **options)
    return asyncio.run(workflow.arun_episode(engine or Recorder(), data))


ROW = {"query": "2+2?", "answer": "4"}


def test_n_samples_become_n_trajectories() -> None:
    engine = Recorder(lambda request, serial: Sample(length=serial + 2))
    made = _play(ROW, engine)
    assert [t.reward for t in made] == [2.0, 3.0, 4.0]
    prompt = [ord(c) for c in "<user>2+2?<assistant>"]
    for trajectory in made:
        assert trajectory.tokens[: len(prompt)] == prompt
        assert trajectory.loss_mask == [0] * len(prompt) + [1] * trajectory.sampled
        assert len(trajectory.text) == trajectory.sampled


def test_the_group_asks_with_one_prompt_one_id_and_one_sample_each() -> None:
    engine = Recorder()
    _play(ROW, engine)
    assert len({r.rid for r in engine.seen}) == 1
    assert {r.gconfig.n_samples for r in engine.seen} == {1}
    assert {r.gconfig.stop_token_ids for r in engine.seen} == {(0, 10)}
    assert len({tuple(r.input_ids) for r in engine.seen}) == 1


@pytest.mark.parametrize(
    ("data", "options", "prompt"),
    [
        (ROW, {"chat": False}, "2+2?"),
        (ROW, {"system": "be brief"}, "<system>be brief<user>2+2?<assistant>"),
        ({"query": [{"role": "user", "content": "hi"}], "answer": ""}, {}, "<user>hi<assistant>"),
        (
            {"query": [{"role": "user", "content": "hi"}], "answer": ""},
            {"chat": False},
            "<user>hi<assistant>",
        ),
        ({"question": "x", "answer": ""}, {"prompt_key": "question"}, "<user>x<assistant>"),
    ],
)
def test_the_prompts_forms(data: dict[str, Any], options: dict[str, Any], prompt: str) -> None:
    engine = Recorder()
    _play(data, engine, **options)
    assert "".join(map(chr, engine.seen[0].input_ids)) == prompt


def test_the_truth_is_a_column_or_the_whole_row() -> None:
    truths: list[Any] = []

    async def keep(solution: str, truth: Any) -> float:
        truths.append(truth)
        return 0.0

    _play(ROW, reward_fn=keep)
    _play(ROW, reward_fn=keep, answer_key=None)
    assert truths == ["4"] * 3 + [ROW] * 3


class Group:
    """A reward that sees the whole group, as arealite.rewards.compose.Composed does."""

    def __init__(self, outcomes: list[Any]) -> None:
        self.outcomes = outcomes

    async def group(self, completions: list[Completion]) -> list[Any]:
        self.seen = completions
        return self.outcomes

    def check_row(self, row: Mapping[str, Any]) -> None:
        if "level" not in row:
            raise ValueError("no column 'level'")


def test_the_reward_sees_the_group_with_prompt_ids_and_row() -> None:
    reward = Group([1.0, Unscorable("no"), {"a": 1.0, "b": 2.0}])
    made = _play(ROW, Recorder(_grow), reward_fn=reward)
    assert [(t.reward, t.sampled, t.components) for t in made] == [
        (1.0, 2, {}),
        (3.0, 4, {"a": 1.0, "b": 2.0}),
    ]
    text = "<user>2+2?<assistant>"
    for completion, length in zip(reward.seen, (2, 3, 4), strict=True):
        assert len(completion.text) == len(completion.completion_ids) == length
        assert (completion.ground_truth, completion.row) == ("4", ROW)
        assert (completion.prompt, completion.prompt_text) == ("2+2?", text)
        assert completion.prompt_ids == [ord(c) for c in text]


def test_a_row_that_the_reward_cannot_take_is_refused_at_the_start() -> None:
    options: dict[str, Any] = {"gconfig": GenerationHyperparameters(), "tokenizer": Tokenizer()}
    workflow = RLVRWorkflow(reward_fn=Group([]), **options)
    workflow.check_row({**ROW, "level": 1})
    with pytest.raises(ValueError, match="no column 'level'"):
        workflow.check_row(ROW)


def test_named_rewards_travel_as_components() -> None:
    scorer = Scorer(lambda s, t: {"format": 0.1, "right": 0.9}, "r")
    assert _play(ROW, reward_fn=scorer)[0].components == {"format": 0.1, "right": 0.9}


def test_failures_of_engine_and_reward_are_not_numbers() -> None:
    failing = ScriptedEngine(lambda r, serial: Sample(outcome="fail" if serial == 1 else "answer"))
    with pytest.raises(EngineError, match="request 1"):
        _play(ROW, failing)
    with pytest.raises(Unscorable):
        _play(ROW, reward_fn=Scorer(lambda s, t: None, "r"))


def _but(*unscorable: int) -> Scorer:
    """The square of the text's length as its score; none for these lengths."""

    def score(solution: str, truth: Any) -> float:
        if len(solution) in unscorable:
            raise ValueError(f"length {len(solution)}")
        return float(len(solution) ** 2)

    return Scorer(score, "r")


def _grow(request: ModelRequest, serial: int) -> Sample:
    return Sample(length=serial + 2)


def test_a_sample_without_a_score_is_out_of_its_groups_baseline() -> None:
    gconfig = GenerationHyperparameters(n_samples=4)
    kept = _play(ROW, Recorder(_grow), reward_fn=_but(3), gconfig=gconfig)
    assert [t.reward for t in kept] == [4.0, 16.0, 25.0]
    for adv_norm in ("none", "group"):
        rule = algorithm(adv_norm=adv_norm)
        [without] = rule.credit([Episode("0:0", 0, tuple(kept))])
        # by hand: mean 15, variance (121 + 1 + 100) / 3 = 74
        scale = 74**0.5 if adv_norm == "group" else 1.0
        assert without == pytest.approx([-11 / scale, 1 / scale, 10 / scale], rel=1e-5)
        alone = _play(ROW, Recorder(_grow), gconfig=gconfig, reward_fn=_but())
        three = Episode("0:0", 0, tuple(t for t in alone if t.reward != 9.0))
        assert without == pytest.approx(rule.credit([three])[0], abs=1e-12)


@pytest.mark.parametrize(
    ("n", "unscorable", "left"),
    [(1, (), 1), (1, (2,), None), (2, (2,), None), (3, (3,), 2), (3, (2, 4), None)],
)
def test_a_group_needs_two_scores(n: int, unscorable: tuple[int, ...], left: int | None) -> None:
    options = {"gconfig": GenerationHyperparameters(n_samples=n), "reward_fn": _but(*unscorable)}
    if left is None:
        with pytest.raises(Unscorable, match=f"length {unscorable[0]}"):
            _play(ROW, Recorder(_grow), **options)
    else:
        assert len(_play(ROW, Recorder(_grow), **options)) == left


def test_a_failure_of_another_kind_costs_the_episode() -> None:
    async def judge(solution: str, truth: Any) -> float:
        if len(solution) == 3:
            raise EngineError("the judge is gone")
        return 1.0

    with pytest.raises(EngineError, match="the judge is gone"):
        _play(ROW, Recorder(_grow), reward_fn=judge)


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (
            {"prompt": "x", "answer": ""},
            {},
            "there is no column 'query', which prompt_key of rollout.workflow_kwargs names; its "
            "columns are prompt, answer",
        ),
        ({"query": "x"}, {}, "there is no column 'answer', which answer_key of rollout.workflow_"),
        ({"query": None, "answer": ""}, {}, "the column 'query' holds None; a prompt is text or a"),
        ({"query": 7, "answer": ""}, {"chat": False}, "the column 'query' holds 7; a prompt is te"),
        (
            {"query": [{"role": "user"}], "answer": ""},
            {},
            "the tokenizer's chat template refuses the prompt: 'content'; change the row or ",
        ),
    ],
)
def test_a_row_that_cannot_be_played_is_told_by_its_check_and_by_its_episode(
    data: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError) as played:
        _play(data, **options)
    workflow = RLVRWorkflow(_length, GenerationHyperparameters(), Tokenizer(), **options)
    workflow.check_row(ROW)
    with pytest.raises(ValueError) as checked:
        workflow.check_row(data)
    assert str(played.value) == str(checked.value)
    assert str(checked.value).startswith(says)


def test_a_tokenizer_without_a_chat_template_is_told() -> None:
    class Plain(Tokenizer):
        chat_template = None

    RLVRWorkflow(_length, GenerationHyperparameters(), Plain(), chat=False).check_row(ROW)
    with pytest.raises(ValueError, match=r"no chat template; give text .*workflow_kwargs.chat=fal"):
        RLVRWorkflow(_length, GenerationHyperparameters(), Plain()).check_row(ROW)
