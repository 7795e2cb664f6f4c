"""Addresses of servers, known before they run and nobody else's as long as the launcher lives."""

from __future__ import annotations

import socket

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server that listens everywhere is reached from here."""


def bound(host: str, *, listens: bool) -> socket.socket:
    """A socket on a free port of this host. Raises OSError for a host that is not this machine's.

    listens: it is to be handed down. Else it only keeps the port: Linux lets a server bind the
    same port when both have said that it may be used again and none of them listened before, and
    gives it to nobody who asks for any free port. vLLM and SGLang say so.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if listens:
        return socket.create_server((host, 0), family=family, backlog=1024)
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, 0))
    except OSError:
        door.close()
        raise
    return door


def address_of(door: socket.socket) -> str:
    """host:port, as a client asks it."""
    host, port = door.getsockname()[:2]
    host = ANYWHERE.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
