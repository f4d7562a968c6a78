"""Choices in exports of arenas and labelling tools, and pairs out of ratings of single responses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from penchant.common.data.importers.choices import (
    Choice,
    Labels,
    Tally,
    equal_ones,
    nearest_lower,
    of_each,
    seconds,
    together,
    twos,
    typed,
    worded,
)
from penchant.common.data.preferences import STRONGEST, Preference, Tie, check_text
from penchant.common.data.trl_format import TOO_DEEP, Label, render, tie_said
from penchant.common.errors import DataError

__all__ = [
    "argilla",
    "is_argilla",
    "is_label_studio",
    "is_lm_arena",
    "is_rated",
    "label_studio",
    "lm_arena",
    "rated",
]

Row = Mapping[str, Any]

PROMPTS = ("prompt", "instruction", "question", "input", "query", "context")
"""Names of the field that both responses answer, in the order in which they are looked for."""
_LOGGED_VOTES = ("leftvote", "rightvote", "tievote", "bothbad_vote")
_WINNERS = {"leftvote": 0, "modela": 0, "a": 0, "rightvote": 1, "modelb": 1, "b": 1}
"""Which side won, by the word that says so in small letters, without the signs between words."""
_THUMB = "label"
_SCORES = (_THUMB, "rating", "score", "stars")


def _on_its_own(prompt: str) -> str:
    """A form's prompt, on lines of its own."""
    return f"{prompt}\n" if prompt.strip() and not prompt.endswith("\n") else prompt


# --- LM Arena, FastChat ---------------------------------------------------------------------------


def is_lm_arena(row: Row) -> bool:
    """A line of FastChat's log of votes, or a row of a data set of the arena."""
    return _is_logged(row) or ("winner" in row and "conversation_a" in row)


def _is_logged(row: Row) -> bool:
    """A line of FastChat's log: of a vote on two sides, or of a chat."""
    return "type" in row and ("states" in row or isinstance(row.get("state"), Mapping))


def lm_arena(rows: Iterable[tuple[str, Row]], tally: Tally, labels: Labels) -> Iterator[Choice]:
    """Votes between two conversations that begin alike, and ties; whose: the judge, or the user."""
    return of_each(rows, labels.log, tally.name, lambda where, row: _arena_choices(where, row, tally, labels))


def _arena_choices(where: str, row: Row, tally: Tally, labels: Labels) -> Iterator[Choice]:
    """The choice of one row, if it holds one; what it holds otherwise is counted."""
    if _is_logged(row) and row["type"] not in _LOGGED_VOTES:
        tally.chats += 1
        return
    sides = _arena_sides(row)
    vote = row["type"] if _is_logged(row) else row["winner"]
    if vote in (None, ""):
        tally.unsaid += 1
        return
    winner, tie = _WINNERS.get(_name(str(vote))), tie_said(vote)
    if winner is None and tie is None:
        raise DataError("'winner' must be model_a, model_b, A, B or a tie, or empty where nobody voted")
    shorter = min(map(len, sides))
    common = next((n for n in range(shorter) if sides[0][n] != sides[1][n]), shorter)
    texts = [render("conversation", side[common:]) for side in sides]
    if not all(side[common:] for side in sides) or texts[0] == texts[1]:
        tally.lost += 1
        return
    prompt = render("conversation", sides[0][:common], ends_with_newline=True)
    whose = next((row[key] for key in ("judge", "judge_hash", "user", "user_id", "ip") if row.get(key)), None)
    label = labels.of(where, row, whose)
    if label is not None:
        first = winner or 0
        pair = Preference(prompt, texts[first], texts[1 - first], tie or "")
        yield Choice.of(label, pair, seconds(row.get("tstamp")))


def _arena_sides(row: Row) -> list[list[Any]]:
    """The two conversations of a vote. DataError where they are not there."""
    if not _is_logged(row):
        for name in ("winner", "conversation_a", "conversation_b"):
            if name not in row:
                raise DataError(f"{name!r} is missing")
        return [typed(row, name, list, "a conversation") for name in ("conversation_a", "conversation_b")]
    states = typed(row, "states", list, "a list")
    if len(states) != 2:
        raise DataError("'states' must hold the two sides of a vote")
    return [_fastchat(state) for state in states]


