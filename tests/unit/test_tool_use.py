"""Tools inside an answer: over engines that follow a script, with one token per character."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conversation import Letters, learned, response, text_of

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import ConfigError, EngineError, EpisodeError, Unscorable, WorkflowError
from arealite.protocols import Closes
from arealite.types import (
    NOT_SAMPLED,
    Completion,
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    Probe,
    Trajectory,
    WeightUpdate,
)
from workflows.tool_use import ToolUseWorkflow
from workflows.tools import ToolLimits, Tools

ROW = {"query": "2*3?", "answer": "6"}
CALL = "<calculator>2*3</calculator>"


class Says:
    """One sample says these parts in turn; '.' at an end: it was cut off there."""

    def __init__(self, *parts: str) -> None:
        self.parts, self.seen = list(parts), list[ModelRequest]()

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        part = self.parts[len(self.seen)]
        self.seen.append(request)
        stop = "length" if part.endswith(".") else "stop"
        return response(request.input_ids, part.rstrip("."), len(self.seen), stop)


class Scores:
    """Gives 1 for everything, and keeps what it was asked about."""

    def __init__(self) -> None:
        self.seen: list[Completion] = []

    async def group(self, completions: list[Completion]) -> list[float]:
        self.seen += completions
        return [1.0] * len(completions)


def play(engine: Any, n: int = 1, new: int = 200, **options: Any) -> Any:
    scores = Scores()
    gconfig = GenerationHyperparameters(n_samples=n, max_new_tokens=new)
    workflow = ToolUseWorkflow(scores, gconfig, Letters(), **options)  # type: ignore[arg-type]
    return asyncio.run(workflow.arun_episode(engine, ROW)), scores.seen


def test_the_output_stands_behind_the_call_and_is_not_learned() -> None:
    engine = Says(f"so {CALL}", " is 6$")
    [made], [scored] = play(engine)
    assert text_of(made) == f"<u>2*3?$\n<a>so {CALL}<output>6</output> is 6$"
    assert learned(made) == f"so {CALL} is 6$"
    first = len("<u>2*3?$\n<a>")
    call, output = len(f"so {CALL}"), len("<output>6</output>")
    assert made.versions[first:] == [1] * call + [NOT_SAMPLED] * output + [2] * 6
    assert made.logprobs[first + call + output :] == [-0.5 - i for i in range(6)]
    assert engine.seen[1].input_ids == made.tokens[: first + call + output]
    assert scored.text == made.text == f"so {CALL}<output>6</output> is 6"
    assert scored.completion_ids == made.tokens[first:]
    assert "</calculator>" in engine.seen[0].gconfig.stop


def test_a_group_asks_its_first_part_as_one() -> None:
    class Ends(Says):
        async def agenerate(self, request: ModelRequest) -> ModelResponse:
            self.seen.append(request)
            return response(request.input_ids, "6$")

    engine = Ends()
    made, _ = play(engine, n=3)
    assert len(made) == 3
    assert len({r.rid for r in engine.seen}) == 1


@pytest.mark.parametrize(
    ("expression", "output"),
    [
        (" (7 - 3) * 6 ", "24"),
        ("8 / 3", "8/3"),
        ("3 / 0", "error: division by zero"),
        ("", "error: empty"),
        ("2**9", "error: an operator other than + - * /"),
        ("__import__('os')", "error: characters other than digits, + - * / and brackets"),
    ],
)
def test_the_calculator_is_exact_and_says_what_it_cannot_do(expression: str, output: str) -> None:
    [made], _ = play(Says(f"<calculator>{expression}</calculator>", "$"))
    assert made.text.endswith(f"</calculator><output>{output}</output>")


def test_a_closing_tag_alone_is_told() -> None:
    [made], _ = play(Says("3</calculator>", "$"))
    assert made.text.endswith("<output>error: </calculator> without <calculator></output>")


def test_a_call_beyond_max_calls_ends_the_answer(tmp_path: Path) -> None:
    tool = own(tmp_path, "heard = []\nasync def say(text): heard.append(text); return text")
    engine = Says("<say>1</say>", "<say>2</say>", "<say>3</say>")
    [made], _ = play(engine, max_calls=1, tools=[tool])
    assert made.text == "<say>1</say><output>1</output><say>2</say>"
    assert (len(engine.seen), made.truncated) == (2, False)
    assert sys.modules[Path(tool.partition(":")[0]).stem].heard == ["1"]


def test_an_answer_has_as_many_tokens_as_it_may_have_with_its_outputs() -> None:
    # The call has 28 characters, its output 18.
    engine = Says(CALL, "six.")
    [made], _ = play(engine, new=49)
    assert [r.gconfig.max_new_tokens for r in engine.seen] == [49, 3]
    assert made.truncated
    engine = Says(CALL, "never")
    [made], _ = play(engine, new=28 + 18)
    assert (made.text, made.truncated) == (CALL, True)
    assert len(engine.seen) == 1, "nothing fits behind the output"


def test_with_a_context_length_each_part_has_its_own_limit() -> None:
    engine = Says(CALL, CALL, "$")
    play(engine, new=30, context_length=12 + 2 * (28 + 18) + 5)
    assert [r.gconfig.max_new_tokens for r in engine.seen] == [30, 30, 5]


def test_what_a_server_samples_behind_the_call_is_left_out() -> None:
    """One that looks for stop strings in too few tokens goes on, and may invent the output."""
    [made], _ = play(Says(f"{CALL}<output>7</output> so 7$", " is 6$"))
    assert learned(made) == f"{CALL} is 6$"
    assert made.text == f"{CALL}<output>6</output> is 6"


def test_a_stop_string_of_the_configuration_ends_the_answer() -> None:
    engine = Says("6 END and on$")
    gconfig = GenerationHyperparameters(max_new_tokens=99, stop=("END",))
    workflow = ToolUseWorkflow(Scores(), gconfig, Letters())  # type: ignore[arg-type]
    [made] = asyncio.run(workflow.arun_episode(engine, ROW))
    assert made.text == "6 END"


def test_long_outputs_are_cut(tmp_path: Path) -> None:
    tool = own(tmp_path, "async def say(text): return 'x' * 100")
    [made], _ = play(Says("<say>3</say>", "$"), tools=[tool], most_output=5)
    assert made.text.endswith("<output>xxxxx...</output>")


def own(folder: Path, text: str, name: str = "say") -> str:
    path = folder / f"tool_{abs(hash((str(folder), text)))}.py"
    path.write_text(f"import asyncio, os\nfrom arealite.errors import EngineError\n{text}\n")
    return f"{path}:{name}"


def run(tools: Any, text: str, timeout_s: float = 5.0) -> str:
    opened = Tools(tools, ToolLimits(timeout_s))
    try:
        return asyncio.run(opened.run(opened.names[-1], text))
    finally:
        opened.close()


def test_a_function_of_ones_own_is_a_tool(tmp_path: Path) -> None:
    tool = own(tmp_path, "async def say(text): return text.upper()")
    assert run([tool], "ab") == "AB"
    [made], _ = play(Says("<loud>ab</loud>", "$"), tools={"loud": tool})
    assert made.text == "<loud>ab</loud><output>AB</output>"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise KeyError(text)", "error: KeyError: 'ab'"),
        ("await asyncio.sleep(60)", "error: no result within 0.05 s"),
        ("raise TimeoutError('of its own')", "error: TimeoutError: of its own"),
    ],
)
def test_a_tool_that_fails_says_so_to_the_model(tmp_path: Path, code: str, said: str) -> None:
    assert run([own(tmp_path, f"async def say(text): {code}")], "ab", 0.05) == said


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise EngineError('no judge')", EngineError),
        ("return 5", WorkflowError),
    ],
)
def test_what_is_not_the_tools_fault_is_an_episodes_failure(
    tmp_path: Path, code: str, error: type[EpisodeError]
) -> None:
    tool = own(tmp_path, f"async def say(text): {code}")
    with pytest.raises(error):
        play(Says("<say>3</say>", "$"), tools=[tool])


def test_a_sample_without_a_score_is_left_out() -> None:
    async def odd(solution: str, truth: Any) -> float:
        if "<output>" in solution:
            raise Unscorable("it has one", "exception")
        return 1.0

    class Some(Says):
        async def agenerate(self, request: ModelRequest) -> ModelResponse:
            self.seen.append(request)
            return response(request.input_ids, CALL if len(self.seen) == 1 else "6$")

    gconfig = GenerationHyperparameters(n_samples=3, max_new_tokens=99)
    workflow = ToolUseWorkflow(odd, gconfig, Letters())
    assert len(asyncio.run(workflow.arun_episode(Some(), ROW))) == 2


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        (["abacus"], "there is no 'abacus'; calculator"),
        (["output", "calculator"], "'output' is no name for a tag"),
        ({"a b": "calculator"}, "'a b' is no name for a tag"),
        (["calculator", "calculator"], "two tools have one name"),
        (["json:dumps2"], "json has no 'dumps2'"),
        (["nowhere.py:say"], "there is no such file"),
    ],
)
def test_tools_that_cannot_be_are_one_sentence(tools: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Tools(tools)


@pytest.mark.parametrize("options", [{"max_calls": -1}, {"most_output": 0}])
def test_settings_that_cannot_be_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"max_calls is .* most_output"):
        play(Says("$"), **options)
    with pytest.raises(ConfigError, match=r"tool_limits.timeout_s is 0, it must be above 0"):
        play(Says("$"), tool_limits={"timeout_s": 0})


def test_the_end_of_the_workflow_ends_its_processes() -> None:
    async def score(solution: str, truth: Any) -> float:
        return float("<output>6</output>" in solution)

    class Engine:
        async def agenerate(self, request: ModelRequest) -> ModelResponse:
            is_told = "<output>" in "".join(map(chr, request.input_ids))
            said = "$" if is_told else "<python>\nprint(2 * 3)\n</python>"
            return response(request.input_ids, said)

    gconfig = GenerationHyperparameters(n_samples=2, max_new_tokens=99)
    workflow = ToolUseWorkflow(score, gconfig, Letters(), tools=["python"])
    assert isinstance(workflow, Closes)
    [pool] = workflow.tools._pools

    async def play() -> list[Trajectory]:
        try:
            return await workflow.arun_episode(Engine(), {"query": "2*3?", "answer": "6"})
        finally:
            await workflow.aclose()

    assert [t.reward for t in asyncio.run(play())] == [1.0, 1.0]
    assert pool._template.process.poll() is not None


class Log(ScriptedEngine):
    """Samples what the script says, and keeps what it was asked and what it sampled."""

    def __init__(self, said: list[str], script: Callable[..., Sample]) -> None:
        super().__init__(script, seed=1)
        self.said, self.log = said, list[tuple[list[int], ModelResponse]]()

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        text = self.said[self.requests]
        answer = await super().agenerate(request)
        tokens = [ord(c) for c in text][: answer.output_len]
        answer = ModelResponse(
            answer.input_tokens, tokens, answer.output_logprobs, answer.output_versions,
            answer.stop_reason,
        )  # fmt: skip
        self.log.append((list(request.input_ids), answer))
        return answer


parts = st.lists(
    st.tuples(
        st.text("ab 1+*/<$\n", max_size=6),  # before the call
        st.text("1234+*/() ", max_size=8),  # what the calculator is asked
        st.none() | st.integers(0, 30),  # aborted before this token
        st.booleans(),  # new weights while it is sampled
        st.text("ab<", max_size=3),  # what a server samples behind the stop string
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(parts, st.integers(0, 6), st.integers(20, 300))
def test_what_is_trained_is_what_the_engine_saw_and_sampled(
    script: Any, max_calls: int, new: int
) -> None:
    said = [f"{text}<calculator>{asked}</calculator>{more}" for text, asked, _, _, more in script]
    kept = [len(text) - len(part[4]) for text, part in zip(said, script, strict=True)]
    said.append("the end$")
    kept.append(8)

    async def drive() -> tuple[Log, Any]:
        def sample(request: ModelRequest, serial: int) -> Sample:
            at = script[serial][2] if serial < len(script) else None
            return Sample(len(said[serial]), token_s=1e-6, abort_at=at)

        engine = Log(said, sample)
        gconfig = GenerationHyperparameters(max_new_tokens=new)
        workflow = ToolUseWorkflow(Scores(), gconfig, Letters(), max_calls=max_calls)  # type: ignore[arg-type]
        playing = asyncio.ensure_future(workflow.arun_episode(engine, ROW))
        for version, part in enumerate(script, 1):
            await asyncio.sleep(0)
            if part[3]:
                await engine.update_weights(WeightUpdate(version, "", Probe((1, 2), (-1.0,), 1.0)))
        return engine, await playing

    engine, [made] = asyncio.run(drive())
    stream, done = list(zip(made.tokens, made.loss_mask, strict=True)), 0
    for number, (asked, answer) in enumerate(engine.log):
        n, m = len(asked), min(kept[number], answer.output_len)
        assert asked == made.tokens[:n], "it saw all that came before"
        assert not any(mask for _, mask in stream[done:n])
        assert made.versions[done:n] == [NOT_SAMPLED] * (n - done)
        assert stream[n : n + m] == [(token, 1) for token in answer.output_tokens[:m]]
        assert made.logprobs[n : n + m] == answer.output_logprobs[:m]
        assert made.versions[n : n + m] == answer.output_versions[:m]
        done = n + m
    assert done == len(stream)
    assert done <= len(engine.log[0][0]) + new
    assert len(engine.log) <= max_calls + 1
