"""How soon newcomers are served well: `python tests/bench/bench_cold_start.py [--tune] [--home D] [--out D]`

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
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from senate_fleets import Fleet, trained  # isort: skip

from penchant.client.newcomer import prior_of
from penchant.client.posterior import Laplace
from penchant.common.adapters import Vector
from penchant.deploy.newcomers import cold_start

HERE = Path(__file__).resolve().parent
SHARES = ("A", "B", "AB", "none", "lore", "mean")  # mean: share A from the mean of the members' parts
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101, 102)
SPREADS = (1.0, 3.0, 6.0, 12.0)
HEADS = (0.1, 0.3, 1.0)  # where the head is personal
MOST = 50  # choices


def tune(home: Path, shares: Sequence[str]) -> None:
    """Accuracy on validation pairs by share and spread, the mean over 1 to 20 choices and over seeds."""
    for share in shares:
        if share in ("AB", "mean"):
            continue
        fleets = [trained(share, seed, home) for seed in TUNING_SEEDS]
        for spread, head in itertools.product(SPREADS, HEADS):
            how = {"prior_spread": spread, "prior_head": head}
            curves = [curve(fleet, 20, "validation", **how) for fleet in fleets]
            overall = statistics.fmean(row["mean"] for rows in curves for row in rows[1:])
            rows = "  ".join(f"{statistics.fmean(c[i]['mean'] for c in curves):.3f}" for i in range(1, 6))
            print(
                f"{share:5s} spread {spread:<4g} head {head:<4g} {overall:.4f}   by choices {rows}",
                flush=True,
            )


def curve(fleet: Fleet, pairs: int, part: Any, **training: Any) -> list[dict[str, Any]]:
    return cold_start(fleet.bench(**training), fleet.factors, fleet.newcomers, pairs, part)


def from_the_mean(fleet: Fleet, numbers: Sequence[int]) -> list[float]:
    """Accuracy by number of choices when newcomers start from the mean of the members' parts, each refitted
    to their choices on the final shared factors as a newcomer's."""
    bench = fleet.bench()
    shared, start = bench.parts(fleet.factors)
    laplace = Laplace(bench.model, bench.split, shared)
    members = fleet.world.federation.people
    parts = [laplace.fit(prior_of(bench, laplace, start, p.train), p.train).vector for p in members]
    mean: Vector = np.mean(parts, axis=0, dtype=np.float64).astype(np.float32)
    return [
        statistics.fmean(
            float(np.mean(laplace.margins(posterior, person.test).mean > 0))
            for person in fleet.newcomers
            for choices in [person.train[:number]]
            for posterior in [laplace.fit(prior_of(bench, laplace, mean, choices), choices)]
        )
        for number in numbers
    ]


def measure(home: Path, seeds: Sequence[int], shares: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for share in shares:
        if share == "mean":
            continue
        fleets = [trained(share, seed, home) for seed in seeds]
        curves = [curve(fleet, MOST, "test") for fleet in fleets]
        found[share] = {
            "prior_spread": fleets[0].world.config.training.prior_spread,
            "prior_head": fleets[0].world.config.training.prior_head,
            "members": [json.loads((f.directory / "result.json").read_text())["accuracy"] for f in fleets],
            "curve": [
                summary(choices=rows[0]["choices"], values=[row["mean"] for row in rows])
                for rows in zip(*curves, strict=True)
            ],
        }
        show(share, found[share]["curve"])
    if "A" in shares and "mean" in shares:
        numbers = [row["choices"] for row in found["A"]["curve"]]
        means = [from_the_mean(trained("A", seed, home), numbers) for seed in seeds]
        found["A, from the members' mean"] = {
            "curve": [
                summary(choices=number, values=[one[i] for one in means]) for i, number in enumerate(numbers)
            ]
        }
        show("A, mean", found["A, from the members' mean"]["curve"])
    return found


def summary(choices: int, values: Sequence[float]) -> dict[str, Any]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"choices": choices, "mean": statistics.fmean(values), "se": error, "seeds": list(values)}


def show(name: str, rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{name:8s}",
        "  ".join(f"{r['choices']}: {r['mean']:.3f} ±{r['se'] or 0:.3f}" for r in rows),
        flush=True,
    )


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    looks = {
        "A": ("A shared, B personal", "#1f5fbf", "o", "-"),
        "A, from the members' mean": ("the same, from the members' mean", "#1f5fbf", "", ":"),
        "B": ("B shared, A personal", "#2f8f5b", "D", "-"),
        "lore": ("lore: weights over a shared basis", "#8a5fb0", "v", "-"),
        "none": ("alone", "#c2571a", "s", "-"),
        "AB": ("global model", "#666666", "^", "-"),
    }
    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    for share, (label, colour, marker, style) in looks.items():
        if share not in found:
            continue
        rows = [row for row in found[share]["curve"] if row["choices"]]
        axes.errorbar(
            [r["choices"] for r in rows],
            [r["mean"] for r in rows],
            [r["se"] or 0 for r in rows],
            color=colour,
            marker=marker,
            ls=style,
            ms=5,
            label=label,
        )
    axes.set_xscale("log")
    ticks = [row["choices"] for row in found["A"]["curve"] if row["choices"]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("choices of a newcomer")
    axes.set_ylabel("accuracy on held-out roll calls")
    axes.grid(True, color="#dddddd", lw=0.6)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--shares", default=",".join(SHARES))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--home", type=Path, default=Path("runs/senate-fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    shares = options.shares.split(",")
    if options.tune:
        tune(options.home, shares)
        return
    found = measure(options.home, [int(seed) for seed in options.seeds.split(",")], shares)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cold_start.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    try:
        draw(found, options.out / "cold_start.png")
    except ImportError:
        print("matplotlib is not there: no figure")


if __name__ == "__main__":
    main()
