"""The comparison: identical people, one run a case, restarts, refusals, and numbers worked by hand."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import RoundFailed, RunDirectoryError
from penchant.common.shares import SHARES, share_rule
from penchant.deploy import run_directory
from penchant.deploy.cli.main import main
from penchant.deploy.comparison import runner as comparing
from penchant.deploy.comparison.cases import Case, combinations
from penchant.deploy.comparison.conclusions import conclusion, differences, headline, rankings_of
from penchant.deploy.comparison.statistics import difference, student_t95
from penchant.deploy.comparison.table import ComparisonRow, _caveats, table
from penchant.deploy.report import PAGES
from penchant.deploy.simulation.person_scores import ClientScore
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.served import Served, served, versus
from penchant.deploy.simulation.world import SimulationSetup, prepare

WORDS = ["motion", "bill", "vote", "table", "cloture", "judge", "budget", "tax"]


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases' own pages are slow to draw, and tested in test_report."""
    monkeypatch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """TRL rows of five people, 60 prompts of all lengths each; which response wins is theirs alone."""
    path = tmp_path / "rows.jsonl"
    draw = random.Random(0)
    with path.open("w") as file:
        for name in ("ann", "bob", "cy", "dee", "eve"):
            taste = draw.sample(WORDS, len(WORDS))
            for number in range(60):
                better, worse = sorted(draw.sample(WORDS, 2), key=taste.index)
                asked = " ".join([name, *draw.choices(WORDS, k=draw.randrange(20)), f"{number} "])
                row = {"person": name, "prompt": asked, "chosen": better, "rejected": worse}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def base(rows_file: Path, tiny_model: Callable[[str], Path]) -> RunConfig:
    """A small and quick run over that file."""
    return RunConfig().changed(
        {
            "data.dataset": str(rows_file),
            "data.pairs": 6,
            "data.validation_pairs": 3,
            "data.test_pairs": 12,
            "model.base_model": str(tiny_model("bert")),
            "training.local_epochs": 2,
            "training.final_fit_epochs": 2,
            "federation.rounds": 2,
            "federation.cohort": 4,
            "privacy.secagg": False,
        }
    )


@pytest.fixture
def settings(base: RunConfig, tmp_path: Path) -> Path:
    """The same as a file for --config."""
    path = tmp_path / "settings.toml"
    path.write_text(base.to_toml())
    return path


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[SimulationSetup]:
    """The worlds that were really simulated, in order."""
    worlds: list[SimulationSetup] = []

    def counted(world: SimulationSetup, directory: Path, *args: Any, **more: Any) -> Any:
        worlds.append(world)
        return simulate(world, directory, *args, **more)

    monkeypatch.setattr(comparing, "simulate", counted)
    return worlds


def cases(base: RunConfig, shares: str, seeds: str, **lists: str) -> list[RunConfig]:
    return [base.changed(changes) for changes in combinations(shares=shares, seeds=seeds, **lists)]


