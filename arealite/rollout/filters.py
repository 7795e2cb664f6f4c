"""Which finished episodes are trained: shipped filters by name, users' own by import path."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from arealite.errors import ConfigError, place, words
from arealite.loading import load_filter
from arealite.types import Episode

Keep = Callable[[Episode], bool]
"""keep(episode): whether it is trained."""


def rewards_differ(episode: Episode) -> bool:
    """Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): a group of equal rewards has no
    advantage, so it teaches nothing. Trajectories of different names are no group."""
    earned = {(t.name, t.reward) for t in episode.trajectories}
    return len(earned) > len({name for name, _ in earned})


def any_complete(episode: Episode) -> bool:
    """Where every sample was cut off by its length, no reward says anything about an answer."""
    return not all(t.truncated for t in episode.trajectories)


SHIPPED: dict[str, Keep] = {"equal_rewards": rewards_differ, "overlong": any_complete}
"""By what each of them filters out."""


def keep_of(names: Sequence[str]) -> Keep:
    """What passes all of them. Raises ConfigError for a name that is neither shipped nor code;
    and keep does, for a filter that raises or that answers neither True nor False."""
    filters = {name: SHIPPED[name] if name in SHIPPED else load_filter(name) for name in names}
    return lambda episode: all(_passes(name, filters[name], episode) for name in filters)


def _passes(name: str, function: Keep, episode: Episode) -> bool:
    """A user's code may raise anything, or end the interpreter, or answer anything."""
    row = f"for row {episode.sample_id}"
    try:
        answer: object = function(episode)
    except (Exception, SystemExit) as error:
        at = place(traceback.extract_tb(error.__traceback__))
        raise ConfigError(f"filter {name} raised {words(error)} {at} {row}") from error
    # numpy's own truth value is no bool, and numpy is not imported for it
    if not isinstance(answer, bool) and type(answer).__name__ not in ("bool", "bool_"):
        raise ConfigError(
            f"filter {name} returned {answer!r} {row}; it returns True, which trains the episode, "
            "or False"
        )
    return bool(answer)
