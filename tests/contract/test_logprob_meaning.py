"""Does the trainer compute what the servers report? For each kind of server and sampling setting:

where the settings are accepted both numbers are the same, and where they are refused they are not
(or the server would report of another distribution than it samples from).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from embedded_support import make_model
from engine_kinds import Kind, bench_of, embedded, end_processes, run, standing_in

from arealite.config.logprobs import untrainable
from arealite.errors import ConfigError
from arealite.types import GenerationHyperparameters, LogprobMeaning

STOPS = tuple(range(150))
"""Of 199 tokens: a sample ends soon, and what bars them moves every log-probability."""

SETTINGS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "cooler": {"temperature": 0.6},
    "hotter": {"temperature": 1.5},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 5},
    "cooler_top_p": {"temperature": 0.6, "top_p": 0.5},
    "least": {"min_new_tokens": 6, "stop_token_ids": STOPS},
    "stops": {"stop_token_ids": STOPS},
}

SERVERS: Mapping[str, tuple[str, Kind, LogprobMeaning]] = {
    "embedded": ("embedded", embedded, "temperature"),
    "sglang": ("sglang", standing_in("sglang", "barred"), "barred"),
    "vllm": ("vllm", standing_in("vllm", "raw"), "raw"),
    "vllm-processed": ("vllm", standing_in("vllm", "processed"), "processed"),
}

REFUSED: Mapping[str, set[str]] = {
    "embedded": set(),
    "sglang": {"least"},
    "vllm": {"cooler", "hotter", "top_p", "top_k", "cooler_top_p"},
    "vllm-processed": {"top_p", "top_k", "cooler_top_p", "least"},
}

UNEQUAL: Mapping[str, set[str]] = {
    # Raw numbers are the trainer's own at temperature 1, but not of what is sampled from.
    **REFUSED,
    "vllm": REFUSED["vllm"] - {"top_p", "top_k"},
}


@pytest.fixture(scope="module", autouse=True)
def _processes() -> Iterator[None]:
    yield
    end_processes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[int, Path], Mapping[int, Any]]:
    folder = tmp_path_factory.mktemp("model")
    return {0: folder}, {0: make_model(folder, "qwen2", 1)}


@pytest.mark.parametrize("server", SERVERS)
def test_each_setting_is_accepted_where_both_sides_mean_the_same(
    server: str, model: tuple[Mapping[int, Path], Mapping[int, Any]]
) -> None:
    backend, kind, meaning = SERVERS[server]

    async def test() -> None:
        async with bench_of(backend, kind, *model) as found:
            for name, setting in SETTINGS.items():
                gconfig = GenerationHyperparameters(max_new_tokens=8, **setting)
                temperature = gconfig.temperature
                samples = await found.group(4, max_new_tokens=8, seed=1, **setting)
                worst = max(found.worst(sample, temperature) for sample in samples)
                refused = untrainable(meaning, gconfig) is not None
                assert refused == (name in REFUSED[server]), name
                if name in UNEQUAL[server]:
                    assert worst > 1e-2, (name, worst)
                else:
                    assert worst < 1e-4, (name, worst)

    run(test)


@pytest.mark.parametrize(
    ("meaning", "setting", "words"),
    [
        ("raw", {"temperature": 0.6}, r"vllm.*gconfig\.temperature: it is 0\.6.*processed"),
        ("raw", {"top_p": 0.9}, r"gconfig\.top_p: it is 0\.9.*before the cut"),
        ("processed", {"top_k": 5}, r"gconfig\.top_k: it is 5.*renormalised"),
        ("processed", {"min_new_tokens": 2}, r"gconfig\.min_new_tokens: it is 2.*stop tokens"),
    ],
)
def test_servers_that_mean_something_else_are_refused_at_the_start(
    meaning: LogprobMeaning,
    setting: dict[str, Any],
    words: str,
    model: tuple[Mapping[int, Path], Mapping[int, Any]],
) -> None:
    """Exit 2: servers of one's own tell how they were started only when they are asked."""

    async def test() -> None:
        trained = GenerationHyperparameters(**setting)
        with pytest.raises(ConfigError, match=f"(?i){words}") as error:
            async with bench_of("vllm", standing_in("vllm", meaning), *model, trained=trained):
                raise AssertionError("it must not come up")
        assert error.value.exit_code == 2

    run(test)
