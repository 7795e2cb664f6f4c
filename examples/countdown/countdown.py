"""Makes the Countdown data: problems for training and test, and imperfect demonstrations.

    python examples/countdown/countdown.py --out data/countdown/qwen --train 8000 --test 400

writes ``train_e.jsonl`` and ``test_e.jsonl``, rows ``{"query": str, "answer": {"target": int,
"numbers": [int, ...]}}``; with ``--demos N`` also ``demos.jsonl``, rows ``{"prompt": str,
"completion": str}`` for supervised fine-tuning. Invariants: every problem is solvable by
construction (its target is what a random solution gave), no two problems share numbers and target
whatever the order, the two sets are disjoint, and the same options and seed give the same bytes.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
class Demonstrator:
    """How the imperfect solver of the demonstrations behaves."""

    misread: float = 0.6  # chance to work, soundly, towards another target than the one given
    insight: float = 1.0  # chance to look ahead when choosing a step back from the target
    notice: float = 1.0  # chance to see that the last two numbers give what is wanted
    give_up: float = 1.0  # chance to answer all the same, after each line that failed
    max_lines: int = 6


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
    """A completion whose every calculation is true and whose answer is often wrong.

    The solver may misread the target, and may choose its steps without looking ahead. After a
    failed line it says ``no`` and tries another one, or gives up and answers with it all the same.
    """
    if rng.random() < solver.misread:
        other = joined(problem.numbers, rng, largest)
        problem = Problem(problem.numbers, other or problem.target)
    lines: list[str] = []
    while True:
        line, answer, right = line_of_work(problem, rng, solver, largest)
        lines.append(line)
        if right or len(lines) == solver.max_lines or rng.random() < solver.give_up:
            break
        lines[-1] += " no"
    work = "\n".join(lines)
    return f"<think>\n{work}\n</think>\n<answer> {answer} </answer>"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write ``rows`` so that ``path`` holds either all of them or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # mkstemp makes private files; data is for everyone whom the folder admits.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def generate(options: argparse.Namespace, game: Game) -> dict[str, list[dict[str, object]]]:
    """Rows of every file asked for, by file name."""
    rng = random.Random(options.seed)
    found = problems(game, options.test + options.train, rng)
    test, train = found[: options.test], found[options.test :]
    files = {
        "train_e.jsonl": [problem.row(options.prompt) for problem in train],
        "test_e.jsonl": [problem.row(options.prompt) for problem in test],
    }
    if options.demos:
        solver = Demonstrator(
            misread=options.misread,
            insight=options.insight,
            notice=options.notice,
            give_up=options.give_up,
            max_lines=options.max_lines,
        )
        chosen = [train[index % len(train)] for index in range(options.demos)]
        files["demos.jsonl"] = [
            {
                "prompt": problem.query(options.prompt),
                "completion": demonstration(problem, rng, solver, game.largest).removeprefix(
                    "<think>\n" if options.prompt == "r1" else ""
                ),
            }
            for problem in chosen
        ]
    return files


def parse_options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Game]:
    """The command line; every mistake is one sentence and exit code 2."""
    game, solver = Game(), Demonstrator()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/countdown/qwen"), help="folder of the files")
    add("--train", type=int, default=8000, help="training problems")
    add("--test", type=int, default=400, help="held-out problems")
    add("--demos", type=int, default=0, help="demonstrations, over the training problems")
    add("--sizes", default=",".join(map(str, game.sizes)), help="how many numbers, e.g. 2,3,4")
    add("--weights", default=",".join(map(str, game.weights)), help="how often each size")
    for name in ("min_number", "max_number", "min_target", "max_target"):
        add("--" + name.replace("_", "-"), type=int, default=getattr(game, name))
    add("--misread", type=float, default=solver.misread, help="demos: chance of a wrong target")
    add("--insight", type=float, default=solver.insight, help="demos: chance to look ahead")
    add("--notice", type=float, default=solver.notice, help="demos: chance to see what fits")
    add("--give-up", type=float, default=solver.give_up, help="demos: chance after each miss")
    add("--max-lines", type=int, default=solver.max_lines, help="demos: lines of work at most")
    add("--prompt", choices=sorted(PROMPTS), default="long", help="wording of the task")
    add("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    try:
        sizes = tuple(int(size) for size in options.sizes.split(","))
        weights = tuple(float(weight) for weight in options.weights.split(","))
    except ValueError:
        parser.error("--sizes and --weights must be numbers separated by commas")
    ranges = (options.min_number, options.max_number, options.min_target, options.max_target)
    game = Game(sizes, weights, *ranges)
    if complaint := _complaint(options, game):
        parser.error(complaint)
    return options, game


def _complaint(options: argparse.Namespace, game: Game) -> str | None:
    """What is wrong with the options, as one sentence; None if nothing is."""
    checks = {
        "--sizes must be between 2 and 6": all(2 <= size <= 6 for size in game.sizes),
        "--weights must give one weight above 0 per size": len(game.weights) == len(game.sizes)
        and all(weight > 0 for weight in game.weights),
        "--min-number must be at least 1": game.min_number >= 1,
        "--max-number must not be below --min-number": game.max_number >= game.min_number,
        "--min-target must be at least 1": game.min_target >= 1,
        "--max-target must not be below --min-target": game.max_target >= game.min_target,
        "--train and --test must be at least 1": min(options.train, options.test) >= 1,
        "--demos must not be negative": options.demos >= 0,
        "--misread must be between 0 and 1": 0 <= options.misread <= 1,
        "--insight must be between 0 and 1": 0 <= options.insight <= 1,
        "--notice must be between 0 and 1": 0 <= options.notice <= 1,
        "--give-up must be between 0 and 1": 0 <= options.give_up <= 1,
        "--max-lines must be at least 1": options.max_lines >= 1,
    }
    return next((sentence for sentence, holds in checks.items() if not holds), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; 0, or 2 after one sentence about a mistake."""
    options, game = parse_options(arguments)
    try:
        files = generate(options, game)
        for name, rows in files.items():
            write_jsonl(options.out / name, rows)
            print(f"{len(rows)} rows in {options.out / name}")
    except (ValueError, OSError) as error:
        print(f"countdown.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
