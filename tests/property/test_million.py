"""A million versions through the real admission, buffer and runner, in virtual time.

`make million` runs it; it takes minutes, so `make test` leaves it out.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from arealite.rollout.limits import Limits
from arealite.simulate.scenario import Outcome, Scenario, simulate
from arealite.simulate.speeds import Speeds

SPEEDS = Speeds(
    step_s=1.0,
    step_per_sample_s=0.01,
    length_mean=4.0,
    length_sigma=0.8,
    long_share=0.05,
    long_factor=30.0,
    train_s=2.0,
    publish_s=0.1,
    failed=0.02,
)
CASES = [
    Scenario(Limits(1, 2, "mask"), SPEEDS, 1, slots=6, versions=500_000, seed=1),
    Scenario(Limits(1, 1, "drop"), SPEEDS, 1, slots=4, n_servers=2, versions=500_000, seed=2),
]


@pytest.mark.million
@pytest.mark.timeout(1800)
def test_no_token_of_a_million_versions_is_too_old() -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        outcomes: list[Outcome] = list(processes.map(simulate, CASES))
    for case, outcome in zip(CASES, outcomes, strict=True):
        assert set(outcome.lags) == set(range(case.limits.eta + 1)), "every lag up to the bound"
        assert outcome.samples == case.versions - case.limits.eta - 1, "one per version"
        counts = outcome.counts
        assert counts["counts/trained"] == case.versions
        assert counts["counts/failed"] > 10_000
        ended = sum(counts[f"counts/{fate}"] for fate in ("trained", "failed", "dropped_stale"))
        left = counts["counts/in_flight"] + counts["counts/buffered"]
        assert counts["counts/admitted"] == ended + left, "no episode is lost"
        assert left <= (case.limits.eta + 1) * case.limits.batch_size
