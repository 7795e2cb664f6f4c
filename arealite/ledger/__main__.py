"""python -m arealite.ledger RUN: the account of a run folder, and whether it closes.

Exit code 0 where it closes, 4 where it does not or cannot be read, 2 where there is none.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from arealite.errors import CheckpointError, ConfigError, boundary
from arealite.ledger.account import FATES, Account
from arealite.ledger.reading import Reading, read_ledger
from arealite.telemetry.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m arealite.ledger", description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder, or a ledger.jsonl")
    path = parser.parse_args().run
    path = RunFolder(path).ledger if path.is_dir() else path
    with boundary():
        try:
            reading = read_ledger(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        if reading.account is None:
            raise CheckpointError(f"{path} says nothing: {reading.damage or 'it is empty'}")
        for line in report(reading, reading.account):
            print(line)
        problems = reading.problems()
        if problems:
            raise CheckpointError(f"{path} does not close: {'; '.join(problems)}")
        print("closes: every planned row is in exactly one place")


def report(reading: Reading, account: Account) -> Iterator[str]:
    """The account in lines of columns."""
    settled, counts, tokens = account.settled, account.counts, account.tokens
    yield f"{reading.lines} lines up to number {reading.sequence}"
    yield f"rows         {settled.rows} in an epoch; {settled.whole} whole epoch(s) settled"
    for epoch, size in settled.sizes().items():
        yield f"             of epoch {epoch}: {size} settled"
    yield f"planned      {counts['planned']:>10,}    tokens {tokens['generated']:>13,}"
    for fate in FATES:
        yield f"  {fate:<11}{counts[fate]:>10,}           {tokens[fate]:>13,}"
        if fate == "trained" and counts["left_out"]:
            yield f"    left out {counts['left_out']:>10,}  (of these: NaN or inf in their update)"
    finished = len(account.open) - account.in_flight
    yield (
        f"  finished   {finished:>10,}           {account.buffered_tokens:>13,}"
        "  (waiting to be trained)"
    )
    yield f"  in flight  {account.in_flight:>10,}"
    yield (
        f"rolled back  {counts['rolled_back']:>10,}           {tokens['rolled_back']:>13,}"
        "  (by crashes; to do again)"
    )
    committed = f"version {account.committed}" if account.committed >= 0 else "none"
    yield f"checkpoint   {committed}"


if __name__ == "__main__":
    main()