def _fastchat(state: Any) -> list[dict[str, str]]:
    """The messages of one side of the log; it names roles as it likes, the user's first."""
    roles: Any = state.get("roles") or ("user", "assistant") if isinstance(state, Mapping) else ()
    messages = state.get("messages") if isinstance(state, Mapping) else None
    if not isinstance(messages, list) or len(roles) != 2:
        raise DataError("a state without messages; it is no log of votes")
    said = [one for one in messages if isinstance(one, list) and len(one) == 2 and one[1] is not None]
    return [
        {"role": "user" if role == roles[0] else "assistant", "content": worded(text)} for role, text in said
    ]


# --- Argilla --------------------------------------------------------------------------------------


def is_argilla(row: Row) -> bool:
    """A record of Argilla, as `dataset.records.to_json` writes it."""
    return isinstance(row.get("fields"), Mapping) and "responses" in row


def argilla(rows: Iterable[tuple[str, Row]], tally: Tally, labels: Labels) -> Iterator[Choice]:
    """Answers to a label question that names a field or says that there is a tie, or to a ranking of fields;
    by every user."""
    made = of_each(
        rows, labels.log, tally.name, lambda where, row: _argilla_answers(where, row, tally, labels)
    )
    return chain.from_iterable(made)


def _argilla_answers(where: str, row: Row, tally: Tally, labels: Labels) -> Iterator[Iterator[Choice]]:
    """The choices of every answer in a record, which are made when they are asked for: they may be many."""
    fields = _texts(row, "fields")
    responses = typed(row, "responses", dict, "an object")
    answers = [a for some in responses.values() for a in _list(some) if isinstance(a, Mapping)]
    when = seconds(row.get("updated_at"))
    for answer in answers:
        value = answer.get("value")
        both = _sides("", fields) if tie_said(value) else None
        ranks = None if both else _ranked(value, fields)
        if both is None and ranks is None:
            continue  # of another question
        label = labels.of(where, row, answer.get("user_id"))
        if label is None:
            return  # no answer of the row has what the row lacks
        if both is not None:
            yield _tied(fields, both, tie_said(value) or "equal", tally, label, when)
        elif ranks is not None:
            prompt = _on_its_own(_prompt_of(fields, {_name(name) for name in ranks}))
            scores = {fields[name]: -rank for name, rank in ranks.items()}
            # A label says nothing of the fields that it does not name.
            yield _by_rank(prompt, scores, tally, label, when, ties=isinstance(value, list))


def _texts(row: Row, column: str) -> dict[str, str]:
    """The texts of a form's fields, by their names. DataError where it has none, or one is no valid text."""
    texts = {str(name): worded(text) for name, text in typed(row, column, dict, "an object").items()}
    for name, text in texts.items():
        check_text(name, text)
    return texts


def _tied(
    fields: Mapping[str, str],
    both: tuple[str, str],
    tie: Tie,
    tally: Tally,
    label: Label,
    when: float,
) -> Iterator[Choice]:
    """A tie between two fields of a form."""
    first, second = (fields[name] for name in both)
    if not first.strip() or not second.strip():
        tally.lost += 1
    elif first == second:
        tally.unsaid += 1
    else:
        prompt = _on_its_own(_prompt_of(fields, {_name(name) for name in both}))
        yield Choice.of(label, Preference(prompt, first, second, tie), when)


def _ranked(value: Any, fields: Mapping[str, str]) -> dict[str, float] | None:
    """Field -> rank, 1 the best; None when the answer is not about which field is better."""
    if isinstance(value, list) and value and all(isinstance(v, Mapping) and "rank" in v for v in value):
        named = {_field(v.get("value"), fields): v["rank"] for v in value}
        good = all(isinstance(rank, int | float) and math.isfinite(rank) for rank in named.values())
        return (
            {n: float(rank) for n, rank in named.items() if n is not None}
            if None not in named and good
            else None
        )
    best = _field(value, fields)
    if best is None:
        return None
    stem = re.sub(r"(\d+|[ab])$", "", _name(best))
    alike = [name for name in fields if re.sub(r"(\d+|[ab])$", "", _name(name)) == stem]
    return {name: 1.0 if name == best else 2.0 for name in alike}


