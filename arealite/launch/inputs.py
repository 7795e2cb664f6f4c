"""What a run is given by name: files that must be there, and a user's code, looked at unrun."""

from __future__ import annotations

import ast
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from arealite.config import Config
from arealite.errors import ConfigError, require_extra
from arealite.loading import SHIPPED_WORKFLOWS, split_reference
from arealite.rollout.filters import SHIPPED

_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")

Missing = tuple[str, str]
"""(the setting, the path that it names)."""


def missing(config: Config) -> tuple[Missing, ...]:
    """Local files and folders that are not there, and that no prepare step will still make."""
    python = config.rollout.python
    absent = [(key, path) for key, path in _absent(config) if _is_local(path)]
    if python and shutil.which(python) is None and not _is_in(python, _made(config)):
        absent.append(("rollout.python", python))
    return tuple(absent)


def hub_ids(config: Config) -> tuple[Missing, ...]:
    """What is not here and may be a hub id, or else a folder that is missing after all."""
    return tuple((key, path) for key, path in _absent(config) if not _is_local(path))


def _absent(config: Config) -> Iterator[Missing]:
    """What is neither here nor made by a prepare step."""
    named = _models(config) | {
        "train_dataset.path": config.train_dataset.path,
        "valid_dataset.path": config.valid_dataset.path,
    }
    for key in ("tokenizer_path", "ref.path", "critic.path"):
        if named[key] == config.actor.path:  # its default: one line is enough
            del named[key]
    made = _made(config)
    for key, path in named.items():
        if path and not os.path.exists(path) and not _is_made(path, made):
            yield key, path


def _models(config: Config) -> dict[str, str]:
    """The folders that are used, by setting; "" where one is not."""
    return {
        "actor.path": config.actor.path,
        "ref.path": config.ref.path if config.actor.kl_ctl > 0 else "",
        "critic.path": config.critic.path if config.actor.adv_baseline == "critic" else "",
        "tokenizer_path": config.tokenizer_path,
    }


def require(absent: tuple[Missing, ...]) -> None:
    """Raises ConfigError, naming the first setting, unless everything is there."""
    for key, path in absent:
        shell = " (only a shell knows what ~ is)" if path.startswith("~") else ""
        raise ConfigError(
            f"{key}: {path} is not there, and no prepare step makes it{shell}; "
            "correct the path, or make it first"
        )


def check_models(config: Config) -> None:
    """Raises ConfigError for a folder that is here and holds no model, or no tokenizer, and which
    no prepare step will fill."""
    made = _made(config)
    for key, path in _models(config).items():
        names = _TOKENIZER if key == "tokenizer_path" else ("config.json",)
        files = [Path(path) / name for name in names]
        if not path or not Path(path).is_dir() or any(_is_made(str(f), made) for f in files):
            continue
        if not any(file.exists() for file in files):
            raise ConfigError(
                f"{key}: the folder {path} has no {names[0]}; give a Hugging Face folder or hub id"
            )


def check_code(config: Config) -> None:
    """Raises ConfigError where the workflow, the reward or a filter cannot name any code, or LoRA's
    is not installed."""
    if config.actor.lora.rank:
        require_extra("peft", "actor.lora.rank is above 0", "lora")
    if config.mode != "rl":
        return
    made = _made(config)
    for key, reference in (
        ("rollout.workflow", config.rollout.workflow),
        ("rollout.reward_fn", config.rollout.reward_fn),
        *((f"reward.functions[{i}].path", f.path) for i, f in enumerate(config.reward.functions)),
        *(("rollout.filters", name) for name in config.rollout.filters if name not in SHIPPED),
    ):
        if reference:
            _check_reference(f"{key}: ", reference, made)


def _check_reference(key: str, reference: str, made: list[Path]) -> None:
    try:
        module, name = split_reference(reference)
    except ConfigError as error:
        raise ConfigError(f"{key}{error}") from None
    if not module.endswith(".py"):
        file = _file_of(module)
        if file is None:
            raise ConfigError(f"{key}there is no module {module}; correct {reference!r}")
    elif os.path.isfile(module):
        file = Path(module)
    elif _is_in(module, made):
        return
    else:
        raise ConfigError(
            f"{key}{module}: there is no such file (relative paths start at {Path.cwd()})"
        )
    if file.suffix == ".py":
        _check_name(key, file, name)


def _check_name(key: str, file: Path, name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a user's "\d" is told when the file is run
            tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        reason = getattr(error, "msg", None) or error
        raise ConfigError(f"{key}{file}{where}: this is not valid Python: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{key}{file} cannot be read: {error.strerror}") from None
    names = list(dict.fromkeys(_names(tree)))
    if name not in names and "*" not in names and "__getattr__" not in names:
        known = ", ".join(n for n in names if not n.startswith("_")) or "nothing"
        raise ConfigError(f"{key}{file} has no {name!r}; it has {known}")


def _names(node: ast.AST) -> Iterator[str]:
    """What running a module's top level defines, as far as reading can tell."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield from (a.asname or a.name.partition(".")[0] for a in child.names)
        elif isinstance(child, ast.Name):
            if isinstance(child.ctx, ast.Store):
                yield child.id
        else:
            yield from _names(child)


def _file_of(module: str) -> Path | None:
    """Where a module lies, without importing it or the packages around it."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(len(parts)):
        spec = _spec(".".join(parts[: depth + 1]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
        if module.startswith("workflows.") and depth == 0:  # as loading does
            path.append(SHIPPED_WORKFLOWS)
    return Path(spec.origin if spec and spec.origin else module)


def _spec(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    # `python -m` puts the working folder on the trainer's path, also when this process lacks it.
    return PathFinder.find_spec(name, [os.getcwd()]) if path is None else None


def _is_local(path: str) -> bool:
    """Whether it can be no hub id, which is `name` or `owner/name`."""
    return (
        path.startswith(("/", ".", "~"))
        or path.endswith((".json", ".jsonl", ".py", "/"))
        or path.count("/") > 1
    )


def _still_made(config: Config) -> Iterator[str]:
    """A step whose result is there is skipped, and makes nothing else either."""
    return (step.makes for step in config.prepare if not os.path.exists(step.makes))


def _made(config: Config) -> list[Path]:
    return [_absolute(path) for path in _still_made(config)]


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def _is_made(path: str, made: list[Path]) -> bool:
    """One step may make all the files of a folder."""
    return _is_in(path, made) or _absolute(path).parent in {file.parent for file in made}


def _is_in(path: str, folders: list[Path]) -> bool:
    return any(_absolute(path).is_relative_to(folder) for folder in folders)
