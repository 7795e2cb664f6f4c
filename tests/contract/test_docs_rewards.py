"""What docs/rewards.md shows, run as it stands there."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import uvloop
import yaml
from aiohttp import web
from test_reward_services import Server, says

from arealite.config import Config, load
from arealite.rewards.opening import open_reward
from arealite.types import Completion

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
BLOCKS = dict(re.findall(r"```(?:yaml|python) (\S+)\n(.*?)```", PAGE.read_text(), re.S))
CALL = re.compile(r"```python\n(from arealite.types import Completion\n.*?)```", re.S)
ROW = {"query": "2+2?", "answer": "4"}
COUNTS = "def compute_score(solution_str, ground_truth):\n    return float(solution_str == '4')\n"


def group_of(*texts: str, truth: str = "4") -> list[Completion]:
    return [Completion(t, truth, "2+2?", "2+2?", [1], [2] * len(t), ROW) for t in texts]


def config_of(folder: Path, text: str, url: str = "") -> Config:
    """The block in a whole configuration, its services at `url`."""
    text = re.sub(r"http://127\.0\.0\.1:\d+", url, text)
    (folder / "reward.py").write_text(COUNTS)
    whole = {
        "experiment_name": "docs",
        "actor": {"path": "model"},
        "train_dataset": {"path": "rows.jsonl"},
        "gconfig": {"n_samples": 2},
        **yaml.safe_load(text),
    }
    (folder / "docs.yaml").write_text(yaml.safe_dump(whole))
    return load(folder / "docs.yaml")


def run(play: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(play)


def test_the_five_rewards(tmp_path: Path) -> None:
    text = "<reasoning>\nhm\n</reasoning>\n<answer>\n4\n</answer>"
    with open_reward(config_of(tmp_path, BLOCKS["gsm8k_rewards.yaml"])) as reward:
        [parts] = run(reward.group(group_of(text, truth="#### 4")))
    assert sum(parts.values()) == pytest.approx(3.8, abs=1e-12)
    assert list(parts) == [
        "strict_format",
        "soft_format",
        "integer_answer",
        "count_tags",
        "correct",
    ]


def test_the_forms(tmp_path: Path) -> None:
    (tmp_path / "docs_forms.py").write_text(BLOCKS["forms.py"])
    names = ("compute_score", "reward_fn", "shortest_right")
    functions = [{"path": f"{tmp_path / 'docs_forms.py'}:{name}"} for name in names]
    text = yaml.safe_dump({"reward": {"functions": functions}})
    with open_reward(config_of(tmp_path, text)) as reward:
        outcomes = run(reward.group(group_of("4", " 4", "5")))
    assert [tuple(parts.values()) for parts in outcomes] == [
        (1.0, -0.001, 1.0),
        (1.0, -0.002, 0.0),
        (0.0, -0.001, 0.0),
    ]


def test_the_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def play() -> Any:
        async with Server(lambda body, number: says("Fine. Grade: 5")) as server:
            # The file of the user, and so the configuration, is looked up outside the loop.
            opened = open_reward(config_of(tmp_path, BLOCKS["judge.yaml"], server.url))
            with opened as reward:
                reward.check_row(ROW)
                return await reward.group(group_of("4")), server.bodies

    outcomes, bodies = run(play())
    assert outcomes == [{"right": 1.0, "judge": 0.1}]
    asked = "Question: 2+2?\nRight: 4\nGiven: 4\n0 to 10? Grade: <number>"
    assert [body["messages"][0]["content"] for body in bodies] == [asked]


def test_the_scorer(tmp_path: Path) -> None:
    def reply(body: Any, number: int) -> web.Response:
        assert body["columns"] == {"answer": ["4", "4"]}
        return web.json_response({"scores": [0.25, None]})

    async def play() -> Any:
        async with Server(reply) as server:
            with open_reward(config_of(tmp_path, BLOCKS["scorer.yaml"], server.url)) as reward:
                reward.check_row(ROW)
                return await reward.group(group_of("4", "5"))

    good, bad = run(play())
    assert good == {"verifier": 0.25}
    assert "verifier (arealite.rewards.services:RemoteScorer) returned None" in str(bad)


def test_the_call_of_a_workflow_of_ones_own(tmp_path: Path) -> None:
    [text] = CALL.findall(PAGE.read_text())
    names: dict[str, Any] = {}
    body = textwrap.indent(text + "return scores", "    ")
    header = "async def play(self, text, answer, prompt, prompt_text, prompt_ids, ids, row):\n"
    exec(header + body, names)  # noqa: S102 - the page's own text
    (tmp_path / "docs_forms.py").write_text(BLOCKS["forms.py"])
    functions = [{"path": f"{tmp_path / 'docs_forms.py'}:shortest_right", "name": "best"}]
    config = config_of(tmp_path, yaml.safe_dump({"reward": {"functions": functions}}))

    class Workflow:
        pass

    with open_reward(config) as reward:
        workflow: Any = Workflow()
        workflow.reward_fn = reward
        assert run(names["play"](workflow, "4", "4", "q", "q", [1], [2], ROW)) == [{"best": 1.0}]
