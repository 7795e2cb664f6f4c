"""What must not be shown: settings named like secrets, and what the environment gave.

The values are known to the whole process: what is secret in one place is so wherever it turns up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"
_SHORTEST = 6
"""A shorter value stands inside too many words to be masked there."""

_NAME = re.compile(r"key$|auth(?!ors?$)|cred|passw|secret|token(?!s|iz|_ids?$)", re.IGNORECASE)
_HARMLESS = {"prompt_key", "answer_key"}  # names of columns
_ENV = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]+)")
_OPTION = re.compile(
    r"""(?<![\w-])(--?[\w-]+(?:=|\s+)|\w+=)(?!-)('[^']*'|"[^"]*"|[^\s'"]+)""",
)

_known: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether a setting, variable or option of this name holds a secret."""
    return name not in _HARMLESS and bool(_NAME.search(name))


def remember(written: Any, resolved: Any) -> None:
    """Notes the secrets of a configuration, from its tree as written and as resolved."""
    for _, text in _texts("", written):
        _note(os.environ.get(name, "") for name in _ENV.findall(text))
    _note(text for key, text in _texts("", resolved) if is_secret(key))


def hide(text: str) -> str:
    """The text with what is known to be secret masked."""
    named = {value for name, value in os.environ.items() if is_secret(name) and _long(value)}
    for secret in sorted(named | _known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def hide_command(line: str) -> str:
    """A command line with the values of options such as --api-key masked, too."""

    def covered(found: re.Match[str]) -> str:
        name = found[1].strip("-= \t\n").replace("-", "_")
        return f"{found[1]}{MASK}" if is_secret(name) else found[0]

    return hide(_OPTION.sub(covered, line))


def masked(key: str, value: Any) -> Any:
    """A setting's value, of any type, as it may be shown."""
    if isinstance(value, dict):
        return {k: masked(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(key, v) for v in value]
    if not isinstance(value, str) or not value:
        return value
    if is_secret(key):
        return MASK
    return hide_command(value) if key == "run" else hide(value)


def _note(values: Iterator[str]) -> None:
    _known.update(value for value in values if _long(value))


def _long(value: str) -> bool:
    """Also no path that is there: HOME and the like are places, and a run is found by them."""
    return len(value) >= _SHORTEST and not (value.startswith("/") and os.path.exists(value))


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(str(name), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(key, item)
    elif isinstance(value, str):
        yield key, value
