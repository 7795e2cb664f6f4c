"""YAML and dotted overrides -> Config. Every mistake is one sentence with its place and remedy."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arealite.config import secrets
from arealite.config.check import check
from arealite.config.presets import PRESETS, keys_of
from arealite.config.schema import Config
from arealite.config.source import Places, parse, read, split
from arealite.errors import ConfigError


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, merges, resolves and checks. Raises ConfigError."""
    path = Path(path)
    written, places = read(path)
    OmegaConf.register_resolver(
        "here", lambda name="": str(path.parent / name), replace=True, use_cache=False
    )
    with _explained(written, places):
        tree = OmegaConf.create(written)
    _check_keys(tree, places)
    for override in overrides:
        _apply(override, tree, places)
    _check_keys(tree, places)
    config = _to_config(tree, places)
    secrets.remember(OmegaConf.to_container(tree), dataclasses.asdict(config))
    for key, _ in keys_of(PRESETS[config.actor.algorithm]):
        places.setdefault(key, f"actor.algorithm: {config.actor.algorithm}")
    check(config, lambda key: _place(key, places, path))
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, with secrets masked."""
    shown = secrets.masked("", dataclasses.asdict(config))
    return str(yaml.safe_dump(shown, sort_keys=False))


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
            if inner is None or OmegaConf.is_missing(node, key):
                continue
            is_list = "list" in str(hints[key])
            if OmegaConf.is_dict(value) and not is_list and not value._is_interpolation():
                walk(value, inner, f"{dotted}.")
            elif OmegaConf.is_list(value) and is_list and not value._is_interpolation():
                for index, item in enumerate(value):
                    if OmegaConf.is_dict(item):
                        walk(item, inner, f"{dotted}[{index}].")
            elif not value._is_interpolation():
                raise ConfigError(
                    f"{_place(dotted, places)}: {dotted} is a section with keys of its own "
                    f"({', '.join(list(typing.get_type_hints(inner))[:4])}, ...), "
                    f"not {'null' if value._is_none() else repr(value._value())}"
                )

    walk(tree, Config, "")


def _apply(override: str, tree: Any, places: Places) -> None:
    """Writes one override into the tree; its key is checked first, so that it can be named."""
    key, text = split(override)
    places[key] = place = f"the override {override!r}"
    annotation = _annotation(key, place)
    for part in re.finditer(r"\[", key):  # the library would make a mapping of it
        items = OmegaConf.select(tree, key[: part.start()], default=[])
        index = key[part.end() :].partition("]")[0]
        if not (index.isdigit() and int(index) < len(items)):
            raise ConfigError(
                f"{place}: {key[: part.start()]} has {len(items)} items, counted from 0"
            )
    value = parse(text)
    if annotation in (str, str | None) and not isinstance(value, str | None):
        value = text  # a run named 007 is not named 7
    with _explained(tree, places, key):
        OmegaConf.update(tree, key, value, merge=isinstance(value, dict), force_add=True)


def _annotation(key: str, place: str) -> Any:
    """The type of the setting that an override names. Raises ConfigError when there is none."""
    hints = typing.get_type_hints(Config)
    parts = key.split(".")
    for depth, part in enumerate(parts):
        name, index, _ = part.partition("[")
        if name not in hints or (index and "list" not in str(hints[name])):
            raise _unknown(key, place)
        inner = _section_type(hints[name])
        last = depth + 1 == len(parts)
        if inner is None:
            if not last and "dict" not in str(hints[name]):
                raise _unknown(key, place)
            return hints[name] if last else Any
        if last:
            return inner
        hints = typing.get_type_hints(inner)
    return None


def _unknown(key: str, place: str) -> ConfigError:
    if key in _known_keys():  # "actor.path: x" in a file: the dot is part of one key there
        section, _, leaf = key.rpartition(".")
        return ConfigError(f"{place}: in a file, {key} is written as {leaf}, inside {section}")
    best = _nearest(re.sub(r"\[\d+\]", "", key))
    remedy = f"did you mean {best}?" if best else "see docs/configuration.md for the known keys"
    return ConfigError(f"{place}: there is no setting {key}; {remedy}")


def _nearest(key: str) -> str:
    """A like name in the same section, the same name elsewhere, a like name anywhere, or ""."""
    known = list(_known_keys())
    head, _, leaf = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == head]
    for near in difflib.get_close_matches(leaf, siblings, 1, 0.6):
        return f"{head}.{near}" if head else near
    for elsewhere in known:
        if elsewhere.rpartition(".")[2] == leaf:
            return elsewhere
    return next(iter(difflib.get_close_matches(key, known, 1, 0.5)), "")


def _place(key: str, places: Places, default: Path | str = "the configuration") -> str:
    """Where a key, or the nearest section around it, was written."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition("[" if key.endswith("]") else ".")[0]
    return str(default)


