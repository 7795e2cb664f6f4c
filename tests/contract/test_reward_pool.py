"""The worker pool: the contract of Scorer, in processes that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from arealite.errors import ConfigError, ErrorBudgetSpent, Unscorable
from arealite.rewards import pool as pools
from arealite.rewards import template
from arealite.rewards.pool import Pool
from arealite.rewards.template import Limits

REWARD = """
import os, sys, time
calls = []
def compute_score(solution_str, ground_truth):
    calls.append(1)
    match solution_str:
        case "pid": return os.getpid()
        case "calls": return len(calls)
        case "parent": return os.getppid()
        case "hang": time.sleep(600)
        case "exit": os._exit(3)
        case "raise": raise KeyError(ground_truth)
        case "nothing": return None
        case "argv": return len(sys.argv)
    return {"length": len(solution_str), "truth": ground_truth}
"""


@contextmanager
def opened(folder: Path, text: str = REWARD, **limits: Any) -> Iterator[Pool]:
    (folder / "pool_reward.py").write_text(text)
    pool = Pool(f"{folder / 'pool_reward.py'}:compute_score", Limits(**limits))
    try:
        yield pool
    finally:
        pool.close()


def run(play: Callable[[], Awaitable[Any]]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(play())  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(is_so: Callable[[], bool]) -> None:
    """Waits for what must come; pytest's time-out ends what never does."""
    while not is_so():
        time.sleep(0.01)


def test_scores_and_components_are_those_of_the_function(tmp_path: Path) -> None:
    with opened(tmp_path) as pool:

        async def play() -> Any:
            texts = ["", "abc", "\ud800 \u0663 \x00\n", "x" * 3_000_000]
            return await asyncio.gather(*[pool(text, i) for i, text in enumerate(texts)])

        assert run(play) == [
            {"length": float(n), "truth": float(i)} for i, n in enumerate([0, 3, 6, 3_000_000])
        ]


def test_the_file_is_loaded_once_and_each_worker_answers_many_calls(tmp_path: Path) -> None:
    loads = tmp_path / "loads"
    text = REWARD + f"\nwith open({str(loads)!r}, 'a') as f: f.write('x')\n"
    with opened(tmp_path, text, workers=3) as pool:

        async def play() -> set[float]:
            return {await pool("pid", None) for _ in range(12)}

        assert len(run(play)) == 3
    assert loads.read_text() == "x"


def test_more_calls_than_workers_wait_for_their_turn(tmp_path: Path) -> None:
    with opened(tmp_path) as pool:

        async def play() -> list[Any]:
            return await asyncio.gather(*[pool("a" * n, 0) for n in range(500)])

        assert [score["length"] for score in run(play)] == list(range(500))


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("raise", "raised", r":compute_score raised KeyError: 7 \(line 12\)$"),
        ("nothing", "junk", "returned None; it must return a finite number"),
        ("exit", "killed", r"ended its worker process after \d\.\d s: exit code 3"),
        ("hang", "timeout", r"did not return within reward.timeout_s = 1 s and was killed"),
    ],
)
def test_what_cannot_be_scored_is_told_and_the_next_call_is_scored(
    tmp_path: Path, text: str, reason: str, says: str
) -> None:
    with opened(tmp_path, workers=1, timeout_s=1) as pool:

        async def play() -> Unscorable:
            with pytest.raises(Unscorable, match=says) as told:
                await pool(text, 7)
            assert await pool("abc", 1) == {"length": 3.0, "truth": 1.0}
            return told.value

        error = run(play)
    assert error.reason == reason
    assert ("pool_reward.py" in error.tail) == (reason == "raised")


def test_a_killed_worker_is_gone_and_another_has_its_place(tmp_path: Path) -> None:
    with opened(tmp_path, workers=2, timeout_s=1) as pool:

        async def play() -> None:
            before = {int(await pool("pid", 0)) for _ in range(2)}
            for _ in range(3):
                with pytest.raises(Unscorable):
                    await pool("hang", 0)
            after = {int(await pool("pid", 0)) for _ in range(4)}
            assert len(after) == 2
            assert not before & after
            until(lambda: not any(map(is_alive, before)))

        run(play)


def test_a_worker_that_dies_while_idle_costs_no_sample(tmp_path: Path) -> None:
    with opened(tmp_path, workers=1) as pool:

        async def play() -> None:
            first = int(await pool("pid", 0))
            os.kill(first, signal.SIGKILL)
            until(lambda: not is_alive(first))
            await asyncio.sleep(0.01)  # one turn of the loop, which hears of it
            assert await pool("pid", 0) != first

        run(play)


