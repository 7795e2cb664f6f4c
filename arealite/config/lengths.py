"""How long sequences may be, as the configuration says."""

from __future__ import annotations

from arealite.config.schema import Config


def context_length(config: Config) -> int:
    """The longest sequence that an engine may have to hold."""
    one_turn = longest_prompt(config) + config.gconfig.max_new_tokens
    return config.rollout.context_length or one_turn


def longest_prompt(config: Config) -> int:
    held_out = config.valid_dataset
    return max(config.train_dataset.max_length, held_out.max_length if held_out.path else 0)
