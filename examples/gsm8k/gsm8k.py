"""Makes small word problems in GSM8K's own format, and imperfect demonstrations of solving them.

    python examples/gsm8k/gsm8k.py --out data/gsm8k/tiny --train 4000 --test 400 --demos 40000

writes ``train.jsonl`` and ``test.jsonl``, rows ``{"question": str, "answer": str}`` as GSM8K has
them (worked steps with ``<<5*6=30>>`` and ``#### 23`` at the end); with ``--demos N`` also
``demos.jsonl``, rows ``{"prompt": str, "completion": str}`` for supervised fine-tuning, and
``phrases.json``, what the tiny model's tokenizer takes as one token each. Invariants: every answer
is a positive whole number, no question is in both sets, and the same options and seed give the
same bytes.
"""

import argparse
import json
import random
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arealite.telemetry.run_folder import to_line, write_atomically

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo")
ITEMS = ("apples", "books", "coins", "cards", "eggs", "pens", "shells", "stamps")
NUMBERS = range(2, 10)
LARGEST = 99
MOST_DRAWS = 3_000
SIGNS = "+-*/"
SLOPPY = ("glued", "unclosed", "hash", "wordy")


@dataclass(frozen=True)
class Step:
    """One line of work: {} is the calculation of ``left sign right``, each a slot or "last"."""

    text: str
    left: str
    sign: str
    right: str


@dataclass(frozen=True)
class Template:
    """A question with slots, and the steps that solve it."""

    question: str
    steps: tuple[Step, ...]


TEMPLATES = (
    Template(
        "{name} has {a} boxes with {b} {item} each. Then {c} {item} get lost. "
        "How many {item} are left?",
        (
            Step("The boxes hold {} {item}.", "a", "*", "b"),
            Step("After the loss {} {item} are left.", "last", "-", "c"),
        ),
    ),
    Template(
        "{name} buys {a} bags with {b} {item} each and finds {c} more {item}. "
        "How many {item} does {name} have now?",
        (
            Step("The bags hold {} {item}.", "a", "*", "b"),
            Step("With those found {name} has {} {item}.", "last", "+", "c"),
        ),
    ),
    Template(
        "{name} collects {a} {item} in the morning and {b} {item} in the evening, and shares them "
        "equally among {c} friends. How many {item} does each friend get?",
        (
            Step("{name} collects {} {item}.", "a", "+", "b"),
            Step("Each friend gets {} {item}.", "last", "/", "c"),
        ),
    ),
    Template(
        "{name} had {a} {item} and sold {b} of them. The others are worth {c} dollars each. "
        "How many dollars are they worth together?",
        (
            Step("There are {} {item} left.", "a", "-", "b"),
            Step("They are worth {} dollars.", "last", "*", "c"),
        ),
    ),
    Template(
        "{name} has {a} {item}. A sister has {b} {item} more than {name}. "
        "How many {item} do they have together?",
        (
            Step("The sister has {} {item}.", "a", "+", "b"),
            Step("Together they have {} {item}.", "last", "+", "a"),
        ),
    ),
    Template(
        "{a} friends bring {name} {b} {item} each. {name} puts all of them in {c} equal rows. "
        "How many {item} are in each row?",
        (
            Step("The friends bring {} {item}.", "a", "*", "b"),
            Step("Each row has {} {item}.", "last", "/", "c"),
        ),
    ),
)


@dataclass(frozen=True)
class Problem:
    """A template with its slots filled; numbers: of a, b and c."""

    template: Template
    name: str
    item: str
    numbers: tuple[int, int, int]

    @property
    def question(self) -> str:
        return self._filled(self.template.question)

    def worked(self, numbers: tuple[int, int, int], signs: Sequence[str]) -> tuple[str, int] | None:
        """The steps, and what comes out, for whoever reads these numbers and signs in it; None
        where something else than a whole number from 1 to LARGEST comes out on the way."""
        slots = dict(zip("abc", numbers, strict=True))
        lines = []
        for step, sign in zip(self.template.steps, signs, strict=True):
            left, right = slots[step.left], slots[step.right]
            result = {"+": left + right, "-": left - right, "*": left * right}.get(sign)
            if result is None:
                result = left // right if left % right == 0 else 0
            if not 1 <= result <= LARGEST:
                return None
            sum_ = f"{left}{sign}{right}"
            lines.append(
                self._filled(step.text.replace("{}", f"{sum_}=<<{sum_}={result}>>{result}"))
            )
            slots["last"] = result
        return "\n".join(lines), slots["last"]

    def solved(self) -> tuple[str, int] | None:
        return self.worked(self.numbers, [step.sign for step in self.template.steps])

    def misread(self, rng: random.Random) -> tuple[str, int]:
        """Sound work on another problem: one number or the last sign is taken for another."""
        for _ in range(MOST_DRAWS):
            numbers = list(self.numbers)
            signs = [step.sign for step in self.template.steps]
            if rng.random() < 0.3:
                signs[-1] = rng.choice(SIGNS)
            else:
                numbers[rng.randrange(3)] = rng.choice(NUMBERS)
            found = self.worked((numbers[0], numbers[1], numbers[2]), signs)
            if found is not None:
                return found
        raise AssertionError("reading it rightly is among the ways")

    def _filled(self, text: str) -> str:
        slots = dict(zip("abc", self.numbers, strict=True))
        return text.format(name=self.name, item=self.item, **slots)


