"""Makes the subtraction data: two numbers, and the second minus the first.

    python examples/subtraction/subtraction.py --out data/subtraction

writes ``train.jsonl`` and ``test.jsonl`` (a fifth), rows ``{"prompt": [system and user message],
"input": "5 105", "difference": 100}``; with ``--demos N`` also ``demos.jsonl``, rows ``{"prompt":
[...], "completion": str}`` for supervised fine-tuning, and ``phrases.json``, what the tiny model's
tokenizer takes as one token each. The same options and seed give the same bytes, and no pair of
numbers is in both sets.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arealite.telemetry.run_folder import to_line, write_atomically

SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user gives two numbers, and the Assistant "
    "returns the second minus the first number only. The assistant first thinks about the "
    "reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>"
)
TEST_SHARE = 0.2
PHRASES = (
    *(SYSTEM_PROMPT, "<think>", "</think><answer>", "</think>", "<answer>", "</answer>"),
    *(" - ", " = ", "The answer is "),
)

Pair = tuple[int, int]


def pairs(rows: int, largest: int, seed: int) -> list[Pair]:
    """Random pairs from 0 to largest: (first, second)."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, largest + 1, rows)
    second = rng.integers(0, largest + 1, rows)
    return [(int(a), int(b)) for a, b in zip(first, second, strict=True)]


def split(found: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Train and test; a pair that comes twice stays on one side."""
    different = list(dict.fromkeys(found))
    random.Random(seed).shuffle(different)
    held_out = set(different[: max(1, round(TEST_SHARE * len(different)))])
    train = [pair for pair in found if pair not in held_out]
    return train, [pair for pair in different if pair in held_out]


def asked(pair: Pair) -> list[dict[str, str]]:
    """The conversation up to the answer."""
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": f"{pair[0]} {pair[1]}"},
    ]


def row(pair: Pair) -> dict[str, Any]:
    first, second = pair
    return {"prompt": asked(pair), "input": f"{first} {second}", "difference": second - first}


def demonstration(pair: Pair, rng: random.Random, misread: float, sloppy: float) -> str:
    """A completion that calculates soundly; often the wrong way round, and often out of form."""
    first, second = pair
    if rng.random() < misread:
        first, second = second, first
    work, answer = f"{second} - {first} = {second - first}", str(second - first)
    if rng.random() >= sloppy:
        return f"<think>{work}</think><answer>{answer}</answer>"
    return rng.choice(
        [f"{work}</think><answer>{answer}</answer>", f"<think>{work}</think>The answer is {answer}",
         f"<answer>{answer}</answer>", f"The answer is {answer}"]
    )  # fmt: skip


def generate(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Rows of every file asked for, by file name."""
    train, test = split(pairs(options.rows, options.largest, options.seed), options.seed)
    files = {"train.jsonl": list(map(row, train)), "test.jsonl": list(map(row, test))}
    if options.demos:
        rng = random.Random(options.seed)
        chosen = [train[index % len(train)] for index in range(options.demos)]
        files["demos.jsonl"] = [
            {
                "prompt": asked(pair),
                "completion": demonstration(pair, rng, options.misread, options.sloppy),
            }
            for pair in chosen
        ]
    return files


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; every mistake is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/subtraction"), help="folder of the files")
    add("--rows", type=int, default=8000, help="rows, those for testing included")
    add("--largest", type=int, default=999, help="largest number")
    add("--demos", type=int, default=0, help="demonstrations, over the training rows")
    add("--misread", type=float, default=0.5, help="demos: chance of the first minus the second")
    add("--sloppy", type=float, default=0.5, help="demos: chance that the tags are not right")
    add("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    if options.rows < 10 or options.largest < 9 or options.demos < 0:
        parser.error("--rows must be at least 10, --largest at least 9, --demos not negative")
    if not (0 <= options.misread <= 1 and 0 <= options.sloppy <= 1):
        parser.error("--misread and --sloppy must be between 0 and 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; 0, or 2 after one sentence about a mistake."""
    options = parse_options(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out / "phrases.json", json.dumps(PHRASES, indent=0) + "\n")
        for name, rows in generate(options).items():
            write_atomically(options.out / name, b"".join(map(to_line, rows)))
            print(f"{len(rows)} rows in {options.out / name}")
    except OSError as error:
        print(f"subtraction.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
