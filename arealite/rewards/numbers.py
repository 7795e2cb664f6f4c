"""Numbers as people write them -> exact values: `1,234.50`, `$18`, `-3`, `3/4`, `50%`."""

from __future__ import annotations

import re
from fractions import Fraction

MOST_CHARACTERS = 64

_FORM = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\?[$€£])?\s*"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?:\.(?P<part>\d+))?\.?\s*"
    r"(?:/\s*(?P<below>\d+)\s*)?(?P<percent>\\?%)?",
    re.ASCII,
)


def number(text: str) -> Fraction | None:
    """The exact value; None for anything else, also for digits that are not ASCII.

    The currency sign and the percent sign are units and are passed over: 50% is 50.
    """
    text = text.strip()
    if len(text) > MOST_CHARACTERS:
        return None
    found = _FORM.fullmatch(text)
    if found is None or not (found["whole"] or found["part"]):
        return None
    whole = (found["whole"] or "0").replace(",", "")
    value = Fraction(f"{whole}.{found['part'] or '0'}")
    if found["below"] is not None:
        if int(found["below"]) == 0:
            return None
        value /= int(found["below"])
    return -value if found["sign"] == "-" else value