def _field(value: Any, fields: Mapping[str, str]) -> str | None:
    """The field that an answer's value names, whatever the case and the signs between words."""
    return next((f for f in fields if isinstance(value, str) and _name(f) == _name(value)), None)


def _name(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


def _prompt_of(fields: Mapping[str, str], responses: set[str]) -> str:
    """The field that is answered: the first of the usual names, or the only one that is left."""
    rest = {_name(name): text for name, text in fields.items() if _name(name) not in responses}
    return next(
        (rest[name] for name in PROMPTS if name in rest), next(iter(rest.values())) if len(rest) == 1 else ""
    )


# --- Label Studio ---------------------------------------------------------------------------------


def is_label_studio(row: Row) -> bool:
    """A task of Label Studio with its annotations, in the format JSON."""
    return isinstance(row.get("data"), Mapping) and "annotations" in row


def label_studio(rows: Iterable[tuple[str, Row]], tally: Tally, labels: Labels) -> Iterator[Choice]:
    """Pairwise results: the left or the right text, or a tie; whose: who completed the annotation."""
    return of_each(
        rows, labels.log, tally.name, lambda where, row: _label_studio_choices(where, row, tally, labels)
    )


def _label_studio_choices(where: str, row: Row, tally: Tally, labels: Labels) -> Iterator[Choice]:
    """The choices of one task."""
    data = _texts(row, "data")
    for annotation, result in _pairwise(typed(row, "annotations", list, "a list")):
        label = labels.of(where, row, annotation.get("completed_by"))
        if label is None:
            return  # no annotation of the task has what the task lacks
        value = result.get("value")
        selected = value.get("selected") if isinstance(value, Mapping) else None
        names = _sides(result.get("to_name"), data)
        when = seconds(annotation.get("updated_at") or annotation.get("created_at"))
        tie = tie_said(selected)
        if tie is not None and names is not None:
            yield from _tied(data, names, tie, tally, label, when)
        elif selected not in ("left", "right") and tie is None:
            tally.unsaid += 1
        elif names is None or not all(data[name].strip() for name in names):
            tally.lost += 1
        elif data[names[0]] == data[names[1]]:
            tally.unsaid += 1
        else:
            left, right = (data[name] for name in names)
            better, worse = (left, right) if selected == "left" else (right, left)
            prompt = _on_its_own(_prompt_of(data, {_name(n) for n in names}))
            yield Choice.of(label, Preference(prompt, better, worse), when)


def _pairwise(annotations: Iterable[Any]) -> Iterator[tuple[Row, Row]]:
    """Annotations that were not cancelled, with each of their pairwise results."""
    for annotation in annotations:
        if not isinstance(annotation, Mapping) or annotation.get("was_cancelled"):
            continue
        for result in _list(annotation.get("result")):
            if isinstance(result, Mapping) and result.get("type") == "pairwise":
                yield annotation, result


def _sides(to_name: Any, data: Mapping[str, str]) -> tuple[str, str] | None:
    """The two fields that were compared: those that the tag is tied to, or the only two that are called alike
    but for their end, as text1 and text2 or answer_a and answer_b."""
    tied = [_field(part, data) for part in str(to_name).split(",")]
    if len(tied) == 2 and tied[0] and tied[1]:
        return tied[0], tied[1]
    if {"left", "right"} <= data.keys():
        return "left", "right"
    stems: dict[str, list[str]] = {}
    for name in sorted(data):
        stem, ending = re.match(r"(.*?)[\W_]*(\d+|[abAB])?$", name).groups()  # type: ignore[union-attr]
        if ending:
            stems.setdefault(stem.lower(), []).append(name)
    pairs = [names for names in stems.values() if len(names) == 2]
    return (pairs[0][0], pairs[0][1]) if len(pairs) == 1 else None


# --- ratings of single responses ------------------------------------------------------------------


def is_rated(row: Row) -> bool:
    """A row of TRL's unpaired preferences, or one with a rating in place of its label."""
    return "chosen" not in row and "completion" in row and any(name in row for name in _SCORES)


@dataclass
class _Ratings:
    """One person's ratings of responses to one prompt, by text, and what their rows say beside them; stars:
    whether they are stars, not thumbs."""

    scores: dict[str, float] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)
    stars: bool = False


