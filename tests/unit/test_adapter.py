"""What a workflow may return, AReaL's dict of tensors among it, and how everything else is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from arealite.errors import WorkflowError
from arealite.rollout.adapter import to_trajectories
from arealite.types import ModelResponse, Trajectory

ONE = Trajectory([1, 2], [0, 1], [0.0, -1.0], [-1, 0], 1.0)


def _tensors(**changes: Any) -> dict[str, Any]:
    """Two samples of 3 and 4 tokens, padded on the right, as AReaL's workflows return them."""
    return {
        "input_ids": torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
        "loss_mask": torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1]]),
        "logprobs": torch.tensor([[0.0, 0.0, -1.0, 0.0], [0.0, 0.0, -2.0, -0.5]]),
        "versions": torch.tensor([[-1, -1, 3, -1], [-1, -1, 3, 4]]),
        "rewards": torch.tensor([1.0, 0.5]),
    } | changes


def _with(first: float, second: float) -> torch.Tensor:
    """A column whose first row begins with these."""
    return torch.tensor([[first, second, 1, 0], [0, 0, 1, 1]])


def test_trajectories_pass_as_they_are() -> None:
    assert to_trajectories([ONE, ONE]) == (ONE, ONE)
    assert to_trajectories((ONE,)) == (ONE,)
    assert to_trajectories(ONE) == (ONE,)
    assert to_trajectories(None) == ()


def test_areals_dict_of_tensors() -> None:
    first, second = to_trajectories(_tensors())
    assert first.tokens == [5, 6, 7]
    assert first.loss_mask == [0, 0, 1]
    assert first.versions == [-1, -1, 3]
    assert first.reward == 1.0
    assert second.tokens == [5, 6, 8, 9]
    assert second.logprobs == [0.0, 0.0, -2.0, -0.5]
    assert (second.versions, second.reward) == ([-1, -1, 3, 4], 0.5)


def test_the_variations_that_areals_workflows_show() -> None:
    exact = to_trajectories(_tensors())
    columns = _tensors(
        rewards=torch.tensor([[1.0], [0.5]]),
        attention_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool(),
        loss_mask=torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1]]).float(),
        begin_of_answer=torch.tensor([2, 2]),
    )
    assert to_trajectories(columns) == exact
    bare = _tensors(input_ids=torch.tensor([[5, 6, 7, 4], [5, 6, 8, 9]]))
    del bare["attention_mask"]
    assert [len(t.tokens) for t in to_trajectories(bare)] == [4, 4]


def test_what_stands_in_the_padding_is_nobodys_business() -> None:
    columns = _tensors(
        input_ids=torch.tensor([[5, 6, 7, -100], [5, 6, 8, 9]]),
        loss_mask=torch.tensor([[0, 0, 1, -100], [0, 0, 1, 1]]),
        logprobs=torch.tensor([[0.0, 0.0, -1.0, 9.0], [0.0, 0.0, -2.0, -0.5]]),
        versions=torch.tensor([[-1, -1, 3, 0.5], [-1, -1, 3, 4]]),
    )
    assert to_trajectories(columns) == to_trajectories(_tensors())


def test_whole_numbers_may_come_as_floats_and_numpy_arrays() -> None:
    exact = to_trajectories(_tensors())
    for name in ("input_ids", "attention_mask", "loss_mask", "versions"):
        played = to_trajectories(_tensors(**{name: _tensors()[name].float()}))
        assert played == exact
        assert all(type(token) is int for t in played for token in [*t.tokens, *t.versions])
    assert to_trajectories({name: column.numpy() for name, column in _tensors().items()}) == exact


def test_a_log_probability_may_be_rounded_above_0() -> None:
    columns = _tensors(logprobs=torch.tensor([[0.0, 0.0, 0.0009, 0.0], [0.0, 0.0, -2.0, -0.5]]))
    assert to_trajectories(columns)[0].logprobs[2] > 0


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([], "empty list"),
        (3.0, "returned a float"),
        ("text", "returned a str"),
        (True, "returned a bool"),
        ([ONE, None], "item 1 is a NoneType"),
        ([ModelResponse([1], [2], [0.0], [0], "stop")], "item 0 is a ModelResponse"),
        ((t for t in [ONE]), "returned a generator"),
        ({}, "without input_ids, loss_mask, logprobs, versions, rewards"),
        ({"input_ids": torch.zeros(1, 2)}, "without loss_mask"),
        (_tensors(rewards=[1.0, 0.5]), "rewards is a list, it must be a tensor"),
        (_tensors(versions=None), "versions is a NoneType"),
        (_tensors(rewards=torch.tensor(1.0)), "rewards has 0 dimensions"),
        (_tensors(rewards=torch.ones(2, 4)), "rewards has 2 dimensions"),
        (_tensors(rewards=torch.ones(3)), "rewards has 3 rows, input_ids has 2"),
        (_tensors(input_ids=torch.tensor([5, 6])), "input_ids has 1 dimensions"),
        (_tensors(logprobs=torch.zeros(1, 4)), "logprobs has 1 rows"),
        (_tensors(logprobs=torch.zeros(2, 3)), "trajectory 1 .*3 .*entries"),
        (_tensors(loss_mask=torch.zeros(2, 4)), "trajectory 0 .*no token is marked"),
        (_tensors(logprobs=torch.full((2, 4), float("nan"))), "not finite"),
        (_tensors(versions=torch.full((2, 4), -1)), "no version"),
        (_tensors(rewards=torch.tensor([1.0, float("nan")])), "trajectory 1 .*finite number"),
        (
            _tensors(attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])),
            "row 0: padding must stand on the right",
        ),
        (
            _tensors(input_ids=_with(5.0, 6.5)),
            r"input_ids, row 0, token 1 is 6\.5, .* whole number",
        ),
        (_tensors(input_ids=_with(5, -6)), "input_ids, row 0, token 1 is -6, .* 0 or more"),
        (_tensors(input_ids=_with(5.0, float("inf"))), "input_ids, row 0, token 1 is inf"),
        (
            _tensors(loss_mask=_with(0.0, 0.9)),
            r"loss_mask, row 0, token 1 is 0\.8.*, it must be 0 or 1",
        ),
        (_tensors(loss_mask=_with(0, 255)), "loss_mask, row 0, token 1 is 255"),
        (_tensors(attention_mask=torch.full((2, 4), 2)), "attention_mask, row 0, token 0 is 2"),
        (_tensors(versions=_with(-1.0, 0.5)), r"versions, row 0, token 1 is 0\.5"),
        (_tensors(versions=torch.full((2, 4), float("nan"))), "versions, row 0, token 0 is nan"),
        (_tensors(logprobs=_with(0.0, 0.5)), r"logprobs, row 0, token 1 is 0\.5, .* at most 0"),
        (
            _tensors(logprobs=torch.tensor([[0.0] * 4, [0.0, 0.0, -1.0, 3.0]])),
            r"logprobs, row 1, token 3 is 3\.0",
        ),
        (_tensors(versions=np.full((2, 4), "a")), "versions cannot be read as numbers"),
        ({name: column[:0] for name, column in _tensors().items()}, "no rows"),
    ],
)
def test_each_malformed_return_is_told(result: Any, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        to_trajectories(result)
