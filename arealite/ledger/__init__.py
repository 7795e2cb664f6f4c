"""Every sample id of a run, accounted for exactly once: what was planned and what became of it."""

from arealite.ledger.account import Account, AccountError
from arealite.ledger.book import Ledger
from arealite.ledger.reading import Reading, read_ledger

__all__ = ["Account", "AccountError", "Ledger", "Reading", "read_ledger"]
