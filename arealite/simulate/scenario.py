"""One simulated run: the real session, buffer and runner, a trainer that sleeps, virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from arealite.config import RolloutConfig
from arealite.errors import ConfigError, ErrorBudgetSpent
from arealite.rollout.limits import Limits
from arealite.rollout.session import Session
from arealite.simulate.clock import run_virtually
from arealite.simulate.engine import SimulatedEngine
from arealite.simulate.outcome import Outcome
from arealite.simulate.speeds import Speeds
from arealite.types import ModelRequest, Probe, Trajectory, WeightUpdate

NEVER_S = 1e9
"""Nothing that a user can set takes so long; a wait that cannot end is told after it, at once."""

FILLING = 2
"""The first eta + 2 versions fill the pipeline and are not counted."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated. limits: batch size, staleness and the rest, as in a real run."""

    limits: Limits
    speeds: Speeds = field(default_factory=Speeds)
    n_samples: int = 8
    max_new_tokens: int = 1024
    n_servers: int = 1
    slots: int = 64
    versions: int = 40
    seed: int = 1

    def changed(self, **changes: Any) -> Scenario:
        """Fields of this or of its limits, by name."""
        ours = {k: v for k, v in changes.items() if k in self.__dataclass_fields__}
        theirs = {k: v for k, v in changes.items() if k not in ours}
        return replace(self, limits=replace(self.limits, **theirs), **ours)


class _Workflow:
    """A group of requests whose lengths were drawn with the row."""

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        requests = [
            ModelRequest(
                (0,),
                rid=data["id"],
                metadata={
                    "length": length,
                    "prefill": 0 if index else data["prefill"],
                    "fails": data["fails"],
                },
            )
            for index, length in enumerate(data["lengths"])
        ]
        if len(requests) == 1:
            responses = [await engine.agenerate(requests[0])]
        else:
            responses = await asyncio.gather(*map(engine.agenerate, requests))
        if data["scoring"]:
            await asyncio.sleep(data["scoring"] * len(responses))
        return [Trajectory.from_response(response, 1.0) for response in responses]


def simulate(scenario: Scenario) -> Outcome:
    """Plays it. Raises ConfigError where so many episodes fail or are filtered that a run ends."""
    try:
        return run_virtually(_play(scenario))
    except ErrorBudgetSpent:
        speeds = scenario.speeds
        raise ConfigError(
            f"with failed={speeds.failed:.2g} and filtered={speeds.filtered:.2g}, the shares of "
            "simulated episodes that fail and that a filter rejects, the simulated run ended as a "
            "real one would: too many in a row or of the last 64; give smaller ones with --set"
        ) from None


async def _play(scenario: Scenario) -> Outcome:
    limits, speeds = replace(scenario.limits, stall_timeout_s=NEVER_S), scenario.speeds
    engine = SimulatedEngine(speeds, scenario.n_servers, scenario.slots)
    dropped: Any = _Dropped()
    session = Session(
        engine,
        _Workflow(),
        _rows(scenario),
        limits,
        keep=lambda episode: not episode.row["filtered"],
        transcripts=dropped,
    )
    await session.wait_ready()
    await session.publish(_update(0))
    max_lag = RolloutConfig(max_head_offpolicyness=limits.eta, late=limits.late).max_trained_lag
    now = asyncio.get_running_loop().time
    outcome = Outcome(n_servers=scenario.n_servers)
    skip = min(limits.eta + FILLING, scenario.versions // 2)
    started, idle = now(), 0.0
    for version in range(scenario.versions):
        if version == skip:
            metrics = await engine.server_metrics()
            started, idle = now(), metrics["idle_s"]
            outcome = Outcome(n_servers=scenario.n_servers)
            dropped.tokens = 0
        waited = now()
        episodes = await session.next_batch()
        outcome.trainer_idle_s += now() - waited
        samples = outcome.book(episodes, version, max_lag)
        await asyncio.sleep(speeds.train_s + samples * speeds.train_per_sample_s)
        await session.publish(_update(version + 1))
    metrics = await engine.server_metrics()
    outcome.seconds, outcome.engine_idle_s = now() - started, metrics["idle_s"] - idle
    outcome.generated = outcome.trained + outcome.masked + dropped.tokens
    outcome.counts = session.counts
    await session.aclose()
    return outcome


class _Dropped:
    """Stands where transcripts are written, and counts the tokens of dropped episodes."""

    tokens = 0

    def write(
        self, sample_id: str, version: int, fate: str, trajectories: Any, **_: object
    ) -> None:
        if fate == "dropped_stale":
            self.tokens += sum(t.sampled for t in trajectories)


def _rows(scenario: Scenario) -> Iterator[tuple[str, Mapping[str, Any]]]:
    chance, speeds = Random(scenario.seed), scenario.speeds
    for index in itertools.count():
        is_long = chance.random() < speeds.long_share
        lengths = speeds.lengths(chance, scenario.n_samples, scenario.max_new_tokens, is_long)
        scoring, fate = speeds.scoring(chance), chance.random()
        row = {
            "id": str(index),
            "long": is_long,
            "lengths": lengths,
            "scoring": scoring,
            "prefill": speeds.prompt_tokens,
            "fails": fate < speeds.failed,
            "filtered": fate < speeds.failed + speeds.filtered,
        }
        yield f"0:{index}", row


def _update(version: int) -> WeightUpdate:
    return WeightUpdate(version, "", Probe((0, 0), (0.0,), 1.0))
