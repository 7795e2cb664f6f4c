"""A server that dies in mid-run is started again at its address, and serves once it is verified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_run import CONFIG, ENVIRONMENT, small_folder

from arealite.errors import ConfigError, EnginesExhausted
from arealite.launch.local import Supervisor
from arealite.launch.plan import Plan, Process

DEADLINE_S = 200.0
KEY = "the-key-of-this-test"


def until(what: Callable[[], Any], name: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < end, f"{name} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.05)
    return found


# --- the supervisor, with small programs

SERVER = """
    import os, socket, sys
    listener = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    connection, _ = listener.accept()
    print("asked, and gone", flush=True)
    {end}
"""
TRAINER = """
    import json, os, pathlib, socket, time
    address = os.environ["AREAL_LLM_SERVER_ADDRS"]
    host, port = address.split(":")
    servers = [{"address": address, "state": STATE}]
    pathlib.Path("run/status.json").write_text(json.dumps({"servers": servers}))
    while True:
        with socket.create_connection((host, int(port))) as connection:
            connection.recv(1)  # until the server has gone
"""


def plan_of(folder: Path, state: str, end: str) -> Plan:
    def program(name: str, text: str) -> Process:
        return Process(name, (sys.executable, "-c", textwrap.dedent(text)))

    server = program("server-0", SERVER.format(end=end))
    trainer = program("trainer", TRAINER.replace("STATE", repr(state)))
    return Plan(folder / "run", (), (server,), trainer, ())


def watched(plan: Plan, said: list[str]) -> None:
    with Supervisor(plan, 5, 2, said.append) as supervisor:
        trainer = supervisor.start()
        until(lambda: supervisor.watch(trainer), "the end")


KILL = "os.kill(os.getpid(), 9)"


@pytest.mark.parametrize("end", [KILL, "sys.exit(0)", "sys.exit(2)"])
def test_a_server_is_started_again_as_often_as_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with pytest.raises(EnginesExhausted) as caught:
        watched(plan_of(tmp_path, "serving", end), said)
    assert [f"it is started again ({i} of 2)" in said[i - 1] for i in (1, 2)] == [True] * 2
    assert len(said) == 2
    assert said[0].endswith("server-0 | asked, and gone")
    sentence = str(caught.value)
    assert "was started again 2 time(s) before, as often as scheduler.restarts allows" in sentence
    assert sentence.endswith("  server-0 | asked, and gone\n" * 2 + "  server-0 | asked, and gone")


@pytest.mark.parametrize(
    ("end", "error"),
    [(KILL, EnginesExhausted), ("print('bad', flush=True); sys.exit(2)", ConfigError)],
)
def test_a_server_that_dies_before_it_ever_answered_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, error: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with pytest.raises(error, match=r"^server-0"):
        watched(plan_of(tmp_path, "starting", end), said)
    assert said == []


# --- whole runs

HELD = """
import asyncio
from pathlib import Path
from workflows.rlvr import RLVRWorkflow

class Held(RLVRWorkflow):
    async def arun_episode(self, engine, data):
        while Path("hold").exists():  # the test has not seen yet what it waits for
            await asyncio.sleep(0.05)
        return await super().arun_episode(engine, data)
