"""Several reward functions as one: each a named component, the reward their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arealite.errors import Unscorable
from arealite.rewards.scorer import Outcome, Score, alone
from arealite.rewards.signature import Signature
from arealite.telemetry.waits import Waits, together
from arealite.types import Completion


@dataclass(frozen=True)
class Component:
    """name: "" for the only function (rollout.reward_fn), whose score stays as it is.

    label: how sentences call it. check: looks at a row, where the function offers that.
    """

    label: str
    signature: Signature
    group: Callable[[Sequence[Completion]], Awaitable[list[Outcome]]]
    name: str = ""
    weight: float = 1.0
    check: Callable[[Mapping[str, Any]], object] | None = None

    def weighted(self, score: Score) -> Score:
        """Its share of the reward: a component of its name, or one for each named part."""
        if not self.name:
            return score
        if isinstance(score, dict):
            return {f"{self.name}/{part}": self.weight * value for part, value in score.items()}
        return {self.name: self.weight * score}


class Composed:
    """`await reward_fn(solution_str, ground_truth)`; see arealite.rewards.scorer.Scoring.

    All components of a group run at once. A sample that one of them cannot score has no reward:
    a sum without that component would be another reward than its siblings'.
    """

    def __init__(self, components: Sequence[Component], waits: Waits) -> None:
        self._components, self._waits = components, waits

    async def __call__(self, solution_str: str, ground_truth: Any) -> Score:
        return alone(await self.group([Completion(solution_str, ground_truth)]))

    async def group(self, completions: Sequence[Completion]) -> list[Outcome]:
        scored = await together(self._scored(c, completions) for c in self._components)
        return [self._sum(outcomes) for outcomes in zip(*scored, strict=True)]

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raises ValueError where a function takes a column that the row does not have."""
        for component in self._components:
            lacking = component.signature.lacking(row)
            if lacking:
                raise ValueError(f"the reward function {component.label} {lacking}")
            if component.check is not None:
                component.check(row)

    async def _scored(
        self, component: Component, completions: Sequence[Completion]
    ) -> list[Outcome]:
        with self._waits.on(f"reward function {component.label}", "scores"):
            return await component.group(completions)

    def _sum(self, outcomes: Sequence[Outcome]) -> Outcome:
        parts: dict[str, float] = {}
        for component, outcome in zip(self._components, outcomes, strict=True):
            if isinstance(outcome, Unscorable):
                return outcome
            score = component.weighted(outcome)
            if not isinstance(score, dict):
                return score
            parts |= score
        if not math.isfinite(sum(parts.values())):
            return Unscorable("the weighted sum of its rewards is not finite", "junk")
        return parts
