"""Choices in exports of chat programs: ratings of one of several answers to the same message.

A chat is a tree: whoever asks for another answer grows a second branch below their message. A thumb on an
answer says how it compares with its siblings: one with a thumb up is preferred to those without or with a
thumb down, and those without to one with a thumb down.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from penchant.common.data.importers.choices import (
    Choice,
    Labels,
    Tally,
    nearest_lower,
    of_each,
    rejecting,
    seconds,
    together,
    twos,
    typed,
    worded,
)
from penchant.common.data.preferences import Preference, Tie, check_text
from penchant.common.data.trl_format import Label, render, tie_said
from penchant.common.errors import DataError

__all__ = ["chatgpt", "is_chatgpt", "is_librechat", "is_open_webui", "librechat", "open_webui"]

Row = Mapping[str, Any]

_ASSISTANTS = ("assistant", "model", "bot")
_THUMBS = {"thumbsup": 1, "thumbsdown": -1}


@dataclass(frozen=True)
class _Message:
    parent: str | None
    role: str
    text: str
    shown: bool = True

    def __post_init__(self) -> None:
        # Pairs are made when all rows are read, and none can be rejected then.
        check_text("role", self.role)
        check_text("content", self.text)


@dataclass(frozen=True)
class _Rating:
    """A thumb: +1 or -1, and what its row says beside it."""

    score: int
    time: float = 0.0
    label: Label = field(default_factory=Label)


@dataclass(frozen=True)
class _Response:
    """A response that is compared: the place of its branch among its siblings, its thumb, whether that is
    what asks for comparisons here, and whether its branch is compared by it."""

    name: str
    branch: int
    text: str
    score: int
    asks: bool
    is_answer: bool

    def meets(self, other: _Response) -> bool:
        """Whether it is compared with another one: an answer of another branch that says something else."""
        return self.asks and other.is_answer and self.branch != other.branch and self.text != other.text


@dataclass(frozen=True)
class _Pair:
    """Two answers to one message, or to none where `above` is None."""

    above: str | None
    better: _Response
    worse: _Response


class _Chat:
    """The messages of one chat by id."""

    def __init__(self, messages: Mapping[str, _Message]) -> None:
        self._messages = messages
        self._children: dict[str | None, list[str]] = {}
        for name, message in messages.items():
            self._children.setdefault(message.parent, []).append(name)
        self._branches: dict[str, str] = {}

    def choices(self, ratings: Mapping[str, _Rating], label: Label, tally: Tally) -> Iterator[Choice]:
        """Rated answers against the other answers to the same message, in the order of the ratings."""
        siblings: dict[str | None, list[str]] = {}
        for name in ratings:
            if self.has(name) and self._messages[name].text.strip():
                siblings.setdefault(self._messages[self._branch(name)].parent, []).append(name)
            else:
                tally.lost += 1
        order = {name: number for number, name in enumerate(ratings)}

        def place(pair: _Pair) -> tuple[int, int]:
            ways = ((pair.better, pair.worse), (pair.worse, pair.better))
            return min((order[one.name], other.branch) for one, other in ways if one.meets(other))

        pairs = [
            pair for above, rated in siblings.items() for pair in self._pairs(above, rated, ratings, tally)
        ]
        prompts: dict[str | None, str] = {}
        for pair in sorted(pairs, key=place):
            if pair.above not in prompts:
                prompts[pair.above] = _prompt(self._upto(pair.above))
            thumbs = [ratings.get(one.name, _Rating(0)) for one in (pair.better, pair.worse)]
            told = _preference(prompts[pair.above], pair.better.text, pair.worse.text)
            whose = together(label, [thumb.label for thumb in thumbs])
            yield Choice.of(whose, told, max(thumb.time for thumb in thumbs))

    def has(self, name: str) -> bool:
        """Whether there is such a message."""
        return name in self._messages

    def before(self, name: str) -> list[dict[str, str]]:
        """What was said before an answer."""
        return self._upto(self._messages[self._branch(name)].parent)

    def _pairs(
        self, above: str | None, rated: Sequence[str], ratings: Mapping[str, _Rating], tally: Tally
    ) -> list[_Pair]:
        """The pairs of answers to one message; what makes none is counted."""
        branches = {branch: number for number, branch in enumerate(self._children[above])}
        found = {self._answer(branch, ratings): number for branch, number in branches.items()}
        answers = {name: number for name, number in found.items() if name is not None}
        others = {name: branches[self._branch(name)] for name in rated if name not in answers}
        asking = set(rated)
        responses = {
            name: _Response(
                name,
                branch,
                self._messages[name].text,
                ratings[name].score if name in ratings else 0,
                asks=name in asking,
                is_answer=name in answers,
            )
            for name, branch in (answers | others).items()
        }
        tally.alone += _alone([responses[name] for name in rated], [responses[name] for name in answers])
        for score in (1, -1):
            alike = [one for one in responses.values() if one.score == score]
            tally.unsaid += _meetings(alike)
            tally.unsaid -= _meetings([one for one in alike if not one.asks])
            tally.unsaid -= _meetings([one for one in alike if not one.is_answer])
        pairs = nearest_lower({name: one.score for name, one in responses.items()}, tally)
        met = (_Pair(above, responses[better], responses[worse]) for better, worse in pairs)
        return [p for p in met if p.better.meets(p.worse) or p.worse.meets(p.better)]

    def _branch(self, name: str) -> str:
        """The topmost message of an answer: it, or what came before it in the same turn, such as tools. Of
        messages that stand above each other in a ring, one of them."""
        at, path = name, dict[str, None]()
        while at not in self._branches and at not in path:
            path[at] = None
            parent = self._messages[at].parent
            above = self._messages.get(parent) if parent is not None else None
            if parent is None or above is None or above.role not in (*_ASSISTANTS, "tool"):
                break
            at = parent
        top = self._branches.get(at, at)
        self._branches.update(dict.fromkeys(path, top))
        return top

    def _answer(self, branch: str, ratings: Mapping[str, _Rating]) -> str | None:
        """The message of a branch that is compared: the rated one, or the last that says something."""
        found, at, seen = None, branch, set()
        while at not in seen and self._messages[at].role != "user":
            seen.add(at)
            if self._messages[at].role in _ASSISTANTS and self._messages[at].text.strip():
                found = at
                if at in ratings:
                    break
            below = self._children.get(at)
            if not below:
                break
            at = below[-1]
        return found

    def _upto(self, name: str | None) -> list[dict[str, str]]:
        """The messages that lead to one, and that one."""
        path: list[dict[str, str]] = []
        seen: set[str] = set()
        while name is not None and name in self._messages and name not in seen:
            seen.add(name)
            message = self._messages[name]
            if message.text.strip() and message.shown:
                path.append({"role": message.role, "content": message.text})
            name = message.parent
        return path[::-1]


def _alone(rated: Iterable[_Response], answers: Sequence[_Response]) -> int:
    """How many rated responses have no answer of another branch beside them that says something else."""
    said, texts = {one.branch: one.text for one in answers}, Counter(one.text for one in answers)
    return sum(
        len(said) - (one.branch in said) == texts[one.text] - (said.get(one.branch) == one.text)
        for one in rated
    )


def _meetings(responses: Sequence[_Response]) -> int:
    """How many pairs there are of different texts of different branches."""
    alike = twos(one.branch for one in responses) + twos(one.text for one in responses)
    return math.comb(len(responses), 2) - alike + twos((one.branch, one.text) for one in responses)


def _prompt(before: list[dict[str, str]]) -> str:
    return render("prompt", before, ends_with_newline=True)


def _preference(prompt: str, better: str, worse: str, tie: Tie | Literal[""] = "") -> Preference:
    def said(text: str) -> str:
        return render("response", [{"role": "assistant", "content": text}])

    return Preference(prompt, said(better), said(worse), tie)


# --- Open WebUI -----------------------------------------------------------------------------------


def is_open_webui(row: Row) -> bool:
    """A feedback of Open WebUI: Admin panel, Evaluations, Feedbacks, export."""
    data = row.get("data")
    rated = isinstance(data, Mapping) and "rating" in data and isinstance(row.get("meta"), Mapping)
    return rated or (isinstance(data, Mapping) and "snapshot" in row)


@dataclass(frozen=True)
class _Feedback:
    """A thumb on one message of a chat, and the chat; whose: the chat's label and name."""

    whose: tuple[Label, str]
    message: str
    rating: _Rating
    messages: Mapping[str, _Message]


