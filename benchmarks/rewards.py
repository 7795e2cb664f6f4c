"""What the reward workers cost, and what a hang costs the others.

    python benchmarks/rewards.py [--calls 500] [--rounds 20] [--out benchmarks/results]

The Countdown reward on 40-character answers, in turns within each round: inline, in the pool
(standard and strict isolation), in the standard library's ProcessPoolExecutor, and in pebble's pool
where that is installed. A figure is milliseconds per call above inline, over calls that are all
under way at once: the least and the median of the rounds, since a busy machine only adds. Then
10,000 calls of which every hundredth hangs, with 2 workers and with 8: how many of the other scores
are right, and how long a call waits for its score while 32 are under way.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from saving import save

from arealite.errors import Unscorable
from arealite.loading import load_object
from arealite.rewards.pool import Pool
from arealite.rewards.scorer import Scorer
from arealite.rewards.template import Limits

COUNTDOWN = "examples/countdown/reward_score.py:compute_score"
TEXT = "I add them. <answer>(7 - 3) * 6</answer>"
TRUTH = {"target": 24, "numbers": [7, 3, 6]}
WORKERS = 2
HANG = """
import time
def compute_score(solution_str, ground_truth):
    if solution_str == "hang":
        time.sleep(3600)
    return float(ground_truth)
"""

Score = Callable[[str, Any], Awaitable[Any]]


def score_countdown(text: str, truth: Any) -> Any:
    """What the libraries' pools call; each of their workers loads the file once."""
    return load_object(COUNTDOWN)(text, truth)


def of_executor(pool: concurrent.futures.Executor) -> Score:
    async def score(text: str, truth: Any) -> Any:
        future = pool.submit(score_countdown, text, truth)
        return await asyncio.wrap_future(future)

    return score


def of_pebble(pool: Any) -> Score:
    async def score(text: str, truth: Any) -> Any:
        future = pool.schedule(score_countdown, args=[text, truth], timeout=10)
        return await asyncio.wrap_future(future)

    return score


async def ms_per_call(score: Score, calls: int) -> float:
    await asyncio.gather(*[score(TEXT, TRUTH) for _ in range(2 * WORKERS)])
    started = time.perf_counter()
    scores = await asyncio.gather(*[score(TEXT, TRUTH) for _ in range(calls)])
    took = time.perf_counter() - started
    assert scores == [1.0] * calls
    return took / calls * 1000


async def compare(calls: int, rounds: int, pools: dict[str, Pool]) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    ways: dict[str, tuple[Score, int]] = {
        "inline": (Scorer(load_object(COUNTDOWN), COUNTDOWN), calls),
        **{
            name: (pool, calls if name == "standard" else calls // 20)
            for name, pool in pools.items()
        },
    }
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=spawn) as executor:
        ways["ProcessPoolExecutor"] = (of_executor(executor), calls)
        try:
            pebble: Any = importlib.import_module("pebble")
        except ImportError:
            library = None
        else:
            library = pebble.ProcessPool(max_workers=WORKERS, context=spawn)
            ways["pebble"] = (of_pebble(library), calls)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (score, n) in ways.items():
                found[name].append(await ms_per_call(score, n))
        if library is not None:
            library.stop()
    inline = found["inline"]
    above: dict[str, dict[str, float]] = {}
    for name, times in found.items():
        if name != "inline":
            differences = [a - b for a, b in zip(times, inline, strict=True)]
            above[name] = {"least": min(differences), "median": statistics.median(differences)}
    least = {"least": min(inline), "median": statistics.median(inline)}
    return {"inline_ms": least, "ms_above_inline": above, "rounds": found}


async def hangs(pool: Pool, calls: int, is_hanging: bool) -> dict[str, float]:
    """Every hundredth call hangs, or none; 32 calls are under way at once."""
    places, waits, right, timed_out = asyncio.Semaphore(32), [], 0, 0

    async def one(i: int) -> None:
        nonlocal right, timed_out
        async with places:
            started = time.perf_counter()
            try:
                score = await pool("hang" if is_hanging and i % 100 == 50 else "x", i)
                right += score == i
                waits.append(time.perf_counter() - started)
            except Unscorable as error:
                timed_out += error.reason == "timeout"

    await asyncio.gather(*[one(i) for i in range(calls)])
    return {
        "right": right,
        "timed_out": timed_out,
        "p50_ms": statistics.median(waits) * 1000,
        "p99_ms": statistics.quantiles(waits, n=100)[98] * 1000,
    }


def measure(calls: int, rounds: int) -> dict[str, Any]:
    pools = {
        "standard": Pool(COUNTDOWN, Limits(WORKERS)),
        "strict": Pool(COUNTDOWN, Limits(WORKERS, isolation="strict")),
    }
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(compare(calls, rounds, pools))
        for pool in pools.values():
            pool.close()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "hanging_reward.py")
            file.write_text(HANG)
            for workers in (2, 8):
                pool = Pool(f"{file}:compute_score", Limits(workers, timeout_s=0.2))
                for name, is_hanging in (("none", False), ("1 in 100", True)):
                    row = runner.run(hangs(pool, 10_000, is_hanging))
                    result[f"hangs: {name}, {workers} workers"] = row
                pool.close()
    return result


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--calls", type=int, default=500)
    command.add_argument("--rounds", type=int, default=20)
    command.add_argument("--out", type=Path)
    options = command.parse_args()
    result = measure(options.calls, options.rounds)
    shown = {key: value for key, value in result.items() if key != "rounds"}
    json.dump(shown, sys.stdout, indent=1)
    print()
    save(options.out, "rewards", result)


if __name__ == "__main__":
    main()
