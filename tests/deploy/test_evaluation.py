"""Models judged on pairs from elsewhere, with models whose scores are plain to see."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from penchant.client.learning.merged_model import MergedModel
from penchant.common.data.preferences import Preference, comparison_of
from penchant.common.errors import DataError, UsageError
from penchant.deploy.evaluation import Models, evaluate, write_scores


class Likes:
    """Scores a response by how often its letter is in it."""

    def __init__(self, letter: str) -> None:
        self.letter = letter

    def unread(self, pairs: Sequence[Preference]) -> list[str]:
        return [f"{pair.prompt}is long" for pair in pairs if len(pair.prompt) > 9]

    def both_scores(self, pairs: Sequence[Preference]) -> Iterator[tuple[float, float]]:
        return iter([(self._score(pair.chosen), self._score(pair.rejected)) for pair in pairs])

    def _score(self, text: str) -> float:
        return float(text.count(self.letter))


def likes(letter: str) -> MergedModel:
    return cast(MergedModel, Likes(letter))


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(chosen: str, rejected: str, **more: str) -> dict[str, str]:
    return {"prompt": "p ", "chosen": chosen, "rejected": rejected, **more}


def test_everybody_is_judged_by_their_own_model_and_strangers_by_the_shared_one(tmp_path: Path) -> None:
    file = written(
        tmp_path / "pairs.jsonl",
        row("bb", "aa", person="bea"),  # as bea's own model has it
        row("a", "b", person="kim"),  # kim is a stranger: the shared model likes a
        row("a", "b", person="bea"),
        row("aa", "ab", person="kim"),
        row("c", "d", person="kim"),  # nobody's letter: a tie, which is not correct
    )
    own = {"bea": likes("b")}
    trained = {comparison_of(Preference("p ", "aa", "bb"))}
    found = evaluate(file, Models(likes("a"), own.get, lambda person: trained))
    assert [(pair.group, pair.own, pair.correct) for pair in found.pairs] == [
        ("bea", True, True),
        ("kim", False, True),
        ("bea", True, False),
        ("kim", False, True),
        ("kim", False, False),
    ]
    assert [(g.group, g.pairs, g.correct, g.tied) for g in found.groups] == [
        ("bea", 2, 1, 0),
        ("kim", 3, 2, 1),
    ]
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.mean_over_groups == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.standard_error == pytest.approx(abs(1 / 2 - 2 / 3) / 2)  # s / sqrt(2), s = |x - y| / sqrt(2)
    assert found.tied == 1
    assert found.notes[-1] == "1 pair compares what their person's model was trained on"


def test_of_strangers_it_is_said_what_the_shared_model_was_trained_on(tmp_path: Path) -> None:
    file = written(
        tmp_path / "pairs.jsonl",
        row("bb", "aa", person="bea"),
        row("a", "b", person="kim"),
        row("b", "a", person="kim"),
        row("a", "c", person="kim"),
        row("a", "b", person="kim", tie="equal"),  # scored by nobody's accuracy
    )
    trained = {comparison_of(Preference("p ", "a", "b"))}
    models = Models(likes("a"), {"bea": likes("b")}.get, all_trained_on=lambda: trained)
    found = evaluate(file, models)
    assert "2 pairs compare what the shared model was trained on" in found.notes
    assert not any("their person's model" in note for note in found.notes)


def test_pairs_are_scored_by_person_and_grouped_by_kind(tmp_path: Path) -> None:
    """Bea's own model scores her pairs, whatever they are grouped by; strengths stay relative to hers."""
    rows = [
        row("b", "a", person="bea", subset="chat") | {"strength": 3},
        row("b", "a", person="bea", subset="math") | {"strength": 1},
        row("b", "a", person="kim", subset="chat") | {"strength": 5},
    ]
    models = Models(likes("a"), {"bea": likes("b")}.get)
    by_kind = evaluate(written(tmp_path / "pairs.jsonl", *rows), models, by="subset")
    assert [(pair.group, pair.own, pair.correct, pair.weight) for pair in by_kind.pairs] == [
        ("chat", True, True, 1.5),
        ("math", True, True, 0.5),
        ("chat", False, False, 1.0),
    ]
    assert [(g.group, g.pairs, g.correct, g.own_pairs, g.own) for g in by_kind.groups] == [
        ("chat", 2, 1, 1, False),
        ("math", 1, 1, 1, True),
    ]
    assert by_kind.mean_over_groups == pytest.approx(3 / 4)
    by_person = evaluate(tmp_path / "pairs.jsonl", models)
    assert by_person.log_loss == pytest.approx(by_kind.log_loss)


