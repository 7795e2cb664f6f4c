"""Fixtures of the client's tests; a module loads them with `pytest_plugins`."""

from __future__ import annotations

import pytest

from arealite import replies


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again after milliseconds."""
    monkeypatch.setattr(replies, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(replies, "LONGEST_PAUSE_S", 0.02)
