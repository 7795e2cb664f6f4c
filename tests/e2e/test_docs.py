"""The documentation is executed: what it tells a reader to type works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ENVIRONMENT, ROOT

from arealite.config.reference import reference


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(what follows the language on the fence, the text) of every block of that language."""
    return re.findall(rf"```{language}[ ]?([^\n]*)\n(.*?)```", page.read_text(), re.DOTALL)


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable if word == "python" else word for word in line.split()]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo leaves behind: rows and a (barely) warmed-up model."""
    folder = tmp_path_factory.mktemp("demo")
    countdown = ROOT / "examples" / "countdown"
    data = ["--train", "200", "--test", "20", "--demos", "200", "--prompt", "short"]
    for line in (
        f"python {countdown / 'countdown.py'} --out data/countdown/tiny {' '.join(data)}",
        f"python -m arealite.launch --config {countdown / 'warmup.yaml'} total_train_steps=2 "
        "train_dataset.batch_size=32",
    ):
        done = shell(line, folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_configuration_page_is_generated_from_the_code() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def test_the_code_of_a_model_card_runs(demo_files: Path) -> None:
    folder = demo_files / "models" / "countdown-warmup-seed1"
    ((_, code),) = blocks(folder / "README.md", "python")
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, code + done.stderr


@pytest.fixture(scope="module")
def tutorial_run(demo_files: Path) -> Path:
    """The run folder that the tutorial's commands make."""
    page = ROOT / "docs" / "tutorial.md"
    written = [b for language in ("python", "yaml") for b in blocks(page, language)]
    assert len(written) == 3
    for name, text in written:
        (demo_files / name).parent.mkdir(exist_ok=True)
        (demo_files / name).write_text(text)
    check, train = (line for _, text in blocks(page, "bash") for line in text.splitlines())
    done = shell(check, demo_files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (demo_files / "runs" / "my-task").exists(), "--check starts nothing"
    small = " total_train_steps=2 train_dataset.batch_size=4 valid_dataset.max_rows=4"
    done = shell(train + small, demo_files)
    assert done.returncode == 0, done.stdout + done.stderr
    return demo_files / "runs/my-task/trial0"


def test_tutorial(tutorial_run: Path) -> None:
    lines = (tutorial_run / "metrics.jsonl").read_text().splitlines()
    versions = [row for row in map(json.loads, lines) if "reward/brevity" in row]
    assert [row["version"] for row in versions] == [1, 2]
    assert all("reward/right" in row for row in versions)


def test_seeing(demo_files: Path, tutorial_run: Path) -> None:
    """Every command of the page, on the tutorial's run."""
    page = ROOT / "docs" / "seeing.md"
    commands = [line for _, text in blocks(page, "bash") for line in text.splitlines()]
    assert {line.split()[2] for line in commands} == {
        "arealite.watch", "arealite.show", "arealite.report"
    }  # fmt: skip
    for line in commands:
        done = shell(line, demo_files)
        assert done.returncode == 0, line + done.stdout + done.stderr
        assert done.stdout, line
        assert "Traceback" not in done.stderr
    html = (demo_files / "report.html").read_text()
    assert "my-task / trial0" in html
    assert "brevity" in shell("python -m arealite.show runs/my-task/trial0", demo_files).stdout


def test_exporting(demo_files: Path, tutorial_run: Path) -> None:
    """The commands of docs/reliability.md, on the tutorial's run."""
    page = ROOT / "docs" / "reliability.md"
    (command,) = (line for _, text in blocks(page, "bash") for line in text.splitlines())
    done = shell(command, demo_files)
    assert (done.returncode, done.stdout) == (0, "version 2 of my-task/trial0 is in exported\n")
    again = shell(f"{command} --version 7", demo_files)
    assert (again.returncode, "no checkpoint of version 7" in again.stderr) == (2, True)


@pytest.mark.parametrize(("warned", "code"), [(True, 75), (False, 0), (False, 4)])
def test_the_job_script_for_slurm(tmp_path: Path, warned: bool, code: int) -> None:
    """That of docs/reliability.md, with a launcher that does nothing, and without Slurm."""
    ((_, script),) = blocks(ROOT / "docs" / "reliability.md", "sh")
    (tmp_path / "job.sh").write_text(script)
    asked = "kill -USR1 $PPID; for i in {1..300}; do sleep 0.1; done; exit 1"
    (tmp_path / "python").write_text(
        f"#!/bin/bash\necho $@ > arguments\ntrap 'exit {code}' USR1\n"
        f"{asked if warned else f'exit {code}'}\n"
    )
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho $@ > requeued\n")
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    done = subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env=environment, timeout=90, check=False
    )
    assert done.returncode == code
    assert (tmp_path / "arguments").read_text() == "-m arealite.launch --config run.yaml\n"
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == (
        "requeue 17\n" if code == 75 else ""
    )


