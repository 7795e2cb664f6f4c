"""The launcher starts at once: it never loads torch, and neither does what it is made of."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "safetensors", "datasets", "numpy", "matplotlib", "wandb")

GUARDED = """
import importlib, json, os, runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise AssertionError("imported " + name)

sys.meta_path.insert(0, Blocker())
sys.argv = {argv!r}
try:
    if len(sys.argv) > 1:
        runpy.run_module({module!r}, run_name="__main__")
    else:
        importlib.import_module({module!r})
except SystemExit as end:
    assert not end.code, end.code
times = os.times()
print(json.dumps(times.user + times.system))
"""


def cpu_seconds(module: str, *argv: str) -> float:
    """Runs (or only imports) a module with every heavy package barred; its processor time."""
    program = GUARDED.format(heavy=HEAVY, argv=[module, *argv], module=module)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", ["cpu.yaml", "warmup.yaml"])
def test_a_check_needs_no_torch_and_little_time(name: str) -> None:
    argv = ("--config", f"examples/countdown/{name}", "--check")
    # The best of three: time on a busy machine only ever errs upwards.
    assert min(cpu_seconds("arealite.launch", *argv) for _ in range(3)) < 2.0


@pytest.mark.parametrize(
    "module",
    [
        "arealite",
        "arealite.config",
        "arealite.loading",
        "arealite.protocols",
        "arealite.launch.command",
        "arealite.engines.client",
        "arealite.engines.sglang",
        "arealite.engines.vllm",
        "arealite.rollout.door",
        "arealite.rewards.scorer",
        "arealite.rewards.arithmetic",
        "arealite.telemetry.progress",
        "arealite.telemetry.metrics",
        "workflows.rlvr",
        "workflows.agent",
    ],
)
def test_a_light_module_loads_without_the_heavy_ones(module: str) -> None:
    assert cpu_seconds(module) < 10.0
