"""Whatever a reward function does to its process, it costs one sample and no neighbour."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from arealite.errors import Unscorable
from arealite.rewards.pool import Pool
from arealite.rewards.template import Limits

HERE = Path(__file__).parent
GOOD = 40
CRASHES = {
    "raise": "raised",
    "exit": "raised",
    "segfault": "killed",
    "memory": "memory",
    "fork bomb": "raised",
    "thread bomb": "raised",
    "bare except": "timeout",
    "power": "timeout",
    "regex": "timeout",
    "closed stdout": "raised",
    "closed everything": "killed",
}


@contextmanager
def opened(reference: str, **limits: Any) -> Iterator[Pool]:
    pool = Pool(reference, Limits(**{"timeout_s": 2.0, "memory_mb": 256, **limits}))
    try:
        if not pool.is_as_asked:  # a fork bomb is no joke where nothing refuses it
            pytest.skip(pool.isolation)
        yield pool
    finally:
        pool.close()


def run(play: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(play)


async def outcome(pool: Pool, text: str, truth: Any) -> Any:
    """The score, or why there is none."""
    try:
        return await pool(text, truth)
    except Unscorable as error:
        return error.reason


async def complaint(pool: Pool, code: str, truth: Any) -> str:
    """What this code raised, in a worker."""
    try:
        return f"it returned {await pool(code, truth)}"
    except Unscorable as error:
        return str(error).partition(" raised ")[2] or str(error)


def children(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


async def among_good_ones(pool: Pool, crash: str, times: int) -> list[Any]:
    """The outcomes of `crash`, spread among good samples whose scores are all right."""
    every = GOOD // times
    texts = [crash if i % every == every // 2 else f"good {i}" for i in range(every * times)]
    outcomes = await asyncio.gather(*[outcome(pool, text, i) for i, text in enumerate(texts)])
    wrong = [o for i, o in enumerate(outcomes) if texts[i] != crash and o != 2 * i]
    assert not wrong
    while children(pool._template.process.pid) != 2:  # the last one may still be being ended
        await asyncio.sleep(0.01)
    return [o for i, o in enumerate(outcomes) if texts[i] == crash]


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_costs_one_sample(crash: str) -> None:
    with opened(f"{HERE / 'crashing_reward.py'}:compute_score") as pool:
        times = 2 if CRASHES[crash] == "timeout" else 4
        assert run(among_good_ones(pool, crash, times)) == [CRASHES[crash]] * times


@pytest.mark.million
@pytest.mark.parametrize("crash", CRASHES)
def test_a_hundred_crashes_cost_a_hundred_samples(crash: str) -> None:
    # A busy machine may take a second to run out of memory; only what hangs has to be waited for.
    timeout_s = 1.0 if CRASHES[crash] == "timeout" else 20.0
    with opened(f"{HERE / 'crashing_reward.py'}:compute_score", timeout_s=timeout_s) as pool:

        async def play() -> list[Any]:
            return [o for _ in range(10) for o in await among_good_ones(pool, crash, 10)]

        assert run(play()) == [CRASHES[crash]] * 100


def test_a_hang_among_many_costs_its_own_deadline_only() -> None:
    with opened(f"{HERE / 'crashing_reward.py'}:compute_score") as pool:
        calls = [("hang" if i % 100 == 50 else "x", i) for i in range(400)]

        async def play() -> list[Any]:
            return await asyncio.gather(*[outcome(pool, *call) for call in calls])

        assert run(play()) == ["timeout" if text == "hang" else 2.0 * i for text, i in calls]


ATTACK = """
import builtins, os
def compute_score(solution_str, ground_truth):
    exec(solution_str, {"truth": ground_truth})
    return 1.0
