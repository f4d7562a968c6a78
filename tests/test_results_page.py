"""The figures in the docs are those of the files of measurements beside the benches."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penchant.common.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "results_page", ROOT / "tests" / "bench" / "results_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_was_measured(bench: ModuleType) -> None:
    text = bench.PAGE.read_text(encoding="utf-8")
    assert bench.page(text) == text, "python tests/bench/results_page.py writes it anew"
    shown = set(bench.BLOCK.findall(text))
    kept = {path.stem.removeprefix("compare-") for path in bench.RESULTS.glob("compare-*.json")}
    assert shown == kept
    for name in shown:
        for (file, _), _ in bench.figures(name):
            assert (bench.FIGURES / file).is_file()


def test_what_was_searched_again_is_in_the_page(bench: ModuleType) -> None:
    """Means on validation and on test, and settings that are a configuration."""
    text = bench.PAGE.read_text(encoding="utf-8").split("## Searched again")[1].split("## ")[0]
    searched = json.loads((bench.RESULTS / "searched.json").read_text(encoding="utf-8"))
    for share, row in searched.items():
        places = [row["validation"]["there"], row["validation"]["found"]]
        better = places[1] > places[0]
        assert better == ("test" in row) == (bench.RESULTS / "searched" / f"{share}.toml").is_file()
        assert " | ".join(f".{1000 * mean:03.0f}" for mean in places) in text
        if better:
            assert f"| .{1000 * statistics.fmean(row['test']['found']):03.0f} ±" in text
            found = (bench.RESULTS / "searched" / f"{share}.toml").read_text(encoding="utf-8")
            RunConfig.from_toml(found)


def test_what_was_chosen_in_several_pasts_is_in_the_page(bench: ModuleType) -> None:
    """Means in the pasts and on test, by share and by moment, single changes, and settings that are read."""
    page = bench.PAGE.read_text(encoding="utf-8")
    past = json.loads((bench.RESULTS / "past.json").read_text(encoding="utf-8"))

    def shown(values: list[float]) -> str:
        return f".{1000 * statistics.fmean(values):03.0f}"

    chosen = page.split("## Chosen in several pasts")[1].split("## ")[0]
    for share, searched in past["searched"].items():
        test = past["test"][share]
        figures = [shown([searched["recipe"]]), shown([searched["found"]]), shown(test["recipe"])]
        assert " | ".join(figures) in chosen
        if "found" in test:
            assert f"| {shown(test['found'])} ±" in chosen
            RunConfig.from_toml((bench.RESULTS / "searched" / "past" / f"{share}.toml").read_text("utf-8"))
        by_moment = {until: [] for until, _ in past["cases"]}
        for (until, _), accuracy in zip(past["cases"], past["there"][share], strict=True):
            by_moment[until].append(accuracy)
        assert all(f"| {shown(accuracies)} |" in chosen for accuracies in by_moment.values())
        assert shown(past["there"][share]) == figures[0]
    single = page.split("## Single changes")[1].split("## ")[0]
    for lever, accuracies in past["levers"].items():
        assert f"{lever} | {shown(accuracies)} |" in single


def test_every_comparison_can_be_made_again(bench: ModuleType) -> None:
    for path in bench.RESULTS.glob("compare-*.json"):
        made = json.loads(path.read_text(encoding="utf-8"))
        assert made["command"].startswith("penchant compare --dataset ")
        for row in made["rows"]:
            assert row["evaluated_on"] == "test"
            assert len(row["accuracies"]) == len(row["seeds"])
            assert f"{row['share']}" in re.split(r"[ ,]", made["command"])


def test_the_paper_index_has_the_same_figures(bench: ModuleType) -> None:
    """Each share's row ends with its figure on Senate."""
    index = (ROOT / "docs" / "paper-index.md").read_text(encoding="utf-8")
    rows: dict[str, Any] = {row["share"]: row for row in bench.load("senate")["rows"]}
    assert len(rows) == 8
    for share, row in rows.items():
        figure = f"{row['accuracy_mean']:.3f} ± {row['accuracy_se']:.3f}"
        line = next(line for line in index.splitlines() if f"`--share {share}`" in line)
        assert figure in line, f"--share {share}: {figure}"


def test_a_block_is_written_anew(bench: ModuleType) -> None:
    text = "before\n<!-- compare senate -->\nSTALE\n<!-- end -->\nafter\n"
    written = bench.page(text)
    assert written.startswith("before\n<!-- compare senate -->\n**")
    assert written.endswith("<!-- end -->\nafter\n")
    assert "STALE" not in written


def test_a_plot_stands_alone(bench: ModuleType) -> None:
    for (_, words), svg in bench.figures("senate"):
        assert words
        assert "var(--" not in svg
        assert 'xmlns="http://www.w3.org/2000/svg"' in svg
