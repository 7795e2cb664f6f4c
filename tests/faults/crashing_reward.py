"""A reward function that does to its process what the sample's text says."""

import ctypes
import os
import re
import sys
import threading
import time
from typing import Any

KEPT: list[Any] = []


def compute_score(solution_str: str, ground_truth: Any) -> float:
    act = ACTS.get(solution_str)
    if act is not None:
        act()
    return float(ground_truth) * 2


def _raise() -> None:
    raise ValueError("a grader's bug")


def _exit() -> None:
    sys.exit(0)


def _segfault() -> None:
    ctypes.string_at(0)


def _memory() -> None:
    while True:
        KEPT.append(bytearray(10**7))


def _fork_bomb() -> None:
    while True:
        os.fork()


def _thread_bomb() -> None:
    while True:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def _bare_except() -> None:
    while True:
        try:
            while True:
                time.sleep(0.001)
        except:  # noqa: E722
            pass


def _power() -> None:
    KEPT.append(10**10**8)


def _regex() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")


def _closed_stdout() -> None:
    os.close(1)
    sys.stdout.close()
    print("?")


def _closed_everything() -> None:
    os.closerange(0, 256)


ACTS = {
    "raise": _raise,
    "exit": _exit,
    "segfault": _segfault,
    "memory": _memory,
    "fork bomb": _fork_bomb,
    "thread bomb": _thread_bomb,
    "bare except": _bare_except,
    "power": _power,
    "regex": _regex,
    "closed stdout": _closed_stdout,
    "closed everything": _closed_everything,
    "hang": lambda: time.sleep(600),
}
