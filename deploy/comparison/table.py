"""The table of a comparison: one row a method, means over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from penchant.common.config import RunConfig
from penchant.common.shares import ONE_FOR_ALL
from penchant.deploy.comparison.cases import CASES, Case
from penchant.deploy.comparison.methods import is_one_for_all
from penchant.deploy.json_tables import from_table, plain_value
from penchant.deploy.simulation.result import ColdStart, RunResult
from penchant.deploy.simulation.served import Served, served, versus

__all__ = [
    "Comparison",
    "ComparisonDetails",
    "ComparisonRow",
    "CurvePoint",
    "RunCost",
    "SeedRun",
    "case_details",
    "table",
]


@dataclass(frozen=True)
class CurvePoint:
    """How newcomers do after a number of choices: over seeds, the mean accuracy and its standard error."""

    choices: int
    mean: float
    se: float | None = None


@dataclass(frozen=True)
class RunCost:
    """What one run of a method costs, as the mean over seeds.

    Attributes:
        rounds: how many rounds the run had.
        client_calls: how often a client trained, counted over all rounds and clients.
        local_epochs: how many passes over their own pairs all clients took together, with the last fit.
        bytes_up: what all clients sent in the training rounds.
        bytes_down: what all clients received in the training rounds.
        wall_seconds: the time that the run took.
    """

    rounds: float | None = None
    client_calls: float | None = None
    local_epochs: float | None = None
    bytes_up: float | None = None
    bytes_down: float | None = None
    wall_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed's accuracy and cost, and the directory of its run.

    served: people's own models against the one for all that the same seed, pairs and people have in the
    comparison; None where there is none, and of that one itself.
    """

    seed: int
    accuracy: float
    directory: str
    rounds: int
    client_calls: int
    local_epochs: int
    bytes_up: int
    bytes_down: int
    wall_seconds: float
    served: Served | None = None


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One method at one number of choices and of people, as compare.json holds it.

    Attributes:
        share: the name of the share rule.
        head: whether the score head is shared or personal.
        pairs: how many training pairs each person has.
        clients: how many people take part.
        seeds: the seeds that the method was run with.
        accuracies: the mean accuracy over people, for each seed in order.
        accuracy_mean: the mean of `accuracies`.
        accuracy_se: the standard error of that mean; None for a single seed.
        cold_start: the accuracy of newcomers, as the mean over seeds.
        cold_start_curve: the accuracy of newcomers by how many choices they have made.
        wall_seconds: the time that the runs of all seeds took together.
        dataset: the name of the data set.
        base_model: the name of the base model.
        evaluated_on: the part of the pairs that the accuracy is measured on.
        secagg: whether the runs used secure aggregation.
        rounds: how many rounds a run has.
        cost: the mean cost of a run.
        runs: each seed's accuracy and cost.
    """

    share: str
    head: str | None = None
    pairs: int | None = None
    clients: int | None = None
    seeds: tuple[int, ...] = ()
    accuracies: tuple[float, ...] = ()
    accuracy_mean: float
    accuracy_se: float | None = None
    cold_start: float | None = None
    cold_start_curve: tuple[CurvePoint, ...] | None = None
    wall_seconds: float | None = None
    dataset: str | None = None
    base_model: str | None = None
    evaluated_on: str | None = None
    secagg: bool | None = None
    rounds: int | None = None
    cost: RunCost | None = None
    runs: tuple[SeedRun, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The table of compare.json."""
        made: dict[str, Any] = plain_value(self)
        return made

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; files of earlier versions may lack some keys.

        Raises:
            RunDirectoryError: what no row can do without is missing.
        """
        given = {name: value for name, value in row.items() if value is not None}
        for name, record in (("cold_start_curve", CurvePoint), ("runs", SeedRun)):
            if name in given:
                given[name] = tuple(
                    from_table(record, _with_served(one), f"{name} of a row") for one in given[name]
                )
        if "cost" in given:
            given["cost"] = from_table(RunCost, given["cost"], "cost of a row")
        if not isinstance(given.get("seeds", []), list | tuple):
            given.pop("seeds")  # a mere number of seeds: which ones is not known
        return from_table(cls, given, "a row of the comparison")


@dataclass(frozen=True)
class ComparisonDetails:
    """What the page says beside the rows; a fact is None where it does not hold for all of them."""

    dataset: str | None = None
    base_model: str | None = None
    clients: int | None = None
    pairs: int | None = None
    rounds: int | None = None
    evaluated_on: str | None = None
    secagg: bool | None = None
    caveats: tuple[str, ...] = ()
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave: the rows of compare.json and what its page says beside them."""

    rows: tuple[ComparisonRow, ...]
    details: ComparisonDetails = field(default_factory=ComparisonDetails)


