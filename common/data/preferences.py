"""Preferences: what they are, and reading and writing them in TRL's format.

The format is the one of TRL's `preference datasets
<https://huggingface.co/docs/trl/dataset_formats#preference>`_: rows with ``chosen``, ``rejected``
and usually ``prompt``, in JSON lines or Parquet.

- *Standard*: each field is a string. *Conversational*: each field is a list of
  ``{"role": …, "content": …}`` messages.
- *Explicit prompt*: the field ``prompt`` is there. *Implicit prompt*: it is not, and the prompt is
  the common beginning of ``chosen`` and ``rejected`` (:func:`extract_prompt`, as TRL does it).

A conversation becomes one text, the same for every model: a line ``role: content`` for each message
(:func:`render`). The text of a response in its context is always ``prompt + response``, as in TRL's
standard format.

A column may name the person who chose: ``person``, ``worker`` or ``user_id`` unless told otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

from penchant.common.errors import DataError

__all__ = [
    "STRONGEST",
    "TIES",
    "Federation",
    "Person",
    "Preference",
    "Tie",
    "choice_of",
    "each_once",
    "without_ties",
]

Tie = Literal["equal", "both bad"]
"""What was said of two responses of which none is preferred."""
TIES: tuple[Tie, ...] = get_args(Tie)
STRONGEST = 1_000_000
"""The greatest strength that a choice may have, in whatever unit; beyond it a number means something else."""


# --- the data -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Preference:
    """One choice: with ``prompt`` given, ``chosen`` is preferred to ``rejected``.

    The model sees ``prompt + chosen`` and ``prompt + rejected``; the prompt may be empty. With ``tie`` set it
    is a tie: neither is preferred, and which one is called chosen says nothing.

    ``strength`` is how strongly it is preferred, where that is known: from 0 to :data:`STRONGEST`, in a unit
    that is the person's own, since only its ratio to the person's other choices is used.

    Raises:
        DataError: a field is not a string, a response is blank, both responses are the same, ``tie`` is
            none of :data:`TIES`, or ``strength`` is no such number, or is there beside a tie.
    """

    prompt: str
    chosen: str
    rejected: str
    tie: Tie | Literal[""] = ""
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.tie and self.tie not in TIES:
            raise DataError(f"'tie' must be {' or '.join(TIES)}")
        if self.strength is not None:
            object.__setattr__(self, "strength", checked_strength("strength", self.strength))
            if self.tie:
                raise DataError(
                    "a tie has no 'strength': neither response is preferred; leave out one of both"
                )
        for name in ("prompt", "chosen", "rejected"):
            check_text(name, getattr(self, name))
        for name in ("chosen", "rejected"):
            if not getattr(self, name).strip():
                raise DataError(f"{name!r} is empty")
        if self.chosen == self.rejected:
            raise DataError("'chosen' and 'rejected' are the same")

    def __repr__(self) -> str:
        """Lengths only: the texts are somebody's choices and stay out of logs and tracebacks."""
        lengths = ", ".join(f"{name}={len(getattr(self, name))}" for name in ("prompt", "chosen", "rejected"))
        return f"Preference(characters: {lengths})"


def without_ties(pairs: Iterable[Preference]) -> list[Preference]:
    """Those in which one response was preferred, in order."""
    return [pair for pair in pairs if not pair.tie]


def choice_of(pair: Preference) -> tuple[str, str, str]:
    """Which response was preferred to which, however strongly."""
    return pair.prompt, pair.chosen, pair.rejected


def each_once(pairs: Iterable[Preference]) -> list[Preference]:
    """Pairs in order without repetitions: of a choice that is there with several strengths the first."""
    found: dict[tuple[tuple[str, str, str], str], Preference] = {}
    for pair in pairs:
        found.setdefault((choice_of(pair), pair.tie), pair)
    return list(found.values())


