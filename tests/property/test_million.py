"""A million versions through the real admission, buffer and runner, in virtual time.

`make million` runs it; it takes minutes, so `make test` has the same for some thousand versions.
What is counted is what `to_batch` hands to the loss, and three broken rules show that the proof can
fail.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import compress
from typing import Any

import pytest

from arealite.data import batch
from arealite.rollout import buffer, staleness
from arealite.rollout.limits import Limits
from arealite.simulate.outcome import Outcome
from arealite.simulate.scenario import Scenario, simulate
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
    reward_s=3.0,
    reward_sigma=1.5,
    failed=0.02,
)
MASK = Scenario(Limits(1, 2, "mask"), SPEEDS, 1, slots=6, versions=3000, seed=1)
DROP = Scenario(Limits(1, 1, "drop"), SPEEDS, 1, slots=4, n_servers=2, versions=3000, seed=2)
WAIT = Scenario(Limits(1, 2, "wait"), SPEEDS, 1, slots=6, versions=3000, seed=3)


def _check(case: Scenario, outcome: Outcome) -> None:
    """The promise of each rule, on what reached the loss; then that no episode is lost."""
    late, eta, counts = case.limits.late, case.limits.eta, outcome.counts
    assert outcome.worst_lag <= eta, "a token that is too old was trained"
    assert set(outcome.lags) == set(range(eta + 1)), "a lag up to the bound never occurred"
    assert outcome.samples == case.versions - eta - 2, "a version trained nothing"
    masked = outcome.masked / outcome.generated
    assert masked > 0.1 if late == "mask" else masked == 0.0, f"{masked:.1%} masked"
    dropped = counts["counts/dropped_stale"] / case.versions
    assert dropped == 0.0 if late == "wait" else dropped > 0.01, f"{dropped:.1%} dropped"
    assert counts["counts/trained"] == case.versions
    assert counts["counts/failed"] > 0.01 * case.versions
    ended = sum(counts[f"counts/{fate}"] for fate in ("trained", "failed", "dropped_stale"))
    left = counts["counts/in_flight"] + counts["counts/buffered"]
    assert counts["counts/admitted"] == ended + left, "an episode is lost"
    assert left <= (eta + 1) * case.limits.batch_size


@pytest.mark.million
@pytest.mark.timeout(3600)
def test_no_token_of_a_million_versions_is_too_old() -> None:
    cases = [replace(case, versions=500_000) for case in (MASK, DROP)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        outcomes: list[Outcome] = list(processes.map(simulate, cases))
    for case, outcome in zip(cases, outcomes, strict=True):
        _check(case, outcome)


@pytest.mark.parametrize("case", [MASK, DROP, WAIT], ids=lambda case: case.limits.late)
def test_no_token_of_three_thousand_versions_is_too_old(case: Scenario) -> None:
    _check(case, simulate(case))


def _all_sampled(trajectory: Any, oldest: int) -> list[int]:
    return list(compress(range(len(trajectory.loss_mask)), trajectory.loss_mask))


def _lenient(episode: Any, version: int, eta: int) -> bool:
    return any(t.oldest_version >= version - eta - 100 for t in episode.trajectories)


def _always(*_: Any) -> bool:
    return True


@pytest.mark.parametrize(
    ("case", "module", "name", "broken", "words"),
    [
        (DROP, buffer, "is_usable", _always, "masked"),
        (MASK, buffer, "is_usable", _always, "a version trained nothing"),
        (MASK, staleness, "has_fresh_token", _lenient, "a version trained nothing"),
        (MASK, batch, "_fresh", _all_sampled, "a token that is too old was trained"),
    ],
)
def test_a_broken_rule_is_found(
    monkeypatch: pytest.MonkeyPatch,
    case: Scenario,
    module: Any,
    name: str,
    broken: Callable[..., Any],
    words: str,
) -> None:
    monkeypatch.setattr(module, name, broken)
    case = replace(case, versions=1000)
    with pytest.raises(AssertionError, match=words):
        _check(case, simulate(case))
