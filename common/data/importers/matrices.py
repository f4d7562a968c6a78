"""Votes and ratings of items in tables: a row for each person, a row for each item, or a row for each vote.

Platforms for deliberation and surveys export them so, Polis's participants-votes among them. Each cell is
handed on as a rating of a single response, so pairs are made of them by the one rule for ratings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from penchant.common.data.importers import votes
from penchant.common.data.importers.choices import Choice, Labels, Tally
from penchant.common.data.preferences import check_text
from penchant.common.data.row_files import RowLog
from penchant.common.data.trl_format import PERSON_FIELDS, SPLIT, TOO_DEEP, LabelColumns, person_name
from penchant.common.errors import DataError
from penchant.common.printable import quoted

__all__ = ["VoteTable", "choices", "vote_table_of"]

Row = Mapping[str, Any]
Located = tuple[str, Row]
Kind = Literal["a row for each person", "a row for each item", "a row for each vote"]

# Names are compared in small letters, without the signs between words.
_PEOPLE = (
    *("person", "worker", "userid", "user", "participant", "participantid", "voter", "voterid"),
    *("respondent", "rater", "annotator", "member"),
)
_ITEMS = ("item", "itemid", "statement", "comment", "commentid", "commentbody", "proposal")
_VOTES = ("vote", "label", "rating", "score", "stars")
_COUNTS = (
    *("groupid", "ncomments", "nvotes", "nagree", "ndisagree", "npass", "timestamp", "datetime"),
    *("votes", "agrees", "disagrees", "passes", "agree", "disagree", "pass"),
)
"""Columns of such tables that hold no votes: what Polis says of a participant or a statement beside them."""
_RESPONSES, _PROMPT = ("chosen", "rejected", "completion"), "prompt"
_WORDS = {"agree": 1, "yes": 1, "yea": 1, "aye": 1, "for": 1, "true": 1, "pass": 0, "abstain": 0}
_WORDS |= {"disagree": -1, "no": -1, "nay": -1, "against": -1, "false": -1}
_EMPTY = ("", "na", "n/a", "nan", "null", "none", "not voting", "absent")
_LEAST = 2  # columns of votes, or there is nothing to compare
_SCALES = (1.0, 5.0, 10.0, 100.0)
"""How far from nought the usual scales of votes go."""
_FAR = 5
"""How many times as far as the scale that most columns keep within a column of votes may go."""
_SHOWN = 5  # names of columns in a note


@dataclass(frozen=True)
class VoteTable:
    """How a table holds votes.

    Attributes:
        kind: what a row is.
        person: the column that names the person; None where people are columns, or nobody is named.
        item: the column that holds the item; None where items are columns.
        vote: the column that holds the vote; None where votes are in many columns.
        split: whether rows say which part of the data they are for.
    """

    kind: Kind
    person: str | None = None
    item: str | None = None
    vote: str | None = None
    split: bool = False

    @property
    def labels(self) -> LabelColumns:
        """What says of a vote, handed on as a rating, whose it is and what for."""
        named = self.vote is None or self.person
        return LabelColumns(PERSON_FIELDS[0] if named else "", split=self.split)

    @property
    def name(self) -> str:
        """What was read, in words."""
        return f"votes on items, {self.kind}"

    def cells(self, row: Row) -> Iterator[tuple[str | None, str, Any]]:
        """A row's cells: person, item and what stands there. DataError when it lacks one of the first two."""
        if self.vote is not None:
            if self.vote not in row:
                raise DataError(f"{self.vote!r} is missing")
            person = None if self.person is None else person_name(row, self.person)
            yield person, person_name(row, str(self.item)), row.get(self.vote)
            return
        own = person_name(row, str(self.person or self.item))
        for column in _voted_on(row, {self.person, self.item}):
            check_text("the name of a column", column)
            if self.item is None:
                yield own, column, row[column]
            else:
                yield column, own, row[column]


def vote_table_of(where: str, row: Row, person_column: str | None = None) -> VoteTable | None:
    """How a table's first row says that it holds votes; None where it is no such table.

    Args:
        where: where the row is.
        row: the first row.
        person_column: the column that names the person, if it is not a usual one.

    Raises:
        DataError: it looks like one, but says neither that a row is a person nor that it is an item.
    """
    if any(name in row for name in _RESPONSES) or (person_column and person_column not in row):
        return None
    person, item, vote = person_column or _named(row, _PEOPLE), _named(row, _ITEMS), _named(row, _VOTES)
    if item is not None and vote is not None:
        made = VoteTable("a row for each vote", person, item, vote, split=SPLIT in row)
        return made if _is_vote(row[vote]) else None
    if (person is not None and item is not None) or _PROMPT in row:
        return None
    named = next((name for name in (person, item, *row) if name is not None and name != SPLIT), None)
    cells = [row[column] for column in _voted_on(row, {named})]
    if len(cells) < _LEAST or not all(map(_is_vote, cells)):
        return None
    if person is not None:
        return VoteTable("a row for each person", person=person, split=SPLIT in row)
    if item is not None:
        return VoteTable("a row for each item", item=item, split=SPLIT in row)
    raise DataError(
        f"{where}: a table of votes, whose first column {quoted(str(named))} doesn't say what a row is; call "
        f"it {PERSON_FIELDS[0]!r} where each row is a person, or {_ITEMS[0]!r} where each row is an item"
    )


