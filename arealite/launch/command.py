"""The launcher: checks, plans, prepares, starts, shows and ends one run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from arealite import stopping
from arealite.checkpoints.resume import goes_on, preview
from arealite.checkpoints.store import Store
from arealite.config import Config, load
from arealite.config.cli import parser
from arealite.errors import ArealiteError, ConfigError, Preempted, boundary
from arealite.launch.attempts import Attempts
from arealite.launch.facts import gather
from arealite.launch.inputs import check_code, check_models, require
from arealite.launch.local import Supervisor
from arealite.launch.plan import Plan, make_plan
from arealite.processes import follow_parent
from arealite.telemetry.lock import claimed
from arealite.telemetry.output import show
from arealite.telemetry.renewal import Renewal
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import Status, read_status


def launch(
    argv: Sequence[str] | None = None, trainer: Sequence[str] = ("-m", "arealite.main")
) -> None:
    """The whole command; ends the interpreter with the run's exit code on failure.

    trainer: what follows the interpreter in the trainer's command; a user's own script names
    itself here and is started again, as the trainer.
    """
    follow_parent()  # a prepare step may be a launcher itself
    with boundary(), stopping.interrupted():
        arguments = parser().parse_intermixed_args(sys.argv[1:] if argv is None else argv)
        config = load(arguments.config, arguments.overrides)

        def plan() -> Plan:
            check_code(config)
            check_models(config)
            facts = gather(config)
            if not arguments.check:
                require(facts.missing)
            return make_plan(config, facts, arguments.config, arguments.overrides, trainer)

        first = plan()
        if arguments.check:
            _print_plan(first)
        else:
            _carry_out(config, first, plan)


def _print_plan(plan: Plan) -> None:
    error = show("\n".join(plan.report))
    if error and not isinstance(error, BrokenPipeError):  # a reader may have read enough
        raise ConfigError(f"the plan cannot be written to standard output: {error.strerror}")


def _carry_out(config: Config, first: Plan, plan: Callable[[], Plan]) -> None:
    folder = RunFolder.of(config.fileroot, config.experiment_name, config.trial_name)
    with claimed(folder, lambda: goes_on(config, folder)) as aside:
        if aside:
            _say(f"an older run was moved to {aside}")
        _tell_recovery(config, folder)
        status = Status(folder)
        status.set(phase="preparing")
        status.flush()
        try:
            _prepare(config, first, plan)
            _run_to_the_end(config, folder, first)
        except Exception as error:
            _record(folder, error)
            raise
    if folder.summary.exists():
        show(folder.summary.read_text())


def _tell_recovery(config: Config, folder: RunFolder) -> None:
    """What can be known before anything starts. Raises ConfigError, CheckpointError."""
    found, changed = preview(config, folder)
    if found is not None:
        _say(f"the run goes on from version {found.version} ({found.path})")
    for change in changed:
        _say(f"{change} since then; the run goes on with it")


def _prepare(config: Config, first: Plan, plan: Callable[[], Plan]) -> None:
    supervisor = Supervisor(first, config.scheduler.grace_s)
    with supervisor.signals(), supervisor:
        for step in first.prepare:
            supervisor.prepare(step, _say)
    if supervisor.is_asked:  # at the very end of it
        raise Preempted("stopped while preparing")
    plan()  # what was prepared may contradict the settings: say so before the start
    for warning in first.warnings:
        _say(f"warning: {warning}")


def _run_to_the_end(config: Config, folder: RunFolder, plan: Plan) -> None:
    """Starts the run again while what ended it may pass."""
    from arealite.telemetry.progress import follow  # the terminal library, only when needed

    versions = Store(folder.checkpoints).versions
    attempts = Attempts(config.recover.retries, lambda: max(versions(), default=-1))
    while True:
        scheduler = config.scheduler
        supervisor = Supervisor(
            plan, scheduler.grace_s, scheduler.restarts, _say, config.recover.timeout_s
        )
        renewal = Renewal(folder, config.rollout.max_head_offpolicyness)
        with supervisor.signals(), renewal:
            try:
                with supervisor:
                    trainer = supervisor.start()
                    follow(folder, lambda: supervisor.watch(trainer))  # noqa: B023  ends with it
                return
            except ArealiteError as error:
                if supervisor.is_asked and isinstance(error, Preempted):
                    raise
                if why := attempts.why_not(error, supervisor.crashed):
                    if attempts.count:
                        _say(f"the run is not started again: {why}")
                    raise
                if supervisor.is_asked:  # while what was left of it was ended
                    raise Preempted(f"asked to stop, so the run does not go on: {error}") from None
                _say(
                    f"{error}; the run is started again in {attempts.pause_s:g} s "
                    f"({attempts.count} of {config.recover.retries})"
                )
            attempts.back_off()


def _record(folder: RunFolder, error: Exception) -> None:
    """The cause goes into status.json last: a trainer that is ended only knows that it was."""
    sentence = str(error) if isinstance(error, ArealiteError) else repr(error)
    Status(folder).set(**{**read_status(folder), "phase": "failed", "error": sentence})


def _say(sentence: str) -> None:
    show(f"arealite: {sentence}")
