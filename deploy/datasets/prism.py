"""PRISM: ``HannahRoseKirk/prism-alignment``, 1,396 people who talk to models and rate what they say.

Read is the config ``utterances``, one row a response: ``user_id``, ``conversation_id``, ``interaction_id``
(one turn), ``turn`` (from 0), ``within_turn_id``, ``user_prompt``, ``model_response``, ``score`` (1 to 100),
``if_chosen``. In each turn the chosen response is preferred to every other one with a lower score. The
prompt is the conversation so far, along the chosen responses. All of a conversation is on one side of the
split, and conversations are in file order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import BadRows, RowLog
from penchant.common.data.splits import Sizes, people_from_pairs
from penchant.common.data.trl_format import person_name, render
from penchant.common.errors import DataError
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.datasets.prepared import Prepared
from penchant.deploy.datasets.sources import HubSource, number_in, text_in

__all__ = ["LOADER", "SOURCE", "prepare"]

SOURCE = HubSource(
    "HannahRoseKirk/prism-alignment",
    "utterances",
    patterns=("utterances.jsonl", "utterances*.parquet", "utterances/*.parquet"),
)
Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One response of one model."""

    person: str
    conversation: str
    turn: int
    prompt: str
    response: str
    score: float
    chosen: bool


def prepare(path: Path | None, sizes: Sizes, seed: int, bad_rows: BadRows) -> Prepared:
    """Everybody's comparisons, conversation by conversation."""
    log = RowLog(bad_rows)
    conversations: dict[tuple[str, str], list[Utterance]] = defaultdict(list)
    for where, row in SOURCE.rows(path, log):
        try:
            utterance = parse(row)
        except DataError as error:
            log.reject(where, error)
            continue
        conversations[utterance.person, utterance.conversation].append(utterance)
    report = log.finish(path or SOURCE.hub_id)
    pairs: dict[str, list[Preference]] = {}
    conversation_of: dict[Preference, tuple[str, ...]] = {}
    for (person, conversation), utterances in conversations.items():
        found = comparisons(utterances)
        pairs.setdefault(person, []).extend(found)
        conversation_of.update(dict.fromkeys(found, (conversation,)))
    people, shortfalls, _ = people_from_pairs(pairs, sizes, seed, items_of=conversation_of.__getitem__)
    caveats = (
        "PRISM: people chose their own topics, so tastes and topics can't be told apart.",
        "PRISM: most people give about 30 comparisons in 6 conversations; test parts are small.",
    )
    return Prepared("prism", people, shortfalls, caveats, report)


def parse(row: dict[str, Any]) -> Utterance:
    """A row of ``utterances``.

    Raises:
        DataError: it is not of the schema.
    """
    turn, chosen = row.get("turn"), row.get("if_chosen")
    if isinstance(turn, bool) or not isinstance(turn, int):
        raise DataError("'turn' is missing or not a whole number")
    if not isinstance(chosen, bool):
        raise DataError("'if_chosen' must be true or false")
    return Utterance(
        person_name(row, "user_id"),
        person_name(row, "conversation_id"),
        turn,
        text_in(row, "user_prompt"),
        text_in(row, "model_response"),
        number_in(row, "score"),
        chosen,
    )


def comparisons(utterances: list[Utterance]) -> list[Preference]:
    """Of one conversation, turn by turn: the chosen response against each with a lower score."""
    turns: dict[int, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        turns[utterance.turn].append(utterance)
    found: list[Preference] = []
    history: Messages = []
    for _, responses in sorted(turns.items()):
        history.append({"role": "user", "content": responses[0].prompt})
        chosen = next((response for response in responses if response.chosen), None)
        if chosen is None:
            break  # without it, what was said after is unknown
        found += [
            Preference(
                render("prompt", history, ends_with_newline=True),
                _said(chosen.response),
                _said(other.response),
            )
            for other in responses
            if other.score < chosen.score and other.response != chosen.response
        ]
        history.append({"role": "assistant", "content": chosen.response})
    return found


def _said(response: str) -> str:
    return render("response", [{"role": "assistant", "content": response}])


LOADER = DatasetLoader(
    name="prism",
    about="People who talk to models and rate what they say (PRISM).",
    prepare=lambda asked: prepare(asked.path, asked.sizes, asked.seed, asked.bad_rows),
)
