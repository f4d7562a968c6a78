"""The report of a run and of a comparison: one HTML file each, that needs nothing else.

Whatever a result does not know is left out of the page. Style sheet and plots are inside the file, no
address is asked for anything, every text is escaped, and the page follows the reader's light or dark
setting.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.common.objectives import REWARD, find_objective
from penchant.common.shares import Head, find_share
from penchant.common.wording import counted, decimals, duration, listed, percent, plain, size, span
from penchant.deploy.comparison.methods import head_of, method
from penchant.deploy.comparison.table import Comparison
from penchant.deploy.report import comparison_page, plots, rendering
from penchant.deploy.report.rendering import base_name, toml, typical, version_of
from penchant.deploy.simulation.newcomers import ColdStart
from penchant.deploy.simulation.person_scores import AccuracySpread, ClientScore
from penchant.deploy.simulation.race_record import Race
from penchant.deploy.simulation.result import RoundSummary, RunResult, SharedTensor
from penchant.deploy.simulation.served import NOT_KNOWN, ModelsInUse, Served
from penchant.server.charts import LineChart
from penchant.server.privacy_figures import PrivacyFigures

__all__ = ["write_comparison", "write_report"]


def write_report(result: RunResult, path: Path) -> None:
    """Write the page of one run to `path`."""
    rendering.write(path, "report.html.j2", _report_page(result))


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page of a comparison to `path`.

    Methods are compared seed by seed where rows have ``accuracies``, one number for each of their ``seeds``.
    """
    rendering.write(path, "comparison.html.j2", comparison_page.page(comparison))


# --- the report of a run --------------------------------------------------------------------------


def _report_page(result: RunResult) -> dict[str, Any]:
    """Everything that the template shows, as texts and plots."""
    log, curve = result.rounds_log, result.cold_start or ()
    baselines = {method(name): value for name, value in result.baselines.items()}
    scores = list(result.per_person.values())
    return {
        "title": f"penchant: {percent(result.accuracy)} on {result.dataset}",
        "strap": f"{result.dataset} · {base_name(result.base_model)} · seed {result.seed}",
        "headline": {
            "before": f"Over {result.clients} people, the {_models(result)} rank ",
            "accuracy": percent(result.accuracy),
            "after": " of held-out choices as their owners did.",
        },
        "lead": _lead(result, baselines),
        "notice": _notice(result.secagg),
        "numbers": _numbers(result),
        "people_plot": plots.people(scores, result.accuracy) if scores else None,
        "people_text": _people_text(scores, result) + _spread_text(result.spread),
        "newcomers_plot": _newcomers_plot(curve),
        "newcomers_text": _newcomers_text(curve),
        "newcomers": [_newcomers_row(row) for row in curve],
        "rounds_charts": plots.rounds(result.measured),
        "rounds_text": _rounds_text(result),
        "costs_charts": plots.costs(log),
        "costs_text": _costs_text(log),
        "race": _race(result.race),
        "race_text": _race_text(result.race),
        "sharing": _sharing(result),
        "left": [_tensor(tensor) for tensor in result.shared_tensors],
        "facts": _facts(result),
        "caveats": list(result.caveats),
        "command": result.command or _command(result),
        "clients": [_client_row(score) for score in sorted(result.per_client, key=_by_accuracy)],
        "log": [_log_row(row, result.measured.get(row.round)) for row in log],
        "config": toml(result.config),
        "versions": list(result.versions.items()),
        "digests": list(result.digests.items()),
        "version": version_of(result.versions),
    }


def _models(result: RunResult) -> str:
    """What the run made, in words."""
    found = find_objective(result.objective)
    return found.label if found else "personal models"


def _lead(result: RunResult, baselines: Mapping[str, float]) -> str:
    people = f"Each person gave {result.given} choices to learn from"
    others = "".join(f"; {name}: {percent(value)}" for name, value in baselines.items())
    cold = result.cold_start_accuracy
    new = f" People who came after the training: {percent(cold)}." if cold is not None else ""
    ranked = ""
    if result.objective != REWARD:
        ranked = " They rank by implicit rewards: how much likelier a response is than by the base model."
    return f"{people}. Guessing would get 50% right{others}.{new}{ranked}"


def _notice(secagg: bool) -> dict[str, str]:
    """Loud when devices sent their updates in clear, quiet otherwise."""
    if secagg:
        return {
            "kind": "good",
            "sign": "✓",
            "title": "Secure aggregation was on.",
            "text": "The server learned sums over each round's cohort: "
            "no single update, loss, accuracy or count.",
        }
    return {
        "kind": "bad",
        "sign": "⚠",
        "title": "Secure aggregation was OFF.",
        "text": "Every update went to the server in clear, and an update reveals much about the choices "
        "behind it. Do this with simulated people only.",
    }


