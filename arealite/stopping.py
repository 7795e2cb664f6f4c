"""SIGTERM and SIGINT: the first asks the run to stop where its state can be kept, the second stops
it at once, the third leaves it to the kernel.

A signal is for the whole process, and so is what is kept here.
"""

from __future__ import annotations

import signal

from arealite.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_received: list[int] = []


def listen() -> None:
    """From now on the two signals only ask. Call it in the main thread."""
    _received.clear()
    for number in _SIGNALS:
        signal.signal(number, _on_signal)


def is_asked() -> bool:
    """Whether the run was asked to stop."""
    return bool(_received)


def is_urgent() -> bool:
    """Whether it was asked twice: nothing more is kept."""
    return len(_received) > 1


def check() -> None:
    """Raises Preempted where the run was asked to stop. Call it where its state is whole."""
    if _received:
        raise Preempted(f"stopped by {signal.Signals(_received[0]).name}")


def _on_signal(number: int, frame: object) -> None:
    _received.append(number)
    if is_urgent():
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        check()
