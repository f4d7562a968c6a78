"""The figures in the docs are those of the files of measurements beside the benches."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penchant.common.config import RunConfig
from penchant.deploy.comparison.methods import method

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "results_page", ROOT / "tests" / "experiments" / "results_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_say_what_was_measured(results_page: ModuleType) -> None:
    shown: list[str] = []
    for path in results_page.PAGES:
        text = path.read_text(encoding="utf-8")
        assert results_page.page(text) == text, "python tests/experiments/results_page.py writes it anew"
        shown += results_page.BLOCK.findall(text)
    kept = {path.stem.removeprefix("compare-") for path in results_page.RESULTS.glob("compare-*.json")}
    assert sorted(shown) == sorted(kept)
    for name in shown:
        for (file, _), _ in results_page.figures(name):
            assert (results_page.FIGURES / file).is_file()


def thousandths(value: float) -> str:
    return f".{1000 * abs(value):03.0f}"


def mean(values: Sequence[float]) -> str:
    return thousandths(statistics.fmean(values))


def with_error(values: Sequence[float]) -> str:
    return f"{mean(values)} ± {thousandths(statistics.stdev(values) / math.sqrt(len(values)))}"


def test_what_was_searched_again_is_in_the_page(results_page: ModuleType) -> None:
    """Means on validation and on test, and settings that are a configuration."""
    page = results_page.HISTORY.read_text(encoding="utf-8")
    text = page.split("## Second hyper-parameter search")[1].split("## ")[0]
    searched = json.loads((results_page.RESULTS / "searched.json").read_text(encoding="utf-8"))
    for share, row in searched.items():
        places = [row["validation"]["there"], row["validation"]["found"]]
        better = places[1] > places[0]
        assert better == ("test" in row) == (results_page.RESULTS / "searched" / f"{share}.toml").is_file()
        assert " | ".join(map(thousandths, places)) in text
        if better:
            assert f"| {with_error(row['test']['found'])} |" in text
            found = (results_page.RESULTS / "searched" / f"{share}.toml").read_text(encoding="utf-8")
            RunConfig.from_toml(found)


def test_what_was_chosen_in_several_pasts_is_in_the_page(results_page: ModuleType) -> None:
    """Every row: found in the past and judged on test, at each moment, and single changes."""
    page = results_page.HISTORY.read_text(encoding="utf-8")
    past = json.loads((results_page.RESULTS / "past.json").read_text(encoding="utf-8"))
    for share, searched in past["searched"].items():
        test, found = past["test"][share], "the recipe stays"
        if "found" in test:
            found = with_error(test["found"])
            RunConfig.from_toml(
                (results_page.RESULTS / "searched" / "past" / f"{share}.toml").read_text("utf-8")
            )
        assert mean(past["there"][share]) == thousandths(searched["recipe"])
        in_the_past = [thousandths(searched["recipe"]), thousandths(searched["found"])]
        figures = [*in_the_past, with_error(test["recipe"]), found]
        assert f"| {method(share)} | {' | '.join(figures)} |" in page

    def at(share: str, moment: float) -> list[float]:
        if moment == 1:
            return list(past["test"][share]["recipe"])
        cases = zip(past["cases"], past["there"][share], strict=True)
        return [accuracy for (until, _), accuracy in cases if until == moment]

    for moment in (0.55, 0.65, 0.75, 1):
        row = [mean(at(share, moment)) for share in ("A", "kernel", "lore", "none", "AB")]
        for share in ("A", "lore"):
            lead = statistics.fmean(at(share, moment)) - statistics.fmean(at("AB", moment))
            row.append(f"+{thousandths(lead)}")
        assert f" | {' | '.join(row)} |" in page
    recipe = past["levers"]["the recipe"]
    for lever, accuracies in past["levers"].items():
        apart = [one - other for one, other in zip(accuracies, recipe, strict=False)]
        sign = "+" if statistics.fmean(apart) >= 0 else "−"
        difference = "" if accuracies == recipe else f"{sign}{with_error(apart)} "
        assert f"{lever} | {mean(accuracies)} | {difference}| {len(accuracies)} |" in page


def test_the_ceilings_are_in_the_page(results_page: ModuleType) -> None:
    text = results_page.HISTORY.read_text(encoding="utf-8").split("## What bounds it")[1].split("## ")[0]
    for row in json.loads((results_page.RESULTS / "ceiling.json").read_text(encoding="utf-8")):
        assert f"| 0{with_error(row['test']).replace('± ', '± 0')} |" in text, row["oracle"]
    before = json.loads((results_page.RESULTS / "ceiling-validation.json").read_text(encoding="utf-8"))
    places = ", ".join(mean(row["test"]) for row in before if row["oracle"] != "known positions")
    assert " and ".join(places.rsplit(", ", 1)) in text


def test_every_comparison_can_be_made_again(results_page: ModuleType) -> None:
    for path in results_page.RESULTS.glob("compare-*.json"):
        made = json.loads(path.read_text(encoding="utf-8"))
        assert made["command"].startswith("penchant compare --dataset ")
        for row in made["rows"]:
            assert row["evaluated_on"] == "test"
            assert len(row["accuracies"]) == len(row["seeds"])
            assert f"{row['share']}" in re.split(r"[ ,]", made["command"])


def test_the_paper_index_has_the_same_figures(results_page: ModuleType) -> None:
    """Each share's row ends with its figure on Senate."""
    index = (ROOT / "docs" / "paper-index.md").read_text(encoding="utf-8")
    rows: dict[str, Any] = {row["share"]: row for row in results_page.load("senate")["rows"]}
    assert len(rows) == 8
    for share, row in rows.items():
        figure = f"{row['accuracy_mean']:.3f} ± {row['accuracy_se']:.3f}"
        line = next(line for line in index.splitlines() if f"`--share {share}`" in line)
        assert figure in line, f"--share {share}: {figure}"


def test_a_block_is_written_anew(results_page: ModuleType) -> None:
    text = "before\n<!-- compare senate -->\nSTALE\n<!-- end -->\nafter\n"
    written = results_page.page(text)
    assert written.startswith("before\n<!-- compare senate -->\n**")
    assert written.endswith("<!-- end -->\nafter\n")
    assert "STALE" not in written


def test_a_plot_stands_alone(results_page: ModuleType) -> None:
    for (_, words), svg in results_page.figures("senate"):
        assert words
        assert "var(--" not in svg
        assert 'xmlns="http://www.w3.org/2000/svg"' in svg
