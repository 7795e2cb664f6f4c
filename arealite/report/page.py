"""The page: sections in order, each made of all runs. It loads nothing and runs nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from arealite.ledger.account import FATES, Account
from arealite.ledger.reading import Reading
from arealite.report import pictures
from arealite.report.facts import RunFacts
from arealite.report.html import Html, picture, table, tag
from arealite.telemetry.metrics import series
from arealite.telemetry.pace import bound_by
from arealite.telemetry.samples import Sample
from arealite.telemetry.view import clean, seconds, short

Runs = Sequence[RunFacts]
Section = Callable[[Runs], list[Html]]

# The browser itself is told to fetch and to run nothing, should an escape ever fail.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 1360px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p.note { color: #666; margin: .2rem 0 .8rem; }
img { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .25rem 1.2rem .25rem 0;
         border-bottom: 1px solid #e4e4e4; overflow-wrap: anywhere; }
th[scope=row] { font-weight: 500; color: #555; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
        gap: 1.2rem 2rem; }
.answers { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; margin-bottom: 1.2rem; }
.answers .asked { grid-column: 1 / -1; }
pre { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
      background: #f5f5f5; margin: 0; padding: .6rem .8rem; border-radius: 4px; }
.label { font-size: .85rem; color: #666; }
summary { cursor: pointer; padding: .3rem 0; }
@media print { details { display: none; } h2 { break-after: avoid; } img { break-inside: avoid; } }
"""


