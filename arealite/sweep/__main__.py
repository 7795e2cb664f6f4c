"""`python -m arealite.sweep --config x.yaml key=a,b,c ... [--seeds 1,2,3]`.

Each trial is a run of the launcher's, one after another. A trial that has ended well with the same
settings is not run again, one that was interrupted goes on; so a sweep is started again with the
same command.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from arealite.checkpoints.changes import changes
from arealite.config import Config, load
from arealite.config.cli import Parser
from arealite.errors import ArealiteError, ConfigError, Killed, Preempted, boundary
from arealite.processes import LIFELINE, follow_parent
from arealite.sweep.grid import Trial, grid
from arealite.sweep.picture import picture
from arealite.sweep.table import Outcome, as_csv, as_text, metric_of, outcome_of
from arealite.telemetry.output import show
from arealite.telemetry.run_folder import RunFolder, write_atomically

Planned = tuple[Trial, Config, RunFolder]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the grid; ends the interpreter with the exit code of the first trial that failed."""
    follow_parent()
    with boundary():
        options = _parser().parse_intermixed_args(sys.argv[1:] if argv is None else argv)
        planned = [
            (trial, config, _folder(config))
            for trial in grid(options.overrides, options.seeds)
            for config in [load(options.config, trial.overrides)]  # all, before the first is run
        ]
        if options.check:
            show("\n".join(f"{t.name}: {_state(config, folder)}" for t, config, folder in planned))
            return
        failure = _run_all(planned, options)
        if failure is not None:
            raise failure


def _parser() -> Parser:
    command = Parser(
        prog="python -m arealite.sweep",
        description="Runs a grid of settings one after another; one table, one picture.",
        usage_hint="--config FILE key=a,b,c ... [--seeds 1,2,3] [--metric KEY] [--out DIR]",
    )
    command.add_argument("--config", required=True, help="the runs' YAML file")
    command.add_argument("--seeds", default="", help="run every setting with each of these seeds")
    command.add_argument("--metric", default="", help="of the table; default: the held-out one")
    command.add_argument("--out", default="", help="folder of the table and the picture")
    command.add_argument("--check", action="store_true", help="list the trials, start nothing")
    command.add_argument("overrides", nargs="*", help="key=a,b,c to vary, key=a for all trials")
    return command


def _folder(config: Config) -> RunFolder:
    return RunFolder.of(config.fileroot, config.experiment_name, config.trial_name)


def _state(config: Config, folder: RunFolder) -> str:
    return "is done" if is_done(config, folder) else "will be run"


def is_done(config: Config, folder: RunFolder) -> bool:
    """Whether the folder holds such a run that has ended well."""
    if outcome_of(Trial("", (), None), folder).state != "done":
        return False
    try:
        told = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(told, dict) and not changes(told, config)


def _run_all(planned: Sequence[Planned], options: argparse.Namespace) -> ArealiteError | None:
    """The first failure; the trials after it are run all the same, unless it was asked to stop."""
    failure: ArealiteError | None = None
    out = Path(options.out) if options.out else _default_out(planned)
    for count, (trial, config, folder) in enumerate(planned, 1):
        head = f"arealite: trial {count} of {len(planned)}, {trial.name}"
        if is_done(config, folder):
            show(f"{head}: is done already")
            continue
        show(head)
        error = _run(trial, options.config)
        _report(planned, out, options.metric)
        if error is not None:
            show(f"arealite: trial {trial.name}: {error}")
            failure = failure or error
            if isinstance(error, Preempted):
                return error
    show(_report(planned, out, options.metric))
    show(f"arealite: {out}/table.txt, table.csv and metric.png")
    return failure


def _default_out(planned: Sequence[Planned]) -> Path:
    trial, _, folder = planned[0]
    varied = "-".join(key.rpartition(".")[2] for key, _ in trial.settings) or "seeds"
    return folder.path.parent / f"sweep.{varied}"


def _report(planned: Sequence[Planned], out: Path, asked: str) -> str:
    """Writes table and picture of what there is now; returns the table."""
    outcomes: list[Outcome] = [outcome_of(trial, folder) for trial, _, folder in planned]
    metric = metric_of(outcomes, asked)
    table = as_text(outcomes, metric)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "table.txt", table)
        write_atomically(out / "table.csv", as_csv(outcomes, metric))
        write_atomically(out / "metric.png", picture(outcomes, metric))
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from None
    return table


def _run(trial: Trial, config: str) -> ArealiteError | None:
    """One run of the launcher's, which ends with this process however that ends."""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "arealite.launch", "--config", config, *trial.overrides]
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, LIFELINE: str(read_end)},
            pass_fds=(read_end,),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        with _passing_on(process) as asked:
            code = process.wait()
    finally:
        os.close(write_end)
        os.close(read_end)
    if asked:
        return Preempted("the sweep was asked to stop; the same command goes on with it")
    return None if code == 0 else _error(code)


def _error(code: int) -> ArealiteError:
    if code < 0:
        return Killed(f"its launcher was killed by {signal.Signals(-code).name}")
    error = ArealiteError(f"it ended with exit code {code} (docs/troubleshooting.md)")
    error.exit_code = code
    return error


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM go to the run, which keeps what it has done; gives those that came."""
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        process.send_signal(signal.SIGTERM)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
