"""What every peer is given: people, base model, settings, cohorts and the common start, from one JSON file.

Nothing here imports penchant, so that no peer pays for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

A, B, HEAD = "A", "B", "head"
Texts = Sequence[tuple[str, str]]  # (chosen, rejected), prompt included


@dataclass(frozen=True)
class Someone:
    """One person's pairs."""

    name: str
    train: Texts
    test: Texts


@dataclass(frozen=True)
class Server:
    """FedAdam's settings (Reddi et al. 2021, algorithm 2)."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float


@dataclass(frozen=True)
class Task:
    """One simulation, the same for everybody.

    Attributes:
        base: the folder of the base model.
        module: the linear module with factors, by its whole path in the base model.
        max_tokens, normalize: tokens read of a text; length that its embedding is scaled to.
        rank, alpha: of the factors.
        rates, warm_rates: learning rate of A, B and head, after the warm-up and in it.
        epochs: passes over a person's pairs in a round, all pairs in one step.
        warmup: the first rounds, in which A, B and head are all shared; after them A alone is.
        cohorts: who takes part, by round; as long as there are rounds.
        start: A [rank, in], B [out, rank] and head [1, d].
        own_settings: the same as penchant's configuration, in TOML.
    """

    base: str
    module: str
    max_tokens: int
    normalize: float
    rank: int
    alpha: float
    rates: Mapping[str, float]
    warm_rates: Mapping[str, float]
    epochs: int
    warmup: int
    cohorts: Sequence[Sequence[int]]
    server: Server
    start: Mapping[str, Any]
    people: Sequence[Someone]
    own_settings: str

    @classmethod
    def read(cls, path: Path) -> Task:
        """The task in a file."""
        found = json.loads(path.read_text(encoding="utf-8"))
        people = [Someone(**someone) for someone in found.pop("people")]
        return cls(**found | {"people": people, "server": Server(**found["server"])})

    def write(self, path: Path) -> None:
        """Write it into a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @property
    def rounds(self) -> int:
        """How many rounds are trained."""
        return len(self.cohorts)

    def warms(self, round: int) -> bool:
        """Whether everything is shared in a round, counted from 1."""
        return round <= self.warmup


@dataclass(frozen=True)
class Result:
    """What a peer came to: mean over people of test accuracy, and the shared factors at the end, by name."""

    accuracy: float
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, accuracies: Sequence[float], shared: Mapping[str, Any]) -> Result:
        """From each person's accuracy and tensors or arrays."""
        return cls(sum(accuracies) / len(accuracies), {name: t.tolist() for name, t in shared.items()})

    def write(self, path: Path) -> None:
        """Write it into a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
