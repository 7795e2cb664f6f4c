"""Several reward functions of every form as one reward, in workers and in the trainer."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from arealite.config import Config, load
from arealite.errors import Unscorable
from arealite.rewards.compose import Composed
from arealite.rewards.opening import open_reward
from arealite.rewards.scorer import Outcome
from arealite.telemetry.waits import Waits
from arealite.types import Completion, ModelResponse, Trajectory

FUNCTIONS = """
import asyncio, os, time

def own(solution_str, ground_truth):
    if solution_str == "raise": raise ValueError("own")
    if solution_str == "hang": time.sleep(600)
    if solution_str == "exit": os._exit(3)
    return float(solution_str == ground_truth)

def parts(solution_str, ground_truth):
    return {"length": len(solution_str), "digits": sum(map(str.isdigit, solution_str))}

def areal(prompt, completions, prompt_ids, completion_ids, answer, **data):
    assert prompt == "<user>2+2?" and prompt_ids == [7, 8]
    return len(completion_ids) + data["level"]

calls = 0
def trl(completions, answer, **columns):
    global calls
    calls += 1
    if "raise" in completions: raise ValueError("trl")
    if "short" in completions: return [1.0]
    if "scalar" in completions: return 1.0
    if "hang" in completions: time.sleep(600)
    return [None if c == "none" else float("nan") if c == "nan" else calls for c in completions]

def rank(completions):
    order = sorted(completions, key=len)
    return [order.index(c) / len(order) for c in completions]

async def later(solution_str, ground_truth):
    if solution_str == "slow": await asyncio.sleep(600)
    await asyncio.sleep(0)
    return os.getpid()

def pid(solution_str, ground_truth):
    return os.getpid()

async def both(completions, **columns):
    return [OSError("no line") if c == "fails" else 0.5 for c in completions]
