"""Rows of files, alone or in a folder: JSON lines, JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, cast

from penchant.common.data.preferences import kind_of
from penchant.common.errors import DataError
from penchant.common.printable import MOST_QUOTED, one_line, quoted

__all__ = [
    "IN_MEMORY",
    "NEEDED",
    "PARTS",
    "SUFFIXES",
    "BadRow",
    "BadRows",
    "FileInMemory",
    "FolderFiles",
    "ReadReport",
    "RowLog",
    "data_files",
    "is_data_file",
    "part_named",
    "read_rows",
    "rows_of_json",
    "rows_of_memory",
]

BadRows = Literal["refuse", "skip"]
Rows = Iterator[tuple[str, "dict[str, Any] | str"]]  # where a row is, and the row or what is wrong with it

PARQUET = ".parquet"
_LINES, _JSON, _TABLES = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv")
SUFFIXES = (*(s + gz for s in (*_LINES, *_JSON, *_TABLES) for gz in ("", ".gz")), PARQUET)
"""How the names of files that can be read end, in whatever case."""
IN_MEMORY = tuple(suffix for suffix in SUFFIXES if suffix != PARQUET)
"""How those end that can be read without a disk."""
UNPACKED_MOST = 64 << 20  # bytes that a packed file in memory may come to
_ABOUT = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
"""What the Hugging Face hub keeps beside a data set; it holds no rows."""
_WORDS_ONLY = (".md", ".txt", ".html")  # about the data, as everybody who looks at a folder sees
_WRAPPED = ("data", "rows", "records", "examples")
NEEDED = ("chosen", "rejected")
"""The columns that no row can do without."""
SHOWN_BAD_ROWS = 5
SHOWN_COLUMNS = 12
CELL_MOST = 1 << 30  # characters of one cell of a table
_SEPARATORS = ",;\t"
SAMPLED_ROWS = 20  # by which a table's separator is known
COLUMNS_MOST = 1000  # of a table: a row takes as many, however short it is

PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The parts of a data set, and the words that name them in a column or a file's name."""


