"""Which functions and classes a file of this project defines, and what stands in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def functions(path: str) -> frozenset[str]:
    """The functions of a file, with the names of what they stand in: ``Class.method``."""
    return frozenset(scope for scope, node in walk(path) if isinstance(node, ast.FunctionDef))


def walk(path: str) -> Iterator[tuple[str, ast.AST]]:
    """(scope, node) of every node of a file, itself in its scope if it is a function or a class."""

    def inside(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.ClassDef | ast.FunctionDef)
            within = (*scope, child.name) if named else scope  # type: ignore[attr-defined]
            yield ".".join(within), child
            yield from inside(child, within)

    yield from inside(ast.parse((ROOT / path).read_text(encoding="utf-8")), ())
