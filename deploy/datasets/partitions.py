"""Choices that name nobody, dealt out to made-up people.

Data without persons can still show how a federation behaves. Whose choices alike people are is then the
experimenter's word, and results say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from penchant.common.data.splits import seeded
from penchant.common.data.trl_format import Labelled
from penchant.common.errors import DataError

__all__ = ["Partition"]

LEAST = 4  # rows of a made-up person, of those for training
DRAWS = 100  # of proportions, until everybody has so many
_FORMS = "write iid:PEOPLE, or dirichlet:PEOPLE:ALPHA:COLUMN, as in dirichlet:20:0.5:subset"


@dataclass(frozen=True)
class Partition:
    """How rows are dealt out.

    Args:
        people: how many there are.
        column: the column by whose values rows differ; empty where all rows are alike.
        alpha: the concentration of the Dirichlet distribution: people are the more different the smaller.
    """

    people: int
    column: str = ""
    alpha: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Partition:
        """``iid:PEOPLE`` or ``dirichlet:PEOPLE:ALPHA:COLUMN``. DataError for anything else."""
        kind, _, rest = text.partition(":")
        try:
            if kind == "iid":
                return cls(cls._count(rest))
            if kind == "dirichlet":
                people, alpha, column = rest.split(":", 2)
                found = cls(cls._count(people), column, float(alpha))
                if column and 1e-3 <= found.alpha <= 1e6:
                    return found
        except ValueError:
            pass
        raise DataError(f"data.partition is {text!r}; {_FORMS} (ALPHA from 0.001 to 1000000)")

    @staticmethod
    def _count(text: str) -> int:
        people = int(text)
        if not 2 <= people <= 1_000_000:
            raise ValueError(text)
        return people

    def deal(self, rows: Sequence[Labelled], source: str, seed: int) -> list[Labelled]:
        """The rows in their order, each with a made-up person's name in place of its own.

        iid: everybody gets as many rows, drawn from all. dirichlet: of the rows of each value of the column
        everybody gets a part of their own, and these parts are drawn from a Dirichlet distribution (Yurochkin
        et al., ICML 2019); drawn again until everybody has a few. Where rows say which part of the data they
        belong to, each part is dealt out by itself, in the same proportions.

        Raises:
            DataError: there are too few rows for so many people, or rows without a value.
        """
        parts = [row.part or "train" for row in rows]
        for part in dict.fromkeys(parts):
            if (there := parts.count(part)) < _least(part) * self.people:
                raise DataError(
                    f"{source} has {there} choices{_for(rows, part)}, too few for {self.people} people; ask "
                    f"for {there // _least(part)} people or fewer (data.partition)"
                )
        if self.column:
            owners = self._by_value(rows, parts, source, seed)
        else:
            owners = self._evenly(parts, seed)
        digits = len(str(self.people - 1))
        return [
            replace(row, person=f"person {owner:0{digits}}") for row, owner in zip(rows, owners, strict=True)
        ]

    def _evenly(self, parts: Sequence[str], seed: int) -> list[int]:
        owners = [0] * len(parts)
        for part in dict.fromkeys(parts):
            places = [at for at, own in enumerate(parts) if own == part]
            seeded(seed, "partition", part).shuffle(places)
            for number, at in enumerate(places):
                owners[at] = number % self.people
        return owners

    def _by_value(self, rows: Sequence[Labelled], parts: Sequence[str], source: str, seed: int) -> list[int]:
        places: dict[str, dict[str, list[int]]] = {}  # value -> part -> rows
        for at, row in enumerate(rows):
            if row.kind is None:
                raise DataError(f"{source} has rows without {self.column!r}; they can't be dealt out by it")
            places.setdefault(row.kind, {}).setdefault(parts[at], []).append(at)
        import numpy as np  # here, so that other data sets load without it

        draw = np.random.default_rng(seeded(seed, "partition").getrandbits(64))
        for _ in range(DRAWS):
            owners = np.zeros(len(rows), np.int64)
            for own in places.values():
                ends = np.cumsum(draw.dirichlet(np.full(self.people, self.alpha)))[:-1]
                for some in own.values():
                    upto = (ends * len(some)).round().astype(int)
                    owners[draw.permutation(some)] = np.searchsorted(upto, np.arange(len(some)), side="right")
            found: list[int] = owners.tolist()
            if self._everybody_has_some(found, parts):
                return found
        raise DataError(
            f"with alpha {self.alpha:g} some of {self.people} people have too few choices of {len(rows)}; "
            "ask for fewer people or a larger alpha (data.partition)"
        )

    def _everybody_has_some(self, owners: Sequence[int], parts: Sequence[str]) -> bool:
        """Whether everybody has as many rows of each part as it takes."""
        own = Counter(zip(owners, parts, strict=True))
        return all(
            own[person, part] >= _least(part)
            for part in dict.fromkeys(parts)
            for person in range(self.people)
        )


def _least(part: str) -> int:
    return LEAST if part == "train" else 1


def _for(rows: Sequence[Labelled], part: str) -> str:
    """Which choices they are, where rows say which part they belong to."""
    return f" for {part}" if any(row.part for row in rows) else ""
