"""What an importer finds: choices with their person and time, and what it could not use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from penchant.common.data.preferences import Preference, choice_of, comparison_of
from penchant.common.data.trl_format import Labelled

__all__ = [
    "PAIRS_MOST",
    "Choice",
    "Tally",
    "equal_ones",
    "nearest_lower",
    "person_in",
    "seconds",
    "settled",
    "twos",
    "worded",
]

PAIRS_MOST = 16
"""With how many responses to the same prompt, of those that are rated lower, one response is compared."""


@dataclass(frozen=True)
class Choice:
    """One choice of an export. person: None where the export names nobody; time: Unix seconds, 0 unknown."""

    person: str | None
    preference: Preference = field(repr=False)
    time: float = 0.0


@dataclass
class Tally:
    """What there is to say of an import beside its choices.

    Attributes:
        name: what was read, in words; empty for rows in TRL's format.
        repeated: choices that are there already.
        contradicted: choices that a later one of the same person turns round.
        ties: comparisons in which neither response was preferred.
        strong: choices that say how strong they are.
        unsaid: comparisons of which that isn't said either: no answer, or the same thumb on both.
        alone: ratings of a response without another one to compare it with.
        lost: ratings of something that the export does not hold, or whose text is empty.
        left_out: comparisons that are not made, since a response has its `PAIRS_MOST` without them.
    """

    name: str = ""
    repeated: int = 0
    contradicted: int = 0
    ties: int = 0
    strong: int = 0
    unsaid: int = 0
    alone: int = 0
    lost: int = 0
    left_out: int = 0

    def count(self, pairs: Iterable[Preference]) -> None:
        """Count the ties and strengths of what is kept."""
        for pair in pairs:
            self.ties += bool(pair.tie)
            self.strong += pair.strength is not None

    def lines(self) -> list[str]:
        """A sentence for each thing that is not nothing."""
        said = [f"read as {self.name}"] if self.name else []
        counted = (
            (self.repeated, "there more than once: they count once"),
            (self.contradicted, "contradicted by the same person later: the latest choice counts"),
            (self.ties, "ties, in which neither response was preferred: kept as ties"),
            (self.strong, "choices say how strong they are: each counts by that, among the person's own"),
            (self.unsaid, "comparisons without an answer, or with the same thumb on both: not used"),
            (self.alone, "ratings without another response to the same prompt: not used"),
            (self.lost, "ratings of a message that is not there or has no text: not used"),
            (
                self.left_out,
                f"comparisons left out: each response has the nearest {PAIRS_MOST} rated lower or alike",
            ),
        )
        return said + [f"{count} {what}" for count, what in counted if count]


def settled(choices: Iterable[Choice], tally: Tally) -> list[Labelled]:
    """Choices in order of time, each once: of several that one person made between the same two responses,
    the latest counts. Where times are equal or unknown, what stands later in the export is later."""
    kept: dict[tuple[str | None, tuple[str, frozenset[str]]], Choice] = {}
    for choice in sorted(choices, key=lambda choice: choice.time):
        pair = choice.preference
        key = (choice.person, comparison_of(pair))
        before = kept.pop(key, None)
        if before is not None:
            said = choice_of(before.preference) == choice_of(pair) and before.preference.tie == pair.tie
            same = said or bool(before.preference.tie and pair.tie)
            tally.repeated += same
            tally.contradicted += not same
        kept[key] = choice
    return [Labelled(choice.person, choice.preference) for choice in kept.values()]


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
