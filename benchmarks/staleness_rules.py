"""The four rules for late tokens under a heavy tail: the table of docs/staleness.md.

    python benchmarks/staleness_rules.py [--versions 2000] [--out benchmarks/results]

5 % of the episodes are 30 times longer, the bound is 2 versions, and the trainer takes half as
long as the engines need for a batch of usual episodes. Simulated by the real admission, buffer and
runner under a virtual clock, so the figures are the same on every machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from saving import save

from arealite.rollout.limits import Limits
from arealite.rollout.staleness import Late
from arealite.simulate.scenario import Scenario, simulate
from arealite.simulate.speeds import Speeds

ETA, BATCH, LONG = 2, 16, 0.05
SPEEDS = Speeds(
    step_s=1.0,
    step_per_sample_s=0.0,
    prefill_per_token_s=0.0,
    length_mean=10.0,
    length_sigma=0.3,
    long_share=LONG,
    long_factor=30.0,
    train_s=5.0,
    train_per_sample_s=0.0,
    publish_s=0.5,
)


def measure(late: Late, versions: int) -> dict[str, Any]:
    limits = Limits(BATCH, ETA, late)
    scenario = Scenario(limits, SPEEDS, n_samples=1, slots=4 * BATCH, versions=versions)
    outcome = simulate(scenario)
    return {
        "rule": late,
        "worst_lag": outcome.worst_lag,
        "mean_lag": outcome.mean_lag,
        "seconds_per_version": outcome.seconds * BATCH / outcome.samples,
        "long_share_trained": outcome.long_trained / outcome.samples,
        "wasted_tokens": outcome.wasted,
    }


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--versions", type=int, default=2000)
    command.add_argument("--out", type=Path)
    options = command.parse_args()
    rows = [measure(late, options.versions) for late in get_args(Late)]
    print("| rule | worst lag | mean lag | time per version | long ones trained | tokens wasted |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| `{row['rule']}` | {row['worst_lag']} | {row['mean_lag']:.2f} | "
            f"{row['seconds_per_version'] / rows[0]['seconds_per_version']:.2f} | "
            f"{row['long_share_trained'] / LONG:.0%} | {row['wasted_tokens']:.1%} |"
        )
    save(options.out, "staleness-rules", rows)


if __name__ == "__main__":
    main()
