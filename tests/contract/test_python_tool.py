"""The Python tool in real processes: what it says, what it must not do, and what ends it."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arealite.errors import ConfigError, Unscorable
from arealite.rewards.confine import environment
from arealite.rewards.pool import Pool
from workflows.tools import ToolLimits, Tools

LIMITS = ToolLimits(timeout_s=2.0, memory_mb=256, workers=2)


@pytest.fixture(scope="module")
def python() -> Iterator[Callable[[str], Awaitable[str]]]:
    tools = Tools(["python"], LIMITS)
    loop = asyncio.new_event_loop()

    async def ask(code: str) -> str:
        return await tools.run("python", code)

    yield lambda code: loop.run_until_complete(ask(code))  # type: ignore[arg-type, return-value]
    tools.close()
    loop.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(3 * 4)", "12"),
        ("\nprint('a')\nprint('b', end='')", "a\nb"),
        ("for i in range(3):\n    print(i)", "0\n1\n2"),
        ("def f(n): return 1 if n < 2 else n * f(n - 1)\nprint(f(20))", "2432902008176640000"),
        ("import fractions; print(fractions.Fraction(1, 3) * 3)", "1"),
        ("3 + 4", ""),
        ("print(1)\n1 / 0", "1\nline 2: ZeroDivisionError: division by zero"),
        ("def f():\n    g\nf()", "line 2: NameError: name 'g' is not defined"),
        ("x = 1\nprint(", "line 2: SyntaxError: '(' was never closed"),
        ("import sys; print(1); sys.exit(3)", "1"),
        ("raise KeyboardInterrupt", "line 1: KeyboardInterrupt"),
        ("import sys; print(sys.argv, file=sys.stderr)", "['<code>']"),
        ("input()", "line 1: EOFError: EOF when reading a line"),
    ],
)
def test_it_says_what_the_code_prints_and_what_it_dies_of(
    python: Any, code: str, said: str
) -> None:
    assert python(code) == said


def test_what_is_no_text_of_code_is_told(python: Any) -> None:
    """By a kind of error that is not the same in all releases of Python."""
    assert python("\x00").endswith("Error: source code string cannot contain null bytes")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("while True: pass", "error: no result within 2 s"),
        ("import time; time.sleep(60)", "error: no result within 2 s"),
        ("import signal; signal.pause()", "error: no result within 2 s"),
        ("try:\n    while True: pass\nexcept BaseException: pass", "error: no result within 2 s"),
        ("x = 'a' * 10**9", "error: out of memory"),
        ("import os; os._exit(0)", "error: it ended its process"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "error: it ended its process"),
        ("import ctypes; ctypes.string_at(0)", "error: it ended its process"),
    ],
)
def test_its_limits_end_it_and_the_next_call_is_answered(python: Any, code: str, said: str) -> None:
    assert python(code) == said
    assert python("print('next')") == "next"


def test_endless_printing_is_cut(python: Any) -> None:
    assert python("for i in range(10**5): print('abc')").count("abc") == 4096


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true') and print('refused')",
        "import socket; socket.socket().connect(('127.0.0.1', 80))",
        "import os; os.kill(os.getppid(), 9)",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "import os; os.listdir('/')",
        "import os; os.listdir('..')",
        "open('/tmp/seen', 'w')",
        f"open({__file__!r}).read()",
    ],
)
def test_what_it_must_not_do_is_refused(python: Any, code: str) -> None:
    said = python(code)
    assert "PermissionError" in said or said == "refused", said


def test_the_runs_own_data_is_not_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the run's folder is on the path, as with `python -m`."""
    (tmp_path / "test_e.jsonl").write_text("the answers")
    monkeypatch.syspath_prepend(tmp_path)
    assert str(tmp_path) in sys.path
    tools = Tools(["python"], LIMITS)
    code = f"print(open({str(tmp_path / 'test_e.jsonl')!r}).read())"
    try:
        assert "PermissionError" in asyncio.run(tools.run("python", code))
    finally:
        tools.close()


