"""The wheel alone is enough: built, installed and trained with, outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
experiment_name: wheel
fileroot: runs
prepare:
  - makes: data/countdown/tiny/test_e.jsonl
    run: >-
      python ${here:countdown.py} --out data/countdown/tiny --prompt short
      --train 64 --test 16 --demos 64
  - makes: models/countdown-warmup-seed1
    run: >-
      python -m arealite.launch --config ${here:warmup.yaml}
      total_train_steps=3 train_dataset.batch_size=16
actor: {path: models/countdown-warmup-seed1, dtype: float32, optimizer: {lr: 3e-4}}
rollout: {reward_fn: "${here:reward_score.py}:compute_score"}
gconfig: {n_samples: 2, max_new_tokens: 16}
train_dataset: {path: data/countdown/tiny/train_e.jsonl, batch_size: 4, max_length: 64}
valid_dataset: {path: data/countdown/tiny/test_e.jsonl, max_rows: 8, max_length: 64}
total_train_steps: 2
"""


def run(command: list[str], cwd: Path, timeout_s: float = 240) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git would clone: a build leaves its traces beside its sources."""
    source = tmp_path_factory.mktemp("source") / "arealite"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("arealite", "workflows"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    run(command, source)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh environment with the wheel, and this one's packages except for the checkout."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    interpreter = home / "bin" / "python"
    paths = {"base": str(home), "platbase": str(home)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    # A plain path in a .pth file adds that folder only: an editable install's own .pth files and
    # finders in it are not obeyed, so that the checkout stays out of sight.
    ours = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "packages.pth").write_text("".join(f"{path}\n" for path in ours))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--no-deps"]
    run([*pip, "--no-index", "--ignore-installed", "--disable-pip-version-check", str(wheel)], home)
    return str(interpreter)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with the examples copied into it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=unwanted)
    (folder / "examples" / "countdown" / "small.yaml").write_text(CONFIG)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    rooms = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert rooms == {"arealite", "workflows"}
    here = {str(p.relative_to(ROOT)) for p in (ROOT / "arealite").rglob("*.py")}
    assert here <= set(names)


def test_the_wheel_is_what_is_imported(python: str, elsewhere: Path) -> None:
    where = run([python, "-c", "import arealite; print(arealite.__file__)"], elsewhere)
    assert str(ROOT) not in where
    assert where.startswith(str(Path(python).parents[1]))


def test_a_check_of_the_demo_outside_the_checkout(python: str, elsewhere: Path) -> None:
    before = sorted(elsewhere.rglob("*"))
    config = "examples/countdown/cpu.yaml"
    plan = run([python, "-m", "arealite.launch", "--config", config, "--check"], elsewhere)
    assert "run folder     runs/countdown-cpu/seed1" in plan
    assert sorted(elsewhere.rglob("*")) == before


def test_a_small_run_of_the_demo_outside_the_checkout(python: str, elsewhere: Path) -> None:
    config = "examples/countdown/small.yaml"
    output = run([python, "-m", "arealite.launch", "--config", config], elsewhere)
    folder = elsewhere / "runs" / "wheel" / "trial0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["version"] for line in lines) == 2
    assert any("reward/mean" in line for line in lines)
    assert json.loads((folder / "status.json").read_text())["phase"] == "done"
    assert (folder / "curves.png").stat().st_size > 0
    assert (folder / "checkpoints" / "2" / "model.safetensors").is_file()
    assert str(ROOT) not in (folder / "logs" / "trainer.log").read_text()
    assert "runs/wheel/trial0" in output