def draw(rng: random.Random) -> Problem:
    """A random problem with a whole positive answer."""
    while True:
        numbers = (rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice(NUMBERS))
        problem = Problem(rng.choice(TEMPLATES), rng.choice(NAMES), rng.choice(ITEMS), numbers)
        if problem.solved() is not None:
            return problem


def problems(count: int, rng: random.Random) -> list[Problem]:
    """``count`` problems with different questions; ValueError where there are not so many."""
    found: dict[str, Problem] = {}
    misses = 0
    while len(found) < count:
        problem = draw(rng)
        misses = misses + 1 if problem.question in found else 0
        found.setdefault(problem.question, problem)
        if misses == MOST_DRAWS:
            raise ValueError(f"there seem to be no more than {len(found)} different questions")
    return list(found.values())


def in_hash_form(work: str, answer: int) -> str:
    """As GSM8K's own answers end."""
    return f"{work}\n#### {answer}"


def in_xml_form(work: str, answer: int) -> str:
    """The two tags on lines of their own, as arealite.rewards.formats:strict_format wants them."""
    return f"<reasoning>\n{work}\n</reasoning>\n<answer>\n{answer}\n</answer>\n"


def in_sloppy_form(work: str, answer: int, how: str) -> str:
    """One of SLOPPY: some of the five components of grpo_format.yaml are missed."""
    return {
        "glued": f"<reasoning>{work}</reasoning><answer>{answer}</answer>",
        "unclosed": f"<reasoning>\n{work}\n<answer>\n{answer}\n</answer>\n",
        "hash": in_hash_form(work, answer),
        "wordy": f"<reasoning>\n{work}\n</reasoning>\n<answer>\nIt is {answer}\n</answer>\n",
    }[how]


def demonstration(problem: Problem, rng: random.Random, options: argparse.Namespace) -> str:
    """A completion that calculates soundly, often misreads, and often misses the form."""
    solved = problem.solved()
    assert solved is not None
    work, answer = problem.misread(rng) if rng.random() < options.misread else solved
    if options.form == "hash":
        return in_hash_form(work, answer)
    if rng.random() < options.sloppy:
        return in_sloppy_form(work, answer, rng.choice(SLOPPY))
    return in_xml_form(work, answer)


def phrases() -> list[str]:
    """Every fixed piece of text of the problems, longest first."""
    texts = [t.question for t in TEMPLATES] + [s.text for t in TEMPLATES for s in t.steps]
    pieces = {literal for text in texts for literal, *_ in string.Formatter().parse(text)}
    pieces |= {*NAMES, *ITEMS, "\n", "\n#### ", "=<<", ">>"}
    pieces |= {"<reasoning>", "</reasoning>", "<answer>", "</answer>", "\nIt is "}
    return sorted((p for p in pieces if len(p) > 1 or p == "\n"), key=lambda p: (-len(p), p))


def generate(options: argparse.Namespace) -> dict[str, list[dict[str, str]]]:
    """Rows of every file asked for, by file name."""
    rng = random.Random(options.seed)
    found = problems(options.test + options.train, rng)
    test, train = found[: options.test], found[options.test :]
    files = {"train.jsonl": list(map(_row, train)), "test.jsonl": list(map(_row, test))}
    if options.demos:
        files["demos.jsonl"] = [
            {"prompt": problem.question, "completion": demonstration(problem, rng, options)}
            for problem in (train[index % len(train)] for index in range(options.demos))
        ]
    return files


def _row(problem: Problem) -> dict[str, str]:
    solved = problem.solved()
    assert solved is not None
    return {"question": problem.question, "answer": in_hash_form(*solved)}


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; every mistake is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/gsm8k/tiny"), help="folder of the files")
    add("--train", type=int, default=4000, help="training problems")
    add("--test", type=int, default=400, help="held-out problems")
    add("--demos", type=int, default=0, help="demonstrations, over the training problems")
    add("--misread", type=float, default=0.6, help="demos: chance of a number or sign misread")
    add("--form", choices=("hash", "xml"), default="hash", help="demos: #### or the two tags")
    add("--sloppy", type=float, default=0.6, help="demos: chance that the tags are not right")
    add("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    if min(options.train, options.test) < 1 or options.demos < 0:
        parser.error("--train and --test must be at least 1, --demos must not be negative")
    if not (0 <= options.misread <= 1 and 0 <= options.sloppy <= 1):
        parser.error("--misread and --sloppy must be between 0 and 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; 0, or 2 after one sentence about a mistake."""
    options = parse_options(arguments)
    try:
        files = generate(options)
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out / "phrases.json", json.dumps(phrases(), indent=0) + "\n")
        for name, rows in files.items():
            write_atomically(options.out / name, b"".join(map(to_line, rows)))
            print(f"{len(rows)} rows in {options.out / name}")
    except (ValueError, OSError) as error:
        print(f"gsm8k.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
