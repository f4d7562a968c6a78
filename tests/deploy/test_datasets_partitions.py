"""Choices without persons, dealt out to made-up people."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.common.data.preferences import Preference
from penchant.common.data.trl_format import Labelled
from penchant.common.errors import DataError
from penchant.deploy import datasets
from penchant.deploy.datasets.partitions import Partition

SMALL: dict[str, Any] = {"pairs": 3, "validation_pairs": 1, "test_pairs": 2}


def rows(values: str) -> list[Labelled]:
    """A choice for each letter, which is the value of its column."""
    return [Labelled(None, Preference(f"p{at}", "yes", "no"), kind=value) for at, value in enumerate(values)]


def dealt(text: str, given: list[Labelled], seed: int = 0) -> list[str]:
    found = Partition.parse(text).deal(given, "mine.jsonl", seed)
    assert [row.preference for row in found] == [row.preference for row in given]
    return [str(row.person) for row in found]


def test_iid_gives_everybody_as_many_from_all() -> None:
    owners = dealt("iid:4", rows("a" * 20 + "b" * 20))
    assert Counter(owners) == {f"person {at}": 10 for at in range(4)}
    assert all(2 <= owners[:20].count(f"person {at}") <= 8 for at in range(4))


def test_the_same_seed_deals_alike_and_another_one_does_not() -> None:
    given = rows("ab" * 100)
    for text in ("iid:10", "dirichlet:10:0.5:kind"):
        assert dealt(text, given) == dealt(text, given)
        assert dealt(text, given) != dealt(text, given, seed=1)


def test_the_parts_of_each_value_have_the_moments_of_a_dirichlet_distribution() -> None:
    """Mean 1/n, variance (n - 1) / (n² (nα + 1)) of a person's part of one value."""
    people, alpha = 4, 2.0
    given = rows("".join(chr(0x4E00 + at % 200) for at in range(200 * 400)))
    owners = dealt(f"dirichlet:{people}:{alpha}:kind", given)
    parts = np.zeros((200, people))
    for row, owner in zip(given, owners, strict=True):
        parts[ord(str(row.kind)) - 0x4E00, int(owner.removeprefix("person "))] += 1 / 400
    assert parts.sum(axis=1) == pytest.approx(1)
    assert parts.mean() == pytest.approx(1 / people)
    assert parts.var() == pytest.approx((people - 1) / (people**2 * (people * alpha + 1)), rel=0.15)


def test_a_small_alpha_makes_people_differ_and_a_large_one_makes_them_alike() -> None:
    given = rows("ab" * 400)

    def lean(alpha: str) -> float:
        """How far people's parts of a are from a half, in the mean."""
        owners = dealt(f"dirichlet:5:{alpha}:kind", given)
        own = Counter(zip(owners, (row.kind for row in given), strict=True))
        totals = Counter(owners)
        return float(np.mean([abs(own[name, "a"] / totals[name] - 0.5) for name in totals]))

    assert lean("1000") < 0.05 < 0.2 < lean("0.3")


@pytest.mark.parametrize(
    "text",
    [
        *("iid", "iid:1", "iid:x", "iid:4:2", "iid:2000000", "by hand:4"),
        *(
            "dirichlet:4",
            "dirichlet:4:0:kind",
            "dirichlet:4:nan:kind",
            "dirichlet:4:1:",
            "dirichlet:-2:1:kind",
        ),
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="iid:PEOPLE"):
        Partition.parse(text)


def test_too_few_choices_for_so_many_people() -> None:
    with pytest.raises(DataError, match="ask for 2 people or fewer"):
        dealt("iid:3", rows("aaaaaaaaaaa"))
    with pytest.raises(DataError, match="larger alpha"):
        dealt("dirichlet:20:0.001:kind", rows("a" * 80))


def written(folder: Path, **more: object) -> Path:
    file = folder / "mine.jsonl"
    lines = [
        {
            "prompt": f"Question {at}?",
            "chosen": f"Yes, {at}.",
            "rejected": f"No, {at}.",
            "subset": "ab"[at % 2],
        }
        for at in range(80)
    ]
    file.write_text("".join(json.dumps(line | more) + "\n" for line in lines), encoding="utf-8")
    return file


def test_a_file_that_names_nobody(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(DataError, match="whose preferences"):
        datasets.load(file, **SMALL)
    for text in ("iid:5", "dirichlet:5:1:subset"):
        found = datasets.load(file, partition=text, **SMALL)
        assert sorted(person.name for person in found.people) == [f"person {at}" for at in range(5)]
        assert any("people are made up" in caveat for caveat in found.caveats)


def test_whose_choices_they_were_does_not_count(tmp_path: Path) -> None:
    plain = datasets.load(written(tmp_path), partition="iid:5", **SMALL)
    named = datasets.load(written(tmp_path, person="Ann"), partition="iid:5", **SMALL)
    assert plain.people == named.people


def test_what_a_partition_does_not_go_with(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="drop a partition"):
        datasets.load("senate", partition="iid:5")
    with pytest.raises(DataError, match="drop the person column"):
        datasets.load(written(tmp_path), partition="iid:5", person_column="subset")
    with pytest.raises(DataError, match="'colour'"):
        datasets.load(written(tmp_path), partition="dirichlet:5:1:colour", **SMALL)


def test_parts_of_the_data_are_dealt_out_apart_in_the_same_proportions() -> None:
    train = [Labelled(None, Preference(f"p{at}", "yes", "no"), "train", "ab"[at % 2]) for at in range(400)]
    test = [Labelled(None, Preference(f"q{at}", "yes", "no"), "test", "ab"[at % 2]) for at in range(100)]
    evenly = dealt("iid:5", train + test)
    assert set(Counter(evenly[:400]).values()) == {80}
    assert set(Counter(evenly[400:]).values()) == {20}
    unevenly = dealt("dirichlet:5:0.5:kind", train + test)
    own, tested = Counter(unevenly[:400]), Counter(unevenly[400:])
    assert all(tested[name] == pytest.approx(own[name] / 4, abs=2) for name in own)


def test_everybody_is_tested_or_it_is_refused() -> None:
    train = [Labelled(None, Preference(f"p{at}", "yes", "no"), "train") for at in range(400)]
    test = [Labelled(None, Preference(f"q{at}", "yes", "no"), "test") for at in range(20)]
    assert set(Counter(dealt("iid:20", train + test)[400:]).values()) == {1}
    with pytest.raises(DataError, match="20 choices for test, too few for 21 people; ask for 20"):
        dealt("iid:21", train + test)
