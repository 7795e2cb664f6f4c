"""Servers of tests: what is told when one does not start, and that nothing of one is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import server_environment
from server_process import DidNotStart, ServerProcess, free_port, members_of

SERVER = """
    import http.server, subprocess, sys
    subprocess.Popen(["sleep", "600"])
    answer = http.server.SimpleHTTPRequestHandler
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), answer).serve_forever()
"""
DEAF = "import time; print('loading', flush=True); time.sleep(600)"
DEAD = "print('no such model' + '!' * 9999, flush=True); raise SystemExit(3)"


def started(text: str, log: Path, start_s: float = 60.0) -> ServerProcess:
    port = free_port()
    command = [sys.executable, "-c", textwrap.dedent(text), str(port)]
    return ServerProcess(command, {}, port, log, "/", start_s)


def test_what_a_server_has_started_ends_with_it(tmp_path: Path) -> None:
    with started(SERVER, tmp_path / "log") as server:
        assert len(server.members()) == 3  # who leads it, the server, and its child
    assert server.members() == []


@pytest.mark.parametrize(
    ("text", "start_s", "said"),
    [(DEAD, 60.0, "ended with code 3 before it was ready"), (DEAF, 1.0, "not ready after 1 s")],
)
def test_one_that_does_not_start_says_why_with_its_last_lines(
    tmp_path: Path, text: str, start_s: float, said: str
) -> None:
    server = started(text, tmp_path / "log", start_s)
    with pytest.raises(DidNotStart, match=f"{said}; its last lines") as caught, server:
        pass
    assert server.members() == []
    assert len(str(caught.value)) < 1000
    assert ("no such model" in str(caught.value)) == (text is DEAD)


HOLDER = """
    import sys, time
    from pathlib import Path
    from test_server_process import SERVER, started
    with started(SERVER, Path(sys.argv[1])) as server:
        print(server.process.pid, flush=True)
        time.sleep(600)
"""


def test_it_ends_with_the_tests_also_when_these_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "log")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        session = int(holder.stdout.readline())
    assert members_of(session)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    end = time.monotonic() + 60
    while left := members_of(session):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_an_environment_is_of_its_list_of_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_environment, "packages", lambda kind: tmp_path / f"{kind}.txt")
    monkeypatch.setenv("AREALITE_ENVS", str(tmp_path))
    (tmp_path / "vllm.txt").write_text("torch==2.13.0\n")
    first = server_environment.folder("vllm")
    assert first == server_environment.folder("vllm")
    assert first.parent == tmp_path
    (tmp_path / "vllm.txt").write_text("torch==2.13.1\n")
    assert server_environment.folder("vllm") != first


def test_a_python_of_ones_own_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AREALITE_VLLM_PYTHON", sys.executable)
    assert server_environment.build("vllm") == Path(sys.executable)
    monkeypatch.setenv("AREALITE_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(SystemExit, match="AREALITE_VLLM_PYTHON is /nowhere/python: there is no"):
        server_environment.build("vllm")
