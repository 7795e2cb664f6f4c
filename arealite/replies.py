"""HTTP replies: how long to pause before the next attempt, and how much of one is read."""

from __future__ import annotations

import aiohttp

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0


def pause_s(count: int) -> float:
    """Seconds before the next try: doubling from the first pause to the longest."""
    return min(FIRST_PAUSE_S * 2.0 ** min(count, 32), LONGEST_PAUSE_S)


def retry_after_s(reply: aiohttp.ClientResponse) -> float | None:
    """How many seconds a refusal asks to be left alone, if it says so. The other form that HTTP
    allows, a date, is ignored."""
    try:
        seconds = float(reply.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


async def content(reply: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The whole body. Raises ValueError when it is longer than any answer can be."""
    body = bytearray()
    async for piece in reply.content.iter_any():
        body += piece
        if len(body) > most_bytes:
            raise ValueError(f"it answered more than {most_bytes} bytes")
    return bytes(body)
