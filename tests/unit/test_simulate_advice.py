"""The simulator's table and its one sentence of advice: never a false one."""

from __future__ import annotations

import pytest

from arealite.simulate.outcome import Outcome
from arealite.simulate.report import Setting, advice, table


def _outcome(samples_per_s: float, trained: int = 1000, wasted: float = 0.0) -> Outcome:
    """Ten trained tokens per sample."""
    return Outcome(
        seconds=trained / samples_per_s / 10,
        samples=trained // 10,
        trained=trained,
        generated=round(trained / (1 - wasted)),
    )


def test_a_small_gain_is_not_worth_staleness() -> None:
    grid = {Setting(1, 8, 0): _outcome(100), Setting(1, 8, 1): _outcome(109)}
    said = advice(grid)
    assert said.startswith("stay synchronous, rollout.max_head_offpolicyness=0")
    assert "nothing in this grid trains tokens more than 9% faster, and" in said


def test_of_equals_the_least_stale_is_advised() -> None:
    """1.80 / 1.85 is within 3 % of the best, 1.85 / 1.80 is 2.8 % faster."""
    grid = {Setting(1, 8, eta): _outcome(v) for eta, v in ((0, 100), (1, 180), (2, 184), (4, 185))}
    said = advice(grid)
    assert said.startswith("take rollout.max_head_offpolicyness=1 ")
    assert "180 samples/s, 1800 trained tokens/s, 1.80 times the fastest synchronous" in said
    assert said.endswith("more than 3% faster")


def test_what_is_told_of_the_rest_is_told_of_the_best() -> None:
    """The best is 13.2 % faster than synchronous, which is worth it; eta 1 is within 3 % of it."""
    grid = {Setting(1, 8, eta): _outcome(v) for eta, v in ((0, 1000), (1, 1099), (2, 1132))}
    said = advice(grid)
    assert said.startswith("take rollout.max_head_offpolicyness=1 ")
    assert "1.10 times" in said
    assert said.endswith("nothing in this grid trains tokens more than 4% faster")


@pytest.mark.parametrize(
    ("smaller", "larger", "batch", "rest"),
    [
        (100, 98, 32, "tokens faster"),
        (98, 100, 32, "tokens more than 3% faster"),
        (96, 100, 64, "tokens faster"),
    ],
)
def test_of_synchronous_ones_the_smallest_within_three_percent(
    smaller: float, larger: float, batch: int, rest: str
) -> None:
    grid = {Setting(1, 32, 0): _outcome(smaller), Setting(1, 64, 0): _outcome(larger)}
    said = advice(grid)
    assert said.startswith("stay synchronous")
    assert f"batch_size={batch} " in said
    assert rest in said


def test_a_smaller_batch_may_not_hide_a_gain_that_is_worth_it() -> None:
    """109 is 12 % over 97.5: only over 100 is it less than what is worth staleness."""
    grid = {
        Setting(1, 32, 0): _outcome(97.5),
        Setting(1, 64, 0): _outcome(100),
        Setting(1, 64, 1): _outcome(109),
    }
    assert "batch_size=64 " in advice(grid)
    assert "more than 9% faster" in advice(grid)


def test_a_server_more_has_to_earn_its_place() -> None:
    grid = {Setting(n, 8, 1): _outcome(v) for n, v in ((1, 100), (2, 150), (4, 152))}
    assert "rollout.n_servers=2: 150 samples/s" in advice(grid)
    assert "more than 2% faster" in advice(grid)


def test_servers_are_not_counted_as_staleness_gain() -> None:
    grid = {
        Setting(1, 8, 0): _outcome(100),
        Setting(1, 8, 1): _outcome(150),
        Setting(2, 8, 0): _outcome(151),
    }
    assert "1.50 times the fastest synchronous setting on at most 1 server(s)" in advice(grid)


def test_waste_is_told_and_not_taken_for_speed() -> None:
    """At eta 1 twice the samples reach a batch, with 5.3 of their 10 tokens: 1.06 times."""
    wasteful = Outcome(seconds=1.0, samples=200, trained=1060, generated=2000)
    grid = {Setting(1, 8, 0): _outcome(100), Setting(1, 8, 1): wasteful}
    assert advice(grid).startswith("stay synchronous")
    assert "more than 6% faster" in advice(grid)
    assert "47% of what it samples is wasted" in advice({Setting(1, 8, 1): wasteful})
    assert "wasted" not in advice({Setting(1, 8, 1): _outcome(100, wasted=0.04)})


@pytest.mark.parametrize(
    ("rate", "text"), [(0.00123456, "0.00123"), (1.5, "1.50"), (1234.5, "1234"), (99.96, "100")]
)
def test_a_tiny_rate_keeps_its_digits(rate: float, text: str) -> None:
    assert f": {text} samples/s" in advice({Setting(1, 8, 0): _outcome(rate)})


def test_the_table_has_a_line_per_setting() -> None:
    lines = list(table({Setting(1, 8, 1): _outcome(0.002), Setting(1, 8, 0): _outcome(0.001)}))
    assert len(lines) == 3
    assert lines[1].startswith("      1     8   0 |")
    assert " 0.00100 " in lines[1]