"""


@pytest.fixture
def attacked(tmp_path: Path) -> str:
    (tmp_path / "attacked").mkdir()
    (tmp_path / "attacked" / "attacked_reward.py").write_text(ATTACK)
    return f"{tmp_path / 'attacked' / 'attacked_reward.py'}:compute_score"


ESCAPES = {
    "read passwd": "open('/etc/passwd')",
    "read home": "import os; os.listdir('/root')",
    "read a neighbour's file": "open(truth['outside'])",
    "list /": "import os; os.listdir('/')",
    "list /proc": "import os; os.listdir('/proc')",
    "the trainer's environment": "open(f'/proc/{truth[\"trainer\"]}/environ')",
    "the template's environment": "import os; open(f'/proc/{os.getppid()}/environ')",
    "the trainer's memory": "open(f'/proc/{truth[\"trainer\"]}/mem', 'rb')",
    "its own memory": "open('/proc/self/mem', 'rb+')",
    "write beside": "open(truth['outside'] + '.new', 'w')",
    "overwrite": "open(truth['outside'], 'a')",
    "overwrite the reward": "import attacked_reward as a; open(a.__file__, 'a')",
    "write to /tmp": "import tempfile; open('/tmp/arealite-escape', 'w')",
    "shared memory": "open('/dev/shm/arealite-escape', 'w')",
    "delete": "import os; os.remove(truth['outside'])",
    "rename": "import os; os.rename(truth['outside'], 'mine')",
    "hard link": "import os; os.link(truth['outside'], 'mine')",
    "truncate": "import os; os.truncate(truth['outside'], 0)",
    "mode": "import os; os.chmod(truth['outside'], 0o777)",
    "owner": "import os; os.chown(truth['outside'], 1, 1)",
    "times": "import os; os.utime(truth['outside'])",
    "folder": "import os; os.mkdir(truth['outside'] + '.d')",
    "symlink": "import os; os.symlink(truth['outside'], 's'); open('s')",
    "device": "import os; os.mknod('d', 0o60600, os.makedev(8, 0))",
    "bigger file": "open('big', 'wb').write(bytes(2**27))",
    "tcp": "import socket; socket.create_connection(('127.0.0.1', truth['port']))",
    "udp": "import socket; socket.socket(type=socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "raw socket": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "resolve": "import socket; socket.getaddrinfo('localhost.example', 80)",
    "fork": "import os; os.fork()",
    "program": "import subprocess; subprocess.run(['true'])",
    "shell": "import os; assert os.system('true') == 0",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "kill the template": "import os; os.kill(os.getppid(), 9)",
    "kill the trainer": "import os; os.kill(truth['trainer'], 9)",
    "stop all": "import os; os.kill(-1, 19)",
    "ptrace": "import ctypes; assert not ctypes.CDLL(None).ptrace(16, truth['trainer'], 0, 0)",
    "pidfd": "import os; os.pidfd_open(truth['trainer'])",
    "new namespace": "import ctypes; assert not ctypes.CDLL(None).unshare(0x10000000)",
    "mount": "import ctypes; assert not ctypes.CDLL(None).mount(b'n', b'.', b'tmpfs', 0, 0)",
    "chroot": "import os; os.chroot('.')",
    "more memory": "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)",
    "the trainer's limits": "import resource as r; r.prlimit(truth['trainer'], 7, (9, 9))",
    "io_uring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 8, bytes(120)) > 0",
    "secret": "import os; os.environ['AREALITE_TEST_SECRET']",
    "datagram to a path": "import socket; socket.socketpair(type=socket.SOCK_DGRAM)",
    "a signal by a pipe": "import fcntl, os; fcntl.fcntl(os.pipe()[0], 8, truth['trainer'])",
    "which signal": "import fcntl, os; fcntl.fcntl(os.pipe()[0], 10, 9)",
    "a signal by a terminal": "import fcntl, os; fcntl.ioctl(os.pipe()[0], 0x8901, b'1234')",
    "priority": "import os; os.setpriority(os.PRIO_PROCESS, truth['trainer'], 19)",
    "its own priority": "import os; os.nice(-1)",
    "cores": "import os; os.sched_setaffinity(truth['trainer'], {0})",
    "scheduler": "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    **{
        f"system call {number}": f"import ctypes; assert ctypes.CDLL(None).syscall({call}) >= 0"
        for number, call in {
            "ioprio_set": "251, 1, truth['trainer'], 0",
            "shmat": "30, 0, 0, 0",
            "semctl": "66, 0, 0, 0",
            "syslog": "103, 10, 0, 0",
            "acct": "163, 0",
            "fanotify_init": "300, 4, 0",
            "inotify_init1": "294, 0",
            "fsopen": "430, b'tmpfs', 0",
            "open_tree": "428, -100, b'/', 0",
            "memfd_create": "319, b'm', 0",
        }.items()
    },
}


def test_escapes_are_refused_in_strict_isolation(
    tmp_path: Path, attacked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("AREALITE_TEST_SECRET", "s3cret")
    outside = tmp_path / "outside"
    outside.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        truth = {"outside": str(outside), "trainer": os.getpid(), "port": port}
        with opened(attacked, isolation="strict") as pool:

            async def play() -> dict[str, Any]:
                assert await pool("open('own', 'w').write('x')", truth) == 1.0
                return {name: await complaint(pool, code, truth) for name, code in ESCAPES.items()}

            told = run(play())
    assert {name: why for name, why in told.items() if not why.startswith(REFUSALS)} == {}
    assert outside.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attacked", "outside"]
    assert not Path("/tmp/arealite-escape").exists()


REFUSALS = (
    *("PermissionError", "AssertionError", "gaierror"),
    *("OSError: [Errno 27]", "OSError: [Errno 18]"),  # a file too large; a link across the border
    *("ValueError: not allowed to raise maximum limit", "KeyError: 'AREALITE_TEST_SECRET'"),
)

STANDARD = (
    *("tcp", "unix socket", "fork", "program", "kill the template", "ptrace", "secret"),
    *("datagram to a path", "a signal by a pipe", "priority", "system call fsopen"),
)


def test_standard_isolation_refuses_network_processes_and_secrets(
    attacked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AREALITE_TEST_SECRET", "s3cret")
    truth = {"trainer": os.getpid(), "port": 9}
    with opened(attacked) as pool:

        async def play() -> list[Any]:
            return [await complaint(pool, ESCAPES[name], truth) for name in STANDARD]

        assert [why for why in run(play()) if not why.startswith(REFUSALS)] == []


def test_whatever_a_worker_leaves_in_its_folder_is_removed(attacked: str) -> None:
    deep = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    with opened(attacked, isolation="strict") as pool:
        scratch = Path(pool._template.scratch)

        async def play() -> list[Any]:
            return [await pool(code, {}) for code in (deep, "pass", "open('f', 'w')", "pass")]

        assert run(play()) == [1.0] * 4
    assert not scratch.exists()


LEAKS = {
    "module": ("import attacked_reward as a; a.mark = 1", "import attacked_reward as a; a.mark"),
    "builtin": ("import builtins; builtins.mark = 1", "mark"),
    "patched": ("import json; json.loads = 0", "import json; assert not json.loads"),
    "environment": ("import os; os.environ['mark'] = ''", "import os; os.environ['mark']"),
    "file": ("open('mark', 'w')", "open('mark')"),
    "random": ("import random; random.seed(7)", "import random; assert random.random() == RANDOM"),
    "thread": (
        "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()",
        "import threading; assert threading.active_count() > 1",
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_no_state_reaches_the_next_sample_in_strict_isolation(attacked: str, leak: str) -> None:
    import random

    leaves, finds = LEAKS[leak]
    finds = finds.replace("RANDOM", repr(random.Random(7).random()))
    with opened(attacked, isolation="strict", workers=1) as pool:

        async def play() -> list[Any]:
            both = await outcome(pool, f"{leaves}\n{finds}", {})
            return [both, await outcome(pool, leaves, {}), await outcome(pool, finds, {})]

        both, left, found = run(play())
    assert left == 1.0
    assert both == 1.0, "the probe finds what it looks for where it is"
    assert found == "raised"
