"""What an importer finds: choices with their person and time, and what it could not use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from penchant.common.data.preferences import Preference, choice_of, comparison_of, kind_of
from penchant.common.data.row_files import RowLog
from penchant.common.data.trl_format import TOO_DEEP, Label, LabelColumns, Labelled
from penchant.common.errors import DataError

__all__ = [
    "PAIRS_MOST",
    "Choice",
    "Labels",
    "Tally",
    "equal_ones",
    "nearest_lower",
    "of_each",
    "person_in",
    "rejecting",
    "seconds",
    "settled",
    "together",
    "twos",
    "typed",
    "worded",
]

T = TypeVar("T")
Located = tuple[str, Mapping[str, Any]]

PAIRS_MOST = 16
"""With how many responses to the same prompt, of those that are rated lower, one response is compared."""


@dataclass(frozen=True)
class Choice:
    """One choice of an export. person: None where the export names nobody; time: Unix seconds, 0 unknown;
    part, kind and where: as in `Labelled`."""

    person: str | None
    preference: Preference = field(repr=False)
    time: float = 0.0
    part: str | None = None
    kind: str | None = None
    where: str = ""

    @classmethod
    def of(cls, label: Label, preference: Preference, time: float = 0.0) -> Self:
        """The choice that a label is of."""
        return cls(label.person, preference, time, label.part, label.kind, label.where)


@dataclass(frozen=True)
class Labels:
    """What rows say beside their choices, in columns that are looked for in every row that holds some; rows
    that lack one are rejected in `log`."""

    columns: LabelColumns
    log: RowLog = field(repr=False)

    def of(self, where: str, row: Mapping[str, Any], whose: Any = None) -> Label | None:
        """What a row says; None where it is a bad one, which is noted. whose: the person in the export's own
        terms, who counts where no column was asked for."""
        try:
            label = self.columns.of(row)
        except DataError as error:
            self.log.reject(where, error)
            return None
        return replace(label, where=where, person=label.person if self.columns.person else person_in(whose))


@contextmanager
def rejecting(where: str, log: RowLog, name: str) -> Iterator[None]:
    """While a row is read: whatever is not as it should be in it makes it a bad one, and is told in one line.

    name: what rows should be, in words.
    """
    try:
        yield
    except DataError as error:
        log.reject(where, error)
    except RecursionError:
        log.reject(where, TOO_DEEP)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.reject(where, f"not {name} as it should be ({type(error).__name__})")


def of_each(
    rows: Iterable[Located], log: RowLog, name: str, read: Callable[[str, Mapping[str, Any]], Iterable[T]]
) -> Iterator[T]:
    """What is read in every row: all that it holds, or nothing of a bad one. name: as in `rejecting`."""
    for where, row in rows:
        made: list[T] = []
        with rejecting(where, log, name):
            made = list(read(where, row))
        yield from made


def typed(row: Mapping[str, Any], column: str, kind: type[T], what: str) -> T:
    """What a row's column holds. DataError where it is missing or of another type, whose name is `what`."""
    if column not in row:
        raise DataError(f"{column!r} is missing")
    value = row[column]
    if not isinstance(value, kind):
        raise DataError(f"{column!r} must be {what}, not {kind_of(value)}")
    return value


def together(own: Label, sides: Sequence[Label]) -> Label:
    """The label of a choice whose two sides say each of what kind they are and where they stand: both, where
    they differ."""
    kinds = sorted({side.kind for side in sides if side.kind is not None})
    places = dict.fromkeys(side.where for side in sides if side.where)
    return replace(own, kind=" and ".join(kinds) or None, where=" and ".join(places))


@dataclass
class Tally:
    """What there is to say of an import beside its choices.

    Attributes:
        name: what was read, in words; empty for rows in TRL's format.
        told: sentences on how it was read.
        repeated: choices that are there already.
        contradicted: choices that a later one of the same person turns round.
        ties: comparisons in which neither response was preferred.
        strong: choices that say how strong they are.
        rerated: ratings of a response that the same person rates otherwise later.
        beside: columns of ratings that are not read, since another one says it -> that one.
        unsaid: comparisons of which that isn't said either: no answer, or the same thumb on both.
        chats: rows of a log that tell of chats and hold no vote.
        alone: ratings of a response without another one to compare it with.
        lost: ratings of something that the export does not hold, or whose text is empty.
        left_out: comparisons that are not made, since a response has its `PAIRS_MOST` without them.
    """

    name: str = ""
    told: list[str] = field(default_factory=list)
    repeated: int = 0
    contradicted: int = 0
    ties: int = 0
    strong: int = 0
    unsaid: int = 0
    chats: int = 0
    alone: int = 0
    lost: int = 0
    left_out: int = 0
    rerated: int = 0
    beside: dict[str, str] = field(default_factory=dict)

    def count(self, pairs: Iterable[Preference]) -> None:
        """Count the ties and strengths of what is kept."""
        for pair in pairs:
            self.ties += bool(pair.tie)
            self.strong += pair.strength is not None

    def lines(self) -> list[str]:
        """A sentence for each thing that is not nothing."""
        said = [f"read as {self.name}"] if self.name else []
        counted = _told(
            (self.repeated, "there more than once: they count once"),
            (self.contradicted, "contradicted by the same person later: the latest choice counts"),
            (self.rerated, "ratings contradicted by the same person later: the latest rating counts"),
            (self.ties, "ties, in which neither response was preferred: kept as ties"),
            (self.strong, "choices say how strong they are: each counts by that, among the person's own"),
        )
        left_out = _told(
            (
                self.left_out,
                f"comparisons left out: each response has the nearest {PAIRS_MOST} rated lower or alike",
            ),
        )
        unread = [
            f"the column {name!r} is not read: {read!r} beside it says how responses are rated"
            for name, read in self.beside.items()
        ]
        return said + self.told + counted + self.unused() + left_out + unread

    def unused(self) -> list[str]:
        """Of these sentences those that say of what was read that nothing came of it."""
        return _told(
            (self.unsaid, "comparisons without an answer, or with the same thumb on both: not used"),
            (self.chats, "rows of a log of chats that hold no vote: not used"),
            (self.alone, "ratings without another response to the same prompt: not used"),
            (self.lost, "ratings of a message that is not there or has no text: not used"),
        )


