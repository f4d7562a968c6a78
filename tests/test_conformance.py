"""docs/conformance.md says where each check of the protocol is: all it names exists, and nothing lacks."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import cache

import pytest
from support.source_scopes import ROOT, functions, walk

CHECKED = (
    "client/secagg.py",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("server/secagg/*.py")),
    *("client/agent/accepted_runs.py", "client/agent/policy.py", "client/agent/privacy_cost.py"),
    *("client/agent/round_work.py", "client/vault/privacy_ledger.py", "client/vault/run_ledger.py"),
    "common/membership/manifest.py",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("common/privacy/*.py")),
)
BOUNDS = ("_at_most", "_at_least", "_among")  # of the owner's policy: the last argument names the bound
NO_CHECK_OF_THE_PROTOCOL = {
    ("client/secagg.py", "decode_state"): "a simulation's own file",
    ("client/secagg.py", "_send_plain"): "plain rounds, which have no protocol",
    ("server/secagg/plain.py", "PlainAggregation.run"): "plain rounds",
    ("server/secagg/plain.py", "PlainAggregation.complete"): "plain rounds",
    ("server/secagg/group.py", "GroupLog.lose"): "notes what its callers found",
    ("server/secagg/secure.py", "_add_up"): "passes on why the last group failed",
    ("client/agent/policy.py", "OwnerPolicy.read"): "the owner's own file",
    ("client/agent/policy.py", "_span"): "the owner's own file",
    ("client/vault/run_ledger.py", "RunLedger.accept"): "a command of the owner's",
    ("client/vault/privacy_ledger.py", "LedgerAnchor.write"): "a disk that is full",
}


@dataclass(frozen=True)
class Row:
    """A line of the tables."""

    check: str
    paper: str
    code: str
    refuses: str
    test: str
    vector: str


def rows() -> list[Row]:
    found = []
    for line in (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 6 and cells[0] != "check" and not cells[0].startswith("--"):
            found.append(Row(*(cell.strip("`") for cell in cells)))
    return found


@dataclass(frozen=True)
class Refusal:
    """A `raise`, a note by which the server leaves somebody out, or a bound of the owner's policy."""

    scope: str
    text: str
    line: int


@cache
def refusals(path: str) -> tuple[Refusal, ...]:
    found = []
    for scope, node in walk(path):
        if isinstance(node, ast.Raise) and node.exc is not None:
            found.append(Refusal(scope, ast.unparse(node.exc), node.lineno))
        elif isinstance(node, ast.Call) and noted(node) and len(node.args) == 3:
            found.append(Refusal(scope, ast.unparse(node.args[2]), node.lineno))
        elif isinstance(node, ast.Call) and bounding(node):
            found.append(Refusal(scope, f"({ast.literal_eval(node.args[-1])})", node.lineno))
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            found.append(Refusal(scope, ast.unparse(node.value.elts[-1]), node.lineno))
    return tuple(found)


def bounding(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in BOUNDS


def noted(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("lose", "suspect")


def plain(text: str) -> str:
    """Without the quotes of a literal, and with {…} as it is written."""
    return text.replace("\\'", "'").replace('\\"', '"')


def test_the_table_is_read() -> None:
    assert len(rows()) > 150
    assert {row.paper.split(",")[0] for row in rows()} >= {"setup", "0", "1", "2", "3", "4", "beyond"}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.check)
def test_what_a_line_names_exists(row: Row) -> None:
    path, _, name = row.code.partition("::")
    assert name in functions(path), f"{path} has no {name}"
    test, _, case = row.test.partition("::")
    assert case in functions(test), f"{test} has no {case}"
    if row.refuses != "–":
        said = [plain(refusal.text) for refusal in refusals(path) if refusal.scope == name]
        assert any(row.refuses in text for text in said), f"{row.code} does not say “{row.refuses}”"
    if row.vector != "–":
        file, _, vector = row.vector.partition("#")
        cases = json.loads((ROOT / file).read_text(encoding="utf-8"))["cases"]
        assert vector in [known["name"] for known in cases], f"{file} has no case “{vector}”"


@pytest.mark.parametrize("path", CHECKED)
def test_no_refusal_is_missing(path: str) -> None:
    told = [(row.code, row.refuses) for row in rows() if row.refuses != "–"]
    for refusal in refusals(path):
        if (path, refusal.scope) in NO_CHECK_OF_THE_PROTOCOL:
            continue
        here = [part for code, part in told if code == f"{path}::{refusal.scope}"]
        assert any(part in plain(refusal.text) for part in here), (
            f"docs/conformance.md lacks {path}:{refusal.line}, {refusal.text}"
        )


def test_what_is_excepted_is_there() -> None:
    for path, scope in NO_CHECK_OF_THE_PROTOCOL:
        assert scope in {refusal.scope for refusal in refusals(path)}, f"{path} has no refusal in {scope}"
