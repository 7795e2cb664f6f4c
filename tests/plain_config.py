"""The least that a configuration of a run must say."""

from typing import Any

BASE: dict[str, Any] = {
    "experiment_name": "test",
    "actor": {"path": "models/m"},
    "rollout": {"reward_fn": "reward.py:compute_score"},
    "gconfig": {"n_samples": 4},
    "train_dataset": {"path": "train.jsonl"},
}
