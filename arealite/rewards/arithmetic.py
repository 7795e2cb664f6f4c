"""Exact arithmetic over untrusted text: parsed, never evaluated.

Role: turn the text of an answer such as ``(7 - 3) * 6`` into an exact value and the numbers that it
used. Invariants:

- Only ``+ - * /``, round brackets, blanks and non-negative integers in ASCII digits are accepted.
  Unary minus and plus are refused: in a numbers game every minus sign joins two given numbers, and
  ``-3 + 8`` would smuggle in a zero.
- `parse` raises `ExpressionError`, with a short reason, and nothing else. Alphabet, length, bracket
  depth and digits are checked before Python's parser sees the text, so hostile input is cheap.
- Values are `fractions.Fraction`: no rounding, so 8 / 3 * 3 is 8.
"""

import ast
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 256
MAX_DEPTH = 32
MAX_DIGITS = 9

_ALPHABET = frozenset("0123456789+-*/() \t\r\n")


class ExpressionError(ValueError):
    """The text is not an arithmetic expression of the game; the message says why in a few words."""


@dataclass(frozen=True, slots=True)
class Expression:
    """The exact value of an expression and its integer literals, in the order written."""

    value: Fraction
    numbers: tuple[int, ...]


def parse(expression: str) -> Expression:
    """Value and numbers of ``expression``; `ExpressionError` if it is anything but arithmetic."""
    text = _checked_text(expression)
    numbers: list[int] = []
    try:
        tree = ast.parse(text, mode="eval")
        value = _value(tree.body, numbers)
    except SyntaxError:
        raise ExpressionError("not a well-formed expression") from None
    except (RecursionError, MemoryError):
        # The caps keep far away from this; a caller already deep in its own stack may not.
        raise ExpressionError("too deeply nested") from None
    return Expression(value, tuple(numbers))


def evaluate(expression: str) -> Fraction:
    """Exact value of ``expression``; `ExpressionError` if it is anything but arithmetic."""
    return parse(expression).value


def _checked_text(expression: str) -> str:
    """``expression`` stripped, once its alphabet, length, depth and digits are within the caps."""
    if not isinstance(expression, str):
        raise ExpressionError("not a text")
    if len(expression) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    if not _ALPHABET.issuperset(expression):
        raise ExpressionError("characters other than digits, + - * / and brackets")
    depth = digits = 0
    for character in expression:
        # Brackets open and close; a run of digits grows or ends. One pass sees both.
        depth += (character == "(") - (character == ")")
        digits = digits + 1 if character.isdigit() else 0
        if depth > MAX_DEPTH:
            raise ExpressionError(f"more than {MAX_DEPTH} nested brackets")
        if digits > MAX_DIGITS:
            raise ExpressionError(f"a number of more than {MAX_DIGITS} digits")
    # Blanks of any kind only separate; as line ends they would end Python's expression.
    text = " ".join(expression.split())
    if not text:
        raise ExpressionError("empty")
    return text


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """Value of ``node``; appends its literals to ``numbers`` from left to right."""
    # type(), not isinstance: True is an int, and no other constant belongs to the game.
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ExpressionError("only + - * / between numbers are allowed")
    left, right = _value(node.left, numbers), _value(node.right, numbers)
    return _applied(node.op, left, right)


def _applied(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    """``left operator right`` for the four operations of the game."""
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            if right == 0:
                raise ExpressionError("division by zero")
            return left / right
        case _:
            raise ExpressionError("an operator other than + - * /")
