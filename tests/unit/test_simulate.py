"""The simulator: exact where it can be computed by hand, the real rules everywhere else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from arealite.errors import ConfigError, Stall
from arealite.rollout.limits import Limits
from arealite.rollout.staleness import Late
from arealite.simulate.clock import run_virtually
from arealite.simulate.engine import SimulatedEngine
from arealite.simulate.outcome import Outcome
from arealite.simulate.scenario import Scenario, simulate
from arealite.simulate.speeds import Speeds
from arealite.types import ModelRequest, Probe, WeightUpdate

STEADY = Speeds(
    step_s=1.0,
    step_per_sample_s=0.0,
    prefill_per_token_s=0.0,
    length_mean=10.0,
    length_sigma=0.0,
    publish_s=0.0,
)
"""One second per step however many run; ten tokens per sample; nothing else takes time."""


def _request(length: int, prefill: int = 0, rid: str = "r") -> ModelRequest:
    return ModelRequest((0,), rid=rid, metadata={"length": length, "prefill": prefill})


# --- the clock


def test_waiting_costs_nothing_and_time_is_exact() -> None:
    async def play() -> tuple[float, list[str]]:
        order: list[str] = []

        async def say(after: float, what: str) -> None:
            await asyncio.sleep(after)
            order.append(what)

        await asyncio.gather(say(3e6, "late"), say(1e6, "early"), say(2e6, "between"))
        return asyncio.get_running_loop().time(), order

    seconds, order = run_virtually(play())
    assert seconds == pytest.approx(3e6, abs=1e-3)
    assert order == ["early", "between", "late"]


@pytest.mark.timeout(60)
def test_timers_end_however_late_it_is() -> None:
    async def play() -> float:
        for _ in range(3):
            await asyncio.sleep(1e8 / 3)
        return asyncio.get_running_loop().time()

    assert run_virtually(play()) == pytest.approx(1e8)


def test_where_nothing_can_happen_any_more_it_says_so() -> None:
    async def play() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stall, match="everybody waits"):
        run_virtually(play())


# --- the servers


def _ends(speeds: Speeds, slots: int, *requests: tuple[float, ModelRequest]) -> list[float]:
    """When each request, sent at its time, is answered."""

    async def play() -> list[float]:
        engine = SimulatedEngine(speeds, 1, slots)
        now = asyncio.get_running_loop().time

        async def one(at: float, request: ModelRequest) -> float:
            await asyncio.sleep(at)
            await engine.agenerate(request)
            return now()

        return await asyncio.gather(*(one(*request) for request in requests))

    return run_virtually(play())


def test_a_step_takes_longer_with_more_samples() -> None:
    """Alone 1 + 0.5 s a step, together 1 + 2 * 0.5 s. The first: 2 steps alone (3 s), then 4
    together (8 s) until the second's 4 tokens are there; then its last 4 steps alone (6 s)."""
    speeds = Speeds(step_s=1.0, step_per_sample_s=0.5, prefill_per_token_s=0.0)
    ends = _ends(speeds, 8, (0.0, _request(10)), (3.0, _request(4)))
    assert ends == pytest.approx([17.0, 11.0])


def test_prefill_stops_the_others_and_a_full_server_queues() -> None:
    """The second's prompt of 30 tokens at 0.1 s stops decoding for 3 s; the third waits for the
    first of two slots, at 5 + 3 s, and takes 2 steps."""
    speeds = Speeds(step_s=1.0, step_per_sample_s=0.0, prefill_per_token_s=0.1)
    ends = _ends(speeds, 2, (0.0, _request(5)), (1.0, _request(9, 30)), (2.0, _request(2)))
    assert ends == pytest.approx([8.0, 13.0, 10.0])


def test_new_weights_arrive_between_two_steps_and_the_server_stands_still_for_them() -> None:
    async def play() -> tuple[list[int], float]:
        engine = SimulatedEngine(Speeds(step_s=1.0, step_per_sample_s=0.0, publish_s=2.0))
        await engine.update_weights(WeightUpdate(0, "", Probe((0,), (), 1.0)))
        began = asyncio.get_running_loop().time()
        asked = asyncio.create_task(engine.agenerate(_request(6)))
        await asyncio.sleep(3.0)
        await engine.update_weights(WeightUpdate(1, "", Probe((0,), (), 1.0)))
        response = await asked
        return list(response.output_versions), asyncio.get_running_loop().time() - began

    assert run_virtually(play()) == ([0, 0, 0, 1, 1, 1], pytest.approx(8.0))


def test_tokens_are_counted_while_they_are_sampled() -> None:
    """Two samples for 3 steps, 2 s of new weights in which nothing is sampled, 2 steps more."""

    async def play() -> list[float]:
        engine = SimulatedEngine(Speeds(step_s=1.0, step_per_sample_s=0.0, publish_s=2.0))
        asked = asyncio.gather(
            engine.agenerate(_request(9, rid="a")), engine.agenerate(_request(6))
        )
        counted = []
        for seconds in (3.0, 2.0):
            await asyncio.sleep(seconds)
            counted.append((await engine.server_metrics())["tokens_generated"])
            if len(counted) == 1:
                await engine.update_weights(WeightUpdate(0, "", Probe((0,), (), 1.0)))
        await asked
        return [*counted, (await engine.server_metrics())["tokens_generated"]]

    assert run_virtually(play()) == pytest.approx([6.0, 10.0, 15.0])


