"""`python -m arealite.rewards check FILE`: see check.py."""

from __future__ import annotations

from arealite.errors import boundary
from arealite.rewards.check import main

if __name__ == "__main__":
    with boundary():
        raise SystemExit(main())
