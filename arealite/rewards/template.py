"""The trainer's end of the process that has loaded the reward functions and forks their workers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ConfigError
from arealite.rewards.confine import Isolation, environment
from arealite.rewards.signature import Signature
from arealite.rewards.system import removing

END_S = 5.0
"""The template ends its workers and itself in milliseconds; after this it is killed."""


@dataclass(frozen=True)
class Limits:
    """What one call may take, and how many run at once."""

    workers: int = 2
    timeout_s: float = 10.0
    memory_mb: int = 1024
    isolation: Isolation = "standard"
    load_timeout_s: float = 300.0
    are_tools: bool = False
    """Whether the functions are tools, text -> text."""
    reads_path: bool = True
    """Whether strict leaves the folders of sys.path readable, where the functions' files lie."""


class Template:
    """The process that has loaded the reward functions and forks the workers; see worker.py.

    signatures: one for each function. level: what of the isolation this machine can do.
    """

    def __init__(self, functions: Sequence[RewardFunctionConfig], limits: Limits) -> None:
        names = ", ".join(function.path for function in functions)
        self.scratch = tempfile.mkdtemp(prefix="arealite-reward-")
        ours, theirs = socket.socketpair()
        with theirs:
            number = str(theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "arealite.rewards.worker", number],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment(limits.isolation),
            )
        self.control = ours
        setting = {"path": sys.path, "scratch": self.scratch, **asdict(limits)}
        setting["functions"] = [asdict(function) for function in functions]
        longest = max(f.timeout_s or limits.timeout_s for f in functions)
        setting["longest_call_s"] = longest
        try:
            ours.sendall(_line(setting))
            answer = self._loaded(names, limits.load_timeout_s)
        except BaseException:
            self.end()
            raise
        self.signatures = [Signature(**signature) for signature in answer["signatures"]]
        self.level: dict[str, bool] = answer["level"]
        ours.setblocking(False)

    def _loaded(self, names: str, timeout_s: float) -> dict[str, Any]:
        self.control.settimeout(timeout_s)
        try:
            with self.control.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError:
            raise ConfigError(
                f"{names} is not loaded after {timeout_s:g} s (rollout.setup_timeout_s); what "
                "takes longer belongs into the reward function's first call"
            ) from None
        if not line:
            raise ConfigError(f"loading {names} ended its process: {ending(self.wait())}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer

    def tell(self, line: str, descriptors: list[int]) -> None:
        """Raises OSError where it has ended."""
        socket.send_fds(self.control, [line.encode() + b"\n"], descriptors)

    def end(self) -> None:
        self.control.close()
        self.wait()
        if (last := removing(self.scratch)) is not None:
            last.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:  # the user's file hangs while it is loaded
            self.process.kill()
            return self.process.wait()


def _line(setting: dict[str, Any]) -> bytes:
    try:
        return json.dumps(setting).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward.functions: kwargs must be plain YAML values: {error}") from None


def ending(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
