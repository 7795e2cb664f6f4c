"""How fast the parts of a run are: what the simulator has to be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

from arealite.errors import ConfigError

MOST = 1e6
"""Seconds or tokens: what is larger was mistyped."""
LEAST_STEP_S = 1e-9
MOST_SIGMA = 5
MOST_FAILED = 0.4
MOST_FILTERED = 0.95


@dataclass(frozen=True)
class Speeds:
    """All in seconds or tokens. The defaults are those of the Countdown demo on two CPU cores.

    step_s, step_per_sample_s: one decode step of a server with n samples running takes
        step_s + n * step_per_sample_s. prefill_per_token_s: for each token of a prompt, computed
        once per group; a server decodes nothing meanwhile. prompt_tokens: of one prompt.
    length_mean, length_sigma: completion lengths are log-normal with this mean; sigma is that of
        the logarithm. long_share, long_factor: this share of the episodes is so many times longer.
    groups: measured completion lengths, one sequence per episode; where they are given they are
        drawn from, and the log-normal distribution is not used.
    reward_s, reward_sigma: scoring one sample, log-normal over the episodes as lengths are.
    train_per_sample_s: trainer's time per trained sample, all that
        is not waiting or publishing. train_s: the same per version, whatever the batch.
    publish_s: engines stand still so long for new weights. failed, filtered: shares of the
        episodes that fail, and that a filter rejects; rollout.filtered says what then happens.
    """

    step_s: float = 1.5e-3
    step_per_sample_s: float = 7e-5
    prefill_per_token_s: float = 6e-6
    prompt_tokens: int = 15
    length_mean: float = 22.0
    length_sigma: float = 0.25
    long_share: float = 0.0
    long_factor: float = 1.0
    groups: Sequence[Sequence[int]] = ()
    reward_s: float = 0.0
    reward_sigma: float = 0.0
    train_s: float = 0.0
    train_per_sample_s: float = 2.6e-3
    publish_s: float = 0.025
    failed: float = 0.0
    filtered: float = 0.0

    def lengths(self, chance: Random, n: int, most: int, is_long: bool) -> list[int]:
        """Completion lengths of one episode's n samples, each from 1 to `most`."""
        factor = self.long_factor if is_long else 1.0
        if self.groups:
            group = chance.choice(self.groups)
            drawn = [float(group[i % len(group)]) for i in range(n)]
        else:
            drawn = [_log_normal(chance, self.length_mean, self.length_sigma) for _ in range(n)]
        return [max(1, min(round(factor * length), most)) for length in drawn]

    def scoring(self, chance: Random) -> float:
        """Seconds that it takes to score one sample of an episode."""
        if not self.reward_s or not self.reward_sigma:
            return self.reward_s
        return _log_normal(chance, self.reward_s, self.reward_sigma)

    def changed(self, given: Sequence[str]) -> Speeds:
        """With `name=value` texts applied. Raises ConfigError where they cannot be simulated."""
        changes: dict[str, Any] = {}
        known = [f.name for f in fields(self) if f.name != "groups"]
        for text in given:
            name, _, value = text.partition("=")
            if name not in known:
                raise ConfigError(f"--set {text}: there is no such speed; there are {known}")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not 0 <= number <= MOST or (name == "prompt_tokens" and number % 1):
                whole = "whole " if name == "prompt_tokens" else ""
                raise ConfigError(
                    f"--set {text}: {value!r} must be a {whole}number from 0 up, at most {MOST:g}"
                )
            changes[name] = int(number) if name == "prompt_tokens" else number
        speeds = replace(self, **changes)
        speeds.check()
        return speeds

    def check(self) -> None:
        """Raises ConfigError with the first of these speeds that no run could have."""
        for wrong, sentence in (
            (
                self.step_s + self.step_per_sample_s < LEAST_STEP_S,
                f"step_s and step_per_sample_s are {self.step_s:g} and {self.step_per_sample_s:g}, "
                f"so a decode step takes no time; one of them must be at least {LEAST_STEP_S:g}",
            ),
            (
                not self.length_mean > 0,
                f"length_mean is {self.length_mean:g}, it must be above 0: tokens of a completion",
            ),
            (self.length_sigma > MOST_SIGMA, _at_most("length_sigma", self.length_sigma)),
            (self.reward_sigma > MOST_SIGMA, _at_most("reward_sigma", self.reward_sigma)),
            (
                self.long_share > 1,
                f"long_share is {self.long_share:g}, a share is at most 1",
            ),
            (
                self.failed > MOST_FAILED,
                f"failed is {self.failed:.2g}, the share of episodes that fail; it may be at most "
                f"{MOST_FAILED}, since a run ends when half of its episodes fail",
            ),
            (
                self.filtered > MOST_FILTERED,
                f"filtered is {self.filtered:.2g}, the share of episodes that a filter rejects; it "
                f"may be at most {MOST_FILTERED}, since a run ends when all are rejected",
            ),
        ):
            if wrong:
                raise ConfigError(
                    f"{sentence}; correct the profile or --set {sentence.split()[0]}=..."
                )


def _log_normal(chance: Random, mean: float, sigma: float) -> float:
    return chance.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


def _at_most(name: str, sigma: float) -> str:
    return f"{name} is {sigma:g}, it may be at most {MOST_SIGMA}: it is that of a logarithm"
