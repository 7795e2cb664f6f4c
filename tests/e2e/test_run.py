"""The main job in small, through the real launcher, engine server and trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import CONFIG, COUNTDOWN, small_folder, start
from trace_support import check_nesting, named, overlap, processes, read, spans

SMALL = [
    "train_dataset.batch_size=8",
    "gconfig.n_samples=4",
    "valid_dataset.max_rows=16",
    "evaluator.freq_steps=2",
    "total_train_steps=5",
    "rollout.reward_fn=reward.py:compute_score",
    "stats_logger.trace=true",
    "saver.freq_steps=2",
    "saver.export=models/exported",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("run"))


def launch(folder: Path, *overrides: str) -> tuple[str, list[dict[str, Any]]]:
    """Runs the demo's configuration; returns what it printed and its metrics by line."""
    done = start(["-m", "arealite.launch", "--config", CONFIG, *SMALL, *overrides], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    name = next((o.split("=")[1] for o in overrides if o.startswith("trial_name=")), "seed1")
    lines = (folder / "runs/countdown-cpu" / name / "metrics.jsonl").read_text().splitlines()
    return done.stdout, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def asynchronous(folder: Path) -> tuple[str, list[dict[str, Any]], Path]:
    printed, lines = launch(folder)
    return printed, lines, folder / "runs/countdown-cpu/seed1"


def versions(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "reward/mean" in line]


def test_every_version_is_told_with_the_keys_of_the_contract(
    asynchronous: tuple[str, list[dict[str, Any]], Path],
) -> None:
    rows = versions(asynchronous[1])
    assert [row["version"] for row in rows] == [1, 2, 3, 4, 5]
    keys = (
        "reward/mean rollout/accuracy rollout/tokens_per_s train/tokens_per_s staleness/max "
        "staleness/mean staleness/masked_tokens time/wait_batch_s time/update_s time/publish_s "
        "weights/canary_max_diff loss/policy loss/entropy loss/grad_norm counts/trained "
        "counts/dropped_stale counts/filtered counts/failed counts/in_flight"
    )
    for row in rows:
        assert set(keys.split()) <= set(row)


def test_no_trained_token_is_older_than_the_bound(
    asynchronous: tuple[str, list[dict[str, Any]], Path],
) -> None:
    assert all(0 <= row["staleness/max"] <= 2 for row in versions(asynchronous[1]))
    assert versions(asynchronous[1])[-1]["staleness/max"] > 0, "the run was asynchronous"


def test_episodes_are_in_flight_at_every_version(
    asynchronous: tuple[str, list[dict[str, Any]], Path],
) -> None:
    assert all(row["counts/in_flight"] > 0 for row in versions(asynchronous[1]))


def test_the_engine_computes_what_the_trainer_computes(
    asynchronous: tuple[str, list[dict[str, Any]], Path],
) -> None:
    assert all(row["weights/canary_max_diff"] <= 1e-4 for row in versions(asynchronous[1]))


def test_the_run_folder_is_complete(
    asynchronous: tuple[str, list[dict[str, Any]], Path],
) -> None:
    printed, lines, run_folder = asynchronous
    for name in ("config.yaml", "status.json", "curves.png", "summary.txt"):
        assert (run_folder / name).stat().st_size > 0
    assert json.loads((run_folder / "status.json").read_text())["phase"] == "done"
    assert (run_folder / "summary.txt").read_text().strip() in printed
    judged = {line["version"] for line in lines if "eval/valid/accuracy" in line}
    assert judged == {0, 2, 4, 5}
    for version in (2, 4, 5):  # kept for good
        card = (run_folder / f"checkpoints/{version}/README.md").read_text()
        assert f"version {version}" in card
        assert "- method: GRPO" in card
        assert "| reward/mean, mean of " in card
    exported = (run_folder / "../../../models/exported/README.md").read_text()
    assert "| eval/valid/accuracy | " in exported
    manifest = json.loads((run_folder / "checkpoints/5/MANIFEST.json").read_text())
    assert "README.md" in manifest["files"]
    assert manifest["version"] == 5
    assert "model.safetensors" in manifest["files"]
    fates = [json.loads(line)["fate"] for line in (run_folder / "transcripts.jsonl").open()]
    assert fates.count("trained") == 5 * 8
    assert fates.count("evaluated") == 4 * 16


@pytest.fixture(scope="module")
def synchronous(folder: Path) -> tuple[str, list[dict[str, Any]], Path]:
    printed, lines = launch(folder, "rollout.max_head_offpolicyness=0", "trial_name=sync")
    return printed, lines, folder / "runs/countdown-cpu/sync"


def test_staleness_0_trains_on_the_policys_own_tokens(
    synchronous: tuple[str, list[dict[str, Any]], Path],
) -> None:
    """Then engine and trainer must agree on every sampled token: KL is second order in that."""
    for row in versions(synchronous[1]):
        assert row["staleness/max"] == 0
        assert abs(row["loss/behave_kl"]) < 1e-8  # log-probabilities equal to 1e-4


def test_the_trace_tells_who_worked_when(
    asynchronous: tuple[str, list[dict[str, Any]], Path],
    synchronous: tuple[str, list[dict[str, Any]], Path],
) -> None:
    """Training episodes overlap updates where the run is asynchronous, and else never."""
    for run_folder, is_expected in ((asynchronous[2], True), (synchronous[2], False)):
        events = read(run_folder / "trace.json")
        check_nesting(events)
        of = processes(events)
        updates, episodes = named(events, "update"), named(events, "an episode")
        assert [e["args"]["version"] for e in updates] == [0, 1, 2, 3, 4]
        assert len(episodes) >= 5 * 8
        assert is_expected == any(overlap(u, e) for u in updates for e in episodes)
        publishing = named(events, "publish weights version")
        assert [e["name"][-1] for e in publishing] == ["0", "1", "2", "3", "4", "5"]
        requests = [e for e in spans(events) if of[e["pid"]].startswith("server ")]
        assert {e["name"] for e in requests} >= {"POST /generate"}
        made = named(events, "version") + named(events, "start, version")
        assert sorted(e["args"]["version"] for e in made) == [1, 2, 3, 4, 5]
        for update in updates:
            assert any(overlap(update, e) and e["dur"] >= update["dur"] for e in made)
        kinds = {of[e["pid"]].partition(" ")[0] for e in spans(events)}
        assert kinds >= {"trainer", "server", "rewards", "episodes", "held-out", "evaluations"}


def test_the_seeds_script_trains_too(folder: Path) -> None:
    workflow = f"rollout.workflow={COUNTDOWN / 'train.py'}:CountDownWorkflow"
    config = [str(COUNTDOWN / "train.py"), "--config", CONFIG]
    done = start([*config, *SMALL, workflow, "trial_name=script", "total_train_steps=2"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads((folder / "runs/countdown-cpu/script/status.json").read_text())
    assert (status["phase"], status["version"]) == ("done", 2)