def _to_config(tree: Any, places: Places) -> Config:
    with _explained(tree, places):
        written = OmegaConf.merge(_schema(), tree)
        preset = PRESETS[OmegaConf.select(written, "actor.algorithm")]
        merged = OmegaConf.merge(_schema(), preset, tree)
        resolved = OmegaConf.to_container(merged, resolve=True)
        try:
            config = OmegaConf.to_object(OmegaConf.merge(_schema(), OmegaConf.create(resolved)))
        except ValueError as error:  # the sampling parameters' own check
            if isinstance(error, OmegaConfBaseException):
                raise
            key = f"gconfig.{str(error).split(' ')[0]}"
            raise ConfigError(f"{_place(key, places)}: gconfig.{error}") from None
    assert isinstance(config, Config)
    return config


@contextmanager
def _explained(tree: Any, places: Places, key: str = "") -> Iterator[None]:
    """The library's errors become sentences that name the setting and its place."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise _type_error(error, tree, places) from None
    except TypeError as error:  # a list where a mapping belongs, or the other way round
        key = key or next(_culprits(tree), "")
        raise ConfigError(
            f"{_place(key, places)}: {key or 'a value'}: {error}{_wanted(key)}"
        ) from None


def _schema() -> Any:
    schema = OmegaConf.structured(Config)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses make it read-only
    return schema


def _type_error(error: OmegaConfBaseException, tree: Any, places: Places) -> ConfigError:
    key = str(error.full_key or "")
    reason = str(error).split("\n")[0]
    if not key:  # the library names no key inside sequences and sections: find it by merging alone
        key = next(_culprits(tree), "")
    elif key.partition(".")[0] not in typing.get_type_hints(Config):  # ... or only its last part
        inside = (k for k in places if k.endswith(f"].{key}"))
        key = next((k for k in inside if str(OmegaConf.select(tree, k)) in reason), key)
    if "$VALUE" in reason:  # the library leaves its template open for items of sequences
        reason = reason.replace("Value '$VALUE' of type '$VALUE_TYPE'", "an item")
    if "Interpolation" in type(error).__name__ or "nterpolation" in reason:
        key = next(_unresolvable(tree), key)
        reason += " (${section.key} names another setting, ${oc.env:NAME} a variable)"
    return ConfigError(f"{_place(key, places)}: {key or 'a value'}: {reason}{_wanted(key)}")


def _unresolvable(tree: Any) -> Iterator[str]:
    """Keys whose own ${...} has no value; not those that only refer to such a key."""
    with suppress(OmegaConfBaseException):
        whole = OmegaConf.merge(_schema(), tree)  # what is written may refer to defaults
        broken = {}
        for key, text in _interpolations(OmegaConf.to_container(tree)):
            try:
                OmegaConf.select(whole, key)
            except OmegaConfBaseException:
                broken[key] = text
        for key, text in broken.items():
            if not any(f"${{{other}}}" in text for other in broken if other != key):
                yield key


def _interpolations(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _interpolations(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _interpolations(item, f"{key}[{index}]")
    elif isinstance(value, str) and "${" in value:
        yield key, value


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
        except (OmegaConfBaseException, TypeError):
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
