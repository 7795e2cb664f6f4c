"""YAML and dotted overrides -> Config. Every mistake is one sentence with its place and remedy."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arealite.config.check import check
from arealite.config.schema import Config
from arealite.errors import ConfigError

Places = dict[str, str]
"""Dotted key -> where it was written, for people: "x.yaml, line 7"."""

_SECRET_KEY = re.compile(r"(^|_)(api_?key|token|secret|password)$", re.IGNORECASE)
_SECRET_ENV = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, merges, resolves and checks. Raises ConfigError."""
    path = Path(path)
    written, places = _read(path)
    OmegaConf.register_resolver(
        "here", lambda name="": str(path.parent / name), replace=True, use_cache=False
    )
    tree = OmegaConf.create(written)
    _check_keys(tree, places)
    for override in overrides:
        key, value = _split(override)
        places[key] = f"the override {override!r}"
        _check_key(key, places[key])
        OmegaConf.update(tree, key, value, force_add=True)
    _check_keys(tree, places)
    config = _to_config(tree, places)
    check(config, lambda key: _place(key, places, path))
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, with secrets masked."""
    secrets = {
        value
        for name, value in os.environ.items()
        if _SECRET_ENV.search(name.upper()) and len(value) >= 6
    }

    def masked(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: masked(k, v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [masked(key, v) for v in value]
        if isinstance(value, str):
            if value and _SECRET_KEY.search(key):
                return "***"
            for secret in secrets:
                value = value.replace(secret, "***")
        return value

    return str(yaml.safe_dump(masked("", dataclasses.asdict(config)), sort_keys=False))


def _read(path: Path) -> tuple[dict[str, Any], Places]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give one with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise ConfigError(f"{path}{where}: this is not valid YAML: {problem}") from None
    if node is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file must hold keys and values, like `seed: 1`")
    return tree, dict(_places(node, "", path))


def _places(node: yaml.Node, prefix: str, path: Path) -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            yield key, f"{path}, line {key_node.start_mark.line + 1}"
            yield from _places(value_node, f"{key}.", path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            key = f"{prefix[:-1]}[{index}]"
            yield key, f"{path}, line {item.start_mark.line + 1}"
            yield from _places(item, f"{key}.", path)


def _split(override: str) -> tuple[str, Any]:
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{override!r} is not an override; write section.key=value")
    try:
        return key.strip(), yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        return key.strip(), value


def _section_type(annotation: Any) -> Any:
    """The dataclass inside an annotation such as `X`, `X | None` or `list[X]`, or None."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _known_keys(cls: Any = Config, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        yield f"{prefix}{f.name}"
        inner = _section_type(hints[f.name])
        if inner:
            yield from _known_keys(inner, f"{prefix}{f.name}.")


def _check_keys(tree: Any, places: Places) -> None:
    def walk(node: Any, cls: Any, prefix: str) -> None:
        hints = typing.get_type_hints(cls)
        for key in node:
            dotted = f"{prefix}{key}"
            if key not in hints:
                raise _unknown(dotted, _place(dotted, places))
            inner = _section_type(hints[key])
            value = node._get_node(key)
            if inner is None or OmegaConf.is_missing(node, key) or value is None:
                continue
            if OmegaConf.is_dict(value) and not value._is_interpolation():
                walk(value, inner, f"{dotted}.")
            elif OmegaConf.is_list(value) and not value._is_interpolation():
                for index, item in enumerate(value):
                    if OmegaConf.is_dict(item):
                        walk(item, inner, f"{dotted}[{index}].")
            elif not value._is_interpolation() and value._value() is not None:
                raise ConfigError(
                    f"{_place(dotted, places)}: {dotted} is a section with keys of its own "
                    f"({', '.join(list(typing.get_type_hints(inner))[:4])}, ...), "
                    f"not {value._value()!r}"
                )

    walk(tree, Config, "")


def _check_key(key: str, place: str) -> None:
    """An override's key is checked before it is merged, so that the message can name it."""
    cls: Any = Config
    hints = typing.get_type_hints(cls)
    parts = key.split(".")
    for depth, part in enumerate(parts):
        name = part.split("[")[0]
        if name not in hints:
            raise _unknown(key, place)
        inner = _section_type(hints[name])
        if inner is None:
            if depth + 1 < len(parts) and "dict" not in str(hints[name]):
                raise _unknown(key, place)
            return
        hints = typing.get_type_hints(inner)


def _unknown(key: str, place: str) -> ConfigError:
    known = list(_known_keys())
    head, _, leaf = key.rpartition(".")
    head = re.sub(r"\[\d+\]", "", head)
    siblings = [k for k in known if k.rpartition(".")[0] == head]
    by_leaf = {k.rpartition(".")[2]: k for k in reversed(siblings)}
    near = difflib.get_close_matches(leaf, by_leaf, 1, 0.5)
    best = (
        by_leaf[near[0]] if near else next(iter(difflib.get_close_matches(key, known, 1, 0.4)), "")
    )
    if not best:  # the right name in the wrong section
        best = next((k for k in known if k.rpartition(".")[2] == leaf), "")
    remedy = f"did you mean {best}?" if best else "see docs/configuration.md for the known keys"
    return ConfigError(f"{place}: there is no setting {key}; {remedy}")


def _place(key: str, places: Places, default: Path | str = "the configuration") -> str:
    """Where a key, or the nearest section around it, was written."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return str(default)


def _to_config(tree: Any, places: Places) -> Config:
    try:
        merged = OmegaConf.merge(_schema(), tree)
        resolved = OmegaConf.to_container(merged, resolve=True)
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), OmegaConf.create(resolved)))
    except OmegaConfBaseException as error:
        raise _type_error(error, tree, places) from None
    except ValueError as error:  # a dataclass's own check
        key = next((k for k in places if k.rpartition(".")[2] == str(error).split(" ")[0]), "")
        raise ConfigError(f"{_place(key, places)}: {error}") from None
    assert isinstance(config, Config)
    return config


def _schema() -> Any:
    schema = OmegaConf.structured(Config)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses make it read-only
    return schema


def _type_error(error: OmegaConfBaseException, tree: Any, places: Places) -> ConfigError:
    key = str(error.full_key or "")
    if not key:  # the library names no key inside sequences and sections: find it by merging alone
        key = next(_culprits(tree), "")
    reason = str(error).split("\n")[0]
    if "$VALUE" in reason:  # the library leaves its template open for items of sequences
        reason = reason.replace("Value '$VALUE' of type '$VALUE_TYPE'", "an item")
    if "Interpolation" in type(error).__name__ or "nterpolation" in reason:
        reason += " (${section.key} names another setting, ${oc.env:NAME} a variable)"
    return ConfigError(f"{_place(key, places)}: {key or 'a value'}: {reason}{_wanted(key)}")


def _culprits(tree: Any) -> Iterator[str]:
    for key in _known_keys():
        value = OmegaConf.select(tree, key, default=None, throw_on_resolution_failure=False)
        if value is None or OmegaConf.is_dict(value):
            continue
        alone: Any = value
        for part in reversed(key.split(".")):
            alone = {part: alone}
        try:
            OmegaConf.merge(_schema(), OmegaConf.create(alone))
        except OmegaConfBaseException:
            yield key


def _wanted(key: str) -> str:
    """What the setting is, from its field's own text."""
    cls: Any = Config
    text = ""
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        found = {f.name: f for f in dataclasses.fields(cls)} if cls else {}
        if part not in found:
            return ""
        text = found[part].metadata.get("help", "")
        cls = _section_type(typing.get_type_hints(cls)[part])
    return f". It is: {text}" if text else ""
