"""Every failure that arealite names, and the exit code that each one becomes.

    ArealiteError
    |-- ConfigError         2   a config, dataset row, reward file or option that cannot be used
    |-- EpisodeError        -   costs one episode: counted by kind, its place is given back
    |   |-- EngineError         no server answered the request within its deadline and retries
    |   |-- EpisodeTimeout      it took longer than rollout.episode_timeout_s
    |   |-- Unscorable          the reward function could not score this sample
    |   `-- WorkflowError       the user's workflow raised, or returned something malformed
    |-- ErrorBudgetSpent    3   too many episodes failed
    |-- CheckpointError     4   no checkpoint that can be trusted
    |-- EnginesExhausted    5   no server with verified weights is left, or one died too often
    |-- Stall               6   a wait passed its deadline
    |-- NonFinite           7   NaN or inf on its way to the weights, three times in a row
    |-- Killed              8   the trainer was killed from outside: out of memory, or kill -9
    `-- Preempted          75   asked to stop; what was done is kept, run again to go on

An error outside this tree is a bug of arealite: exit 70. A failure is never a number: nothing in
this tree is ever turned into a reward.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_BUG = 70

_HERE = os.path.dirname(__file__)


class ArealiteError(Exception):
    """A failure with a sentence for people: what happened, where, and the remedy."""

    exit_code = EXIT_BUG


class ConfigError(ArealiteError):
    """The user's input cannot be used; nothing was started."""

    exit_code = 2


class EpisodeError(ArealiteError):
    """One episode is lost; the run goes on."""

    kind = "episode"


class EngineError(EpisodeError):
    """No inference server answered this request."""

    kind = "engine"


class EpisodeTimeout(EpisodeError):
    """The episode took longer than it may."""

    kind = "timeout"


class Unscorable(EpisodeError):
    """The reward function could not score this sample.

    reason: raised | timeout | killed | memory | junk (it returned what is no finite number) |
    service (a judge or scorer did not answer).
    tail: the end of the reward's own traceback, where there is one.
    """

    kind = "unscorable"

    def __init__(self, sentence: str, reason: str = "raised", tail: str = "") -> None:
        super().__init__(sentence)
        self.reason, self.tail = reason, tail


class WorkflowError(EpisodeError):
    """The user's workflow raised, or returned something that is not a list of trajectories."""

    kind = "workflow"


class ErrorBudgetSpent(ArealiteError):
    """So many episodes failed that going on would only hide the cause."""

    exit_code = 3


class CheckpointError(ArealiteError):
    """A checkpoint is missing, incomplete or damaged."""

    exit_code = 4


class EnginesExhausted(ArealiteError):
    """No inference server is left that could serve verified weights."""

    exit_code = 5


class Stall(ArealiteError):
    """A wait passed its deadline; the message names its owner."""

    exit_code = 6


class NonFinite(ArealiteError):
    """NaN or inf was found before it could reach the weights."""

    exit_code = 7


class Killed(ArealiteError):
    """The trainer was killed from outside, most often because the machine's memory ran out."""

    exit_code = 8


class Preempted(ArealiteError):
    """The run was asked to stop."""

    exit_code = 75


def require_extra(package: str, wish: str, extra: str) -> None:
    """Raises ConfigError where an optional package is not installed; imports nothing.

    wish: the clause that says what asks for it. extra: what arealite[...] calls it.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # the latter is a mere folder of that name
        raise ConfigError(f"{wish}, but {package} is not installed: pip install arealite[{extra}]")


def words(error: BaseException) -> str:
    """`KeyError: 'answer'`; an error of a user's may fail at saying what it says."""
    try:
        text = str(error)
    except Exception as another:
        text = f"(its __str__ raises {type(another).__name__})"
    return f"{type(error).__name__}: {text}"


def place(frames: traceback.StackSummary) -> str:
    """`(file, line n)`: the last of these frames; or, where arealite only said no to what its
    caller gave, the last one before arealite's own. There must be one."""
    outside = max((i for i, f in enumerate(frames) if not f.filename.startswith(_HERE)), default=-1)
    last = frames[outside]
    return f"({last.filename}, line {last.lineno})"


@contextmanager
def boundary(say: Callable[[str], None] | None = None) -> Iterator[None]:
    """The outermost frame of every process: turns an error into one sentence and an exit code.

    Raises SystemExit with the code of the error tree above. Only a bug shows a traceback, since
    only then has the reader to look into the code.
    """
    tell = say or (lambda sentence: print(sentence, file=sys.stderr, flush=True))
    try:
        yield
    except ArealiteError as error:
        tell(f"arealite: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        tell("arealite: stopped by Ctrl-C")
        raise SystemExit(Preempted.exit_code) from None
    except Exception as error:  # the one place where a bug is caught: to give it its exit code
        tell(f"arealite: this is a bug in arealite: {words(error)}")
        tell(traceback.format_exc())
        raise SystemExit(EXIT_BUG) from None
