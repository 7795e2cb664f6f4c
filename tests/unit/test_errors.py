"""What is said of an error: always a sentence and a place, whatever the error itself does."""

from __future__ import annotations

import traceback

import pytest

from arealite.errors import EXIT_BUG, boundary, place, words


class Dumb(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


def test_an_error_is_said_with_its_type() -> None:
    assert words(KeyError("answer")) == "KeyError: 'answer'"
    assert words(Dumb()) == "Dumb: (its __str__ raises ValueError)"


def test_a_place_is_where_the_innermost_frame_is() -> None:
    try:
        int("seven")
    except ValueError as error:
        frames = traceback.extract_tb(error.__traceback__)
    assert place(frames) == f"({__file__}, line {frames[0].lineno})"


def test_a_bug_that_cannot_speak_has_its_exit_code_all_the_same() -> None:
    told: list[str] = []
    with pytest.raises(SystemExit) as ended, boundary(told.append):
        raise Dumb
    assert ended.value.code == EXIT_BUG
    assert told[0] == "arealite: this is a bug in arealite: Dumb: (its __str__ raises ValueError)"
    assert "raise Dumb" in told[1]
