"""An agent of a user's, trained as it is: AgentWorkflow in the rollouts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from agent_support import GCONFIG, says
from letters import Letters, Speaker, learned
from session_support import numbered_rows, update

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import ConfigError, EngineError, Unscorable, WorkflowError
from arealite.loading import load_workflow
from arealite.protocols import ChecksRows, Closes
from arealite.rollout.door import Rollouts
from arealite.rollout.limits import Limits
from arealite.rollout.runner import play
from arealite.rollout.seeds import SeededEngine
from arealite.types import Trajectory
from workflows.agent import AgentWorkflow

ASYNC = """
import openai

async def run(data, base_url, api_key):
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        messages = [{"role": "user", "content": f"row {data['row']}"}]
        answer = await client.chat.completions.create(model="m", messages=messages)
"""
SYNC = """
import openai

def run(data, base_url, api_key):
    with openai.OpenAI(base_url=base_url, api_key=api_key) as client:
        messages = [{"role": "user", "content": f"row {data['row']}"}]
        answer = client.chat.completions.create(model="m", messages=messages)
"""
LENGTH = "        return float(len(answer.choices[0].message.content))\n"


class Written:
    """Agents from files, as users write them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self, code: str, n: int = 1, name: str = "run", **kwargs: Any) -> AgentWorkflow:
        self.count += 1
        file = self.folder / f"agent_{self.folder.name}_{self.count}.py"
        file.write_text(code)
        offered = {"gconfig": GCONFIG.new(n_samples=n), "tokenizer": Letters()}
        given = {"agent": f"{file}:{name}", **kwargs}
        made: Any = load_workflow("workflows.agent:AgentWorkflow", offered, given)
        return made


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def episode(workflow: AgentWorkflow, engine: Any) -> list[Trajectory]:
    """One, as the rollouts play it; row 7."""

    async def one() -> list[Trajectory]:
        try:
            return list(await play(workflow, engine, "0:7", {"row": 7}))
        finally:
            await workflow.aclose()

    return asyncio.run(one())


def failure(workflow: AgentWorkflow, engine: Any) -> str:
    with pytest.raises(WorkflowError) as failed:
        episode(workflow, engine)
    return str(failed.value)


@pytest.mark.parametrize("code", [ASYNC, SYNC])
def test_each_sample_is_a_run_of_the_agent(written: Written, code: str) -> None:
    engine = Speaker(lambda prompt, serial: "x" * (serial + 1) + "$")
    made = episode(written(code + LENGTH, n=3), engine)
    assert sorted(t.reward for t in made) == [1.0, 2.0, 3.0]
    assert all(t.reward == len(learned(t)) - 1 for t in made)
    assert {bytes(r.input_tokens).decode() for r in engine.log} == {"<u>row 7$\n<a>"}


def test_a_class_with_run_is_an_agent_as_in_areal(written: Written) -> None:
    code = ASYNC.replace("run(data, base_url, api_key)", "_run(data, base_url, api_key)") + LENGTH
    code += """
class Agent:
    async def run(self, data, **extra):
        return await _run(data, extra["base_url"], extra["api_key"])
"""
    [made] = episode(written(code, name="Agent"), says("one$"))
    assert made.reward == 3.0


def test_threads_are_as_many_as_runs(written: Written) -> None:
    """More than a pool would have: each waits for all the others."""
    code = SYNC.replace("def run", "import threading\nbarrier = threading.Barrier(40)\n\ndef run")
    code = code.replace("    with openai", "    barrier.wait(30)\n    with openai") + LENGTH
    assert len(episode(written(code, n=40), Speaker(lambda prompt, serial: "one$"))) == 40


def test_what_an_agent_raises_is_told_with_its_line(written: Written) -> None:
    told = failure(written(ASYNC + "        raise KeyError('x')\n"), says("one$"))
    assert told.startswith("row 0:7: the agent run raised KeyError: 'x' (")
    assert told.endswith("_1.py, line 8)")


def test_what_its_client_raises_is_told_with_the_agents_line(written: Written) -> None:
    code = ASYNC.replace('model="m"', 'model="m", temperature=0.2')
    told = failure(written(code), says("one$"))
    assert "the agent run raised BadRequestError: Error code: 400 - temperature is 0.2, but" in told
    assert told.endswith("_1.py, line 7)")


def test_an_engines_failure_is_no_reward(written: Written) -> None:
    """Even where the agent takes it for its own, and rewards itself with 0."""
    code = ASYNC.replace("        answer", "        try: answer")
    code += "        except openai.APIStatusError: return 0.0\n"
    engine = ScriptedEngine(lambda request, serial: Sample(outcome="fail"))
    with pytest.raises(EngineError, match="the script lets request 0 fail"):
        episode(written(code), engine)