def test_people_are_known_by_the_column_that_the_run_knew_them_by(tmp_path: Path) -> None:
    rows = [row("b", "a", author="bea", subset="chat"), row("b", "a", author="kim", subset="chat")]
    file = written(tmp_path / "pairs.jsonl", *rows)
    own = {"bea": likes("b")}.get
    known = Models(likes("a"), own, person_column="author")
    assert [pair.own for pair in evaluate(file, known).pairs] == [True, False]
    assert [pair.own for pair in evaluate(file, known, by="subset").pairs] == [True, False]
    for models in (known, Models(likes("a"), own)):
        found = evaluate(file, models, by="author")
        assert [(pair.group, pair.own) for pair in found.pairs] == [("bea", True), ("kim", False)]


def test_ratings_are_compared_within_a_person_whatever_they_are_grouped_by(tmp_path: Path) -> None:
    said = (
        ("bea", "a", 1, "chat"),
        ("kim", "b", 2, "chat"),
        ("bea", "aa", 3, "math"),
        ("kim", "c", 1, "chat"),
    )
    rows = [
        {"person": person, "prompt": "p ", "completion": text, "stars": stars, "subset": kind}
        for person, text, stars, kind in said
    ]
    found = evaluate(written(tmp_path / "stars.jsonl", *rows), Models(likes("a")), by="subset")
    assert [(pair.group, pair.chosen, pair.rejected) for pair in found.pairs] == [
        ("chat and math", 2.0, 1.0),
        ("chat", 0.0, 0.0),
    ]


