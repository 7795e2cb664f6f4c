"""What was written, and where: a YAML file and overrides, before their meaning is known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from arealite.errors import ConfigError

Places = dict[str, str]
"""Dotted key -> where it was written, for people: "x.yaml, line 7"."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 2026-01-31 is text, since a run may be named by its day, and so is `off`,
    since settings have it as a value; a setting that is true or false takes it all the same."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, p) for tag, p in resolvers if not tag.endswith((":timestamp", ":bool"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # as YAML 1.2 has it
    "tag:yaml.org,2002:bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read(path: Path) -> tuple[dict[str, Any], Places]:
    """The file's tree and the place of each key. Raises ConfigError."""
    text = _text(path)
    try:
        node = yaml.compose(text, _Loader)
        if node is None:
            return {}, {}
        places = dict(_places(node, "", path, ()))
        tree = yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"{path}{where}: this is not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file must hold keys and values, like `seed: 1`")
    return tree, places


def split(override: str) -> tuple[str, str]:
    """ "section.key=value" -> its two sides. Raises ConfigError."""
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{override!r} is not an override; write section.key=value")
    return key.strip(), value


def parse(value: str) -> Any:
    """An override's value, as it would be read in a file."""
    try:
        return yaml.load(value, _Loader) if value else ""  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError):
        return value


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give one with --config") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: this is not UTF-8 text: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _places(
    node: yaml.Node, prefix: str, path: Path, around: tuple[yaml.Node, ...]
) -> Iterator[tuple[str, str]]:
    """Each key's place; refuses what YAML would let pass without a word."""
    if node in around:
        line = node.start_mark.line + 1
        raise ConfigError(f"{path}, line {line}: an alias inside its own anchor has no end")
    around = (*around, node)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":null"):
                raise ConfigError(f"{path}, line {line}: a key must be a name, like `seed: 1`")
            if key in lines:
                raise ConfigError(
                    f"{path}, line {line}: {key} is given twice, first in line {lines[key]}; "
                    "keep one"
                )
            lines[key] = line
            yield key, f"{path}, line {line}"
            yield from _places(value_node, f"{key}.", path, around)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            key = f"{prefix[:-1]}[{index}]"
            yield key, f"{path}, line {item.start_mark.line + 1}"
            yield from _places(item, f"{key}.", path, around)
