"""Votes on items in tables, a row for each person, item or vote, and the pairs, made by hand, of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.common.data.importers.choices import PAIRS_MOST
from penchant.common.data.importers.reading import Found, choices_of_rows, read_choices
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.trl_format import AskedColumns
from penchant.common.errors import DataError
from penchant.deploy import datasets

BY_PERSON = "person,Trees,Cars,Dogs\nann,1,-1,0\nbob,-1,,1\ncid,1,1,-1\n"
BY_ITEM = "item,ann,bob,cid\nTrees,1,-1,1\nCars,-1,,1\nDogs,0,1,-1\n"
BY_VOTE = (
    "person,item,vote\nann,Trees,1\nann,Cars,-1\nann,Dogs,0\nbob,Trees,-1\nbob,Dogs,1\n"
    "cid,Trees,1\ncid,Cars,1\ncid,Dogs,-1\nbob,Cars,\n"
)
PAIRS = {
    ("ann", "Trees", "Cars"),
    ("ann", "Trees", "Dogs"),
    ("ann", "Dogs", "Cars"),
    ("bob", "Dogs", "Trees"),
    ("cid", "Trees", "Dogs"),
    ("cid", "Cars", "Dogs"),
}


def read(path: Path, text: str, bad_rows: BadRows = "refuse", person_column: str | None = None) -> Found:
    path.write_text(text, encoding="utf-8")
    log = RowLog(bad_rows)
    found = read_choices(path, log, asked=AskedColumns(person_column or ""))
    log.finish(path)
    return found


def pairs(found: Found) -> list[tuple[str | None, str, str]]:
    return [(row.person, row.preference.chosen, row.preference.rejected) for row in found.labelled]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (BY_PERSON, "a row for each person"),
        (BY_ITEM, "a row for each item"),
        (BY_VOTE, "a row for each vote"),
        (BY_PERSON.replace("person", "Voter ID"), "a row for each person"),
        (BY_VOTE.replace(",1\n", ",yea\n").replace(",-1\n", ",Nay\n"), "a row for each vote"),
    ],
)
def test_votes_become_pairs_of_items_whatever_a_row_is(tmp_path: Path, text: str, kind: str) -> None:
    found = read(tmp_path / "votes.csv", text)
    assert len(found.labelled) == len(PAIRS)
    assert set(pairs(found)) == PAIRS
    assert all(row.preference.prompt == "" and not row.preference.tie for row in found.labelled)
    assert all(row.preference.strength is None for row in found.labelled)
    assert found.notes == [
        f"read as votes on items, {kind}",
        *{
            "a row for each person": ["columns that are read as items: 3 ('Trees', 'Cars', 'Dogs')"],
            "a row for each item": ["columns that are read as people: 3 ('ann', 'bob', 'cid')"],
        }.get(kind, []),
        "1 comparisons without an answer, or with the same thumb on both: not used",
    ]


def test_ratings_in_a_table_have_strengths_and_ties_as_stars_have(tmp_path: Path) -> None:
    found = read(tmp_path / "stars.csv", "user;Trees;Cars;Dogs\nann;5;2;2\nbob;;3.5;3\n")
    made = {(*pair, row.preference.strength) for pair, row in zip(pairs(found), found.labelled, strict=True)}
    assert made == {
        ("ann", "Trees", "Cars", 3.0),
        ("ann", "Trees", "Dogs", 3.0),
        ("ann", "Cars", "Dogs", None),
        ("bob", "Cars", "Dogs", 0.5),
    }
    assert [row.preference.chosen for row in found.labelled if row.preference.tie] == ["Cars"]


def test_a_long_table_may_have_prompts_and_names_nobody_on_a_device() -> None:
    rows = [
        {"prompt": prompt, "item": item, "vote": vote}
        for prompt, item, vote in [("p", "a", 1), ("p", "b", 0), ("q", "c", 1), ("q", "b", -1)]
    ]
    found = choices_of_rows(((str(n), row) for n, row in enumerate(rows)), RowLog())
    assert [
        (row.preference.prompt, *pair) for row, pair in zip(found.labelled, pairs(found), strict=True)
    ] == [
        ("p", None, "a", "b"),
        ("q", None, "c", "b"),
    ]


def test_the_counts_that_polis_puts_beside_votes_are_no_items(tmp_path: Path) -> None:
    head = "participant,group-id,n-comments,n-votes,n-agree,n-disagree,Trees,Cars\n"
    assert pairs(read(tmp_path / "p.csv", head + "7,0,2,2,1,1,-1,1\n")) == [("7", "Cars", "Trees")]
    numbered = head.replace("Trees,Cars", "0,1")
    with pytest.raises(DataError, match=r"p\.csv:1: items are called by numbers, .* comment-body"):
        read(tmp_path / "p.csv", numbered + "7,0,2,2,1,1,-1,1\n")


def test_a_table_that_does_not_say_what_a_row_is_is_refused(tmp_path: Path) -> None:
    text = BY_PERSON.replace("person", "name")
    with pytest.raises(DataError, match=r":1: .* first column 'name' .* call it 'person' .* or 'item' where"):
        read(tmp_path / "m.csv", text)
    assert set(pairs(read(tmp_path / "m.csv", text, person_column="name"))) == PAIRS


def test_a_row_with_a_cell_that_is_no_vote_is_a_bad_row(tmp_path: Path) -> None:
    bad = BY_PERSON + "dan,1,often,perhaps\neve,,,\n"
    told = r"2 of 5 rows .*:4: the vote in the column 'Cars' must be -1, 0, 1.*:5: votes on nothing"
    with pytest.raises(DataError, match=told):
        read(tmp_path / "m.csv", bad)
    assert set(pairs(read(tmp_path / "m.csv", bad, "skip"))) == PAIRS
    with pytest.raises(DataError, match=r"1 of 4 rows .*:4: the vote in the column 'bob' must be"):
        read(tmp_path / "m.csv", BY_ITEM + "Secret,1,perhaps,1\n")
    with pytest.raises(DataError, match=r"1 of 10 rows .*:10: the vote in the column 'vote' must be"):
        read(tmp_path / "m.csv", BY_VOTE + "cid,Secret,perhaps\n")


def test_a_row_without_the_column_of_votes_is_a_bad_row() -> None:
    rows = [{"person": "a", "item": item, "vote": vote} for item, vote in (("x", 1), ("y", None), ("z", -1))]
    log = RowLog("skip")
    located = [(f"f:{n}", row) for n, row in enumerate([*rows, {"person": "a", "item": "w"}], 1)]
    for _ in located:
        log.met()
    assert pairs(choices_of_rows(located, log)) == [("a", "x", "z")]
    assert [str(row) for row in log.finish("f").bad] == ["f:4: 'vote' is missing"]


def test_a_bad_row_of_many_votes_counts_once() -> None:
    rows = [{"split": "train", "person": "a", "x": 1, "y": 0}, {"split": "?", "person": "b", "x": 1, "y": 0}]
    rows.append({"split": "train", "person": "c", "x": 1, "y\ud800": 0})
    log = RowLog("skip")
    for _ in rows:
        log.met()
    assert pairs(choices_of_rows([(f"f:{n}", row) for n, row in enumerate(rows, 1)], log)) == [
        ("a", "x", "y")
    ]
    assert sorted(row.where for row in log.finish("f").bad) == ["f:2", "f:3"]


@pytest.mark.parametrize(
    ("text", "place", "column", "most"),
    [
        ("person,age,More trees,Fewer cars\nann,34,1,-1\n", 2, "age", 1),
        ("person,More trees,Fewer cars,age\nann,1,-1,\nbob,0,1,61\ncid,1,1,29\n", 3, "age", 1),
        ("person,Trees,Cars,Dogs,year\nann,5,4,1,1980\nbob,3,4,,2001\n", 3, "year", 5),
        ("person,Trees,Cars,income\nann,90,40,52000\nbob,3,75,1\n", 2, "income", 90),
        ("item,comment count,ann,bob\nTrees,3,1,-1\nCars,57,,1\nDogs,0,1,0\n", 3, "comment count", 1),
        ("item,ann,bob,cid,score in all\nTrees,5,3.5,1,-200\nCars,4,4,2,7\n", 2, "score in all", 5),
    ],
)
def test_a_column_that_goes_far_beyond_the_others_is_refused(
    tmp_path: Path, text: str, place: int, column: str, most: int
) -> None:
    place -= 1  # rows of a table are counted without its header
    with pytest.raises(DataError) as refused:
        read(tmp_path / "m.csv", text, "skip")
    assert str(refused.value) == (
        f"{tmp_path / 'm.csv'}:{place}: the column {column!r} goes far beyond most columns, whose votes keep "
        f"within -{most} and {most}; remove it if it holds no votes; if it does, make the table a row for "
        "each vote"
    )
    head, *rows = [line.split(",") for line in text.splitlines()]
    at = head.index(column)
    without = "\n".join(",".join(cells[:at] + cells[at + 1 :]) for cells in (head, *rows))
    assert column not in {name for pair in pairs(read(tmp_path / "m.csv", without)) for name in pair}


@pytest.mark.parametrize(
    "columns",
    [
        {"a": (0, 100, 50), "b": (12, 3, 0), "c": (20, 11, 2), "d": (4, 5, 97)},  # 0 to 100, used unevenly
        {"a": (-9.5, 3, 2), "b": (0.5, 1, -0.25), "c": (0, 0.1, 10), "d": (2, 2, 1)},  # Jester
        {"a": (1, 1, 1), "b": (1, 1, 0), "c": (5, 4, 1)},  # stars
        {"a": (1, 0, 1), "b": (-1, 0, 1), "c": (-3, 3, 0)},  # Likert
        {"a": (900, 1000, 100), "b": (120, 3, 0), "c": (200, 110, 5000)},
    ],
)
def test_columns_that_use_less_or_more_of_one_scale_are_all_read(
    tmp_path: Path, columns: dict[str, tuple[float, ...]]
) -> None:
    lines = [f"p{n},{','.join(f'{said[n]}' for said in columns.values())}" for n in range(3)]
    found = read(tmp_path / "m.csv", "\n".join([f"person,{','.join(columns)}", *lines]))
    wanted = {
        (f"p{n}", one, other, said[n] - columns[other][n])
        for n in range(3)
        for one, said in columns.items()
        for other in columns
        if said[n] > columns[other][n]
    }
    assert {
        (*pair, row.preference.strength)
        for pair, row in zip(pairs(found), found.labelled, strict=True)
        if not row.preference.tie
    } == wanted


def test_a_row_for_each_vote_may_go_as_far_as_it_likes(tmp_path: Path) -> None:
    found = read(tmp_path / "m.csv", "person,item,vote\nann,age,34\nann,Trees,1\nann,Cars,-1\n")
    assert [row.preference.strength for row in found.labelled] == [33.0, 35.0, 2.0]


def test_of_many_columns_the_first_are_named(tmp_path: Path) -> None:
    head = ",".join(f"item {n}" for n in range(7))
    found = read(tmp_path / "m.csv", f"person,{head}\nann,1,0,1,0,1,0,1\n")
    named = ", ".join(f"'item {n}'" for n in range(5))
    assert found.notes[1] == f"columns that are read as items: 7 ({named} and 2 more)"


def test_many_items_meet_a_bounded_number(tmp_path: Path) -> None:
    head = ",".join(f"item {n}" for n in range(100))
    found = read(tmp_path / "m.csv", f"person,{head}\nann,{','.join('01' * 50)}\n")
    assert len(found.labelled) == 50 * PAIRS_MOST
    assert f"{50 * 50 - 50 * PAIRS_MOST} comparisons left out" in "; ".join(found.notes)


def test_rows_of_other_kinds_are_no_tables_of_votes() -> None:
    row = {"person": "a", "prompt": "p", "chosen": "c", "rejected": "r", "vote": 1, "item": 2}
    found = choices_of_rows([("1", row)], RowLog())
    assert pairs(found) == [("a", "c", "r")]
    log = RowLog("skip")
    assert not choices_of_rows([("1", {"item": "x", "label": "spam", "person": "a"})], log).labelled


def test_a_table_of_votes_is_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    items = [f"item {n}" for n in range(40)]
    people = {"ann": lambda n: n % 3 - 1, "bob": lambda n: 1 - n % 2}
    path.write_text(
        "".join(
            json.dumps({"person": name, **{item: said(n) for n, item in enumerate(items)}}) + "\n"
            for name, said in people.items()
        )
    )
    federation = datasets.load(path, pairs=5, validation_pairs=2, test_pairs=4)
    for person in federation.people:
        assert len(person.test) == 4
        for pair in (*person.train, *person.test):
            better, worse = (people[person.name](items.index(text)) for text in (pair.chosen, pair.rejected))
            assert better > worse
