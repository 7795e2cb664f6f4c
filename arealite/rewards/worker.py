"""The processes in which reward functions run: a template that has loaded them, and its copies.

The trainer starts one template (`python -m arealite.rewards.worker FD`). It loads the reward files,
once, and from then on it only forks: a worker is a copy that is ready in a millisecond, and no
user code runs in the template again. Between trainer and template, over a socket:

    {"functions": .., "memory_mb": ..}  first; answered by {"signatures": .., "level": ..} or
                                    {"error": ..}
    spawn n   and one descriptor    a worker n that answers on it
    end n                           it is killed with all it started; answered by {"ended": n, ..}

Between trainer and worker: [index of the function, args, kwargs] and an answer, each one line of
JSON. The end of the trainer, however it comes, closes the socket: the template ends its workers and
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import asdict
from functools import partial
from typing import Any

from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ConfigError, Unscorable, words
from arealite.rewards.confine import confine
from arealite.rewards.scorer import outcomes_of, raised
from arealite.rewards.signature import LoadedReward, label_of, load_reward, load_tool
from arealite.rewards.system import (
    die_with_parent,
    limit_memory,
    live_without_parent,
    own_orphans,
    removing,
)

Functions = list[tuple[str, LoadedReward]]
"""Each with what sentences call it."""

MOST_TEXT = 1 << 16
"""Characters of a tool's answer."""
_MOST_FDS = 16
_BUFFER = 1 << 18


def main() -> None:
    """Serves the socket whose descriptor is the only argument, until its other end is closed."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    control = socket.socket(fileno=int(sys.argv[1]))
    with control.makefile("rb") as lines:
        setting = json.loads(lines.readline())
    sys.path[:] = setting["path"]
    configured = [RewardFunctionConfig(**function) for function in setting.pop("functions")]
    try:
        load = load_tool if setting["are_tools"] else partial(load_reward, where="worker")
        loaded = [(label_of(f), load(f)) for f in configured]
    except ConfigError as error:
        _tell(control, {"error": str(error)})
        return
    own_orphans()
    live_without_parent()  # from here on the socket tells it, and there is time to clean up
    template = Template(control, loaded, setting)
    level = template.level()
    gc.collect()
    gc.freeze()  # what is there now is shared with every copy, and no collection touches it
    _tell(control, {"signatures": [asdict(f.signature) for _, f in loaded], "level": level})
    template.serve()
    if (last := removing(setting["scratch"])) is not None:
        last.wait()


class Template:
    """Forks workers and ends them, as it is told; it never waits for one that may hang."""

    def __init__(
        self, control: socket.socket, functions: Functions, setting: dict[str, Any]
    ) -> None:
        self._control, self._functions, self._setting = control, functions, setting
        self._pids: dict[int, int] = {}
        self._removing: list[subprocess.Popen[bytes]] = []
        self._own = _children()
        """What the user's file started when it was loaded."""

    def level(self) -> dict[str, bool]:
        """What of the isolation this machine can do: a worker is made, and tells it."""
        ours, theirs = socket.socketpair()
        with ours:
            self._spawn(0, theirs.detach(), probe=True)
            with ours.makefile("rb") as lines:
                said = lines.readline()
            self._end(0)
        reached: dict[str, bool] = json.loads(said)
        return reached

    def serve(self) -> None:
        text, descriptors = b"", deque[int]()
        while True:
            try:
                data, received, _, _ = socket.recv_fds(self._control, 1 << 16, _MOST_FDS)
            except OSError:  # it has gone without reading all that it was told
                break
            if not data:  # the trainer is gone
                break
            descriptors.extend(received)
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                what, whom = line.split()
                if what == b"spawn":
                    self._spawn(int(whom), descriptors.popleft())
                else:
                    _tell(self._control, {"ended": int(whom), "status": self._end(int(whom))})
        for number in list(self._pids):
            self._end(number)

    def _spawn(self, number: int, descriptor: int, probe: bool = False) -> None:
        folder = self._folder(number)
        os.mkdir(folder)
        pid = os.fork()
        if pid:
            self._pids[number] = pid
            os.close(descriptor)
            return
        try:
            self._control.close()
            os.setsid()  # what it starts ends with it
            die_with_parent()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            limit_memory(self._setting["memory_mb"])
            peer = socket.socket(fileno=descriptor)
            setting = self._setting
            longest, reads_path = setting["longest_call_s"], setting["reads_path"]
            reached = confine(setting["isolation"], folder, longest, reads_path)
            if probe:
                peer.sendall(json.dumps(reached).encode() + b"\n")
            else:
                work(peer, self._functions)
        finally:
            os._exit(0)

    def _folder(self, number: int) -> str:
        return os.path.join(self._setting["scratch"], str(number))

    def _end(self, number: int) -> int:
        """Kills the worker and what it started. Returns minus a signal, or its exit code."""
        pid = self._pids.pop(number)
        # Before setsid there is no group yet. A process that is ending keeps its own status.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self._end_orphans()
        self._removing = [one for one in self._removing if one.poll() is None]
        if (new := removing(self._folder(number))) is not None:
            self._removing.append(new)
        return os.waitstatus_to_exitcode(status)

    def _end_orphans(self) -> None:
        """What a worker started and hid in a session of its own has become a child of this one."""
        while True:
            known = self._own | set(self._pids.values()) | {one.pid for one in self._removing}
            orphans = _children() - known
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                os.waitpid(pid, 0)
            if not orphans:
                return


def _children() -> set[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return set(map(int, file.read().split()))
    except OSError:  # no Linux: there are none that would be known
        return set()


def work(peer: socket.socket, functions: Functions) -> None:
    """Answers one call after the other, until the other end is closed."""
    calls, answers = peer.makefile("rb", buffering=_BUFFER), peer.makefile("wb")
    for line in calls:
        index, args, kwargs = json.loads(line)
        name, function = functions[index]
        answer = _answer(name, function, args, kwargs)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm of this call must not hit the next
        with contextlib.suppress(Exception):  # it may have been closed
            sys.stdout.flush()
        # A thread that is left may do anything to the calls to come.
        answer["is_spent"] = len(sys._current_frames()) > 1
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(
    name: str, function: LoadedReward, args: list[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """{"scores": ..}, in which a text tells why a sample of several has none; or {"error": ..}.

    Of a tool {"text": ..}.
    """
    is_group = function.signature.is_group
    n = len(kwargs["completions"]) if is_group else 1
    try:
        assert function.call is not None
        said = function.call(*args, **kwargs)
        if inspect.isawaitable(said):
            said = asyncio.run(_awaited(said))
        if function.signature.form == "tool":
            if not isinstance(said, str):
                raise TypeError(f"a tool returns text, and this one a {type(said).__name__}")
            return {"text": said[:MOST_TEXT]}
        outcomes = outcomes_of(said, name, is_group, n)
        return {"scores": [str(o) if isinstance(o, Unscorable) else o for o in outcomes]}
    except Unscorable as error:
        failure = error
    except BaseException as error:  # also SystemExit: this process is there for the next call, too
        failure = raised(error, name)
        if function.signature.form == "tool":  # for a model, which knows no files
            failure = Unscorable(words(error), failure.reason, failure.tail)
    return {"error": str(failure), "reason": failure.reason, "tail": failure.tail}


async def _awaited(score: Any) -> Any:
    return await score


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the trainer is gone; the next read says so
        control.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
