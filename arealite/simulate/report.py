"""The grid's table and the advice that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from arealite.simulate.outcome import Outcome

WORTH = 1.10
"""Less gain than this is not worth a policy that learns from its own past."""
ENOUGH = 0.97
"""Within this of the best, the less stale setting is taken."""


@dataclass(frozen=True, order=True)
class Setting:
    """One cell of the grid; ordered by what costs least."""

    n_servers: int
    batch_size: int
    eta: int

    def overrides(self) -> str:
        return (
            f"rollout.max_head_offpolicyness={self.eta} train_dataset.batch_size={self.batch_size} "
            f"rollout.n_servers={self.n_servers}"
        )


def table(outcomes: Mapping[Setting, Outcome]) -> Iterator[str]:
    """One line per cell. Idle: share of the time. Lag: share of trained tokens by versions."""
    yield (
        "servers batch eta | samples/s trained tok/s | idle: trainer engine | "
        "lag: mean worst | wasted | tokens by lag"
    )
    for setting, o in sorted(outcomes.items()):
        shares = " ".join(f"{lag}:{n / max(1, o.trained):.0%}" for lag, n in sorted(o.lags.items()))
        yield (
            f"{setting.n_servers:7d} {setting.batch_size:5d} {setting.eta:3d} | "
            f"{o.samples_per_s:9.1f} {o.tokens_per_s:13.0f} | "
            f"{o.trainer_idle:13.0%} {o.engine_idle:6.0%} | "
            f"{o.mean_lag:9.2f} {o.worst_lag:5d} | {o.wasted:6.1%} | {shares}"
        )


def advice(outcomes: Mapping[Setting, Outcome]) -> str:
    """One sentence: the least stale and smallest setting that is nearly as fast as the best.

    Staleness costs learning that no simulation of speeds can see, so it has to earn its place.
    """
    best = max(outcomes.values(), key=lambda o: o.samples_per_s).samples_per_s
    good = [s for s, o in outcomes.items() if o.samples_per_s >= ENOUGH * best]
    chosen = min(good, key=lambda s: (s.n_servers, s.eta, s.batch_size))
    synchronous = [
        (o.samples_per_s, s)
        for s, o in outcomes.items()
        if s.eta == 0 and s.n_servers <= chosen.n_servers
    ]
    if not synchronous:
        return f"take {chosen.overrides()}: {outcomes[chosen].samples_per_s:.1f} samples/s"
    speed, setting = max(synchronous, key=lambda pair: pair[0])
    gain = outcomes[chosen].samples_per_s / speed
    if gain < WORTH:
        return (
            f"stay synchronous, {setting.overrides()}: {speed:.1f} samples/s; nothing in this grid "
            f"is more than {gain - 1:.0%} faster, and on-policy data learns best"
        )
    return (
        f"take {chosen.overrides()}: {outcomes[chosen].samples_per_s:.1f} samples/s, {gain:.2f} "
        f"times the synchronous {speed:.1f}"
    )
