"""A model's own Python, for workers that are shut in: what it prints is what the model reads.

Nothing else may run it: a worker of reward.isolation strict has no network, no processes and no
files but Python's own, is ended at its limits, and serves one call.
"""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from typing import Any

MOST_PRINTED = 1 << 14
"""Characters; what is printed beyond them is not kept."""

_CODE = "<code>"


class _Printed(io.TextIOBase):
    def __init__(self) -> None:
        self.parts: list[str] = []
        self._room = MOST_PRINTED

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._room > 0:
            self.parts.append(text[: self._room])
            self._room -= len(text)
        return len(text)


def run(code: str) -> str:
    """What the code prints, and the error that it ends with, if it does."""
    printed = _Printed()
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.argv = [_CODE]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            exec(compile(code.strip("\n"), _CODE, "exec", dont_inherit=True), names)  # noqa: S102
        except MemoryError:
            raise
        except SystemExit:
            pass
        except BaseException as error:
            printed.write(_told(error))
    return "".join(printed.parts).strip("\n")


def _told(error: BaseException) -> str:
    """The last line of its traceback, with the line of the code where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == _CODE]
    if isinstance(error, SyntaxError) and error.lineno and not lines:
        lines = [error.lineno]
    where = f"line {lines[-1]}: " if lines else ""
    return where + traceback.format_exception_only(error)[-1].strip()