def test_the_template_may_die_and_the_pool_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "MOST_RESTARTS", 2)
    with opened(tmp_path, workers=2) as pool:

        async def kill() -> None:
            template = int(await pool("parent", 0))
            workers = {int(await pool("pid", 0)) for _ in range(2)}
            os.kill(template, signal.SIGKILL)
            until(lambda: not any(map(is_alive, workers)))
            await asyncio.sleep(0.01)

        async def play() -> None:
            for _ in range(2):
                await kill()
                assert len({await pool("pid", 0) for _ in range(4)}) == 2

        run(play)


def test_a_template_that_dies_again_and_again_ends_the_run(tmp_path: Path) -> None:
    text = (
        "import os\ndef compute_score(s, t):\n    os.kill(os.getppid(), 9)\n    while True: pass\n"
    )
    with opened(tmp_path, text, workers=1, isolation="off") as pool:

        async def play() -> None:
            for _ in range(20):
                with pytest.raises(Unscorable, match="SIGKILL"):
                    await pool("", 0)

        with pytest.raises(ErrorBudgetSpent, match=r"workers are made ended 11 times.*SIGKILL"):
            run(play)


def test_a_cancelled_call_gives_its_worker_up(tmp_path: Path) -> None:
    with opened(tmp_path, workers=1, timeout_s=600) as pool:

        async def play() -> Any:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await pool("hang", 0)
            return await pool("abc", 1)

        assert run(play) == {"length": 3.0, "truth": 1.0}


def test_a_thread_or_an_alarm_that_is_left_never_meets_the_next_call(tmp_path: Path) -> None:
    text = """
import signal, threading, time
calls = []
def compute_score(s, t):
    calls.append(1)
    if s == "thread": threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if s == "alarm": signal.setitimer(signal.ITIMER_REAL, 0.05)
    if s == "sleep": time.sleep(0.2)
    return len(calls)
"""
    with opened(tmp_path, text, workers=1) as pool:

        async def play() -> list[Any]:
            return [await pool(s, 0) for s in ("x", "alarm", "sleep", "thread", "x")]

        assert run(play) == [1, 2, 3, 4, 1]


def test_an_awaitable_is_awaited_and_an_async_function_is_known(tmp_path: Path) -> None:
    text = "async def compute_score(s, t):\n    return 0.5\n"
    with opened(tmp_path, text) as pool:
        assert pool.signatures[0].is_async
        assert run(lambda: pool("", 0)) == 0.5


def test_ground_truth_that_is_no_json_is_bad_input(tmp_path: Path) -> None:
    with opened(tmp_path) as pool:
        with pytest.raises(ConfigError, match=r"as JSON.*answer_key .*reward\.mode=inline"):
            run(lambda: pool("x", {"seen": object()}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_of_this_name", "line 1 cannot be imported: ModuleNotFoundError"),
        ("def compute_score(text): ...", "does not fit"),
        ("other = 1", "has no 'compute_score'"),
        ("import os; os._exit(4)", "loading .*:compute_score ended its process: exit code 4"),
        ("import time; time.sleep(600)", r"is not loaded after 1 s \(rollout.setup_timeout_s\)"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.setattr(template, "END_S", 0.1)
    limit = 1.0 if "sleep" in text else 60.0
    with pytest.raises(ConfigError, match=says):
        with opened(tmp_path, text, load_timeout_s=limit):
            pass


def test_no_process_outlives_a_trainer_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "pool_reward.py").write_text(REWARD)
    trainer = f"""
        import asyncio
        from arealite.rewards.pool import Pool
        from arealite.rewards.template import Limits
        pool = Pool({str(tmp_path / "pool_reward.py")!r} + ":compute_score", Limits(timeout_s=600))
        async def play():
            first = [pool("pid", 0), pool("pid", 0), pool("parent", 0)]
            print(*[int(x) for x in await asyncio.gather(*first)], flush=True)
            await asyncio.gather(pool("hang", 0), pool("hang", 0))
        asyncio.run(play())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(trainer)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(set(pids)) == 3
        process.kill()
    until(lambda: not any(map(is_alive, pids)))


def test_closing_leaves_no_process_while_calls_hang(tmp_path: Path) -> None:
    with opened(tmp_path, timeout_s=600) as pool:

        async def play() -> list[int]:
            pids = [int(await pool(what, 0)) for what in ("pid", "pid", "parent")]
            hanging = asyncio.create_task(pool("hang", 0))
            await asyncio.sleep(0.05)
            pool.close()
            hanging.cancel()
            return pids

        pids = run(play)
    until(lambda: not any(map(is_alive, pids)))
