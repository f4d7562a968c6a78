"""The experiments on personal policies, on tiny models: what they count; a broken-off run goes on; where a
proxy parts from the gold; a month of choosing; what a round costs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penchant.client.learning.best_of_n import Generator
from penchant.client.learning.model_cache import ModelCache
from penchant.common.data.preferences import comparison_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "experiments"))

import online  # noqa: E402
import over_optimisation  # noqa: E402
import policies  # noqa: E402
import policies_on_arguments  # noqa: E402
from bench import bench_policy_cost  # noqa: E402
from marked_page import replaced  # noqa: E402
from support.argument_files import DEBATES, write  # noqa: E402
from support.tiny_models import write_tiny_chat_model  # noqa: E402


@pytest.fixture(scope="module")
def sizes(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> policies.Sizes:
    writer = tmp_path_factory.mktemp("writer")
    write_tiny_chat_model(writer, initializer_range=0.4)
    return policies.Sizes(
        writer=str(writer), judge=str(tiny_model("bert")), dtype="float32", people=3, train=6, held_out=2,
        test=4, learned=8, tested=2, responses=4, tokens=8, n=3, pool=6, rounds=1, epochs=1,
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
    assert done == json.loads(kept.read_text("utf-8"))["rows"]
    assert set(done) == {policies.key_of(0.5, 0, row) for row in rows}
    for row, found in done.items():
        assert {*policies.FIGURES, "seconds", "dtype"} == found.keys(), row
        assert all(0 <= found[name] <= 1 for name in ("accuracy", "teacher", "judge"))
    base = done[policies.key_of(0.5, 0, "base")]
    assert (base["teacher"], base["judge"], base["kl"]) == (0.5, 0.5, 0)
    monkeypatch.setattr(policies, "measured", lambda people, row: pytest.fail("measured twice"))
    assert policies.run(tmp_path / "made", kept, sizes, [0.5], [0], rows) == done
    text = policies.table(done, [0.5], [0, 1])
    assert text.count("\n|") == 2 + len(policies.ROWS)
    assert "| B | – | – | – | – | – | – | 0 |" in text
    assert text.startswith("Agreement 0.5, float32:")
    with pytest.raises(SystemExit, match="rows of other sizes"):
        policies.kept_rows(kept, dataclasses.replace(sizes, people=4))
    halved = dataclasses.replace(sizes, dtype="bfloat16")
    with pytest.raises(SystemExit, match="seed 0: rows are in float32"):
        policies.run(tmp_path / "made", kept, halved, [0.5], [0], ("mixed",))
    with pytest.raises(pytest.fail.Exception, match="measured twice"):  # others may be of another format
        policies.run(tmp_path / "made", kept, halved, [0.5], [1], rows)


def test_what_was_written_is_kept_and_the_judge_learns_from_other_choices(
    sizes: policies.Sizes, tmp_path: Path
) -> None:
    cache = ModelCache()
    texts = policies.written(tmp_path, sizes, cache)
    (path,) = tmp_path.glob("*.json")
    assert policies.written(tmp_path, dataclasses.replace(sizes, people=1), cache) == texts
    path.write_text("{}")
    assert policies.written(tmp_path, sizes, cache) == {}
    path.write_text(json.dumps(texts))
    people = policies.People(tmp_path, sizes, 0.5, 0, cache)
    other = policies.choosers(texts, people.tastes, sizes, 0, 2, people.choices)
    seen = {comparison_of(pair) for pair in policies._pairs_of(people.choices)}
    assert not seen & {comparison_of(pair) for pair in policies._pairs_of(other)}
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


def test_the_base_model_is_a_policy_that_is_no_way_from_itself(sizes: policies.Sizes, tmp_path: Path) -> None:
    people = policies.People(tmp_path, sizes, 0.5, 0, ModelCache())
    writer = Generator.of(policies.base_model(sizes, ModelCache()))
    texts, apart = policies.written_by(writer, people.reference, people.asked, sizes.tokens, 3)
    assert apart == [0, 0]
    by_product = writer.responses_to_all(
        people.asked, 1, seed=3, tokens=sizes.tokens, temperature=1.0, top_k=policies.ALL_WORDS
    )
    assert [[text] for text in texts] == by_product


def test_the_distance_of_a_policy_is_that_of_all_words_at_each_token(
    sizes: policies.Sizes, tmp_path: Path
) -> None:
    """Beside a slow reference: one response alone, without padding, token by token."""
    people = policies.People(tmp_path, sizes, 0.5, 0, ModelCache())
    moved = policies.models_of(people.policies("AB"))[0]
    writer, asked = Generator.of(moved), [*people.asked, "A much longer request than the others are. "]
    _, apart = policies.written_by(writer, people.reference, asked, 6, 3)
    assert min(apart) > 0
    inputs = writer._encoded(asked)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        rows = writer._model.generate(
            **inputs, do_sample=True, top_k=0, temperature=1.0, max_new_tokens=6, pad_token_id=writer._pad
        )
        for row, mask, far in zip(rows, inputs["attention_mask"], apart, strict=True):
            prompt = row[: len(mask)][mask.bool()]
            seen, total = prompt, 0.0
            for token in row[len(mask) :]:
                ours, theirs = (
                    torch.log_softmax(one(input_ids=seen[None]).logits[0, -1], -1)
                    for one in (writer._model, people.reference)
                )
                total += float((ours.exp() * (ours - theirs)).sum())
                seen = torch.cat([seen, token[None]])
                if int(token) in writer._ends:
                    break
            assert far == pytest.approx(total, abs=1e-4)


def test_wins_at_equal_length_are_those_that_length_does_not_bring() -> None:
    longer = [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert policies.at_equal_length([0, 0.25, 0.5, 0.75, 1], longer) == pytest.approx(0.5)
    assert policies.at_equal_length([1, 1, 1, 1, 1], longer) == pytest.approx(1)
    assert policies.at_equal_length([0.5, 0.75, 1, 1], [1, 2, 3, 3]) == pytest.approx(0.25, abs=0.05)
    assert policies.at_equal_length([1, 0], [0.0, 0.0]) == 0.5


def test_sizes_are_flags() -> None:
    parser = argparse.ArgumentParser()
    policies.with_sizes(parser)
    assert policies.sizes_of(parser.parse_args([])) == policies.Sizes()
    found = policies.sizes_of(
        parser.parse_args(["--people", "5", "--held-out", "3", "--rate", "0.01", "--dtype", "float32"])
    )
    assert found == dataclasses.replace(policies.Sizes(), people=5, held_out=3, rate=0.01, dtype="float32")


# --- real texts -------------------------------------------------------------------------------------------


def test_policies_and_reward_models_are_judged_on_the_same_choices_of_real_texts(
    sizes: policies.Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arguments").mkdir()
    for title in DEBATES:
        write(tmp_path / "arguments", title, "Yes", {"W1": "a1", "W2": "a2", "W3": "a1"})
    monkeypatch.setattr(policies_on_arguments, "TEST", 4)
    everybody = policies_on_arguments.people_of(0, tmp_path, sizes)
    assert {(len(one.train), len(one.validation), len(one.test)) for one in everybody.people} == {(6, 2, 4)}
    with pytest.raises(SystemExit, match="3 people have choices enough; 4 are asked for"):
        policies_on_arguments.people_of(0, tmp_path, dataclasses.replace(sizes, people=4))
    rows = ["alone", "reward model, one for all (AB)"]
    kept, asked = tmp_path / "runs.json", (tmp_path, sizes, rows, [0])
    policies_on_arguments.run(kept, tmp_path, sizes, rows[:1], [0])
    done = policies_on_arguments.run(kept, *asked)
    assert done == policies_on_arguments.kept_runs(kept)
    assert list(done) == [policies_on_arguments.key_of(row, 0) for row in rows]
    for run in done.values():
        assert (run["people"], 0 <= run["macro"] <= 1) == (3, True)
    monkeypatch.setattr(policies_on_arguments, "measured", lambda *given: pytest.fail("measured twice"))
    assert policies_on_arguments.run(kept, *asked) == done
    lines = policies_on_arguments.table(done, [0, 1])
    assert len(lines) == 2 + len(policies_on_arguments.ROWS)
    assert "| B | – | – |" in lines


def test_policies_on_real_texts_have_the_settings_of_those_on_made_up_ones(sizes: policies.Sizes) -> None:
    config = policies_on_arguments.config_of("mixed", 3, Path("data"), sizes)
    assert (config.data.dataset, config.adapter.share, config.seed) == (
        "arguments:data/arguments",
        "mixed",
        3,
    )
    settings = policies.policy_settings(sizes)
    assert config == config.changed(settings)
    rewards = policies_on_arguments.config_of("reward model, the default (common)", 3, Path("data"), sizes)
    assert (rewards.model.objective, rewards.data) == ("reward", config.data)


def test_the_page_has_a_place_for_the_table_of_real_texts() -> None:
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    assert replaced(page, policies_on_arguments.TABLE, ["| row |"]) != page


# --- gold against proxy -----------------------------------------------------------------------------------


def test_the_best_of_one_gains_nothing_and_a_proxy_keeps_its_own_promise_of_more(
    sizes: policies.Sizes, tmp_path: Path
) -> None:
    cache = ModelCache()
    row = "A, the default"
    done = policies.run(tmp_path, tmp_path / "rows.json", sizes, [0.5], [0], [row])
    people = policies.People(tmp_path, sizes, 0.5, 0, cache)
    curves = over_optimisation.by_n(people)
    numbers = over_optimisation.numbers_of([own[1:] for own in people.base])
    assert numbers[0] == 1
    for proxy in ("personal", "global"):
        promised, got = (np.array(curves[proxy][what]) for what in ("promised", "got"))
        assert promised.shape == got.shape == (len(numbers), sizes.people)
        assert promised[0] == pytest.approx(0, abs=1e-5)
        assert got[0] == pytest.approx(0, abs=1e-9)
        assert (np.diff(promised, axis=0) >= -1e-6).all()
    points = over_optimisation.of_policies(people, {row: done[policies.key_of(0.5, 0, row)]})
    assert points.keys() == {row}
    assert len(points[row]["got"]) == sizes.people
    text = over_optimisation.table({"0.5 0": {"by_n": curves, "policies": points}}, [0.5], [0])
    assert "Agreement 0.5, 3 people, seeds: 1" in text
    assert re.search(r"With the largest n \d of 3 \(personal\) and \d of 3 \(global\) got less", text)
    assert text.count("\n| A, the default |") == 1
    assert over_optimisation.MARKS.search((ROOT / "docs" / "policies.md").read_text(encoding="utf-8"))


def test_the_distance_of_the_best_of_n_is_as_in_the_paper() -> None:
    assert over_optimisation.nats(1) == 0
    assert over_optimisation.nats(64) == pytest.approx(np.log(64) - 63 / 64)


# --- a month ----------------------------------------------------------------------------------------------


TEXTS = {
    f"Request {number}. ": [
        f"Perhaps a motion {number}, it might be!",
        f"A great table {number}, a warm and happy joy.",
        f"- A sad budget {number}\n- No",
        f"Hey, let's vote {number}!",
    ]
    for number in range(8)
}


@pytest.mark.parametrize("way", ["ask", "corrections", "active", "random", "offline"])
def test_devices_take_part_day_by_day(
    way: str, tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = online.settings
    monkeypatch.setattr(online, "settings", lambda month: usual(month).changed({"model.beside": 1}))
    month = online.Month(
        days=2, choices=3, people=3, shown=3, candidates=4, judged=6, base_model=str(tiny_model("bert"))
    )
    people = online.town(tmp_path, TEXTS, month, 0, 0, ModelCache())
    found = online.month_of(people, way, tmp_path, month)
    assert len(found["accuracy"]) == len(found["recorded"]) == month.days
    assert all(0 <= value <= 1 for value in found["accuracy"])
    first, last = found["recorded"]
    assert first == last if way == "offline" else first < last
    report = people.owners[0].device.report()
    assert report.rounds_joined == month.days + 1  # the closing round among them
    asked = {row.preference.prompt for _, row in people.owners[0].device.store.marked()}
    assert not asked & {pair.prompt for pair in people.judged[0]}


def test_a_month_is_measured_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "town", lambda *given: None)
    monkeypatch.setattr(online, "month_of", lambda *given: {"accuracy": [0.5, 0.75], "recorded": [3.0, 6.0]})
    month = online.Month(days=2)
    done = online.run(tmp_path, tmp_path / "online.json", TEXTS, month, [0, 1], ["ask"])
    monkeypatch.setattr(online, "month_of", lambda *given: pytest.fail("measured twice"))
    assert online.run(tmp_path, tmp_path / "online.json", TEXTS, month, [0, 1], ["ask"]) == done
    assert "| picks on the ask page | 0.500 ± 0.000 | 0.750 ± 0.000 | 6 | 2, 2 |" in online.table(
        done, [1, 2]
    )
    other = {"accuracy": [0.6, 0.65], "recorded": [3.0, 6.0]}  # another draw of the first seed's people
    found = online.curves(done | {"ask 0 1": other}, [1, 2])["ask"]
    assert [round(day["mean"], 3) for day in found] == [0.525, 0.725]
    assert found[0]["se"] == pytest.approx(0.025)
    assert online.MARKS.search((ROOT / "docs" / "policies.md").read_text(encoding="utf-8"))


# --- what a round costs -----------------------------------------------------------------------------------


def test_a_case_of_the_bench_counts_bytes_of_a_real_round(sizes: policies.Sizes) -> None:
    given = argparse.Namespace(base_model=sizes.writer, dtype="float32", choices=2, response=4)
    found = {
        rank: bench_policy_cost._bytes(bench_policy_cost.config_of(given, rank, "all"), ModelCache())
        for rank in (1, 4)
    }
    assert found[4]["bytes_up"] > found[1]["bytes_up"] > 0
    row = {
        "cores": 1, "rank": 4, "blocks": "all", "load": 1.4, "read": {"cpu_s": 1.0, "wall_s": 1.5},
        "trained": {"cpu_s": 2.0, "wall_s": 2.5}, "peak_mb": 1234.0, **found[4],
    }  # fmt: skip
    machine = {"processor": "P", "load": 9.0, "versions": {"torch": "2"}}
    text = bench_policy_cost.table({"rows": [row], "given": vars(given), "machine": machine})
    assert "| 1 | 4 | all | 1.0 | 2.0 | 4.0 s | 1,234 MB |" in text
    busy = {"rows": [row | {"load": 1.6}], "given": vars(given), "machine": machine}
    assert "| 1 | 4 | all | 1.0 | 2.0 | – | 1,234 MB |" in bench_policy_cost.table(busy)
    assert bench_policy_cost.MARKS.search((ROOT / "docs" / "policies.md").read_text(encoding="utf-8"))
