"""One simulated run: the real session, buffer and runner, a trainer that sleeps, virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from arealite.rollout.limits import Limits
from arealite.rollout.session import Session
from arealite.simulate.clock import run_virtually
from arealite.simulate.engine import SimulatedEngine
from arealite.simulate.speeds import Speeds
from arealite.types import Episode, ModelRequest, Probe, Trajectory, WeightUpdate


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


@dataclass
class Outcome:
    """What came of it. Token counts by lag; seconds are virtual."""

    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    trained: int = 0
    masked: int = 0
    generated: int = 0
    trainer_idle_s: float = 0.0
    engine_idle_s: float = 0.0
    n_servers: int = 1
    lags: Counter[int] = field(default_factory=Counter)
    counts: Mapping[str, float] = field(default_factory=dict)
    long_trained: int = 0

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.trained / self.seconds

    @property
    def trainer_idle(self) -> float:
        """Share of the time in which the trainer waits for a batch."""
        return self.trainer_idle_s / self.seconds

    @property
    def engine_idle(self) -> float:
        """Share of the time in which a server has nothing to decode."""
        return self.engine_idle_s / self.seconds / self.n_servers

    @property
    def wasted(self) -> float:
        """Share of the sampled tokens that were not and will not be trained: masked or dropped."""
        return 1.0 - self.trained / self.generated if self.generated else 0.0

    @property
    def worst_lag(self) -> int:
        return max(self.lags, default=0)

    @property
    def mean_lag(self) -> float:
        return sum(lag * n for lag, n in self.lags.items()) / max(1, self.trained)


class _Workflow:
    """A group of requests whose lengths were drawn with the row."""

    def __init__(self, reward_s: float) -> None:
        self._reward_s = reward_s

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
        if self._reward_s:
            await asyncio.sleep(self._reward_s * len(responses))
        return [Trajectory.from_response(response, 1.0) for response in responses]


def simulate(scenario: Scenario) -> Outcome:
    """Plays it. Raises what the real run would raise, such as Stall."""
    return run_virtually(_play(scenario))


async def _play(scenario: Scenario) -> Outcome:
    limits, speeds = scenario.limits, scenario.speeds
    engine = SimulatedEngine(speeds, scenario.n_servers, scenario.slots)
    dropped: Any = _Dropped()
    session = Session(
        engine, _Workflow(speeds.reward_s), _rows(scenario), limits, transcripts=dropped
    )
    await session.wait_ready()
    await session.publish(_update(0))
    now = asyncio.get_running_loop().time
    outcome = Outcome(n_servers=scenario.n_servers)
    skip = min(limits.eta + 1, scenario.versions // 4)  # the first versions fill the pipeline
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
        samples = _book(outcome, episodes, version, None if limits.late == "keep" else limits.eta)
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


def _book(outcome: Outcome, episodes: Sequence[Episode], version: int, eta: int | None) -> int:
    """The lag of each token, masked as data.batch.to_batch does; returns the samples trained."""
    samples = 0
    for episode in episodes:
        for trajectory in episode.trajectories:
            samples += 1
            lags = Counter(version - v for v in trajectory.versions if v >= 0)
            for lag, n in lags.items():
                if eta is None or lag <= eta:
                    outcome.lags[lag] += n
                    outcome.trained += n
                else:
                    outcome.masked += n
        outcome.long_trained += bool(episode.row["long"])
    outcome.samples += samples
    return samples


def _rows(scenario: Scenario) -> Iterator[tuple[str, Mapping[str, Any]]]:
    chance, speeds = Random(scenario.seed), scenario.speeds
    for index in itertools.count():
        is_long = chance.random() < speeds.long_share
        lengths = speeds.lengths(chance, scenario.n_samples, scenario.max_new_tokens, is_long)
        row = {
            "id": str(index),
            "long": is_long,
            "lengths": lengths,
            "prefill": speeds.prompt_tokens,
            "fails": chance.random() < speeds.failed,
        }
        yield f"0:{index}", row


def _update(version: int) -> WeightUpdate:
    return WeightUpdate(version, "", Probe((0, 0), (0.0,), 1.0))
