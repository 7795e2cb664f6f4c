"""The grid's table and the advice that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from arealite.simulate.outcome import Outcome

WORTH = 1.10
"""Less gain than this is not worth a policy that learns from its own past."""
ENOUGH = 0.97
"""Within this of the best, the less stale setting is taken."""
WASTE = 0.05
"""Where a larger share of the sampled tokens is wasted, the advice says so."""


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
            f"{_three(o.samples_per_s):>9} {_three(o.tokens_per_s):>13} | "
            f"{o.trainer_idle:13.0%} {o.engine_idle:6.0%} | "
            f"{o.mean_lag:9.2f} {o.worst_lag:5d} | {o.wasted:6.1%} | {shares}"
        )


def advice(outcomes: Mapping[Setting, Outcome]) -> str:
    """One sentence: the least stale and smallest setting that is nearly as fast as the best.

    Fast is what trains many tokens a second: what is sampled and wasted, or a sample of which one
    token is left, teaches little. Staleness costs learning that no simulation of speeds can see,
    so it has to earn its place: synchronous it stays where the best is not WORTH times as fast.
    """
    speeds = {setting: o.tokens_per_s for setting, o in outcomes.items()}
    best = max(speeds.values())
    good = [s for s, speed in speeds.items() if speed >= ENOUGH * best]
    chosen = min(good, key=lambda s: (s.n_servers, s.eta, s.batch_size))
    synchronous = [s for s in speeds if s.eta == 0 and s.n_servers <= chosen.n_servers]
    if not synchronous:
        return f"take {_told(chosen, outcomes)}; {_faster(best / speeds[chosen])}"
    fastest = max(speeds[s] for s in synchronous)
    if best / fastest >= WORTH:
        return (
            f"take {_told(chosen, outcomes)}, {speeds[chosen] / fastest:.2f} times the fastest "
            f"synchronous setting on at most {chosen.n_servers} server(s); "
            f"{_faster(best / speeds[chosen])}"
        )
    least = max(ENOUGH * fastest, best / WORTH)
    stay = min(s for s in synchronous if speeds[s] == fastest or speeds[s] > least)
    return (
        f"stay synchronous, {_told(stay, outcomes)}; {_faster(best / speeds[stay])}, and on-policy "
        "data learns best"
    )


def _told(setting: Setting, outcomes: Mapping[Setting, Outcome]) -> str:
    o = outcomes[setting]
    waste = f", {o.wasted:.0%} of what it samples is wasted for its age" if o.wasted > WASTE else ""
    return (
        f"{setting.overrides()}: {_three(o.samples_per_s)} samples/s, "
        f"{_three(o.tokens_per_s)} trained tokens/s{waste}"
    )


def _faster(gain: float) -> str:
    """gain: the best in the grid over what is advised."""
    percent = math.ceil((gain - 1) * 100 - 1e-9)
    more = f"more than {percent}% " if percent > 0 else ""
    return f"nothing in this grid trains tokens {more}faster"


def _three(rate: float) -> str:
    """Three digits that count, and all that stand before the point."""
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:#.3g}"
