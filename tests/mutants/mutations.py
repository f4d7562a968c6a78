"""Which checks a file makes, and the file with one of them disabled.

A mutant is one small change after which some lie would pass: a refusal that never comes, a condition without
one of its parts, a bound moved by one, a call of a check left out, a signature taken for good, a part that is
not bound by what is signed or derived, a row that is found whatever its key.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

CHECKS = re.compile(r"^_?(check|refuse|enough|permit|mark|drop|range|begin|record|about_to|settle|accept)")
"""Calls by these names that stand alone: they refuse, or note what a later refusal needs."""
JUDGES = re.compile(r"(^|_)(verify|fits|holds)$")
"""Calls by these names say yes or no."""
NOTED = ("lose", "suspect")
"""Calls that leave somebody out, as good as a `raise`."""
LOOSER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
SQL = re.compile(r"^\W*(SELECT|UPDATE|DELETE|INSERT)\b|\bWHERE\b")
TERM = re.compile(r"\b(AND|WHERE|ON) ([a-z_]+) (=|>=|<=|<|>) (\?|\d+|'[a-z]+')")


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes `start` to `end` of the file become `text`.

    key: names the change without line numbers, so that an argument for it outlives other edits.
    """

    key: str
    line: int
    start: int
    end: int
    text: str

    def of(self, source: bytes) -> bytes:
        """The file with this change."""
        return source[: self.start] + self.text.encode() + source[self.end :]


@dataclass(frozen=True)
class _Change:
    node: ast.AST
    what: str
    text: str
    at: tuple[int, int] | None = None  # bytes, where it is only a part of the node


def mutants(path: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of its lines. path: as its keys name it."""
    tree = ast.parse(source)
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found, seen = [], Counter[str]()
    for scope, node in _scopes(tree, ()):
        for change in _changes(node, source, lines):
            start, end = change.at or _span(change.node, lines)
            key = f"{path}::{'.'.join(scope) or '-'}: {change.what}"
            seen[key] += 1
            if seen[key] > 1:
                key += f" #{seen[key]}"
            found.append(Mutant(key, _line(change.node), start, end, change.text))
    return found


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _span(node: ast.AST, lines: list[int]) -> tuple[int, int]:
    if not isinstance(node, ast.expr | ast.stmt) or node.end_lineno is None or node.end_col_offset is None:
        raise TypeError("only expressions and statements lie somewhere")
    return lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset


def _scopes(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ast.AST]]:
    """Every node with the names of the classes and functions around it."""
    for child in ast.iter_child_nodes(node):
        inside = scope
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            inside = (*scope, child.name)
        yield inside, child
        yield from _scopes(child, inside)


def _changes(node: ast.AST, source: bytes, lines: list[int]) -> Iterator[_Change]:
    if isinstance(node, ast.If):
        if any(_refuses(step) for step in node.body):
            yield from _refusal(node.test, "False")
        elif any(_refuses(step) for step in node.orelse):
            yield from _refusal(node.test, "True")
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        if CHECKS.match(_called(node.value)):
            yield _Change(node, f"without {_short(node)}", "pass")
    elif (
        isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "bool"
    ):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return) and isinstance(inner.value, ast.Compare | ast.BoolOp):
                yield _Change(inner.value, f"always {_short(inner.value)}", "True")
    elif isinstance(node, ast.Lambda) and isinstance(node.body, ast.Compare):
        yield _Change(node.body, f"always {_short(node.body)}", "True")
    elif isinstance(node, ast.IfExp):
        for inner in ast.walk(node.test):
            if isinstance(inner, ast.Call) and JUDGES.search(_called(inner)):
                yield _Change(inner, f"always {_short(inner)}", "True")
    elif isinstance(node, ast.Call) and _called(node) == "domain":
        for part in node.args[1:]:
            yield _without_argument(node, part, source, lines)
    elif isinstance(node, ast.Constant | ast.JoinedStr):
        yield from _queries(node, source, lines)


def _refuses(step: ast.stmt) -> bool:
    if isinstance(step, ast.Raise):
        return True
    if isinstance(step, ast.Expr) and isinstance(step.value, ast.Call):
        return _called(step.value) in NOTED
    return isinstance(step, ast.With) and any(map(_refuses, step.body))


def _called(call: ast.Call) -> str:
    name = call.func
    return name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else text[:89] + "…"


def _refusal(test: ast.expr, never: str) -> Iterator[_Change]:
    """never: what the condition is where nothing is refused."""
    yield _Change(test, f"never {'' if never == 'False' else 'not '}{_short(test)}", never)
    for inner in ast.walk(test):
        if isinstance(inner, ast.BoolOp):
            for left in inner.values:
                rest = [value for value in inner.values if value is not left]
                kept = rest[0] if len(rest) == 1 else ast.BoolOp(inner.op, rest)
                yield _Change(inner, f"{_short(inner)} without {_short(left)}", f"({ast.unparse(kept)})")
        elif isinstance(inner, ast.Compare):
            for at, sign in enumerate(inner.ops):
                if type(sign) in LOOSER:
                    ops = list(inner.ops)
                    ops[at] = LOOSER[type(sign)]()
                    moved = ast.Compare(inner.left, ops, inner.comparators)
                    yield _Change(inner, f"{_short(inner)} as {_short(moved)}", f"({ast.unparse(moved)})")


def _without_argument(call: ast.Call, part: ast.expr, source: bytes, lines: list[int]) -> _Change:
    rest = [argument for argument in call.args if argument is not part]
    text = ast.unparse(ast.Call(call.func, rest, call.keywords))
    return _Change(call, f"{_short(call.args[0])} without {_short(part)}", text)


def _queries(node: ast.Constant | ast.JoinedStr, source: bytes, lines: list[int]) -> Iterator[_Change]:
    """A query that finds its rows by one term less."""
    start, end = _span(node, lines)
    text = source[start:end].decode()
    if not text.startswith(('"', "'")) or not SQL.search(text):
        return
    for term in TERM.finditer(text):
        any_row = "? IS NOT NULL" if term[4] == "?" else "TRUE"
        changed = f"{text[: term.start()]}{term[1]} {any_row}{text[term.end() :]}"
        yield _Change(node, f"{' '.join(text.split())[:50]}… without {term[2]} {term[3]} {term[4]}", changed)
