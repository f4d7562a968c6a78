"""PersonalLLM: ``namkoong-lab/PersonalLLM``, simulated people over ten reward models.

Rows: ``prompt``, ``response_1`` … ``response_8``, and a score of each response by each reward model in
``response_1_gemma_2b`` and so on. A person is a weighting of the reward models, drawn from a symmetric
Dirichlet distribution (concentration 0.05: mostly one or two models each), as in Zollo et al., ICLR 2025;
scores are standardised per reward model first. For each prompt that a person meets, two responses are
drawn, and the one with the higher weighted score is preferred.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes, SplitParts, people_from_pairs, seeded, wanted_pairs
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared
from penchant.deploy.datasets.sources import HubSource, number_in, text_in

__all__ = ["CONCENTRATION", "LOADER", "PEOPLE", "SOURCE", "prepare"]

SOURCE = HubSource("namkoong-lab/PersonalLLM")
RESPONSES = tuple(f"response_{number}" for number in range(1, 9))
REWARD_MODELS = (
    "beaver_7b",
    "gemma_2b",
    "gemma_7b",
    "llama3_sfairx",
    "mistral_raft",
    "mistral_ray",
    "mistral_weqweasdas",
    "oasst_deberta_v3",
    "oasst_pythia_1b",
    "oasst_pythia_7b",
)
CONCENTRATION = 0.05
PEOPLE = 100


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt, its responses, and a score of each by each reward model."""

    prompt: str
    responses: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]


def prepare(path: Path | None, sizes: Sizes, seed: int, bad_rows: BadRows, clients: int | None) -> Prepared:
    """As many people as asked for (100 unless told otherwise); more of them change nobody."""
    log = RowLog(bad_rows)
    questions: dict[str, ScoredPrompt] = {}
    for where, row in SOURCE.rows(path, log):
        try:
            question = parse(row)
        except DataError as error:
            log.reject(where, error)
            continue
        questions.setdefault(question.prompt, question)
    report = log.finish(path or SOURCE.hub_id)
    count = PEOPLE if clients is None else clients
    if count < 1:
        raise DataError(f"{count} clients asked for; ask for at least 1")
    parts = sizes.split(list(questions))
    scored = standardise(list(questions.values()))
    pairs = {}
    for number in range(count):
        name = f"person-{number:04d}"
        weights = dirichlet(len(REWARD_MODELS), seeded(seed, name, "weights"))
        pairs[name] = _meet(scored, parts, weights, sizes, seed, name)
    people, shortfalls, _ = people_from_pairs(pairs, sizes, seed, parts=parts)
    caveats = ("PersonalLLM: people are simulated: weightings of reward models, without noise.",)
    return Prepared("personalllm", people, shortfalls, caveats, report)


def parse(row: dict[str, Any]) -> ScoredPrompt:
    """A row.

    Raises:
        DataError: it is not of the schema.
    """
    prompt = text_in(row, "prompt")
    if not prompt.strip():
        raise DataError("'prompt' is empty")
    return ScoredPrompt(
        prompt + "\n",  # the response goes right behind it
        tuple(text_in(row, response) for response in RESPONSES),
        tuple(
            tuple(number_in(row, f"{response}_{model}") for model in REWARD_MODELS) for response in RESPONSES
        ),
    )


def standardise(questions: Sequence[ScoredPrompt]) -> list[ScoredPrompt]:
    """Every reward model's scores with mean 0 and standard deviation 1 over all responses."""
    columns = list(zip(*(score for question in questions for score in question.scores), strict=True))
    centres = [fmean(column) for column in columns]
    spreads = [pstdev(column) or 1.0 for column in columns]
    return [
        ScoredPrompt(
            question.prompt,
            question.responses,
            tuple(
                tuple((s - c) / d for s, c, d in zip(score, centres, spreads, strict=True))
                for score in question.scores
            ),
        )
        for question in questions
    ]


def dirichlet(size: int, rng: random.Random) -> list[float]:
    """Weights that sum to 1: normalised gamma variates."""
    drawn = [rng.gammavariate(CONCENTRATION, 1.0) for _ in range(size)]
    total = sum(drawn)
    return [value / total for value in drawn] if total > 0 else [1.0 / size] * size


def _meet(
    questions: Sequence[ScoredPrompt],
    parts: SplitParts,
    weights: Sequence[float],
    sizes: Sizes,
    seed: int,
    name: str,
) -> list[Preference]:
    """The questions that a person meets, as many of each part as asked for, and what they prefer."""
    met: list[Preference] = []
    for part, wanted in wanted_pairs(sizes).items():
        rng = seeded(seed, name, part, "questions")
        here = [question for question in questions if parts.part_of[question.prompt] == part]
        for question in rng.sample(here, min(wanted, len(here))):
            met.extend(_preference(question, weights, rng))
    return met


def _preference(question: ScoredPrompt, weights: Sequence[float], rng: random.Random) -> list[Preference]:
    """Between two responses drawn: one preference, or none if they tie or are the same."""
    ratings = [sum(w * s for w, s in zip(weights, score, strict=True)) for score in question.scores]
    better, worse = sorted(rng.sample(range(len(ratings)), 2), key=lambda index: -ratings[index])
    chosen, rejected = question.responses[better], question.responses[worse]
    if ratings[better] == ratings[worse] or chosen == rejected:
        return []
    return [Preference(question.prompt, chosen, rejected)]


LOADER = DatasetLoader(
    name="personalllm",
    about="Simulated people who weigh ten reward models (PersonalLLM).",
    prepare=lambda asked: prepare(asked.path, asked.sizes, asked.seed, asked.bad_rows, asked.clients),
    chooses_people=True,
)
