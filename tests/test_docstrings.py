"""Public functions over tensors say shapes; public functions that raise errors of our own say which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHAPE = re.compile(
    r"[Ss]hape|[Ss]calar|See \w+"
    r"|\((?:[\w·*+/⌈⌉.-]+(?: [-+·*/×] [\w⌈⌉]+)*,\s*)+(?:[\w·*+/.-]+(?: [-+·*/×] \w+)*)?\)"
)
"A shape in words or as (tokens, width); a method that fulfils another's contract may point to it."


def public_functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield owner + node.name, node


def takes_tensors(node: ast.FunctionDef) -> bool:
    hints = [argument.annotation for argument in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
    return any(hint is not None and re.search(r"\bTensor\b", ast.unparse(hint)) for hint in hints)


def raises(node: ast.FunctionDef) -> bool:
    """Whether it raises one of engine.errors in its own body."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            called = inner.exc.func if isinstance(inner.exc, ast.Call) else inner.exc
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "errors":
                return True
    return False


FUNCTIONS = [
    pytest.param(node, id=f"{path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}:{name}")
    for path in sorted((ROOT / "engine").rglob("*.py"))
    for name, node in public_functions(ast.parse(path.read_text(encoding="utf-8")))
]


def test_functions_over_tensors_say_shapes():
    silent = [
        param.id
        for param in FUNCTIONS
        if takes_tensors(node := param.values[0]) and not SHAPE.search(ast.get_docstring(node) or "")
    ]
    assert silent == []


def test_functions_that_raise_say_what():
    silent = [
        param.id
        for param in FUNCTIONS
        if raises(node := param.values[0]) and not re.search(r"Raises:|See \w+", ast.get_docstring(node) or "")
    ]
    assert silent == []