def _told(*counted: tuple[int, str]) -> list[str]:
    return [f"{count} {what}" for count, what in counted if count]


def settled(choices: Iterable[Choice], tally: Tally) -> list[Labelled]:
    """Choices in order of time, each once: of several that one person made between the same two responses,
    the latest counts. Where times are equal or unknown, what stands later in the export is later. Each part
    of the data is looked at by itself: what is tested on replaces nothing that is for training."""
    kept: dict[tuple[str | None, str | None, tuple[str, frozenset[str]]], Choice] = {}
    for choice in sorted(choices, key=lambda choice: choice.time):
        pair = choice.preference
        key = (choice.person, choice.part, comparison_of(pair))
        before = kept.pop(key, None)
        if before is not None:
            said = choice_of(before.preference) == choice_of(pair) and before.preference.tie == pair.tie
            same = said or bool(before.preference.tie and pair.tie)
            tally.repeated += same
            tally.contradicted += not same
        kept[key] = choice
    return [Labelled(one.person, one.preference, one.part, one.kind, one.where) for one in kept.values()]


def nearest_lower(scores: Mapping[str, float], tally: Tally) -> list[tuple[str, str]]:
    """Responses to one prompt in pairs, the one with the higher score first; equal ones make none.

    Each has those that are rated lower, at most `PAIRS_MOST` of them and the nearest by score; equally near
    ones take turns. So pairs grow as responses do, and few responses make every pair. They come in the order
    in which `scores` names the first of the two, then the second; what is left out is counted in `tally`.
    """
    place = {name: number for number, name in enumerate(scores)}
    levels: dict[float, list[str]] = {}
    for name, score in scores.items():
        levels.setdefault(score, []).append(name)
    ordered = [levels[score] for score in sorted(levels, reverse=True)]
    turns = [0] * len(ordered)
    found: list[tuple[str, str]] = []
    for level, names in enumerate(ordered):
        for name in names:
            wanted, below = PAIRS_MOST, level + 1
            while wanted and below < len(ordered):
                lower, first = ordered[below], turns[below]
                taken = min(wanted, len(lower))
                found += [(name, lower[(first + step) % len(lower)]) for step in range(taken)]
                turns[below] = (first + taken) % len(lower)
                wanted, below = wanted - taken, below + 1
    tally.left_out += math.comb(len(scores), 2) - twos(scores.values()) - len(found)
    return sorted(found, key=lambda pair: sorted((place[pair[0]], place[pair[1]])))


def equal_ones(scores: Mapping[str, float], tally: Tally) -> list[tuple[str, str]]:
    """Responses to one prompt that have the same score, in pairs: each with the next `PAIRS_MOST` of them, in
    the order of `scores`; what is left out is counted in `tally`."""
    levels: dict[float, list[str]] = {}
    for name, score in scores.items():
        levels.setdefault(score, []).append(name)
    found = [
        (name, other)
        for names in levels.values()
        for place, name in enumerate(names)
        for other in names[place + 1 : place + 1 + PAIRS_MOST]
    ]
    tally.left_out += twos(scores.values()) - len(found)
    return found


def twos(keys: Iterable[Hashable]) -> int:
    """How many pairs there are of two that are equal."""
    return sum(math.comb(count, 2) for count in Counter(keys).values())


def person_in(value: Any) -> str | None:
    """A person as an export names one: a text, a number, or an object with an address or an id."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("email", "username", "id") if value.get(key) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None


def seconds(value: Any) -> float:
    """A time as Unix seconds: of a number (seconds, or milli- or nanoseconds), or ISO 8601; 0 for no time."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return 0.0
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    while value > 1e11:  # beyond the year 5000 in seconds
        value /= 1000
    return float(value)


def worded(value: Any) -> str:
    """The text of a message's content, which may be in parts; empty if there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return worded(next((value[key] for key in ("text", "value", "parts", "content") if key in value), ""))
    if isinstance(value, list):
        return "".join(worded(part) for part in value)
    return ""
