"""The game of Countdown: its problems, each solvable by construction, and how terms are joined."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LONG_PROMPT = (
    "Using the numbers [{numbers}], create an equation that equals {target}. You can use basic "
    "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in "
    "<think> </think> tags. And return the final answer in <answer> </answer> tags, for example "
    "<answer> (1 + 2) / 3 </answer>."
)
R1_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    f"user with the answer.\nUser: {LONG_PROMPT}\nAssistant: <think>\n"
)
"""For a base model, which has no chat template: the answer has begun already."""
SHORT_PROMPT = "Using the numbers [{numbers}], create an equation that equals {target}."
MOST_DRAWS = 3_000
PROMPTS = {"long": LONG_PROMPT, "short": SHORT_PROMPT, "r1": R1_PROMPT}


@dataclass(frozen=True, slots=True)
class Game:
    """What problems look like: how many numbers, how often, and how large."""

    sizes: tuple[int, ...] = (2, 3, 4)
    weights: tuple[float, ...] = (0.1, 0.6, 0.3)
    min_number: int = 1
    max_number: int = 50
    min_target: int = 1
    max_target: int = 100

    @property
    def largest(self) -> int:
        """Largest value on the way: above it, one addition or subtraction cannot come back."""
        return self.max_target + self.max_number


@dataclass(frozen=True, slots=True)
class Problem:
    """Reach ``target`` with ``numbers``, each of them once."""

    numbers: tuple[int, ...]
    target: int

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        """Two problems with equal keys are the same problem."""
        return tuple(sorted(self.numbers)), self.target

    def query(self, prompt: str = "long") -> str:
        """The task in words; ``prompt`` names one of `PROMPTS`."""
        numbers = ", ".join(map(str, self.numbers))
        return PROMPTS[prompt].format(numbers=numbers, target=self.target)

    def row(self, prompt: str = "long") -> dict[str, object]:
        """The problem as a line of a data file."""
        answer = {"target": self.target, "numbers": list(self.numbers)}
        return {"query": self.query(prompt), "answer": answer}


class Term(NamedTuple):
    """A value reached so far and the expression that reached it."""

    value: int
    text: str

    @property
    def operand(self) -> str:
        """The expression as an operand: in brackets unless it is a plain number."""
        return f"({self.text})" if " " in self.text else self.text


class Way(NamedTuple):
    """One way to join two terms: the step over their values and the term that it gives."""

    step: str
    term: Term


def ways(left: Term, right: Term, largest: int) -> list[Way]:
    """All ways to join two terms into a whole number from 1 to ``largest``, larger one first."""
    high, low = (left, right) if left.value >= right.value else (right, left)
    results = {"+": high.value + low.value, "-": high.value - low.value}
    results["*"] = high.value * low.value
    if low.value > 1 and high.value % low.value == 0:
        results["/"] = high.value // low.value
    return [
        Way(
            f"{high.value} {sign} {low.value} = {value}",
            Term(value, f"{high.operand} {sign} {low.operand}"),
        )
        for sign, value in results.items()
        if 1 <= value <= largest
    ]


def joined(numbers: Sequence[int], rng: random.Random, largest: int) -> int | None:
    """What a random solution makes of all the numbers; None where a pair cannot be joined."""
    terms = [Term(number, str(number)) for number in numbers]
    while len(terms) > 1:
        first, second = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        possible = ways(first, second, largest)
        if not possible:
            return None
        terms.append(rng.choice(possible).term)
    return terms[0].value


def draw(game: Game, size: int, rng: random.Random) -> Problem | None:
    """A random problem with the target that a random solution gave; None if out of range."""
    numbers = tuple(rng.randint(game.min_number, game.max_number) for _ in range(size))
    target = joined(numbers, rng, game.largest)
    if target is None:
        return None
    return Problem(numbers, target) if game.min_target <= target <= game.max_target else None


def problems(game: Game, count: int, rng: random.Random) -> list[Problem]:
    """``count`` different problems; ValueError if the ranges do not seem to hold that many.

    Sizes keep their weights until one runs out of new problems; the others then fill its share.
    """
    found: dict[object, Problem] = {}
    shares = dict(zip(game.sizes, game.weights, strict=True))
    while len(found) < count:
        if not shares:
            raise ValueError(
                f"the ranges seem too narrow for {count} different problems: "
                f"no new one was found after {len(found)}"
            )
        (size,) = rng.choices(list(shares), list(shares.values()))
        problem = _new_problem(game, size, rng, found)
        if problem is None:
            del shares[size]
        else:
            found[problem.key] = problem
    order = list(found.values())
    # A size that ran out would else be common among the first problems and absent from the last.
    rng.shuffle(order)
    return order


def _new_problem(
    game: Game, size: int, rng: random.Random, found: Mapping[object, Problem]
) -> Problem | None:
    """A problem of ``size`` numbers that is not in ``found``; None after too many draws."""
    for _ in range(MOST_DRAWS):
        problem = draw(game, size, rng)
        if problem is not None and problem.key not in found:
            return problem
    return None
