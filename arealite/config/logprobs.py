"""Whether the trainer computes what the servers report: the same log-probability, of each token.

The trainer's is always of softmax(logits / temperature) over all tokens (training/logprobs). A
server's depends on the program and its flags; where it is another one, importance ratios would be
wrong without any error, so such settings are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from arealite.config.schema import RolloutConfig
from arealite.types import GenerationHyperparameters, LogprobMeaning

VLLM_MODES: dict[str, LogprobMeaning] = {
    "raw_logprobs": "raw",
    "processed_logprobs": "processed",
}
"""What each value of vLLM's --logprobs-mode means."""


def launched_meaning(rollout: RolloutConfig) -> LogprobMeaning | None:
    """What servers report that are launched with these settings; None: it has to be asked.

    vLLM is launched with processed log-probabilities, unless rollout.server_args say otherwise.
    """
    if rollout.backend == "embedded":
        return "temperature"
    if rollout.backend == "sglang":
        return "barred"
    if rollout.servers:
        return None
    return VLLM_MODES.get(option(rollout.server_args, "--logprobs-mode") or "processed_logprobs")


def option(arguments: Sequence[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, the last one given."""
    found = None
    for i, word in enumerate(arguments):
        if word == name and i + 1 < len(arguments):
            found = arguments[i + 1]
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def untrainable(
    meaning: LogprobMeaning, gconfig: GenerationHyperparameters
) -> tuple[str, str] | None:
    """The setting that parts the servers' log-probabilities from the trainer's, and why."""
    cut = "top_p" if gconfig.top_p < 1 else "top_k" if gconfig.top_k > 0 else ""
    if meaning == "raw" and gconfig.temperature != 1:
        return "gconfig.temperature", (
            f"it is {gconfig.temperature:g}, but the servers report log-probabilities of "
            "temperature 1 (raw), and the trainer computes those of the temperature that is "
            "sampled with: set 1, or start vLLM with --logprobs-mode processed_logprobs"
        )
    if meaning == "raw" and cut:
        return f"gconfig.{cut}", (
            f"it is {getattr(gconfig, cut):g}, but the servers report log-probabilities from "
            "before the cut (raw), which are not of what they sample from: keep all tokens "
            "(top_p 1, top_k -1)"
        )
    if meaning == "processed" and cut:
        return f"gconfig.{cut}", (
            f"it is {getattr(gconfig, cut):g}, but the servers report log-probabilities that are "
            "renormalised over the tokens kept (processed), and the trainer computes them over all "
            "tokens: keep all tokens (top_p 1, top_k -1)"
        )
    if meaning in ("barred", "processed") and gconfig.min_new_tokens > 0:
        return "gconfig.min_new_tokens", (
            f"it is {gconfig.min_new_tokens}, but up to there the servers report log-probabilities "
            "without the stop tokens, and the trainer computes them over all tokens: set 0, or use "
            "the embedded servers"
        )
    return None
