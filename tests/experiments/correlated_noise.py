"""What correlated noise would bring: `python tests/experiments/correlated_noise.py [--json FILE]`.

Matrix factorisation with the prefix sums of R rounds as its workload, one person in k of them, at least b
rounds apart: noise C⁻¹ z in place of z, scaled by the sensitivity of C. Its error is computed, not sampled,
as a part of that of independent noise at the same epsilon: the root mean square over all rounds' factors, and
that of the last. C is the square root of the workload as a Toeplitz matrix, whole (Fichtenberger, Henzinger
and Upadhyay, ICML 2023) or cut to the best number p <= b of bands (Kalinin and Lampert, NeurIPS 2024), with
which k participations cost as much as k that have nothing to do with each other (Choquette-Choo et al.,
NeurIPS 2023). Sensitivities: Kalinin and Lampert, theorem 2. --page FILE writes the table between its marks.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular, toeplitz

from marked_page import write  # isort: skip

Matrix = NDArray[np.float64]
FLEETS = {
    "everybody in each of 4 rounds": (4, 4, 1),
    "everybody in each of 10 rounds": (10, 10, 1),
    "30 rounds, a third each": (30, 10, 3),
    "20 rounds, a quarter each": (20, 5, 4),
    "30 rounds, a tenth each": (30, 3, 10),
    "30 rounds, a thirtieth each": (30, 1, 30),
    "300 rounds, a thirtieth each": (300, 10, 30),
    "300 rounds, one three-hundredth each": (300, 1, 300),
}
"""Name -> rounds, participations, rounds between two of them at least."""


@dataclass(frozen=True)
class Gain:
    """Errors as parts of those of independent noise. last: of the factors after the last round."""

    bands: int
    mean: float
    last: float


def strategy(rounds: int, bands: int) -> Matrix:
    """The square root of the matrix of prefix sums, [rounds, rounds], cut to its first bands."""
    entries = [math.comb(2 * at, at) / 4**at if at < bands else 0.0 for at in range(rounds)]
    return np.asarray(np.tril(toeplitz(entries)))


def sensitivity(matrix: Matrix, participations: int, apart: int) -> float:
    """How far one person of norm 1 in each of their rounds moves `matrix` times the rounds."""
    first = [at * apart for at in range(participations) if at * apart < len(matrix)]
    return float(np.linalg.norm(matrix[:, first].sum(axis=1)))


def errors(matrix: Matrix, participations: int, apart: int) -> tuple[float, float]:
    """(root mean square over rounds, of the last) of the prefix sums' noise, for noise of one to one."""
    rounds = len(matrix)
    spread = solve_triangular(matrix.T, np.tril(np.ones((rounds, rounds))).T, lower=False).T
    scale = sensitivity(matrix, participations, apart)
    return scale * float(np.linalg.norm(spread)) / math.sqrt(rounds), scale * float(
        np.linalg.norm(spread[-1])
    )


def gain(rounds: int, participations: int, apart: int) -> Gain:
    """The best of all numbers of bands, the whole square root among them, by the mean error."""
    base = errors(np.eye(rounds), participations, apart)
    tried = []
    for bands in {*range(1, apart + 1), rounds}:
        mean, last = errors(strategy(rounds, bands), participations, apart)
        tried.append(Gain(bands, mean / base[0], last / base[1]))
    return min(tried, key=lambda found: found.mean)


def table(gains: dict[str, Gain]) -> list[str]:
    lines = [
        "| fleet | times a person is in a sum | bands | error, over all rounds | error, last round |",
        "|---|---|---|---|---|",
    ]
    for name, found in gains.items():
        lines.append(f"| {name} | {FLEETS[name][1]} | {found.bands} | {found.mean:.2f} | {found.last:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    gains = {name: gain(*fleet) for name, fleet in FLEETS.items()}
    lines = table(gains)
    print("\n".join(lines))
    if given.json:
        told = {name: asdict(found) for name, found in gains.items()}
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if given.page:
        write(given.page, "correlated noise", lines)


if __name__ == "__main__":
    main()
