"""Made-up people who like some words better than others, each in their own way, as rows in TRL's format."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.tiny_models import WORDS


def write_choices(path: Path, counts: Sequence[int]) -> None:
    """One person for each number of pairs; the column "user" names them."""
    draw, most = random.Random(0), max(counts)
    rows = []
    for person, count in enumerate(counts):
        liking = {word: draw.random() for word in WORDS}
        for number in range(count):
            words = draw.sample(WORDS, 2)
            better, worse = sorted(words, key=lambda word: -liking[word])
            prompt = f"{number * most // count} "  # those who have fewer skip some
            rows.append({"user": f"p{person}", "prompt": prompt, "chosen": better, "rejected": worse})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def choices_by_last_word(count: int) -> list[tuple[str, str, str]]:
    """One person's, by a taste in words that the last word of a response meets."""
    draw = random.Random(0)
    taste = draw.sample(WORDS, len(WORDS))
    made = []
    for _ in range(count):
        better, worse = sorted(draw.sample(WORDS, 2), key=taste.index)
        prompt = " ".join(draw.choices(WORDS, k=draw.randrange(1, 9))) + " "
        made.append(
            (prompt, f"{draw.choice(WORDS)} {better}", f"{' '.join(draw.choices(WORDS, k=2))} {worse}")
        )
    return made


def one_round(base: Path, choices: Path) -> dict[str, Any]:
    """Settings of a run of one round that asks three people with `choices`, who ask for little."""
    return {
        "data.dataset": str(choices),
        "data.person_column": "user",
        "data.pairs": 6,
        "data.test_pairs": 4,
        "model.base_model": str(base),
        "model.max_tokens": 16,
        "federation.rounds": 1,
        "federation.cohort": 3,
        "privacy.min_honest": 1,
        "privacy.max_colluders": 0,
    }


def small_run(base: Path, choices: Path, people: int, epochs: int) -> dict[str, Any]:
    """Settings of a run of three rounds over `people` with `choices`, who ask for little."""
    return {
        "data.dataset": str(choices),
        "data.person_column": "user",
        "data.pairs": 5,
        "data.validation_pairs": 2,
        "data.test_pairs": 3,
        "model.base_model": str(base),
        "federation.rounds": 3,
        "federation.cohort": people,
        "training.local_epochs": epochs,
        "training.final_fit_epochs": epochs,
        "privacy.min_honest": 1,
        "privacy.max_colluders": 0,
    }
