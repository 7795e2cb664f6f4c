"""Hugging Face models and tokenizers, loaded with errors that name the setting."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from arealite.config import ActorConfig, Config
from arealite.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(config: ActorConfig, path: str = "", key: str = "actor.path") -> nn.Module:
    """The causal language model of actor.path, without dropout. Raises ConfigError.

    path, key: another model, and the setting that names it."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar per published version is noise in a log
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("actor.device: cuda was asked for, but torch sees no GPU; use cpu")
    load = AutoModelForCausalLM.from_pretrained
    model = _loaded(key, load, path or config.path, dtype=DTYPES[config.dtype])
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return _quiet(model.to(config.device))


def load_reference(config: Config, policy: nn.Module) -> nn.Module | None:
    """The frozen model of ref.path, where actor.kl_ctl asks for one; else None. With LoRA it is the
    policy without its adapter, and None here.

    Raises ConfigError when it cannot be loaded, or does not know the same tokens as the policy.
    """
    if config.mode != "rl" or config.actor.kl_ctl == 0.0 or config.actor.lora.rank > 0:
        return None
    actor = replace(config.actor, gradient_checkpointing=False)
    return load_beside(actor, config.ref.path, "ref.path", policy).requires_grad_(False)


def load_beside(config: ActorConfig, path: str, key: str, policy: nn.Module) -> nn.Module:
    """Another model that reads what the policy writes.

    Raises ConfigError when it cannot be loaded, or does not know the same tokens as the policy.
    """
    model = load_model(config, path, key)
    theirs, ours = vocabulary_of(model), vocabulary_of(policy)
    if theirs != ours:
        raise ConfigError(
            f"{key}: {path} has {theirs} tokens, but the model of actor.path has {ours}; "
            "give a model of the same vocabulary"
        )
    return model


def vocabulary_of(model: nn.Module) -> int:
    """How many token ids a Hugging Face model has."""
    return int(model.config.get_text_config().vocab_size)  # type: ignore[operator,union-attr]


def _quiet(model: nn.Module) -> nn.Module:
    """Without dropout of any kind: a ratio compares two forwards, and the engine has none.

    That is evaluation mode, also for what no nn.Dropout does (attention_dropout, layerdrop); the
    config stays as it is, since it is saved with the model.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # transformers recomputes only then; its parts stay quiet
    return model


def load_tokenizer(path: str) -> Any:
    """The tokenizer of tokenizer_path, which is actor.path by default. Raises ConfigError."""
    from transformers import AutoTokenizer

    return _loaded("tokenizer_path", AutoTokenizer.from_pretrained, path)


def _loaded(key: str, load: Any, path: str, **options: Any) -> Any:
    is_folder = Path(path).is_dir()
    if not is_folder and (path.startswith((".", "/", "~")) or Path(path).exists()):
        raise ConfigError(f"{key}: {path}: there is no such folder")
    try:
        return load(os.path.expanduser(path), **options)
    except Exception as error:  # the hub client and the parsers raise a dozen types
        what = path if is_folder else f"there is no folder {path} here, and taken as a hub id it"
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{key}: {what} cannot be loaded: {reason} "
            "(give a Hugging Face folder, or a hub id that this machine can reach)"
        ) from None


def use_threads(n: int | None) -> None:
    """Limits torch's CPU threads; None leaves torch's own choice."""
    if n is not None:
        torch.set_num_threads(n)
