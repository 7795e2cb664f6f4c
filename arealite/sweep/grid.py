"""`key=a,b,c` and seeds -> trials: each a name, its settings, and the overrides that make it."""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from arealite.config.source import split
from arealite.errors import ConfigError

NAMED = ("trial_name", "experiment_name", "fileroot")
"""Settings of which a sweep has one; a trial's name is made from its settings."""
LONGEST_NAME = 200
"""Of a trial, which becomes a folder's."""


@dataclass(frozen=True)
class Trial:
    """settings: (key, value) of what the sweep varies, but for the seed. fixed: `key=value`."""

    name: str
    settings: tuple[tuple[str, str], ...]
    seed: str | None
    fixed: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        varied = tuple(f"{key}={value}" for key, value in self.settings)
        seed = () if self.seed is None else (f"seed={self.seed}",)
        return (*self.fixed, *varied, *seed, f"trial_name={self.name}")

    @property
    def label(self) -> str:
        """Its settings in words, the same for all seeds."""
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.settings)


def grid(overrides: Sequence[str], seeds: str = "") -> list[Trial]:
    """All trials, the first setting varying slowest and the seed fastest. Raises ConfigError."""
    fixed: list[str] = []
    varied: dict[str, list[str]] = {}
    for override in overrides:
        key, value = split(override)
        if key in ("trial_name",):
            raise ConfigError(f"{override}: a sweep names its trials itself; leave it out")
        values = choices(value)
        if key in varied or any(split(other)[0] == key for other in fixed):
            raise ConfigError(f"{key} is given twice; give all its values at once: {key}=a,b")
        if len(values) == 1:
            fixed.append(override)
        elif key in NAMED:
            raise ConfigError(f"{override}: a sweep has one {key}; give one value")
        else:
            varied[key] = values
    chosen: list[str | None] = list(choices(seeds)) if seeds else [None]
    if seeds and ("seed" in varied or any(split(other)[0] == "seed" for other in fixed)):
        raise ConfigError("seed is given beside --seeds; leave one of them out")
    _check_different(varied | {"--seeds": [s for s in chosen if s is not None]})
    return [
        Trial(_name(tuple(zip(varied, values, strict=True)), seed), tuple(
            zip(varied, values, strict=True)), seed, tuple(fixed))
        for values in itertools.product(*varied.values())
        for seed in chosen
    ]  # fmt: skip


def choices(text: str) -> list[str]:
    """`a,[b,c],"d,e"` -> its three parts: commas in brackets and quotes do not part."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _check_different(varied: dict[str, list[str]]) -> None:
    for key, values in varied.items():
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ConfigError(f"{key}: {twice[0] or 'an empty value'} is given twice")


def _name(settings: tuple[tuple[str, str], ...], seed: str | None) -> str:
    """`temperature0.6-lr1e-4-seed2`: the same settings always have the same name."""
    last = Counter(key.rpartition(".")[2] for key, _ in settings)
    parts = [
        (key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key) + value
        for key, value in settings
    ]
    written = "-".join([*parts, *([] if seed is None else [f"seed{seed}"])]) or "only"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", written)
    if name != written or len(name) > LONGEST_NAME:  # what is replaced must still tell it apart
        name = f"{name[:LONGEST_NAME]}-{zlib.crc32(written.encode()):08x}"
    return name