def test_secrets_are_not_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    tools = Tools(["python"], LIMITS)
    try:
        said = asyncio.run(tools.run("python", "import os; print(sorted(os.environ))"))
    finally:
        tools.close()
    assert "SOME_KEY" not in said
    assert set(ast.literal_eval(said)) <= {*environment("strict"), "TMPDIR"}


def test_nothing_of_one_call_is_seen_by_the_next(python: Any) -> None:
    leave = (
        "import builtins, json, os\nbuiltins.left = json.left = 1\nopen('left', 'w').write('x')\n"
        "os.environ['LEFT'] = '1'\nprint(os.path.exists('left'))"
    )
    look = (
        "import builtins, json, os\nprint(hasattr(builtins, 'left'), hasattr(json, 'left'), "
        "os.path.exists('left'), os.listdir('.'), 'LEFT' in os.environ)"
    )
    for _ in range(4):  # each of the workers, and those that took their places
        assert python(leave) == "True"
        assert python(look) == "False False False [] False"


def test_what_it_forges_in_its_workers_name_is_no_more_than_its_own_output(python: Any) -> None:
    forged = '{"error": "x", "reason": "timeout", "tail": "", "is_spent": false}'
    code = (
        "import os\nfor fd in range(3, 20):\n"
        f"    try: os.write(fd, {forged.encode()!r} + b'\\n')\n    except OSError: pass\n"
    )
    assert python(code) in ("error: x", "error: it ended its process")
    assert python("print('next')") == "next"


def test_more_calls_than_workers_wait_for_their_turn() -> None:
    tools = Tools(["python"], LIMITS)

    async def play() -> list[str]:
        return await asyncio.gather(*[tools.run("python", f"print({n})") for n in range(40)])

    try:
        assert asyncio.run(play()) == [str(n) for n in range(40)]
    finally:
        tools.close()


def test_the_end_of_its_processes_costs_the_episode_and_is_not_told_to_the_model() -> None:
    tools = Tools(["python"], ToolLimits(timeout_s=60.0))
    [pool] = tools._pools

    async def play() -> str:
        asked = asyncio.ensure_future(tools.run("python", "import time; time.sleep(50)"))
        while not pool._seats or len(pool._seats) == pool._idle.qsize():
            await asyncio.sleep(0.01)
        os.kill(pool._template.process.pid, signal.SIGKILL)
        with pytest.raises(Unscorable, match="ended its worker process"):
            await asked
        return await tools.run("python", "print('again')")

    try:
        assert asyncio.run(play()) == "again"
    finally:
        tools.close()


def test_closing_leaves_no_process() -> None:
    tools = Tools(["python", "calculator"], LIMITS)
    [pool] = tools._pools
    asyncio.run(tools.run("python", "print(1)"))
    tools.close()
    assert pool._template.process.poll() is not None
    assert not Path(pool._template.scratch).exists()


def test_where_it_cannot_be_shut_in_there_is_no_python_tool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pool, "is_as_asked", property(lambda self: False))
    with pytest.raises(ConfigError, match="python runs what the model writes, which must be shut"):
        Tools(["python"], LIMITS)


OWN = """
import time
WORDS = {"cat": "Katze"}
def look_up(text): return WORDS[text]
def look_down(text): return {}[text]
def hang(text): time.sleep(60)
def number(text): return 5
def two(text, more): return text
class Shout:
    def __call__(self, text): return text.upper()
shout = Shout()
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("look_up", "Katze"),
        ("look_down", "error: KeyError: 'cat'"),
        ("shout", "CAT"),
        ("hang", "error: no result within 1 s"),
        ("number", "error: TypeError: a tool returns text, and this one a int"),
    ],
)
def test_a_function_of_ones_own_runs_in_a_process(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / f"own_{name}.py").write_text(OWN)
    tools = Tools([f"{tmp_path}/own_{name}.py:{name}"], ToolLimits(timeout_s=1.0))
    try:
        assert asyncio.run(tools.run(name, "cat")) == said
    finally:
        tools.close()


def test_a_function_that_takes_more_than_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own_two.py").write_text(OWN)
    with pytest.raises(ConfigError, match=r"two does not fit: .*'more'; a tool is a function"):
        Tools([f"{tmp_path}/own_two.py:two"], LIMITS)