def penchant(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `penchant compare` with these words, run in this process."""
    monkeypatch.setattr(sys, "argv", ["penchant", "compare", *map(str, words)])
    with pytest.raises(SystemExit) as leave:
        main()
    return int(leave.value.code or 0)


def compare(configs: list[RunConfig], directory: Path, **more: Any) -> Any:
    """A comparison with its pages, as the command writes them."""
    return comparing.compare(configs, directory, pages=PAGES, **more)


def accuracies(directory: Path) -> dict[tuple[str, int], list[float]]:
    rows = json.loads((directory / "compare.json").read_text())
    return {(row["share"], row["pairs"]): row["accuracies"] for row in rows}


# --- equal terms ----------------------------------------------------------------------------------


def test_every_method_meets_the_same_people_and_pairs(
    base: RunConfig, tmp_path: Path, played: list[SimulationSetup]
) -> None:
    model_cache = ModelCache()
    compare(cases(base, "A,B,AB,none", "0,1", pairs="4,6"), tmp_path / "out", model_cache=model_cache)
    assert len(played) == 16
    assert model_cache.loads == 1
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    held_out: dict[int, set[Any]] = {0: set(), 1: set()}
    for world in played:
        seed = world.config.seed
        seen[seed].add(f"{world.config.data.pairs} {world.federation.digest}")
        held_out[seed].add(tuple((p.name, p.validation, p.test) for p in world.federation.people))
    assert {seed: len(found) for seed, found in seen.items()} == {0: 2, 1: 2}  # one for each number of pairs
    assert {seed: len(found) for seed, found in held_out.items()} == {0: 1, 1: 1}
    assert held_out[0] != held_out[1]


def test_a_case_is_what_simulate_gives_alone(base: RunConfig, tmp_path: Path) -> None:
    """Bit for bit, although other seeds' texts went through the model before it: none of them is kept."""
    model_cache = ModelCache()
    compare(cases(base, "none,A", "0,1"), tmp_path / "out", model_cache=model_cache)
    home = tmp_path / "out" / "cases" / "A-shared-6pairs-all-seed1"
    config = run_directory.read_config(home)
    run_directory.create(tmp_path / "alone", config)
    world = prepare(config)
    alone = simulate(world, tmp_path / "alone")
    result = run_directory.read_result(home)
    assert result is not None
    assert alone.to_dict()["per_client"] == result["per_client"]
    last = "checkpoints/round-000003.safetensors"
    assert (tmp_path / "alone" / last).read_bytes() == (home / last).read_bytes()
    models = [kept.model(config.model, config.adapter) for kept in (model_cache, world.model_cache)]
    assert len(models[0].cache) == len(models[1].cache) > 0


def test_the_row_says_what_was_run_and_what_it_cost(base: RunConfig, tmp_path: Path) -> None:
    found = compare(cases(base, "A,none", "0,1"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == [
        row.to_dict() for row in found.rows
    ]
    one, alone = (row.to_dict() for row in found.rows)
    assert (one["share"], one["head"], one["pairs"], one["clients"], one["seeds"]) == (
        "A",
        "shared",
        6,
        5,
        [0, 1],
    )
    assert (alone["share"], alone["head"]) == ("none", "personal")
    for row, seeds in ((one, [0, 1]), (alone, [0, 1])):
        results = [
            json.loads((tmp_path / "out" / run["directory"] / "result.json").read_text())
            for run in row["runs"]
        ]
        macro = [sum(p["accuracy"] for p in r["per_client"]) / 5 for r in results]
        assert row["accuracies"] == pytest.approx(macro)
        assert [r["seed"] for r in results] == seeds
        assert row["cost"]["client_calls"] == 2 * 4  # rounds times cohort
        assert row["cost"]["local_epochs"] == 2 * 4 * 2 + 5 * 2  # and everyone's refit
        assert row["cost"]["bytes_up"] == sum(r["bytes_up"] for x in results for r in x["rounds_log"]) / 2
        assert row["wall_seconds"] == pytest.approx(sum(r["wall_seconds"] for r in results))
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Each had the same budget." in page
    assert "Client calls" in page
    assert "Learning curves" not in page


def test_several_numbers_of_pairs_give_learning_curves(base: RunConfig, tmp_path: Path) -> None:
    found = compare(cases(base, "A,none", "0,1", pairs="4,6"), tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Learning curves" in page
    assert "<h3>4 choices a person</h3>" in page
    assert "<h3>6 choices a person</h3>" in page
    assert [ranking.title for ranking in rankings_of(found.rows)] == [
        "4 choices a person",
        "6 choices a person",
    ]
    assert all(
        {row.pairs for row in ranking.rows} == {int(ranking.value)} for ranking in rankings_of(found.rows)
    )


# --- restarts -------------------------------------------------------------------------------------


def test_a_killed_comparison_ends_like_one_that_was_not(base: RunConfig, tmp_path: Path) -> None:
    """kill -9 in the middle of the second case, in a separate process."""
    slow = base.changed({"federation.rounds": 20, "training.local_epochs": 3})
    (tmp_path / "slow.toml").write_text(slow.to_toml())
    broken = tmp_path / "broken"
    words = ["--shares", "A,none", "--seeds", "0", "--config", str(tmp_path / "slow.toml"), "--out"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from penchant.deploy.cli.main import main; main()",
            "compare",
            *words,
            str(broken),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    first, second = (broken / "cases" / case.name for case in map(Case.of, cases(slow, "A,none", "0")))
    try:
        while not (second / "checkpoints" / "round-000003.safetensors").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert (first / "result.json").exists()
    assert not (second / "result.json").exists()
    assert not (broken / "compare.json").exists()
    before = (first / "result.json").read_bytes()

    for directory in (broken, tmp_path / "whole"):
        compare(cases(slow, "A,none", "0"), directory)
    assert accuracies(broken) == accuracies(tmp_path / "whole")
    assert (first / "result.json").read_bytes() == before  # not run again
    for home in (first, second):
        last = home / "checkpoints" / "round-000021.safetensors"
        assert (tmp_path / "whole" / last.relative_to(broken)).read_bytes() == last.read_bytes()


def test_a_case_that_was_only_just_begun_is_begun_again(base: RunConfig, tmp_path: Path) -> None:
    home = tmp_path / "out" / "cases" / "A-shared-6pairs-all-seed0"
    home.mkdir(parents=True)
    (home / ".config.toml.tmp").write_text("seed = ")  # killed while it wrote its configuration
    assert len(compare(cases(base, "A", "0"), tmp_path / "out").rows) == 1


def test_more_seeds_run_only_what_is_new(
    base: RunConfig, tmp_path: Path, played: list[SimulationSetup]
) -> None:
    compare(cases(base, "A,none", "0,1"), tmp_path / "out")
    assert [world.config.seed for world in played] == [0, 0, 1, 1]
    played.clear()
    before = accuracies(tmp_path / "out")
    found = compare(cases(base, "A,none", "0,1,2"), tmp_path / "out")
    assert [(world.config.adapter.share, world.config.seed) for world in played] == [("A", 2), ("none", 2)]
    assert {key: values[:2] for key, values in accuracies(tmp_path / "out").items()} == before
    assert [row.seeds for row in found.rows] == [(0, 1, 2), (0, 1, 2)]


def test_asking_again_runs_nothing_and_forgets_nothing(
    base: RunConfig, tmp_path: Path, played: list[SimulationSetup]
) -> None:
    compare(cases(base, "A,none", "0,1"), tmp_path / "out")
    before = (tmp_path / "out" / "compare.json").read_bytes()
    played.clear()

    def never(*_: Any) -> Any:
        raise AssertionError("a finished comparison needs no model")

    compare(cases(base, "A,none", "0,1"), tmp_path / "out", model_cache=ModelCache(never))
    assert (tmp_path / "out" / "compare.json").read_bytes() == before
    found = compare(cases(base, "none", "1"), tmp_path / "out", model_cache=ModelCache(never))  # part of it
    assert played == []
    assert sorted((row.share, row.seeds) for row in found.rows) == [
        ("A", (0, 1)),
        ("none", (0, 1)),
    ]


def test_a_failing_case_is_named_and_the_finished_ones_stand(
    base: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(world: SimulationSetup, *args: Any, **more: Any) -> Any:
        if world.config.adapter.share == "none":
            raise RoundFailed("round 1 failed")
        return simulate(world, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(comparing, "simulate", failing)
        with pytest.raises(RoundFailed, match="none-personal-6pairs-all-seed0: round 1 failed"):
            compare(cases(base, "A,none", "0"), tmp_path / "out")
    assert not (tmp_path / "out" / "compare.json").exists()
    assert len(compare(cases(base, "A,none", "0"), tmp_path / "out").rows) == 2


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shares", "A,X"], "adapter.share is 'X'; choose one of"),
        (["--shares", ""], "--shares is ''; give a list without gaps"),
        (["--shares", "A,,B"], "--shares is 'A,,B'; give a list without gaps"),
        (["--shares", "A,B,A"], "--shares names A twice"),
        (["--seeds", "0,x"], "--seeds is '0,x'; it must be whole numbers"),
        (["--seeds", "all"], "--seeds is 'all'; it must be whole numbers"),
        (["--seeds", "1,01"], "--seeds names 1 twice"),
        (["--seeds=-1"], "seed is -1"),
        (["--heads", "mine"], "adapter.head is 'mine'; choose one of"),
        (["--shares", "A,none", "--heads", "shared"], 'share "none" shares nothing'),
        (["--pairs", "5,5"], "--pairs names 5 twice"),
        (["--pairs", "5,0"], "data.pairs is 0"),
        (["--clients", "6"], "6 clients asked for"),
        (["--dataset", "senat"], "did you mean 'senate'"),
        (["--base-model", "./nowhere"], "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    words: list[str],
    says: str,
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    code = penchant(
        monkeypatch, "--shares", "A,B", "--seeds", "0,1", "--config", settings, "--out", out, *words
    )
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert (code, out.exists()) == (2, False)
    assert says in told


def test_a_case_of_another_configuration_is_refused(
    base: RunConfig, tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    compare(cases(base, "A,none", "0"), out)
    before = sorted(path for path in out.rglob("*"))
    for other, key in (
        ({"federation.rounds": 3}, "federation.rounds is 2 and 3"),
        ({"federation.rounds": 3, "seed": 1}, "federation.rounds is 2 and 3"),  # another seed, same row
        ({"federation.rounds": 3, "data.pairs": 4}, "federation.rounds is 2 and 3"),  # same curve
        ({"data.evaluate": "validation", "adapter.share": "AB"}, "data.evaluate is test and validation"),
    ):
        with pytest.raises(RunDirectoryError, match=key):
            compare([base.changed({"adapter.share": "A"} | other)], out)
    assert penchant(monkeypatch, "--config", settings, "--seeds", 0, "--rounds", 3, "--out", out) == 2
    assert sorted(path for path in out.rglob("*")) == before


def test_a_case_that_was_edited_after_it_was_finished_is_refused(base: RunConfig, tmp_path: Path) -> None:
    """Its result would stand in the table as that of settings with which nothing ran."""
    out, case = tmp_path / "out", base.changed({"adapter.share": "A"})
    compare([case], out)
    (settings,) = out.glob("cases/*/config.toml")
    edited = case.changed({"adapter.alpha": 2 * case.adapter.alpha})
    settings.write_text(edited.to_toml(), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=rf"{settings.parent.name} was begun with another config"):
        compare([edited], out)


def test_another_share_may_have_other_rounds(base: RunConfig, tmp_path: Path) -> None:
    compare(cases(base, "A", "0"), tmp_path / "out")
    found = compare(cases(base.changed({"federation.rounds": 1}), "none", "0"), tmp_path / "out")
    assert [(row.share, row.rounds) for row in found.rows] == [("none", 1), ("A", 2)]
    assert "Methods differ in rounds" in (tmp_path / "out" / "compare.html").read_text()


def test_data_that_changed_meanwhile_are_refused(base: RunConfig, tmp_path: Path, rows_file: Path) -> None:
    compare(cases(base, "A", "0"), tmp_path / "out")
    lines = rows_file.read_text().splitlines(keepends=True)
    rows_file.write_text("".join(lines[:-1]))
    with pytest.raises(RunDirectoryError, match=r"the data set of .* is not what it was"):
        compare(cases(base, "A,none", "0"), tmp_path / "out")


def test_a_directory_with_other_things_is_refused(base: RunConfig, tmp_path: Path) -> None:
    run_directory.create(tmp_path / "run", base)
    with pytest.raises(RunDirectoryError, match="in use for something else"):
        compare(cases(base, "A", "0"), tmp_path / "run")
    renamed = tmp_path / "out" / "cases" / "A-shared-6pairs-all-seed0"
    run_directory.create(renamed, Case.of(base.changed({"seed": 1})).config)
    with pytest.raises(RunDirectoryError, match="not the configuration of a case of this name"):
        compare(cases(base, "A", "0"), tmp_path / "out")


def test_two_comparisons_cannot_work_in_one_directory(
    base: RunConfig, tmp_path: Path, played: list[SimulationSetup]
) -> None:
    (tmp_path / "out").mkdir()
    with (
        run_directory.claim(tmp_path / "out"),
        pytest.raises(RunDirectoryError, match="another process works in"),
    ):
        compare(cases(base, "A", "0"), tmp_path / "out")
    assert played == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


# --- lists and heads ------------------------------------------------------------------------------


def test_seeds_are_outermost_so_that_an_interrupted_comparison_has_whole_ones() -> None:
    made = combinations(shares="A,none", seeds="0,1", pairs="5,10")
    assert [(m["seed"], m["data.pairs"], m["adapter.share"]) for m in made] == [
        (seed, pairs, share) for seed in (0, 1) for pairs in (5, 10) for share in ("A", "none")
    ]
    assert all(set(m) == {"seed", "data.pairs", "adapter.share"} for m in made)  # no list, no change


def test_nothing_has_a_shared_head_where_nothing_is_shared() -> None:
    made = combinations(shares="A,none", seeds="0", heads="shared,personal")
    assert [(m["adapter.share"], m["adapter.head"]) for m in made] == [
        ("A", "shared"),
        ("A", "personal"),
        ("none", "personal"),
    ]


def test_auto_and_what_it_means_are_one_case(
    base: RunConfig, tmp_path: Path, played: list[SimulationSetup]
) -> None:
    found = compare(cases(base, "A,none", "0", heads="auto,shared,personal"), tmp_path / "out")
    assert [(row.share, row.head) for row in found.rows] == [
        ("A", "shared"),
        ("A", "personal"),
        ("none", "personal"),
    ]
    assert len(played) == 3


# --- numbers by hand, and in words ----------------------------------------------------------------


def result_of(config: RunConfig, accuracy: float) -> RunResult:
    """What result.json would hold of a run with this accuracy, as far as the table needs it."""
    held = {
        "share": config.adapter.share,
        "head": config.adapter.head,
        "pairs": config.data.pairs,
        "clients": 5,
        "dataset": "rows",
        "base_model": "tiny",
        "evaluated_on": "test",
        "secagg": True,
        "rounds": 2,
        "seed": config.seed,
        "wall_seconds": 1.5,
        "accuracy": {"personal": accuracy, "cold_start": None},
        "rounds_log": [{"round": 1, "cohort": 4, "bytes_up": 100, "bytes_down": 200}] * 2,
    }
    return RunResult.from_dict(held)


def worked(base: RunConfig, values: dict[str, list[float]]) -> list[ComparisonRow]:
    results = {}
    for share, accuracies_ in values.items():
        for seed, accuracy in enumerate(accuracies_):
            case = Case.of(base.changed({"adapter.share": share, "seed": seed}))
            results[case] = result_of(case.config, accuracy)
    return table(results)


def judged(base: RunConfig, share: str, people: dict[str, str], seed: int = 0, data: str = "d") -> Any:
    """A case with one share, and a result in which these pairs of each person are ranked right."""
    case = Case.of(base.changed({"adapter.share": share, "seed": seed}))
    scores = [ClientScore(name, len(right), 0.5, 5, right) for name, right in people.items()]
    result = result_of(case.config, 0.5)
    return case, dataclasses.replace(result, per_client=tuple(scores), digests={"data": data})


def test_who_is_served_worse_than_by_one_model_for_all_by_hand(base: RunConfig) -> None:
    """Of three people one has twelve pairs that only the model for all ranks right, one twelve that only
    their own does: chances of 1 in 4,096, below .05 / 3."""
    for_all = {"a": "1" * 12 + "00", "b": "0" * 12 + "01", "c": "1" * 14}
    own = {"a": "0" * 12 + "11", "b": "1" * 13 + "0", "c": "1" * 14}
    cases = [judged(base, "A", own), judged(base, "AB", for_all), judged(base, "B", for_all)]
    cases += [judged(base, "A", own, seed=1), judged(base, "AB", own, seed=1)]
    rows = {row.share: row for row in table(dict(cases))}
    mean = (12 / 14 + 1 / 14 + 1) / 3
    expected = Served(people=3, accuracy=pytest.approx(mean), worse=1, better=1)
    assert rows["A"].runs[0].served == expected
    assert [(run.served.worse, run.served.better) for run in rows["A"].runs] == [(1, 1), (0, 0)]
    assert [(run.served.worse, run.served.better) for run in rows["B"].runs] == [(0, 0)]
    assert [run.served for run in rows["AB"].runs] == [None, None], "it is the model for all"
    read = ComparisonRow.from_dict(json.loads(json.dumps(rows["A"].to_dict())))
    assert read == rows["A"]
    (ranking,) = rankings_of(list(rows.values()))
    sentence = conclusion(ranking)[-1]
    assert sentence.startswith("People whose own model differs from one model for all beyond noise")
    assert "“A shared, B personal” 0 to 1 worse and 0 to 1 better of 3" in sentence


def test_people_are_compared_on_the_same_pairs_alone(base: RunConfig) -> None:
    own = {"a": "10", "b": "01"}
    for other in (
        judged(base, "AB", own, data="other"),
        judged(base, "AB", {"a": "10"}),
        judged(base, "AB", {"a": "10", "b": "011"}),
        judged(base, "AB", {"a": "10", "b": ""}),
        judged(base, "AB", own, seed=1),
        judged(base.changed({"adapter.head": "personal"}), "AB", own),
    ):
        rows = table(dict([judged(base, "A", own), other]))
        assert [run.served for row in rows for run in row.runs] == [None, None]
        assert not any("beyond noise" in line for line in conclusion(rankings_of(rows)[0]))


def test_a_comparison_says_who_is_served_worse_than_by_its_one_model_for_all(
    base: RunConfig, tmp_path: Path
) -> None:
    found = compare(cases(base, "A,AB", "0"), tmp_path / "out")
    (own, for_all) = (next(row for row in found.rows if row.share == share) for share in ("A", "AB"))
    results = [
        json.loads((tmp_path / "out" / row.runs[0].directory / "result.json").read_text())
        for row in (own, for_all)
    ]
    for result in results:
        assert result["served"] is None
        for score in result["per_client"]:
            assert score["right"].count("1") / score["n_test"] == pytest.approx(score["accuracy"])
    pairs = [
        versus(one["right"], other["right"])
        for one, other in zip(*(r["per_client"] for r in results), strict=True)
    ]
    assert own.runs[0].served == served(pairs)
    assert own.runs[0].served.accuracy == pytest.approx(for_all.accuracy_mean)
    assert "--shares A,AB" in results[0]["served_why"]
    assert results[1]["served_why"] == "share AB trains one model for all"


def test_standard_error_and_paired_difference_by_hand(base: RunConfig) -> None:
    """.70, .72, .68: mean .70, deviations 0, .02, -.02, variance .0008/2 = .0004, s.e. .02/√3 = .011547.

    Against .60, .64, .62 the differences are .10, .08, .06: mean .08, standard deviation .02, half the
    interval 4.303 · .02/√3 = .049687.
    """
    one, alone = worked(base, {"A": [0.70, 0.72, 0.68], "none": [0.60, 0.64, 0.62]})
    assert one.accuracy_mean == pytest.approx(0.70)
    assert one.accuracy_se == pytest.approx(0.011547, abs=1e-6)
    assert one.wall_seconds == pytest.approx(4.5)
    gap = difference(one, alone)
    assert gap is not None
    assert (gap.mean, gap.low, gap.high) == (
        pytest.approx(0.08),
        pytest.approx(0.030313, abs=1e-5),
        pytest.approx(0.129687, abs=1e-5),
    )
    (ranking,) = rankings_of([one, alone])
    (line,) = differences(ranking)
    assert (line.label, line.difference, line.interval, line.words) == (
        "A shared, B personal − everyone alone",
        "+8.0",
        "+3.0 … +13.0",
        "clearly better",
    )
    assert headline([ranking]) == "Sharing A and keeping the rest personal pays."


def test_what_is_said_of_one_method_of_a_comparison_names_it() -> None:
    plain: dict[str, Any] = {
        "dataset": "x",
        "base_model": "tiny",
        "clients": 2,
        "pairs": 9,
        "rounds": 1,
        "accuracy": 0.5,
    }
    results = [
        RunResult(
            **plain,
            share=share,
            seed=seed,
            caveats=("of all", f"of seed {seed}", *(["of A"] * (share == "A"))),
        )
        for share in ("A", "B")
        for seed in (0, 1)
    ]
    assert list(_caveats([], results, 0)) == [
        "of all",
        "Seed 0: of seed 0",
        "Share A: of A",
        "Seed 1: of seed 1",
    ]


def test_one_seed_has_no_standard_error(base: RunConfig) -> None:
    (row,) = worked(base, {"A": [0.7]})
    assert row.accuracy_se is None
    assert row.accuracies == (0.7,)


def test_where_sharing_does_not_help_is_said(base: RunConfig) -> None:
    (ranking,) = rankings_of(worked(base, {"B": [0.61, 0.60], "AB": [0.50, 0.51], "none": [0.60, 0.61]}))
    told = " ".join(conclusion(ranking))
    assert "Not clearly better: “B shared, A personal” (+0.0 points)." in told
    assert "“one model for all” (−10.0 points)" in told
    assert headline([ranking]) == "Sharing B shows no clear gain over everyone alone."


def test_what_the_best_can_not_be_told_apart_from_is_said(base: RunConfig) -> None:
    found = {"A": [0.70, 0.71], "kernel": [0.70, 0.70], "lore": [0.69, 0.71], "none": [0.60, 0.61]}
    (ranking,) = rankings_of(worked(base, found))
    as_good = "“A, B shared, K personal” (−0.5 points) and “LoRe basis shared” (−0.5 points)"
    assert f"Not told apart from the best: {as_good}." in conclusion(ranking)
    labels = [line.label for line in differences(ranking)]
    assert "A shared, B personal − LoRe basis shared" in labels


def test_a_personal_head_on_shared_factors_is_not_one_model_for_all(base: RunConfig) -> None:
    personal = base.changed({"adapter.head": "personal"})
    rows = [
        *worked(base, {"none": [0.60, 0.61]}),
        *worked(personal, {"AB": [0.70, 0.71]}),
    ]
    (ranking,) = rankings_of(rows)
    assert ranking.names[0] == "A and B shared, head personal"
    assert headline([ranking]) == "Sharing A and B and keeping the rest personal pays."
    assert not any("one model for all" in sentence for sentence in conclusion(ranking))


def test_rules_of_a_plugin_are_baselines_as_well(base: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone alone and one model for all are told by what a rule shares, not by its name."""
    for name, own in (("hermit", "none"), ("choir", "AB")):
        rule = dataclasses.replace(share_rule(own), name=name, label=f"the {name}")
        monkeypatch.setitem(SHARES._things, name, rule)
    found = {"A": [0.70, 0.71], "hermit": [0.60, 0.61], "choir": [0.50, 0.51]}
    (ranking,) = rankings_of(worked(base, found))
    assert headline([ranking]) == "Sharing A and keeping the rest personal pays."
    told = conclusion(ranking)[0]
    assert "Against the hermit that is +10.0 points" in told
    assert "Against the choir that is +20.0 points" in told


def test_several_settings_are_told_apart_in_words(base: RunConfig) -> None:
    rows = []
    for pairs, values in ((5, [0.60, 0.50]), (10, [0.70, 0.71]), (20, [0.75, 0.76])):
        rows += worked(base.changed({"data.pairs": pairs}), {"A": values, "none": [0.60, 0.61]})
    rankings = rankings_of(rows)
    assert [ranking.value for ranking in rankings] == ["5", "10", "20"]
    assert headline(rankings) == (
        "Sharing with a personal part pays with 10 and 20 choices a person; no clear gain over everyone "
        "alone with 5 choices a person."
    )


def test_what_is_printed(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--shares", "A,none", "--seeds", "0,1", "--config", settings, "--out", out]
    assert penchant(monkeypatch, *words) == 0
    told = capsys.readouterr()
    for row in json.loads((out / "compare.json").read_text()):
        assert f"{row['accuracy_mean']:.3f} ± {row['accuracy_se']:.3f}" in told.out
    assert "4/4 none-personal-6pairs-all-seed1" in told.out
    assert re.search(r"A shared, B personal − everyone|everyone alone − A shared", told.out)
    assert "WITHOUT SECURE AGGREGATION" in told.err
    shutil.rmtree(out / "cases" / "none-personal-6pairs-all-seed1")
    assert penchant(monkeypatch, *words) == 0  # goes on with the same command


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (30, 2.042), (31, 2.040), (60, 2.000), (120, 1.980)]
)
def test_quantiles_of_students_t_are_those_of_printed_tables(freedom: int, quantile: float) -> None:
    assert student_t95(freedom) == pytest.approx(quantile, abs=6e-4)


def test_a_base_model_has_one_digest_for_each_depth_that_it_is_read_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On data without a recipe share common reads two depths, and the others all blocks alone."""
    both = RunConfig().changed({"adapter.share": "common", "model.beside": 3})
    cases = [Case(config) for config in (both, RunConfig(), both.changed({"seed": 1}))]
    said = dict(zip(cases, ("two depths", "whole", "two depths"), strict=True))
    monkeypatch.setattr(
        comparing, "_result", lambda _, case: SimpleNamespace(digests={"base model": said[case]})
    )
    comparing._refuse_other_data(Path("comparison"), cases, {})
    said[cases[2]] = "another model"
    with pytest.raises(RunDirectoryError, match=r"the base model of .* is not what it was for another case"):
        comparing._refuse_other_data(Path("comparison"), cases, {})
