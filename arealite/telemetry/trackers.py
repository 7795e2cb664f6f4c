"""wandb as a sink: it may be slow, absent or unreachable, and training never notices.

All of wandb, its import included, lives on one daemon thread behind a bounded queue. A server that
does not answer in time costs one alarm, after which the same run is kept offline in the run
folder (`wandb sync` sends it later).
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from arealite.errors import ConfigError

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
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # the latter is a mere folder of that name
        raise ConfigError(
            f"stats_logger.wandb.mode is {mode}, but wandb is not installed: "
            "pip install arealite[wandb]"
        )
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


class WandbSink:
    """See wandb_sink. `dropped` counts lines given up because the queue was full."""

    def __init__(
        self,
        mode: str,
        run: Mapping[str, Any],
        alarm: Callable[[str], None],
        init_s: float,
        close_s: float,
    ) -> None:
        self.dropped = 0
        self._mode, self._run, self._alarm = mode, dict(run), alarm
        self._init_s, self._close_s = init_s, close_s
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, version: int, metrics: Mapping[str, float]) -> None:
        self._put({**metrics, "version": version})

    def close(self) -> None:
        """Waits at most about twice close_s seconds for wandb to send what it has."""
        self._put(None)
        self._thread.join(self._close_s * 2 + (self._init_s if self._mode == "online" else 0))
        if self._thread.is_alive():
            self._alarm(
                "wandb did not finish in time; metrics.jsonl is complete, and "
                f"`wandb sync` can send what lies in {self._run['dir']}/wandb"
            )

    def _put(self, item: dict[str, Any] | None) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                self._alarm("wandb is too slow and misses lines; metrics.jsonl is complete")

    def _work(self) -> None:
        # wandb's reports about itself go to the same server and hold up the exit for 10 s when it
        # hangs. A user who wants them sets the variable.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            run = self._started()
            # The x-axis is the version and not wandb's own step: an evaluation of version 8 may
            # arrive after version 10, and wandb refuses a step that goes back.
            run.define_metric("version")
            run.define_metric("*", step_metric="version")
            while (item := self._queue.get()) is not None:
                run.log(item)
            run.finish()
            # Here rather than in wandb's own exit hook, where it could hold up the process.
            importlib.import_module("wandb").teardown()
        except Exception as error:  # all of wandb is foreign code
            self._alarm(f"wandb stopped: {_one_line(error)}; metrics.jsonl is complete")

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
            finish_timeout=self._close_s,
            finish_timeout_raises=False,
            console="off",  # the terminal is ours
            silent=True,
            x_graphql_timeout_seconds=self._init_s,
        )
        return wandb.init(mode=mode, settings=settings, reinit="create_new", **self._run)


def _one_line(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return first[:200] or type(error).__name__