def _numbers(result: RunResult) -> list[tuple[str, str]]:
    up = typical(row.upload for row in result.rounds_log)
    memory, seconds = result.peak_rss_mb, result.wall_seconds
    shown = [
        ("people", f"{result.clients:,}"),
        ("rounds", f"{result.rounds:,}"),
        ("choices a person", result.given),
        ("upload a round, each", None if up is None else size(up)),
        ("all in all", None if seconds is None else duration(seconds)),
        ("peak memory", None if memory is None else size(memory * 1e6)),
    ]
    return [(name, value) for name, value in shown if value is not None]


def _people_text(scores: Sequence[float], result: RunResult) -> str:
    if not scores:
        return ""
    below = sum(score < 0.5 for score in scores)
    served = {0: "nobody is", 1: "1 person is"}.get(below, f"{below} people are")
    return (
        f"One dot a person. Half of them are served at {percent(statistics.median(scores))} or better; "
        f"{served} served worse than by guessing. Such numbers about single people exist in a simulation "
        "only: a real server never sees them."
        + _served_text(result.served, result.why_not_served)
        + _in_use_text(result.models_in_use)
    )


def _served_text(against: Served | None, why_not: str) -> str:
    """How people fare against everybody's model; where there is none, why that is not known."""
    if against is None:
        return f" {NOT_KNOWN}: {why_not}."
    return (
        f" Everybody's model alone is at {percent(against.accuracy)}; beyond noise, one's own is worse than "
        f"it for {against.worse} and better for {against.better} of "
        f"{counted(against.people, 'person', 'people')} (exact sign tests on the pairs that only one ranks "
        "right, corrected after Holm, 5%)."
    )


def _in_use_text(found: ModelsInUse | None) -> str:
    """Which models devices have chosen for their people, and by what."""
    if found is None:
        return ""
    return (
        f" By held-out choices devices chose the own model for {found.own}, the one halfway to everybody's "
        f"for {found.halfway} and everybody's for {found.everybodys}: another than the own one only where "
        "chance alone makes its lead in at most 5% of cases."
    )


def _spread_text(spread: AccuracySpread | None) -> str:
    """How far the mean can be trusted, and for whom it is not true."""
    if spread is None:
        return ""
    if spread.interval is None:
        return " From one person nothing follows for others."
    low, high = spread.interval
    return (
        f" With other people of this kind the mean would be between {percent(low)} and {percent(high)} (95%, "
        f"people drawn anew); the tenth of them served worst is at {percent(spread.worst_tenth)}, and "
        f"of all test pairs together {percent(spread.over_pairs)} are ranked right."
    )


def _newcomers_plot(curve: Sequence[ColdStart]) -> LineChart | None:
    after = [row for row in curve if row.choices]  # the axis is logarithmic
    if not after:
        return None
    line = plots.Curve(
        "newcomers", [r.choices for r in after], [r.mean for r in after], [r.se for r in after]
    )
    return plots.curves([line], "choices of a newcomer")


def _newcomers_text(curve: Sequence[ColdStart]) -> str:
    if not curve:
        return ""
    first, last = curve[0], curve[-1]
    return (
        f"{last.people} people were kept out of the training. The shared factors stay as they are; only "
        f"the personal part is fitted, to a few choices of each: {percent(first.mean)} without any, "
        f"{percent(last.mean)} after {last.choices}. The band is one standard error over people."
    )


def _newcomers_row(row: ColdStart) -> dict[str, str]:
    return {"choices": f"{row.choices}", "mean": decimals(row.mean), "se": decimals(row.se)}


def _rounds_text(result: RunResult) -> str:
    log = result.rounds_log
    cohorts = [row.cohort for row in log if row.cohort is not None]
    text = f"A round trains on {span(cohorts)} of the {result.clients} people." if cohorts else ""
    lost = sum(row.cohort - row.survivors for row in log if row.cohort and row.survivors is not None)
    if lost > 0:
        text += f" {lost} times a client dropped out of a round."
    if result.setting("training.final_fit_epochs", "training.refit_epochs"):
        text += " After the last round everyone refits the personal part."
    return text.strip()


def _costs_text(log: Sequence[RoundSummary]) -> str:
    up, down = typical(row.upload for row in log), typical(row.download for row in log)
    seconds = typical(row.seconds for row in log)
    parts = []
    if up is not None and down is not None:
        parts.append(f"In a typical round a client sends {size(up)} and receives {size(down)}.")
    if seconds is not None:
        parts.append(f"It takes {seconds:.2g} s here, all clients on one machine.")
    return " ".join(parts)


def _race_text(race: Race | None) -> str:
    """What a race chose, among how many, at what cost."""
    if race is None:
        return ""
    text = (
        f"{race.chosen} was chosen among {len(race.entrants)} settings: each trained for some rounds, with "
        "the same people asked, and the better half went on, by the sums' counts of held-out choices alone. "
        "What they don't tell apart by one standard error goes to the cheaper one, which stands first. "
        f"The others trained {counted(race.rounds, 'round')}"
    )
    if race.epsilon is None or race.epsilon_left is None:
        return f"{text}."
    return (
        f"{text}, which cost each person epsilon {race.epsilon:.3g} at most; the run itself costs "
        f"{race.epsilon_left:.3g} at most, and both together keep the run's epsilon."
    )


