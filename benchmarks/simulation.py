"""The simulator's prediction against real CPU runs of the demo.

    python benchmarks/simulation.py [--steps 20] [--rounds 1] [--out benchmarks/results]

In each round the demo runs at staleness 2 and at staleness 0, in turn. The speeds are read from
the run at staleness 2 alone, and both runs are predicted from them. A figure is predicted samples/s
over measured samples/s; evaluations are left out of the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from saving import save

from arealite.config import load
from arealite.simulate.__main__ import scenario_of
from arealite.simulate.outcome import Outcome
from arealite.simulate.profile import SKIP, speeds_of
from arealite.simulate.scenario import simulate

CONFIG = "examples/countdown/cpu.yaml"


def run(folder: Path, name: str, steps: int, eta: int) -> Path:
    """One real run; returns its folder."""
    command = [
        *(sys.executable, "-m", "arealite.launch", "--config", CONFIG),
        *(f"fileroot={folder}", f"trial_name={name}", f"total_train_steps={steps}"),
        *("valid_dataset.path=", "evaluator.freq_steps=null"),
        f"rollout.max_head_offpolicyness={eta}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return folder / "countdown-cpu" / name


def measured(run_folder: Path) -> dict[str, float]:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/samples" in row][SKIP:]
    seconds = rows[-1]["time"] - rows[0]["time"]
    return {
        "samples_per_s": sum(row["train/samples"] for row in rows[1:]) / seconds,
        "trainer_idle": sum(row["time/wait_batch_s"] for row in rows[1:]) / seconds,
        "mean_lag": statistics.fmean(row["staleness/mean"] for row in rows),
    }


def predicted(profile: Path, eta: int) -> Outcome:
    config = load(CONFIG, [f"rollout.max_head_offpolicyness={eta}"])
    scenario = scenario_of(config, speeds_of(profile), versions=40)
    return simulate(scenario)


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--steps", type=int, default=20)
    command.add_argument("--rounds", type=int, default=1)
    command.add_argument("--out", type=Path)
    options = command.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for index in range(options.rounds):
            folders = {
                eta: run(Path(temporary), f"r{index}-eta{eta}", options.steps, eta)
                for eta in (2, 0)
            }
            for eta, folder in folders.items():
                real, told = measured(folder), predicted(folders[2], eta)
                results.append({
                    "eta": eta,
                    "measured": real,
                    "predicted": {
                        "samples_per_s": told.samples_per_s,
                        "trainer_idle": told.trainer_idle,
                        "mean_lag": told.mean_lag,
                    },
                    "ratio": told.samples_per_s / real["samples_per_s"],
                })  # fmt: skip
                print(
                    f"staleness {eta}: measured {real['samples_per_s']:6.1f} samples/s (trainer "
                    f"waits {real['trainer_idle']:.0%}, mean lag {real['mean_lag']:.2f}), predicted"
                    f" {told.samples_per_s:6.1f} ({told.trainer_idle:.0%}, {told.mean_lag:.2f}): "
                    f"{results[-1]['ratio']:.2f}"
                )
    save(options.out, "simulation", results)


if __name__ == "__main__":
    main()
