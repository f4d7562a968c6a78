"""How soon newcomers are served well: `python tests/experiments/cold_start.py [--tune] [--home D] [--out D]`

Senate, 20 senators kept out of the federation. Each fits the personal part alone to 1 … 50 choices, shared
factors frozen; against the global model (AB), starting alone (none), lore's weights, and another start: the
mean of the members' own parts, which would have to leave their devices inside a secure sum. `--tune` judges
the prior on the validation roll calls, with other seeds than those measured. Federations are trained
once and kept in --home. Writes cold_start.json and, with matplotlib, cold_start.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curves import Look, draw, summary, told  # isort: skip
from fleets import Fleet, trained  # isort: skip

from penchant.client.learning.laplace import Laplace
from penchant.client.learning.newcomer import prior_of
from penchant.common.model.factors import Vector
from penchant.common.shares import HEAD
from penchant.deploy.simulation.newcomers import CHOICES, ColdStart, cold_start

HERE = Path(__file__).resolve().parent
SHARES = ("A", "B", "AB", "none", "lore", "mean")  # mean: share A from the mean of the members' parts
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)
LOOKS = {
    "A": Look("A shared, B personal", "#1f5fbf", "o"),
    "A, from the members' mean": Look("the same, from the members' mean", "#1f5fbf", "", ":"),
    "B": Look("B shared, A personal", "#2f8f5b", "D"),
    "lore": Look("LoRe: weights over a shared basis", "#8a5fb0", "v"),
    "none": Look("alone", "#c2571a", "s"),
    "AB": Look("global model", "#666666", "^"),
}


def tune(home: Path, shares: Sequence[str], spreads: Sequence[float], heads: Sequence[float]) -> None:
    """Accuracy on validation pairs by share and spread, the mean over 1 to 20 choices and over seeds."""
    for share in shares:
        if share in ("AB", "mean"):
            continue
        fleets = [trained(share, seed, home) for seed in TUNING_SEEDS]
        names = {spec.name for spec in fleets[0].planned().split.personal.specs}
        tried = heads if HEAD in names and len(names) > 1 else (1.0,)
        for spread, head in itertools.product(spreads, tried):
            how = {"prior_spread": spread, "prior_head": head}
            curves = [curve(fleet, 20, "validation", **how) for fleet in fleets]
            overall = statistics.fmean(row.mean for rows in curves for row in rows[1:])
            rows = "  ".join(f"{statistics.fmean(c[i].mean for c in curves):.3f}" for i in range(1, 6))
            print(
                f"{share:5s} spread {spread:<4g} head {head:<4g} {overall:.4f}   by choices {rows}",
                flush=True,
            )


def curve(fleet: Fleet, pairs: int, part: Any, **training: Any) -> list[ColdStart]:
    return cold_start(fleet.planned(**training), fleet.factors, fleet.newcomers, pairs, part)


def from_the_mean(fleet: Fleet, numbers: Sequence[int]) -> list[float]:
    """Accuracy by number of choices when newcomers start from the mean of the members' parts, each refitted
    to their choices on the final shared factors as a newcomer's."""
    planned = fleet.planned()
    shared, start = planned.parts(fleet.factors)
    laplace = Laplace(planned.model, planned.split, shared)
    members = fleet.world.federation.people
    parts = [laplace.fit(prior_of(planned, laplace, start, p.train), p.train).vector for p in members]
    mean: Vector = np.mean(parts, axis=0, dtype=np.float64).astype(np.float32)
    return [
        statistics.fmean(
            float(np.mean(laplace.margins(posterior, person.test).mean > 0))
            for person in fleet.newcomers
            for choices in [person.train[:number]]
            for posterior in [laplace.fit(prior_of(planned, laplace, mean, choices), choices)]
        )
        for number in numbers
    ]


def measure(home: Path, seeds: Sequence[int], shares: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for share in shares:
        if share == "mean":
            continue
        fleets = [trained(share, seed, home) for seed in seeds]
        curves = [curve(fleet, CHOICES[-1], "test") for fleet in fleets]
        found[share] = {
            **fleets[0].prior,
            "members": None if share == "none" else summary([f.accuracy()["personal"] for f in fleets]),
            "curve": over_seeds([[row.mean for row in rows] for rows in curves]),
        }
        show(share, found[share]["curve"])
    if "A" in shares and "mean" in shares:
        means = [from_the_mean(trained("A", seed, home), CHOICES) for seed in seeds]
        found["A, from the members' mean"] = {"curve": over_seeds(means)}
        show("A, mean", found["A, from the members' mean"]["curve"])
    return found


def over_seeds(curves: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each of `CHOICES`, from a curve for each seed."""
    columns = zip(*curves, strict=True)
    return [{"choices": number, **summary(column)} for number, column in zip(CHOICES, columns, strict=True)]


def show(name: str, rows: Sequence[dict[str, Any]]) -> None:
    print(f"{name:8s}", "  ".join(told(row["choices"], row) for row in rows), flush=True)


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--spreads", default="1,3,6,12", help="to tune: of margins")
    parser.add_argument(
        "--heads", default="0.1,0.3,1", help="to tune, where a head is personal beside factors"
    )
    parser.add_argument("--shares", default=",".join(SHARES))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--home", type=Path, default=Path("runs/fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    shares = options.shares.split(",")
    if options.tune:
        tune(options.home, shares, numbers(options.spreads), numbers(options.heads))
        return
    found = measure(options.home, [int(seed) for seed in options.seeds.split(",")], shares)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cold_start.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    curves = {share: [row for row in own["curve"] if row["choices"]] for share, own in found.items()}
    names = ("choices of a newcomer", "accuracy on held-out roll calls")
    draw(curves, LOOKS, options.out / "cold_start.png", places=CHOICES[1:], names=names)


if __name__ == "__main__":
    main()
