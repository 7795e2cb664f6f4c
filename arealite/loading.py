"""A user's code, named in the configuration: found, imported and checked before anything runs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from arealite.errors import ArealiteError, ConfigError, words
from arealite.protocols import Workflow
from arealite.types import Episode

SHIPPED_WORKFLOWS = str(Path(__file__).resolve().parents[1] / "workflows")


def load_object(reference: str) -> Any:
    """`pkg.mod:Name` or `path/file.py:name` -> the object. Raises ConfigError."""
    module_name, name = split_reference(reference)
    module = _from_file(Path(module_name)) if module_name.endswith(".py") else _by_name(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        known = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise ConfigError(f"{module_name} has no {name!r}; it has {known}") from None


def split_reference(reference: str) -> tuple[str, str]:
    """(module or file, name in it). Raises ConfigError."""
    module, _, name = reference.rpartition(":")
    if not (module and name.isidentifier()):
        raise ConfigError(f"{reference!r} names no code; write pkg.mod:Name or path/file.py:name")
    return module, name


def load_filter(reference: str) -> Callable[[Episode], bool]:
    """A function that can be called with (episode)."""
    function = load_object(reference)
    rule = "a filter is called as should_accept(episode) and returns whether it is trained"
    _check_call(function, reference, (None,), rule)
    call = getattr(function, "__call__", None)  # noqa: B004 - an object may be a filter, too
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        raise ConfigError(f"{reference} is async; write `def should_accept(episode)`")
    return cast(Callable[[Episode], bool], function)


def load_agent(reference: str) -> Callable[..., Any]:
    """What can be called with (data, base_url=..., api_key=...): a function, async or not, or the
    `run` of a class that is made without arguments, as AReaL's agents are."""
    function = load_object(reference)
    if inspect.isclass(function):
        agent = executed(function, reference, "built")
        reference, function = f"{reference}.run", getattr(agent, "run", None)
    rule = "an agent is called as run(data, base_url, api_key) and returns its reward"
    _check_call(function, reference, ({},), rule, base_url="", api_key="")
    return cast(Callable[..., Any], function)


def load_workflow(reference: str, offered: Mapping[str, Any], given: Mapping[str, Any]) -> Workflow:
    """Builds the workflow class with those of the offered objects that its __init__ names.

    offered: gconfig, tokenizer, reward_fn, context_length. given: rollout.workflow_kwargs; each
    must be known.
    """
    cls = load_object(reference)
    if not inspect.isclass(cls):
        raise ConfigError(f"{reference} is not a class; a workflow is a class with arun_episode")
    play = getattr(cls, "arun_episode", None)
    if not inspect.iscoroutinefunction(play):
        raise ConfigError(f"{reference} has no `async def arun_episode(self, engine, data)`")
    _check_call(
        play, f"{reference}.arun_episode", (None, None, {}), "it is called with engine, data"
    )
    check = getattr(cls, "check_row", None)
    if check is not None:
        _check_call(check, f"{reference}.check_row", (None, {}), "it is called with a row")
        if inspect.iscoroutinefunction(check):
            raise ConfigError(f"{reference}.check_row is async; write `def check_row(self, data)`")
    close = getattr(cls, "aclose", None)
    if close is not None and not inspect.iscoroutinefunction(close):
        raise ConfigError(f"{reference}.aclose is not async; write `async def aclose(self)`")
    parameters = inspect.signature(cls).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in given:
        if name not in parameters and not takes_all:
            known = ", ".join(n for n in parameters if n not in offered) or "none"
            raise ConfigError(
                f"rollout.workflow_kwargs.{name}: {reference} takes no such argument; "
                f"it takes {known}"
            )
    arguments = {n: v for n, v in offered.items() if n in parameters} | dict(given)
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{reference} cannot be built: {error}; its __init__ may name gconfig, tokenizer, "
            "reward_fn, context_length, and what rollout.workflow_kwargs gives"
        ) from None
    return cast(Workflow, executed(lambda: cls(**arguments), reference, "built"))


def _check_call(
    function: Any, reference: str, arguments: tuple[Any, ...], rule: str, **named: Any
) -> None:
    if not callable(function):
        raise ConfigError(f"{reference} is a {type(function).__name__}, not a function; {rule}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell theirs
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise ConfigError(f"{reference}{signature} does not fit: {error}; {rule}") from None


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file (relative paths start at {Path.cwd()})")
    # Beside itself a user's file may import its neighbours, as a script can.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Under its own name where that is free: a file json.py must not become everyone's json.
    name, file = path.stem, str(path.resolve())
    taken = sys.modules.get(name)
    foreign = taken is not None and getattr(taken, "__file__", None) != file
    if foreign or name in sys.stdlib_module_names:
        name = f"{name}_{zlib.crc32(file.encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        executed(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]
    except ConfigError:
        del sys.modules[name]
        raise
    return module


def _by_name(name: str) -> Any:
    """The module of this name; a user's own folder `workflows` does not hide the one shipped."""
    root, _, rest = name.partition(".")
    if root == "workflows" and rest:
        package = executed(lambda: importlib.import_module(root), root)
        if SHIPPED_WORKFLOWS not in package.__path__:
            package.__path__ = [*package.__path__, SHIPPED_WORKFLOWS]
    return executed(lambda: importlib.import_module(name), name)


def executed(run: Callable[[], Any], name: str, what: str = "imported") -> Any:
    """Runs a user's code, which may raise anything, or end the interpreter. Raises ConfigError."""
    try:
        return run()
    except ArealiteError:
        raise
    except (Exception, SystemExit) as error:
        where = _last_line(error, name)
        raise ConfigError(f"{name}{where} cannot be {what}: {words(error)}") from None


def _last_line(error: BaseException, name: str) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f", line {error.lineno}"
    frame = error.__traceback__
    line = None
    file = name.rpartition(":")[0] if ".py:" in name else name
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.endswith(file):
            line = frame.tb_lineno
        frame = frame.tb_next
    return f", line {line}" if line else ""
