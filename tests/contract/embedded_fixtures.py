"""Fixtures of the embedded server's tests; a module loads them with `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_support import Caller, Server, make_model, session_with


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: root / name for name in ("qwen2", "qwen3", "llama", "new", "broken")}


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Any:
    return make_model(folders["qwen2"], "qwen2", seed=1)


@pytest.fixture(scope="module")
def new_model(folders: dict[str, Path]) -> Any:
    return make_model(folders["new"], "qwen2", seed=2)


@pytest.fixture(scope="module")
def shared(folders: dict[str, Path], model: Any) -> Iterator[Server]:
    server = Server(folders["qwen2"], "--max-running", "8", "--max-waiting", "40", "--seed", "3")
    yield server
    code, log = server.ended()
    assert code == 0, log
    assert "Traceback" not in log


@pytest.fixture
def server(shared: Server, folders: dict[str, Path]) -> Server:
    """The shared server, generating with its first weights."""

    async def reset(caller: Caller) -> None:
        await caller.post("/continue_generation", {})
        assert (await caller.update(folders["qwen2"], "0"))[0] == 200

    session_with(shared, reset)
    return shared
