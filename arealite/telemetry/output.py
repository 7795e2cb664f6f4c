"""Standard output that may be gone or full, which is never a reason for a traceback."""

from __future__ import annotations

import io
import os
import sys


def show(text: str) -> OSError | None:
    """Prints at once; returns what hindered it. After that, later output goes nowhere.

    A character that the terminal's encoding lacks is shown as "?".
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        print(text, flush=True)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # a flush at exit would fail as well
        os.close(nowhere)
        return error
    return None
