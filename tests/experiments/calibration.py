"""Do probabilities mean what they say? `python tests/experiments/calibration.py [--seeds 0,…] [--home DIR]`

Senate, share A. Members: σ(margin) of the personal part as trained, against the posterior around it;
newcomers with 5 and 20 choices: the most probable part alone, against the posterior. The prior is the
recipe's. Reported on held-out roll calls: expected calibration error, log loss, accuracy. Writes
calibration.json and, with matplotlib, calibration.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

import numpy as np

from curves import summary  # isort: skip
from fleets import Fleet, trained  # isort: skip

from support.calibration import calibration_error, reliability
from support.teacher import Array

from penchant.client.learning.laplace import Laplace, probability
from penchant.client.learning.newcomer import prior_of

HERE = Path(__file__).resolve().parent
CHOICES = (5, 20)  # of a newcomer

Found = dict[str, Array]


def measure(fleet: Fleet, every: int = 1) -> Found:
    """Case -> probabilities given to what was really chosen, over everybody's held-out pairs.

    every: of the members, only every such one.
    """
    planned = fleet.planned()
    shared, start = planned.parts(fleet.factors)
    laplace = Laplace(planned.model, planned.split, shared)
    found: dict[str, list[Array]] = {}

    def note(case: str, values: Array) -> None:
        found.setdefault(case, []).append(values)

    members = list(zip(fleet.world.federation.people, fleet.personal(), strict=True))[::every]
    for person, part in members:
        prior = prior_of(planned, laplace, start, person.train)
        believed = laplace.margins(laplace.around(prior, part, person.train), person.test)
        note("members, as trained", probability(believed.mean, np.zeros_like(believed.mean)))
        note("members, as trained, posterior", believed.probability)
    for person in fleet.newcomers:
        for count in CHOICES:
            choices = person.train[:count]
            posterior = laplace.fit(prior_of(planned, laplace, start, choices), choices)
            believed = laplace.margins(posterior, person.test)
            note(f"newcomers, {count}", probability(believed.mean, np.zeros_like(believed.mean)))
            note(f"newcomers, {count}, posterior", believed.probability)
    return {case: np.concatenate(values) for case, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--home", type=Path, default=Path("runs/fleets"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--every", type=int, default=1, help="of the members, only every such one")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    report([measure(trained("A", seed, options.home), options.every) for seed in seeds], options.out)


def report(by_seed: Sequence[Found], out: Path) -> None:
    """Figures of all seeds: printed, as JSON and as a picture."""
    made: dict[str, Any] = {}
    for case in by_seed[0]:
        own = [found[case] for found in by_seed]
        measures = {
            "calibration_error": [calibration_error(p) for p in own],
            "log_loss": [float(-np.log(np.maximum(p, 1e-12)).mean()) for p in own],
            "accuracy": [float((p > 0.5).mean()) for p in own],
        }
        made[case] = {key: summary(values) for key, values in measures.items()}
        made[case]["bins"] = [asdict(b) for b in reliability(np.concatenate(own))]
        line = "  ".join(f"{k} {made[case][k]['mean']:.3f} ±{made[case][k]['se'] or 0:.3f}" for k in measures)
        print(f"{case:34s} {line}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "calibration.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    try:
        draw(made, out / "calibration.png")
    except ImportError:
        print("matplotlib is not there: no figure")


def draw(made: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (("members, as trained", "members"), ("newcomers, 20", "newcomers, 20 choices"))
    figure, both = plt.subplots(1, 2, figsize=(9.2, 4.3), sharey=True)
    for axes, (case, title) in zip(both, panels, strict=True):
        axes.plot([0.5, 1], [0.5, 1], color="#999999", lw=1, ls=":")
        looks = ((case, "without doubt", "#c2571a", "s"), (f"{case}, posterior", "posterior", "#1f5fbf", "o"))
        for name, label, colour, marker in looks:
            bins = made[name]["bins"]
            error = made[name]["calibration_error"]["mean"]
            axes.plot(
                [b["confidence"] for b in bins],
                [b["accuracy"] for b in bins],
                color=colour,
                marker=marker,
                ms=5,
                label=f"{label}: error {error:.3f}",
            )
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("confidence")
        axes.grid(True, color="#dddddd", lw=0.6)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    both[0].set_ylabel("right, held-out pairs")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
