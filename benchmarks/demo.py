"""Samples per second of the demo: asynchronous against the same run at staleness 0.

    python benchmarks/demo.py [--steps 12] [--rounds 2] [--out benchmarks/results/demo.json]

Both runs train the same model on the same rows for the same number of versions, in turn, so that
a machine whose speed drifts slows both. The rate counts trained samples between the first and the
last version, evaluations left out. `--short` plays 8-token answers instead of the demo's, the
setting of the outside reference: TRL 1.16's synchronous GRPOTrainer trained 584 samples/s of a
0.86 M parameter model in batches of 512 on 2 cores of this kind. Cut off after 8 tokens no answer
is right, and groups of equal reward cost no training step; so there the score is made to differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIG = "examples/countdown/cpu.yaml"
SHORT = ["gconfig.max_new_tokens=8", "train_dataset.batch_size=64", "gconfig.n_samples=8"]
ANY_TEXT_DIFFERS = """import zlib
def compute_score(solution_str, ground_truth):
    return zlib.crc32(solution_str.encode()) % 101 / 100
"""


def run(folder: Path, name: str, steps: int, overrides: list[str]) -> dict[str, float]:
    """One training run; returns its rates."""
    command = [
        *(sys.executable, "-m", "arealite.launch", "--config", CONFIG),
        *(f"fileroot={folder}", f"trial_name={name}", f"total_train_steps={steps}"),
        *("valid_dataset.path=", "evaluator.freq_steps=null", "stats_logger.transcripts=false"),
        *overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    lines = (folder / "countdown-cpu" / name / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [row for row in map(json.loads, lines) if "train/samples" in row]
    skip = 2  # the first versions fill the pipeline
    seconds = rows[-1]["time"] - rows[skip - 1]["time"]
    total = {
        key: sum(row[key] for row in rows[skip:]) for key in ("train/samples", "rollout/tokens")
    }
    return {
        "samples_per_s": total["train/samples"] / seconds,
        "tokens_per_s": total["rollout/tokens"] / seconds,
        "wait_share": sum(row["time/wait_batch_s"] for row in rows[skip:]) / seconds,
        "idle_share": sum(row["train/idle_samples"] for row in rows)
        / sum(row["train/samples"] for row in rows),
        "worst_staleness": max(row["staleness/max"] for row in rows),
    }


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--steps", type=int, default=12)
    command.add_argument("--rounds", type=int, default=2)
    command.add_argument("--short", action="store_true")
    command.add_argument("--out", type=Path)
    command.add_argument("overrides", nargs="*")
    options = command.parse_args()
    overrides = [*(SHORT if options.short else []), *options.overrides]
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        if options.short:
            reward = Path(temporary) / "reward.py"
            reward.write_text(ANY_TEXT_DIFFERS)
            overrides.append(f"rollout.reward_fn={reward}:compute_score")
        for index in range(options.rounds):
            rounds.append({
                f"staleness {eta}": run(
                    Path(temporary),
                    f"r{index}-eta{eta}",
                    options.steps,
                    [*overrides, f"rollout.max_head_offpolicyness={eta}"],
                )
                for eta in (2, 0)
            })  # fmt: skip
    ratios = [r["staleness 2"]["samples_per_s"] / r["staleness 0"]["samples_per_s"] for r in rounds]
    for name in rounds[0]:
        rates = [r[name]["samples_per_s"] for r in rounds]
        waits = [r[name]["wait_share"] for r in rounds]
        print(
            f"{name}: {statistics.median(rates):8.1f} samples/s, trainer waits "
            f"{statistics.median(waits):.0%} of the time"
        )
    print(f"asynchronous / synchronous: {statistics.median(ratios):.2f}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"rounds": rounds, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