def table(results: Mapping[Case, RunResult]) -> list[ComparisonRow]:
    """The rows of compare.json: one for each method, number of pairs and number of people.

    Args:
        results: the finished cases; the seeds of one method are put into one row.
    """
    methods: dict[RunConfig, dict[Case, RunResult]] = {}
    for case, result in results.items():
        methods.setdefault(case.method, {})[case] = result
    for_all = _for_all(results)
    return [_table_row(own, for_all) for own in methods.values()]


_Setting = tuple[int, int, int]  # of a case: seed, pairs a person, people


def _setting(case: Case) -> _Setting:
    return case.config.seed, case.config.data.pairs, case.config.data.clients


def _for_all(results: Mapping[Case, RunResult]) -> dict[_Setting, RunResult]:
    """The result with one model for all at each setting; of several the usual rule's."""
    found = [(case, result) for case, result in results.items() if is_one_for_all(result)]
    found.sort(key=lambda one: one[1].share == ONE_FOR_ALL)
    return {_setting(case): result for case, result in found}


def served_against(own: RunResult, common: RunResult | None) -> Served | None:
    """People's own models against one for all of another run, person by person on the same pairs; None where
    that is not known of everybody."""
    if common is None or is_one_for_all(own) or own.digests.get("data") != common.digests.get("data"):
        return None
    right = {score.client: score.right for score in common.per_client}
    rows = []
    for score in own.per_client:
        other = right.get(score.client)
        if not score.right or not other or len(score.right) != len(other):
            return None
        rows.append(versus(score.right, other))
    return served(rows) if rows else None


def _table_row(results: Mapping[Case, RunResult], for_all: Mapping[_Setting, RunResult]) -> ComparisonRow:
    by_seed = sorted(results.items(), key=lambda item: item[0].config.seed)
    runs = tuple(
        replace(_seed_run(case, result), served=served_against(result, for_all.get(_setting(case))))
        for case, result in by_seed
    )
    first = by_seed[0][1]
    accuracies = tuple(run.accuracy for run in runs)
    cold = [result.cold_start_accuracy for _, result in by_seed if result.cold_start_accuracy is not None]
    return ComparisonRow(
        share=first.share,
        head=first.head,
        pairs=first.pairs,
        clients=first.clients,
        seeds=tuple(run.seed for run in runs),
        accuracies=accuracies,
        accuracy_mean=statistics.fmean(accuracies),
        accuracy_se=_error(accuracies),
        cold_start=statistics.fmean(cold) if len(cold) == len(runs) else None,
        cold_start_curve=_cold_start_curve([result.cold_start for _, result in by_seed]),
        wall_seconds=math.fsum(run.wall_seconds for run in runs),
        dataset=first.dataset,
        base_model=first.base_model,
        evaluated_on=first.evaluated_on,
        secagg=first.secagg,
        rounds=first.rounds,
        cost=RunCost(
            rounds=statistics.fmean(run.rounds for run in runs),
            client_calls=statistics.fmean(run.client_calls for run in runs),
            local_epochs=statistics.fmean(run.local_epochs for run in runs),
            bytes_up=statistics.fmean(run.bytes_up for run in runs),
            bytes_down=statistics.fmean(run.bytes_down for run in runs),
            wall_seconds=statistics.fmean(run.wall_seconds for run in runs),
        ),
        runs=runs,
    )


