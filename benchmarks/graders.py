"""How long the built-in graders take: on hostile text, and on the real GSM8K where it lies near.

    python benchmarks/graders.py [--texts 100000] [--gsm8k ../shared/data/gsm8k]

CPU time of this thread, since other work on the machine is no fault of a grader. The reference is
the bound of 50 ms for any one text, and the reading of the same rows' JSON for GSM8K.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

from arealite.rewards import formats, gsm8k, hostile
from arealite.rewards.arithmetic import ExpressionError, parse
from arealite.rewards.extract import extract, last_answer


def arithmetic(text: str) -> float:
    try:
        return float(parse(last_answer(text) or "").value)
    except ExpressionError:
        return 0.0


GRADERS: dict[str, Callable[[str], object]] = {
    "arithmetic": arithmetic,
    "gsm8k": lambda text: gsm8k.compute_score(text, "#### 72"),
    "strict_format": formats.strict_format,
    "soft_format": formats.soft_format,
    "count_tags": formats.count_tags,
    "integer_answer": formats.integer_answer,
    "boxed, only": lambda text: extract(text, "boxed", "only"),
    "number, only": lambda text: extract(text, "number", "only"),
}


def hostile_texts(count: int) -> None:
    print("| grader | texts | worst, ms | mean, ms |\n|---|---|---|---|")
    for name, grade in GRADERS.items():
        worst = total = 0.0
        n = 0
        for text in chain(hostile.texts(), hostile.fuzzed(count)):
            started = time.thread_time()
            grade(text)
            took = time.thread_time() - started
            worst, total, n = max(worst, took), total + took, n + 1
        print(f"| {name} | {n} | {worst * 1000:.2f} | {total / n * 1000:.4f} |")


def real_gsm8k(folder: Path) -> None:
    lines = [
        line for name in ("train", "test") for line in (folder / f"{name}.jsonl").open(newline="\n")
    ]
    started = time.thread_time()
    answers = [json.loads(line)["answer"] for line in lines]
    read = time.thread_time() - started
    right = sum(gsm8k.compute_score(answer, answer) for answer in answers)
    wrong = sum(
        gsm8k.compute_score(after, answer) != (gsm8k.gold(after) == gsm8k.gold(answer))
        for answer, after in pairwise(answers)
    )
    started = time.thread_time()
    for answer in answers:
        gsm8k.compute_score(answer, answer)
    took = time.thread_time() - started
    per_1000 = 1000 / len(answers) * 1000
    print(
        f"GSM8K: {len(answers)} rows, {right:.0f} gold solutions right, {wrong} of the next rows' "
        f"scored wrongly; {took * per_1000:.1f} ms per 1,000 scores, reading their JSON "
        f"{read * per_1000:.1f} ms"
    )


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--texts", type=int, default=100_000)
    command.add_argument("--gsm8k", type=Path, default=Path("../shared/data/gsm8k"))
    options = command.parse_args()
    hostile_texts(options.texts)
    if options.gsm8k.is_dir():
        real_gsm8k(options.gsm8k)


if __name__ == "__main__":
    main()
