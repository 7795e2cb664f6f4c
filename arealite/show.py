"""`python -m arealite.show RUN [--version N] [--sort reward|length|lag] [--grep TEXT] ...`."""

from __future__ import annotations

import heapq
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from arealite.config.cli import Parser
from arealite.errors import ConfigError, boundary
from arealite.telemetry.output import show
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.samples import Line, Sample, read_samples
from arealite.telemetry.transcripts import FATES
from arealite.telemetry.view import harmless
from arealite.types import NOT_SAMPLED

SORTS = {
    "reward": lambda sample: sample.reward,
    "length": lambda sample: sample.tokens,
    "lag": lambda sample: sample.lag,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the transcripts of a run that match: on a terminal in colour, to a pipe plainly."""
    with boundary():
        options = _options(sys.argv[1:] if argv is None else argv)
        folder = RunFolder.existing(options.run)
        if not folder.transcripts.exists():
            raise ConfigError(
                f"{folder.path} has no transcripts.jsonl: no episode has ended yet, or the run has "
                "stats_logger.transcripts: false"
            )
        matching = Counted(_matching(folder, options))
        shown = print_samples(chosen(matching, options), options.grep)
        if shown is not None:
            rest = ", give -n 0 for all" if shown < matching.count else ""
            print(f"{shown} of {matching.count} matching samples{rest}", file=sys.stderr)


def _options(argv: Sequence[str]) -> Namespace:
    command = Parser(
        prog="python -m arealite.show",
        description="Transcripts of a run, with their rewards, token versions and fate.",
        usage_hint="RUN_FOLDER [--version N] [--fate FATE] [--grep TEXT] "
        "[--sort reward|length|lag [--lowest]] [-n N]",
    )
    command.add_argument("run", metavar="RUN", help="the run folder")
    command.add_argument(
        "--version",
        type=int,
        help="what this version was made of, and what it answered to held-out rows",
    )
    command.add_argument("--fate", choices=FATES, help="what became of the episode")
    command.add_argument("--grep", metavar="TEXT", help="only where this text is said, as it is")
    command.add_argument("--sort", choices=sorted(SORTS), help="highest first")
    command.add_argument("--lowest", action="store_true", help="with --sort: lowest first")
    command.add_argument("-n", type=int, default=10, help="how many samples; 0: all")
    options = command.parse_args(argv)
    if options.n < 0:
        raise ConfigError(f"-n {options.n}: it must be at least 0")
    if options.lowest and not options.sort:
        raise ConfigError("--lowest says how --sort sorts; give --sort as well")
    return options


class Counted:
    """Passes samples on and counts them."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples, self.count = samples, 0

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            self.count += 1
            yield sample


def _matching(folder: RunFolder, options: Namespace) -> Iterator[Sample]:
    for sample in read_samples(folder, options.fate):
        if options.version is not None and sample.version != options.version:
            continue
        if options.grep and not sample.says(options.grep):
            continue
        if options.sort and SORTS[options.sort](sample) is None:
            continue
        yield sample


def chosen(samples: Iterable[Sample], options: Namespace) -> Iterable[Sample]:
    """The first of the sorted ones; unsorted, the newest, in the order in which they came.

    No more than n are held in memory, and unsorted with n = 0 none.
    """
    if options.sort:
        key = SORTS[options.sort]
        if not options.n:
            return sorted(samples, key=key, reverse=not options.lowest)
        pick = heapq.nsmallest if options.lowest else heapq.nlargest
        return pick(options.n, samples, key=key)
    return deque(samples, options.n) if options.n else samples


def print_samples(samples: Iterable[Sample], marked: str | None = None) -> int | None:
    """Prints them, those of one episode under one heading, and says how many; None when the reader
    has closed the pipe, which is no error: he has read enough."""
    console, printed = Console(highlight=False), 0
    episode: Line | None = None
    for sample in samples:
        heading = _heading(sample) if sample.episode is not episode else []
        episode = sample.episode
        for text in [*heading, *_answer(sample, marked)]:
            with console.capture() as capture:
                console.print(text, soft_wrap=not console.is_terminal)
            if show(capture.get().removesuffix("\n")):
                return None
        printed += 1
    return printed


def _heading(sample: Sample) -> list[Text]:
    admitted = sample.episode.get("version")
    state = {
        "trained": f"trained into version {sample.version}, admitted at {admitted}",
        "evaluated": f"held-out, judged at version {admitted}",
    }.get(sample.fate, f"{sample.fate}, admitted at version {admitted}")
    lines = [Text.assemble(("row ", "dim"), (_line(sample.sample_id), "bold"), f"  {_line(state)}")]
    if sample.asked:
        lines.append(_indented(sample.asked, "dim"))
    if sample.error:
        lines.append(_indented(sample.error, "red"))
    return lines


def _answer(sample: Sample, marked: str | None) -> list[Text]:
    if not sample.count:
        return [Text("")]
    of = f"sample {sample.index + 1} of {sample.count}"
    name = sample.trajectory.get("name")
    of += f", {_line(str(name))}" if name else ""
    facts = Text.assemble((of, "dim"), ("  reward ", "dim"), (_number(sample.reward), "bold cyan"))
    parts = [f"{_line(name)} {_number(value)}" for name, value in sample.components.items()]
    if parts:
        facts.append(f" ({', '.join(parts)})")
    facts.append(f"  {'?' if sample.tokens is None else sample.tokens} tokens")
    if sample.lag is not None:
        facts.append(f"  lag {sample.lag}")
    if sample.trajectory.get("truncated"):
        facts.append("  cut off by its length", style="yellow")
    versions = ", ".join(
        f"{count} given" if version == NOT_SAMPLED else f"{count} by version {version}"
        for version, count in sample.spans
    )
    text = _indented(sample.text or "(no text)")
    if marked:
        text.highlight_words([harmless(marked)], "reverse")
    lines = [facts, text, Text("")]
    return [lines[0], Text(f"tokens: {versions}", style="dim"), *lines[1:]] if versions else lines


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _line(text: str) -> str:
    return harmless(text).replace("\n", "\\n")


def _indented(text: str, style: str = "") -> Text:
    return Text("\n".join(f"  {line}" for line in harmless(text).split("\n")), style=style)


if __name__ == "__main__":
    main()
