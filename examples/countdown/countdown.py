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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

LONG_PROMPT = (
    "Using the numbers [{numbers}], create an equation that equals {target}. You can use basic "
    "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in "
    "<think> </think> tags. And return the final answer in <answer> </answer> tags, for example "
    "<answer> (1 + 2) / 3 </answer>."
)
SHORT_PROMPT = "Using the numbers [{numbers}], create an equation that equals {target}."
MOST_DRAWS = 3_000
MOST_IDEAS = 40
PROMPTS = {"long": LONG_PROMPT, "short": SHORT_PROMPT}


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

    give_up: float = 0.6  # chance to answer all the same, after each line without the target
    max_lines: int = 8


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


def reduced(
    numbers: Sequence[int], left_over: int, rng: random.Random, largest: int
) -> tuple[list[str], list[Term]] | None:
    """Join random pairs until ``left_over`` terms are left: the steps and those terms.

    None where a pair cannot be joined in range.
    """
    terms = [Term(number, str(number)) for number in numbers]
    steps: list[str] = []
    while len(terms) > left_over:
        first, second = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        possible = ways(first, second, largest)
        if not possible:
            return None
        way = rng.choice(possible)
        steps.append(way.step)
        terms.append(way.term)
    return steps, terms


def draw(game: Game, size: int, rng: random.Random) -> Problem | None:
    """A random problem with the target that a random solution gave; None if out of range."""
    numbers = tuple(rng.randint(game.min_number, game.max_number) for _ in range(size))
    solution = reduced(numbers, 1, rng, game.largest)
    if solution is None:
        return None
    target = solution[1][0].value
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


def lines_of_work(
    numbers: Sequence[int], target: int, rng: random.Random, largest: int
) -> Iterator[tuple[str, list[Way]]]:
    """Random lines of work, no beginning twice, each with the ways that it lists.

    A line joins numbers until two values are left, names the other one, and lists what the two can
    give (sum, difference, product, quotient; see `ways`) up to the target, with a verdict:
    ``7 * 2 = 14, 3: 17 11 42 no``. The last way of a line with ``yes`` is a solution.
    """
    seen: set[str] = set()
    for _ in range(MOST_IDEAS):
        tried = reduced(numbers, 2, rng, largest)
        if tried is None:
            continue
        steps, (other, last) = tried
        # Naming the value that is still unused spares the reader a set difference.
        head = ", ".join([*(steps or [str(last.value)]), str(other.value)])
        listed = ways(other, last, largest)
        if head in seen or not listed:
            continue
        seen.add(head)
        values = [way.term.value for way in listed]
        if target in values:
            listed = listed[: values.index(target) + 1]
        verdict = "yes" if target in values else "no"
        yield " ".join([f"{head}:", *(str(way.term.value) for way in listed), verdict]), listed


def demonstration(problem: Problem, rng: random.Random, solver: Demonstrator, largest: int) -> str:
    """A completion that searches at random and gives up early.

    After a line that reached the target the answer follows; after any other line the solver goes
    on with another one, or gives up and answers with one of the line's values all the same.
    """
    lines: list[str] = []
    answer = ""
    for line, listed in lines_of_work(problem.numbers, problem.target, rng, largest):
        lines.append(line)
        reached = listed[-1].term.value == problem.target
        answer = (listed[-1] if reached else rng.choice(listed)).term.text
        if reached or len(lines) == solver.max_lines or rng.random() < solver.give_up:
            break
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
        solver = Demonstrator(options.give_up, options.max_lines)
        chosen = [train[index % len(train)] for index in range(options.demos)]
        files["demos.jsonl"] = [
            {
                "prompt": problem.query(options.prompt),
                "completion": demonstration(problem, rng, solver, game.largest),
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