def test_steps_that_the_clock_cannot_tell_apart_end_all_the_same() -> None:
    speeds = Speeds(step_s=1e-20, step_per_sample_s=0.0, prefill_per_token_s=0.0)
    assert _ends(speeds, 1, (1e6, _request(5)), (1e6, _request(7))) == pytest.approx([1e6, 1e6])


# --- whole runs


def _run(eta: int, late: Late = "mask", speeds: Speeds = STEADY, **changes: Any) -> Outcome:
    base = Scenario(Limits(16, eta, late), speeds, n_samples=1, slots=16, versions=60)
    return simulate(base.changed(**changes))


def test_synchronous_is_the_sum_of_both_times() -> None:
    """A batch takes 10 s to generate and 16 * 0.25 s to train: 14 s a version."""
    speeds = STEADY.changed(["train_per_sample_s=0.25"])
    outcome = _run(0, speeds=speeds)
    assert outcome.samples_per_s == pytest.approx(16 / 14)
    assert outcome.trainer_idle == pytest.approx(10 / 14)
    assert outcome.engine_idle == pytest.approx(4 / 14, abs=0.01)
    assert (outcome.worst_lag, outcome.wasted) == (0, 0.0)


@pytest.mark.parametrize("eta", [1, 2, 4])
@pytest.mark.parametrize("train_s", [5.0, 10.0, 20.0])
def test_asynchronous_reaches_the_bound_of_perfect_overlap(eta: int, train_s: float) -> None:
    """(Tg + Tt) / max(Tg, Tt) over synchronous; the promise is 95 % of it at equal times."""
    speeds = STEADY.changed([f"train_s={train_s}", "train_per_sample_s=0"])
    gain = _run(eta, speeds=speeds).samples_per_s / _run(0, speeds=speeds).samples_per_s
    bound = (10.0 + train_s) / max(10.0, train_s)
    assert gain >= 0.95 * bound
    assert gain <= 1.01 * bound


HEAVY = STEADY.changed(
    ["long_share=0.05", "long_factor=30", "length_sigma=0.3", "train_s=5", "publish_s=0.5"]
)
"""5 % of the episodes are 30 times longer."""


def _heavy(late: Late) -> Outcome:
    return _run(2, late, HEAVY, versions=400, slots=64)


def test_mask_keeps_the_bound_and_trains_the_long_ones() -> None:
    outcome = _heavy("mask")
    assert outcome.worst_lag <= 2
    assert outcome.masked > 0.3 * outcome.generated
    share = outcome.long_trained / outcome.samples
    assert share == pytest.approx(0.05, rel=0.2)


def test_drop_keeps_the_bound_and_loses_the_long_ones() -> None:
    outcome = _heavy("drop")
    assert (outcome.worst_lag, outcome.masked) == (2, 0)
    assert outcome.long_trained < 0.2 * 0.05 * outcome.samples
    assert outcome.counts["counts/dropped_stale"] > 0


def test_wait_keeps_both_and_takes_the_time() -> None:
    outcome = _heavy("wait")
    assert (outcome.worst_lag, outcome.masked) == (2, 0)
    assert outcome.long_trained / outcome.samples == pytest.approx(0.05, rel=0.2)
    assert outcome.wasted == 0.0
    assert outcome.samples_per_s < 0.5 * _heavy("mask").samples_per_s


def test_keep_has_no_bound() -> None:
    assert _heavy("keep").worst_lag > 10


@pytest.mark.parametrize("late", ["mask", "wait"])
def test_long_answers_and_slow_scores_are_no_stall(late: Late) -> None:
    """Nothing ends for 1000 s, a score takes 2000 s: longer than rollout.stall_timeout_s."""
    speeds = STEADY.changed(["length_mean=1000", "reward_s=2000"])
    assert _run(1, late, speeds, versions=12, max_new_tokens=2000).worst_lag <= 1


def test_failures_cost_their_own_places_only() -> None:
    outcome = _run(2, speeds=STEADY.changed(["failed=0.2", "length_sigma=0.5"]), versions=100)
    assert outcome.counts["counts/failed"] > 0
    assert outcome.worst_lag <= 2
    assert outcome.samples == 16 * (100 - 2 - 2)


@pytest.mark.parametrize(("refill", "size"), [(True, 16.0), (False, 12.0)])
def test_what_a_filter_rejects_is_replaced_or_leaves_the_batch_smaller(
    refill: bool, size: float
) -> None:
    speeds = STEADY.changed(["filtered=0.25"])
    outcome = _run(1, speeds=speeds, versions=200, refill=refill)
    counts = outcome.counts
    assert outcome.samples / (200 - 1 - 2) == pytest.approx(size, rel=0.03)
    assert counts["counts/filtered"] / counts["counts/admitted"] == pytest.approx(0.25, abs=0.02)


def test_the_versions_that_fill_the_pipeline_are_not_counted() -> None:
    """Whatever the staleness, few versions tell what many tell."""
    speeds = STEADY.changed(["train_s=5", "train_per_sample_s=0", "length_sigma=0.3"])
    few, many = (_run(4, speeds=speeds, versions=versions) for versions in (24, 400))
    assert few.samples == 16 * (24 - 6)
    assert few.samples_per_s == pytest.approx(many.samples_per_s, rel=0.05)


def test_a_simulation_repeats_itself() -> None:
    first, second = _heavy("mask"), _heavy("mask")
    assert (first.seconds, first.lags, first.counts) == (second.seconds, second.lags, second.counts)


# --- bad input


@pytest.mark.parametrize(
    ("text", "words"),
    [("speed=1", "no such speed"), ("step_s=x", "must be a number"), ("step_s=-1", "from 0 up")],
)
def test_a_wrong_speed_is_told(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Speeds().changed([text])
