"""The small run of both matrices, and what its files say when it has ended."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from arealite.data.rows import Rows
from arealite.ledger import read_ledger
from arealite.ledger.account import Account
from arealite.telemetry.metrics import load_metrics
from arealite.telemetry.run_folder import read_lines

ROOT = Path(__file__).resolve().parents[2]
COUNTDOWN = ROOT / "examples" / "countdown"

SEED, VERSIONS, BATCH, ROWS = 1, 8, 6, 20
CONFIG = f"""
experiment_name: kill
seed: {SEED}
deterministic: true
actor:
  path: model
  dtype: float32
  threads: 1
  mb_spec: {{max_tokens_per_mb: 2048}}
  optimizer: {{lr: 1e-3, lr_scheduler_type: linear, warmup_steps: 2}}
rollout:
  reward_fn: reward.py:compute_score
  max_head_offpolicyness: 2
  threads: 1
  filters: [equal_rewards]
reward: {{mode: inline}}
gconfig: {{n_samples: 2, max_new_tokens: 8}}
train_dataset: {{path: rows.jsonl, batch_size: {BATCH}, max_length: 64}}
valid_dataset: {{path: held_out.jsonl, max_length: 64}}
evaluator: {{freq_steps: 2}}
recover: {{freq_steps: 1}}
total_train_steps: {VERSIONS}
"""
REWARD = "def compute_score(text, truth):\n    return sum(text.encode()) % 3 / 2\n"
"""Of any text; a third of the groups earn the same twice, and are filtered."""


@dataclass(frozen=True)
class Found:
    """weights: their digest. trained: ids in the order of training. lost: rows that were planned
    and are in no place. problems: what else is wrong."""

    weights: str
    trained: tuple[str, ...]
    lost: int
    problems: tuple[str, ...]
    rolled_back: int

    @property
    def twice(self) -> int:
        return sum(n - 1 for n in Counter(self.trained).values())


def prepare(folder: Path) -> None:
    """All that the small run reads, and the working folder is this one."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    if not Path("model").exists():  # in a process of its own: threads do not survive a fork
        program = [sys.executable, str(COUNTDOWN / "tiny_model.py"), "--out", "model"]
        subprocess.run(program, check=True)
    for name, count in (("rows.jsonl", ROWS), ("held_out.jsonl", 4)):
        lines = [json.dumps({"query": f"{name} {i}", "answer": str(i)}) for i in range(count)]
        Path(name).write_text("\n".join(lines) + "\n")
    Path("reward.py").write_text(REWARD)
    Path("run.yaml").write_text(CONFIG)


def examine(folder: Path) -> Found:
    """What the files of a run that has ended say."""
    weights = (folder / f"checkpoints/{VERSIONS}/model.safetensors").read_bytes()
    lines = [line for line in read_lines(folder / "transcripts.jsonl") if line["fate"] == "trained"]
    problems = []
    reading = read_ledger(folder / "ledger.jsonl")
    assert reading.account is not None
    if reading.damage:
        problems.append(reading.damage)
    problems += reading.account.problems()
    if reading.account.counts["trained"] != len(lines):
        problems.append("the transcripts and the ledger differ")
    rows = load_metrics(folder / "metrics.jsonl")
    told = [row["version"] for row in read_lines(folder / "metrics.jsonl") if "reward/mean" in row]
    if told != list(range(1, VERSIONS + 1)):
        problems.append(f"metrics.jsonl has the versions {told}")
    judged = [row["version"] for row in rows if "eval/valid/mean" in row]
    if not {0, VERSIONS} <= set(judged):
        problems.append(f"evaluated are {judged}")
    return Found(
        hashlib.sha256(weights).hexdigest(),
        tuple(line["sample_id"] for line in lines),
        lost_of(reading.account),
        tuple(problems),
        reading.account.counts["rolled_back"],
    )


def lost_of(account: Account) -> int:
    """Rows come in one order, so those that were planned are its first: the others are lost."""
    order = (sample_id for sample_id, _ in Rows([{}] * ROWS, SEED, shuffle=True))
    return sum(not account.is_known(i) for i in islice(order, account.counts["planned"]))


def last_lines(path: Path) -> str:
    return "\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:])