def open_webui(rows: Iterable[tuple[str, Row]], tally: Tally, labels: Labels) -> Iterator[Choice]:
    """Of every feedback with a thumb: the rated message against its siblings in the chat's snapshot."""
    messages: dict[tuple[Label, str], dict[str, _Message]] = {}
    ratings: dict[tuple[Label, str], dict[str, _Rating]] = {}
    for one in of_each(
        rows, labels.log, tally.name, lambda where, row: _feedbacks(where, row, tally, labels)
    ):
        messages.setdefault(one.whose, {}).update(one.messages)
        ratings.setdefault(one.whose, {})[one.message] = one.rating
    for whose, rated in ratings.items():
        yield from _Chat(messages[whose]).choices(rated, whose[0], tally)


def _feedbacks(where: str, row: Row, tally: Tally, labels: Labels) -> Iterator[_Feedback]:
    """The feedback in one row, if it holds a thumb."""
    meta, data = _object(row, "meta"), _object(row, "data")
    chat = _object(_object(_object(_object(row, "snapshot"), "chat"), "chat"), "history")
    found = chat.get("messages")
    if not isinstance(found, Mapping):
        raise DataError("the feedback holds no snapshot of its chat; export it with one")
    score = data.get("rating")
    if isinstance(score, bool) or not isinstance(score, int | float) or not score:
        tally.unsaid += 1
        return
    label = labels.of(where, row, row.get("user_id"))
    if label is None:
        return
    when = seconds(row.get("updated_at") or row.get("created_at"))
    yield _Feedback(
        (replace(label, kind=None), str(meta.get("chat_id"))),
        str(meta.get("message_id")),
        _Rating(1 if score > 0 else -1, when, label),
        {str(name): _open_webui_message(one) for name, one in found.items()},
    )


