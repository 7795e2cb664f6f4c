"""What never losing a sample costs: the demo with ledger and checkpoints, and without.

    python benchmarks/recovery_cost.py [--steps 60] [--pairs 4] [--out benchmarks/results]

Runs of examples/countdown/cpu.yaml in turn, with and without, so that a machine whose speed drifts
slows both. A run's time is that from its first version to its last checkpoint, which is counted;
held-out sets are left out. Two figures, since two runs of the demo differ by more than the cost:

- the ratio of both times, pair by pair;
- in the runs with: the seconds that the trainer's process spends in the ledger and that training
  stands still for a checkpoint, and the processor time of the threads that write them, over the
  run's time.

The launcher starts this file as the trainer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from saving import save  # noqa: E402

CONFIG = "examples/countdown/cpu.yaml"
LAUNCHER = "from arealite.launch import launch; launch(trainer={trainer!r})"
Clock = Callable[[], float]


# --- in the trainer's process


def train(kind: str, report: str, argv: list[str]) -> None:
    """The trainer of the demo. kind: with or without."""
    from arealite.commits import Commits
    from arealite.ledger import Ledger
    from arealite.main import main as trainer
    from arealite.run import Run

    spent: Counter[str] = Counter()
    record, leave = Run.record, Commits.__exit__
    if kind == "without":
        for owner, name in ((Ledger, "note"), (Ledger, "committed"), (Commits, "make_if_due")):
            setattr(owner, name, lambda *args, **fields: None)
    else:
        _time(Ledger, "note", spent, "ledger_s")
        _time(Commits, "_make", spent, "copying_s")
        _time(Commits, "_write", spent, "writing_cpu_s", time.thread_time)

    def recorded(self: Run, version: int, *args: Any, **options: Any) -> None:
        record(self, version, *args, **options)
        spent["begun"] = spent["begun"] or time.monotonic()  # type: ignore[assignment]

    def left(self: Commits, *error: Any) -> None:
        if kind == "with":
            leave(self, *error)
        if error[0] is None:
            spent["run_s"] = time.monotonic() - spent.pop("begun")  # type: ignore[assignment]
            Path(report).write_text(json.dumps(spent))

    Run.record, Commits.__exit__ = recorded, left  # type: ignore[method-assign]
    trainer(argv)


def _time(
    owner: type, name: str, spent: Counter[str], key: str, clock: Clock = time.monotonic
) -> None:
    call = getattr(owner, name)

    def timed(*args: Any, **fields: Any) -> Any:
        started = clock()
        try:
            return call(*args, **fields)
        finally:
            spent[key] += clock() - started  # type: ignore[assignment]

    setattr(owner, name, timed)


# --- the comparison


def run(folder: Path, kind: str, index: int, config: str, steps: int, rest: list[str]) -> Any:
    """One run; what its trainer found."""
    report = folder / f"{kind}-{index}.json"
    trainer = (__file__, "--trainer", kind, str(report), "--")
    command = [
        *(sys.executable, "-c", LAUNCHER.format(trainer=trainer), "--config", config),
        *(f"fileroot={folder}", f"trial_name={kind}-{index}", f"total_train_steps={steps}"),
        *("valid_dataset.path=", "evaluator.freq_steps=null", *rest),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(report.read_text())


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--steps", type=int, default=60)
    command.add_argument("--pairs", type=int, default=4)
    command.add_argument("--config", default=CONFIG)
    command.add_argument("--out", type=Path)
    command.add_argument("overrides", nargs="*")
    options = command.parse_args()
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for index in range(options.pairs):
            kinds = ("with", "without") if index % 2 == 0 else ("without", "with")
            pair = {
                kind: run(
                    Path(temporary), kind, index, options.config, options.steps, options.overrides
                )
                for kind in kinds
            }
            pairs.append(pair)
            print(f"{pair['with']['run_s']:8.2f} s with, {pair['without']['run_s']:8.2f} s without")
    ratios = [pair["with"]["run_s"] / pair["without"]["run_s"] for pair in pairs]
    parts = {
        key: statistics.median(pair["with"].get(key, 0.0) / pair["with"]["run_s"] for pair in pairs)
        for key in ("ledger_s", "copying_s", "writing_cpu_s")
    }
    print(
        f"with / without: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f} in {len(pairs)} pairs)"
    )
    told = ", ".join(f"{key} {share:.2%}" for key, share in parts.items())
    print(f"counted, of the run's time: {sum(parts.values()):.2%} ({told})")
    save(options.out, "recovery-cost", {"pairs": pairs, "ratios": ratios, "shares": parts})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trainer"]:
        train(sys.argv[2], sys.argv[3], sys.argv[5:])
    else:
        main()
