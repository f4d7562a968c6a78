"""The report pages: complete, escaped, without a single outside reference, and honest about numbers."""

from __future__ import annotations

import copy
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from penchant.common.errors import RunDirectoryError
from penchant.deploy.cli.drawing import Drawing
from penchant.deploy.cli.show_simulation import show_result
from penchant.deploy.comparison.statistics import difference
from penchant.deploy.comparison.table import Comparison, ComparisonDetails, ComparisonRow
from penchant.deploy.report.run_page import write_comparison, write_report
from penchant.deploy.simulation.result import RunResult
from penchant.server.privacy_figures import PrivacyFigures

DATA = Path(__file__).parents[1] / "data" / "report"
HOSTILE = "<script>alert(1)</script>\" onload='x' $\\frac{$ {{ 7*7 }}"


@pytest.fixture
def result() -> dict[str, Any]:
    return json.loads((DATA / "result.json").read_text(encoding="utf-8"))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return json.loads((DATA / "compare.json").read_text(encoding="utf-8"))


def report(result: dict[str, Any], tmp_path: Path) -> str:
    write_report(RunResult.from_dict(result), tmp_path / "report.html")
    return spoken((tmp_path / "report.html").read_text(encoding="utf-8"))


def comparison(rows: list[dict[str, Any]], tmp_path: Path, details: dict[str, Any] | None = None) -> str:
    found = tuple(ComparisonRow.from_dict(row) for row in rows)
    write_comparison(Comparison(found, ComparisonDetails(**(details or {}))), tmp_path / "compare.html")
    return spoken((tmp_path / "compare.html").read_text(encoding="utf-8"))


def spoken(page: str) -> str:
    """A page without the narrow spaces before units."""
    return page.replace("\u202f", " ")


def row_of(**seeds_and_accuracies: Any) -> ComparisonRow:
    return ComparisonRow.from_dict({"share": "A", "accuracy_mean": 0.0, **seeds_and_accuracies})


class Structure(HTMLParser):
    """Every element and attribute of a page, and the ids in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@pytest.mark.parametrize("name", ["final_fit_epochs", "refit_epochs"])
def test_the_final_fit_is_told_of_a_result_of_any_version(
    result: dict[str, Any], tmp_path: Path, name: str
) -> None:
    told = "After the last round everyone refits the personal part."
    assert told in report(result | {"config": {"training": {name: 4}}}, tmp_path)
    assert told not in report(result | {"config": {"training": {name: 0}}}, tmp_path)


def test_the_headline_is_the_macro_accuracy(result: dict[str, Any], tmp_path: Path) -> None:
    page = report(result, tmp_path)
    assert "Over 12 people" in page
    assert "<strong>67.0%</strong>" in page
    assert "A round trains on 8 of the 12 people. 1 times a client dropped out" in page
    assert "21.5 kB" in page  # of one client, not of the whole cohort
    assert (
        page.count("<svg") == 12
    )  # five charts, each for a wide and a narrow page, and a legend of two lines


def test_the_same_result_gives_the_same_bytes(result: dict[str, Any], tmp_path: Path) -> None:
    assert report(result, tmp_path) == report(result, tmp_path)


def test_secure_aggregation_off_is_said_loudly(result: dict[str, Any], tmp_path: Path) -> None:
    assert "OFF" not in report(result, tmp_path)
    page = report(result | {"secagg": False}, tmp_path)
    assert "Secure aggregation was OFF." in page
    assert "IN CLEAR" in page


@pytest.mark.parametrize(
    ("share", "head", "left", "stayed"),
    [
        ("A", "shared", "factor A and the score head;", "factor B and every text"),
        ("B", "personal", "factor B;", "factor A, the score head and every text"),
        ("AB", "shared", "factors A and B and the score head;", "<td>every text"),
        ("none", "personal", "no part of the model;", "factors A and B, the score head and every text"),
        ("none", "auto", "no part of the model;", "factors A and B, the score head and every text"),
    ],
)
def test_it_says_what_left_and_what_stayed(
    result: dict[str, Any], tmp_path: Path, share: str, head: str, left: str, stayed: str
) -> None:
    page = report(result | {"share": share, "head": head}, tmp_path)
    assert left in page
    assert stayed in page


def test_it_says_what_epsilon_a_deployment_would_have_had(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So does the table at a terminal, in one line."""
    figures = PrivacyFigures(8.0, 1e-5, 1.1, 6, 21, 0.4, 0.5).to_dict()
    for dp, in_report, at_terminal in (
        (None, "off: sums are exact, and nothing limits", "none: sums are exact"),
        (figures, "in a deployment whose people", "epsilon 8, delta 1e-05; each person in 6 sums"),
    ):
        assert in_report in report(result | {"dp": dp}, tmp_path)
        show_result(RunResult.from_dict(result | {"dp": dp}), tmp_path, Drawing(width=140))
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "differential privacy" in line)
        assert at_terminal in line


def test_nulls_and_absent_keys_leave_their_part_out(result: dict[str, Any], tmp_path: Path) -> None:
    bare = {
        k: v for k, v in result.items() if k not in {"config", "versions", "digests", "caveats", "command"}
    }
    bare |= {
        "per_client": None,
        "peak_rss_mb": None,
        "wall_seconds": None,
        "shared_tensors": None,
        "dp": None,
    }
    empty = dict.fromkeys(bare["rounds_log"][0])
    bare["rounds_log"] = [empty | {"round": 1}, empty | {"round": 2}]
    page = report(bare, tmp_path)
    assert "None" not in page
    assert "nan" not in page.lower()
    assert "penchant simulate --dataset senate" in page  # built from the result itself
    assert "No round reported" in report(bare | {"rounds_log": []}, tmp_path)


