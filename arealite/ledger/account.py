"""Where each sample id is: a pure state machine over the ledger's events.

    planned -> finished -> trained | stale
            -> filtered | failed

An id that was planned is open until it is settled in exactly one of the four ways; one that is
settled is never planned again. What a crash took back is to do once more: rolled back.

    event      fields              meaning
    account    state, why, to      all that was before, as a state: where a ledger begins, where it
                                   was compacted, and where a run went on from the sequence `to`
    planned    id, version         admitted; its episode begins
    finished   id, tokens          its episode ended, and waits to be trained
    filtered   id, tokens          its episode ended, and a filter (or its workflow) rejects it
    failed     id                  its episode failed
    stale      id                  it waited too long, and is dropped
    trained    ids, version        this version was made of them
    left_out   rows, version,      so many of them belong to optimizer updates that were left out,
               updates             since their numbers were not finite: nothing was learned there
    committed  version, to         a checkpoint holds all up to the sequence `to`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from arealite.ledger.settled import Settled

IN_FLIGHT = -1
FATES = ("trained", "filtered", "stale", "failed")


class AccountError(Exception):
    """An event that cannot be true after those before it."""


class Account:
    """open: ids that are planned and not settled, with the tokens of a finished episode, or
    IN_FLIGHT. counts: planned, the four fates, rolled_back, and left_out, which are of the
    trained. tokens: sampled ones, likewise.
    """

    def __init__(self, rows: int) -> None:
        self.settled = Settled(rows)
        self.open: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.committed = -1
        """The version of the newest checkpoint that is known; -1: none."""

    @property
    def in_flight(self) -> int:
        return sum(tokens == IN_FLIGHT for tokens in self.open.values())

    @property
    def buffered_tokens(self) -> int:
        return sum(tokens for tokens in self.open.values() if tokens != IN_FLIGHT)

    def is_known(self, sample_id: str) -> bool:
        """Whether it is open or settled: nothing that is to be planned."""
        return sample_id in self.open or sample_id in self.settled

    def apply(self, event: str, fields: Mapping[str, Any]) -> None:
        """Raises AccountError, and changes nothing, where the event cannot be true."""
        if event == "planned":
            self._plan(fields["id"])
        elif event == "finished":
            self._finish(fields["id"], fields["tokens"])
        elif event == "trained":
            for sample_id in fields["ids"]:
                self._settle(sample_id, "trained", self._finished(sample_id, event))
        elif event == "left_out":
            self.counts["left_out"] += fields["rows"]
        elif event == "stale":
            self._settle(fields["id"], event, self._finished(fields["id"], event))
        elif event in ("filtered", "failed"):
            self._end(fields["id"], event, fields.get("tokens", 0))
        elif event == "committed":
            self.committed = fields["version"]
        else:
            raise AccountError(f"there is no event {event!r}")

    def roll_back(self, lost: Account | None = None) -> None:
        """What is in flight here is to do again; so is what only `lost`, a later account of the
        same run, knows."""
        taken = [i for i, tokens in self.open.items() if tokens == IN_FLIGHT]
        for sample_id in taken:
            del self.open[sample_id]
        self.counts["planned"] -= len(taken)
        self.counts["rolled_back"] += len(taken)
        if lost is not None:
            more = lost.counts["planned"] - self.counts["planned"] - len(taken)
            self.counts["rolled_back"] += max(more, 0)
            wasted = lost.tokens["generated"] - self.tokens["generated"]
            self.tokens["rolled_back"] += max(wasted, 0)

    def problems(self) -> list[str]:
        """Why the account does not close; empty where it does."""
        counts, tokens, open_ones = self.counts, self.tokens, len(self.open)
        ended = sum(counts[fate] for fate in FATES)
        told = [f"{counts[fate]} {fate}" for fate in FATES]
        problems = []
        if counts["planned"] != ended + open_ones:
            problems.append(
                f"{counts['planned']} planned are not {' + '.join(told)} + {open_ones} open"
            )
        if len(self.settled) != ended:
            problems.append(f"{len(self.settled)} ids are settled, not {' + '.join(told)}")
        if double := [i for i in self.open if i in self.settled]:
            problems.append(f"{double[0]} is open and settled")
        spent = sum(tokens[fate] for fate in FATES) + self.buffered_tokens
        if tokens["generated"] != spent:
            problems.append(f"{tokens['generated']} tokens were generated, {spent} are accounted")
        return problems

    def to_json(self) -> dict[str, Any]:
        return {
            "settled": self.settled.to_json(),
            "open": dict(self.open),
            "counts": dict(self.counts),
            "tokens": dict(self.tokens),
            "committed": self.committed,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Account:
        """Raises AccountError for what to_json did not write."""
        try:
            account = cls(0)
            account.settled = Settled.from_json(state["settled"])
            account.open = {str(i): int(tokens) for i, tokens in state["open"].items()}
            account.counts = Counter({str(k): int(v) for k, v in state["counts"].items()})
            account.tokens = Counter({str(k): int(v) for k, v in state["tokens"].items()})
            account.committed = int(state["committed"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AccountError(f"the state cannot be read: {error!r}") from None
        return account

    def _plan(self, sample_id: str) -> None:
        try:
            known = self.is_known(sample_id)
        except ValueError as error:
            raise AccountError(str(error)) from None
        if known:
            raise AccountError(f"{sample_id} is planned, but it was before")
        self.open[sample_id] = IN_FLIGHT
        self.counts["planned"] += 1

    def _finish(self, sample_id: str, tokens: int) -> None:
        self._check_in_flight(sample_id, "finished")
        self.open[sample_id] = tokens
        self.tokens["generated"] += tokens

    def _end(self, sample_id: str, fate: str, tokens: int) -> None:
        self._check_in_flight(sample_id, fate)
        self.tokens["generated"] += tokens
        self._settle(sample_id, fate, tokens)

    def _settle(self, sample_id: str, fate: str, tokens: int) -> None:
        del self.open[sample_id]
        self.settled.add(sample_id)
        self.counts[fate] += 1
        self.tokens[fate] += tokens

    def _finished(self, sample_id: str, event: str) -> int:
        tokens = self.open.get(sample_id, IN_FLIGHT)
        if tokens == IN_FLIGHT:
            raise AccountError(f"{sample_id} is {event}, but it is not finished")
        return tokens

    def _check_in_flight(self, sample_id: str, event: str) -> None:
        if self.open.get(sample_id) != IN_FLIGHT:
            raise AccountError(f"{sample_id} is {event}, but it is not in flight")