def page(runs: Runs) -> str:
    """The whole document about these runs, at least one."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    made = time.strftime("%Y-%m-%d %H:%M")
    head = [
        tag("h1", title),
        tag("p", f"Made by arealite on {made}, from the run folders alone.", class_="note"),
    ]
    body = [part for section in SECTIONS for part in section(runs)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{tag('title', title)}<style>{STYLE}</style></head>\n"
        f"{tag('body', *head, *body)}</html>\n"
    )


def overview(runs: Runs) -> list[Html]:
    rows: list[tuple[str, list[str]]] = [
        ("phase", [run.view.phase for run in runs]),
        ("versions", [_versions(run) for run in runs]),
        ("wall time", [seconds(run.view.elapsed_s) for run in runs]),
    ]
    keys = dict.fromkeys(found.key for run in runs for found in run.view.evaluations())
    rows += [(key, [_before_after(run, key) for run in runs]) for key in keys]
    rows += [
        ("reward of the batch", [_before_after(run, "reward/mean") for run in runs]),
        ("trained samples", [short(_total(run, "train/samples")) for run in runs]),
        ("engine, tokens/s", [short(_mean(run, "rollout/tokens_per_s")) for run in runs]),
        ("trainer, tokens/s", [short(_mean(run, "train/tokens_per_s")) for run in runs]),
        ("worst staleness", [_worst(run) for run in runs]),
        ("bound by", [_bounds(run) for run in runs]),
    ]
    for name, told in (
        ("error", [run.view.error for run in runs]),
        ("lost episodes", [_lost(run) for run in runs]),
        ("alarms", ["\n".join(run.view.alarms()) for run in runs]),
    ):
        if any(told):
            rows.append((name, told))
    rows.append(("run folder", [str(run.folder.path) for run in runs]))
    return [tag("h2", "Overview"), table(rows, [run.name for run in runs])]


def learning(runs: Runs) -> list[Html]:
    with_rows = [run for run in runs if run.view.rows]
    if not with_rows:
        return []
    parts = [tag("h2", "Curves")]
    if len(runs) > 1:
        parts.append(picture(pictures.compared(runs), "the runs' metrics in common axes"))
    return parts + [picture(pictures.curves(run), f"six curves of {run.name}") for run in with_rows]


def answers(runs: Runs) -> list[Html]:
    """Rows whose reward rose most, so a fair picture is in the curves and not here."""
    shown = [run for run in runs if run.answers]
    if not shown:
        return []
    return [
        tag("h2", "Before and after"),
        tag("p", "Held-out rows at the first and the last evaluation; of all those whose reward "
            "rose most, so they flatter: the curves tell how many did.", class_="note"),
        tag("div", *(_column(run) for run in shown), class_="runs"),
    ]  # fmt: skip


def _column(run: RunFacts) -> Html:
    cards = [
        tag(
            "div",
            tag("div", _label(f"row {before.sample_id}"), tag("pre", before.asked), class_="asked"),
            _answer(before),
            _answer(after) if after else tag("div", _label("not judged again")),
            class_="answers",
        )
        for before, after in run.answers
    ]
    return tag("div", tag("h3", run.name), *cards)


def _answer(sample: Sample) -> Html:
    told = f"version {sample.version}, reward {sample.reward or 0.0:.3g}"
    return tag("div", _label(told), tag("pre", sample.text or "(no text)"))


def _label(text: str) -> Html:
    return tag("div", text, class_="label")


def staleness(runs: Runs) -> list[Html]:
    if not any(run.lags for run in runs):
        return []
    note = (
        "Sampled tokens of all trained episodes by lag: the version trained less the one that "
        "sampled the token. What is older than the bound is not in the loss."
    )
    bounds = [(run.name, [_bound(run)]) for run in runs if run.lags]
    return [
        tag("h2", "Staleness"),
        tag("p", note, class_="note"),
        picture(pictures.staleness(runs), "histogram of the tokens' lag"),
        table(bounds),
    ]


def _bound(run: RunFacts) -> str:
    if run.bound is None:
        return "no bound known"
    total = sum(run.lags.values())
    beyond = sum(count for lag, count in run.lags.items() if lag > run.bound)
    return f"bound {run.bound:.0f}, {beyond / total:.2%} of {short(total)} tokens beyond it"


def times(runs: Runs) -> list[Html]:
    timed = [run for run in runs if sum(run.time_split().values()) > 0]
    if not timed:
        return []
    splits = [run.time_split() for run in timed]
    rows = [(part, [split[part] for split in splits]) for part in splits[0]]
    return [
        tag("h2", "Where the trainer's time went"),
        picture(pictures.time_split(timed), "shares of the trainer's time"),
        table(
            [(part, map(seconds, values)) for part, values in rows if any(values)],
            [run.name for run in timed],
        ),
    ]


def ledger(runs: Runs) -> list[Html]:
    """Where every planned row is, in episodes and sampled tokens."""
    shown = [(run, run.ledger, account) for run in runs if run.ledger
             and (account := run.ledger.account)]  # fmt: skip
    if not shown:
        return []
    columns = [{**_places(account), "closes": _closes(book)} for _, book, account in shown]
    return [
        tag("h2", "Where every planned row is"),
        tag("p", "Episodes, and in brackets the tokens sampled for them.", class_="note"),
        table(
            [(place, [column[place] for column in columns]) for place in columns[0]],
            [run.name for run, _, _ in shown],
        ),
    ]


def _places(account: Account) -> dict[str, str]:
    counts, tokens = account.counts, account.tokens
    names = {"planned": "generated", **{fate: fate for fate in FATES}, "rolled_back": "rolled_back"}
    places = {
        name.replace("_", " "): _episodes(counts[name], tokens[of]) for name, of in names.items()
    }
    waiting = len(account.open) - account.in_flight
    return {
        **places,
        "waiting to be trained": _episodes(waiting, account.buffered_tokens),
        "in flight": f"{account.in_flight:,}",
    }


def _episodes(count: int, tokens: int) -> str:
    return f"{count:,} ({short(tokens)})" if count else "-"


def _closes(book: Reading) -> str:
    return "; ".join(book.problems()) or "yes: every planned row is in exactly one place"


def configuration(runs: Runs) -> list[Html]:
    parts = [tag("h2", "Configuration")]
    if len(runs) > 1:
        keys = dict.fromkeys(key for run in runs for key in run.settings)
        rows = [(key, [run.settings.get(key, "(absent)") for run in runs]) for key in keys]
        different = [row for row in rows if len(set(row[1])) > 1]
        if different:
            parts.append(table(different, [run.name for run in runs]))
        else:
            parts.append(tag("p", "All settings are equal.", class_="note"))
    for run in runs:
        text = run.config or "config.yaml is absent"
        parts.append(tag("details", tag("summary", f"all of {run.name}"), tag("pre", text)))
    return parts


SECTIONS: tuple[Section, ...] = (
    *(overview, learning, answers, staleness, times, ledger, configuration),
)
"""In the order of the page. A further view of the runs is one function more; a section about which
no run says anything returns []."""


def _versions(run: RunFacts) -> str:
    at = "-" if run.view.version is None else str(run.view.version)
    return f"{at} of {run.view.total}" if run.view.total else at


def _before_after(run: RunFacts, key: str) -> str:
    values = series(run.view.rows, key)[1]
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    return f"{values[0]:.3f} → {values[-1]:.3f}"


def _total(run: RunFacts, key: str) -> float | None:
    values = series(run.view.rows, key)[1]
    return sum(values) if values else None


def _mean(run: RunFacts, key: str) -> float | None:
    values = series(run.view.rows, key)[1]
    return sum(values) / len(values) if values else None


def _worst(run: RunFacts) -> str:
    values = series(run.view.rows, "staleness/max")[1]
    return f"{max(values):.0f} versions" if values else "-"


def _bounds(run: RunFacts) -> str:
    count = Counter(filter(None, map(bound_by, run.view.rows)))
    return ", ".join(f"{name} in {n} versions" for name, n in count.most_common()) or "-"


def _lost(run: RunFacts) -> str:
    told = run.view.status.get("errors")
    kinds = told if isinstance(told, Mapping) else {}
    return ", ".join(
        f"{clean(kind)} {clean(entry.get('count'))}"
        for kind, entry in kinds.items()
        if isinstance(entry, Mapping)
    )
