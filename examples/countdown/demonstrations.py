"""Imperfect demonstrations of Countdown, for supervised fine-tuning."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from game import Problem, Term, joined, ways

from arealite.rewards.arithmetic import evaluate

FORMS = {
    "plain": r"\g<0>",
    "calculator": r"<calculator>\1</calculator><output>\2</output>",
}
"""How a step such as ``7 - 3 = 4`` is written."""
FEEDBACK = "Your answer is not right. Look at it again, and give another one."
"""What the multi-turn workflow says by default."""


@dataclass(frozen=True, slots=True)
class Demonstrator:
    """How the imperfect solver of the demonstrations behaves."""

    misread: float = 0.6  # chance to work, soundly, towards another target than the one given
    insight: float = 1.0  # chance to look ahead when choosing a step back from the target
    notice: float = 1.0  # chance to see that the last two numbers give what is wanted
    give_up: float = 1.0  # chance to answer all the same, after each line that failed
    max_lines: int = 6
    form: str = "plain"  # one of FORMS
    retries: float = 0.0  # chance of a second answer, after feedback to a first that was wrong


class Undo(NamedTuple):
    """A step back from a wanted value: with one number put aside, what the others must give."""

    step: str
    wanted: int
    frame: str  # where the others' expression goes, like "{} + 7"


def undos(wanted: int, number: int, largest: int) -> list[Undo]:
    """The steps back that put ``number`` aside and stay between 1 and ``largest``."""
    possible = [
        ("-", wanted, number, wanted - number, "{} + " + str(number)),
        ("+", wanted, number, wanted + number, "{} - " + str(number)),
        ("-", number, wanted, number - wanted, str(number) + " - {}"),
        ("*", wanted, number, wanted * number, "{} / " + str(number)),
    ]
    if number > 1 and wanted % number == 0:
        possible.append(("/", wanted, number, wanted // number, "{} * " + str(number)))
    if wanted > 1 and number % wanted == 0:
        possible.append(("/", number, wanted, number // wanted, str(number) + " / {}"))
    return [
        Undo(f"{left} {sign} {right} = {rest}", rest, frame)
        for sign, left, right, rest, frame in possible
        if 1 <= rest <= largest
    ]


def reachable(numbers: Sequence[int], wanted: int, largest: int) -> bool:
    """Whether stepping back from ``wanted`` can come out with these numbers."""
    if len(numbers) == 2:
        first, second = (Term(number, str(number)) for number in numbers)
        return any(way.term.value == wanted for way in ways(first, second, largest))
    return any(
        reachable([*numbers[:index], *numbers[index + 1 :]], undo.wanted, largest)
        for index, number in enumerate(numbers)
        for undo in undos(wanted, number, largest)
    )


def line_of_work(
    problem: Problem, rng: random.Random, solver: Demonstrator, largest: int
) -> tuple[str, str, bool]:
    """One attempt: its line, the expression that it leads to, and whether that is right.

    It steps back from the target until two numbers are left and joins these:
    ``20 - 7 = 13, 9 + 4 = 13`` for 9, 4, 7 and 20. An attempt whose two ends differ has failed.
    """
    wanted, rest = problem.target, list(problem.numbers)
    steps: list[str] = []
    frames: list[str] = []
    while len(rest) > 2:
        ideas = [
            (i, undo) for i, number in enumerate(rest) for undo in undos(wanted, number, largest)
        ]
        if rng.random() < solver.insight:
            good = [
                (i, u) for i, u in ideas if reachable(rest[:i] + rest[i + 1 :], u.wanted, largest)
            ]
            ideas = good or ideas
        index, undo = rng.choice(ideas)
        rest.pop(index)
        wanted = undo.wanted
        steps.append(undo.step)
        frames.append(undo.frame)
    first, second = (Term(number, str(number)) for number in rest)
    possible = ways(first, second, largest)
    hits = [way for way in possible if way.term.value == wanted]
    way = rng.choice(hits if hits and rng.random() < solver.notice else possible)
    expression = way.term.text
    for frame in reversed(frames):
        expression = frame.format(f"({expression})")
    return ", ".join([*steps, way.step]), expression, way.term.value == wanted


def demonstration(problem: Problem, rng: random.Random, solver: Demonstrator, largest: int) -> str:
    """A completion whose every calculation is true and whose answer is often wrong."""
    return _attempt(problem, rng, solver, largest)[0]


def rows(
    chosen: Iterable[Problem], rng: random.Random, solver: Demonstrator, largest: int, prompt: str
) -> Iterator[dict[str, object]]:
    """A row for each problem: prompt and completion. With retries all prompts are conversations,
    some of them with a wrong answer and the feedback to it."""
    begun = "<think>\n" if prompt == "r1" else ""
    for problem in chosen:
        text, answer = _attempt(problem, rng, solver, largest)
        query = problem.query(prompt)
        if not solver.retries:
            yield {"prompt": query, "completion": text.removeprefix(begun)}
            continue
        talk = [{"role": "user", "content": query}]
        if rng.random() < solver.retries and evaluate(answer) != problem.target:
            talk.append({"role": "assistant", "content": text})
            talk.append({"role": "user", "content": FEEDBACK})
            text, _ = _another(problem, answer, rng, solver, largest)
        yield {"prompt": talk, "completion": text}


def _another(
    problem: Problem, answer: str, rng: random.Random, solver: Demonstrator, largest: int
) -> tuple[str, str]:
    """An attempt that does not come out with the same answer, where one is found soon."""
    for _ in range(8):
        found = _attempt(problem, rng, solver, largest)
        if found[1] != answer:
            break
    return found


def _attempt(
    problem: Problem, rng: random.Random, solver: Demonstrator, largest: int
) -> tuple[str, str]:
    """A completion, and the answer in it.

    The solver may misread the target, and may choose its steps without looking ahead. After a
    failed line it says ``no`` and tries another one, or gives up and answers with it all the same.
    """
    if rng.random() < solver.misread:
        other = joined(problem.numbers, rng, largest)
        problem = Problem(problem.numbers, other or problem.target)
    lines: list[str] = []
    while True:
        line, answer, right = line_of_work(problem, rng, solver, largest)
        lines.append(re.sub(r"(\d+ [-+*/] \d+) = (\d+)", FORMS[solver.form], line))
        if right or len(lines) == solver.max_lines or rng.random() < solver.give_up:
            break
        lines[-1] += " no"
    work = "\n".join(lines)
    return f"<think>\n{work}\n</think>\n<answer> {answer} </answer>", answer
