"""Trackers as sinks: they may be slow, absent or unreachable, and training never notices.

All of a tracker, its import included, lives on one daemon thread behind a bounded queue. A server
of wandb's that does not answer in time costs one alarm, after which the same run is kept offline in
the run folder (`wandb sync` sends it later). TensorBoard has no server here, only a file.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from arealite.errors import ConfigError, require_extra

Mode = Literal["disabled", "offline", "online"]

_INIT_S = 20.0
_CLOSE_S = 20.0
_QUEUE = 1000

log = logging.getLogger("arealite.telemetry")


class Sink(Protocol):
    """A tracker. log() must return at once whatever the tracker's server does; close() in bounded
    time. What it raises is reported once and otherwise ignored."""

    def log(self, version: int, metrics: Mapping[str, float]) -> None:
        """Finite numbers of one version; a version may come again, and out of order."""

    def close(self) -> None:
        """Sends what is left, or gives it up."""


class NoSink:
    """Takes everything and does nothing."""

    def log(self, version: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class QueuedSink(ABC):
    """A tracker on a daemon thread. `dropped` counts lines given up because the queue was full.

    close_s: seconds that close() waits for what is left. where: what lies where if that is not
    enough, for people.
    """

    def __init__(
        self, name: str, alarm: Callable[[str], None], close_s: float, where: str = ""
    ) -> None:
        self.dropped = 0
        self._name, self._alarm, self._close_s, self._where = name, alarm, close_s, where
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @abstractmethod
    def track(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """On the thread: passes on the numbers of each version, which is among them as `version`,
        until there are no more. What it raises ends the tracker, with one alarm."""

    def log(self, version: int, metrics: Mapping[str, float]) -> None:
        self._put({**metrics, "version": version})

    def close(self) -> None:
        """Waits a bounded time until all is passed on."""
        self._put(None)
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._alarm(
                f"{self._name} did not finish in time; metrics.jsonl is complete{self._where}"
            )

    def _put(self, item: dict[str, Any] | None) -> None:
        if not self._thread.is_alive():  # it has said why
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                self._alarm(f"{self._name} is too slow and misses lines; metrics.jsonl is complete")

    def _work(self) -> None:
        try:
            self.track(iter(self._queue.get, None))
        except Exception as error:  # all of a tracker is foreign code
            self._alarm(f"{self._name} stopped: {_one_line(error)}; metrics.jsonl is complete")


def wandb_sink(
    mode: str,
    project: str | None = None,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    folder: str | Path = ".",
    *,
    alarm: Callable[[str], None] | None = None,
    init_s: float = _INIT_S,
    close_s: float = _CLOSE_S,
) -> Sink:
    """A sink for wandb; mode: disabled (wandb is not even imported) | offline | online.

    config: as shown in the tracker, secrets already masked. folder: where wandb/ is made, the run
    folder. init_s, close_s: seconds after which a server that does not answer is given up.
    Raises ConfigError when wandb is wanted and not installed, or the mode is unknown.
    """
    if mode == "disabled":
        return NoSink()
    if mode not in ("offline", "online"):
        raise ConfigError(f"wandb mode is {mode!r}, it must be disabled, offline or online")
    require_extra("wandb", f"stats_logger.wandb.mode is {mode}", "wandb")
    run = {
        "project": project,
        "entity": entity,
        "name": name,
        "group": group,
        "tags": list(tags) or None,
        "config": dict(config or {}),
        "dir": str(folder),
    }
    return WandbSink(mode, run, alarm or log.warning, init_s, close_s)


class WandbSink(QueuedSink):
    """See wandb_sink."""

    def __init__(
        self,
        mode: str,
        run: Mapping[str, Any],
        alarm: Callable[[str], None],
        init_s: float,
        close_s: float,
    ) -> None:
        # Of close_s, wandb itself is given once as much to send what it has.
        limit_s = close_s * 2 + (init_s if mode == "online" else 0)
        where = f", and `wandb sync` can send what lies in {run['dir']}/wandb"
        super().__init__("wandb", alarm, limit_s, where)
        self._mode, self._run = mode, dict(run)
        self._init_s, self._finish_s = init_s, close_s
        self._thread.start()

    def track(self, lines: Iterable[Mapping[str, Any]]) -> None:
        # wandb's reports about itself go to the same server and hold up the exit for 10 s when it
        # hangs. A user who wants them sets the variable.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        run = self._started()
        # The x-axis is the version and not wandb's own step: an evaluation of version 8 may
        # arrive after version 10, and wandb refuses a step that goes back.
        run.define_metric("version")
        run.define_metric("*", step_metric="version")
        for line in lines:
            run.log(line)
        run.finish()
        # Here rather than in wandb's own exit hook, where it could hold up the process.
        importlib.import_module("wandb").teardown()

    def _started(self) -> Any:
        if self._mode == "online":
            began = time.monotonic()
            try:
                self._knock()
                return self._init("online")
            except Exception as error:  # no key, no route, a wrong entity: all end offline
                self._alarm(
                    f"wandb is not reachable ({_one_line(error)}) after "
                    f"{time.monotonic() - began:.0f} s; it goes on offline in {self._run['dir']}"
                )
        return self._init("offline")

    def _knock(self) -> None:
        """Raises OSError if no HTTP server answers in time.

        wandb.init has a limit too, but what it then leaves behind goes on trying, and would hold
        up the end of the process for half a minute.
        """
        import wandb

        url = str(wandb.setup().settings.base_url)
        try:
            urllib.request.urlopen(url, timeout=self._init_s).close()
        except urllib.error.HTTPError:
            pass  # an answer, and whether it is a good one is wandb's to judge
        except urllib.error.URLError as error:
            # Certificates are checked by wandb, with its own settings.
            if not isinstance(error.reason, ssl.SSLError):
                raise OSError(str(error.reason)) from error

    def _init(self, mode: Mode) -> Any:
        import wandb

        settings = wandb.Settings(
            init_timeout=self._init_s,
            login_timeout=self._init_s,
            finish_timeout=self._finish_s,
            finish_timeout_raises=False,
            console="off",  # the terminal is ours
            silent=True,
            x_graphql_timeout_seconds=self._init_s,
        )
        return wandb.init(mode=mode, settings=settings, reinit="create_new", **self._run)


def tensorboard_sink(
    path: str | None,
    folder: str | Path = ".",
    *,
    alarm: Callable[[str], None] | None = None,
    close_s: float = _CLOSE_S,
) -> Sink:
    """A sink that writes TensorBoard's event files to `path`, taken from the run folder `folder`.

    path None: none, and nothing is imported. close_s: seconds after which a disk that does not
    answer is given up. Raises ConfigError when it is wanted and tensorboardX is not installed.
    """
    if path is None:
        return NoSink()
    require_extra("tensorboardX", f"stats_logger.tensorboard.path is {path}", "tensorboard")
    return TensorBoardSink(Path(folder, Path(path).expanduser()), alarm or log.warning, close_s)


class TensorBoardSink(QueuedSink):
    """See tensorboard_sink."""

    def __init__(self, path: Path, alarm: Callable[[str], None], close_s: float) -> None:
        super().__init__("tensorboard", alarm, close_s)
        self._path = path
        self._thread.start()

    def track(self, lines: Iterable[Mapping[str, Any]]) -> None:
        # Not its SummaryWriter: that has a thread and a queue between processes, on which the end
        # of this process would wait when the disk refuses.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._path.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(self._path / "events"))
        for line in lines:
            told = dict(line)
            version, now = told.pop("version"), time.time()
            if told.pop("resumed", 0):
                # What an earlier life wrote beyond this version is void, and no longer shown.
                start = SessionLog(status=SessionLog.START)
                writer.write_event(Event(session_log=start, step=version + 1, wall_time=now))
            for key, value in told.items():
                summary = scalar(key, value)
                writer.write_event(Event(summary=summary, step=version, wall_time=now))
            writer.flush()
        writer.close()


def _one_line(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return first[:200] or type(error).__name__
