"""What agents behind the endpoint cost: 500 sessions of 5 turns at once, on one event loop.

    python benchmarks/agent_sessions.py [--sessions 500] [--turns 5] [--seconds 5 15] [--out FOLDER]

The engine is scripted: it answers 64 tokens after some seconds. Each column plays the same
conversations through AgentWorkflow or without it: `openai` by OpenAI's own client, one for all
(`openai_each` one for each run, as many agents are written), `bare` by aiohttp and json alone, and
as the reference `conversation`: the same turns of tokens by arealite.agents.conversation, without
HTTP and without JSON. Agent, endpoint and sessions share the process, as in a run. CPU is of the
whole process per turn, from the first request on; loop lag is how late a timer of every 10 ms is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import openai
import uvloop
from rollout_scale import Figures, Lag, apart
from saving import save
from scripted_server import raise_descriptor_limit
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from arealite.agents.chat import Chat
from arealite.agents.conversation import Conversation
from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.rollout.collector import rare_collections
from arealite.types import GenerationHyperparameters, Trajectory
from workflows.agent import AgentWorkflow

WORDS, ANSWER, TOLD = 1000, 64, 16
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GCONFIG = GenerationHyperparameters(max_new_tokens=128)


@cache
def tokenizer() -> Any:
    """A fast tokenizer with a chat template, over a thousand words."""
    vocabulary = {f"w{i}": i for i in range(WORDS)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    found.chat_template = TEMPLATE
    return found


def words(n: int, seed: int) -> str:
    chance = random.Random(seed)
    return " ".join(f"w{chance.randrange(WORDS)}" for _ in range(n))


# --- the agents, as users write them


@cache
def shared() -> openai.AsyncOpenAI:
    """One pool of connections for all runs; base_url and api_key are each run's own."""
    return openai.AsyncOpenAI(base_url="http://localhost", api_key="none")


async def with_openai(data: Mapping[str, Any], base_url: str, api_key: str) -> float:
    return await _talk(data, shared().with_options(base_url=base_url, api_key=api_key))


async def with_openai_each(data: Mapping[str, Any], base_url: str, api_key: str) -> float:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        return await _talk(data, client)


async def _talk(data: Mapping[str, Any], client: openai.AsyncOpenAI) -> float:
    messages: list[Any] = [{"role": "user", "content": words(ANSWER, data["row"])}]
    for turn in range(data["turns"]):
        answer = await client.chat.completions.create(model="policy", messages=messages)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        messages.append({"role": "user", "content": words(TOLD, turn)})
    return 1.0


async def with_aiohttp(data: Mapping[str, Any], base_url: str, api_key: str) -> float:
    headers = {"Authorization": f"Bearer {api_key}"}
    url = f"{base_url}/chat/completions"
    messages = [{"role": "user", "content": words(ANSWER, data["row"])}]
    async with aiohttp.ClientSession(headers=headers) as session:
        for turn in range(data["turns"]):
            body = {"model": "policy", "messages": messages}
            async with session.post(url, json=body) as reply:
                answer = json.loads(await reply.text())["choices"][0]["message"]
            messages.append({"role": "assistant", "content": answer["content"]})
            messages.append({"role": "user", "content": words(TOLD, turn)})
    return 1.0


class Reference:
    """The same turns without an endpoint."""

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        asked = {"role": "user", "content": words(ANSWER, data["row"])}
        talk = Conversation(Chat(tokenizer()), [asked])
        for turn in range(data["turns"]):
            if turn:
                talk.tell({"role": "user", "content": words(TOLD, turn - 1)})
            talk.answered(await engine.agenerate(talk.request(GCONFIG)))
        return talk.trajectories(1.0)

    async def aclose(self) -> None: ...


def behind_the_endpoint(agent: str) -> AgentWorkflow:
    return AgentWorkflow(GCONFIG, tokenizer(), f"{__file__}:{agent}")


COLUMNS: Mapping[str, Callable[[], Any]] = {
    "openai": lambda: behind_the_endpoint("with_openai"),
    "openai_each": lambda: behind_the_endpoint("with_openai_each"),
    "bare": lambda: behind_the_endpoint("with_aiohttp"),
    "conversation": Reference,
}


def measure(column: str, sessions: int, turns: int, seconds: tuple[float, float]) -> Figures:
    """All sessions at once, each with the same number of turns."""
    raise_descriptor_limit()
    workflow, lag, chance = COLUMNS[column](), Lag(), random.Random(0)
    engine = ScriptedEngine(
        lambda request, serial: Sample(ANSWER, chance.uniform(*seconds)), vocabulary=WORDS
    )

    async def main() -> tuple[float, list[Any]]:
        await workflow.arun_episode(engine, {"row": 0, "turns": 2})  # imports, connections
        lag.start()
        began = time.process_time()
        playing = [
            workflow.arun_episode(engine, {"row": row, "turns": turns}) for row in range(sessions)
        ]
        played = await asyncio.gather(*playing, return_exceptions=True)
        cpu = time.process_time() - began
        await workflow.aclose()
        return cpu, played

    with rare_collections():
        cpu, played = uvloop.run(main())
    failed = [one for one in played if isinstance(one, BaseException)]
    if failed:
        print(f"{column}: the first error: {failed[0]!r:.300}")
    whole = [one for one in played if not isinstance(one, BaseException)]
    assert all(sum(t.sampled for t in one) == turns * ANSWER for one in whole)
    return {
        "sessions": sessions,
        "turns": turns * len(whole),
        "errors": len(failed),
        "trajectories": sum(len(one) for one in whole),
        "cpu_ms_per_turn": 1000 * cpu / (turns * max(1, len(whole))),
        **lag.figures(),
        "load_average": os.getloadavg()[0],  # above the cores, all figures suffer
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, nargs=2, default=[5.0, 15.0], help="of an answer")
    parser.add_argument("--out", type=Path, help="folder for agent-sessions-<date>.json")
    args = parser.parse_args()
    found = {
        name: apart(measure, name, args.sessions, args.turns, tuple(args.seconds))
        for name in COLUMNS
    }
    print(f"{'':20s}" + "".join(f"{name:>14s}" for name in found))
    for key in found["conversation"]:
        print(f"{key:20s}" + "".join(f"{column[key]:14.2f}" for column in found.values()))
    save(args.out, "agent-sessions", {**found, "seconds_of_an_answer": args.seconds})


if __name__ == "__main__":
    main()
