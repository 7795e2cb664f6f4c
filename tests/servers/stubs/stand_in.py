"""Packages that resolve every name and do nothing: calling anything of them raises.

SGLang imports its CUDA kernels and torchvision when it starts, whatever it is asked to serve. With
these in their place its modules can be imported on a machine without CUDA, and nothing that needs
the real ones passes silently. What SGLang's server answers beside them is computed by torch: its
server is tested, not its kernels.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any


class Absent:
    """A function, a class or a namespace that is not here."""

    def __init__(self, name: str) -> None:
        self._name = self.__name__ = name

    def __getattr__(self, attribute: str) -> Absent:
        return absent(self._name, attribute)

    def __or__(self, other: Any) -> Absent:  # in annotations
        return self

    __ror__ = __or__

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            f"{self._name} was called, and only a stand-in is installed: a server on a CPU must be "
            "told to use torch's own backends"
        )


def absent(owner: str, name: str) -> Absent:
    if name.startswith("__"):  # what Python itself asks a module for
        raise AttributeError(name)
    return Absent(f"{owner}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module below a package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(f"{self._package}."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        setattr(module, "__getattr__", lambda name: absent(spec.name, name))  # noqa: B010
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in(package: str) -> None:
    """Every module below `package` can be imported from now on."""
    sys.meta_path.append(_Finder(package))
