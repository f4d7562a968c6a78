"""The experiment on personal policies, on tiny models: what it counts; a broken-off run goes on."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.client.learning.model_cache import ModelCache

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "experiments"))

import policies  # noqa: E402
from support.tiny_models import write_tiny_chat_model  # noqa: E402


@pytest.fixture(scope="module")
def sizes(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> policies.Sizes:
    writer = tmp_path_factory.mktemp("writer")
    write_tiny_chat_model(writer, initializer_range=0.4)
    return policies.Sizes(
        writer=str(writer), judge=str(tiny_model("bert")), people=3, train=6, held_out=2, test=4, learned=8,
        tested=2, responses=4, tokens=8, n=3, rounds=1, epochs=1,
    )  # fmt: skip


def test_tastes_are_for_what_can_be_counted() -> None:
    plain, long, listed, hedged, glad, casual = policies.features(
        [
            "A walk.",
            "A walk through the old town with a stop at each of its five bridges.",
            "- A walk\n- A swim\n1. A nap",
            "Perhaps a walk, or maybe a swim.",
            "A wonderful walk, a great joy.",
            "Hey, let's just walk!",
        ]
    )
    assert long[0] > plain[0]
    assert casual[1] < plain[1]
    assert (plain[2], listed[2]) == (0, np.log(4))
    assert hedged[3] > plain[3] == 0
    assert glad[4] > 0 == plain[4]


@pytest.mark.parametrize("agreement", [0.0, 0.9])
def test_who_agrees_has_tastes_alike(agreement: float) -> None:
    texts = ["A walk.", "- A swim\n- A nap", "Perhaps a wonderful day out with friends!", "No."]
    drawn = policies.Tastes.draw(texts, 200, agreement, seed=0)
    weights = drawn.weights / np.linalg.norm(drawn.weights, axis=1, keepdims=True)
    alike = (weights @ weights.T)[np.triu_indices(200, 1)].mean()
    assert alike == pytest.approx(agreement, abs=0.12)
    assert drawn.utilities(texts).std(axis=1) == pytest.approx(policies.SHARPNESS)


def test_all_rows_are_measured_once_and_a_broken_off_run_goes_on(
    sizes: policies.Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ("base", "best of n", "global (AB)", "alone", "A, the default")
    kept = tmp_path / "rows.json"
    policies.run(tmp_path / "made", kept, sizes, [0.5], [0], rows[:2])
    done = policies.run(tmp_path / "made", kept, sizes, [0.5], [0], rows)
    assert done == json.loads(kept.read_text("utf-8"))
    assert set(done) == {policies.key_of(0.5, 0, row) for row in rows}
    for row, found in done.items():
        assert {*policies.FIGURES, "seconds"} == found.keys(), row
        assert all(0 <= found[name] <= 1 for name in ("accuracy", "teacher", "judge"))
    base = done[policies.key_of(0.5, 0, "base")]
    assert (base["teacher"], base["judge"], base["kl"]) == (0.5, 0.5, 0)
    monkeypatch.setattr(policies, "measured", lambda people, row: pytest.fail("measured twice"))
    assert policies.run(tmp_path / "made", kept, sizes, [0.5], [0], rows) == done
    text = policies.table(done, [0.5], [0, 1])
    assert text.count("\n|") == 2 + len(policies.ROWS)
    assert "| B | – | – | – | – | – | 0 |" in text


def test_what_was_written_is_kept_and_the_judge_learns_from_other_choices(
    sizes: policies.Sizes, tmp_path: Path
) -> None:
    texts = policies.written(tmp_path, sizes)
    (path,) = tmp_path.glob("*.json")
    assert policies.written(tmp_path, dataclasses.replace(sizes, people=1)) == texts
    path.write_text("{}")
    assert policies.written(tmp_path, sizes) == {}
    path.write_text(json.dumps(texts))
    people = policies.People(tmp_path, sizes, 0.5, 0, ModelCache())
    other = policies.choosers(texts, people.tastes, sizes, 0, 2)
    for one, two in zip(people.choices.people, other.people, strict=True):
        assert one.train != two.train
        tested = {p.prompt for p in one.test}
        assert not tested & {p.prompt for p in (*one.train, *one.validation, *two.train)}


def test_the_page_has_a_place_for_the_table(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    assert policies.MARKS.search(page)
    done: dict[str, Any] = {}
    changed = policies.MARKS.sub(lambda found: found[1] + policies.table(done, [0.0], [0]) + found[2], page)
    assert re.search(r"<!-- policies -->\nAgreement 0:", changed)
