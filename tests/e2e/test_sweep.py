"""A sweep of real runs: what fails costs itself, what is done is not done again."""

import csv
from pathlib import Path

from small_run import COUNTDOWN, start

DATA = (
    "--out data/countdown/tiny --prompt short --sizes 3 --weights 1 --train 60 --test 9 --demos 64"
)


def test_a_sweep_of_fine_tuning(tmp_path: Path) -> None:
    made = start([str(COUNTDOWN / "countdown.py"), *DATA.split()], tmp_path)
    assert made.returncode == 0, made.stderr
    command = [
        *("-m", "arealite.sweep", "--config", str(COUNTDOWN / "warmup.yaml")),
        *("train_dataset.batch_size=100,8,16", "total_train_steps=2", "saver.export="),
        *("--seeds", "1"),
    ]
    done = start(command, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "train_dataset.batch_size is 100" in done.stderr
    folder = tmp_path / "runs/countdown-warmup/sweep.batch_size"
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["state"] for row in rows] == ["not begun", "done", "done"]
    assert (folder / "metric.png").read_bytes().startswith(b"\x89PNG")
    again = start(command, tmp_path)
    assert again.returncode == 2
    assert again.stdout.count("is done already") == 2
