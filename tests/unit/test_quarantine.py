"""Samples without a score: counted, kept for people, and known to nobody else."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import Unscorable
from arealite.rewards.scorer import Kept, Scorer
from arealite.rollout.door import Rollouts
from arealite.rollout.limits import Limits
from arealite.telemetry.quarantine import MOST_TEXT, Quarantine
from arealite.telemetry.run_folder import read_lines
from arealite.types import GenerationHyperparameters, Probe, WeightUpdate
from workflows.rlvr import RLVRWorkflow


class Tokenizer:
    """One token per character; a completion's text is as long as it has tokens."""

    eos_token_id, pad_token_id = 10, 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "x" * len(ids)


def _odd(solution: str, truth: Any) -> float:
    if len(solution) % 2:
        raise ValueError(f"odd: {len(solution)}")
    return float(len(solution))


def test_it_counts_and_keeps_what_has_no_score(tmp_path: Path) -> None:
    alarms: list[str] = []
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", alarms.append)
    scorer = Kept(Scorer(_odd, "r.py:odd"), quarantine, held_out=False)
    held_out = Kept(Scorer(_odd, "r.py:odd"), quarantine, held_out=True)

    async def play() -> None:
        for score, text in (
            (scorer, "1"),
            (scorer, "12"),
            (held_out, "123"),
            (scorer, "1" * 99999),
        ):
            if len(text) % 2:
                with pytest.raises(Unscorable):
                    await score(text, {"n": 1})
            else:
                assert await score(text, {"n": 1}) == len(text)

    asyncio.run(play())
    assert quarantine.counts == {"counts/unscorable": 2.0, "counts/unscorable_held_out": 1.0}
    quarantine.close()
    first, second, third = read_lines(tmp_path / "quarantine.jsonl")
    assert first["sample_id"] is None
    assert (first["text"], first["ground_truth"], first["reason"]) == ("1", {"n": 1}, "raised")
    assert first["error"].startswith("r.py:odd raised ValueError: odd: 1 (line ")
    assert first["tail"].endswith("ValueError: odd: 1\n")
    assert (first["held_out"], second["held_out"]) == (False, True)
    assert len(third["text"]) <= MOST_TEXT + 5
    assert len(alarms) == 1
    assert alarms[0].startswith("a sample could not be scored and is left out (quarantine.jsonl):")


@pytest.mark.parametrize(("failing", "alarms"), [(5, 1), (6, 2)])
def test_many_samples_without_a_score_are_an_alarm(
    tmp_path: Path, failing: int, alarms: int
) -> None:
    heard: list[str] = []
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", heard.append)
    for _ in range(100 - failing):
        quarantine.passed(held_out=False)
    for _ in range(failing):
        quarantine.add(Unscorable("no"), "", 0, held_out=False)
    quarantine.passed(held_out=False)
    assert len(heard) == alarms


def test_training_goes_on_without_them_and_says_how_many(tmp_path: Path) -> None:
    """Of each group of three the sample of odd length has no score."""
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", lambda sentence: None)
    workflow = RLVRWorkflow(
        Kept(Scorer(_odd, "r.py:odd"), quarantine, held_out=False),
        GenerationHyperparameters(n_samples=3),
        Tokenizer(),
        chat=False,
    )
    rows = ((f"0:{i}", {"query": "?", "answer": i}) for i in itertools.count())
    engine = ScriptedEngine(lambda request, serial: Sample(length=(2, 3, 4)[serial % 3]))
    options: dict[str, Any] = {"more_counts": lambda: quarantine.counts}
    with Rollouts(engine, workflow, rows, Limits(4, 0), **options) as rollouts:
        rollouts.publish(WeightUpdate(0, "", Probe((1, 2), (-1.0,), tolerance=0.1)))
        batch = rollouts.next_batch()
        assert rollouts.counts["counts/unscorable"] == 4.0
        assert rollouts.counts["counts/failed"] == 0.0
    assert [[t.reward for t in episode.trajectories] for episode in batch] == [[2.0, 4.0]] * 4
    quarantine.close()
    lines = list(read_lines(tmp_path / "quarantine.jsonl"))
    assert {line["sample_id"] for line in lines} == {f"0:{i}" for i in range(4)}
    assert all(f"0:{line['ground_truth']}" == line["sample_id"] for line in lines)
