"""The launcher: checks, plans, prepares, starts, shows and ends one run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from arealite.config import Config, load
from arealite.config.cli import parser
from arealite.errors import ArealiteError, boundary
from arealite.launch.facts import gather
from arealite.launch.local import Supervisor
from arealite.launch.plan import Plan, make_plan
from arealite.processes import follow_parent
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import Status


def launch(
    argv: Sequence[str] | None = None, trainer: Sequence[str] = ("-m", "arealite.main")
) -> None:
    """The whole command; ends the interpreter with the run's exit code on failure.

    trainer: what follows the interpreter in the trainer's command; a user's own script names
    itself here and is started again, as the trainer.
    """
    follow_parent()  # a prepare step may be a launcher itself
    with boundary():
        arguments = parser().parse_intermixed_args(sys.argv[1:] if argv is None else argv)
        config = load(arguments.config, arguments.overrides)

        def plan() -> Plan:
            return make_plan(config, gather(config), arguments.config, arguments.overrides, trainer)

        first = plan()
        if arguments.check:
            print("\n".join(first.report))
            return
        _carry_out(config, first, plan)


def _carry_out(config: Config, first: Plan, plan: object) -> None:
    assert callable(plan)
    folder = RunFolder.of(config.fileroot, config.experiment_name, config.trial_name)
    _move_aside(folder.path)
    folder.create()
    status = Status(folder)
    status.set(phase="preparing")
    status.flush()
    supervisor = Supervisor(first, config.scheduler.grace_s)
    with supervisor.signals(), supervisor:
        try:
            for step in first.prepare:
                supervisor.prepare(step, _say)
            plan()  # what was prepared may contradict the settings: say so before the start
            trainer = supervisor.start()
            _follow(folder, lambda: supervisor.watch(trainer))
        except ArealiteError as error:
            Status(folder).set(phase="failed", error=str(error))
            raise
    if folder.summary.exists():
        print(folder.summary.read_text(), flush=True)


def _follow(folder: RunFolder, ended: object) -> None:
    assert callable(ended)
    from arealite.telemetry.progress import follow  # the terminal library, only when needed

    follow(folder, ended)


def _move_aside(path: Path) -> None:
    """An older run of this name is kept under another one, never mixed with the new."""
    if not (path / "status.json").exists():
        return
    aside = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    os.replace(path, aside)
    _say(f"an older run was moved to {aside}")


def _say(sentence: str) -> None:
    print(f"arealite: {sentence}", flush=True)