def test_texts_that_the_model_does_not_read_are_said(tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", row("a", "b"), row("a", "b") | {"prompt": "very very much "})
    assert evaluate(file, Models(likes("a"))).notes == ("very very much is long",)


def test_the_loss_is_that_of_bradley_and_terry(tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", row("aaa", "a"), row("a", "aa"), row("b", "c"))
    found = evaluate(file, Models(likes("a")))
    expected = [-math.log(1 / (1 + math.exp(-margin))) for margin in (2, -1, 0)]
    assert found.log_loss == pytest.approx(sum(expected) / 3)
    far = evaluate(written(tmp_path / "far.jsonl", row("b", "a" * 5000)), Models(likes("a")))
    assert far.log_loss == 5000  # and no overflow


def test_kinds_are_a_column_of_any_name(tmp_path: Path) -> None:
    """As RewardBench's rows, which say nobody's name but a subset."""
    file = written(
        tmp_path / "bench.jsonl",
        row("a", "b", subset="chat"),
        row("b", "a", subset="safety"),
        row("a", "b", subset="chat"),
    )
    found = evaluate(file, Models(likes("a")), by="subset")
    assert {group.group: group.accuracy for group in found.groups} == {"chat": 1.0, "safety": 0.0}
    unnamed = evaluate(file, Models(likes("a")))
    assert [(group.group, group.pairs) for group in unnamed.groups] == [("(nobody)", 3)]
    assert unnamed.standard_error is None


def test_columns_may_have_other_names_and_bad_rows_are_counted(tmp_path: Path) -> None:
    file = written(
        tmp_path / "odd.jsonl", {"q": "p ", "chosen": "a", "rejected": "b"}, {"q": "p ", "chosen": "a"}
    )
    with pytest.raises(DataError, match="1 of 2 rows can't be used"):
        evaluate(file, Models(likes("a")), columns=["prompt=q"])
    found = evaluate(file, Models(likes("a")), columns=["prompt=q"], bad_rows="skip")
    assert len(found.pairs) == 1
    assert any("1 of 2 rows can't be used" in note for note in found.notes)


def test_nothing_to_judge_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        evaluate(tmp_path / "absent.jsonl", Models(likes("a")))
    with pytest.raises(DataError, match="nothing to use"):
        evaluate(written(tmp_path / "empty.jsonl"), Models(likes("a")))


def test_no_spreadsheet_computes_a_name_in_the_scores(tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", row("aa", "b", person="=cmd|'/c calc'!A0"))
    write_scores(evaluate(file, Models(likes("a"))), tmp_path / "scores.csv")
    (read,) = csv.DictReader((tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines())
    assert read["group"] == "'=cmd|'/c calc'!A0"


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.csv"])
def test_scores_are_written_pair_by_pair_and_never_over_a_file(name: str, tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", row("aa", "b", person="bea"), row("c", "a", person="kim"))
    found = evaluate(file, Models(likes("a")))
    write_scores(found, tmp_path / name)
    text = (tmp_path / name).read_text(encoding="utf-8")
    read = (
        [json.loads(line) for line in text.splitlines()]
        if name.endswith("l")
        else list(csv.DictReader(text.splitlines()))
    )
    assert [(int(r["pair"]), r["group"], float(r["chosen"]), float(r["rejected"])) for r in read] == [
        (1, "bea", 2.0, 0.0),
        (2, "kim", 0.0, 1.0),
    ]
    assert [r["row"] for r in read] == [f"{file}:1", f"{file}:2"]
    with pytest.raises(UsageError, match="is there already"):
        write_scores(found, tmp_path / name)
    with pytest.raises(UsageError, match="can't write the scores"):
        write_scores(found, tmp_path / "absent" / name)


def test_scores_can_be_joined_to_the_file_whatever_is_left_out(tmp_path: Path) -> None:
    """Ties, bad rows, and people whose pairs stand apart."""
    file = tmp_path / "pairs.jsonl"
    rows = [
        row("aa", "b", person="bea"),
        row("b", "a", person="kim", tie="equal"),
        row("b", "b", person="kim"),  # a bad row
        row("c", "a", person="kim"),
        row("aaa", "b", person="bea"),
    ]
    written(file, *rows)
    file.write_text("\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    found = evaluate(file, Models(likes("a")), bad_rows="skip")
    write_scores(found, tmp_path / "scores.jsonl")
    read = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text("utf-8").splitlines()]
    assert [(r["pair"], r["row"], r["chosen"]) for r in read] == [
        (1, f"{file}:2", 2.0),
        (3, f"{file}:5", 0.0),
        (4, f"{file}:6", 3.0),
    ]
    lines = file.read_text(encoding="utf-8").splitlines()
    for one in read:
        joined = json.loads(lines[int(one["row"].rsplit(":", 1)[1]) - 1])
        assert joined["chosen"].count("a") == one["chosen"]


def test_a_pair_of_two_rows_names_both(tmp_path: Path) -> None:
    file = tmp_path / "stars.csv"
    file.write_text("person,prompt,completion,stars\nbea,p,a,1\nkim,p,b,2\nbea,p,aa,3\nbea,p,c,\n")
    found = evaluate(file, Models(likes("a")), bad_rows="skip")
    assert [(pair.number, pair.row, pair.chosen) for pair in found.pairs] == [
        (1, f"{file}:3 and {file}:1", 2.0)
    ]


def test_ties_are_left_out_of_the_accuracy_and_said(tmp_path: Path) -> None:
    file = written(
        tmp_path / "pairs.jsonl",
        row("aa", "b", person="bea"),
        row("a", "aaaa", person="bea", tie="equal"),  # would be ranked wrong
        row("b", "aa", person="kim"),
    )
    found = evaluate(file, Models(likes("a")))
    assert [pair.correct for pair in found.pairs] == [True, False]
    assert (found.accuracy, found.ties, found.to_dict()["ties"]) == (0.5, 1, 1)
    wanted = (
        "1 tie left out of the accuracy: their two scores lie 3.00 apart in the mean, those of choices 2.00"
    )
    assert found.notes[-1] == wanted
    with pytest.raises(DataError, match="holds ties alone"):
        evaluate(written(tmp_path / "ties.jsonl", row("a", "b", tie="true")), Models(likes("a")))


def test_strong_choices_count_more_in_the_log_loss_and_alike_in_the_accuracy(tmp_path: Path) -> None:
    """Bea's two choices, 3 to 1: the one that is ranked right counts 1.5, the other one 0.5, kim's 1."""
    rows = [row("aa", "b", person="bea"), row("b", "aa", person="bea"), row("b", "a", person="kim")]
    plain = evaluate(written(tmp_path / "plain.jsonl", *rows), Models(likes("a")))
    for one, strength in zip(rows, (3, 1, 7), strict=True):
        one["strength"] = strength
    found = evaluate(written(tmp_path / "pairs.jsonl", *rows), Models(likes("a")))
    losses = [pair.loss for pair in plain.pairs]
    assert found.log_loss == pytest.approx((1.5 * losses[0] + 0.5 * losses[1] + losses[2]) / 3)
    assert plain.log_loss == pytest.approx(sum(losses) / 3)
    assert (found.accuracy, found.groups) == (plain.accuracy, plain.groups)
    assert any("3 choices say how strong they are" in note for note in found.notes)
