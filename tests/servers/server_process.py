"""A server of another project in a session of its own: started, watched, ended by pid.

It ends with the tests also when these are killed: arealite.processes leads it (see there).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import arealite.processes
from arealite.processes import LIFELINE

LAST_LINES, LINE = 25, 400
"""How many of a log's last lines are shown, and characters of each: some hold every setting."""

GRACE_S = 20.0


class DidNotStart(Exception):
    """A server died or was too slow; the message ends with its last lines."""


def free_port() -> int:
    """A port that was free a moment ago; these servers cannot be handed a socket."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


class ServerProcess:
    """`with ServerProcess(...) as server`: ready on entry, and nothing of it is left on exit.

    ready: the route that answers 200 once it serves. start_s: how long that may take.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        port: int,
        log: Path,
        ready: str,
        start_s: float,
    ) -> None:
        self.address, self.log = f"127.0.0.1:{port}", log
        self._ready, self._start_s = ready, start_s
        read_end, self._lifeline = os.pipe()
        led = (str(Path(arealite.processes.__file__)), *command)  # by path: PYTHONPATH is theirs
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                (sys.executable, "-P", *led),  # the folder of processes.py is no place for modules
                env={**os.environ, **environment, LIFELINE: str(read_end)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(read_end,),
            )
        os.close(read_end)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def __enter__(self) -> ServerProcess:
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        os.close(self._lifeline)

    def _wait(self) -> None:
        begun = time.monotonic()
        while (code := self.process.poll()) is None:
            try:
                self.get(self._ready, timeout_s=5.0)
                return
            except OSError:  # not there yet, or another answer than 200
                pass
            if time.monotonic() - begun > self._start_s:
                raise DidNotStart(f"not ready after {self._start_s:g} s; {self.last_lines()}")
            time.sleep(0.2)
        raise DidNotStart(f"ended with code {code} before it was ready; {self.last_lines()}")

    def last_lines(self) -> str:
        text = self.log.read_text(errors="replace")
        lines = [line[:LINE] for line in text.splitlines()[-LAST_LINES:]]
        return f"its last lines ({self.log}):\n" + "\n".join(lines)

    def get(self, path: str, timeout_s: float = 30.0) -> Any:
        return self._asked(urllib.request.Request(self.url + path), timeout_s)

    def post(self, path: str, body: Any = None, timeout_s: float = 60.0) -> Any:
        """The reply's JSON. Raises urllib.error.HTTPError for another status than 200."""
        data = json.dumps({} if body is None else body).encode()
        headers = {"Content-Type": "application/json"}
        return self._asked(urllib.request.Request(self.url + path, data, headers), timeout_s)

    def _asked(self, request: urllib.request.Request, timeout_s: float) -> Any:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            text = reply.read()
            if reply.status != 200:
                raise OSError(f"it answered {reply.status}")
        try:
            return json.loads(text)
        except ValueError:
            return text.decode(errors="replace")

    def end(self) -> None:
        """SIGTERM to the whole session, SIGKILL to what is left of it after the grace."""
        for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            for pid in self.members():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            end = time.monotonic() + wait_s
            while time.monotonic() < end:
                self.process.poll()  # reaps it
                if not self.members():
                    return
                time.sleep(0.05)
        raise AssertionError(f"processes {self.members()} of {self.process.args} cannot be ended")

    def members(self) -> list[int]:
        """The processes of this server's session that run: its workers lead groups of their own."""
        return members_of(self.process.pid)


def members_of(session: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found
