"""What memory_lora.py starts for comparison: TRL's GRPOTrainer with the same model and settings.

Runs in an environment that has trl; it prints `STEP <time>` at the end of each step.
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Ends(TrainerCallback):  # type: ignore[misc]
    """Tells when a step has ended."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        print(f"STEP {time.time()}", flush=True)


def reward(completions: list[str], **_: Any) -> list[float]:
    return [zlib.crc32(text.encode()) % 101 / 100 for text in completions]


def main() -> None:
    folder = Path(sys.argv[1])
    steps, answer, group, rank = map(int, sys.argv[2:])
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=group // 2,
        num_generations=group,
        max_completion_length=answer,
        generation_kwargs={"min_new_tokens": answer},
        max_steps=steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=True,
        beta=0.0,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    )
    rows = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train")
    settings = LoraConfig(
        r=rank, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=rows.select_columns(["prompt"]),
        processing_class=tokenizer,
        peft_config=settings,
        callbacks=[Ends()],
    )
    trainer.train()


main()  # a script of memory_lora.py's alone: `make bench` passes it by
