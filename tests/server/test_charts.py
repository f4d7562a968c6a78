"""The one chart engine of console and report: what is drawn, said, and left in files."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.server.charts import LineChart, RangeChart, Row, Series

POINTS = [(float(x), x / 100) for x in range(1, 41)]


def percent(part: float) -> str:
    return f"{100 * part:g}%"


@given(st.floats(0, 50), st.floats(0, 50))
def test_a_part_of_a_chart_has_the_points_and_marks_within_both_ends(first: float, last: float) -> None:
    errors = [x / 1000 for x, _ in POINTS]
    chart = LineChart("A", percent, series=[Series("a", POINTS, errors=errors)], marks=[(3, "x"), (40, "y")])
    part = chart.within(first, last)
    kept = [point for point in POINTS if first <= point[0] <= last]
    assert list(part.series[0].points) == kept
    assert list(part.series[0].errors) == [x / 1000 for x, _ in kept]
    assert [x for x, _ in part.marks] == [x for x in (3, 40) if first <= x <= last]


def test_a_reference_far_from_a_part_does_not_flatten_it() -> None:
    chart = LineChart("A", percent, series=[Series("a", POINTS)], references=[(0.05, "low"), (0.3, "high")])
    assert [words for _, words in chart.within(20, 40).references] == ["high"]


def test_a_chart_without_points_says_so() -> None:
    drawn = LineChart("Lost", percent, series=[Series("a", POINTS)]).within(900, 901).__html__()
    assert drawn == '<p class="empty small">Lost: nothing to show.</p>'


def test_every_person_is_a_dot_however_many_there_are() -> None:
    for count in (3, 400):
        points = [(float(x), 0.5) for x in range(1, count + 1)]
        drawn = LineChart("A", percent, series=[Series("a", points)], dots=True).__html__()
        wide, narrow = re.findall(r'<path class="dots(?: many)? l1" d="([^"]*)"', drawn)
        assert wide.count("M") == narrow.count("M") == count
        assert "polyline" not in drawn


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors_and_a_number_at_each_point() -> None:
    drawn = LineChart(
        "A", percent, series=[Series("a", [(5.0, 0.6), (10.0, 0.6), (20.0, 0.7)])], log=True
    ).__html__()
    places = [float(x) for x in re.findall(r'<text class="tick mid" x="([\d.]+)"', drawn)[:3]]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert re.findall(r'class="tick mid"[^>]*>(\d+)<', drawn)[:3] == ["5", "10", "20"]


def test_a_form_that_chooses_a_part_is_named_where_there_is_one() -> None:
    series = [Series("a", POINTS)]
    assert "data-zoom" not in LineChart("A", percent, series=series).__html__()
    drawn = LineChart("A", percent, series=series, zoom="zoom").__html__()
    assert ' data-zoom="zoom"' in drawn
    assert 'data-first="7" data-last="7"' in drawn


ROWS = [Row("<b>one</b>", 0.7, 0.01, (0.69, 0.71)), Row("two", 0.6), Row("a name " * 20, 0.55, 0.02)]


def test_rows_are_shown_with_mean_error_and_single_values() -> None:
    chart = RangeChart("Accuracy", percent, rows=ROWS, axis="accuracy", reference=(0.5, "guessing"))
    drawn = chart.__html__()
    assert "<b>" not in drawn
    assert drawn.count('class="ring"') == 2 * 2  # at both widths
    assert drawn.count('class="spread l1"') == 2 * 2
    assert drawn.count("…</text>") == 2  # a long name is cut in each
    assert "&lt;b&gt;one&lt;/b&gt;: 70% ± 1%." in drawn
    assert "two: 60%." in drawn
    rows = list(csv.reader(io.StringIO(chart.csv())))
    assert rows[1] == ["<b>one</b>", "0.7", "0.01", "0.69", "0.71"]
    assert chart.svg().startswith('<svg xmlns="http://www.w3.org/2000/svg"')


def test_rows_of_one_mean_are_drawn_all_the_same() -> None:
    assert "50%" in RangeChart("A", percent, rows=[Row("one", 0.5)], reference=(0.5, "guessing")).__html__()
