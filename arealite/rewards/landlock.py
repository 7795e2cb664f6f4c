"""Which files a reward worker may touch: Landlock of the Linux kernel, set by ctypes alone.

See landlock(7). A refused access fails with EACCES, which Python raises as PermissionError.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _READ_FILE | 1 << 1 | 1 << 14
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights each version of the interface knows; the later ones know 16."""
_SCOPED = 6
"""From this version on signals and abstract sockets reach no process outside."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict_files(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """From now on this process reads and writes only beneath these. Whether the kernel took it."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE, None, 0, _VERSION_FLAG)
    if version < 1:
        return False
    every = (1 << _KNOWN.get(version, 16)) - 1
    ruleset = _Ruleset(every, 3 if version >= 4 else 0, 3 if version >= _SCOPED else 0)
    size = 8 if version < 4 else 16 if version < _SCOPED else 24
    rules = libc.syscall(_CREATE, ctypes.byref(ruleset), size, 0)
    if rules < 0:
        return False
    try:
        for paths, rights in ((readable, _READ), (writable, every)):
            for path in paths:
                _allow(libc, rules, path, rights & every)
        no_privileges: int = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        restricted: int = libc.syscall(_RESTRICT, rules, 0)
        return no_privileges == restricted == 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # what is not there needs no right
        return
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        beneath = _Beneath(rights, folder)
        libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(beneath), 0)
    finally:
        os.close(folder)
