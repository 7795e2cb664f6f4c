"""A set of sample ids that stays small: one bit for each row of an epoch that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Settled:
    """Ids "epoch:index" with 0 <= index < rows. Epochs that are whole are kept as their number."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.whole = 0
        """So many first epochs hold every row."""
        self._epochs: dict[int, bytearray] = {}
        self._sizes: dict[int, int] = {}

    def add(self, sample_id: str) -> bool:
        """False where it is in the set already. Raises ValueError for what is no id of these."""
        epoch, index = self._place(sample_id)
        if epoch < self.whole:
            return False
        bits = self._epochs.setdefault(epoch, bytearray((self.rows + 7) // 8))
        if bits[index >> 3] >> (index & 7) & 1:
            return False
        bits[index >> 3] |= 1 << (index & 7)
        self._sizes[epoch] = self._sizes.get(epoch, 0) + 1
        while self._sizes.get(self.whole) == self.rows:
            del self._sizes[self.whole], self._epochs[self.whole]
            self.whole += 1
        return True

    def __contains__(self, sample_id: str) -> bool:
        epoch, index = self._place(sample_id)
        if epoch < self.whole:
            return True
        bits = self._epochs.get(epoch)
        return bits is not None and bool(bits[index >> 3] >> (index & 7) & 1)

    def __len__(self) -> int:
        return self.whole * self.rows + sum(self._sizes.values())

    def sizes(self) -> dict[int, int]:
        """How many rows of each epoch that is under way are in the set."""
        return dict(sorted(self._sizes.items()))

    def to_json(self) -> dict[str, Any]:
        epochs = {str(epoch): bytes(bits).hex() for epoch, bits in sorted(self._epochs.items())}
        return {"rows": self.rows, "whole": self.whole, "epochs": epochs}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Settled:
        """Raises KeyError, TypeError or ValueError for what to_json did not write."""
        settled = cls(int(state["rows"]))
        settled.whole = int(state["whole"])
        for epoch, bits in state["epochs"].items():
            settled._epochs[int(epoch)] = bytearray.fromhex(bits)
            settled._sizes[int(epoch)] = int(bits or "0", 16).bit_count()
        return settled

    def _place(self, sample_id: str) -> tuple[int, int]:
        epoch, _, index = sample_id.partition(":")
        place = int(epoch), int(index)
        if place[0] < 0 or not 0 <= place[1] < self.rows:
            raise ValueError(f"{sample_id!r} is no row of {self.rows}")
        return place
