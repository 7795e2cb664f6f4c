"""Mathematical equality, where math-verify is installed; its time-outs are the pool's."""

from __future__ import annotations

import asyncio
import sys

import pytest

from arealite.errors import ConfigError, Unscorable
from arealite.loading import load_object
from arealite.rewards import hostile
from arealite.rewards.pool import Pool
from arealite.rewards.template import Limits

REWARD = "arealite.rewards.maths:compute_score"


def test_without_the_library_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.delitem(sys.modules, "arealite.rewards.maths", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'arealite\[maths\]'"):
        load_object(REWARD)


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        (r"so \boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"so \boxed{\frac{2}{4}}", r"it is \boxed{\frac{1}{2}}", 1.0),
        (r"\boxed{x^2 - 1}", "(x-1)(x+1)", 1.0),
        (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1.0),
        (r"\boxed{1}, no, \boxed{2}", "1", 0.1),
        (r"\boxed{3}", r"\frac{1}{2}", 0.1),
        (r"\boxed{\frac{}", "1", 0.0),
        (r"\boxed{)(}", "1", 0.1),
        ("0.5", "0.5", 0.0),
    ],
)
def test_equality_is_mathematical(text: str, truth: str, score: float) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    assert load_object(REWARD)(text, truth, format_score=0.1) == score


def test_gold_that_is_no_expression_is_an_error_of_the_data() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    with pytest.raises(ValueError, match="the ground truth is no mathematical expression: ''"):
        load_object(REWARD)(r"\boxed{1}", "")


def test_hostile_boxes_cost_themselves() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    pool = Pool(REWARD, Limits(timeout_s=2.0, memory_mb=512))

    async def play() -> set[str]:
        reasons = set()
        for payload in hostile.PAYLOADS:
            try:
                assert await pool(f"\\boxed{{{payload}}}", "-77") == 0.0
            except Unscorable as error:
                reasons.add(error.reason)
        assert await pool(r"\boxed{-77.0}", "-77") == 1.0
        return reasons

    try:
        assert asyncio.run(play()) <= {"timeout", "memory", "killed", "raised"}
    finally:
        pool.close()
