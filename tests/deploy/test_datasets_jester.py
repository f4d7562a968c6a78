"""Jester5k, on what rdata makes of such a file: pairs of jokes rated apart, unseen jokes to test on."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from penchant.common.errors import DataError
from penchant.deploy import datasets
from penchant.deploy.datasets.jester import LEAST, least_apart

PEOPLE, JOKES = 6, 40


def contents(score: float | None = None) -> dict[str, Any]:
    """Everybody but the first rates every joke; a column of the sparse matrix for each joke."""
    rng = random.Random(0)
    rows, ends, values = [], [0], []
    for _ in range(JOKES):
        for person in range(1, PEOPLE):
            rows.append(person)
            values.append(round(rng.uniform(-10, 10), 2))
        ends.append(len(rows))
    if score is not None:
        values[0] = score
    names = [[f"u{n}" for n in range(PEOPLE)], [f"j{n}" for n in range(JOKES)]]
    matrix = SimpleNamespace(i=rows, p=ends, x=values, Dimnames=names, Dim=[PEOPLE, JOKES])
    return {
        "Jester5k": SimpleNamespace(data=matrix, normalize=None),
        "JesterJokes": [f"joke {n}\n on two lines" for n in range(JOKES)],
    }


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "Jester5k.rda"
    path.write_bytes(b"R")
    give(monkeypatch, contents())
    return path


def give(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    rdata = ModuleType("rdata")
    rdata.parser = SimpleNamespace(parse_file=lambda path: found)  # type: ignore[attr-defined]
    rdata.conversion = SimpleNamespace(convert=lambda parsed: parsed)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rdata", rdata)


def test_people_are_tested_on_jokes_that_nobody_was_trained_on(file: Path) -> None:
    federation = datasets.load(f"jester:{file}", pairs=20, validation_pairs=4, test_pairs=20)
    assert [person.name for person in federation.people] == ["u1", "u2", "u3", "u4", "u5"]
    assert any("u0 " in caveat for caveat in federation.caveats)  # who rated nothing
    texts = {
        part: {
            t for p in federation.people for pair in getattr(p, part) for t in (pair.chosen, pair.rejected)
        }
        for part in ("train", "validation", "test")
    }
    assert len(texts["test"]) == 10
    assert not texts["test"] & (texts["train"] | texts["validation"])
    assert "joke 3 on two lines" in texts["train"] | texts["test"] | texts["validation"]
    assert datasets.load(f"jester:{file.parent}", pairs=20, validation_pairs=4, test_pairs=20) == federation


def test_more_people_only_add_to_those_there_were(file: Path) -> None:
    small = {"pairs": 5, "validation_pairs": 2, "test_pairs": 5}
    two = datasets.load(f"jester:{file}", clients=3, **small)
    five = datasets.load(f"jester:{file}", clients=4, **small)
    assert set(two.people) < set(five.people)


def test_pairs_are_of_ratings_that_lie_apart(file: Path) -> None:
    rng = random.Random(1)
    scores = {f"j{n}": rng.uniform(-10, 10) for n in range(12)}
    pairs = least_apart(scores, 500, random.Random(2))
    apart = [(a, b) for a in scores for b in scores if scores[a] - scores[b] >= LEAST]
    assert sorted(pairs) == sorted(apart)  # all that there are, the higher rating first
    first = least_apart(scores, 4, random.Random(2))
    assert first == pairs[:4]
    assert len({joke for pair in first for joke in pair}) == 8  # no joke twice while there are others
    assert least_apart({"a": 1.0, "b": 1.5}, 3, random.Random(0)) == []


def test_what_is_no_such_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone"):
        datasets.load(f"jester:{file.parent / 'gone'}")
    with pytest.raises(DataError, match="read from a local copy; write jester:FOLDER"):
        datasets.load("jester")
    give(monkeypatch, contents(99.0))
    with pytest.raises(DataError, match=r"1 of 200 rows .*: rating 1: a rating that is not from -10 to 10"):
        datasets.load(f"jester:{file}")
    give(monkeypatch, {"Jester5k": SimpleNamespace()})
    with pytest.raises(DataError, match=r"does not hold what Jester5k\.rda holds"):
        datasets.load(f"jester:{file}")
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(DataError, match=r"pip install 'penchant\[rdata\]'"):
        datasets.load(f"jester:{file}")


def test_a_file_that_is_not_of_r(tmp_path: Path) -> None:
    pytest.importorskip("rdata")
    (tmp_path / "Jester5k.rda").write_bytes(b"no file of R's")
    with pytest.raises(DataError, match="can't be read as a file of R's"):
        datasets.load(f"jester:{tmp_path}")
