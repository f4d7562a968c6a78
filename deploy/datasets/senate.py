"""Senate: the roll calls of the 109th US Congress (2005-2006), one client a senator.

A vote for A and a vote against B gives A ≻ B. ``senate109.json.gz`` is package data; where it comes
from is written in ``senate109.md``, and ``build_senate.py`` makes it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from penchant.common.data.splits import Sizes, people_from_ratings
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared

__all__ = [
    "LOADER",
    "MASK",
    "MASKED_LOADER",
    "RollCall",
    "Senate",
    "mask_sponsors",
    "prepare",
    "read",
    "worded",
]

FILE = "senate109.json.gz"

CONTESTED = (0.05, 0.95)
"""Roll calls with a share of yeas outside this range say nothing about anybody and are left out."""

MASK = "Senator"

MISSPELT = ("Kenedy", "Meenendez", "Harking")
"""Sponsors' names as the source misspells them (Kennedy, Menendez, Harkin)."""

CAVEATS = (
    "Senate: votes are not elicited comparisons; a pair joins two roll calls that nobody compared.",
    "Senate: a motion to table turns the meaning of yea and nay around; the text says so, the label doesn't.",
    "Senate: few clients (at most 102) and bipolar: two parties explain most votes.",
    "Senate: BUSH (R USA) is the President, with announced positions instead of votes.",
)
NAMES_HINT = "Senate: sponsors' names in the texts hint at the party; compare with senate-masked."
NAMES_MASKED = "Senate: sponsors' names in the texts are masked; parties may still show in the wording."


@dataclass(frozen=True, slots=True)
class RollCall:
    """One vote: session and number name it; the date is ISO 8601."""

    session: int
    number: int
    date: str
    bill: str
    question: str
    text: str


@dataclass(frozen=True)
class Senate:
    """People, roll calls in order of time, and votes.

    ``votes`` has a line for each person, with a sign for each roll call: ``+`` yea, ``-`` nay, ``.`` neither.
    """

    people: tuple[str, ...]
    roll_calls: tuple[RollCall, ...]
    votes: tuple[str, ...]

    def contested(self) -> list[int]:
        """Indices of roll calls with 5 to 95 % yeas among those who voted."""
        kept = []
        for item in range(len(self.roll_calls)):
            signs = [line[item] for line in self.votes]
            yeas, nays = signs.count("+"), signs.count("-")
            if yeas + nays and CONTESTED[0] <= yeas / (yeas + nays) <= CONTESTED[1]:
                kept.append(item)
        return kept


def read() -> Senate:
    """The package data.

    Raises:
        DataError: the file is missing or damaged: reinstall.
    """
    try:
        packed = resources.files(__package__).joinpath(FILE).read_bytes()
        data = json.loads(gzip.decompress(packed))
    except (OSError, EOFError, ValueError):
        raise DataError(f"the package data {FILE} is missing or damaged; reinstall penchant") from None
    return Senate(
        tuple(data["people"]), tuple(RollCall(**item) for item in data["items"]), tuple(data["votes"])
    )


def mask_sponsors(text: str, surnames: Iterable[str]) -> str:
    """The text with the names of senators who move or sponsor something replaced by ``Senator``.

    Masked are, whatever their case: a senator's surname, as the source spells or misspells it, with a
    state in brackets if there is one, before "Amdt", "Amt", "Amendment" or "Motion"; and "John Warner",
    a senator in the title of a bill. Not masked are other people of the same name: nominees (William H.
    Pryor, John G. Roberts, Stephen L. Johnson, two Smiths, four called Thomas) and Walter Reed Hospital.
    """
    names = "|".join(sorted(map(re.escape, {*surnames, *MISSPELT}), key=len, reverse=True))
    sponsor = rf"\b(?:{names})(?: \([A-Z]{{2}}\))?(?= (?:Amdt|Amt|Amendment|Motion)\b)"
    return re.sub(rf"{sponsor}|\bJohn Warner\b", MASK, text, flags=re.IGNORECASE)


def worded(call: RollCall) -> str:
    """What a reader is shown of a roll call: the question that was put, then the description."""
    return f"{call.question}: {_clean(call.text)}"


def prepare(sizes: Sizes, seed: int, *, masked: bool) -> Prepared:
    """Everybody's pairs: split by time over the contested roll calls, which are the same for all."""
    senate = read()
    contested = senate.contested()
    surnames = {name.split(" (")[0] for name in senate.people}
    texts = {item: worded(senate.roll_calls[item]) for item in contested}
    if masked:
        texts = {item: mask_sponsors(text, surnames) for item, text in texts.items()}
    ratings = {
        name: {item: float(signs[item] == "+") for item in contested if signs[item] != "."}
        for name, signs in zip(senate.people, senate.votes, strict=True)
    }
    parts = sizes.split(contested)
    people, shortfalls = people_from_ratings(ratings, texts, parts, sizes, seed)
    caveats = (*CAVEATS, NAMES_MASKED if masked else NAMES_HINT)
    return Prepared("senate-masked" if masked else "senate", people, shortfalls, caveats)


def _clean(text: str) -> str:
    """The source's description, with white space and the stray stops and spaces before ";" put right."""
    return re.sub(r"[ .]+;", ";", " ".join(text.split()))


LOADER = DatasetLoader(
    name="senate",
    about="Roll calls of the 109th US Senate, one client a senator; included.",
    prepare=lambda asked: prepare(asked.sizes, asked.seed, masked=False),
    takes_folder=False,
    masked="senate-masked",
)
MASKED_LOADER = DatasetLoader(
    name="senate-masked",
    about="The same with sponsors' names in the texts masked; included.",
    prepare=lambda asked: prepare(asked.sizes, asked.seed, masked=True),
    takes_folder=False,
    masked="senate-masked",
)
