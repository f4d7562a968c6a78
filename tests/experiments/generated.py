"""Responses of a small language model to everyday requests, made once and kept: the texts of bench_best_of_n.

Requests come of occasions and wishes; some occasions are kept for testing, so that nobody's choices are about
a request that is tested.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penchant.client.learning.best_of_n import Generator

GENERATOR = "smollm2-135m"
TOKENS = 36
WISHES = (
    "Suggest something to do {}. ",
    "Recommend a small present {}. ",
    "Tell a very short story {}. ",
    "Describe a good evening {}. ",
)
LEARNED = (
    "for a rainy Sunday",
    "for a friend who has moved house",
    "for a couple with little money",
    "for the first warm day of spring",
    "for a tired parent",
    "for two old neighbours",
    "for somebody who has a cold",
    "for children on holiday",
    "for a student after an exam",
    "for a colleague who retires",
)
TESTED = ("for a birthday", "for a long winter weekend")
FEW, MANY = 20, 32  # responses to a request that is learned from, and to one that is tested


@dataclass(frozen=True)
class Texts:
    """Responses by request: those that people choose between, and those to choose the best of."""

    learned: dict[str, list[str]]
    tested: dict[str, list[str]]


def in_order(requests: Mapping[str, Sequence[str]]) -> list[str]:
    """The responses to all requests."""
    return [text for own in requests.values() for text in own]


def requests(occasions: tuple[str, ...]) -> list[str]:
    return [wish.format(occasion) for occasion in occasions for wish in WISHES]


def texts(home: Path) -> Texts:
    """Read from `home`, made where they are missing: four minutes of one core."""
    path = home / f"{GENERATOR}-{TOKENS}.json"
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for asked, count, seed in ((requests(LEARNED), FEW, 0), (requests(TESTED), MANY, 1)):
        if all(len(found.get(request, ())) >= count for request in asked):
            continue
        home.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        made = Generator(GENERATOR).responses_to_all(
            asked, count, seed=seed, tokens=TOKENS, temperature=0.8, top_k=50
        )
        found.update(zip(asked, made, strict=True))
        path.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
        print(f"{count} x {len(asked)} texts: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return Texts(
        {request: found[request] for request in requests(LEARNED)},
        {request: found[request] for request in requests(TESTED)},
    )