def rated(rows: Iterable[tuple[str, Row]], tally: Tally, labels: Labels) -> Iterator[Choice]:
    """Of one person's responses to the same prompt, each against those that are rated lower, and ties between
    those with the same number of stars; as many stars more are the choice's strength. Labels are thumbs: two
    that are alike say too little for a tie. What is for another part of the data is compared apart."""
    groups: dict[tuple[Label, str], _Ratings] = {}
    first: str | None = None  # of all columns that rate, the one that is read where a row has it
    for where, row in rows:
        first = first or next((name for name in _SCORES if _is_filled(row.get(name))), None)
        label = labels.of(where, row)
        if label is None:
            continue
        try:
            prompt, text, column = _rated_texts(row, first)
            score = _score(row[column])
        except DataError as error:
            labels.log.reject(where, error)
            continue
        except RecursionError:
            labels.log.reject(where, TOO_DEEP)
            continue
        own = groups.setdefault((replace(label, kind=None), prompt), _Ratings())
        tally.rerated += own.scores.get(text, score) != score
        own.scores[text] = score  # the latest counts
        own.labels[text] = label
        own.stars = own.stars or column != _THUMB
        others = (name for name in _SCORES if name != column and _is_filled(row.get(name)))
        tally.beside |= dict.fromkeys(others, column)
    for (label, prompt), own in groups.items():
        yield from _by_rank(
            prompt, own.scores, tally, label, 0.0, ties=own.stars, graded=own.stars, labels=own.labels
        )


def _is_filled(cell: Any) -> bool:
    """Whether a cell says something; NaN is how tables write an empty one."""
    return cell is not None and cell == cell and not (isinstance(cell, str) and not cell.strip())


def _rated_texts(row: Row, first: str | None) -> tuple[str, str, str]:
    """Prompt and response of a rating, and the column with its score: `first` where the row has it. DataError
    where one is missing."""
    if row.get("completion") is None:
        raise DataError("'completion' is missing")
    prompt, text = _text(row.get("prompt") or "", "prompt"), _text(row["completion"], "completion")
    column = next((name for name in (first, *_SCORES) if name is not None and name in row), None)
    if column is None:
        raise DataError(f"there is no {', '.join(map(repr, _SCORES[:-1]))} or {_SCORES[-1]!r}")
    if not text.strip():
        raise DataError("'completion' is empty")
    return prompt, text, column


def _text(value: Any, name: str) -> str:
    """A text, or a conversation as one. DataError where it is neither, or no valid text."""
    if isinstance(value, list):
        value = render(name, value, ends_with_newline=name == "prompt")
    if not isinstance(value, str):
        raise DataError(f"{name!r} must be a text or a conversation")
    check_text(name, value)
    return value


def _score(value: Any) -> float:
    """A label or a rating as a number; tables write them as words."""
    if isinstance(value, str):
        word = value.strip().lower()
        value = word == "true" if word in ("true", "false") else word
    if isinstance(value, str | bool | int | float):
        try:
            number = float(value)
        except (ValueError, OverflowError):  # an integer of JSON may have any length
            number = math.nan
        if math.isfinite(number):
            return number
    raise DataError("the label must be true, false or a number")


def _by_rank(
    prompt: str,
    scores: Mapping[str, float],
    tally: Tally,
    label: Label,
    when: float,
    *,
    ties: bool,
    graded: bool = False,
    labels: Mapping[str, Label] | None = None,
) -> Iterator[Choice]:
    """Pairs of texts by their scores, the higher one preferred; ties: whether equal scores are ties; graded:
    whether it says how strongly one is preferred by how much its score is higher; labels: what is said beside
    each text, where it is texts that have rows of their own."""

    def choice(pair: Preference) -> Choice:
        if labels is None:
            return Choice.of(label, pair, when)
        return Choice.of(together(label, [labels[pair.chosen], labels[pair.rejected]]), pair, when)

    texts = {text: score for text, score in scores.items() if text.strip()}
    tally.alone += len(texts) == 1
    for better, worse in nearest_lower(texts, tally):
        strength = min(texts[better] - texts[worse], STRONGEST) if graded else None
        yield choice(Preference(prompt, better, worse, strength=strength))
    if not ties:
        tally.unsaid += twos(texts.values())
        return
    for one, other in equal_ones(texts, tally):
        yield choice(Preference(prompt, one, other, "equal"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
