"""Exact arithmetic over hostile text: hand-computed values, refusals, and bounded cost."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arealite.rewards.arithmetic import MAX_CHARACTERS, ExpressionError, evaluate, parse
from arealite.rewards.extract import last_answer


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("7", Fraction(7), (7,)),
        ("(7 - (5 - 3)) * 8", Fraction(40), (7, 5, 3, 8)),
        ("8 / 3 * 3", Fraction(8), (8, 3, 3)),
        ("1/3 + 1/6", Fraction(1, 2), (1, 3, 1, 6)),
        ("3 - 5", Fraction(-2), (3, 5)),
        ("8 / (3 - 8 / 3)", Fraction(24), (8, 3, 8, 3)),
        (" \t( 2+3 )\n* 4 ", Fraction(20), (2, 3, 4)),
        ("2 - 3 - 4", Fraction(-5), (2, 3, 4)),
        ("16 / 4 / 2", Fraction(2), (16, 4, 2)),
        ("2 + 3 * 4", Fraction(14), (2, 3, 4)),
    ],
)
def test_values_and_numbers(text: str, value: Fraction, numbers: tuple[int, ...]) -> None:
    expression = parse(text)
    assert (expression.value, expression.numbers) == (value, numbers)
    assert evaluate(text) == value


HOSTILE = [
    "",
    "   ",
    "-3 + 8",
    "+3",
    "- - - 3",
    "9**9**9**9",
    "9 ** 9",
    "7//2+9",
    "7 % 2",
    "3.5*2",
    "1e5",
    "1_0",
    "0x10",
    "007",
    "7 3",
    "2(3)",
    "(1, 2)",
    "1 +",
    ")1(",
    "()",
    "(" * 200 + "1" + ")" * 200,
    "(" * 100 + "1" + ")" * 100,
    "-" * 200 + "1",
    "9" * 100_000,
    "1+" * 100_000 + "1",
    "1 / 0",
    "1 / (2 - 2)",
    "7 * 3 = 21",
    "True",
    "None",
    "x",
    "abs(3)",
    "().__class__.__bases__",
    "__import__('os').system('true')",
    "f'{1}'",
    "lambda: 1",
    "(x := 1)",
    "[1 for _ in (1,)]",
    "'a' + 'b'",
    '"""',
    "1 if 1 else 2",
    "1 < 2",
    "1 # + 2",
    "1;2",
    "1\\\n+2",
    "\x00",
    "\ufeff1",
    "1\u202e+2",
    "1\u200b+2",
    "\ud800",
    "\u0663 + 1",
    "\uff13 + 1",
    "3\u00b2",
    "3 \u00d7 2",
    "<|im_end|>",
    "\x1b[31m1",
    "=1+1",
    "<b>1</b>",
    "\\frac{1}{2}",
    "3!!!!",
    "9^9",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:24]))
def test_hostile_text_is_refused_cheaply_with_a_short_reason(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ExpressionError) as refusal:
        parse(text)
    assert time.perf_counter() - started < 0.05
    assert 0 < len(str(refusal.value)) <= 80


def test_a_refusal_is_a_value_error_and_other_types_are_refused_too() -> None:
    assert issubclass(ExpressionError, ValueError)
    with pytest.raises(ExpressionError):
        parse(b"1 + 2")  # type: ignore[arg-type]


def test_the_longest_legal_texts_are_cheap() -> None:
    texts = ["*".join(["9"] * (MAX_CHARACTERS // 2)), "(" * 32 + "1" + ")" * 32]
    started = time.perf_counter()
    assert evaluate(texts[0]) == 9 ** (MAX_CHARACTERS // 2)
    assert evaluate(texts[1]) == 1
    assert time.perf_counter() - started < 0.05


@given(st.text(max_size=300) | st.text("0123456789+-*/() ._eE", max_size=300))
@settings(max_examples=400, deadline=None)
def test_any_text_gives_a_value_or_a_refusal(text: str) -> None:
    try:
        expression = parse(text)
    except ExpressionError:
        return
    assert isinstance(expression.value, Fraction)
    assert expression.numbers


_leaf = st.integers(0, 99).map(lambda number: (str(number), Fraction(number), (number,)))
_Node = tuple[str, Fraction, tuple[int, ...]]


def _join(parts: tuple[_Node, str, _Node]) -> _Node:
    """The node of two nodes in brackets; its value computed here, not by the code under test."""
    (left, x, before), sign, (right, y, after) = parts
    if sign == "/" and y == 0:
        sign = "+"
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[sign]
    return f"({left} {sign} {right})", value, before + after


@given(
    st.recursive(
        _leaf,
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(_join),
        max_leaves=9,
    )
)
def test_generated_trees_have_their_exact_value(node: _Node) -> None:
    text, value, numbers = node
    expression = parse(text)
    assert (expression.value, expression.numbers) == (value, numbers)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think>\n<answer> 1 + 2 </answer>", " 1 + 2 "),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer></answer>", ""),
        ("<answer>1", None),
        ("1</answer>", None),
        ("</answer><answer>", None),
        ("</answer> <answer>1</answer>", "1"),
        ("<answer><answer>1</answer></answer>", "1"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<ANSWER>1</ANSWER>", None),
        ("", None),
    ],
)
def test_last_answer(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "<answer>1</answer>", "<answer"])
def test_a_megabyte_of_tags_is_cheap(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    last_answer(text)
    assert time.perf_counter() - started < 0.05
