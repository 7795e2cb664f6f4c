"""curves.png renewed while the run goes on, by whoever watches over it and never by the trainer."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from types import TracebackType

from arealite.telemetry.curves import draw_curves
from arealite.telemetry.run_folder import RunFolder

EVERY_S = 60.0
SHARE = 0.01
"""Of one core's time; a long run's picture, which takes longer, is drawn less often."""

log = logging.getLogger("arealite.telemetry")


class Renewal:
    """Used as `with` around a run: a thread of the lowest priority draws when there is news.

    staleness_bound: as in draw_curves. every_s: the shortest time between two pictures. A picture
    that cannot be drawn costs one line in the log.
    """

    def __init__(
        self, run_folder: RunFolder, staleness_bound: float | None, every_s: float = EVERY_S
    ) -> None:
        self._folder, self._bound, self._every_s = run_folder, staleness_bound, every_s
        self._stop, self._busy = threading.Event(), threading.Event()
        self._drawn_size = 0
        self._told = False
        self._thread = threading.Thread(target=self._work, name="curves", daemon=True)

    def __enter__(self) -> Renewal:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        was_busy = self._busy.is_set()
        self._thread.join()
        if was_busy and kind is None:
            # What was being drawn was read before the run's last word, and may have replaced the
            # run's own last picture.
            self.renew()

    def renew(self) -> bool:
        """Draws unless nothing has come since the last time; whether it did."""
        try:
            size = self._folder.metrics.stat().st_size
            if size == self._drawn_size:
                return False
            with warnings.catch_warnings():  # a font lacks a letter: not for the terminal
                warnings.simplefilter("ignore")
                draw_curves(self._folder, self._bound)
            self._drawn_size = size
        except FileNotFoundError:
            return False
        except Exception as error:  # a picture must never end a run
            if not self._told:
                self._told = True
                log.warning("curves.png is not renewed: %s", error)
            return False
        return True

    def _work(self) -> None:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        pause = self._every_s
        while not self._stop.wait(pause):
            self._busy.set()
            began = time.thread_time()
            self.renew()
            self._busy.clear()
            pause = max(self._every_s, (time.thread_time() - began) / SHARE)
