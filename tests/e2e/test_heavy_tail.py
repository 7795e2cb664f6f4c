"""5 % of the episodes are 30 times longer, on the real engine: none too old, none starved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import CONFIG, small_folder, start

SHORT, LONG, EVERY = 8, 240, 20
WORKFLOW = """
import asyncio
from arealite import ModelRequest, Trajectory

class Exactly:
    '''As many tokens as the row says.'''

    def __init__(self, gconfig, tokenizer):
        self.gconfig, self.tokenizer = gconfig, tokenizer

    async def arun_episode(self, engine, data):
        n = data["length"]
        request = ModelRequest(
            input_ids=self.tokenizer.encode(data["query"]),
            gconfig=self.gconfig.new(n_samples=1, min_new_tokens=n, max_new_tokens=n),
        )
        responses = await asyncio.gather(*[engine.agenerate(request) for _ in range(2)])
        return [Trajectory.from_response(r, sum(r.output_tokens) % 5 / 5) for r in responses]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_folder(tmp_path_factory.mktemp("tail"))
    (folder / "exactly.py").write_text(WORKFLOW)
    rows = [
        json.loads(line)
        for line in (folder / "data/countdown/tiny/train_e.jsonl").read_text().splitlines()
    ]
    with (folder / "rows.jsonl").open("w") as lines:
        for index, row in enumerate(rows):
            length = SHORT if index % EVERY else LONG
            lines.write(json.dumps({"query": row["query"], "length": length}) + "\n")
    settings = [
        *("rollout.workflow=exactly.py:Exactly", "rollout.reward_fn="),
        *("train_dataset.path=rows.jsonl", "train_dataset.batch_size=8", "total_train_steps=100"),
        *("valid_dataset.path=", "evaluator.freq_steps=null", f"gconfig.max_new_tokens={LONG}"),
        "rollout.max_head_offpolicyness=2",
    ]
    done = start(["-m", "arealite.launch", "--config", CONFIG, *settings], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/countdown-cpu/seed1"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_trained_token_is_older_than_the_bound(run: Path) -> None:
    metrics = [row for row in _lines(run / "metrics.jsonl") if "staleness/max" in row]
    assert len(metrics) == 100
    assert max(row["staleness/max"] for row in metrics) <= 2
    assert sum(row["staleness/masked_tokens"] for row in metrics) > 0, "the tail was too old at all"


def test_the_long_ones_are_trained_at_their_true_share(run: Path) -> None:
    trained = [e for e in _lines(run / "transcripts.jsonl") if e["fate"] == "trained"]
    share = sum(e["query"]["length"] == LONG for e in trained) / len(trained)
    assert share == pytest.approx(1 / EVERY, rel=0.2)
    spans = [t["versions"] for e in trained for t in e["trajectories"]]
    assert max(len(span) for span in spans) > 3, "some sample was taken over by several versions"
