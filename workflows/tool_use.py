"""Tools inside an answer: the model calls one by its tag, and reads what it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arealite.agents.turns import Turn, fitted, prompt
from arealite.engines.stops import first_end, found_in
from arealite.errors import Unscorable
from arealite.rewards.scorer import Scoring, score_group
from arealite.telemetry.waits import together
from arealite.types import (
    Completion,
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    Trajectory,
)
from workflows.rlvr import RLVRWorkflow
from workflows.tools import ToolLimits, Tools

OUTPUT = "<output>{}</output>"


class ToolUseWorkflow(RLVRWorkflow):
    """As RLVRWorkflow; where the model writes `<calculator>3 * 4</calculator>`, the tool of this
    name runs, `<output>12</output>` is put behind it, and the model goes on.

    tools, tool_limits: which there are, and what one call may take, see workflows.tools. What a
    tool says is context and is not learned; the answer that is scored is the whole text, outputs
    and all. gconfig.max_new_tokens is the limit of each part between two outputs, and
    context_length, rollout.context_length, that of prompt and answer with all outputs (null: the
    prompt and gconfig.max_new_tokens). A call after the first max_calls ends the answer, and so
    does one whose output has no room. most_output: characters of an output; the rest is cut off.
    """

    def __init__(
        self,
        reward_fn: Scoring | Callable[[str, Any], Awaitable[Any]],
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        tools: Sequence[str] | Mapping[str, str] = ("calculator",),
        max_calls: int = 8,
        most_output: int = 1000,
        tool_limits: Mapping[str, Any] | None = None,
        context_length: int | None = None,
        prompt_key: str = "query",
        answer_key: str | None = "answer",
        system: str | None = None,
        chat: bool = True,
    ) -> None:
        if max_calls < 0 or most_output < 1:
            raise ValueError(
                f"max_calls is {max_calls} and most_output {most_output}; they must be at least 0 "
                "and at least 1"
            )
        self.tools = Tools(tools, ToolLimits(**(tool_limits or {})))
        self.closing = {f"</{name}>": name for name in self.tools.names}
        gconfig = gconfig.new(stop=(*gconfig.stop, *self.closing))
        super().__init__(reward_fn, gconfig, tokenizer, prompt_key, answer_key, system, chat)
        self.max_calls, self.most_output = max_calls, most_output
        self.context_length = context_length

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        text, truth = self.prompt_text(data), self.truth(data)
        request = ModelRequest(self.chat.encode(text), self.one)
        n, start = self.gconfig.n_samples, len(request.input_ids)
        turns = await together(self._answered(engine, request, text) for _ in range(n))
        completions = [
            Completion(
                text="".join(turn.parts[1:]),
                ground_truth=truth,
                prompt=data[self.prompt_key],
                prompt_text=text,
                prompt_ids=request.input_ids,
                completion_ids=prompt(turn, ())[start:],
                row=data,
            )
            for turn in turns
        ]
        scores = await score_group(self.reward_fn, completions)
        # As in RLVRWorkflow: a sample without a score is left out of the others' baseline.
        trajectories = [
            turn.trajectory(score, completion.text)
            for turn, score, completion in zip(turns, scores, completions, strict=True)
            if not isinstance(score, Unscorable)
        ]
        if len(trajectories) < min(2, n):
            raise next(score for score in scores if isinstance(score, Unscorable))
        return trajectories

    async def _answered(self, engine: Any, request: ModelRequest, text: str) -> Turn:
        """One answer, with all its calls. text: of what it is asked to go on from."""
        longest = self.context_length or len(request.input_ids) + self.one.max_new_tokens
        last: Turn | None = None
        given: Sequence[int] = request.input_ids
        for count in range(self.max_calls + 1):
            response, call = self._called(await engine.agenerate(request))
            last = Turn(last, given, response, text, self.chat.decode(response.output_tokens))
            if call is None or count == self.max_calls:
                break
            text = OUTPUT.format(await self._output(*call))
            given = self.chat.encode(text)
            asked = prompt(last, given)
            gconfig = fitted(self.one.new(min_new_tokens=0), len(asked), longest)
            if gconfig is None:  # as an answer that was cut off
                return replace(last, response=replace(response, stop_reason="length"))
            request = ModelRequest(asked, gconfig)
        assert last is not None
        return last

    def _called(self, response: ModelResponse) -> tuple[ModelResponse, tuple[str, str] | None]:
        """What was sampled up to the end of the first call, and its tool and text if there is one.

        A server may look for a stop string in fewer tokens than spell it, and so go on behind it.
        """
        tokens = response.output_tokens
        end = first_end(tokens, self.gconfig.stop, self._spelt)
        if end is None:
            return response, None
        text = self._spelt(tokens[:end])
        if end < len(tokens):
            response = replace(
                response,
                output_tokens=tokens[:end],
                output_logprobs=response.output_logprobs[:end],
                output_versions=response.output_versions[:end],
            )
        response = replace(response, stop_reason="stop")
        closing = found_in(text, list(self.closing))
        if closing is None:
            return response, None
        name = self.closing[closing]
        return response, (name, text.partition(closing)[0])

    async def _output(self, name: str, text: str) -> str:
        _, opening, body = text.rpartition(f"<{name}>")
        if not opening:
            return f"error: </{name}> without <{name}>"
        said = (await self.tools.run(name, body)).encode(errors="replace").decode()
        return said if len(said) <= self.most_output else f"{said[: self.most_output]}..."

    def _spelt(self, tokens: Sequence[int]) -> str:
        """As stop strings are looked for: tags may be special tokens."""
        return str(self.tokenizer.decode(tokens))

    async def aclose(self) -> None:
        """Ends the processes of its tools."""
        self.tools.close()  # on the event loop, which has their sockets
