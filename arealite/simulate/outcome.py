"""What came of a simulated run: counted on the batches that a real run would train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arealite.data.batch import to_batch
from arealite.types import Episode


@dataclass
class Outcome:
    """What came of it; seconds are virtual.

    samples: those with a trained token. trained: tokens in the loss; lags: the same by their lag.
    masked: tokens that a batch held and that were too old for its loss. generated: trained, masked
    and dropped. long_trained: episodes of the heavy tail with a trained token.
    """

    seconds: float = 0.0
    samples: int = 0
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

    def book(self, episodes: Sequence[Episode], version: int, max_lag: int | None) -> int:
        """One batch, as `to_batch` gives it to the loss. Returns how many samples it holds."""
        batch = to_batch(episodes, _Everything(), version, max_lag)
        of_tokens = {id(t.tokens): (e, t) for e in episodes for t in e.trajectories}
        long = set()
        trained = 0
        for sample in batch.samples:
            episode, trajectory = of_tokens[id(sample.tokens)]
            self.lags.update(version - trajectory.versions[i] for i in sample.trained)
            trained += len(sample.trained)
            if episode.row["long"]:
                long.add(episode.sample_id)
        self.samples += len(batch.samples)
        self.trained += trained
        self.masked += sum(t.sampled for _, t in of_tokens.values()) - trained
        self.long_trained += len(long)
        return len(of_tokens)


class _Everything:
    """The learning rule that trains whatever is fresh enough: every sample is worth the same."""

    idle_at_zero = True

    def credit(self, episodes: Sequence[Episode]) -> list[list[float | None]]:
        return [[1.0 for _ in episode.trajectories] for episode in episodes]

    def weigh(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[1.0] * len(group) for group in lengths]

    def loss(self, logprobs: Any, batch: Any) -> Any:
        raise NotImplementedError("nothing is computed in a simulation")
