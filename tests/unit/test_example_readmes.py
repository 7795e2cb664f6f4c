"""The examples' READMEs: every command names what exists, and every recipe is named."""

import re
import shlex
from pathlib import Path

import pytest
from example_files import EXAMPLES

from arealite.config import load
from arealite.sweep.grid import grid

ROOT = EXAMPLES.parent
READMES = sorted(EXAMPLES.glob("*/README.md"))


def commands(page: Path) -> list[list[str]]:
    """The words of every command line of the page, also of those over several lines."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    )?(python3? [^\n]+)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_commands_can_be_typed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = commands(page)
    assert len(found) > 1
    for words in found:
        if words[1] != "-m":
            assert Path(words[1]).exists(), words
            continue
        config, rest = words[words.index("--config") + 1], words[words.index("--config") + 2 :]
        overrides = [word for word in rest if "=" in word]
        if words[2] == "arealite.sweep":
            seeds = rest[rest.index("--seeds") + 1]
            assert len(grid(overrides, seeds)) > 1
            overrides = list(grid(overrides, seeds)[0].overrides)
        load(config, overrides)


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_every_file_of_the_folder_is_told(page: Path) -> None:
    text = page.read_text()
    for path in [*page.parent.glob("*.yaml"), *page.parent.glob("*.py")]:
        assert f"`{path.name}`" in text, path.name
