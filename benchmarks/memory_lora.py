"""Memory of LoRA GRPO on a model of 494 million parameters, on a CPU in bfloat16 (Linux).

    python benchmarks/memory_lora.py [--steps 20] [--trl PYTHON] [--small] [--out FOLDER]

The model has Qwen2.5-0.5B's exact shape and a vocabulary of 151,936, with random weights made here;
the prompts have 128 tokens, the answers 128, a group 8 samples, and a step one group. All processes
that the run starts are counted, every half second, by their proportional set size (shared pages
count once), and beside them the weights that lie published in memory-backed files, which count
twice while a server maps them. `per_step_gb` is the highest sum in each step: it should be flat.

A CPU without bfloat16 instructions computes some 10 GFLOP a second on a core, and takes more than
ten minutes for a step. --small runs all of it on a tiny model, to see that it works.

With --trl the same is done by TRL's GRPOTrainer under that interpreter (an environment with trl,
peft and its own torch; benchmarks/memory_trl.py), after ours and never beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from saving import save

ROOT = Path(__file__).resolve().parents[1]
GROUP, RANK = 8, 16


class Shape(NamedTuple):
    vocabulary: int = 151_936
    hidden: int = 896
    inner: int = 4864
    layers: int = 24
    heads: int = 14
    prompt: int = 128
    answer: int = 128


SMALL = Shape(512, 64, 128, 2, 4, 16, 16)
REWARD = """import zlib
def compute_score(solution_str, ground_truth):
    return zlib.crc32(solution_str.encode()) % 101 / 100
"""
Sample = tuple[float, dict[str, float]]
"""(when, bytes by the process's role)."""


def make(folder: Path, shape: Shape) -> None:
    """Model, tokenizer (a word per token), rows and reward. In a process of its own."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    model.save_pretrained(folder / "model")
    words = {f"w{i}": i for i in range(shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="w0", pad_token="w1", unk_token="w2"
    )
    fast.save_pretrained(folder / "model")
    rng = random.Random(1)
    prompts = [
        " ".join(f"w{rng.randrange(3, shape.vocabulary)}" for _ in range(shape.prompt))
        for _ in range(64)
    ]
    rows = [json.dumps({"query": prompt, "prompt": prompt, "answer": "0"}) for prompt in prompts]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "reward.py").write_text(REWARD)


def command_of(folder: Path, steps: int, weights: Path, shape: Shape) -> list[str]:
    (folder / "run.yaml").write_text("experiment_name: memory\n")
    return [
        *(sys.executable, "-m", "arealite.launch", "--config", str(folder / "run.yaml")),
        *(f"fileroot={folder / 'runs'}", f"actor.path={folder / 'model'}"),
        *("actor.dtype=bfloat16", "actor.gradient_checkpointing=true"),
        *(f"actor.lora.rank={RANK}", "actor.optimizer.lr=1e-4"),
        *(
            f"actor.mb_spec.max_tokens_per_mb={2 * shape.answer + shape.prompt}",
            "reward.mode=inline",
        ),
        *(
            f"rollout.reward_fn={folder / 'reward.py'}:compute_score",
            "rollout.server_timeout_s=3600",
        ),
        *("rollout.stall_timeout_s=14400", "rollout.request_timeout_s=7200"),
        *(f"rollout.weights_dir={weights}", "rollout.max_head_offpolicyness=1"),
        "rollout.workflow_kwargs={chat: false}",
        *(f"gconfig.n_samples={GROUP}", f"gconfig.max_new_tokens={shape.answer}"),
        *(f"gconfig.min_new_tokens={shape.answer}", f"rollout.max_running_requests={2 * GROUP}"),
        *(f"train_dataset.path={folder / 'rows.jsonl'}", "train_dataset.batch_size=1"),
        *(f"train_dataset.max_length={shape.prompt}", f"total_train_steps={steps}"),
    ]


ROLES = {"arealite.main": "trainer", "engines.embedded": "server", "memory_trl": "trl"}


class Watch:
    """The memory of a process and of all that it has started, until it ends."""

    def __init__(self, pid: int, weights: Path | None = None, every_s: float = 0.5) -> None:
        self._pid, self._weights, self._every_s = pid, weights, every_s
        self.samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            found: dict[str, float] = {}
            for pid in tree(self._pid):
                role, size = role_of(pid), proportional(pid)
                found[role] = found.get(role, 0.0) + size
            if self._weights is not None:
                found["published"] = size_of(self._weights)
            self.samples.append((time.time(), found))


def tree(pid: int) -> Iterator[int]:
    yield pid
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in tasks.read_text().split():
                yield from tree(int(child))
        except OSError:  # it has ended
            continue


def role_of(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return "other"
    return next((role for name, role in ROLES.items() if name in line), "other")


def proportional(pid: int) -> float:
    """Bytes: what it has alone, and its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)


