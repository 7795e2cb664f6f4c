"""The vocabulary checks itself: what cannot be trained cannot be built."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from arealite.types import (
    NOT_SAMPLED,
    Episode,
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    Trajectory,
)

GOOD: dict[str, Any] = {
    "tokens": [5, 6, 7],
    "loss_mask": [0, 1, 1],
    "logprobs": [0.0, -1.0, -2.0],
    "versions": [-1, 3, 4],
    "reward": 1.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": [5, 6]}, "2, 3, 3 and 3 entries"),
        ({"logprobs": [0.0, -1.0]}, "one length"),
        ({"loss_mask": [0, 1, 2]}, "only 0 and 1"),
        ({"loss_mask": [0, 0, 0]}, "no token is marked"),
        ({"loss_mask": [1, 1, 1], "versions": [0, 0, 0]}, "no prefix"),
        ({"logprobs": [0.0, -1.0, math.nan]}, "not finite"),
        ({"logprobs": [0.0, -math.inf, -1.0]}, "not finite"),
        ({"logprobs": [0.0, -math.inf, math.inf]}, "not finite"),
        ({"logprobs": (0.0, -1.0, -2.0), "tokens": bytearray()}, "0, 3, 3 and 3 entries"),
        ({"logprobs": numpy.array([0.0, -1.0, -2.0])}, "logprobs is a ndarray, it must be a list"),
        ({"versions": [-1, -1, 4]}, "no version"),
        ({"loss_mask": [0, 1, 0], "versions": [-1, -2, -1]}, "no version"),
        ({"tokens": [5, -6, 7]}, "a token id is -6, it must not be negative"),
        ({"tokens": "abc"}, "tokens is a str, it must be a list"),
        ({"tokens": [5, 6.0, 7]}, "tokens must hold whole numbers alone"),
        ({"tokens": [5, "6", 7]}, "tokens must hold whole numbers alone"),
        ({"tokens": [5, math.nan, 7]}, "tokens must hold whole numbers alone"),
        ({"versions": [None, 3, 4]}, "versions must hold whole numbers alone"),
        ({"versions": [-1, math.nan, 4]}, "versions must hold whole numbers alone"),
        ({"logprobs": [0.0, None, -1.0]}, "logprobs must hold numbers alone"),
        ({"logprobs": [0.0, 500.0, -1.0]}, "a log-probability is 500.0, it must be at most 0"),
        ({"components": {"a": None}}, "a is None, it must be a finite number"),
        ({"components": {"a": math.nan}}, "a is nan, it must be a finite number"),
        ({"components": {1: 1.0}}, "components are named by text, not by 1"),
        ({"components": "a"}, "components must be a mapping"),
        ({"truncated": "yes"}, "truncated is 'yes', it must be True or False"),
        ({"text": b"x"}, "text is a bytes, it must be a str or None"),
        ({"reward": math.nan}, "finite number"),
        ({"reward": math.inf}, "finite number"),
        ({"reward": None}, "finite number"),
        ({"reward": "1"}, "finite number"),
    ],
)
def test_a_malformed_trajectory_is_refused_with_the_rule(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Trajectory(**(GOOD | change))


def test_a_trajectory_knows_its_sampled_tokens() -> None:
    good = Trajectory(**GOOD)
    assert good.sampled == 2
    assert good.oldest_version == 3


def test_tokens_between_those_sampled_have_no_version_of_their_own() -> None:
    turns = Trajectory([1, 2, 3, 4], [0, 1, 0, 1], [0.0, -1.0, 0.0, -1.0], [-1, 5, -1, 3], 1.0)
    assert (turns.sampled, turns.oldest_version) == (2, 3)


def test_from_response_is_the_single_turn_case() -> None:
    response = ModelResponse([1, 2], [3, 4, 5], [-0.1, -0.2, -0.3], [7, 7, 8], "length")
    made = Trajectory.from_response(response, 0.5, "text")
    assert made.tokens == [1, 2, 3, 4, 5]
    assert made.loss_mask == [0, 0, 1, 1, 1]
    assert made.logprobs == [0.0, 0.0, -0.1, -0.2, -0.3]
    assert made.versions == [NOT_SAMPLED, NOT_SAMPLED, 7, 7, 8]
    assert (made.reward, made.truncated, made.text) == (0.5, True, "text")
    assert (response.input_len, response.output_len) == (2, 3)


def test_named_rewards_are_summed_and_kept() -> None:
    response = ModelResponse([1], [2], [-0.1], [0], "stop")
    made = Trajectory.from_response(response, {"format": 0.25, "right": 0.5})
    assert made.reward == 0.75
    assert made.components == {"format": 0.25, "right": 0.5}
    assert not made.truncated


def test_an_episodes_reward_is_the_mean() -> None:
    group = tuple(Trajectory(**(GOOD | {"reward": r})) for r in (0.0, 1.0, 0.5))
    assert Episode("0:1", 0, group).reward == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_samples": 0},
        {"max_new_tokens": 0},
        {"min_new_tokens": -1},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"top_k": -2},
    ],
)
def test_sampling_parameters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* must be"):
        GenerationHyperparameters(**wrong)
    with pytest.raises(ValueError):
        GenerationHyperparameters().new(**wrong)


def test_stop_ids_of_the_tokenizer_are_added_once() -> None:
    base = GenerationHyperparameters(stop_token_ids=(9, 2))
    both = base.new_with_stop_and_pad_token_ids(SimpleNamespace(eos_token_id=2, pad_token_id=0))
    assert both.stop_token_ids == (0, 2, 9)
    none = base.new_with_stop_and_pad_token_ids(SimpleNamespace(eos_token_id=2, pad_token_id=None))
    assert none.stop_token_ids == (2, 9)
    assert base.stop_token_ids == (9, 2)


def test_every_request_has_an_id_of_its_own() -> None:
    assert ModelRequest([1]).rid != ModelRequest([1]).rid
