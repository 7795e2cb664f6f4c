"""How a setting is declared: its default and its text."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def opt(default: Any, text: str) -> Any:
    """A field with its default and its one-line meaning."""
    if isinstance(default, dict | list):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


def section(cls: type, text: str) -> Any:
    """A field that holds a section, with the section's own defaults."""
    return field(default_factory=cls, metadata={"help": text})
