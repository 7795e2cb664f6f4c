"""Supervised fine-tuning: rows of prompt and completion, loss on the completion only.

It shares the policy's step with reinforcement learning; only the loss differs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from arealite.data.batch import Batch, Sample
from arealite.data.chat import Message, render
from arealite.data.micro_batch import MicroBatch
from arealite.errors import ConfigError


def cross_entropy(logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed negative log-likelihood of the completions' tokens."""
    return -logprobs.sum(), {}


def to_samples(rows: Any, tokenizer: Any, max_length: int, section: str) -> list[Sample]:
    """Tokenised rows. The prompt is a user's turn of the chat template; the end token is learned.

    rows: columns `prompt` (text or chat messages) and `completion` (text). Raises
    ConfigError naming the row (counted from 0) that cannot be used.
    """
    for column in ("prompt", "completion"):
        if column not in rows.column_names:
            raise ConfigError(
                f"{section}.path: rows need the columns prompt and completion, "
                f"they have {', '.join(rows.column_names)}"
            )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer_path: {tokenizer.name_or_path or 'the tokenizer'} has no eos_token, the "
            "token that every completion learns to end with; name one in its tokenizer_config.json"
        )
    asked, said = (rows[column][:] for column in ("prompt", "completion"))  # a row each is slow
    _check_rows(asked, said, section)
    prompts = _encode(tokenizer, list(_chats(asked, tokenizer, section)))
    answers = _encode(tokenizer, said)
    samples = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = [*prompt, *answer, tokenizer.eos_token_id]
        if len(tokens) > max_length:
            raise ConfigError(
                f"{section}: row {index} has {len(tokens)} tokens, more than {section}.max_length "
                f"= {max_length}; raise it or shorten the row"
            )
        trained = range(max(len(prompt), 1), len(tokens))  # nothing predicts the first token
        if not trained:
            raise ConfigError(
                f"{section}: row {index} has nothing to learn: its prompt and its completion are "
                "empty; leave it out"
            )
        samples.append(Sample(tokens, trained, [0.0] * len(trained), 1.0))
    return samples


def _check_rows(prompts: Sequence[Any], answers: Sequence[Any], section: str) -> None:
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not isinstance(prompt, str) and not _are_messages(prompt):
            raise ConfigError(
                f"{section}: row {index}: prompt is {_shown(prompt)}; give text, or a list of chat "
                "messages, each with role and content as text"
            )
        if not isinstance(answer, str):
            raise ConfigError(f"{section}: row {index}: completion is {_shown(answer)}; give text")


def _are_messages(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in prompt
        )
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def epochs(
    samples: Sequence[Sample], batch_size: int, seed: int, shuffle: bool = True
) -> Iterator[Batch]:
    """Endless batches in an order fixed by the seed; a last incomplete batch is left out.

    Without shuffle every epoch is in the rows' own order. Raises ConfigError where the rows are
    too few for one batch.
    """
    if len(samples) < batch_size:
        raise ConfigError(f"{len(samples)} rows are too few for one batch of {batch_size}")
    epoch = 0
    while True:
        order = list(range(len(samples)))
        if shuffle:
            random.Random(f"{seed}:{epoch}").shuffle(order)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = [samples[i] for i in order[start : start + batch_size]]
            yield Batch(chosen, sum(len(s.trained) for s in chosen))
        epoch += 1


def _chats(prompts: Iterable[Any], tokenizer: Any, section: str) -> Iterator[str]:
    if tokenizer.chat_template is None:
        for prompt in prompts:
            yield prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt)
        return
    known: dict[str, str] = {}  # demonstrations share prompts, and a template takes its time
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if prompt not in known:
                messages = [{"role": "user", "content": prompt}]
                known[prompt] = _rendered(tokenizer, messages, f"{section}: row {index}")
            yield known[prompt]
        else:
            yield _rendered(tokenizer, prompt, f"{section}: row {index}")


def _rendered(tokenizer: Any, messages: Sequence[Message], where: str) -> str:
    try:
        return render(tokenizer, messages)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {error}; change the row, or give another tokenizer_path"
        ) from None


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Demonstrations often share their prompts: each text is looked at once."""
    distinct = list(dict.fromkeys(texts))
    ids = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    known = dict(zip(distinct, ids, strict=True))
    return [known[text] for text in texts]
