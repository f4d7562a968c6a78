"""Does sharing a factor pay as theory says? `python tests/experiments/theory.py [--seeds N] [--out DIR]`

People with a common factor (tests/support/teacher.py): d1 = 32, d2 = 4, rank 2, Bradley-Terry choices.
Measures excess loss and subspace distance of full parameters, of a rank-2 product for each person alone and
of rank-2 products with one common factor, over the choices n of each of 16 people and over the number N of
people with 400 choices each; with slopes on log-log axes beside those predicted (docs/theory.md). Each method
takes the ridge that suits as many fresh choices best, or next to none. Writes theory.json and, with
matplotlib, theory.png. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import fits
from support.teacher import Array, Teacher, excess_loss, expected_slope, subspace_distance

HERE = Path(__file__).resolve().parent
ROWS, COLUMNS, RANK, SHARPNESS = 32, 4, 2, 2.0
SAMPLES = (100, 200, 400, 800, 1600, 3200, 6400)  # with PEOPLE_THERE people
PEOPLE = (1, 2, 4, 8, 16, 32, 64, 128)  # with SAMPLES_THERE choices each
PEOPLE_THERE, SAMPLES_THERE = 16, 400
RIDGES = (0.01, 1.0, 3.0, 10.0, 30.0)
BARE = RIDGES[0]
METHODS = ("full", "alone", "shared")


def fitted(method: str, choices: Array, ridge: float) -> tuple[Array, list[Array]]:
    """Θ of everybody, and the column spaces found: one for all, or everybody's own."""
    if method == "full":
        found = fits.full(choices, ridge)
        return found, [np.linalg.svd(own)[0][:, :RANK] for own in found]
    if method == "alone":
        bases, factors = fits.alone(choices, ridge, RANK)
        return bases @ factors, list(bases)
    basis, factors = fits.shared(choices, ridge, RANK)
    return basis @ factors, [basis]


def cell(people: int, samples: int, seed: int) -> dict[str, dict[str, float]]:
    """Every method on one draw: excess loss and subspace distance, with a chosen ridge and next to none."""
    teacher = Teacher.draw(people, ROWS, COLUMNS, RANK, sharpness=SHARPNESS, seed=seed)
    choices, fresh = teacher.choices(samples, 1000 + seed), teacher.choices(samples, 2000 + seed)
    rows = {}
    for method in METHODS:
        made = {ridge: fitted(method, choices, ridge) for ridge in RIDGES}

        def judged(ridge: float, made: dict[float, tuple[Array, list[Array]]] = made) -> float:
            margins = np.einsum("injk,ijk->in", fresh, made[ridge][0])
            return float(np.logaddexp(0, -margins).mean())

        chosen = min(RIDGES, key=judged)
        row = {"ridge": chosen}
        for name, ridge in (("", chosen), ("bare_", BARE)):
            found, bases = made[ridge]
            row[f"{name}excess"] = float(excess_loss(teacher.parameters, found).mean())
            row[f"{name}distance"] = float(np.mean([subspace_distance(teacher.basis, b) for b in bases]))
        rows[method] = row
    return rows


def predicted(method: str, people: int, samples: int) -> dict[str, float]:
    """What the asymptotics of maximum likelihood say: see docs/theory.md."""
    free = {
        "full": ROWS * COLUMNS,
        "alone": RANK * (ROWS + COLUMNS - RANK),
        "shared": RANK * (ROWS - RANK) / people + RANK * COLUMNS,
    }[method]
    information = float(expected_slope(np.array([SHARPNESS]))[0])
    together = people if method == "shared" else 1
    teachers = [
        Teacher.draw(together, ROWS, COLUMNS, RANK, sharpness=SHARPNESS, seed=seed) for seed in range(200)
    ]
    spread = [np.linalg.inv((t.factors @ t.factors.transpose(0, 2, 1)).sum(axis=0)) for t in teachers]
    squared = np.median([np.trace(s) for s in spread]) * (ROWS - RANK) / (RANK * samples * information)
    return {"excess": free / (2 * samples), "distance": math.sqrt(squared)}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through (log x, log y)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def sweep(axis: str, places: Sequence[tuple[int, int]], seeds: int) -> list[dict[str, Any]]:
    """One row for each place (people, samples) and method: mean and standard error over seeds."""
    rows = []
    for people, samples in places:
        cells = [cell(people, samples, seed) for seed in range(seeds)]
        for method in METHODS:
            row: dict[str, Any] = {"axis": axis, "people": people, "samples": samples, "method": method}
            for key in ("excess", "distance", "bare_excess", "bare_distance"):
                values = [one[method][key] for one in cells]
                row[key] = float(np.mean(values))
                row[f"{key}_se"] = float(np.std(values, ddof=1) / math.sqrt(seeds)) if seeds > 1 else None
            row["ridges"] = [one[method]["ridge"] for one in cells]
            row["predicted"] = predicted(method, people, samples)
            rows.append(row)
            print(
                f"N {people:4d}  n {samples:5d}  {method:7s} excess {row['excess']:.4f} "
                f"(bare {row['bare_excess']:.4f}, predicted {row['predicted']['excess']:.4f})  "
                f"distance {row['distance']:.3f} (bare {row['bare_distance']:.3f}, predicted "
                f"{row['predicted']['distance']:.3f})",
                flush=True,
            )
    return rows


def slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measured and predicted slopes, over all places and over the last four."""
    found = []
    for axis, over in (("samples", "samples"), ("people", "people")):
        for method in METHODS:
            own = [row for row in rows if row["axis"] == axis and row["method"] == method]
            for quantity in ("excess", "distance"):
                line: dict[str, Any] = {"over": over, "method": method, "quantity": quantity}
                for name, part in (("all", own), ("last four", own[-4:])):
                    x = [row[over] for row in part]
                    line[name] = {
                        "chosen ridge": slope(x, [row[quantity] for row in part]),
                        "bare": slope(x, [row[f"bare_{quantity}"] for row in part]),
                        "predicted": slope(x, [row["predicted"][quantity] for row in part]),
                    }
                found.append(line)
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Four panels: excess loss and subspace distance, over n and over N."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    looks = {"full": ("#666666", "^"), "alone": ("#c2571a", "s"), "shared": ("#1f5fbf", "o")}
    labels = {
        "full": "all parameters, alone",
        "alone": "rank 2, alone",
        "shared": "rank 2, one factor shared",
    }
    figure, panels = plt.subplots(2, 2, figsize=(9.6, 7.2), sharex="col", sharey="row")
    for line, (quantity, title) in enumerate(
        (("excess", "excess loss, nats a choice"), ("distance", "subspace distance"))
    ):
        for column, (axis, name) in enumerate(
            (
                ("samples", f"choices of each of {PEOPLE_THERE} people"),
                ("people", f"people with {SAMPLES_THERE} choices each"),
            )
        ):
            axes = panels[line][column]
            for method, (colour, marker) in looks.items():
                own = [row for row in rows if row["axis"] == axis and row["method"] == method]
                x = [row[axis] for row in own]
                values, errors = [r[quantity] for r in own], [r[f"{quantity}_se"] or 0.0 for r in own]
                axes.errorbar(x, values, errors, color=colour, marker=marker, ms=5, label=labels[method])
                axes.plot(x, [r["predicted"][quantity] for r in own], color=colour, ls=":", lw=1.2)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_ylim((0.0008, 0.4) if quantity == "excess" else (0.02, 1.15))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.grid(True, color="#dddddd", lw=0.6)
            if line == 1:
                axes.set_xlabel(name)
            if column == 0:
                axes.set_ylabel(title)
    panels[0][0].legend(
        frameon=False, fontsize=9, loc="lower left", title="dotted: predicted", title_fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    began = time.monotonic()
    rows = sweep("samples", [(PEOPLE_THERE, n) for n in SAMPLES], options.seeds)
    rows += sweep("people", [(n, SAMPLES_THERE) for n in PEOPLE], options.seeds)
    lines = slopes(rows)
    for line in lines:
        for part in ("last four", "all"):
            values = "  ".join(f"{name} {value:+.2f}" for name, value in line[part].items())
            print(f"slope of {line['quantity']} over {line['over']}, {line['method']}, {part}: {values}")
    options.out.mkdir(parents=True, exist_ok=True)
    made = {"seeds": options.seeds, "rows": rows, "slopes": lines, "seconds": time.monotonic() - began}
    (options.out / "theory.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    try:
        draw(rows, options.out / "theory.png")
    except ImportError:
        print("matplotlib is not there: no figure")


if __name__ == "__main__":
    main()
