"""Signals that ask a run to stop where its state can be kept, or at once where they insist.

SIGTERM and SIGINT ask, and the second of them stops the run at once; a third is the kernel's.
SIGUSR1 only ever asks, however often it comes: a job scheduler sends it as a warning before the
SIGTERM that it sends to all processes, and so does the launcher to its trainer, which may have had
the scheduler's SIGTERM already.

A signal is for the whole process, and so is what is kept here.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from arealite.errors import Preempted

REQUEST = signal.SIGUSR1
"""Asks, and never urges."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, REQUEST)

_received: list[int] = []


def listen() -> None:
    """From now on the signals only ask. Call it in the main thread."""
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _on_signal)


@contextmanager
def interrupted() -> Iterator[None]:
    """Inside, each signal raises Preempted at once: where there is nothing to be kept."""

    def stop(number: int, frame: object) -> None:
        raise Preempted(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_asked() -> bool:
    """Whether the run was asked to stop."""
    return bool(_received)


def is_urgent() -> bool:
    """Whether it is to stop at once: nothing more is kept."""
    return sum(number != REQUEST for number in _received) > 1


def check() -> None:
    """Raises Preempted where the run was asked to stop. Call it where its state is whole."""
    if _received:
        raise Preempted(f"stopped by {signal.Signals(_received[0]).name}")


def _on_signal(number: int, frame: object) -> None:
    _received.append(number)
    if is_urgent():
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        check()
