"""`python -m arealite.report RUN [RUN ...] [--out report.html]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from arealite.config.cli import Parser
from arealite.errors import ConfigError, boundary
from arealite.report.facts import facts_of
from arealite.report.page import page
from arealite.telemetry.output import show
from arealite.telemetry.run_folder import RunFolder, write_atomically


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page and says where."""
    with boundary():
        command = Parser(
            prog="python -m arealite.report",
            description="One HTML file about one run or several, side by side.",
            usage_hint="RUN_FOLDER [RUN_FOLDER ...] [--out FILE]",
        )
        command.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
        command.add_argument("--out", default="report.html", help="the file to write")
        options = command.parse_args(sys.argv[1:] if argv is None else argv)
        folders = [RunFolder.existing(run) for run in options.runs]
        html = page(facts_of(folders))
        try:
            write_atomically(Path(options.out), html)
        except OSError as error:
            raise ConfigError(f"--out {options.out} cannot be written: {error.strerror}") from None
        show(f"arealite: {options.out} ({len(html) / 1e6:.1f} MB) opens in any browser")


if __name__ == "__main__":
    main()
