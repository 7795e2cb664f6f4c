"""`python -m arealite.watch RUN`: the live panel of a run that somebody else has started."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from arealite.config.cli import Parser
from arealite.errors import boundary
from arealite.telemetry.lock import is_claimed
from arealite.telemetry.output import show
from arealite.telemetry.progress import follow
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.summary import summarise
from arealite.telemetry.view import View, Watcher, seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Shows the run until it ends, then its closing words; Ctrl-C ends the showing alone."""
    with boundary():
        command = Parser(
            prog="python -m arealite.watch",
            description="Shows a run from its folder, while it runs or afterwards.",
            usage_hint="RUN_FOLDER",
        )
        command.add_argument("run", metavar="RUN", help="the run folder")
        folder = RunFolder.existing(command.parse_args(sys.argv[1:] if argv is None else argv).run)
        ending = Ending(folder)
        try:
            follow(folder, ending)
        except KeyboardInterrupt:
            show("arealite: no longer watching; the run goes on")
            return
        view = ending.view
        show(summarise(folder).rstrip("\n") if view.finished else _obituary(folder, view))


class Ending:
    """Says whether a run is over: it says so itself, or nobody is left who could.

    A heartbeat that stops is not enough: a launcher that prepares has none, and a machine may be
    asleep. But whoever runs holds the folder's lock, and the kernel frees it with its owner.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._watcher = folder, Watcher(folder)
        self.view = self._watcher.look()

    def __call__(self) -> bool:
        self.view = self._watcher.look()
        if self.view.phase == "done":
            return True
        # A run that has failed is started again while its launcher holds the folder.
        return (self.view.finished or self.view.is_silent) and not is_claimed(self._folder)


def _obituary(folder: RunFolder, view: View) -> str:
    last = "it has given no sign of life"
    if view.age_s is not None:
        last = f"its last sign of life was {seconds(view.age_s)} ago in phase {view.phase}"
    return (
        f"arealite: the run is dead: {last}, and no process holds {folder.path}; "
        f"{folder.logs} may say why"
    )


if __name__ == "__main__":
    main()
