"""What a workflow may return -> trajectories, or one sentence about what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arealite.errors import WorkflowError
from arealite.types import Trajectory

_REQUIRED = ("input_ids", "loss_mask", "logprobs", "versions", "rewards")


def to_trajectories(result: Any) -> Sequence[Trajectory]:
    """None -> none. A sequence of Trajectory as it is. AReaL's dict of [n, T] tensors converted."""
    if result is None:
        return ()
    if isinstance(result, Trajectory):
        return (result,)
    if isinstance(result, Mapping):
        return _from_tensors(result)
    if isinstance(result, Sequence) and not isinstance(result, str):
        if not result:
            raise WorkflowError("arun_episode returned an empty list; return None to reject a row")
        for index, item in enumerate(result):
            if not isinstance(item, Trajectory):
                raise WorkflowError(
                    f"arun_episode returned a list whose item {index} is a "
                    f"{type(item).__name__}, not a Trajectory"
                )
        return tuple(result)
    raise WorkflowError(
        f"arun_episode returned a {type(result).__name__}; it must return a list of Trajectory, "
        "a dict of tensors, or None"
    )


def _from_tensors(result: Mapping[str, Any]) -> Sequence[Trajectory]:
    missing = [name for name in _REQUIRED if name not in result]
    if missing:
        raise WorkflowError(f"arun_episode returned a dict without {', '.join(missing)}")
    columns = {
        name: _column(name, result[name])
        for name in (*_REQUIRED, "attention_mask")
        if name in result
    }
    n = len(columns["input_ids"])
    if n == 0:
        raise WorkflowError("arun_episode returned a dict of no rows; return None to reject a row")
    for name, rows in columns.items():
        if len(rows) != n:
            raise WorkflowError(f"{name} has {len(rows)} rows, input_ids has {n}")
    trajectories = []
    for row in range(n):
        length = len(columns["input_ids"][row])
        if "attention_mask" in columns:  # padding is told apart by the mask, never by an id
            mask = [int(m) for m in columns["attention_mask"][row]]
            length = sum(mask)
            if mask != [1] * length + [0] * (len(mask) - length):
                raise WorkflowError(f"attention_mask, row {row}: padding must stand on the right")
        try:
            trajectories.append(
                Trajectory(
                    tokens=columns["input_ids"][row][:length],
                    loss_mask=[int(m) for m in columns["loss_mask"][row][:length]],
                    logprobs=columns["logprobs"][row][:length],
                    versions=columns["versions"][row][:length],
                    reward=columns["rewards"][row],
                )
            )
        except ValueError as error:
            raise WorkflowError(f"trajectory {row} of the returned dict: {error}") from None
    return trajectories


def _column(name: str, value: Any) -> list[Any]:
    """A tensor's rows as lists; `rewards` [n] or [n, 1] as numbers."""
    dimensions = getattr(value, "ndim", None)
    if not hasattr(value, "tolist") or dimensions is None:
        raise WorkflowError(f"{name} is a {type(value).__name__}, it must be a tensor")
    if name == "rewards":
        if dimensions == 2 and value.shape[1] == 1:
            value, dimensions = value[:, 0], 1
        if dimensions != 1:
            raise WorkflowError(f"rewards has {dimensions} dimensions, it must be [n]")
    elif dimensions != 2:
        raise WorkflowError(f"{name} has {dimensions} dimensions, it must be [n, T]")
    return list(value.tolist())
