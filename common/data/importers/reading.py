"""Choices from files, whoever wrote them: TRL's rows, and exports of the programs that people choose in."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penchant.common.data.importers import chats, matrices, votes
from penchant.common.data.importers.choices import Choice, Labels, Tally, settled
from penchant.common.data.preferences import Preference
from penchant.common.data.row_files import PARTS, RowLog, data_files, read_rows
from penchant.common.data.trl_format import (
    SPLIT,
    UNREAD_COLUMNS,
    USUAL_COLUMNS,
    AskedColumns,
    Labelled,
    collect_preferences,
    renamed,
)
from penchant.common.errors import DataError
from penchant.common.printable import quoted

__all__ = ["FORMATS", "Format", "Found", "choices_of_rows", "read_choices"]

Row = Mapping[str, Any]
Located = tuple[str, Row]
Bounded = Callable[[Iterator[Choice]], Iterator[Choice]]


@dataclass(frozen=True)
class Format:
    """One program's export: how it is called, how a row of it is known, and how choices are taken from it."""

    name: str
    recognises: Callable[[Row], bool]
    choices: Callable[[Iterable[Located], Tally, Labels], Iterator[Choice]]


FORMATS = (
    Format("feedback of Open WebUI", chats.is_open_webui, chats.open_webui),
    Format("an export of ChatGPT", chats.is_chatgpt, chats.chatgpt),
    Format("conversations of LibreChat", chats.is_librechat, chats.librechat),
    Format("votes of LM Arena", votes.is_lm_arena, votes.lm_arena),
    Format("records of Argilla", votes.is_argilla, votes.argilla),
    Format("tasks of Label Studio", votes.is_label_studio, votes.label_studio),
)
RATED = "ratings of single responses"
_CHATGPT = re.compile(r"conversations(-\d+)?\.json|message_feedback\.json|model_comparisons\.json")
"""The files of ChatGPT's export that hold choices, or what they are about."""
NAMED_FILES = 5


@dataclass(frozen=True)
class Found:
    """Choices, oldest first, and what must be said of how they were read; unused: of these notes those that
    say of what was read that nothing came of it."""

    labelled: list[Labelled]
    notes: list[str]
    unused: list[str] = field(default_factory=list)

    @property
    def people(self) -> list[str]:
        """Everybody who is named, in order."""
        return list(dict.fromkeys(row.person for row in self.labelled if row.person is not None))

    def of(self, person: str | None) -> list[Preference]:
        """The choices of one person; everybody's for None."""
        return [row.preference for row in self.labelled if person is None or row.person == person]


def read_choices(
    path: Path,
    log: RowLog,
    *,
    asked: AskedColumns = USUAL_COLUMNS,
    columns: Mapping[str, str] | None = None,
) -> Found:
    """Choices of a file, or of all files of a folder, whoever wrote them.

    A folder's files that are called after the parts of a data set (`FolderFiles.parts`) say which part their
    rows belong to, unless the rows say it themselves. Arguments and errors as `choices_of_rows`; also
    DataError when there is nothing to read.
    """
    files = data_files(path)
    own = tuple(file for file in files.read if path.is_dir() and _CHATGPT.fullmatch(file.name))
    export = any(file.name.startswith("conversations") for file in own)
    read = own if export else files.read
    parts = {} if export else files.parts(path)
    rows = (located for file in read for located in _in_part(read_rows([file], log), parts.get(file)))
    found = choices_of_rows(rows, log, asked=asked, columns=columns)
    notes = found.notes
    if parts:
        counts = Counter(parts.values())
        named = ", ".join(f"{counts[part]} for {part}" for part in PARTS if counts[part])
        notes.append(f"the names of the files say which part they are: {named}")
    # Of an export's folder, whose pictures are many, those that could have held choices.
    unread = [file for file in files.read if file not in own] if export else files.unread
    if unread:
        shown = ", ".join(file.name for file in unread[:NAMED_FILES])
        more = f" and {len(unread) - NAMED_FILES} more" if len(unread) > NAMED_FILES else ""
        notes.append(f"files that are not read: {shown}{more}")
    return found


def choices_of_rows(
    rows: Iterable[Located],
    log: RowLog,
    *,
    asked: AskedColumns = USUAL_COLUMNS,
    columns: Mapping[str, str] | None = None,
    bounded: Bounded = iter,
) -> Found:
    """Choices from rows in TRL's format or of a known program, which the first row decides.

    Args:
        rows: where each is, and the row.
        log: where bad rows are rejected.
        asked: the columns that name the person, if it is not a usual one, and the kind.
        columns: {the name that is looked for: the column that holds it}.
        bounded: passes on the choices that a program's rows make, while they are made, and raises where they
            are too many; rows in TRL's format make one each.

    Raises:
        DataError: the export holds no choices at all, or a table of votes is not what it looks like.
    """
    tally, pictured = Tally(), Counter[str]()
    rows = _without_pictures(renamed(rows, columns, log) if columns else rows, pictured)
    first = next(rows, None)
    if first is None:
        return Found([], [])
    labelled = _labelled(*first, itertools.chain([first], rows), log, asked, tally, bounded)
    tally.count(row.preference for row in labelled)
    notes = tally.lines()
    if pictured:
        columns_met = ", ".join(repr(name) for name in pictured)
        notes.append(f"only texts are read: what is in the column {columns_met} is not")
    return Found(labelled, notes, tally.unused())


def _labelled(
    where: str,
    first: Row,
    rows: Iterable[Located],
    log: RowLog,
    asked: AskedColumns,
    tally: Tally,
    bounded: Bounded,
) -> list[Labelled]:
    form = next((form for form in FORMATS if form.recognises(first)), None)
    if form is not None:
        tally.name = form.name
        labels = Labels(asked.among(first, usual=False), log)  # programs name people in their own ways
        return settled(bounded(form.choices(rows, tally, labels)), tally)
    if votes.is_rated(first):
        tally.name = RATED
        return settled(bounded(votes.rated(rows, tally, Labels(asked.among(first), log))), tally)
    table = matrices.vote_table_of(where, first, asked.person or None)
    if table is not None:
        if asked.kind:
            raise DataError(
                f"{where}: a table of votes has no kinds of choices, which the column {quoted(asked.kind)} "
                "is to say; go by people"
            )
        tally.name = table.name
        return settled(bounded(matrices.choices(rows, tally, log, table)), tally)
    return collect_preferences(rows, log, asked)


def _in_part(rows: Iterable[Located], part: str | None) -> Iterator[Located]:
    """Rows that say which part they belong to; what a row says itself comes first."""
    return ((where, row if part is None else {SPLIT: part, **row}) for where, row in rows)


def _without_pictures(rows: Iterable[Located], met: Counter[str]) -> Iterator[Located]:
    """The same rows, and in `met` the columns that show more than text."""
    for where, row in rows:
        met.update(name for name in UNREAD_COLUMNS if row.get(name))
        yield where, row
