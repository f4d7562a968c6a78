"""The report of a run and of a comparison: one HTML file each, that needs nothing else.

`write_report` takes the dictionary of ``result.json``, `write_comparison` the rows of ``compare.json``.
Whatever is null or absent there is left out of the page. Style sheet and plots are inside the file, no
address is asked for anything, every text is escaped, and the page follows the reader's light or dark
setting.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.common.config import RunConfig
from penchant.common.model.shares import find_share
from penchant.common.settings import current_names
from penchant.deploy.comparison.methods import head_of, method
from penchant.deploy.report import comparison_page, plots, rendering
from penchant.deploy.report.rendering import (
    Row,
    base_name,
    decimals,
    duration,
    kilo,
    listed,
    per_client,
    percent,
    plain,
    size,
    span,
    toml,
    typical,
    version_of,
)

__all__ = ["write_comparison", "write_report"]


def write_report(result: Row, path: Path) -> None:
    """Write the page of one run to `path`.

    `result` is what ``result.json`` holds. Beside the documented keys these are shown when present:
    ``command`` (text), ``config`` (tables), ``versions``, ``digests`` (names to texts), ``caveats`` (texts),
    ``baselines`` (names to accuracies), ``shared_tensors`` ([{name, shape}]) and ``cold_start``
    ([{choices, people, mean, se}]).
    """
    rendering.write(path, "report.html.j2", _report_page(result))


def write_comparison(rows: Sequence[Row], path: Path, details: Row | None = None) -> None:
    """Write the page of a comparison to `path`.

    `rows` is what ``compare.json`` holds. With ``accuracies`` (one number a seed, in the order of
    ``seeds``) in the rows, methods are compared seed by seed. `details` may hold ``command``, ``caveats``,
    and ``dataset``, ``base_model``, ``clients``, ``pairs``, ``rounds``, ``secagg``, ``versions``.
    """
    rendering.write(path, "comparison.html.j2", comparison_page.page(rows, details or {}))


# --- the report of a run --------------------------------------------------------------------------


def _report_page(result: Row) -> dict[str, Any]:
    """Everything that the template shows, as texts and plots."""
    clients = list(result.get("per_client") or [])
    log = list(result.get("rounds_log") or [])
    accuracy = result["accuracy"]["personal"]
    baselines = {method(name): value for name, value in (result.get("baselines") or {}).items()}
    scores = [row["accuracy"] for row in clients if row.get("accuracy") is not None]
    return {
        "title": f"penchant: {percent(accuracy)} on {result['dataset']}",
        "strap": f"{result['dataset']} · {base_name(result)} · seed {result['seed']}",
        "headline": {
            "before": f"Over {result['clients']} people, the personal reward models rank ",
            "accuracy": percent(accuracy),
            "after": " of held-out choices as their owners did.",
        },
        "lead": _lead(result, baselines),
        "notice": _notice(result),
        "numbers": _numbers(result, log),
        "people_plot": plots.people(scores, accuracy) if scores else None,
        "people_text": _people_text(scores),
        "newcomers_plot": _newcomers_plot(result.get("cold_start")),
        "newcomers_text": _newcomers_text(result.get("cold_start")),
        "newcomers": [_newcomers_row(row) for row in result.get("cold_start") or []],
        "rounds_plot": plots.rounds(log),
        "rounds_text": _rounds_text(result, log),
        "costs_plot": plots.costs(log),
        "costs_text": _costs_text(log),
        "sharing": _sharing(result),
        "left": [_tensor(row) for row in result.get("shared_tensors") or []],
        "facts": _facts(result),
        "caveats": list(result.get("caveats") or []),
        "command": result.get("command") or _command(result),
        "clients": [_client_row(row) for row in sorted(clients, key=_by_accuracy)],
        "log": [_log_row(row) for row in log],
        "config": toml(result.get("config")),
        "versions": list((result.get("versions") or {}).items()),
        "digests": list((result.get("digests") or {}).items()),
        "version": version_of(result),
    }


def _lead(result: Row, baselines: Mapping[str, float]) -> str:
    people = f"Each person gave {result['pairs']} choices to learn from"
    others = "".join(f"; {name}: {percent(value)}" for name, value in baselines.items())
    cold = result["accuracy"].get("cold_start")
    new = f" People who came after the training: {percent(cold)}." if cold is not None else ""
    return f"{people}. Guessing would get 50% right{others}.{new}"


def _notice(result: Row) -> dict[str, str]:
    """Loud when devices sent their updates in clear, quiet otherwise."""
    if result.get("secagg"):
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
        "text": "Every update went to the server in clear, and an update tells much about the choices "
        "behind it. Do this with simulated people only.",
    }


def _numbers(result: Row, log: Sequence[Row]) -> list[tuple[str, str]]:
    up = typical(per_client(row, "bytes_up") for row in log)
    memory = result.get("peak_rss_mb")
    shown = [
        ("people", f"{result['clients']:,}"),
        ("rounds", f"{result['rounds']:,}"),
        ("choices a person", f"{result['pairs']:,}"),
        ("upload a round, each", size(up) if up is not None else None),
        ("all in all", duration(result.get("wall_seconds"))),
        ("peak memory", size(memory * 1e6) if memory is not None else None),
    ]
    return [(name, value) for name, value in shown if value is not None]


def _people_text(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    below = sum(score < 0.5 for score in scores)
    served = {0: "nobody is", 1: "1 person is"}.get(below, f"{below} people are")
    return (
        f"One dot a person. Half of them are served at {percent(statistics.median(scores))} or better; "
        f"{served} served worse than by guessing. Such numbers about single people exist in a simulation "
        "only: a real server never sees them."
    )


def _newcomers_plot(curve: Sequence[Row] | None) -> plots.Plot | None:
    after = [row for row in curve or [] if row["choices"]]  # the axis is logarithmic
    if not after:
        return None
    line = plots.Curve(
        "newcomers", [r["choices"] for r in after], [r["mean"] for r in after], [r["se"] for r in after]
    )
    return plots.curves([line], "choices of a newcomer", salt="newcomers")


def _newcomers_text(curve: Sequence[Row] | None) -> str:
    if not curve:
        return ""
    first, last = curve[0], curve[-1]
    return (
        f"{last['people']} people were kept out of the training. The shared factors stay as they are; only "
        f"the personal part is fitted, to a few choices of each: {percent(first['mean'])} without any, "
        f"{percent(last['mean'])} after {last['choices']}. Bars are one standard error over people."
    )


def _newcomers_row(row: Row) -> dict[str, str]:
    return {
        "choices": f"{row['choices']}",
        "mean": decimals(row["mean"], 3),
        "se": decimals(row["se"], 3),
    }


def _rounds_text(result: Row, log: Sequence[Row]) -> str:
    cohorts = [int(row["cohort"]) for row in log if row.get("cohort") is not None]
    text = f"A round trains on {span(cohorts)} of the {result['clients']} people." if cohorts else ""
    lost = sum(int(row["cohort"]) - int(row["survivors"]) for row in log if row.get("survivors") is not None)
    if lost > 0:
        text += f" {lost} times a client dropped out of a round."
    config = current_names(
        RunConfig, result.get("config") or {}, quiet=True
    )  # an older run's has older names
    training = config.get("training") or {}
    if training.get("final_fit_epochs"):
        text += " After the last round everyone refits the personal part."
    return text.strip()


def _costs_text(log: Sequence[Row]) -> str:
    up = typical(per_client(row, "bytes_up") for row in log)
    down = typical(per_client(row, "bytes_down") for row in log)
    seconds = typical(row.get("seconds") for row in log)
    parts = []
    if up is not None and down is not None:
        parts.append(f"In a typical round a client sends {size(up)} and receives {size(down)}.")
    if seconds is not None:
        parts.append(f"It takes {seconds:.2g} s here, all clients on one machine.")
    return " ".join(parts)


def _sharing(result: Row) -> list[tuple[str, str]]:
    """What left a device, what stayed, and how what left was protected."""
    share, head = str(result["share"]), head_of(result)
    rule = find_share(share)
    shared, personal = (rule.shared, rule.personal) if rule else (f"what share {share} names", "the rest")
    left = listed([shared, "the score head" if head == "shared" else ""]) or "no part of the model"
    stayed = listed([personal, "the score head" if head == "personal" else "", "every text and choice"])
    how = (
        "masked; only the sum over a cohort could be opened"
        if result.get("secagg")
        else "IN CLEAR: secure aggregation was off"
    )
    return [
        ("Left a device", f"{left}; beside it its weight, loss and counts of right answers"),
        ("How it left", how),
        ("Stayed on the device", stayed),
        ("Differential privacy", _dp(result.get("dp"))),
    ]


def _dp(dp: object) -> str:
    if not isinstance(dp, Mapping):
        return "off: sums are exact, and what a sum tells is told"
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in dp.items()
    )


def _facts(result: Row) -> list[tuple[str, str]]:
    adapter = (result.get("config") or {}).get("adapter") or {}
    tested = [row["n_test"] for row in result.get("per_client") or [] if row.get("n_test") is not None]
    modules = listed(adapter.get("target_modules") or ())
    facts = [
        ("Data set", str(result["dataset"])),
        ("Base model", str(result["base_model"])),
        ("People", f"{result['clients']}"),
        (
            "Choices a person",
            f"{result['pairs']} to learn from" + (f", {span(tested)} held out" if tested else ""),
        ),
        (
            "Low-rank factors",
            f"rank {adapter.get('rank')} on {modules} of {_blocks(adapter)}" if modules else "",
        ),
        ("Rounds", f"{result['rounds']}"),
        ("Seed", f"{result['seed']}"),
        ("Accuracy", "mean over people of the part of their held-out pairs that is ranked right"),
    ]
    return [(name, value) for name, value in facts if value]


def _blocks(adapter: Row) -> str:
    """Which transformer blocks carry adapters, in words."""
    layers = sorted(int(layer) for layer in adapter.get("layers") or ())
    if not layers:
        return "every block"
    if layers == list(range(-len(layers), 0)):
        return "the last block" if len(layers) == 1 else f"the last {len(layers)} blocks"
    return f"block{'s' if len(layers) > 1 else ''} {listed(map(str, layers))}"


def _tensor(row: Row) -> dict[str, str]:
    shape = [int(n) for n in row.get("shape") or []]
    return {
        "name": str(row["name"]),
        "shape": " × ".join(map(str, shape)),
        "numbers": f"{math.prod(shape):,}",
    }


def _by_accuracy(row: Row) -> tuple[float, str]:
    return -(row.get("accuracy") or 0.0), str(row.get("client"))


def _client_row(row: Row) -> dict[str, str]:
    accuracy = row.get("accuracy")
    return {
        "client": str(row.get("client")),
        "n_test": plain(row.get("n_test")),
        "accuracy": f"{accuracy:.3f}" if accuracy is not None else "–",
    }


def _log_row(row: Row) -> list[str]:
    return [
        plain(row.get("round")),
        plain(row.get("cohort")),
        plain(row.get("survivors")),
        decimals(row.get("train_loss")),
        decimals(row.get("val_accuracy")),
        decimals(row.get("seconds"), 2),
        decimals(kilo(per_client(row, "bytes_up")), 1),
        decimals(kilo(per_client(row, "bytes_down")), 1),
    ]


def _command(result: Row) -> str:
    """The command that gives this result, as far as the result itself tells."""
    options = ["dataset", "base_model", "share", "head", "clients", "pairs", "rounds", "seed"]
    words = [
        f"--{name.replace('_', '-')} {result[name]}"
        for name in options
        if result.get(name) not in (None, "auto")
    ]
    words.append("--secagg" if result.get("secagg") else "--no-secagg")
    return " ".join(["penchant simulate", *words])