def _open_webui_message(one: Any) -> _Message:
    one = one if isinstance(one, Mapping) else {}
    parent = one.get("parentId")
    return _Message(
        None if parent is None else str(parent), str(one.get("role", "")), worded(one.get("content"))
    )


# --- ChatGPT --------------------------------------------------------------------------------------


def is_chatgpt(row: Row) -> bool:
    """A row of conversations.json, message_feedback.json or model_comparisons.json."""
    talk = isinstance(row.get("mapping"), Mapping) or ("mapping" in row and "conversation_id" in row)
    return talk or _is_thumb(row) or _is_comparison(row)


def chatgpt(rows: Iterable[tuple[str, Row]], tally: Tally, labels: Labels) -> Iterator[Choice]:
    """Thumbs of message_feedback.json against regenerated answers, and choices of model_comparisons.json."""
    export = _ChatgptExport(tally, labels)
    for where, row in rows:
        with rejecting(where, labels.log, tally.name):
            export.take(where, row)
    export.check()
    for (name, label), ratings in export.thumbs.items():
        if name in export.chats:
            yield from export.chats[name].choices(ratings, label, tally)
        else:
            tally.lost += len(ratings)
    yield from of_each(export.comparisons, labels.log, tally.name, export.compared)


@dataclass
class _ChatgptExport:
    """What the files of an export hold, in whatever order they come.

    conversations: where they are; others: how many rows are none.
    """

    tally: Tally
    labels: Labels
    chats: dict[str, _Chat] = field(default_factory=dict)
    thumbs: dict[tuple[str, Label], dict[str, _Rating]] = field(default_factory=dict)
    comparisons: list[tuple[str, Row]] = field(default_factory=list)
    conversations: list[str] = field(default_factory=list)
    others: int = 0

    def take(self, where: str, row: Row) -> None:
        """Keep what a row holds. DataError where it is none of an export."""
        if "mapping" in row:
            self.conversations.append(where)
            name = str(row.get("conversation_id") or row.get("id"))
            nodes = typed(row, "mapping", dict, "an object")
            self.chats[name] = _Chat({str(k): _chatgpt_message(node) for k, node in nodes.items()})
            return
        self.others += 1
        if "conversation_id" in row and "rating" in row:
            self._rate(where, row)
        elif isinstance(row.get("output"), Mapping):
            self.comparisons.append((where, row))
        else:
            raise DataError("neither a conversation nor a rating nor a comparison of ChatGPT")

    def _rate(self, where: str, row: Row) -> None:
        score = _THUMBS.get(str(row["rating"]).lower().replace("_", ""))
        if score is None:
            self.tally.unsaid += 1
            return
        label = self.labels.of(where, row)
        if label is not None:
            message = str(row.get("message_id") or row.get("id"))
            rating = _Rating(score, seconds(row.get("update_time") or row.get("create_time")), label)
            whose = str(row["conversation_id"]), replace(label, kind=None)
            self.thumbs.setdefault(whose, {})[message] = rating

    def check(self) -> None:
        """DataError where there are conversations and nothing else."""
        if self.conversations and not self.others:
            raise DataError(
                f"{self.conversations[0]}: these conversations hold no rating; give the whole folder of the "
                "export, with message_feedback.json and model_comparisons.json"
            )

    def compared(self, where: str, row: Row) -> Iterator[Choice]:
        """The choice of a comparison, if it can be used."""
        pair = _chatgpt_compared(row, self.chats, self.tally)
        label = None if pair is None else self.labels.of(where, row)
        if pair is not None and label is not None:
            yield Choice.of(label, pair, seconds(row.get("create_time")))