# --- what was read --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used: where it is (``file:line``) and why; it never quotes the row. lacks: the
    column that it would need and doesn't have at all, if that is why."""

    where: str
    reason: str
    lacks: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What reading found: rows met, and those that could not be used."""

    rows: int
    bad: tuple[BadRow, ...] = ()

    @property
    def kept(self) -> int:
        return self.rows - len(self.bad)

    def summary(self) -> str:
        """One line: the count of bad rows, and the first few of them."""
        shown = "; ".join(str(row) for row in self.bad[:SHOWN_BAD_ROWS])
        more = f"; and {len(self.bad) - SHOWN_BAD_ROWS} more" if len(self.bad) > SHOWN_BAD_ROWS else ""
        return f"{len(self.bad)} of {self.rows} rows can't be used: {shown}{more}"


class RowLog:
    """Counts rows and names the bad ones; :meth:`finish` gives the report, or refuses.

    Args:
        bad_rows: whether a bad row refuses all.
        most: rows that are read at most; None for any number.
    """

    def __init__(self, bad_rows: BadRows = "refuse", most: int | None = None) -> None:
        if bad_rows not in ("refuse", "skip"):
            raise DataError(f"bad_rows is {bad_rows!r}; it must be 'refuse' or 'skip'")
        self._refuse = bad_rows == "refuse"
        self._most = most
        self._count = 0
        self._bad: list[BadRow] = []
        self._columns: tuple[str, ...] = ()

    def met(self) -> None:
        """Count a row, good or bad. DataError when there are too many."""
        self._count += 1
        if self._most is not None and self._count > self._most:
            raise DataError(f"there are more than {self._most} rows; give fewer at a time")

    def reject(
        self, where: str, reason: str | DataError, *, lacks: str = "", row: Mapping[str, Any] | None = None
    ) -> None:
        """Note that a row, already counted, can't be used; lacks: as in `BadRow`, of a row that is given."""
        self._bad.append(BadRow(where, str(reason), lacks))
        self._columns = self._columns or tuple(row or ())

    def finish(self, source: str | Path) -> ReadReport:
        """The report on everything read.

        Raises:
            DataError: bad rows are refused and there are some, or no row is left.
        """
        report = ReadReport(self._count, tuple(self._bad))
        if report.bad and not report.kept:
            raise self._none_left(source, report)
        if report.bad and self._refuse:
            remedy = f"{report.summary()}; correct them, or skip them"
            raise DataError(f'{remedy} (bad_rows="skip")', on_command_line=f"{remedy} (--skip-bad-rows)")
        if not report.kept:
            raise DataError(f"{source}: nothing to use, it has no rows")
        return report

    def _none_left(self, source: str | Path, report: ReadReport) -> DataError:
        """Why no row is left, where there were some: to skip bad rows would not help."""
        begin = "" if self._refuse else f"{source}: nothing to use, "
        lacking = {row.lacks for row in report.bad}
        column = lacking.pop() if len(lacking) == 1 else ""
        first, count = report.bad[0], report.rows
        if not column:
            one = count > 1 and len({row.reason for row in report.bad}) == 1
            told = f"{count} of {count} rows can't be used, all for one reason: {first}"
            return DataError(f"{begin}{told if one else report.summary()}; correct them")
        alike = ", in this row as in all others" if count > 1 else ""
        said = (
            f"{begin}{count} of {count} rows can't be used: {first.where}: {first.reason}{alike}; "
            f"there are the columns {_named_columns(self._columns)}"
        )
        if len(self._columns) == 1 and column in self._columns[0].casefold():
            return DataError(f"{said}; cells of a table are separated by commas, semicolons or tabs")
        if column not in NEEDED:
            return DataError(f"{said}; name one of these")
        names = _meant(self._columns, column)
        written = ",".join(f"{name}={own}" for name, own in names.items())
        return DataError(
            f"{said}; name the one that holds it (columns={names!r})",
            on_command_line=f"{said}; name the one that holds it (--columns {written})",
        )


def _named_columns(columns: Sequence[str]) -> str:
    """The names of columns in one line."""
    shown = ", ".join(map(quoted, columns[:SHOWN_COLUMNS]))
    return shown + (f" and {len(columns) - SHOWN_COLUMNS} more" if len(columns) > SHOWN_COLUMNS else "")


def _meant(columns: Sequence[str], lacking: str) -> dict[str, str]:
    """{the name that is looked for: the column that may be meant}: of the one that is lacking, and of those
    that are there in other letters."""
    alike = {own.strip().casefold(): own for own in columns if one_line(own, MOST_QUOTED) == own}
    usual = (name for name in ("person", "prompt", *NEEDED) if name not in columns)
    return {name: alike.get(name, "COLUMN") for name in usual if name in alike or name == lacking}


# --- which files ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The files of a path that hold rows, in the order of their names, and those that are no such files."""

    read: tuple[Path, ...]
    unread: tuple[Path, ...] = ()

    def parts(self, path: Path) -> dict[Path, str]:
        """Which part of the data each file is, where the names of a folder's files tell parts apart: one is
        called after the validation or the test part, and another one is not. Files that are called after no
        part are for training. Empty where names tell nothing."""
        named = {
            file: part_named(" ".join(file.relative_to(path).parts)) for file in self.read if file != path
        }
        told = {part or "train" for part in named.values()}
        return {file: part or "train" for file, part in named.items()} if len(told) > 1 else {}


def is_data_file(name: str) -> bool:
    """Whether a file is called as one that can be read."""
    return name.lower().endswith(SUFFIXES)


def part_named(text: str) -> str | None:
    """The one part that the words of a name speak of, as "test" in "test-00000-of-00001.parquet"."""
    words = set(re.split(r"[\W\d_]+", text.lower()))
    found = [part for part, names in PARTS.items() if words & set(names)]
    return found[0] if len(found) == 1 else None


