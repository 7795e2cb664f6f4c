"""The trainer's end of one reward worker, on the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

MOST_ANSWER = 1 << 20
"""Bytes of an answer; a score takes a hundred."""


class Seat:
    """At most one call at a time. What the worker says without being asked is its end."""

    def __init__(
        self, number: int, generation: int, peer: socket.socket, lost: Callable[[Seat], object]
    ) -> None:
        self.number, self.generation = number, generation
        self.is_open = True
        self._peer, self._lost = peer, lost
        self._loop = asyncio.get_running_loop()
        self._heard = bytearray()
        self._unsent = memoryview(b"")
        self._answer: asyncio.Future[bytes | None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        peer.setblocking(False)
        self._loop.add_reader(peer, self._hear)

    def ask(self, line: bytes, timeout_s: float) -> asyncio.Future[bytes | None]:
        """Sends a line; the future holds the answer's line, or None where the worker has ended.

        It raises TimeoutError after timeout_s.
        """
        self._answer = self._loop.create_future()
        # Cheaper than asyncio.timeout, which is a tenth of a call.
        self._deadline = self._loop.call_later(timeout_s, self._late, self._answer)
        self._unsent = memoryview(line)
        self._send()
        if self._unsent:
            self._loop.add_writer(self._peer, self._send)
        return self._answer

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            if self._deadline is not None:
                self._deadline.cancel()
            if not self._loop.is_closed():
                self._loop.remove_reader(self._peer)
                self._loop.remove_writer(self._peer)
            self._peer.close()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._peer.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:  # it has ended; what it says shows that, too
            self._unsent = memoryview(b"")
        if not self._unsent:
            self._loop.remove_writer(self._peer)

    def _late(self, answer: asyncio.Future[bytes | None]) -> None:
        if not answer.done():
            answer.set_exception(TimeoutError())

    def _hear(self) -> None:
        try:
            data = self._peer.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        if data and not data.endswith(b"\n") and len(self._heard) <= MOST_ANSWER:
            return
        answer, self._answer = self._answer, None
        if self._deadline is not None:
            self._deadline.cancel()
        said = bytes(self._heard) if data and len(self._heard) <= MOST_ANSWER else None
        self._heard.clear()
        if answer is None:
            self._lost(self)
        elif not answer.done():  # a caller that was cancelled gives the seat up by itself
            if said is None:
                self._loop.remove_reader(self._peer)
            answer.set_result(said)
