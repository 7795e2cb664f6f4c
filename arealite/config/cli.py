"""The command line that every entry point shares: --config FILE key=value ..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from arealite.config.load import load
from arealite.config.schema import Config
from arealite.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ConfigErrors, so that they look like all others."""

    def __init__(
        self,
        *args: Any,
        usage_hint: str = "--config FILE [--check] [section.key=value ...]",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._usage_hint = usage_hint

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; usage: {self._usage_hint}")


def parser() -> Parser:
    command = Parser(
        prog="python -m arealite.launch",
        description="Starts inference servers and a trainer from one YAML file.",
    )
    command.add_argument("--config", required=True, help="the run's YAML file")
    command.add_argument(
        "--check", action="store_true", help="validate, print the plan, start nothing"
    )
    command.add_argument("overrides", nargs="*", help="section.key=value, over the file")
    return command


def load_from_argv(argv: Sequence[str] | None = None) -> Config:
    """What --config and the overrides say. Raises ConfigError."""
    arguments = parser().parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    return load(arguments.config, arguments.overrides)
