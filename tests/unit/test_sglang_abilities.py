"""What is made of the answers of servers that speak SGLang's protocol."""

from __future__ import annotations

from typing import Any

import pytest

from arealite.engines import sglang
from arealite.engines.dialect import Abilities, Answer


def of(**told: Any) -> Abilities:
    settings = {"version": "0.5.23", "internal_states": [{}], "port": 30000}
    return sglang.abilities([Answer(200, settings | told)])


def test_the_embedded_server_and_sglang_are_told_apart() -> None:
    ours = sglang.abilities([Answer(200, {"server": "embedded", "running": 0})])
    assert (ours.meaning, ours.seeds_group, ours.counters) == ("temperature", True, "")
    theirs = of()
    assert (theirs.name, theirs.meaning) == ("SGLang 0.5.23", "barred")
    assert (theirs.seeds_group, theirs.counters) == (False, "/v1/loads")


def test_a_group_is_parted_only_where_one_seed_would_make_its_samples_equal() -> None:
    obeys = of(enable_deterministic_inference=True)
    assert obeys.samples_of(8, is_seeded=True) == 1
    assert obeys.samples_of(8, is_seeded=False) == 8
    ignores = of(enable_deterministic_inference=False)
    assert ignores.samples_of(8, is_seeded=True) == 8
    assert "seeds are not obeyed" in str(ignores)
    assert Abilities(most_samples=3).samples_of(8, is_seeded=True) == 3


def test_original_log_probabilities_are_raw_where_the_server_tells_of_them() -> None:
    shown = [{"env_vars": {"SGLANG_RETURN_ORIGINAL_LOGPROB": "true"}}]
    assert of(internal_states=shown).meaning == "raw"


def test_a_server_that_wants_a_key_says_so_and_one_that_tells_nothing_is_unknown() -> None:
    assert "AREALITE_SERVER_KEY" in sglang.abilities([Answer(401, {"error": "no"})]).lacks
    assert sglang.abilities([Answer(404)]) == sglang.abilities([Answer(200, "x")]) == Abilities()


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ({"loads": [{"num_running_reqs": 2, "num_used_tokens": 9},
                    {"num_running_reqs": 1, "num_waiting_reqs": 4}]},
         {"running": 3.0, "waiting": 4.0, "used_tokens": 9.0}),
        ({"server": "embedded", "running": 2, "tokens_generated": 5.5, "paused": True},
         {"running": 2, "tokens_generated": 5.5}),
        ({"internal_states": [{}], "port": 30000}, {}),
        ("text", {}),
    ],
)  # fmt: skip
def test_counters_are_numbers_and_no_settings(reply: Any, wanted: dict[str, float]) -> None:
    assert sglang.parse_counters(reply) == wanted