def choices(rows: Iterable[Located], tally: Tally, log: RowLog, table: VoteTable) -> Iterator[Choice]:
    """Pairs of the items that one person voted on differently, as `votes.rated` makes them of ratings.

    Votes of nothing but -1, 0 and 1 are thumbs: two that are alike are no tie, and none is stronger. Other
    numbers are ratings.

    Raises:
        DataError: items have no texts, but numbers; or a column goes far beyond the others.
    """
    kept = list(_read(rows, log, table))
    if kept and all(row["completion"].isdecimal() for _, row in kept):
        raise DataError(
            f"{kept[0][0]}: items are called by numbers, of which a model learns nothing; put their texts "
            "in the place of the numbers (of Polis's export, comment-body in comments.csv)"
        )
    if table.vote is None:
        _check_scale(kept, table)
        tally.told += _columns_read(kept, table)
    graded = any(row["rating"] not in (-1, 0, 1) for _, row in kept)
    if not graded:
        kept = [(where, {**row, "label": row["rating"], "rating": None}) for where, row in kept]
    yield from votes.rated(kept, tally, Labels(table.labels, log))


def _column(table: VoteTable) -> str:
    """The field of a vote that is called as the table's column is."""
    return "completion" if table.item is None else PERSON_FIELDS[0]


def _check_scale(kept: Iterable[Located], table: VoteTable) -> None:
    """DataError where a column goes far beyond what most columns keep within: it holds something else, such
    as people's ages, which would win or lose against every vote."""
    farthest: dict[str, tuple[float, str]] = {}
    for where, row in kept:
        column, far = row[_column(table)], abs(row["rating"])
        farthest[column] = max(farthest.get(column, (-1.0, "")), (far, where))
    reaches = sorted(far for far, _ in farthest.values())
    if not reaches:
        return
    most = reaches[len(reaches) // 2]  # more than half of the columns go no farther
    scale = next((end for end in _SCALES if most <= end), most)
    for column, (far, where) in farthest.items():
        if far > _FAR * scale:
            raise DataError(
                f"{where}: the column {quoted(column)} goes far beyond most columns, whose votes keep within "
                f"{0 - most:g} and {most:g}; remove it if it holds no votes; if it does, make the table a "
                "row for each vote"
            )


def _columns_read(kept: Iterable[Located], table: VoteTable) -> list[str]:
    """What is said of which columns were taken for votes."""
    columns = list(dict.fromkeys(row[_column(table)] for _, row in kept))
    if not columns:
        return []
    what = "items" if table.item is None else "people"
    named = ", ".join(map(quoted, columns[:_SHOWN]))
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return [f"columns that are read as {what}: {len(columns)} ({named}{more})"]


def _read(rows: Iterable[Located], log: RowLog, table: VoteTable) -> Iterator[Located]:
    """Every vote as a row of a rated response; rows that can't be used are rejected once."""
    for where, row in rows:
        try:
            found = list(_rated(row, table))
            if not found and table.kind == "a row for each person":
                raise DataError("votes on nothing")
        except DataError as error:
            log.reject(where, error)
        except RecursionError:
            log.reject(where, TOO_DEEP)
        else:
            yield from ((where, one) for one in found)


def _rated(row: Row, table: VoteTable) -> Iterator[dict[str, Any]]:
    beside = {name: row[name] for name in (SPLIT, _PROMPT) if name in row}
    for person, item, cell in table.cells(row):
        number = _number(cell)
        if number is None:
            column = table.vote or (item if table.item is None else person)  # a name, never what a row holds
            raise DataError(
                f"the vote in the column {quoted(column)} must be -1, 0, 1, a rating, or empty, in figures "
                "or as agree, pass and disagree"
            )
        if not math.isnan(number):
            vote = {**beside, PERSON_FIELDS[0]: person, "completion": item, "rating": number}
            table.labels.of(vote)  # which would reject the row once for each of its votes later
            yield vote


def _voted_on(row: Row, named: set[str | None]) -> list[str]:
    """The columns that hold votes: all but those that name the row and those that only count."""
    known = (*_COUNTS, *_PEOPLE, *_ITEMS)
    return [
        column
        for column in row
        if column not in named and column != SPLIT and column and _word(column) not in known
    ]


def _named(row: Row, names: tuple[str, ...]) -> str | None:
    """The column that is called by the first of these names that is there."""
    called = {_word(column): column for column in reversed(list(row))}
    return next((called[name] for name in names if name in called), None)


def _word(text: object) -> str:
    return re.sub(r"[\W_]+", "", str(text).lower())


def _is_vote(cell: object) -> bool:
    return _number(cell) is not None


def _number(cell: object) -> float | None:
    """A vote as a number, NaN where the cell is empty; None when it is no vote."""
    if cell is None:
        return math.nan
    if isinstance(cell, str):
        word = cell.strip().lower()
        if word in _EMPTY:
            return math.nan
        cell = _WORDS.get(word, word)
    if not isinstance(cell, str | int | float):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):  # an integer of JSON may have any length
        return None
    return None if math.isinf(number) else number
