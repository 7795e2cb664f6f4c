"""`python -m arealite.report`: one page that is complete, harmless and right in its figures."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from seeing_support import small_run

from arealite.report.__main__ import main
from arealite.report.facts import facts_of, settings_of
from arealite.report.html import tag
from arealite.report.page import _closes, _places, page
from arealite.telemetry.run_folder import RunFolder, write_atomically
from arealite.telemetry.status import Status


class Read(HTMLParser):
    """The elements with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


def read(*folders: RunFolder) -> Read:
    return Read(page(facts_of(folders)))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Read:
    return read(small_run(tmp_path_factory.mktemp("single")))


def test_the_page_says_what_a_reader_asks(single: Read) -> None:
    for part in (
        "countdown / trial1", "4 of 4", "training in 4 versions", "0.100 → 0.500",
        "Before and after", "question 1",
        "version 0, reward 0", "version 4, reward 1", "Staleness", "trainer's time",
        "Configuration", "lr: 0.0001",
    ):  # fmt: skip
        assert part in single.text
    assert "question 0" in single.text, "a row that did not gain is shown where there are few"


def test_the_page_is_one_file_that_fetches_and_runs_nothing(tmp_path: Path) -> None:
    found = read(small_run(tmp_path), small_run(tmp_path, "trial2", lr=3e-4))
    assert not found.names() & {"script", "link", "iframe", "object", "embed", "a", "form"}
    sources = [v for _, attributes in found.elements for k, v in attributes.items() if k == "src"]
    assert len(sources) == 5, "two runs' curves, compared, staleness, time"
    for source in sources:
        assert source is not None
        head, data = source.split(",", 1)
        assert head == "data:image/svg+xml;base64"
        assert b"</svg>" in base64.b64decode(data)
    events = [k for _, attributes in found.elements for k in attributes if k.startswith("on")]
    assert events == []
    (policy,) = [a["content"] for n, a in found.elements if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_what_a_model_says_stays_text(single: Read) -> None:
    assert "<script>alert(1)</script> [red]x[/] \\x1b[31m" in single.text
    assert "<answer>2 of 4</answer>" in single.text
    assert not single.names() & {"script", "answer"}


def test_names_settings_and_errors_stay_text_too(tmp_path: Path) -> None:
    evil = '"><script>x</script>'
    folder = small_run(tmp_path, trial="$^$ a_$ & <b>")
    write_atomically(folder.config, f"seed: '{evil}'\n")
    Status(folder).set(phase="failed", error=evil, errors={evil: {"count": evil}})
    found = read(folder, small_run(tmp_path))
    assert not found.names() & {"script", "b"}
    assert found.text.count(evil) == 5, "error, its kind and count, and the setting in both places"


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a<b&\x07", tag("b", "c"), title='"') == (
        '<p title="&quot;">a&lt;b&amp;\\x07<b>c</b></p>'
    )


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    one, other = small_run(tmp_path), small_run(tmp_path, "trial2", lr=3e-4, gain=0.2)
    html = page(facts_of([one, other]))
    cells = r"<td>([^<]*)</td><td>([^<]*)</td>"
    rows = {k: (a, b) for k, a, b in re.findall(rf">([^<]*)</th>{cells}</tr>", html)}
    assert rows["actor.optimizer.lr"] == ("0.0001", "0.0003")
    assert rows["reward of the batch"] == ("0.100 → 0.400", "0.200 → 0.800")
    assert "seed" not in rows, "a setting that is equal tells nothing"


def test_the_ledgers_account(single: Read, tmp_path: Path) -> None:
    """Of the run of seeing_support, by hand."""
    (run,) = facts_of([small_run(tmp_path)])
    assert run.ledger is not None
    assert run.ledger.account is not None
    assert _places(run.ledger.account) == {
        "planned": "4 (3.0k)",
        "trained": "1 (1.5k)",
        "filtered": "-",
        "stale": "-",
        "failed": "1 (0)",
        "rolled back": "-",
        "waiting to be trained": "1 (1.5k)",
        "in flight": "1",
    }
    assert "every planned row is in exactly one place" in single.text
    with open(run.folder.ledger, "ab") as file:
        file.write(b"what is this\n")
    (damaged,) = facts_of([run.folder])
    assert damaged.ledger is not None
    assert "every planned row" not in _closes(damaged.ledger)


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [small_run(tmp_path / root) for root in ("a", "b")]
    assert [run.name for run in facts_of(folders)] == [str(folder.path) for folder in folders]


def test_the_lag_of_every_trained_token(tmp_path: Path) -> None:
    (run,) = facts_of([small_run(tmp_path)])
    # Two samples each of [v] * 4 and [v - 1, v - 1, v], v from 0 to 3; at 0 nothing is older.
    assert run.lags == {0: 4 * 2 * 4 + 2 * 3 + 3 * 2 * 1, 1: 3 * 2 * 2}


def test_the_time_split_is_of_the_time_that_passed(tmp_path: Path) -> None:
    (run,) = facts_of([small_run(tmp_path)])
    # Versions 1 to 4 at seconds 1001 to 1004: three of them lie between.
    assert run.time_split() == pytest.approx(
        {
            "waiting for samples": 0.75,
            "annotating": 0.0,
            "updating": 1.5,
            "publishing": 0.15,
            "else": 3 - 0.75 - 1.5 - 0.15,
        }
    )


def test_a_run_with_a_file_less_has_a_page(tmp_path: Path) -> None:
    folders = []
    for absent in ("metrics", "transcripts", "config", "status", "ledger"):
        folders.append(small_run(tmp_path, absent))
        getattr(folders[-1], absent).unlink()
    young = RunFolder.of(tmp_path, "countdown", "young").create()
    Status(young).flush()
    assert "Overview" in read(young).text
    found = read(young, *folders)
    assert "config.yaml is absent" in found.text
    assert "no status yet" in found.text


def test_settings_of_a_broken_file_are_none() -> None:
    assert settings_of("a: {b: 1, c: []}\nd: null") == {"a.b": "1", "a.c": "[]", "d": "null"}
    assert settings_of("a: [") == settings_of("just words") == settings_of("") == {}


def test_the_command_writes_the_file_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(small_run(tmp_path).path), str(tmp_path / "out.html")
    main([run, "--out", out])
    assert out in capsys.readouterr().out
    assert Path(out).read_text().endswith("</html>\n")
    with pytest.raises(SystemExit) as ended:
        main([run, "--out", str(tmp_path / "no" / "out.html")])
    assert ended.value.code == 2
