"""Supervised fine-tuning: the completion and the end token are learned, the prompt is not."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from training_support import config_for, tiny_model, tiny_tokenizer

from arealite.data.micro_batch import micro_batches
from arealite.errors import ConfigError
from arealite.training.policy import Policy
from arealite.training.sft import cross_entropy, epochs, to_samples

ROWS = [{"prompt": f"{a}+{b}", "completion": f" = {a + b}"} for a in range(4) for b in range(4)]


class Table:
    """Columns, as the data sets library shows them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self.column_names = list(rows[0])

    def __getitem__(self, column: str) -> list[Any]:
        return [row[column] for row in self._rows]


def test_only_the_completion_is_trained() -> None:
    tokenizer = tiny_tokenizer()
    sample = to_samples(Table([{"prompt": "1+2", "completion": "3"}]), tokenizer, 99, "train")[0]
    prompt = "user:1+2\na:"
    assert tokenizer.decode(sample.tokens).replace(" ", "") == f"{prompt}3<eos>".replace(" ", "")
    assert [sample.tokens[i] for i in sample.trained] == [
        tokenizer.convert_tokens_to_ids("3"),
        tokenizer.eos_token_id,
    ]
    assert len(sample.behave) == 2


def test_chat_messages_and_plain_tokenizers() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = Table([{"prompt": messages, "completion": "x"}])
    chat = to_samples(rows, tiny_tokenizer(), 99, "train")[0]
    plain = to_samples(rows, tiny_tokenizer(chat=False), 99, "train")[0]
    assert len(chat.tokens) == len("system:s\nuser:u\na:x") + 1
    assert len(plain.tokens) == len("sux") + 1


def test_a_tokenizer_without_an_end_token_is_told() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"^tokenizer_path: the tokenizer has no eos_token, "):
        to_samples(Table(ROWS), tokenizer, 99, "train")


def test_a_prompt_that_the_chat_template_refuses_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('no such role\nat all') }}"
        "{% endif %}{{ messages[0]['content'] }}"
    )
    rows = Table([ROWS[0], {"prompt": "bad", "completion": "x"}])
    with pytest.raises(
        ConfigError, match=r"^train: row 1: the tokenizer's chat template .*: no such role; change"
    ):
        to_samples(rows, tokenizer, 99, "train")


def test_a_missing_column_and_a_row_too_long_are_named() -> None:
    with pytest.raises(ConfigError, match=r"train.path: rows need .* they have question, answer"):
        to_samples(Table([{"question": "", "answer": ""}]), tiny_tokenizer(), 9, "train")
    long = Table([ROWS[0], {"prompt": "1", "completion": "2" * 50}])
    with pytest.raises(ConfigError, match=r"row 1 has 60 tokens, more than train.max_length = 40"):
        to_samples(long, tiny_tokenizer(), 40, "train")


def test_behind_an_empty_prompt_the_first_token_is_context() -> None:
    rows = Table([{"prompt": "", "completion": "12"}])
    tokenizer = tiny_tokenizer(chat=False)
    sample = to_samples(rows, tokenizer, 99, "train")[0]
    assert len(sample.tokens) == 3
    assert list(sample.trained) == [1, 2]
    assert len(sample.behave) == 2
    empty = Table([ROWS[0], {"prompt": "", "completion": ""}])
    with pytest.raises(ConfigError, match="train: row 1 has nothing to learn"):
        to_samples(empty, tokenizer, 99, "train")


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        (None, "null"),
        (7, "7"),
        ([], r"\[\]"),
        (["hello"], r'\["hello"\]'),
        ([{"role": "user"}], r'\[{"role": "user"}\]'),
        ([{"role": "user", "content": None}], r'\[{"role": "user", "content": null}\]'),
        ({"content": "x" * 99}, r'{"content": "x{44}\.\.\.'),
    ],
)
def test_a_prompt_that_is_neither_text_nor_messages_is_named(prompt: Any, shown: str) -> None:
    rows = Table([ROWS[0], {"prompt": prompt, "completion": "x"}])
    with pytest.raises(ConfigError, match=f"train: row 1: prompt is {shown}; give text, or"):
        to_samples(rows, tiny_tokenizer(), 99, "train")


@pytest.mark.parametrize(("answer", "shown"), [(None, "null"), (7, "7"), (["x"], r'\["x"\]')])
def test_a_completion_that_is_no_text_is_named(answer: Any, shown: str) -> None:
    rows = Table([ROWS[0], {"prompt": "x", "completion": answer}])
    with pytest.raises(ConfigError, match=f"train: row 1: completion is {shown}; give text"):
        to_samples(rows, tiny_tokenizer(), 99, "train")


def test_epochs_see_every_row_once_in_an_order_fixed_by_the_seed() -> None:
    samples = to_samples(Table(ROWS), tiny_tokenizer(), 99, "train")
    first, again = list(islice(epochs(samples, 4, 7), 8)), list(islice(epochs(samples, 4, 7), 8))
    assert [b.samples for b in first] == [b.samples for b in again]
    order = [id(s) for b in first[:4] for s in b.samples]
    second = [id(s) for b in first[4:] for s in b.samples]
    assert sorted(order) == sorted(second) == sorted(map(id, samples))
    assert order != second
    assert order != [id(s) for b in islice(epochs(samples, 4, 8), 4) for s in b.samples]
    assert all(b.n_tokens == sum(len(s.trained) for s in b.samples) for b in first)


def test_without_shuffle_rows_keep_their_own_order() -> None:
    samples = to_samples(Table(ROWS), tiny_tokenizer(), 99, "train")
    batches = islice(epochs(samples, 4, 7, shuffle=False), 8)
    assert [id(s) for b in batches for s in b.samples] == [id(s) for s in samples] * 2


def test_an_incomplete_batch_is_left_out_and_too_few_rows_are_told() -> None:
    samples = to_samples(Table(ROWS[:5]), tiny_tokenizer(), 99, "train")
    assert [len(b.samples) for b in islice(epochs(samples, 2, 0), 4)] == [2, 2, 2, 2]
    with pytest.raises(ConfigError, match="5 rows are too few for one batch of 6"):
        next(epochs(samples, 6, 0))


def test_the_loss_is_the_models_own_cross_entropy() -> None:
    samples = to_samples(Table(ROWS[:4]), tiny_tokenizer(), 99, "train")
    policy = Policy(tiny_model(), config_for(lr=0.0), 1)
    batch = next(epochs(samples, 4, 0))
    found = policy.update(batch, cross_entropy)["loss/policy"]
    (micro,) = micro_batches(batch.samples, 10**6)
    labels = torch.full_like(micro.input_ids, -100)
    labels.view(-1)[micro.source] = micro.targets
    expected = tiny_model()(input_ids=micro.input_ids, labels=labels, shift_labels=labels).loss
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)


def test_it_learns() -> None:
    samples = to_samples(Table(ROWS), tiny_tokenizer(), 99, "train")
    policy = Policy(tiny_model(), config_for(lr=1e-2), 30)
    losses = [
        policy.update(batch, cross_entropy)["loss/policy"]
        for batch in islice(epochs(samples, 8, 0), 30)
    ]
    assert losses[-1] < 0.5 * losses[0]
