"""TL;DR: ``openai/summarize_from_feedback``, config ``comparisons``: summaries of posts, by worker.

Rows: ``info`` {id, post, title, subreddit, …}, ``summaries`` [{text, policy, note}] twice, ``choice``
(0 or 1), ``worker``, ``batch``, ``split``, ``extra``.

As in the experiments of the P-ShareLoRA paper, the clients are the k workers with the most comparisons
(k = 5 unless told otherwise), and everybody's comparisons are cut, in file order, to the number that the
k-th has.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes, people_from_pairs
from penchant.common.data.trl_format import person_name
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared
from penchant.deploy.datasets.sources import HubSource, text_in

__all__ = ["LOADER", "SOURCE", "WORKERS", "prepare"]

SOURCE = HubSource(
    "openai/summarize_from_feedback",
    "comparisons",
    patterns=(
        "comparisons/train*.parquet",
        "train*.parquet",
        "train*.jsonl",
        "comparisons/batch*.json",
        "batch*.json",
    ),
)
WORKERS = 5


def prepare(path: Path | None, sizes: Sizes, seed: int, bad_rows: BadRows, clients: int | None) -> Prepared:
    """The busiest workers' comparisons, equally many of each."""
    log = RowLog(bad_rows)
    comparisons: dict[str, list[Preference]] = defaultdict(list)
    other_splits = 0
    for where, row in SOURCE.rows(path, log):
        if row.get("split") in ("valid1", "valid2"):
            other_splits += 1
            continue
        try:
            comparisons[person_name(row, "worker")].append(comparison(row))
        except DataError as error:
            log.reject(where, error)
    report = log.finish(path or SOURCE.hub_id)
    chosen = busiest(comparisons, WORKERS if clients is None else clients)
    people, shortfalls, _ = people_from_pairs(chosen, sizes, seed)
    caveats = [
        f"TL;DR: the {len(chosen)} busiest of {len(comparisons)} workers, cut to "
        f"{len(next(iter(chosen.values())))} comparisons each.",
        "TL;DR: workers were paid to judge by one rubric; what differs between them is partly noise.",
    ]
    if other_splits:
        caveats.append(f"TL;DR: {other_splits} rows of the splits valid1 and valid2 are not used.")
    return Prepared("tldr", people, shortfalls, caveats, report)


def comparison(row: dict[str, Any]) -> Preference:
    """One row as a preference; the prompt is laid out as in the data set's own code.

    Raises:
        DataError: the row is not of the schema.
    """
    info, summaries, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, dict):
        raise DataError("'info' is missing or not an object")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise DataError("'summaries' must hold two")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise DataError("'choice' must be 0 or 1")
    if not all(isinstance(summary, dict) for summary in summaries):
        raise DataError("'summaries' must hold objects only")
    prompt = (
        f"SUBREDDIT: r/{text_in(info, 'subreddit')}\n\nTITLE: {text_in(info, 'title')}\n\n"
        f"POST: {text_in(info, 'post')}\n\nTL;DR:"
    )
    return Preference(prompt, text_in(summaries[choice], "text"), text_in(summaries[1 - choice], "text"))


def busiest(comparisons: dict[str, list[Preference]], count: int) -> dict[str, list[Preference]]:
    """The ``count`` workers with the most comparisons, each cut to the fewest that one of them has.

    Raises:
        DataError: there are not as many workers.
    """
    if not 1 <= count <= len(comparisons):
        raise DataError(f"{count} clients asked for; TL;DR has {len(comparisons)} workers here")
    ranked = sorted(comparisons, key=lambda worker: -len(comparisons[worker]))[:count]
    fewest = len(comparisons[ranked[-1]])
    return {worker: comparisons[worker][:fewest] for worker in ranked}


LOADER = DatasetLoader(
    name="tldr",
    about="Summaries of Reddit posts, compared by the busiest workers (OpenAI's summarize_from_feedback).",
    prepare=lambda asked: prepare(asked.path, asked.sizes, asked.seed, asked.bad_rows, asked.clients),
    chooses_people=True,
)
