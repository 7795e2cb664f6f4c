"""The workflow that docs/rollouts.md shows, as it stands there."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.loading import load_workflow
from arealite.simulate.clock import run_virtually
from arealite.types import GenerationHyperparameters

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rollouts.md"


class Words:
    def encode(self, text: str) -> list[int]:
        return [1, 2]

    def decode(self, tokens: Any) -> str:
        return str(len(tokens))


async def _reward(text: str, truth: Any) -> float:
    return float(text)


def test_a_group_that_ends_early_leaves_nothing_running(tmp_path: Path) -> None:
    found = re.search(r"```python first_four\.py\n(.*?)```", PAGE.read_text(), re.S)
    assert found
    (tmp_path / "first_four.py").write_text(found[1])
    offered = {
        "gconfig": GenerationHyperparameters(max_new_tokens=99),
        "tokenizer": Words(),
        "reward_fn": _reward,
    }
    workflow = load_workflow(f"{tmp_path}/first_four.py:FirstFour", offered, {})
    lengths = [9, 3, 8, 2, 7, 1, 6, 4]
    engine = ScriptedEngine(lambda request, serial: Sample(lengths[serial], token_s=1.0))

    async def play() -> tuple[Any, float, int]:
        played = await workflow.arun_episode(engine, {"query": "q", "answer": None})
        ended = asyncio.get_running_loop().time()
        await asyncio.sleep(0)
        return played, ended, engine.running

    played, seconds, running = run_virtually(play())
    assert [t.reward for t in played] == [1.0, 2.0, 3.0, 4.0]
    assert seconds == 4.0
    assert running == 0