def data_files(path: Path) -> FolderFiles:
    """A file, or all that a folder holds at any depth; hidden files and the hub's own notes are left out.

    Raises:
        DataError: there is no such file, or none that can be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        read = tuple(file for file in files if is_data_file(file.name) and file.name not in _ABOUT)
        other = (f for f in files if not is_data_file(f.name) and f.name not in _ABOUT)
        unread = tuple(f for f in other if f.suffix.lower() not in _WORDS_ONLY and f.suffix)
        if not read:
            raise DataError(f"{path} holds no {', '.join(SUFFIXES)} file")
        return FolderFiles(read, unread)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if not is_data_file(path.name):
        raise DataError(f"{path} must end in {' or '.join(SUFFIXES)}")
    return FolderFiles((path,))


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


# --- rows -----------------------------------------------------------------------------------------


def read_rows(path: str | Path | Sequence[Path], log: RowLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of files: where each is (``file:line``, or ``file:row``, from 1) and its columns.

    ``path`` is one file, a list of them, or a folder (see :func:`data_files`). A line that is not a row is
    rejected in ``log``; blank lines of JSON lines don't count.

    Raises:
        DataError: there is no such file, its suffix is unknown, it isn't what it is called after, or Parquet
            is met without pyarrow.
    """
    files = data_files(Path(path)).read if isinstance(path, str | Path) else tuple(path)
    for file in files:
        yield from _logged(_rows_of(file), log)


@dataclass(frozen=True, slots=True)
class FileInMemory:
    """A file that was handed over and lies on no disk: its name, and its bytes."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


def rows_of_memory(file: FileInMemory, log: RowLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of such a file, as `read_rows` gives those of one on a disk.

    No Parquet, which may hold far more than its bytes say; of what gzip packed, `UNPACKED_MOST` bytes.

    Raises:
        DataError: its suffix is another one, it isn't what it is called after, or it is larger unpacked.
    """
    if not file.name.lower().endswith(IN_MEMORY):
        raise DataError(f"{file.name} must end in {' or '.join(IN_MEMORY)}")
    if file.name.lower().endswith(".gz"):
        file = replace(file, data=_unpacked(file))
    yield from _logged(_rows_of(file), log)


def _unpacked(file: FileInMemory) -> bytes:
    try:
        with gzip.open(io.BytesIO(file.data)) as opened:
            data = opened.read(UNPACKED_MOST + 1)
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{file.name} can't be unpacked; create it again") from None
    if len(data) > UNPACKED_MOST:
        raise DataError(f"{file.name} is larger than {UNPACKED_MOST >> 20} MiB unpacked; split it")
    return data


