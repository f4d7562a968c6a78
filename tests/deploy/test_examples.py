"""The examples of docs/examples run as they stand, each in a few seconds."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

import penchant

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def example(name: str) -> Any:
    """What an example's main function returns."""
    return runpy.run_path(str(EXAMPLES / name), run_name="example")["main"]()


def test_every_example_is_run_here() -> None:
    tested = {"first_run.ipynb", "own_data.py", "callbacks.py", "personal_model.py"}
    assert tested <= {path.name for path in EXAMPLES.iterdir()}


def test_preferences_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    result = example("own_data.py")
    assert (result.dataset, result.clients, result.secagg) == ("drinks", 4, True)
    assert result.accuracy > 0.6
    assert capsys.readouterr().out.startswith("Ann: ")


def test_hearing_what_a_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(example("callbacks.py").losses) == 3
    assert "round 2 of 3: 10 devices, training loss" in capsys.readouterr().out


def test_a_model_is_used_written_and_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(example("personal_model.py"), penchant.PersonalModel)
    assert "after one choice of somebody new: 0." in capsys.readouterr().out


def test_the_notebook_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / "first_run.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {}
    shown = [run_cell(cell, namespace) for cell in cells]
    assert shown[0] == penchant.__version__
    assert "accuracy, mean over people" in shown[2]._repr_html_()
    assert len(shown[4]) == 2
    assert "0 violations" in capsys.readouterr().out
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])  # written by a run, not kept


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; the value of its last line, where that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), namespace)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