def test_sweep(demo_files: Path, tutorial_run: Path) -> None:
    """What its commands would run; that they run is tests/e2e/test_sweep.py's."""
    page = ROOT / "docs" / "sweep.md"
    for line in (line for _, text in blocks(page, "bash") for line in text.splitlines()):
        done = shell(f"{line} --check", demo_files)
        assert done.returncode == 0, line + done.stdout + done.stderr
        assert done.stdout.count("will be run") == 6, done.stdout


def test_agents(demo_files: Path) -> None:
    """The agent of docs/agents.md, with OpenAI's client and as a stream, for ten steps."""
    page = ROOT / "docs" / "agents.md"
    written = [b for language in ("python", "yaml") for b in blocks(page, language)]
    assert len(written) == 2
    for name, text in written:
        (demo_files / name).parent.mkdir(exist_ok=True)
        (demo_files / name).write_text(text)
    check, train = (line for _, text in blocks(page, "bash") for line in text.splitlines())
    done = shell(check, demo_files)
    assert done.returncode == 0, done.stdout + done.stderr
    # Of any text some score differs: a model this raw is never right.
    agent = demo_files / "my_agent" / "my_agent.py"
    agent.write_text(agent.read_text().replace("return 0.0", "return len(text) % 7 / 7"))
    small = " train_dataset.batch_size=4 valid_dataset.max_rows=4 gconfig.n_samples=4"
    done = shell(train + small, demo_files)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = demo_files / "runs/my-agent/trial0"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "reward/mean" in row]
    assert [row["version"] for row in rows] == list(range(1, 11))
    assert rows[-1]["counts/failed"] == 0
    told = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]
    texts = [t["text"] for line in told for t in line["trajectories"]]
    assert all("[user] That is not right. Try again." in text for text in texts)


def test_tutorial_mistakes_are_sentences(demo_files: Path) -> None:
    """The last section of the tutorial."""
    page = ROOT / "docs" / "tutorial.md"
    for language in ("python", "yaml"):
        for name, text in blocks(page, language):
            (demo_files / name).parent.mkdir(exist_ok=True)
            (demo_files / name).write_text(text)
    launch = "python -m arealite.launch --config my_task/my.yaml trial_name=mistakes "
    typo = shell(launch + "gconfig.n_sample=8", demo_files)
    assert (typo.returncode, "gconfig.n_samples" in typo.stderr) == (2, True)
    wrong_name = shell(launch + "rollout.reward_fn=my_task/my_reward.py:compute_scor", demo_files)
    assert (wrong_name.returncode, "compute_scor" in wrong_name.stderr) == (2, True)
    reward = demo_files / "my_task" / "my_reward.py"
    reward.write_text("def compute_score(solution_str, ground_truth):\n    return 1 / 0\n")
    raising = shell(launch + "valid_dataset.path=", demo_files)
    assert raising.returncode == 3, raising.stdout + raising.stderr
    assert "ZeroDivisionError" in raising.stderr
    assert "line 2" in raising.stderr
    assert all("Traceback" not in run.stderr for run in (typo, wrong_name, raising))
