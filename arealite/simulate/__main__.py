"""`python -m arealite.simulate --config x.yaml [--profile run_folder] [key=value ...]`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from arealite.config import Config, load
from arealite.config.cli import Parser
from arealite.errors import ConfigError, boundary
from arealite.rollout.limits import limits_of
from arealite.simulate.profile import speeds_of
from arealite.simulate.report import Setting, advice, table
from arealite.simulate.scenario import FILLING, Scenario, simulate
from arealite.simulate.speeds import Speeds


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the grid and the advice."""
    with boundary():
        options = _parser().parse_intermixed_args(sys.argv[1:] if argv is None else argv)
        config = load(options.config, options.overrides)
        measured = speeds_of(Path(options.profile)) if options.profile else Speeds()
        speeds = measured.changed(options.set)
        base = scenario_of(config, speeds, options.versions)
        if not options.profile:
            print(
                "the speeds are the CPU demo's own: give --profile RUN_FOLDER, or --set name=value"
            )
        etas = _numbers("--eta", options.eta, 0) or [0, 1, 2, 4]
        _check_versions(options.versions, max(etas))
        outcomes = {}
        for eta, batch, servers in itertools.product(
            etas,
            _numbers("--batch", options.batch, 1) or [base.limits.batch_size],
            _numbers("--servers", options.servers, 1) or [base.n_servers],
        ):
            scenario = base.changed(eta=eta, batch_size=batch, n_servers=servers)
            outcomes[Setting(servers, batch, eta)] = simulate(scenario)
        print("\n".join(table(outcomes)))
        print(f"advice: {advice(outcomes)}")


def scenario_of(config: Config, speeds: Speeds, versions: int) -> Scenario:
    """What this configuration would run."""
    rollout = config.rollout
    return Scenario(
        limits_of(config),
        speeds,
        config.gconfig.n_samples,
        config.gconfig.max_new_tokens,
        len(rollout.servers) or rollout.n_servers,
        rollout.max_running_requests,
        versions,
        config.seed,
    )


def _check_versions(versions: int, eta: int) -> None:
    least = 4 * (eta + FILLING)
    if versions < least:
        raise ConfigError(
            f"--versions {versions}: the first {eta + FILLING} fill the pipeline at staleness "
            f"{eta}; give at least --versions {least}, or a smaller --eta"
        )


def _parser() -> Parser:
    command = Parser(
        prog="python -m arealite.simulate",
        description="How fast and how stale a run would be, for a grid of settings.",
        usage_hint="--config FILE [--profile RUN_FOLDER] [--eta 0,1,2] [--batch 32,64] "
        "[--servers 1,2] [--set name=value] [section.key=value ...]",
    )
    command.add_argument("--config", required=True, help="the run's YAML file")
    command.add_argument("--profile", help="take the speeds from this finished run's folder")
    command.add_argument("--set", action="append", default=[], help="a speed, name=value")
    command.add_argument("--eta", default="", help="staleness bounds to try, as 0,1,2,4")
    command.add_argument("--batch", default="", help="batch sizes to try")
    command.add_argument("--servers", default="", help="numbers of servers to try")
    command.add_argument("--versions", type=int, default=40, help="how many are simulated")
    command.add_argument("overrides", nargs="*", help="section.key=value, over the file")
    return command


def _numbers(option: str, text: str, least: int) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",") if part})
    except ValueError:
        raise ConfigError(f"{option} {text}: give whole numbers, as 1,2,4") from None
    if numbers and numbers[0] < least:
        raise ConfigError(f"{option} {text}: every number must be at least {least}")
    return numbers


if __name__ == "__main__":
    main()
