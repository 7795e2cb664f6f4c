"""docs/migrating.md and docs/troubleshooting.md name settings and exit codes that exist."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arealite import errors
from arealite.config import Config
from arealite.config.load import _known_keys, _section_type

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEYS = set(_known_keys())


def here_column() -> Iterator[tuple[str, str]]:
    """(the whole line, its middle column) of every row of the page's tables."""
    for line in (DOCS / "migrating.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3 and cells[1] != "here":
            yield line, cells[1]


def values_of(key: str) -> tuple[Any, ...]:
    """What a setting may be, where it is one of a few words."""
    cls: Any = Config
    for part in key.split("."):
        kind = typing.get_type_hints(cls)[part]
        cls = _section_type(kind)
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def settings() -> Iterator[tuple[str, str, str]]:
    """(key, value or "", line) of everything that the page calls ours."""
    for line, cell in here_column():
        for found in re.findall(r"`([^`]+)`", cell):
            key, _, value = found.partition(": ")
            yield key, value, line


def test_every_setting_that_others_keys_become_exists() -> None:
    found = list(settings())
    assert len(found) > 120
    assert {key for key, _, _ in found} <= KEYS
    for key, value, line in found:
        words = values_of(key)
        assert not value or not words or value in words, line


def test_every_row_says_what_becomes_of_a_key() -> None:
    assert all(cell == "-" or "`" in cell for _, cell in here_column())


def test_words_in_the_notes_are_values_of_their_setting() -> None:
    """As in `loss_type` -> `actor.loss_agg_mode`, grpo: `sequence`."""
    checked = 0
    for line, cell in here_column():
        note = line.strip("|").split("|")[2]
        keys = re.findall(r"`([^`:]+)`", cell)
        words = [w for key in keys if key in KEYS for w in values_of(key)]
        for value in re.findall(r": `([a-z0-9_]+)`", note):
            assert value in words, line
            checked += 1
    assert checked > 6


def exit_codes() -> dict[int, str]:
    """Code -> class, of the whole error tree."""
    found: dict[int, str] = {}
    open_ = [errors.ArealiteError]
    while open_:
        cls = open_.pop()
        open_ += cls.__subclasses__()
        if "exit_code" in vars(cls) and cls is not errors.ArealiteError:
            found[cls.exit_code] = cls.__name__
    return found


def test_every_exit_code_has_its_section() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    told = dict(re.findall(r"^## (\d+): (.+)$", page, re.MULTILINE))
    expected = {str(code): name for code, name in exit_codes().items()}
    assert told == {**expected, "0": "done", str(errors.EXIT_BUG): "a bug in arealite"}
    readme = (DOCS.parent / "README.md").read_text()
    assert re.findall(r"^\| (\d+) \|", readme, re.MULTILINE) == list(told)


@pytest.mark.parametrize("page", ["troubleshooting.md", "sweep.md", "seeing.md"])
def test_settings_in_running_text_exist(page: str) -> None:
    sections = {f.name for f in dataclasses.fields(Config)}
    text = (DOCS / page).read_text()
    for found in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:[:=] ?[^`]*)?`", text):
        if found.split(".")[0] in sections:
            assert found in KEYS, found


def test_what_is_quoted_is_what_the_code_says() -> None:
    """The sentences' fixed words, as they stand in the sources over one or several lines."""
    code = "".join(p.read_text() for p in (DOCS.parent / "arealite").rglob("*.py"))
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)
    page = (DOCS / "troubleshooting.md").read_text().replace("\n  ", " ")
    quotes = re.findall(r'\*"([^*]+)"\*', page)
    assert len(quotes) > 8
    for quote in quotes:
        for words in quote.split("..."):
            assert words.strip(" ,") in code, quote


def test_the_readme_leads_to_every_page() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f"docs/{page.name}" in readme, page.name
