"""The model card of a saved model (README.md): how it was trained, what it earned, how to use it.

Made of the configuration and the run's metrics alone; what is not known is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from arealite.config import Config
from arealite.config.secrets import hide
from arealite.telemetry.metrics import evaluation_keys, series

METHODS = {
    "grpo": "GRPO", "dr_grpo": "Dr. GRPO", "rloo": "RLOO", "reinforce_pp": "REINFORCE++",
    "dapo": "DAPO", "gspo": "GSPO", "cispo": "CISPO", "sapo": "SAPO", "ppo": "PPO",
}  # fmt: skip
MEAN_OF = 10
"""A batch's reward is noisy: versions over which the first and the last are averaged."""
MOST_PROMPT = 2000

Rows = Sequence[Mapping[str, Any]]


def model_card(
    config: Config, version: int, rows: Rows, prompt: Any = None, is_chat: bool = False
) -> str:
    """Markdown with the hub's front matter. rows: metrics by version, of which those up to this
    version count. prompt: what the first row asks, as the workflow takes it: text or messages."""
    name = Path(config.saver.export).name or f"{config.experiment_name}-{config.trial_name}"
    known = [row for row in rows if row["version"] <= version]
    parts = [
        _front_matter(config),
        f"# {name}, version {version}\n",
        f"{_shown(config.actor.path)} after {version} versions of {_method(config)}, trained by "
        f"arealite as `{config.experiment_name}/{config.trial_name}`.\n",
        "## Training details\n",
        *(f"- {key}: {value}" for key, value in _details(config)),
    ]
    rewards, results = list(_rewards(config)), list(_results(config, known))
    if rewards:
        parts += ["\n## Rewards\n", *(f"- {reward}" for reward in rewards)]
    if results:
        parts += ["\n## Results\n", "| | first | here |\n|---|---|---|", *results]
    parts += ["\n## Usage\n", _usage(config, prompt, is_chat)]
    return hide("\n".join(parts) + "\n")


def _method(config: Config) -> str:
    if config.mode == "sft":
        return "supervised fine-tuning"
    return METHODS[config.actor.algorithm]


def _front_matter(config: Config) -> str:
    """Only what the hub would find: a path of this machine means nothing there."""
    told: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if _is_hub_id(config.actor.path):
        told["base_model"] = config.actor.path
    if _is_hub_id(config.train_dataset.path):
        told["datasets"] = [config.train_dataset.path]
    learned = ["reinforcement-learning", config.actor.algorithm] if config.mode == "rl" else []
    told["tags"] = ["arealite", *learned]
    return f"---\n{yaml.safe_dump(told, sort_keys=False)}---\n"


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/")) and not Path(path).exists()


def _shown(path: str) -> str:
    """Where it lay on this machine is nobody's business."""
    return Path(path).name if Path(path).is_absolute() else path


def _details(config: Config) -> Iterator[tuple[str, object]]:
    optimizer, dataset = config.actor.optimizer, config.train_dataset
    yield "base model", _shown(config.actor.path)
    yield "method", _method(config)
    yield "rows", _shown(dataset.path)
    lora = config.actor.lora
    shape = f"{optimizer.type}, learning rate {optimizer.lr:g} ({optimizer.lr_scheduler_type})"
    yield "optimizer", f"{shape}, gradients clipped at {optimizer.gradient_clipping:g}"
    yield "weights", f"{config.actor.dtype}, seed {config.seed}"
    if lora.rank:
        learned = (
            f"rank {lora.rank}, alpha {lora.alpha:g}, of {', '.join(lora.targets) or 'all layers'}"
        )
        yield "LoRA", f"{learned}; merged, and alone in `adapter/`"
    if config.mode == "sft":
        yield "batch", f"{dataset.batch_size} rows"
        return
    sampling = config.gconfig
    yield "batch", f"{dataset.batch_size} rows x {sampling.n_samples} samples"
    longest = f"at most {sampling.max_new_tokens} tokens"
    yield "sampling", f"temperature {sampling.temperature:g}, {longest}"
    yield "staleness", f"at most {config.rollout.max_head_offpolicyness} versions"
    actor = config.actor
    if actor.adv_baseline == "critic":
        yield "critic", f"learning rate {config.critic.optimizer.lr:g}"
    if actor.kl_ctl:
        yield "KL to the reference", f"{actor.kl_ctl:g} x {actor.kl_estimator} in the {actor.kl_in}"


def _rewards(config: Config) -> Iterator[str]:
    for function in config.reward.functions:
        yield f"{function.weight:g} x {function.component} (`{_shown(function.path)}`)"
    if config.mode == "rl" and config.rollout.reward_fn:
        yield f"`{_shown(config.rollout.reward_fn)}`"


def _results(config: Config, rows: Rows) -> Iterator[str]:
    keys = list(evaluation_keys(rows).values())
    if config.mode == "sft":
        keys.append("eval/valid/loss")
    for key in keys:
        versions, values = series(rows, key)
        if values:
            yield f"| {key} | {values[0]:.3f} | {values[-1]:.3f} (version {versions[-1]}) |"
    names = {key for row in rows for key in row if key.startswith("reward/")}
    for key in [*sorted(names - {"reward/mean"}), "reward/mean"]:
        _, values = series(rows, key)
        if values:
            first, last = values[:MEAN_OF], values[-MEAN_OF:]
            yield f"| {key}, mean of {len(last)} batches | {_mean(first)} | {_mean(last)} |"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}"


def _usage(config: Config, prompt: Any, is_chat: bool) -> str:
    """Code that runs where the folder is the working directory, or where `path` is changed."""
    if is_chat and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    system = config.rollout.workflow_kwargs.get("system")
    if is_chat and isinstance(prompt, list) and system:
        prompt = [{"role": "system", "content": system}, *prompt]
    asked = json.dumps(prompt, ensure_ascii=False)
    if prompt is None or len(asked) > MOST_PROMPT:
        asked = '[{"role": "user", "content": "..."}]' if is_chat else '"..."'
    encode = "text = prompt"
    if is_chat:
        encode = (
            "text = tokenizer.apply_chat_template(\n"
            "    prompt, tokenize=False, add_generation_prompt=True\n)"
        )
    sampling = config.gconfig
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
prompt = {asked}
{encode}
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
answer = model.generate(
    input_ids=inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    max_new_tokens={sampling.max_new_tokens},
    do_sample=True,
    temperature={sampling.temperature:g},
)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
