"""The table of a comparison: one row a method, means over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from penchant.common.config import RunConfig
from penchant.deploy.comparison.cases import CASES, Case
from penchant.deploy.simulation.world import Row


def table(results: Mapping[Case, Row]) -> list[Row]:
    """The rows of compare.json: one for each method, number of pairs and number of people.

    accuracy_mean: over seeds, of the macro mean over people; accuracy_se: its standard error, None for one
    seed; wall_seconds: of all seeds together; cost: of one run, in the mean; runs: each seed's own.
    """
    methods: dict[RunConfig, dict[Case, Row]] = {}
    for case, result in results.items():
        methods.setdefault(case.method, {})[case] = result
    return [_table_row(own) for own in methods.values()]


def _table_row(results: Mapping[Case, Row]) -> Row:
    by_seed = sorted(results.items(), key=lambda item: item[0].config.seed)
    runs = [_table_run(case, result) for case, result in by_seed]
    first = by_seed[0][1]
    accuracies = [run["accuracy"] for run in runs]
    cold = [result["accuracy"]["cold_start"] for _, result in by_seed]
    costs = ("rounds", "client_calls", "local_epochs", "bytes_up", "bytes_down", "wall_seconds")
    return {
        **{key: first[key] for key in ("share", "head", "pairs", "clients")},
        "seeds": [run["seed"] for run in runs],
        "accuracies": accuracies,
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_se": statistics.stdev(accuracies) / math.sqrt(len(runs)) if len(runs) > 1 else None,
        "cold_start": None if None in cold else statistics.fmean(cold),
        "cold_start_curve": _cold_start_curve([result.get("cold_start") for _, result in by_seed]),
        "wall_seconds": math.fsum(run["wall_seconds"] for run in runs),
        **{key: first[key] for key in ("dataset", "base_model", "evaluated_on", "secagg", "rounds")},
        "cost": {key: statistics.fmean(run[key] for run in runs) for key in costs},
        "runs": runs,
    }


def _cold_start_curve(curves: Sequence[Sequence[Row] | None]) -> list[Row] | None:
    """[{choices, mean, se}] over seeds, each the mean over a seed's newcomers; None where a seed has none."""
    curve = []
    for rows in zip(*(curve or () for curve in curves), strict=False):
        means = [row["mean"] for row in rows]
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
        curve.append({"choices": rows[0]["choices"], "mean": statistics.fmean(means), "se": error})
    return curve or None


def _table_run(case: Case, result: Row) -> Row:
    """One seed's accuracy and cost.

    client_calls: how often a client trained, over all rounds; local_epochs: passes over its own pairs that
    all clients took together, the refit included; bytes: of all clients, over the training rounds.
    """
    training = case.config.training
    log = result["rounds_log"]
    calls = sum(row["cohort"] for row in log)
    return {
        "seed": case.config.seed,
        "accuracy": result["accuracy"]["personal"],
        "directory": f"{CASES}/{case.name}",
        "rounds": result["rounds"],
        "client_calls": calls,
        "local_epochs": calls * (training.alone_epochs + training.local_epochs)
        + result["clients"] * training.final_fit_epochs,
        "bytes_up": sum(row["bytes_up"] for row in log),
        "bytes_down": sum(row["bytes_down"] for row in log),
        "wall_seconds": result["wall_seconds"],
    }


def case_details(rows: Sequence[Row], results: Sequence[Row], unfinished: int, command: str) -> Row:
    """What the page says beside the rows; a fact only where it holds for all of them."""
    facts = {}
    for key in ("dataset", "base_model", "clients", "pairs", "rounds", "evaluated_on", "secagg"):
        values = {row[key] for row in rows}
        facts[key] = values.pop() if len(values) == 1 else None
    return {
        **facts,
        "caveats": [*_caveats(rows, results, unfinished)],
        "command": command,
        "versions": results[0]["versions"],
    }


def _caveats(rows: Sequence[Row], results: Sequence[Row], unfinished: int) -> Iterable[str]:
    if unfinished:
        yield f"{unfinished} cases of an earlier call are not finished and not in here."
    if len({tuple(row["seeds"]) for row in rows}) > 1:
        yield "Not all methods ran with the same seeds: compare by the differences, which use common seeds."
    if _held_out_differs(results):
        yield (
            "Not all numbers of choices left the same people and as many held-out pairs of each: along the "
            "learning curves, accuracies are not of exactly the same task."
        )
    yield from dict.fromkeys(caveat for result in results for caveat in result["caveats"])


def _held_out_differs(results: Sequence[Row]) -> bool:
    """Whether, with one seed and number of people, people or their numbers of held-out pairs differ."""
    seen: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for result in results:
        people = [(row["client"], row["n_test"]) for row in result["per_client"]]
        key = result["config"]["seed"], result["config"]["data"]["clients"]
        if seen.setdefault(key, people) != people:
            return True
    return False