"""

ROW = {"query": "2+2?", "answer": "4", "level": 2}


def group_of(*texts: str) -> list[Completion]:
    return [
        Completion(text, "4", "2+2?", "<user>2+2?", [7, 8], [ord(c) for c in text], ROW)
        for text in texts
    ]


def config_of(folder: Path, functions: Any, **reward: Any) -> Config:
    (folder / "composed_functions.py").write_text(FUNCTIONS)
    listed = [{"path": f} if isinstance(f, str) else {**f} for f in functions]
    for function in listed:
        if ":" not in function["path"]:
            function["path"] = f"{folder / 'composed_functions.py'}:{function['path']}"
    alone = f"{folder / 'composed_functions.py'}:parts"
    file = folder / "composed.yaml"
    file.write_text(
        json.dumps(
            {
                "experiment_name": "composed",
                "actor": {"path": "model"},
                "train_dataset": {"path": "rows.jsonl"},
                "gconfig": {"n_samples": 2},
                **({} if listed else {"rollout": {"reward_fn": alone}}),
                "reward": {"functions": listed, "workers": 2, **reward},
            }
        )
    )
    return load(file)


@contextmanager
def opened(folder: Path, *functions: Any, **reward: Any) -> Iterator[Composed]:
    with open_reward(config_of(folder, functions, **reward)) as composed:
        yield composed


def run(play: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(play)


def shown(outcomes: Sequence[Outcome]) -> list[Any]:
    return [f"{o.reason}: {o}" if isinstance(o, Unscorable) else o for o in outcomes]


@pytest.mark.parametrize("mode", ["pool", "inline"])
def test_the_reward_is_the_weighted_sum_of_named_components(tmp_path: Path, mode: str) -> None:
    functions = (
        {"path": "own", "weight": 2.0, "name": "right"},
        {"path": "parts", "weight": 0.5},
        {"path": "areal", "weight": -0.1},
        "rank",
    )
    with opened(tmp_path, *functions, mode=mode) as composed:
        outcomes = run(composed.group(group_of("4", "four4")))
    expected = [
        {"right": 2.0, "parts/length": 0.5, "parts/digits": 0.5, "areal": -0.3, "rank": 0.0},
        {"right": 0.0, "parts/length": 2.5, "parts/digits": 0.5, "areal": -0.7, "rank": 0.5},
    ]
    assert outcomes == [pytest.approx(parts, abs=1e-12) for parts in expected]
    response = ModelResponse([1], [2], [-1.0], [0], "stop")
    played = tuple(Trajectory.from_response(response, outcome) for outcome in outcomes)
    assert [t.reward for t in played] == pytest.approx([2.7, 2.8], abs=1e-12)


def test_a_function_of_a_group_sees_all_samples_of_a_prompt_in_one_call(tmp_path: Path) -> None:
    with opened(tmp_path, "trl", workers=1) as composed:

        async def play() -> list[Any]:
            return [await composed.group(group_of(*"abc")), await composed.group(group_of(*"ab"))]

        first, second = run(play())
    assert first == [{"trl": 1.0}] * 3
    assert second == [{"trl": 2.0}] * 2


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("4", "none"), [{"trl": 1.0}, "junk: NAME returned None; it must return a finite number"]),
        (("4", "nan"), [{"trl": 1.0}, "junk: NAME returned nan; it must return a finite number"]),
        (
            ("4", "short"),
            ["junk: NAME returned 1 scores; it must return a list of 2, one per sample"] * 2,
        ),
        (
            ("4", "scalar"),
            ["junk: NAME returned 1.0; it must return a list of 2, one per sample"] * 2,
        ),
        (("4", "raise"), ["raised: NAME raised ValueError: trl (line 21)"] * 2),
    ],
)
@pytest.mark.parametrize("mode", ["pool", "inline"])
def test_what_a_group_function_does_not_score_is_told(
    tmp_path: Path, mode: str, texts: tuple[str, ...], says: list[Any]
) -> None:
    with opened(tmp_path, "trl", mode=mode, workers=1) as composed:
        outcomes = shown(run(composed.group(group_of(*texts))))
    name = f"trl ({tmp_path / 'composed_functions.py'}:trl)"
    expected = [s.replace("NAME", name) if isinstance(s, str) else s for s in says]
    assert outcomes == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise", "raised: right (FILE:own) raised ValueError: own (line 5)"),
        ("hang", "timeout: right (FILE:own) did not return within its timeout_s = 1 s and was k"),
        ("exit", "killed: right (FILE:own) ended its worker process after 0."),
    ],
)
def test_a_component_that_fails_costs_its_sample_and_is_named(
    tmp_path: Path, text: str, says: str
) -> None:
    right = {"path": "own", "name": "right", "timeout_s": 1}
    with opened(tmp_path, right, "parts", "rank") as composed:
        good, bad = shown(run(composed.group(group_of("4", text))))
    assert good == {"right": 1.0, "parts/length": 1.0, "parts/digits": 1.0, "rank": 0.0}
    assert bad.startswith(says.replace("FILE", str(tmp_path / "composed_functions.py")))


def test_a_hanging_group_function_is_killed_and_costs_its_group(tmp_path: Path) -> None:
    with opened(tmp_path, "trl", "own", timeout_s=1) as composed:

        async def play() -> list[Any]:
            both = composed.group(group_of("4", "hang")), composed.group(group_of("4", "x"))
            return [shown(outcomes) for outcomes in await asyncio.gather(*both)]

        hung, good = run(play())
    assert all("trl (" in o and "within reward.timeout_s = 1 s and was killed" in o for o in hung)
    assert [o["own"] for o in good] == [1.0, 0.0]


def test_async_functions_run_here_and_the_others_in_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    config = config_of(tmp_path, ("later", "pid"))
    with open_reward(config, told.append) as composed:
        [outcome] = run(composed.group(group_of("4")))
    assert outcome["later"] == os.getpid() != outcome["pid"]
    file = tmp_path / "composed_functions.py"
    assert (
        " ".join([*told, capsys.readouterr().out])
        .strip()
        .endswith(
            f"; in the trainer, where nothing is refused, because async: later ({file}:later)"
        )
    )


def test_async_functions_have_a_deadline_and_their_turn(tmp_path: Path) -> None:
    later = {"path": "later", "timeout_s": 0.2, "max_concurrent": 1}
    with opened(tmp_path, later) as composed:
        # Four in turn take 0.8 s: each deadline begins with its turn.
        outcomes = shown(run(composed.group(group_of("slow", "slow", "4", "slow"))))
    assert isinstance(outcomes[2], dict)
    assert [o for o in outcomes if o != outcomes[2]] == [
        f"timeout: later ({tmp_path / 'composed_functions.py'}:later) did not return within its "
        "timeout_s = 0.2 s"
    ] * 3


def test_an_async_group_function_may_fail_for_one_sample(tmp_path: Path) -> None:
    with opened(tmp_path, "both") as composed:
        good, bad = shown(run(composed.group(group_of("4", "fails"))))
    assert good == {"both": 0.5}
    assert bad.startswith("raised: both (")
    assert bad.endswith("raised OSError: no line")


def test_a_call_that_is_cancelled_leaves_nothing_waiting(tmp_path: Path) -> None:
    waits = Waits()
    config = config_of(tmp_path, ("own", {"path": "later", "max_concurrent": 1}))
    with open_reward(config, waits=waits) as composed:

        async def play() -> list[Outcome]:
            task = asyncio.create_task(composed.group(group_of("hang", "slow")))
            while waits.count() < 2:
                await asyncio.sleep(0)
            owners = {wait["owner"].partition(" (")[0] for wait in waits.summary()}
            assert owners == {"reward function own", "reward function later"}
            task.cancel()
            await asyncio.wait([task])
            assert waits.count() == 0
            return await composed.group(group_of("4", "4"))

        assert len(run(play())) == 2


def test_a_row_without_a_column_that_a_function_takes_is_bad_input(tmp_path: Path) -> None:
    with opened(tmp_path, "own", "trl") as composed:
        composed.check_row(ROW)
        with pytest.raises(ValueError, match=r"the reward function trl \(.*\) takes answer, and"):
            composed.check_row({"query": "2+2?"})


RECIPE = (
    {"path": "arealite.rewards.formats:strict_format", "weight": 0.5, "name": "strict"},
    {"path": "arealite.rewards.formats:soft_format", "weight": 0.3, "name": "soft"},
    {"path": "arealite.rewards.formats:integer_answer", "weight": 0.5, "name": "integer"},
    {"path": "arealite.rewards.formats:count_tags", "weight": 0.5, "name": "tags"},
    {"path": "arealite.rewards.gsm8k:compute_score", "weight": 2.0, "name": "correct"},
)


def test_the_five_rewards_of_the_gsm8k_recipe(tmp_path: Path) -> None:
    recipe = [{**f, "kwargs": {"thought": "reasoning"}} for f in RECIPE]
    for index in (2, 4):
        del recipe[index]["kwargs"]
    right = "<reasoning>\nhm\n</reasoning>\n<answer>\n72\n</answer>\n"
    spaced = "<reasoning>hm</reasoning> <answer>72.</answer>"
    wrong = "<reasoning>hm</reasoning> it is 72 <answer>7</answer> so"
    texts = [Completion(text, "so\n#### 72") for text in (right, spaced, wrong, "72")]
    with opened(tmp_path, *recipe) as composed:
        outcomes = run(composed.group(texts))
    rewards = [sum(outcome.values()) for outcome in outcomes]
    # by hand: tags 0.5 * (1 - 2 * 0.002) for the two letters behind the last tag
    assert rewards == pytest.approx([3.8, 2.8, 0.998, 0.0], abs=1e-12)
    assert list(outcomes[0].items()) == [
        ("strict", 0.5), ("soft", 0.3), ("integer", 0.5), ("tags", 0.5), ("correct", 2.0)
    ]  # fmt: skip


def test_the_names_of_a_single_reward_fn_are_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as composed:
        assert run(composed("44x", "4")) == {"length": 3.0, "digits": 2.0}