def _chatgpt_compared(row: Row, chats: Mapping[str, _Chat], tally: Tally) -> Preference | None:
    """What a comparison says; None, which is counted, where it can't be used."""
    step = _object(_object(row, "output"), "feedback_step_2")
    rated = step.get("completion_comparison_rating")
    tie = tie_said(rated)
    if rated not in ("new", "original") and tie is None:
        tally.unsaid += 1
        return None
    first = _object(_object(row, "output"), "feedback_step_1")
    turns = {side: step.get(f"{side}_turn") or first.get(f"{side}_turn") for side in ("new", "original")}
    texts = {side: _turn_text(turn) for side, turn in turns.items()}
    chat = chats.get(str(_object(row, "input").get("conversation_id") or row.get("conversation_id")))
    known = [
        name for turn in turns.values() for name in _turn_ids(turn) if chat is not None and chat.has(name)
    ]
    if chat is None or not known or not all(text.strip() for text in texts.values()):
        tally.lost += 1
        return None
    better, worse = ("original", "new") if rated == "original" else ("new", "original")
    if texts[better] == texts[worse]:
        tally.unsaid += 1
        return None
    return _preference(_prompt(chat.before(known[0])), texts[better], texts[worse], tie or "")


def _turn_text(turn: Any) -> str:
    """What a turn of a comparison says in the end: its last message with a text."""
    said = [worded(_object(one, "content")) for one in turn or () if isinstance(one, Mapping)]
    return next((text for text in reversed(said) if text.strip()), "")


def _turn_ids(turn: Any) -> list[str]:
    return [str(one["id"]) for one in turn or () if isinstance(one, Mapping) and "id" in one]


def _is_thumb(row: Row) -> bool:
    return "conversation_id" in row and isinstance(row.get("rating"), str) and "content" in row


def _is_comparison(row: Row) -> bool:
    return isinstance(row.get("output"), Mapping) and "feedback_step_2" in row["output"]


def _chatgpt_message(node: Any) -> _Message:
    node = node if isinstance(node, Mapping) else {}
    message, parent = _object(node, "message"), node.get("parent")
    role = str(_object(message, "author").get("role", ""))
    content = _object(message, "content")
    to_person = message.get("recipient", "all") == "all" and content.get("content_type", "text") in (
        "text",
        "multimodal_text",
    )
    return _Message(
        None if parent is None else str(parent),
        role,
        worded(content) if to_person else "",
        shown=role in ("user", *_ASSISTANTS),
    )


# --- LibreChat ------------------------------------------------------------------------------------


def is_librechat(row: Row) -> bool:
    """A conversation as LibreChat exports it: with its messages, flat or as a tree."""
    return "conversationId" in row and "messages" in row


def librechat(rows: Iterable[tuple[str, Row]], tally: Tally, labels: Labels) -> Iterator[Choice]:
    """Thumbs of a conversation's messages against their regenerations, which have the same parent."""
    rated = of_each(rows, labels.log, tally.name, lambda where, row: _rated_chats(where, row, labels))
    for chat, ratings, label in rated:
        yield from chat.choices(ratings, label, tally)


def _rated_chats(where: str, row: Row, labels: Labels) -> Iterator[tuple[_Chat, dict[str, _Rating], Label]]:
    """The conversation in one row, with its thumbs."""
    found = typed(row, "messages", list, "a list")
    label = labels.of(where, row, row.get("user"))
    if label is None:
        return
    messages: dict[str, _Message] = {}
    ratings: dict[str, _Rating] = {}
    for one in _flat(found):
        name, parent = str(one.get("messageId")), one.get("parentMessageId")
        role = "user" if one.get("isCreatedByUser") else "assistant"
        text = worded(one.get("text")) or worded(one.get("content"))
        messages[name] = _Message(None if parent is None else str(parent), role, text)
        score = _THUMBS.get(str(_object(one, "feedback").get("rating")).lower())
        if score is not None:
            ratings[name] = _Rating(score, seconds(one.get("updatedAt") or one.get("createdAt")), label)
    yield _Chat(messages), ratings, label


def _flat(messages: Iterable[Any]) -> Iterator[Row]:
    """Messages of a tree, each before its answers."""
    waiting = list(messages)[::-1]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield one
            below = one.get("children")
            waiting += list(below)[::-1] if isinstance(below, list) else []


def _object(row: Any, key: str) -> Mapping[str, Any]:
    value = row.get(key) if isinstance(row, Mapping) else None
    return value if isinstance(value, Mapping) else {}