def checked_strength(name: str, value: object) -> float:
    """A strength as a number. DataError, with the name of its column, unless it is from 0 to `STRONGEST`."""
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with contextlib.suppress(OverflowError):  # an integer of JSON may have any length
            number = float(value)
    if 0 <= number <= STRONGEST:
        return number
    raise DataError(
        f"{name!r} must be a number from 0 to {STRONGEST}, slightly, better or much: how strongly 'chosen' "
        "is preferred; rename the column if it means something else"
    )


@dataclass(frozen=True, repr=False)
class Person:
    """One person's pairs; no item is in more than one of the three parts."""

    name: str
    train: tuple[Preference, ...]
    validation: tuple[Preference, ...]
    test: tuple[Preference, ...]

    def __repr__(self) -> str:
        counts = f"train={len(self.train)}, validation={len(self.validation)}, test={len(self.test)}"
        return f"Person({self.name!r}, {counts})"


@dataclass(frozen=True)
class Federation:
    """The people of one simulated federation, checked.

    ``caveats`` are sentences to print beside every result. ``digest`` is the SHA-256 of the name and
    of everybody's pairs in order (not of the caveats): equal digests mean equal data.

    Raises:
        DataError: nobody is in it, two people have one name, or a person has no training or no test
            pairs (ties don't count), one class, or the same pair in training and test. The message names the
            person.

    *One class* means that there is nothing to learn a taste from. Item by item (votes, ratings) it is
    somebody who always says the same, so that no pair can be formed at all. Pair by pair it is
    somebody whose pairs, two or more, are all one and the same comparison. A single pair is fine: it
    is little, not degenerate.
    """

    name: str
    people: tuple[Person, ...]
    caveats: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.people:
            raise DataError(f"data set {self.name!r} has no clients; give rows of at least one person")
        repeated = [name for name, times in Counter(p.name for p in self.people).items() if times > 1]
        if repeated:
            raise DataError(f"client {repeated[0]!r} appears twice; give every person one name")
        for person in self.people:
            _check_person(person)
        object.__setattr__(self, "digest", _digest(self.name, self.people))


def _check_person(person: Person) -> None:
    if not person.name:
        raise DataError("a client has an empty name; name every person")
    for part in ("train", "test"):
        if not without_ties(getattr(person, part)):
            raise DataError(
                f"client {person.name!r} has no pairs to {part} on; give it more choices or leave it out"
            )
    train = {comparison_of(pair) for pair in person.train}
    if len(train) == 1 and len(person.train) > 1:
        raise DataError(
            f"client {person.name!r} has one class: all its training pairs are the same comparison; "
            "give it other choices or leave it out"
        )
    if not train.isdisjoint(comparison_of(pair) for pair in (*person.validation, *person.test)):
        raise DataError(f"client {person.name!r} holds out a training pair; split it again")


def comparison_of(pair: Preference) -> tuple[str, frozenset[str]]:
    """What was compared, whichever won."""
    return pair.prompt, frozenset((pair.chosen, pair.rejected))


def _digest(name: str, people: Iterable[Person]) -> str:
    digest = hashlib.sha256(json.dumps(["penchant federation 1", name]).encode())
    for person in people:
        parts = [
            [[*choice_of(pair), *_said_beside(pair)] for pair in part]
            for part in (person.train, person.validation, person.test)
        ]
        digest.update(b"\n" + json.dumps([person.name, parts]).encode())
    return digest.hexdigest()


def _said_beside(pair: Preference) -> list[str | float]:
    """What a digest reads of a pair behind its texts: nothing of a choice of no known strength."""
    if pair.strength is not None:
        return ["", pair.strength]
    return [pair.tie] if pair.tie else []


def check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise DataError(f"{name!r} must be a string, not {kind_of(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name!r} contains a lone surrogate, so it is not valid text") from None


def kind_of(value: object) -> str:
    """A JSON-like name of a value's type, for messages; never the value itself."""
    names = {type(None): "null (None)", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return names.get(type(value), f"of type {type(value).__name__}")


# --- one row --------------------------------------------------------------------------------------


# --- files ----------------------------------------------------------------------------------------
