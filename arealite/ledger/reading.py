"""ledger.jsonl: checked lines, read back.

One JSON object per line: `n` counts the lines of a run without a gap, `event` and its fields are
those of account.py, `crc` is the CRC-32 of the bytes before it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arealite.ledger.account import Account, AccountError
from arealite.telemetry.run_folder import to_line

_MARK = b',"crc":"'


def checked_line(mapping: Mapping[str, Any]) -> bytes:
    """One line with its digest and its line end."""
    body = to_line(mapping)[:-2]  # without `}` and the line end
    return b'%s%s%08x"}\n' % (body, _MARK, zlib.crc32(body))


def checked(line: bytes) -> dict[str, Any] | None:
    """The object of a line that is whole and unchanged, else None."""
    body, mark, digest = line.rpartition(_MARK)
    if not mark or digest != b'%08x"}\n' % zlib.crc32(body):
        return None
    value = json.loads(body + b"}")
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Reading:
    """account: after the last good line; None where there is none. sequence: that line's number, or
    -1. size: bytes up to its end. damage: what is wrong after it; "" where the file ends there.
    torn: that is no more than a last line that was never ended, as a crash leaves one.
    """

    account: Account | None
    sequence: int
    lines: int
    size: int
    damage: str = ""
    torn: bool = False

    def problems(self) -> list[str]:
        """Why it does not close; a last line without its end is what a crash leaves, and none."""
        damage = [self.damage] if self.damage and not self.torn else []
        return damage + (self.account.problems() if self.account is not None else [])


def read_ledger(path: Path) -> Reading:
    """What the file says, up to the first line that cannot be believed. Raises OSError."""
    account: Account | None = None
    sequence, lines, size = -1, 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                damage = f"line {number} has no end"
                return Reading(account, sequence, lines, size, damage, torn=True)
            try:
                found = checked(line)
                if found is None:
                    raise AccountError("its digest is another")
                if lines and not _follows(found, sequence):
                    raise AccountError(f"number {found['n']} follows {sequence}")
                account = _after(account, found)
            except (AccountError, KeyError, TypeError, ValueError) as error:
                damage = f"line {number}: {error}"
                return Reading(account, sequence, lines, size, damage)
            sequence, lines, size = found["n"], lines + 1, size + len(line)
    return Reading(account, sequence, lines, size)


def _follows(line: Mapping[str, Any], sequence: int) -> bool:
    """An account needs none of the lines before it: some were lost with a crash, or a full disk."""
    number = line["n"]
    return bool(number == sequence + 1 or (line["event"] == "account" and number > sequence))


def _after(account: Account | None, line: Mapping[str, Any]) -> Account:
    if line["event"] == "account":
        return Account.from_json(line["state"])
    if account is None:
        raise AccountError("it does not begin with an account")
    account.apply(line["event"], line)
    return account
