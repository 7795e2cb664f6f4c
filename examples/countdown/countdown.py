"""Makes the Countdown data: problems for training and test, and imperfect demonstrations.

    python examples/countdown/countdown.py --out data/countdown/qwen --train 8000 --test 400

writes ``train_e.jsonl`` and ``test_e.jsonl``, rows ``{"query": str, "answer": {"target": int,
"numbers": [int, ...]}}``; with ``--demos N`` also ``demos.jsonl``, rows ``{"prompt": str,
"completion": str}`` for supervised fine-tuning (with ``--retries`` the prompt is a conversation of
chat messages). Invariants: every problem is solvable by
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
from pathlib import Path

from demonstrations import FORMS, Demonstrator, rows
from game import PROMPTS, Game, problems


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
            form=options.form,
            retries=options.retries,
        )
        chosen = (train[index % len(train)] for index in range(options.demos))
        files["demos.jsonl"] = list(rows(chosen, rng, solver, game.largest, options.prompt))
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
    add("--form", choices=sorted(FORMS), default=solver.form, help="demos: how steps are written")
    add("--retries", type=float, default=solver.retries, help="demos: chance of a second answer")
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
        "--retries must be between 0 and 1": 0 <= options.retries <= 1,
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