def test_an_agent_that_is_never_answered_is_an_error(written: Written) -> None:
    nothing = "async def run(data, base_url, api_key):\n    return 0.0\n"
    assert "the agent was never answered, so there is nothing" in failure(written(nothing), says())
    code = ASYNC.replace('model="m"', 'model="m", n=2').replace(
        "        answer", "        try: answer"
    )
    code += "        except Exception: return 0.0\n"
    told = failure(written(code), says())
    assert "the first of its 1 requests was refused: n is 2, and this endpoint" in told


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ("None", "the agent returned None; it must return a number, a mapping"),
        ("{}", "the agent returned {}; it must"),
        ("'1'", "the agent returned '1'; it must"),
        ("float('nan')", "the reward is nan, it must be a finite number"),
        ("{answer.id: 1.0, 'x': 2.0}", "a reward for 'x', which is no completion of its run"),
        ("{answer.id: None}", "the agent returned None as the reward of chatcmpl-"),
    ],
)
def test_what_is_no_reward_is_a_sentence(written: Written, returned: str, sentence: str) -> None:
    assert sentence in failure(written(f"{ASYNC}        return {returned}\n"), says("one$"))


def test_a_run_without_a_score_is_left_out(written: Written) -> None:
    code = f"from arealite.errors import Unscorable\n{ASYNC}"
    code += (
        "        if 'no' in answer.choices[0].message.content: raise Unscorable('no')\n" + LENGTH
    )
    engine = Speaker(lambda prompt, serial: "no$" if serial == 1 else "yes$")
    assert [learned(t) for t in episode(written(code, n=3), engine)] == ["yes$", "yes$"]
    with pytest.raises(Unscorable, match=r"^no$"):
        episode(written(code, n=2), Speaker(lambda prompt, serial: "no$" if serial else "yes$"))


@pytest.mark.parametrize(
    ("code", "kwargs", "sentence"),
    [
        (
            "def run(data): ...",
            {},
            r"does not fit: .*; an agent is called as run\(data, ba",
        ),
        ("class run: ...", {}, "run is a NoneType, not a function; an agent is called as"),
        (ASYNC, {"turn_discount": 2.0}, "turn_discount is 2.0"),
        (ASYNC, {"sampling": "mine"}, "sampling 'mine'"),
    ],
)
def test_what_cannot_be_an_agent_is_bad_input(
    written: Written, code: str, kwargs: Any, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        written(code, **kwargs)


def test_a_runs_seeds_do_not_depend_on_the_pace_of_the_others(written: Written) -> None:
    """Two runs ask the same twice; one of them, or the other, asks last."""
    again = ASYNC.splitlines()[-1]

    def pairs(slow: str) -> set[tuple[Any, Any]]:
        code = "import asyncio\nboth, asked = asyncio.Barrier(2), asyncio.Event()\n" + ASYNC
        code += "        await both.wait()\n"
        code += f"        if answer.choices[0].message.content == '{slow}': await asked.wait()\n"
        code += f"{again}\n        asked.set()"
        engine = Speaker(lambda prompt, serial: f"{serial}$")
        workflow = written(code + "\n        return 1.0\n", n=2)
        episode(workflow, SeededEngine(engine, 1, "0:7"))
        first, second, quick, waited = [request.gconfig.seed for request in engine.requests]
        return {
            (first, waited if slow == "0" else quick),
            (second, quick if slow == "0" else waited),
        }

    assert pairs("0") == pairs("1")


# Of anyio, for a client that is cancelled while it connects.
@pytest.mark.filterwarnings("ignore:coroutine 'connect_tcp:RuntimeWarning")
def test_the_endpoint_ends_with_the_rollouts(written: Written) -> None:
    """Many sessions at once, in the thread of the rollouts; held-out rows have an endpoint too."""
    workflow, held_out = written(ASYNC + LENGTH, n=4), written(ASYNC + LENGTH)
    assert isinstance(workflow, Closes)
    assert not isinstance(workflow, ChecksRows)
    engine = ScriptedEngine(lambda request, serial: Sample(length=4, token_s=0.001))
    rows = numbered_rows()
    options: Any = {"eval_workflow": held_out, "eval_rows": [("valid:0", {"row": 0})]}
    with Rollouts(engine, workflow, rows, Limits(8, eta=1), **options) as rollouts:
        rollouts.publish(update(0))
        batch = rollouts.next_batch()
        assert rollouts.evaluate(0).result()["eval/valid/samples"] == 1
        assert workflow.endpoint.url != held_out.endpoint.url
        assert rollouts.counts["counts/failed"] == 0
    assert [len(e.trajectories) for e in batch] == [4] * 8
    assert (workflow.endpoint._runner, held_out.endpoint._runner) == (None, None)
    assert not [t for t in threading.enumerate() if t.name == "rollouts"]
