"""Ten steps of the Countdown demo through real servers, launched as a user launches them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server_environment import KINDS as FOREIGN
from server_kinds import SERVERS
from server_support import EXACT
from small_run import CONFIG, small_folder, start

STEPS = 10
SMALL = (
    "train_dataset.batch_size=8 gconfig.n_samples=4 valid_dataset.max_rows=16 "
    f"evaluator.freq_steps=5 total_train_steps={STEPS} rollout.reward_fn=reward.py:compute_score "
    "rollout.server_timeout_s=120 rollout.setup_timeout_s=600"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("run"))


def trained(folder: Path, backend: str, *overrides: str) -> list[dict[str, Any]]:
    """The run's lines of metrics, one a version."""
    kind, trial = SERVERS[backend], f"trial-{backend}-{len(overrides)}"
    if kind.python is None:
        pytest.skip(f"there is no environment with {backend}: `make test-{backend}` builds it")
    told = [f"rollout.backend={backend}", f"rollout.python={kind.python}", f"trial_name={trial}"]
    words = ["-m", "arealite.launch", "--config", CONFIG, *SMALL, *told, *overrides]
    done = start(words, folder, timeout_s=1500.0)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "runs/countdown-cpu" / trial / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "reward/mean" in line]


backends = pytest.mark.parametrize(
    "backend", [pytest.param(k, marks=getattr(pytest.mark, k)) for k in FOREIGN]
)


@backends
@pytest.mark.timeout(1800)
def test_a_synchronous_run_trains_on_the_log_probabilities_that_it_computes_itself(
    folder: Path, backend: str
) -> None:
    """All tokens are of the version being trained, so any difference is the engine's."""
    lines = trained(folder, backend, "rollout.max_head_offpolicyness=0")
    assert [line["version"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["weights/canary_max_diff"] <= EXACT
        assert line["staleness/max"] == 0
        assert line["loss/mismatch_kl"] <= EXACT**2  # it is quadratic: half the mean square
        assert line["counts/failed"] == 0


@backends
@pytest.mark.timeout(1800)
def test_an_asynchronous_run_keeps_its_bound_and_its_canary(folder: Path, backend: str) -> None:
    lines = trained(folder, backend, "gconfig.max_new_tokens=200", "actor.optimizer.lr=1e-3")
    assert [line["version"] for line in lines] == list(range(1, STEPS + 1))
    assert max(line["staleness/max"] for line in lines) in (1, 2)
    assert max(line["weights/canary_max_diff"] for line in lines) <= EXACT