def rows_of_json(data: bytes, log: RowLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSON document, or of JSON lines, as of a file called .json: where each is (``row 1``), and
    its columns. What is not a row is rejected in ``log``."""
    yield from _logged(((f"row {number}", row) for number, row in enumerate(_rows_in(data), start=1)), log)


def _logged(found: Rows, log: RowLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows among what was found: all of it is counted, and what is none is rejected."""
    for where, row in found:
        log.met()
        if isinstance(row, str):
            log.reject(where, row)
        else:
            yield where, row


def _rows_in(data: bytes) -> Iterator[dict[str, Any] | str]:
    text = data.removeprefix(b"\xef\xbb\xbf").strip()
    try:
        document = json.loads(text.decode("utf-8")) if text else []
    except (ValueError, RecursionError):
        yield from (_json_object(line) for line in text.splitlines() if line.strip())
        return
    for row in _unwrapped(document):
        yield _object(row)


def _rows_of(file: Path | FileInMemory) -> Rows:
    name = file.name.lower().removesuffix(".gz")
    if isinstance(file, Path) and name.endswith(PARQUET):
        return _parquet_rows(file)
    if name.endswith(_TABLES):
        return _table_rows(file, "\t" if name.endswith(".tsv") else "")
    return _document_rows(file) if name.endswith(_JSON) else _jsonl_rows(file)


def _opened(file: Path | FileInMemory) -> BinaryIO:
    if isinstance(file, FileInMemory):
        return io.BytesIO(file.data)
    return cast(BinaryIO, gzip.open(file)) if file.name.lower().endswith(".gz") else file.open("rb")


def _jsonl_rows(file: Path | FileInMemory) -> Rows:
    number = 0
    try:
        with _opened(file) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", _json_object(line)
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{file} can't be read after line {number}; create it again") from None


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with the line."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return _object(row)


def _object(row: object) -> dict[str, Any] | str:
    """A value if it is an object, or what it is instead."""
    return row if isinstance(row, dict) else f"not a JSON object but {kind_of(row)}"


def _document_rows(file: Path | FileInMemory) -> Rows:
    """Rows of a file called .json: JSON lines, one array of objects, or one object over several lines."""
    try:
        with _opened(file) as opened:
            data = opened.read().removeprefix(b"\xef\xbb\xbf")
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{file} can't be read; create it again") from None
    try:
        document = json.loads(data.decode("utf-8")) if data.strip() else []
    except (ValueError, RecursionError):
        yield from _jsonl_rows(file)  # several objects, or what is none: lines, of which the bad are named
        return
    for number, row in enumerate(_unwrapped(document), start=1):
        yield f"{file}:{number}", _object(row)


def _unwrapped(document: Any) -> list[Any]:
    """The rows of a document: an array's, those that an object with nothing else in it holds, or itself."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        return [document]
    inner = [document[key] for key in _WRAPPED if isinstance(document.get(key), list)]
    return inner[0] if len(inner) == 1 and len(document) == 1 else [document]


def _table_rows(file: Path | FileInMemory, separator: str) -> Rows:
    """Rows of a table with a header; without a separator, the one that its first rows agree on."""
    csv.field_size_limit(CELL_MOST)
    number = 0
    try:
        with _opened(file) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
            table = csv.DictReader(text, delimiter=separator or _separator(text))
            table.fieldnames = _header(file, table.fieldnames or ())
            for number, row in enumerate(table, start=1):
                extra = row.pop(None, None)
                yield f"{file}:{number}", "more cells than the header has" if extra else row
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        after = f" after row {number}" if number else ""
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "create it again"
        raise DataError(f"{file} can't be read{after}; {reason}") from None


def _separator(text: TextIO) -> str:
    """The separator by which most of the first rows have as many cells as the header, and that more than one;
    of several, the one by which it has most. Cells in quotes, and texts, may hold any of them."""

    def agreeing(separator: str) -> tuple[bool, float, int]:
        text.seek(0)
        first = itertools.islice(csv.reader(text, delimiter=separator), 1 + SAMPLED_ROWS)
        try:
            header, *rows = (len(row) for row in first)
        except (ValueError, csv.Error):  # no row; or what can't be read, which is told when it is
            return False, 0.0, 0
        filled = [cells for cells in rows if cells]
        return header > 1, filled.count(header) / max(len(filled), 1), header

    found = max(_SEPARATORS, key=agreeing)
    text.seek(0)
    return found


def _header(file: Path | FileInMemory, cells: Sequence[str]) -> list[str]:
    """The names of a table's columns. DataError when there are too many, or two are called alike."""
    if len(cells) > COLUMNS_MOST:
        raise DataError(f"{file} has {len(cells)} columns; at most {COLUMNS_MOST} are read")
    names = [cell.strip() for cell in cells]
    twice = [name for name, times in Counter(names).items() if name and times > 1]
    if twice:
        raise DataError(
            f"{file} has {names.count(twice[0])} columns called {quoted(twice[0])}; give each its own name"
        )
    return names


def _parquet_rows(file: Path) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{file} is Parquet, which needs pyarrow: pip install 'penchant[simulate]'") from None
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (pyarrow.ArrowException, OSError):
        raise DataError(f"{file} can't be read as Parquet after row {number}; create it again") from None
