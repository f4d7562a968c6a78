"""UKPConvArg1, on made-up files of the original's schema: strict choices, whole debates on one side."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.argument_files import DEBATES, write

from penchant.common.data.row_files import RowLog
from penchant.common.errors import DataError
from penchant.deploy import datasets
from penchant.deploy.datasets import arguments

SIDES = ("Yes", "No")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for title in DEBATES:
        for side in SIDES:
            write(tmp_path, title, side, {"W1": "a1", "W2": "a2", "W3": "equal"})
    return tmp_path


def test_people_are_tested_on_debates_that_nobody_was_trained_on(folder: Path) -> None:
    federation = datasets.load(f"arguments:{folder}", pairs=50, validation_pairs=50, test_pairs=50)
    assert [person.name for person in federation.people] == ["W1", "W2"]
    debates = {
        part: {pair.prompt.split(":")[0] for p in federation.people for pair in getattr(p, part)}
        for part in ("train", "validation", "test")
    }
    assert debates["train"] | debates["test"] | debates["validation"] <= set(DEBATES)
    assert len(debates["test"]) == 2
    assert not debates["test"] & (debates["train"] | debates["validation"])
    one, two = federation.people
    assert all(" strong " in pair.chosen and " weak & " in pair.rejected for pair in one.train)
    assert all(" weak & " in pair.chosen for pair in two.train)
    assert {pair.prompt for pair in one.train} >= {
        f"{sorted(debates['train'])[0]}: {side}\n" for side in SIDES
    }
    assert "Arguments: 48 judgements that both are equal are not used." in federation.caveats
    again = datasets.load(f"arguments:{folder}", pairs=50, validation_pairs=50, test_pairs=50, seed=1)
    assert {p.prompt for x in again.people for p in x.test} == {
        p.prompt for x in federation.people for p in x.test
    }


def test_two_copies_of_one_text_say_nothing(folder: Path) -> None:
    write(folder, "Copies", "Yes", {"W1": "a1", "W3": "equal"}, one="Copies Yes weak &amp; 0", count=1)
    federation = datasets.load(f"arguments:{folder}")
    assert "Arguments: 1 judgements between two copies of one text are not used." in federation.caveats


def test_bad_judgements_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "A", "Yes", {"W1": "a3", "": "a1"}, count=1)
    log = RowLog("skip")
    assert list(arguments.read(tmp_path, log)) == []
    with pytest.raises(
        DataError, match=r"nothing to use, 2 of 2 rows .*:1: the value must be a1, a2 or equal"
    ):
        log.finish(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<list>", "is no XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><list>&a;</list>', "declares a document type"),
        ("<list/>", "it has no rows"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message) as refused:
        datasets.load(f"arguments:{tmp_path}")
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=r"holds no \*\.xml"):
        datasets.load(f"arguments:{tmp_path / 'gone'}")
    with pytest.raises(DataError, match="is read from a local copy; write arguments:FOLDER"):
        datasets.load("arguments")