def test_every_text_is_escaped(result: dict[str, Any], tmp_path: Path) -> None:
    hostile = copy.deepcopy(result)
    for key in ("dataset", "base_model", "share", "head", "command"):
        hostile[key] = HOSTILE
    hostile["caveats"] = [HOSTILE]
    hostile["versions"] = {HOSTILE: HOSTILE}
    hostile["digests"] = {HOSTILE: HOSTILE}
    hostile["config"] = {"data": {"dataset": HOSTILE}}
    hostile["baselines"] = {HOSTILE: 0.5}
    hostile["shared_tensors"] = [{"name": HOSTILE, "shape": [1]}]
    hostile["per_client"][0]["client"] = HOSTILE
    page = report(hostile, tmp_path)
    assert "<script" not in page
    assert "{{ 7*7 }}" in page  # shown, not carried out
    assert not any(name.startswith("on") for _, attributes in Structure(page).elements for name in attributes)


@pytest.mark.parametrize("dp", [{HOSTILE: HOSTILE}, {"epsilon": HOSTILE}, [HOSTILE], HOSTILE])
def test_figures_of_privacy_are_numbers_or_the_result_is_refused(
    result: dict[str, Any], tmp_path: Path, dp: object
) -> None:
    with pytest.raises(RunDirectoryError, match="dp of the result"):
        report(result | {"dp": dp}, tmp_path)


def test_figures_of_privacy_are_read_and_shown(result: dict[str, Any], tmp_path: Path) -> None:
    figures = PrivacyFigures(8.0, 1e-5, 1.25, 20, 9, 0.0125, 0.75)
    table = result | {"dp": figures.to_dict()}
    again = RunResult.from_dict(table)
    assert again.dp == figures
    assert json.dumps(again.to_dict()["dp"]) == json.dumps(figures.to_dict())
    page = report(table, tmp_path)
    assert "epsilon 8, delta 1e-05, noise multiplier 1.25, participations 20, honest 9" in page


def test_names_of_methods_are_escaped_in_plots_too(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    page = comparison([row | {"share": HOSTILE} for row in rows[:1]] + rows[1:], tmp_path)
    assert "<script" not in page
    assert "alert(1)" in page


def test_nothing_is_fetched_from_anywhere(
    result: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for page in (report(result, tmp_path), comparison(rows, tmp_path, {"dataset": "senate"})):
        elements = Structure(page).elements
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for tag, attributes in elements:
            assert tag not in {"script", "iframe", "object", "embed", "img", "form", "base"}
            for name in ("src", "href", "xlink:href", "action", "data", "poster"):
                target = attributes.get(name)
                assert target is None or target == "data:," or target[1:] in ids, (tag, target)
        assert not re.search(r"url\((?!#)|@import|//[a-z]+\.(?!w3\.org)", page.replace("www.w3.org", ""))


# --- the comparison -------------------------------------------------------------------------------


def test_a_paired_difference_worked_by_hand() -> None:
    one = row_of(seeds=[0, 1, 2], accuracies=[0.70, 0.72, 0.68])
    other = row_of(seeds=[2, 1, 0], accuracies=[0.61, 0.62, 0.60])  # the same seeds in another order
    gap = difference(one, other)  # .10, .10, .07
    assert gap is not None
    assert gap.mean == pytest.approx(0.09)
    half = 4.303 * statistics.stdev([0.10, 0.10, 0.07]) / math.sqrt(3)
    assert (gap.low, gap.high) == (pytest.approx(0.09 - half), pytest.approx(0.09 + half))
    assert (gap.seeds, gap.verdict) == (3, "better")


def test_an_interval_over_zero_is_no_verdict() -> None:
    one = row_of(seeds=[0, 1], accuracies=[0.70, 0.60])
    other = row_of(seeds=[0, 1], accuracies=[0.60, 0.62])
    gap = difference(one, other)
    assert gap is not None
    assert gap.verdict == "unclear"


@pytest.mark.parametrize("row", [{"seeds": [0], "accuracies": [0.7]}, {"seeds": [0, 1, 2]}, {"seeds": 3}])
def test_one_seed_or_none_gives_no_interval(row: dict[str, Any]) -> None:
    assert difference(row_of(**row), row_of(seeds=[0, 1, 2], accuracies=[0.5, 0.5, 0.5])) is None


def test_the_conclusion_says_where_sharing_does_not_help(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    page = comparison(rows, tmp_path, {"dataset": "senate", "secagg": True})
    assert "Sharing A and keeping the rest personal pays." in page
    assert "+8.0 points, clearly better" in page  # A against everyone alone
    assert "Clearly worse than everyone alone: “one model for all” (−8.0 points)." in page
    assert "Not clearly better: “B shared, A personal” (+0.0 points)." in page
    assert page.index("A shared, B personal</th>") < page.index("one model for all</th>")


def test_a_comparison_where_sharing_harms_says_so(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for row in rows:
        row["accuracies"] = [1 - a for a in row["accuracies"]]
        row["accuracy_mean"] = 1 - row["accuracy_mean"]
    rows = [row for row in rows if row["share"] in {"A", "none"}]
    assert "Sharing does harm here" in comparison(rows, tmp_path)


def test_one_seed_gives_no_claim(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for row in rows:
        row |= {"seeds": [0], "accuracies": row["accuracies"][:1], "accuracy_se": None}
    page = comparison(rows, tmp_path)
    assert "Too few seeds to say" in page
    assert "Differences need at least two seeds" in page


def test_rows_of_one_share_are_told_apart(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    page = comparison([rows[0], rows[0] | {"head": "personal"}], tmp_path)
    assert "A shared, B personal, personal head" in page
