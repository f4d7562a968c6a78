"""What differential privacy costs a device in time, and what a promise costs in noise.

    python tests/bench/bench_privacy.py [--repeats N] [--out DIR]

Time: drawing noise and rounding, for vectors of 3,500 and 1,000,000 elements, in CPU seconds of one core (the
fastest of some repeats); and the accountant, without the first call, which loads it.
Promises: for fleets of some sizes, the clip that keeps epsilon at delta = 1e-5, and what noise that leaves on
the mean. Nobody drops out there and nobody colludes, but the noise is made for the protocol's threshold: two
thirds of a sum would carry the promise. Half a minute. Writes privacy.json and privacy.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.errors import PrivacyError
from penchant.common.privacy.accounting import epsilon_of, rho_of
from penchant.common.privacy.discrete_gaussian import discrete_gaussian
from penchant.common.privacy.noise import SIGMA, solve
from penchant.common.privacy.rounding import round_within
from penchant.common.secagg.transcript import threshold

HERE = Path(__file__).resolve().parent
SIZES = (3_500, 1_000_000)
SIGMAS = (1, SIGMA)
DELTA = 1e-5
FLEETS = ((34, 10), (100, 3), (256, 8), (256, 1), (1_000, 3))  # people in a sum, sums that each takes part in
EPSILONS = (1, 2, 4, 8)


def on_one_core(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest repeat: what one core takes, whoever else uses the machine."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def times(repeats: int) -> dict[str, float]:
    """CPU seconds by what is done."""
    entropy = SeededEntropy(bytes(32), "bench")
    found: dict[str, float] = {}
    for size in SIZES:
        for sigma in SIGMAS:
            found[f"{size:,} draws, sigma {sigma:,}"] = on_one_core(
                lambda: discrete_gaussian(size, sigma, entropy),  # noqa: B023 - called at once
                repeats,
            )
        rng = np.random.default_rng(1)
        values = rng.normal(size=size)
        values *= 3_000 / np.linalg.norm(values)
        words = rng.integers(0, 2**32, size, dtype=np.uint32)
        found[f"rounding {size:,}"] = on_one_core(lambda: round_within(values, 3_000, words), repeats)  # noqa: B023
    epsilon_of(1.0, DELTA)
    found["epsilon of a rho"] = on_one_core(lambda: epsilon_of(0.5, DELTA), repeats)
    found["rho of an epsilon"] = on_one_core(lambda: rho_of.__wrapped__(8.0, DELTA), repeats)
    return found


def promise(people: int, participations: int, epsilon: int, size: int) -> dict[str, Any]:
    """What one fleet's promise comes to; without a clip where too few people share."""
    honest = threshold(people)
    found: dict[str, Any] = {
        "people": people,
        "honest": honest,
        "participations": participations,
        "size": size,
        "epsilon": epsilon,
    }
    try:
        noise = solve(epsilon=epsilon, delta=DELTA, participations=participations, size=size, honest=honest)
    except PrivacyError as refused:
        return found | {"refused": str(refused)}
    return found | {
        "clip": noise.clip,
        "norm_over_clip": noise.norm / noise.clip,
        "multiplier": noise.multiplier(honest),
        "spent": epsilon_of(noise.rho(honest) * participations, DELTA),
        "noise_on_mean": math.sqrt(size / people) * noise.sigma / noise.clip,
        "ring": 32 if noise.fits(people, 32) else 64,
    }


def promises() -> list[dict[str, Any]]:
    """What each fleet's promise comes to."""
    return [
        promise(people, participations, epsilon, size)
        for people, participations in FLEETS
        for size in SIZES
        for epsilon in EPSILONS
    ]


def row(p: dict[str, Any]) -> str:
    start = f"| {p['people']:,} | {p['honest']} | {p['participations']} | {p['size']:,} | {p['epsilon']} | "
    if "refused" in p:
        return start + "too few | | | | |"
    return start + (
        f"{p['clip']:,} | {p['multiplier']:.2f} | {p['norm_over_clip']:.4f} | {p['ring']} "
        f"| {p['noise_on_mean']:.2f} |"
    )


def tables(results: dict[str, Any]) -> str:
    lines = ["# Noise: time and promises", "", "| CPU time of one core | ms |", "|---|---|"]
    lines += [f"| {what} | {1e3 * seconds:,.1f} |" for what, seconds in results["times"].items()]
    lines += [
        "",
        f"delta = {DELTA:g}, sigma = {SIGMA:,}. Of `people` in a sum, `honest` carry the promise. "
        "z is the noise multiplier of the honest, B / C what rounding adds to the clip; "
        "the last column is the norm of the noise on the mean of all people's vectors, over the clip.",
        "",
        "| people | honest | sums | elements | epsilon | clip | z | B / C | ring | noise on the mean |",
        "|" + "---|" * 10,
    ]
    lines += map(row, results["promises"])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    chosen = parser.parse_args()
    results: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "times": times(chosen.repeats),
        "promises": promises(),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "privacy.json").write_text(json.dumps(results, indent=1) + "\n")
    (chosen.out / "privacy.md").write_text(tables(results))
    print(tables(results), end="")


if __name__ == "__main__":
    main()