def _race(race: Race | None) -> list[dict[str, str]]:
    return [
        {
            "name": one.name,
            "share": one.share,
            "accuracy": one.why or percent(one.accuracy, error=one.error),
            "judged": plain(one.judged),
            "rounds": f"{one.rounds}",
        }
        for one in (race.entrants if race else ())
    ]


def _sharing(result: RunResult) -> list[tuple[str, str]]:
    """What left a device, what stayed, and how what left was protected."""
    share, head = result.share, head_of(result)
    rule = find_share(share)
    shared, personal = (rule.shared, rule.personal) if rule else (f"what share {share} names", "the rest")
    left = listed([shared, "the score head" if head == "shared" else ""]) or "no part of the model"
    stayed = listed([personal, "the score head" if head == "personal" else "", "every text and choice"])
    how = (
        "masked; in each round only the sum over a cohort could be opened"
        if result.secagg
        else "IN CLEAR: secure aggregation was off"
    )
    return [
        ("Left a device", f"{left}; beside it its weight, loss and counts of right answers"),
        ("How it left", how),
        ("Stayed on the device", stayed),
        ("Differential privacy", _dp(result.dp)),
    ]


def _dp(figures: PrivacyFigures | None) -> str:
    if figures is None:
        return "off: sums are exact, and nothing limits what can be inferred from one"
    told = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.to_dict().items() if name != "rho"
    )
    return (
        f"{told}; in a deployment whose people take part as often, what is released changes by no more if "
        "one person's choices are replaced by none"
    )


def _facts(result: RunResult) -> list[tuple[str, str]]:
    tested = [score.n_test for score in result.per_client if score.n_test is not None]
    modules = listed(result.setting("adapter.target_modules") or ())
    blocks = _blocks(result.setting("adapter.layers") or ())
    facts = [
        ("Data set", result.dataset),
        ("Base model", result.base_model),
        ("People", f"{result.clients}"),
        (
            "Choices a person",
            f"{result.given} to learn from" + (f", {span(tested)} held out" if tested else ""),
        ),
        (
            "Low-rank factors",
            f"rank {result.setting('adapter.rank')} on {modules} of {blocks}" if modules else "",
        ),
        ("Rounds", f"{result.rounds}"),
        ("Seed", f"{result.seed}"),
        ("Accuracy", "mean over people of the part of their held-out pairs that is ranked right"),
    ]
    return [(name, value) for name, value in facts if value]


def _blocks(chosen: Sequence[int]) -> str:
    """Which transformer blocks carry adapters, in words."""
    layers = sorted(int(layer) for layer in chosen)
    if not layers:
        return "every block"
    if layers == list(range(-len(layers), 0)):
        return "the last block" if len(layers) == 1 else f"the last {len(layers)} blocks"
    return f"block{'s' if len(layers) > 1 else ''} {listed(map(str, layers))}"


def _tensor(tensor: SharedTensor) -> dict[str, str]:
    return {
        "name": tensor.name,
        "shape": " × ".join(map(str, tensor.shape)),
        "numbers": f"{math.prod(tensor.shape):,}",
    }


def _by_accuracy(score: ClientScore) -> tuple[float, str]:
    return -(score.accuracy or 0.0), score.client


def _client_row(score: ClientScore) -> dict[str, str]:
    return {
        "client": score.client,
        "n_test": plain(score.n_test),
        "accuracy": decimals(score.accuracy),
    }


def _log_row(row: RoundSummary, measured: RoundSummary | None) -> list[str]:
    """A round, with the loss and accuracy of the factors that it ended with."""
    return [
        plain(row.round),
        plain(row.cohort),
        plain(row.survivors),
        decimals(measured.train_loss if measured else None),
        decimals(measured.val_accuracy if measured else None),
        decimals(row.seconds, 2),
        *(decimals(None if each is None else each / 1000, 1) for each in (row.upload, row.download)),
    ]


def _command(result: RunResult) -> str:
    """The command that gives this result, as far as the result itself says."""
    asked = {
        "dataset": result.dataset,
        "base-model": result.base_model,
        "share": result.share,
        "objective": None if result.objective == REWARD else result.objective,
        "head": None if result.head == Head.NONE else result.head,
        "clients": result.clients,
        "pairs": result.pairs,
        "rounds": result.rounds,
        "seed": result.seed,
    }
    words = [f"--{name} {value}" for name, value in asked.items() if value not in (None, "auto")]
    words.append("--secagg" if result.secagg else "--no-secagg")
    return " ".join(["penchant simulate", *words])
