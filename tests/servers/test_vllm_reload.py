"""vLLM's own way to load a folder, which GPUs use: right, or found to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server_kinds import PLAIN, TIMEOUT_S, UNPACKED, VLLM
from server_support import Served
from test_weights import change_in_mid_generation, refused

from arealite.engines.client import RemoteEngine
from arealite.errors import EnginesExhausted

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(TIMEOUT_S)]


@contextmanager
def serving(
    options: tuple[str, ...], folders: dict[str, Path], models: dict[str, Any], log: Path
) -> Iterator[Served]:
    kind = replace(VLLM, options=options)
    if kind.python is None:
        pytest.skip("there is no environment with vllm: `make test-vllm` builds it")
    with kind.start(folders["old"], log) as process:
        yield Served(kind, process, folders, models)


def test_it_is_exact_where_weights_are_not_packed_also_after_a_load_that_failed(
    folders: dict[str, Path], models: dict[str, Any], tmp_path: Path
) -> None:
    with serving((*PLAIN, *UNPACKED), folders, models, tmp_path / "log") as served:
        change_in_mid_generation(served)
        refused(served, tmp_path / "nowhere")  # a sample now would end vLLM's engine
        change_in_mid_generation(served)


def test_a_tied_head_that_stays_packed_is_found_by_the_probe(
    folders: dict[str, Path], models: dict[str, Any], tmp_path: Path
) -> None:
    """The server answers 200 and goes on with the old head."""

    async def work(engine: RemoteEngine) -> None:
        with pytest.raises(EnginesExhausted, match=r"other log-probabilities .* differ by [1-9]"):
            await engine.update_weights(served.update("new"))

    with serving(PLAIN, folders, models, tmp_path / "log") as served:
        served.run(work, name=None)
