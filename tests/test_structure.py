"""The structure of the packages: who may import whom, and how long a function may be."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("golden", "hw", "sim", "host")
"""From below to above; each may import from those before it."""
WINGS = ("text", "checkpoints", "image", "machine", "talk", "serve", "commands", "cli")
"""Of host/, likewise. What is beside them (errors, tables, ...) is below all."""
LONGEST = 120


def modules() -> dict[str, ast.Module]:
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("tellme", *(p for p in parts if p != "__init__")))] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Modules of ours that a module imports anywhere, also within functions; not those for types only."""
    typed = {
        id(n)
        for test in ast.walk(MODULES[name])
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for n in ast.walk(test)
    }
    found: set[str] = set()
    for node in ast.walk(MODULES[name]):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            assert node.module is not None
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
    return {f for f in found if f in MODULES} - {name}


def short(name: str) -> str:
    return name.removeprefix("tellme.")


def rank(name: str) -> tuple[int, int]:
    _, folder, *rest = name.split(".")
    wing = rest[0] if rest else ""
    return FOLDERS.index(folder), 1 + WINGS.index(wing) if folder == "host" and wing in WINGS else 0


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_from_above(name: str) -> None:
    assert not {short(other) for other in imports(name) if rank(other) > rank(name)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({n: imports(n) for n in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", MODULES)
def test_functions_can_be_read(name: str) -> None:
    assert not {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(MODULES[name])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LONGEST
    }


SPELT_OUT = re.compile(r"-\(-|\.bit_length\(\) - 1|- 1\)\.bit_length\(\)")


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"tellme.golden.arith"}))
def test_sizes_are_computed_by_name(name: str) -> None:
    found = SPELT_OUT.findall(ast.unparse(MODULES[name]))
    assert not found, "ceil_div, ceil_log2, exact_log2 of golden.arith, or of amaranth.utils"
