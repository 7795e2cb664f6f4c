"""What a workflow may return -> trajectories, or one sentence about what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arealite.errors import WorkflowError
from arealite.types import ROUNDING, Trajectory

_REQUIRED = ("input_ids", "loss_mask", "logprobs", "versions", "rewards")

_BREAKS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "input_ids": (lambda x: ((x * 1) % 1 != 0) | (x < 0), "a whole number, 0 or more"),
    "attention_mask": (lambda x: (x != 0) & (x != 1), "0 or 1"),
    "loss_mask": (lambda x: (x != 0) & (x != 1), "0 or 1"),
    "versions": (lambda x: (x * 1) % 1 != 0, "a whole number"),
    "logprobs": (lambda x: x > ROUNDING, "a log-probability, at most 0"),
}
"""(whether an entry breaks its field's rule, the rule); for a tensor at once, or for one number."""


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
    lengths = [len(ids) for ids in columns["input_ids"]]
    if "attention_mask" in columns:  # padding is told apart by the mask, never by an id
        lengths = [_length(row, mask) for row, mask in enumerate(columns["attention_mask"])]
    for name in (name for name in _BREAKS if name in columns):
        _check(name, result[name], columns[name], lengths)
    return [_row(columns, row, length) for row, length in enumerate(lengths)]


def _length(row: int, mask: Sequence[Any]) -> int:
    """How many tokens come before the padding."""
    length = sum(map(bool, mask))
    if list(map(bool, mask)) != [True] * length + [False] * (len(mask) - length):
        raise WorkflowError(f"attention_mask, row {row}: padding must stand on the right")
    return length


def _check(name: str, tensor: Any, rows: Sequence[Any], lengths: Sequence[int]) -> None:
    """Whether all entries before the padding keep the field's rule; the first that does not is
    looked for only where the tensor as a whole, which costs little, holds one."""
    breaks, rule = _BREAKS[name]
    try:
        if not bool(breaks(tensor).any()):
            return
        for row, length in enumerate(lengths):
            for place, entry in enumerate(rows[row][:length]):
                if breaks(entry):
                    where = f"{name}, row {row}, token {place}"
                    raise WorkflowError(f"{where} is {entry!r}, it must be {rule}")
    except (TypeError, RuntimeError) as error:
        raise WorkflowError(f"{name} cannot be read as numbers: {error}") from None


def _row(columns: Mapping[str, list[Any]], row: int, length: int) -> Trajectory:
    def whole(name: str) -> list[int]:
        return [int(entry) for entry in columns[name][row][:length]]

    try:
        return Trajectory(
            tokens=whole("input_ids"),
            loss_mask=whole("loss_mask"),
            logprobs=columns["logprobs"][row][:length],
            versions=whole("versions"),
            reward=columns["rewards"][row],
        )
    except ValueError as error:
        raise WorkflowError(f"trajectory {row} of the returned dict: {error}") from None


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
    try:
        return list(value.tolist())
    except Exception as error:  # a tensor that has no entries at hand: sparse, or without memory
        raise WorkflowError(f"{name} cannot be read: {error}") from None
