"""The budgets of ARCHITECTURE.md hold, and its table of exceptions lists what exceeds them and nothing else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.repository import ROOT, markdown_tables

FILE, FUNCTION, CLASS, PARAMETERS = 400, 60, 250, 8
SOURCES = sorted(p for p in (ROOT / "foretell").rglob("*.py*") if p.suffix in (".py", ".pyi"))
GENERATED = ("_pb2.py", "_pb2.pyi")


def lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def excesses(path: Path) -> Iterator[tuple[str, str]]:
    """(`file` or `file: name`, which budget) of everything in a file that is over a budget."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text()
    if len(text.splitlines()) > FILE:
        yield name, "file"
    if path.name.endswith(GENERATED):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and lines(node) > CLASS:
            yield f"{name}: {node.name}", "class"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from function_excesses(name, node)


def function_excesses(file: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, str]]:
    where = f"{file}: {node.name}"
    if lines(node) > FUNCTION:
        yield where, "function"
    if node.name == "__init__" and len(node.args.args) + len(node.args.kwonlyargs) - 1 > PARAMETERS:
        yield where, "parameters"
    if node.returns is None:
        yield where, "returns annotated"
    for inner in ast.walk(node):
        modules = []
        if isinstance(inner, ast.ImportFrom):
            modules = [inner.module or "."]
        elif isinstance(inner, ast.Import):
            modules = [alias.name for alias in inner.names]
        if any(module.split(".")[0] in ("foretell", "") for module in modules):
            yield where, "hidden import"


def test_nothing_exceeds_its_budget_without_a_reason_in_the_architecture():
    found = {excess for path in SOURCES for excess in excesses(path)}
    stated = {(where.strip("`"), budget) for where, budget, _ in markdown_tables(ROOT / "ARCHITECTURE.md")["Budgets"]}
    assert found - stated == set(), "over budget: split it, or say why in ARCHITECTURE.md"
    assert stated - found == set(), "no longer over budget: take the line out of ARCHITECTURE.md"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.suffix == ".py"], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_each_module_says_what_it_owns(path):
    if path.read_text().strip() and not path.name.endswith(GENERATED):
        assert ast.get_docstring(ast.parse(path.read_text())), "a docstring at the top says what the module owns"
