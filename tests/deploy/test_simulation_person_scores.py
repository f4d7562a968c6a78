"""How accuracy spreads over people: worked examples, and what a bootstrap must not forget."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.deploy.cli import show_simulation
from penchant.deploy.report import write_report
from penchant.deploy.simulation.person_scores import ClientScore, DataThird, spread_of, table_of
from penchant.deploy.simulation.result import RunResult


def people(*rows: tuple[int, float, int]) -> list[ClientScore]:
    """(test pairs, accuracy, training pairs) of each."""
    return [ClientScore(f"p{n}", tested, right, trained) for n, (tested, right, trained) in enumerate(rows)]


def test_the_means_count_people_or_pairs() -> None:
    spread = spread_of(people((100, 0.5, 20), (20, 1.0, 20), (4, 0.0, 20)))
    assert spread is not None
    assert spread.over_people == pytest.approx(0.5)
    assert spread.over_pairs == pytest.approx((50 + 20 + 0) / 124)
    assert spread.worst_tenth == 0.0, "one person at least"
    assert spread.well_tested == (0.75, 2)
    assert spread.groups == (), "everybody has as many choices"


def test_thirds_by_how_many_choices_people_have() -> None:
    few, some, many = (20, 0.5, 5), (20, 0.6, 50), (20, 0.8, 500)
    spread = spread_of(people(few, few, some, some, many, many))
    assert spread is not None
    assert spread.groups == (
        DataThird(5, 5, 2, pytest.approx(0.5)),
        DataThird(50, 50, 2, pytest.approx(0.6)),
        DataThird(500, 500, 2, pytest.approx(0.8)),
    )
    assert spread.well_tested is None, "all are well tested"
    two = spread_of(people(few, few, few, few, many))
    assert two is not None
    assert [group.people for group in two.groups] == [4, 1], "as many choices, one group"


def test_the_interval_is_that_of_people_and_not_of_pairs() -> None:
    """Twenty people, each right always or never, over many pairs: the pairs of one person say one thing."""
    spread = spread_of(people(*[(1000, float(n % 2), 20) for n in range(20)]))
    assert spread is not None
    assert spread.interval is not None
    low, high = spread.interval
    expected = 1.96 * 0.5 / np.sqrt(20)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert spread.pairs_interval == spread.interval, "everybody has as many test pairs"


def test_the_same_result_has_the_same_interval_and_earlier_results_have_one() -> None:
    rows = people((10, 0.2, 5), (30, 0.9, 9), (5, 0.6, 14))
    assert spread_of(rows) == spread_of(rows)
    older = [ClientScore(score.client, score.n_test, score.accuracy) for score in rows]
    found = spread_of(older)
    assert found is not None
    assert found.groups == (), "it does not know how many choices people had"
    assert spread_of([]) is None
    assert spread_of([ClientScore("a")]) is None


def test_one_person_says_nothing_of_others(tmp_path: Path) -> None:
    spread = spread_of([*people((4, 0.75, 15)), ClientScore("not judged")])
    assert spread is not None
    assert (spread.over_people, spread.over_pairs, spread.worst_tenth) == (0.75, 0.75, 0.75)
    assert (spread.interval, spread.pairs_interval) == (None, None)
    result = RunResult(
        dataset="one",
        base_model="tiny",
        share="A",
        clients=1,
        pairs=15,
        rounds=1,
        seed=0,
        accuracy=0.75,
        per_client=tuple(people((4, 0.75, 15))),
    )
    told = dict(show_simulation._rows(result))
    assert told["personal accuracy (test, mean over people)"] == "0.750"
    assert told["of all test pairs together"] == "0.750"
    assert not any("interval" in name for name in told)
    write_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "From one person nothing follows for others." in page
    assert "people drawn anew" not in page


def test_result_json_has_the_spread_and_reads_without_it() -> None:
    scores = people((4, 0.25, 5), (20, 0.75, 10), (40, 0.5, 20))
    result = RunResult(
        dataset="three",
        base_model="tiny",
        share="A",
        clients=3,
        pairs=20,
        rounds=1,
        seed=0,
        accuracy=0.5,
        per_client=tuple(scores),
    )
    table = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    told = dict(table["spread"])
    intervals = told.pop("interval"), told.pop("pairs_interval")
    assert told == {
        "over_people": 0.5,
        "over_pairs": pytest.approx((1 + 15 + 20) / 64),
        "worst_tenth": 0.25,
        "well_tested": {"accuracy": 0.625, "people": 2},
        "groups": [
            {"least": 5, "most": 5, "people": 1, "accuracy": 0.25},
            {"least": 10, "most": 10, "people": 1, "accuracy": 0.75},
            {"least": 20, "most": 20, "people": 1, "accuracy": 0.5},
        ],
    }
    assert result.spread is not None
    assert intervals == (list(result.spread.interval or ()), list(result.spread.pairs_interval or ()))
    assert all(low < high for low, high in intervals)
    assert RunResult.from_dict(table).to_dict() == table
    earlier = {name: value for name, value in table.items() if name != "spread"}
    assert RunResult.from_dict(earlier).to_dict() == table
    nobody = RunResult.from_dict(earlier | {"per_client": []})
    assert (nobody.spread, nobody.to_dict()["spread"]) == (None, None)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1), st.integers(1, 60)), min_size=1, max_size=30))
def test_every_figure_is_within_what_people_have(rows: list[tuple[int, float, int]]) -> None:
    spread = spread_of(people(*rows))
    assert spread is not None
    least, most = min(right for _, right, _ in rows), max(right for _, right, _ in rows)
    assert (spread.interval is None) == (spread.pairs_interval is None) == (len(rows) == 1)
    figures = [spread.over_people, spread.over_pairs, spread.worst_tenth, *(spread.interval or ())]
    figures += [*(spread.pairs_interval or ()), *(group.accuracy for group in spread.groups)]
    assert all(least - 1e-9 <= figure <= most + 1e-9 for figure in figures)
    assert sum(group.people for group in spread.groups) in (0, len(rows))


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\uff1d1", "\t=1"])
def test_nobodys_name_is_computed_by_a_spreadsheet(name: str) -> None:
    (row,) = csv.DictReader(table_of([ClientScore(name, 10, 0.5, 20)], ["=folder"]).decode().splitlines())
    assert row["person"].lstrip("\t").startswith("'")
    assert row["person"].replace("'", "") == name
    assert (row["folder"], row["accuracy"]) == ("'=folder", "0.5")


def test_the_table_has_everybody() -> None:
    (row,) = csv.DictReader(table_of([ClientScore('a, "b"', 10, 0.5, 20)]).decode().splitlines())
    assert row == {"person": 'a, "b"', "train_pairs": "20", "test_pairs": "10", "accuracy": "0.5"}
