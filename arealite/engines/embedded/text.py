"""Tokens as text, which only requests with stop strings need."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from arealite.engines.stops import Decode

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""One of them holds a vocabulary; without any transformers makes up an empty tokenizer."""


class NoTokenizer(Exception):
    """The served folder has none that can be loaded; the message is one sentence."""


def load_decode(folder: Path) -> Decode:
    """The decode of the folder's tokenizer, special tokens included. Takes a second or so."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _FILES):
        raise NoTokenizer(f"{folder} has no tokenizer: none of {', '.join(_FILES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the parsers raise a dozen types
        reason = str(error).strip().partition("\n")[0]
        raise NoTokenizer(f"{folder} has a tokenizer that cannot be loaded: {reason}") from None
    return partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
