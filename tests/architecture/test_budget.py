"""Limits that keep the code readable, and promise 20: no way to run what was only data."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    p for room in ("arealite", "workflows", "examples") for p in (ROOT / room).rglob("*.py")
)
PACKAGE = [p for p in FILES if p.parts[len(ROOT.parts)] != "examples"]

FILE_LINES, FUNCTION_LINES = 400, 50


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def dotted(node: ast.expr) -> str:
    """`torch.load` of the expression torch.load; "" for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def dangers(tree: ast.Module) -> Iterator[str]:
    """Each call or import that could run code out of data, as "line: what"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            banned = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
            for module in modules:
                if module.split(".")[0] in banned:
                    yield f"{node.lineno}: import of {module}"
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in ("eval", "exec", "compile", "os.system", "os.popen"):
                yield f"{node.lineno}: {name}()"
            if name.endswith(("torch.load", "np.load", "numpy.load")):
                yield f"{node.lineno}: {name}()"
            if re.search(r"(^|\.)yaml\.(unsafe_load|full_load|load_all)", name):
                yield f"{node.lineno}: {name}()"
            if re.search(r"(^|\.)yaml\.load$", name) and not _is_safe_loader(node, tree):
                yield f"{node.lineno}: yaml.load() without a safe loader"
            for keyword in node.keywords:
                value = keyword.value
                on = isinstance(value, ast.Constant) and value.value is True
                if keyword.arg in ("shell", "trust_remote_code") and on:
                    yield f"{node.lineno}: {keyword.arg}=True"


def _is_safe_loader(call: ast.Call, tree: ast.Module) -> bool:
    """The second argument is yaml.SafeLoader, or a class of this module made from it."""
    given = [*call.args[1:], *(k.value for k in call.keywords if k.arg == "Loader")]
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    safe |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(dotted(base) in safe for base in node.bases)
    }
    return len(given) == 1 and dotted(given[0]) in safe


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_stays_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_stays_small(path: Path) -> None:
    long = {
        f"{node.name}, line {node.lineno}": node.end_lineno - node.lineno + 1
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 >= FUNCTION_LINES
    }
    assert not long


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    empty_package = path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip()
    assert empty_package or ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_for_later(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


RUNS_CODE = {"arealite/rewards/interpreter.py": ["exec()", "compile()"]}
"""The Python tool, in processes that are shut in, and nowhere else."""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_data_is_never_run(path: Path) -> None:
    found = [danger.partition(": ")[2] for danger in dangers(tree_of(path))]
    assert found == RUNS_CODE.get(name_of(path), [])


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.unsafe_load(text)",
        "import yaml\nclass L(yaml.Loader): ...\nyaml.load(text, L)",
        "subprocess.run(line, shell=True)",
        "model(path, trust_remote_code=True)",
    ],
)
def test_the_rule_itself_sees_what_it_forbids(line: str) -> None:
    assert list(dangers(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    ["yaml.safe_load(t)", "yaml.load(t, yaml.SafeLoader)", "ast.literal_eval(t)", "re.compile(t)"],
)
def test_the_rule_itself_lets_the_safe_ways_pass(line: str) -> None:
    assert not list(dangers(ast.parse(line)))


@pytest.mark.parametrize("name", ["types", "errors"])
def test_the_ground_floor_needs_the_standard_library_alone(name: str) -> None:
    for node in ast.walk(tree_of(ROOT / "arealite" / f"{name}.py")):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        assert all(m.split(".")[0] in sys.stdlib_module_names for m in modules), modules
