"""People who come after the training: who is kept out, what they start from, and what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tastes import write_choices

from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.newcomer import fit_newcomer, posterior_of
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.errors import ConfigError, DataError
from penchant.deploy import run_directory
from penchant.deploy.comparison.runner import compare
from penchant.deploy.report import PAGES, write_report
from penchant.deploy.simulation.newcomers import cold_start, hold_out
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import SimulationSetup, prepare
from penchant.server.journal import Journal
from penchant.server.round import announced_factors

PEOPLE, NEW = 6, 2
BENCHES = ModelCache()


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    choices = tmp_path_factory.mktemp("data") / "choices.jsonl"
    write_choices(choices, [24] * PEOPLE)
    return {
        "data.dataset": str(choices),
        "data.person_column": "user",
        "data.pairs": 5,
        "data.validation_pairs": 1,
        "data.test_pairs": 4,
        "data.holdout_clients": NEW,
        "model.base_model": str(tiny_model("bert")),
        "federation.rounds": 2,
        "federation.cohort": PEOPLE - NEW,
        "training.local_epochs": 2,
        "privacy.secagg": False,
    }


def world_of(base: dict[str, Any], **changes: Any) -> SimulationSetup:
    config = RunConfig().changed(base | {key.replace("__", "."): value for key, value in changes.items()})
    return prepare(config, BENCHES)


def run(directory: Path, base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    world = world_of(base, **changes)
    run_directory.create(directory, world.config)
    return simulate(world, directory, command="test", write_report=write_report).to_dict()


def town(people: int) -> Federation:
    pairs = [(Preference("", f"{i} a", f"{i} b"),) for i in range(3)]  # one pair a part, of different items
    return Federation("town", tuple(Person(f"p{i}", *pairs) for i in range(people)))


# --- who is kept out ------------------------------------------------------------------------------


def test_those_kept_out_are_drawn_by_seed_and_more_of_them_only_adds():
    federation = town(10)
    drawn = {count: {p.name for p in hold_out(federation, count, seed=3)[1]} for count in (2, 5)}
    assert len(drawn[2]) == 2
    assert drawn[2] < drawn[5]
    assert drawn[5] != {p.name for p in hold_out(federation, 5, seed=4)[1]}


def test_everybody_is_on_one_side_and_the_data_is_another():
    federation = town(10)
    stay, newcomers = hold_out(federation, 3, seed=0)
    assert {p.name for p in stay.people} | {p.name for p in newcomers} == {p.name for p in federation.people}
    assert len(stay.people) == 7
    assert stay.digest != federation.digest
    assert hold_out(federation, 0, seed=0) == (federation, ())


def test_two_people_at_least_must_stay():
    assert len(hold_out(town(4), 2, seed=0)[0].people) == 2
    with pytest.raises(DataError, match="at least 2 must stay"):
        hold_out(town(4), 3, seed=0)


def test_newcomers_take_no_part_in_any_round(base):
    world = world_of(base)
    assert len(world.federation.people) == PEOPLE - NEW
    assert not {p.name for p in world.newcomers} & {p.name for p in world.federation.people}
    with pytest.raises(ConfigError, match="lower it"):  # the cohort counts those who stayed
        world_of(base, federation__cohort=PEOPLE)


# --- the fit --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], SimulationSetup]:
    directory = tmp_path_factory.mktemp("run") / "run"
    return directory, run(directory, base), world_of(base)


def bench_and_factors(directory: Path, world: SimulationSetup) -> tuple[Any, np.ndarray]:
    plan = world.config.plan("close", len(world.federation.people))
    journal = Journal(directory)
    try:
        return BENCHES.of(plan), announced_factors(plan, journal.load()[1])
    finally:
        journal.close()


def test_without_choices_a_newcomer_has_the_common_start(trained):
    planned, factors = bench_and_factors(trained[0], trained[2])
    assert (fit_newcomer(planned, factors, ()) == planned.parts(factors)[1]).all()


def test_a_newcomers_choices_move_the_personal_part_alone_and_become_likelier(trained):
    planned, factors = bench_and_factors(trained[0], trained[2])
    person = trained[2].newcomers[0]
    before = factors.copy()
    personal = fit_newcomer(planned, factors, person.train)
    shared, start = planned.parts(factors)
    trainer = planned.trainer(start)
    prepared = planned.model.prepare(person.train)
    assert (factors == before).all()
    after = trainer.evaluate(shared, personal, prepared).loss_sum
    assert after < trainer.evaluate(shared, start, prepared).loss_sum


def test_a_smaller_prior_spread_keeps_closer_to_the_start(base, trained):
    person = trained[2].newcomers[0]
    distances = []
    for spread in (0.1, 1.0, 10.0):
        world = world_of(base, training__prior_spread=spread)
        planned, factors = bench_and_factors(trained[0], world)
        away = fit_newcomer(planned, factors, person.train) - planned.parts(factors)[1]
        distances.append(float(np.linalg.norm(away)))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_where_the_fleet_learned_its_spread_that_is_a_newcomers_prior(base, tmp_path):
    """They start at the mean, the population's own model, and stay the nearer the less people differ."""
    run(tmp_path / "run", base, adapter__share="mixed", training__prior_spread=1e-3)
    world = world_of(base, adapter__share="mixed")
    planned, factors = bench_and_factors(tmp_path / "run", world)
    assert not fit_newcomer(planned, factors, ()).any()
    place = [spec.name for spec in planned.split.shared.specs].index("mixed.spread")
    place = sum(spec.size for spec in planned.split.shared.specs[:place])
    moved = []
    for spread, deviation in ((-1.0, 0.3 * np.exp(-1)), (0.0, 0.3), (1e3, 6.0)):
        factors[place] = spread
        _, posterior = posterior_of(planned, factors, world.newcomers[0].train)
        assert posterior.prior.variance == pytest.approx(np.full(planned.split.personal.size, deviation**2))
        moved.append(float(np.linalg.norm(posterior.vector)))
    assert 0 < moved[0] < moved[1] < moved[2]


