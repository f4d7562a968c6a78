"""Files of one's own: a test part that is tested on and never trained on, tables, and what is said of all."""

from __future__ import annotations

import csv
import json
import re
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from penchant.common.data.preferences import Federation
from penchant.common.errors import DataError
from penchant.deploy import datasets

SMALL: dict[str, Any] = {"pairs": 4, "validation_pairs": 2, "test_pairs": 3}
Row = dict[str, Any]


def rows(people: str = "ab", count: int = 20, what: str = "asks", **more: Any) -> list[Row]:
    return [
        {"person": person, "prompt": f"{person} {what} {n}", "chosen": f"yes {n}", "rejected": "no", **more}
        for n in range(count)
        for person in people
    ]


def write(path: Path, given: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def prompts(federation: Federation, part: str) -> list[str]:
    return [pair.prompt for person in federation.people for pair in getattr(person, part)]


def said(federation: Federation) -> str:
    return "; ".join(federation.caveats)


def assert_own_split(federation: Federation) -> None:
    assert all(len(person.train) == 4 and len(person.test) == 3 for person in federation.people)
    assert all("HELD OUT" in prompt for prompt in prompts(federation, "test"))
    for part in ("train", "validation"):
        assert prompts(federation, part)
        assert not any("HELD OUT" in prompt for prompt in prompts(federation, part))
    assert "the split is the data's own: 6 pairs are tested on" in said(federation)
    assert "34 more test pairs are beyond the number asked for" in said(federation)


def test_a_folder_with_a_test_file_is_tested_on_it(tmp_path: Path) -> None:
    """Read in the order of their names, the test rows would come first: oldest, and trained on."""
    write(tmp_path / "train.jsonl", rows())
    write(tmp_path / "test.jsonl", rows(what="HELD OUT"))
    federation = datasets.load(tmp_path, **SMALL)
    assert_own_split(federation)
    assert "the names of the files say which part they are: 1 for train, 1 for test" in said(federation)


def test_a_column_says_which_part_a_row_is(tmp_path: Path) -> None:
    given = [*rows(what="HELD OUT", split="test"), *rows(split="train")]
    assert_own_split(datasets.load(write(tmp_path / "all.jsonl", given), **SMALL))
    with pytest.raises(DataError, match=r"40 of 80 rows .* 'split' must be train, validation, test"):
        datasets.load(write(tmp_path / "odd.jsonl", [*rows(split="train"), *rows(split="later")]), **SMALL)


def as_stars(given: Iterable[Row]) -> list[Row]:
    """The same choices as ratings: five stars for one response, one for the other."""
    return [
        {**{name: value for name, value in row.items() if name not in ("chosen", "rejected")}}
        | {"completion": row[side], "stars": stars}
        for row in given
        for side, stars in (("chosen", 5), ("rejected", 1))
    ]


def as_votes(given: Iterable[Row]) -> list[Row]:
    """The same choices as votes of an arena."""
    names = {"chosen": "conversation_a", "rejected": "conversation_b"}
    return [
        {"judge": row["person"], "winner": "model_a"}
        | {
            name: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            for side, name in names.items()
        }
        | ({"split": row["split"]} if "split" in row else {})
        for row in given
    ]


@pytest.mark.parametrize("written_as", [as_stars, as_votes])
def test_a_split_of_one_s_own_holds_for_every_format(written_as: Any, tmp_path: Path) -> None:
    given = [*rows(what="HELD OUT", split="test"), *rows(split="train")]
    assert_own_split(datasets.load(write(tmp_path / "all.jsonl", written_as(given)), **SMALL))
    write(tmp_path / "folder" / "train.jsonl", written_as(rows()))
    write(tmp_path / "folder" / "test.jsonl", written_as(rows(what="HELD OUT")))
    assert_own_split(datasets.load(tmp_path / "folder", **SMALL))


def test_ratings_that_are_dealt_out_by_kind_stay_those_of_their_people(tmp_path: Path) -> None:
    """Ann and Bob rate the same two responses to each prompt the other way round, and of two kinds each."""
    given = []
    for n in range(40):
        for person, scores in (("ann", (5, 1)), ("bob", (2, 4))):
            given += [
                {"person": person, "prompt": f"p {n}", "completion": text, "stars": score, "subset": kind}
                for text, score, kind in zip(("yes", "no"), scores, ("chat", "math"), strict=True)
            ]
    path = write(tmp_path / "stars.jsonl", given)
    wide = {"pairs": 80, "validation_pairs": 80, "test_pairs": 80}
    federation = datasets.load(path, partition="dirichlet:2:100:subset", **wide)
    pairs = [p for person in federation.people for p in (*person.train, *person.validation, *person.test)]
    assert {(pair.chosen, pair.strength) for pair in pairs} == {("yes", 4.0), ("no", 2.0)}


def test_a_part_that_the_first_row_does_not_say_is_not_passed_over(tmp_path: Path) -> None:
    late = [*rows(), *rows(what="HELD OUT", split="test")]
    told = r"40 of 80 rows .*:41: has a column 'split' that the first row lacks; say of every row"
    with pytest.raises(DataError, match=told):
        datasets.load(write(tmp_path / "late.jsonl", late), **SMALL)
    write(tmp_path / "folder" / "a.jsonl", rows())
    write(tmp_path / "folder" / "b.jsonl", rows(what="HELD OUT", split="test"))
    with pytest.raises(DataError, match=r"40 of 80 rows .*b\.jsonl:1: has a column 'split'"):
        datasets.load(tmp_path / "folder", **SMALL)
    skipped = datasets.load(tmp_path / "late.jsonl", bad_rows="skip", **SMALL)
    for part in ("train", "validation", "test"):
        assert not any("HELD OUT" in prompt for prompt in prompts(skipped, part))
    assert "skipped bad rows: 40 of 80" in said(skipped)
    empty = datasets.load(write(tmp_path / "empty.jsonl", [*rows(), *rows("a", 1, "x", split="")]), **SMALL)
    assert not any(caveat.startswith("skipped") for caveat in empty.caveats)


def test_a_test_file_is_named_beside_the_training_file(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.jsonl", rows()), write(tmp_path / "b.jsonl", rows(what="HELD OUT"))
    federation = datasets.load(train, test=test, **SMALL)
    assert_own_split(federation)
    assert datasets.load(train, test=test, **SMALL).digest == federation.digest
    assert datasets.load(train, **SMALL).digest != federation.digest
    with pytest.raises(DataError, match=r"there is no file .*gone\.jsonl to test on"):
        datasets.load(train, test=tmp_path / "gone.jsonl", **SMALL)
    with pytest.raises(DataError, match="has a test part itself; drop the other one"):
        datasets.load(write(tmp_path / "c.jsonl", rows(split="test")), test=test, **SMALL)
    with pytest.raises(DataError, match="'senate' is split and read in its own way; drop a test part"):
        datasets.load("senate", test=test)
    with pytest.raises(DataError, match="time_cutoff is for data that are split by time"):
        datasets.load(train, test=test, until=0.5, **SMALL)


def test_the_splits_of_a_hub_data_set_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train_prefs": rows(), "test_prefs": rows(what="HELD OUT")}
    hub = types.ModuleType("datasets")

    def load_dataset(name: str, config: str | None, split: str) -> list[Row]:
        if split not in splits:
            raise ValueError(f"Unknown split {split!r}. Should be one of {list(splits)}.")
        return splits[split]

    hub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert_own_split(datasets.load("some/pairs:train_prefs", test="some/pairs:test_prefs", **SMALL))
    with pytest.raises(DataError, match=r"Unknown split 'train'. Should be one of \['train_prefs', 'test_p"):
        datasets.load("some/pairs", **SMALL)


def test_a_path_that_was_mistyped_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    hub = types.ModuleType("datasets")

    def load_dataset(name: str, config: str | None, split: str) -> list[Row]:
        asked.append(name)
        return rows(what=split)

    hub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.chdir(tmp_path)
    write(Path("d/ok.jsonl"), rows())
    for wrong in ("d/nothere.jsonl", "gone/nothere.csv", "d/ok.txt", "d/nothere", "d/ok:test"):
        with pytest.raises(DataError, match=f"^there is no file {wrong}$"):
            datasets.load(wrong, **SMALL)
        with pytest.raises(DataError, match=f"^there is no file {wrong} to test on$"):
            datasets.load("d/ok.jsonl", test=wrong, **SMALL)
    assert not asked
    assert datasets.load("some/pairs", test="some/pairs:test", **SMALL).people
    assert asked == ["some/pairs", "some/pairs"]


def test_what_is_tested_on_is_trained_on_by_nobody(tmp_path: Path) -> None:
    """Ann trains on Bob's test comparison, answered the other way: it goes, and is counted."""
    shared = {"prompt": "bob HELD OUT 0", "chosen": "no", "rejected": "yes 0"}
    write(tmp_path / "train.jsonl", [{"person": "a", **shared}, *rows(count=5)])
    test = rows("b", 3, "HELD OUT")
    test[0]["prompt"] = "bob HELD OUT 0"
    test[1]["prompt"] = "a asks 0"  # met in training, but with other responses
    write(tmp_path / "test.jsonl", [*rows("a", 3, "HELD OUT"), *test])
    federation = datasets.load(tmp_path, pairs=9, validation_pairs=0, test_pairs=9)
    assert "bob HELD OUT 0" not in prompts(federation, "train")
    assert "1 pairs compare what is tested or validated on" in said(federation)
    assert "1 of them have a prompt that is trained on as well" in said(federation)


def test_a_validation_part_of_ones_own(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write(tmp_path / f"{part}-0.jsonl", rows(what=part))
    federation = datasets.load(tmp_path, **SMALL)
    for part in ("train", "validation", "test"):
        assert all(f" {part} " in prompt for prompt in prompts(federation, part))
    (tmp_path / "test-0.jsonl").unlink()
    with pytest.raises(DataError, match="for train and validation, and has none to test on"):
        datasets.load(tmp_path, **SMALL)


def test_without_a_validation_part_the_last_training_items_are_held_out(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows())
    write(tmp_path / "test.jsonl", rows(what="HELD OUT"))
    all_of_it = {"pairs": 50, "test_pairs": 50}
    federation = datasets.load(tmp_path, validation_pairs=50, **all_of_it)
    assert sorted(prompts(federation, "validation")) == [
        f"{who} asks {n}" for who in "ab" for n in (17, 18, 19)
    ]
    whole = datasets.load(tmp_path, validation_pairs=0, **all_of_it)
    assert len(prompts(whole, "train")) == 40
    assert prompts(whole, "test") == prompts(federation, "test")


def test_every_file_of_a_folder_is_read(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    write(tmp_path / "a.jsonl", rows("a"))
    parquet.write_table(pyarrow.Table.from_pylist(rows("b")), tmp_path / "b.parquet")
    (tmp_path / "c.json").write_text(json.dumps(rows("c")))
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / "notes.docx").write_text("")
    with (tmp_path / "d.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["person", "prompt", "chosen", "rejected"])
        table.writeheader()
        table.writerows(rows("d"))
    federation = datasets.load(tmp_path, **SMALL)
    assert [person.name for person in federation.people] == ["a", "b", "c", "d"]
    assert said(federation) == "files that are not read: notes.docx"


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    given = [
        {"who": r["person"], "question": r["prompt"], "better": r["chosen"], "worse": r["rejected"]}
        for r in rows()
    ]
    path = write(tmp_path / "a.jsonl", given)
    names = {"person": "who", "prompt": "question", "chosen": "better", "rejected": "worse"}
    same = datasets.load(write(tmp_path / "same" / "a.jsonl", rows()), **SMALL)
    assert datasets.load(path, columns=names, **SMALL).digest == same.digest
    with pytest.raises(
        DataError, match=r"40 of 40 rows .*:1: there is no column 'ask', .* 'question', .*; name"
    ):
        datasets.load(path, columns={**names, "prompt": "ask"}, **SMALL)


def test_what_is_not_read_or_contradicts_itself_is_said(tmp_path: Path) -> None:
    given = rows(images=["a.png"])
    turned = {**given[0], "chosen": given[0]["rejected"], "rejected": given[0]["chosen"]}
    federation = datasets.load(write(tmp_path / "a.jsonl", [*given, turned, given[1]]), **SMALL)
    assert "only texts are read: what is in the column 'images' is not" in federation.caveats
    assert "1 comparisons are answered both ways by the same person: both count" in federation.caveats


def refusal_of(path: Path, **more: Any) -> str:
    with pytest.raises(DataError) as refusal:
        datasets.load(path, **SMALL, **more)
    return refusal.value.on_command_line


def test_why_somebody_has_no_pairs_is_said(tmp_path: Path) -> None:
    """Three reasons that more choices of the same kind would not change."""
    one = write(tmp_path / "one.jsonl", [{**row, "prompt": "always"} for row in rows()])
    told = "has no pairs to train on: all their choices have one prompt, .*; .* say what is tested on"
    assert re.search(f"client 'a' {told} \\(--test FILE\\)$", refusal_of(one))
    train = write(tmp_path / "train.jsonl", rows())
    other = write(tmp_path / "other.jsonl", rows("xy"))
    told = (
        "client 'a' has no pairs to test on: the test part and the training part have no person in common; "
    )
    assert refusal_of(train, test=other) == f"{told}call people alike in both"
    told = "client 'a' has no pairs to train on: all their pairs for training are tested on as well, and are "
    assert (
        refusal_of(train, test=train)
        == f"{told}left out of training; keep apart what is trained and tested on"
    )
    split = write(tmp_path / "split.jsonl", [*rows(split="train"), *rows(split="test")])
    assert refusal_of(split).startswith(told)
    with pytest.raises(
        DataError, match="nobody both a training and a test pair: all their choices have one pr"
    ):
        datasets.load(one, bad_rows="skip", **SMALL)


def test_what_came_to_nothing_is_said_where_nobody_is_left(tmp_path: Path) -> None:
    """Votes without an answer, ratings without another response, rows that were skipped."""
    sides = {
        f"conversation_{side}": [{"role": "user", "content": "q"}, {"role": "assistant", "content": side}]
        for side in "ab"
    }
    unsaid = write(tmp_path / "votes.jsonl", [{"winner": "", "judge": "j", **sides}] * 3)
    told = (
        "data set 'votes' gives nobody both a training and a test pair; of what was read: "
        "3 comparisons without an answer, or with the same thumb on both: not used"
    )
    assert refusal_of(unsaid) == told
    rated = [{"person": "a", "prompt": f"p{n}", "completion": "x", "rating": n} for n in range(4)]
    alone = write(tmp_path / "alone.jsonl", [*rated, {"prompt": "p", "completion": "y", "rating": 1}])
    with pytest.raises(DataError) as refused:
        datasets.load(alone, bad_rows="skip", **SMALL)
    assert str(refused.value) == (
        "data set 'alone' gives nobody both a training and a test pair; of what was read: 4 ratings without "
        "another response to the same prompt: not used; 1 of 5 rows can't be used: "
        f"{alone}:5: 'person' is missing"
    )
    pair = {"winner": "a", "judge": "j", **sides}
    few = write(tmp_path / "few.jsonl", [pair, {**pair, "winner": None}])
    assert refusal_of(few).endswith(
        "; give it more choices; of what was read: 1 comparisons without an answer, or with the same thumb "
        "on both: not used"
    )


def test_choices_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    once = datasets.load(write(tmp_path / "a" / "x.jsonl", rows()), **SMALL)
    twice = datasets.load(write(tmp_path / "b" / "x.jsonl", [*rows(), *rows()]), **SMALL)
    assert "40 there more than once: they count once" in twice.caveats
    assert "more than once" not in said(once)
    assert twice.digest == once.digest
    parts = [*rows(split="train"), *rows(what="HELD OUT", split="test"), *rows("a", 1, split="train")]
    told = datasets.load(write(tmp_path / "parts.jsonl", parts), **SMALL)
    assert "1 there more than once: they count once" in told.caveats


def test_who_has_too_few_can_be_left_out_where_others_are_left(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [*rows(), *rows("c", 1)])
    told = "; give it more choices, leave it out, or leave such clients out (--skip-bad-rows)"
    assert refusal_of(few).startswith("client 'c' has no pairs to t")
    assert refusal_of(few).endswith(told)
    one = [*rows(), *({**row, "prompt": "always"} for row in rows("c"))]
    assert refusal_of(write(tmp_path / "one.jsonl", one)).endswith(
        "say what is tested on (--test FILE), leave it out, or leave such clients out (--skip-bad-rows)"
    )
    left = datasets.load(tmp_path / "one.jsonl", bad_rows="skip", **SMALL)
    assert re.search(
        r"left out: 1 \(c has no pairs to \w+ on\); all their choices have one prompt", said(left)
    )


def test_long_names_are_shortened_in_what_is_said(tmp_path: Path) -> None:
    name = "n" * 4000
    given = [*rows("a"), *({**row, "person": name} for row in rows("b", 12)), *rows("c", 1)]
    path = write(tmp_path / "a.jsonl", [*given, *({**row, "person": f"{name}2"} for row in rows("d", 1))])
    assert len(said(datasets.load(path, bad_rows="skip", pairs=15, validation_pairs=2, test_pairs=3))) < 700
    write(path, [*rows("a"), *({**row, "person": name} for row in rows("b", 1))])
    assert len(refusal_of(path)) < 250


def test_a_table_of_votes_is_split_as_its_rows_say(tmp_path: Path) -> None:
    """Rows are items; those that are for the test part are compared with one another alone."""
    table = ["item,split,ann,bob,cy"]
    for n in range(12):
        part, what = ("test", "HELD OUT ") if n < 6 else ("train", "")
        table.append(
            f"{what}statement {n},{part},{1 if n % 2 else -1},{-1 if n % 2 else 1},{1 if n % 3 else -1}"
        )
    path = tmp_path / "votes.csv"
    path.write_text("\n".join(table) + "\n")
    federation = datasets.load(path, pairs=60, validation_pairs=60, test_pairs=60)
    for person in federation.people:
        assert person.test
        assert person.train
        assert all(p.chosen.startswith("HELD") and p.rejected.startswith("HELD") for p in person.test)
        assert not any("HELD" in p.chosen + p.rejected for p in (*person.train, *person.validation))
    with pytest.raises(DataError, match="a table of votes has no kinds of choices"):
        datasets.load(path, partition="dirichlet:2:1:split")
