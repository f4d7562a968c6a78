"""HelpSteer2: ``nvidia/HelpSteer2``, its five attributes as five labelers.

Rows: ``prompt``, ``response``, and a score from 0 to 4 for each attribute. Two consecutive rows have the
same prompt. A labeler prefers the response that scores higher on its attribute; a tie gives no preference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes, people_from_pairs
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared
from penchant.deploy.datasets.sources import HubSource, number_in, text_in

__all__ = ["ATTRIBUTES", "LOADER", "SOURCE", "prepare"]

SOURCE = HubSource("nvidia/HelpSteer2")
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def prepare(path: Path | None, sizes: Sizes, seed: int, bad_rows: BadRows) -> Prepared:
    """Five labelers who compare the same responses by different attributes."""
    log = RowLog(bad_rows)
    pairs: dict[str, list[Preference]] = {attribute: [] for attribute in ATTRIBUTES}
    prompts: dict[str, None] = {}
    waiting: tuple[str, dict[str, Any]] | None = None  # a first response and where it is
    for where, row in SOURCE.rows(path, log):
        try:
            _check(row)
        except DataError as error:
            log.reject(where, error)
            continue
        row = {**row, "prompt": row["prompt"] + "\n"}  # the response goes right behind it
        prompts[row["prompt"]] = None
        if waiting is None or waiting[1]["prompt"] != row["prompt"]:
            if waiting is not None:
                log.reject(waiting[0], "no second response to the same prompt follows")
            waiting = (where, row)
            continue
        first, waiting = waiting[1], None
        for attribute in ATTRIBUTES:
            pairs[attribute].extend(_preference(first, row, attribute))
    if waiting is not None:
        log.reject(waiting[0], "no second response to the same prompt follows")
    report = log.finish(path or SOURCE.hub_id)
    parts = sizes.split(list(prompts))
    people, shortfalls, _ = people_from_pairs(pairs, sizes, seed, parts=parts)
    caveats = (
        "HelpSteer2: labelers are attributes scored by the same annotators, not people.",
        "HelpSteer2: 'verbosity' and 'complexity' prefer more of it.",
    )
    return Prepared("helpsteer2", people, shortfalls, caveats, report)


def _check(row: dict[str, Any]) -> None:
    for column in ("prompt", "response"):
        if not text_in(row, column).strip():
            raise DataError(f"{column!r} is empty")
    for attribute in ATTRIBUTES:
        number_in(row, attribute)


def _preference(first: dict[str, Any], second: dict[str, Any], attribute: str) -> list[Preference]:
    """The labeler's preference between two responses: one, or none if they tie or are the same."""
    if first[attribute] == second[attribute] or first["response"] == second["response"]:
        return []
    better, worse = sorted((first, second), key=lambda row: -float(row[attribute]))
    return [Preference(first["prompt"], better["response"], worse["response"])]


LOADER = DatasetLoader(
    name="helpsteer2",
    about="Five attributes of responses as five labelers (HelpSteer2).",
    prepare=lambda asked: prepare(asked.path, asked.sizes, asked.seed, asked.bad_rows),
)