def test_the_more_choices_the_surer(trained):
    planned, factors = bench_and_factors(trained[0], trained[2])
    person = trained[2].newcomers[0]
    errors = []
    for count in (1, 5):
        laplace, posterior = posterior_of(planned, factors, person.train[:count])
        errors.append(laplace.margins(posterior, person.test).error.mean())
    assert errors[1] < errors[0]


def test_where_nothing_is_personal_a_newcomer_takes_the_global_model(base, tmp_path):
    curve = run(tmp_path / "run", base, adapter__share="AB")["cold_start"]
    assert len({row["mean"] for row in curve}) == 1


def test_after_a_warm_up_newcomers_start_from_what_it_ended_with(base, tmp_path):
    world = world_of(base, federation__warmup_rounds=1)
    run(tmp_path / "run", base, federation__warmup_rounds=1)
    planned, factors = bench_and_factors(tmp_path / "run", world)
    start = fit_newcomer(planned, factors, ())
    assert (start != planned.split.initial(world.config.seed)[1]).any()
    assert (start == factors[planned.split.shared.size :]).all()


# --- what is reported -----------------------------------------------------------------------------


def test_the_curve_is_the_mean_over_newcomers_at_each_number_of_choices(trained):
    directory, result, world = trained
    planned, factors = bench_and_factors(directory, world)
    curve = result["cold_start"]
    assert [row["choices"] for row in curve] == [0, 1, 2, 5]
    shared, start = planned.parts(factors)
    accuracies = [
        planned.trainer(start)
        .evaluate(shared, fit_newcomer(planned, factors, p.train[:2]), planned.model.prepare(p.test))
        .accuracy
        for p in world.newcomers
    ]
    assert curve[2]["mean"] == pytest.approx(np.mean(accuracies))
    assert curve[2]["se"] == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(NEW))
    assert curve[2]["people"] == NEW
    assert result["accuracy"]["cold_start"] == curve[-1]["mean"]
    assert result["clients"] == PEOPLE - NEW


def test_one_newcomer_has_no_standard_error(trained):
    planned, factors = bench_and_factors(trained[0], trained[2])
    curve = cold_start(planned, factors, trained[2].newcomers[:1], 2, "validation")
    assert [row.se for row in curve] == [None, None, None]


def test_without_newcomers_there_is_no_curve(base, tmp_path):
    result = run(tmp_path / "run", base, data__holdout_clients=0, federation__rounds=1)
    assert result["cold_start"] is None
    assert result["accuracy"]["cold_start"] is None
    assert "<h2>Newcomers</h2>" not in (tmp_path / "run/report.html").read_text()


def test_the_report_shows_the_curve(trained, tmp_path):
    write_report(RunResult.from_dict(trained[1]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Newcomers</h2>" in page
    assert "2 people were kept out of the training" in page
    assert "choices of a newcomer" in page


def test_a_comparison_has_a_curve_for_each_method(base, tmp_path):
    changes = [{"adapter.share": share, "seed": seed} for seed in (0, 1) for share in ("A", "none")]
    configs = [RunConfig().changed(base | change) for change in changes]
    compare(configs, tmp_path / "all", model_cache=BENCHES, pages=PAGES)
    rows = json.loads((tmp_path / "all/compare.json").read_text())
    for row in rows:
        curves = [
            json.loads((tmp_path / "all" / one["directory"] / "result.json").read_text())["cold_start"]
            for one in row["runs"]
        ]
        means = [curve[1]["mean"] for curve in curves]
        assert row["cold_start_curve"][1] == {
            "choices": 1,
            "mean": pytest.approx(np.mean(means)),
            "se": pytest.approx(np.std(means, ddof=1) / np.sqrt(2)),
        }
        assert row["cold_start"] == pytest.approx(row["cold_start_curve"][-1]["mean"])
    assert "People who came after the training" in (tmp_path / "all/compare.html").read_text()
