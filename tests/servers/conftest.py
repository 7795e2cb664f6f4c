"""One server of each kind for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_support import make_model
from server_environment import KINDS as FOREIGN
from server_kinds import SERVERS
from server_support import Served, add_tokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("served")
    return {name: root / name for name in ("old", "new")}


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    made = {
        name: make_model(folder, "served", seed)
        for seed, (name, folder) in enumerate(folders.items())
    }
    for folder in folders.values():
        add_tokenizer(folder)
    return made


@pytest.fixture(
    scope="session",
    params=["embedded", *(pytest.param(k, marks=getattr(pytest.mark, k)) for k in FOREIGN)],
)
def served(
    request: pytest.FixtureRequest,
    folders: dict[str, Path],
    models: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    kind = SERVERS[request.param]
    if kind.python is None:
        pytest.skip(f"there is no environment with {kind.name}: `make test-{kind.name}` builds it")
    log = tmp_path_factory.mktemp("logs") / f"{kind.name}.log"
    with kind.start(folders["old"], log) as process:
        yield Served(kind, process, folders, models)
    assert process.members() == []