def _error(values: Sequence[float]) -> float | None:
    """The standard error of a mean; None for one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _cold_start_curve(curves: Sequence[Sequence[ColdStart] | None]) -> tuple[CurvePoint, ...] | None:
    """The means over seeds, each the mean over a seed's newcomers; None where a seed has none."""
    points = []
    for rows in zip(*(curve or () for curve in curves), strict=False):
        means = [row.mean for row in rows]
        points.append(CurvePoint(rows[0].choices, statistics.fmean(means), _error(means)))
    return tuple(points) or None


def _with_served(row: object) -> object:
    """A seed's table of compare.json, with the record that is in it."""
    if not isinstance(row, Mapping) or row.get("served") is None:
        return row
    return {**row, "served": from_table(Served, row["served"], "served of a row")}


def _seed_run(case: Case, result: RunResult) -> SeedRun:
    training = case.config.training
    log = result.rounds_log
    calls = sum(row.cohort or 0 for row in log)
    return SeedRun(
        seed=case.config.seed,
        accuracy=result.accuracy,
        directory=f"{CASES}/{case.name}",
        rounds=result.rounds,
        client_calls=calls,
        local_epochs=calls * (training.alone_epochs + training.local_epochs)
        + result.clients * training.final_fit_epochs,
        bytes_up=sum(row.bytes_up or 0 for row in log),
        bytes_down=sum(row.bytes_down or 0 for row in log),
        wall_seconds=result.wall_seconds or 0.0,
    )


def case_details(
    rows: Sequence[ComparisonRow], results: Sequence[RunResult], unfinished: int, command: str
) -> ComparisonDetails:
    """What the page says beside the rows; a fact only where it holds for all of them."""
    facts: dict[str, Any] = {}
    for key in ("dataset", "base_model", "clients", "pairs", "rounds", "evaluated_on", "secagg"):
        values = {getattr(row, key) for row in rows}
        facts[key] = values.pop() if len(values) == 1 else None
    return ComparisonDetails(
        **facts,
        caveats=tuple(_caveats(rows, results, unfinished)),
        command=command,
        versions=results[0].versions,
    )


def _caveats(rows: Sequence[ComparisonRow], results: Sequence[RunResult], unfinished: int) -> Iterable[str]:
    if unfinished:
        yield f"{unfinished} cases of an earlier call are not finished and not in here."
    if len({row.seeds for row in rows}) > 1:
        yield "Not all methods ran with the same seeds: compare by the differences, which use common seeds."
    if _held_out_differs(results):
        yield (
            "Not all numbers of choices left the same people and as many held-out pairs of each: along the "
            "learning curves, accuracies are not of exactly the same task."
        )
    for caveat in dict.fromkeys(caveat for result in results for caveat in result.caveats):
        yield _of_whom([one for one in results if caveat in one.caveats], results) + caveat


def _of_whom(own: Sequence[RunResult], results: Sequence[RunResult]) -> str:
    """Before what is said of some results and not of all: by what they differ from the others."""
    told = []
    for key, name in (
        ("share", "share"),
        ("head", "head"),
        ("pairs", "pairs a person"),
        ("clients", "people"),
        ("seed", "seed"),
    ):
        values = dict.fromkeys(getattr(one, key) for one in own)
        if values.keys() != {getattr(one, key) for one in results}:
            told.append(f"{name} {', '.join(map(str, values))}")
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}: " if text else ""


def _held_out_differs(results: Sequence[RunResult]) -> bool:
    """Whether, with one seed and number of people, people or their numbers of held-out pairs differ."""
    seen: dict[tuple[int, int], list[tuple[str, int | None]]] = {}
    for result in results:
        people = [(score.client, score.n_test) for score in result.per_client]
        key = result.seed, int(result.setting("data.clients") or 0)
        if seen.setdefault(key, people) != people:
            return True
    return False