"""
SMALL = [
    *("train_dataset.batch_size=8", "gconfig.n_samples=4", "valid_dataset.path="),
    *("evaluator.freq_steps=null", "rollout.reward_fn=reward.py:compute_score"),
    *("rollout.workflow=held.py:Held", "rollout.server_timeout_s=5"),
]


class Launched:
    """A run of the demo in small, and what its folder says."""

    def __init__(self, folder: Path, trial: str, *settings: str) -> None:
        self.folder, self.run = folder, folder / "runs/countdown-cpu" / trial
        settings = (f"trial_name={trial}", *settings)
        self.output = (folder / "output").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "arealite.launch", "--config", CONFIG, *SMALL, *settings],
            cwd=folder,
            env={**ENVIRONMENT, "AREALITE_SERVER_KEY": KEY},
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    @property
    def printed(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        except (OSError, ValueError):
            found = {}
        return found

    def until_version(self, version: int) -> None:
        def reached() -> bool:
            assert self.process.poll() is None, self.printed
            return bool(self.status.get("version", 0) >= version)

        until(reached, f"version {version}")

    def until_starved(self) -> None:
        """Every server serves, and the trainer waits for episodes that are held."""

        def starved() -> bool:
            owners = {wait["owner"] for wait in self.status.get("waiting_for", [])}
            states = {server["state"] for server in self.status.get("servers", [])}
            return "rollouts" in owners and states == {"serving"}

        until(starved, "a trainer without episodes")

    def kill_server(self) -> str:
        """kill -9 to server-0; its address."""
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        for pid in map(int, Path(children).read_text().split()):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "arealite.engines.embedded" in words and words[words.index("--seed") + 1] == "1000":
                os.kill(pid, signal.SIGKILL)
                log = (self.run / "logs/server-0.log").read_text()
                return log.split("listening on http://")[-1].split()[0]
        raise AssertionError("the launcher has no server-0")

    def until_serving_again(self, address: str, killed: float) -> None:
        def serves() -> bool:
            assert self.process.poll() is None, self.printed
            told = {s["address"]: s for s in self.status.get("servers", [])}
            server = told.get(address, {"state": "unknown"})
            return bool(server["state"] == "serving" and server["since"] > killed)

        until(serves, "the return of the server")

    def requests(self, address: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {KEY}"}
        asked = urllib.request.Request(f"http://{address}/get_server_info", headers=headers)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            found: dict[str, Any] = json.load(reply)
            return found


@contextmanager
def launched(folder: Path, trial: str, *settings: str) -> Iterator[Launched]:
    run = Launched(folder, trial, *settings)
    try:
        yield run
    finally:
        run.process.terminate()
        try:
            run.process.wait(60)
        finally:
            run.process.kill()
            run.output.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_folder(tmp_path_factory.mktemp("run"))
    (folder / "held.py").write_text(HELD)
    return folder


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="children are found in /proc"
)


@needs_proc
def test_one_of_two_servers_is_killed_and_serves_again_while_the_run_goes_on(folder: Path) -> None:
    settings = ("rollout.n_servers=2", "total_train_steps=12")
    with launched(folder, "two", *settings) as run:
        run.until_version(2)
        (folder / "hold").touch()
        run.until_starved()  # no publication under way could bring the weights unasked
        killed = time.time()
        address = run.kill_server()
        run.until_serving_again(address, killed)
        before = run.requests(address)
        assert int(before["weight_version"]) >= 2, "verified weights, not those it started with"
        (folder / "hold").unlink()
        until(
            lambda: run.requests(address)["requests_total"] > before["requests_total"] + 1,
            "a request to the server that was killed",
        )
        assert run.process.wait(DEADLINE_S) == 0, run.printed
    assert "server-0 ended with signal SIGKILL" in run.printed
    assert "it is started again (1 of 3); its last lines" in run.printed
    lines = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "reward/mean" in line]
    assert [row["version"] for row in rows] == list(range(1, 13))
    assert all(row["weights/canary_max_diff"] <= 1e-4 for row in rows)
    assert all(row["rollout/tokens_per_s"] >= 0 for row in rows)
    assert rows[-1]["engine/serving"] == 2
    assert rows[-1]["counts/failed"] == 0
    assert any(address in alarm["text"] for alarm in run.status["alarms"])


@needs_proc
def test_the_only_server_is_started_again_and_when_that_is_used_up_the_run_ends(
    folder: Path,
) -> None:
    settings = ("total_train_steps=2000", "scheduler.restarts=1", "recover.retries=0")
    with launched(folder, "one", *settings) as run:
        run.until_version(2)
        killed = time.time()
        address = run.kill_server()
        run.until_serving_again(address, killed)
        run.until_version(run.status["version"] + 3)
        assert run.kill_server() == address
        assert run.process.wait(DEADLINE_S) == 5, run.printed
    assert "started again (1 of 1)" in run.printed
    assert "was started again 1 time(s) before, as often as scheduler.restarts" in run.printed
    assert "  server-0 | embedded: " in run.printed
    assert run.status["phase"] == "failed"