def size_of(folder: Path) -> float:
    """Bytes of all its files."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # an older version goes
            continue
    return float(total)


def summary(samples: list[Sample], ends: list[float]) -> dict[str, Any]:
    """Gigabytes. ends: when each step ended."""

    def highest(of: list[Sample], role: str = "") -> float:
        sizes = [sum(v for k, v in found.items() if role in ("", k)) for _, found in of]
        return round(max(sizes, default=0.0) / 1e9, 2)

    starts = [0.0, *ends[:-1]]
    steps = [
        [s for s in samples if begin <= s[0] < end] for begin, end in zip(starts, ends, strict=True)
    ]
    roles = sorted({role for _, found in samples for role in found})
    return {
        "peak_gb": highest(samples),
        "peak_gb_of": {role: highest(samples, role) for role in roles},
        "per_step_gb": [highest(of) for of in steps],
        "seconds_per_step": [round(e - b, 1) for b, e in pairwise(ends)],
    }


def ours(folder: Path, steps: int, shape: Shape) -> dict[str, Any]:
    weights = Path(tempfile.mkdtemp(prefix="memory-lora-", dir="/dev/shm"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        with (folder / "ours.log").open("w") as log:
            process = subprocess.Popen(
                command_of(folder, steps, weights, shape), stdout=log, stderr=log, env=environment
            )
            watch = Watch(process.pid, weights)
            code = process.wait()
            watch.stop()
    finally:
        shutil.rmtree(weights, ignore_errors=True)
    if code:
        raise SystemExit(f"arealite ended with {code}:\n{(folder / 'ours.log').read_text()}")
    lines = (folder / "runs/memory/trial0/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "reward/mean" in row]
    told = {
        key: [round(row[key], 4) for row in rows]
        for key in ("loss/grad_norm", "loss/mismatch_kl", "time/update_s", "rollout/tokens")
    }
    return summary(watch.samples, [row["time"] for row in rows]) | told


def theirs(python: str, folder: Path, steps: int, shape: Shape) -> dict[str, Any]:
    """TRL, or why not."""
    script = Path(__file__).with_name("memory_trl.py")
    settings = [str(v) for v in (folder, steps, shape.answer, GROUP, RANK)]
    with (folder / "trl.log").open("w") as log:
        process = subprocess.Popen([python, str(script), *settings], stdout=log, stderr=log)
        watch = Watch(process.pid)
        code = process.wait()
        watch.stop()
    text = (folder / "trl.log").read_text()
    if code:
        print(f"TRL IS NOT MEASURED: it ended with {code}:\n{text[-2000:]}", file=sys.stderr)
        return {"not_measured": f"exit {code}"}
    ends = [float(when) for when in re.findall(r"STEP ([\d.]+)", text)]  # amid a progress bar
    return summary(watch.samples, ends)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trl", default="", help="interpreter of an environment that has TRL")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--keep", type=Path, help="make model, runs and logs there, and leave them")
    parser.add_argument("--out", type=Path, help="folder for memory-lora-<date>.json")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SMALL if options.small else Shape()
    if options.make:
        make(options.make, shape)
        return
    folder = options.keep or Path(tempfile.mkdtemp(prefix="memory-lora-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / "rows.jsonl").exists():
            again = ["--small"] if options.small else []
            subprocess.run([sys.executable, __file__, "--make", str(folder), *again], check=True)
        result: dict[str, Any] = {"shape": shape._asdict(), "steps": options.steps}
        result["arealite"] = ours(folder, options.steps, shape)
        if options.trl:
            result["trl"] = theirs(options.trl, folder, options.steps, shape)
        else:
            print("TRL IS NOT MEASURED: give --trl PYTHON", file=sys.stderr)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=1))
    save(options.out, "memory-lora", result)


if __name__ == "__main__":
    main()
