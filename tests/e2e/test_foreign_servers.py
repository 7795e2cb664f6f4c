"""Servers of other projects under the launcher: programs that know nothing of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arealite.errors import EnginesExhausted
from arealite.launch.local import Supervisor
from arealite.launch.plan import Plan
from arealite.launch.servers import Process
from arealite.processes import KEY

DEADLINE_S = 60.0

SERVER = """
import http.server, json, os, subprocess, sys

port = int(sys.argv[sys.argv.index("--port") + 1])
listed = os.listdir(os.environ["PYTHONPATH"].split(os.pathsep)[0])
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
told = {
    "pid": os.getpid(), "worker": worker.pid, "key": os.environ.get("VLLM_API_KEY"),
    "listed": listed, "path": os.environ["PYTHONPATH"].split(os.pathsep)[0],
    "config": open(sys.argv[-1]).read() if "--config" in sys.argv else "",
}
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(told) + "\\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

TRAINER = """
import json, os, sys, time, urllib.request

[address] = os.environ["AREAL_LLM_SERVER_ADDRS"].split(",")

end = time.monotonic() + 100  # not for ever, should nobody be left who ends it

def pid():
    while time.monotonic() < end:
        try:
            return urllib.request.urlopen("http://" + address, timeout=5).read().decode()
        except OSError:
            time.sleep(0.05)
    sys.exit("no server answers")

first = pid()
status = {"servers": [{"address": address, "state": "serving"}]}
with open(sys.argv[1] + "/status.json", "w") as file:
    json.dump(status, file)
if len(sys.argv) > 2:
    os.kill(int(first), 9)
    while pid() == first:
        time.sleep(0.05)
print("trained", os.environ.get("AREALITE_SERVER_KEY"))
"""


def plan_of(folder: Path, server: str, *trainer: str, key: str = "VLLM_API_KEY") -> Plan:
    (folder / "run").mkdir()
    command = (sys.executable, "-c", server, str(folder / "told.jsonl"))
    return Plan(
        run_folder=folder / "run",
        prepare=(),
        servers=(Process("server-0", command, {}, "port", key=key, is_foreign=True),),
        trainer=Process("trainer", (sys.executable, "-c", TRAINER, str(folder / "run"), *trainer)),
        report=(),
    )


def told(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]


def eventually(what: Callable[[], bool], name: str) -> None:
    """Waits for a condition; only what never comes true takes long."""
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < end, f"{name} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.02)


def is_alive(pid: object) -> bool:
    """A zombie, which nobody has waited for yet, is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def are_gone(*pids: object) -> None:
    """SIGKILL takes a moment."""
    eventually(lambda: not any(map(is_alive, pids)), "the end of all processes")


def run(plan: Plan, restarts: int = 0) -> list[str]:
    """What the launcher told."""
    said: list[str] = []
    with Supervisor(plan, 10.0, restarts, said.append) as supervisor:
        trainer = supervisor.start()
        eventually(lambda: supervisor.watch(trainer), "the end of the trainer")
    return said


def test_it_gets_a_port_a_key_and_the_package_and_ends_with_all_that_it_started(
    tmp_path: Path,
) -> None:
    run(plan_of(tmp_path, SERVER))
    [server] = told(tmp_path)
    assert (tmp_path / "run/logs/trainer.log").read_text() == f"trained {server['key']}\n"
    assert len(str(server["key"])) >= 32
    assert server["listed"] == ["arealite"]
    are_gone(server["pid"], server["worker"])
    assert not Path(str(server["path"])).exists(), "made for this run alone"


def test_a_key_of_ones_own_is_kept_and_sglang_reads_it_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "of-my-own")
    run(plan_of(tmp_path, SERVER, key="--config"))
    [server] = told(tmp_path)
    assert server["config"] == "api-key: of-my-own\n"
    assert (tmp_path / "run/logs/server-0.log").stat().st_mode & 0o077 == 0, "it may say the key"
    assert (tmp_path / "run/logs/trainer.log").read_text() == "trained of-my-own\n"


def test_one_that_is_killed_comes_back_at_its_address_and_its_workers_are_gone(
    tmp_path: Path,
) -> None:
    [said] = run(plan_of(tmp_path, SERVER, "kill"), restarts=1)
    assert "server-0 ended with signal SIGKILL" in said
    first, second = told(tmp_path)
    are_gone(first["worker"])
    assert first["key"] == second["key"]


def test_one_that_dies_at_its_start_shows_its_last_lines(tmp_path: Path) -> None:
    server = "import sys; print('CUDA out of memory', flush=True); sys.exit(1)"
    with pytest.raises(EnginesExhausted, match=r"exit code 1.*\n.*server-0 \| CUDA out of memory"):
        run(plan_of(tmp_path, server))


def test_it_ends_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, os, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_foreign_servers import SERVER, plan_of, told\n"
        "from arealite.launch.local import Supervisor\n"
        "folder = Path(sys.argv[1])\n"
        "with Supervisor(plan_of(folder, SERVER), 5.0) as supervisor:\n"
        "    supervisor.start()\n"
        "    while not (folder / 'told.jsonl').exists() or not told(folder):\n"
        "        time.sleep(0.02)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    [server] = told(tmp_path)
    are_gone(server["pid"], server["worker"])
