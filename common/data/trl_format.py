"""Preferences in TRL's format: rows of JSONL and Parquet files, plain or conversations."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penchant.common.data.preferences import Preference, check_text, kind_of
from penchant.common.errors import DataError

__all__ = [
    "PERSON_FIELDS",
    "BadRow",
    "BadRows",
    "Labelled",
    "ReadReport",
    "RowLog",
    "collect_preferences",
    "extract_prompt",
    "parse_preference",
    "person_name",
    "read_preferences",
    "read_rows",
    "render",
    "write_jsonl",
]
BadRows = Literal["refuse", "skip"]
PERSON_FIELDS = ("person", "worker", "user_id")
"""Columns that name the person, in the order in which they are looked for."""
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".json")
PARQUET_SUFFIX = ".parquet"
SHOWN_BAD_ROWS = 5


def parse_preference(row: Mapping[str, Any]) -> Preference:
    """A preference from one TRL row; other columns are left alone.

    Raises:
        DataError: says what is wrong with the row, without quoting it.
    """
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise DataError(f"{name!r} is missing")
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if _is_conversation(chosen) != _is_conversation(rejected):
        raise DataError("one of 'chosen' and 'rejected' is a text and the other a conversation")
    # As in TRL: a prompt of another kind than the responses is not used; they hold it themselves.
    if prompt is None or _is_conversation(prompt) != _is_conversation(chosen):
        prompt, chosen, rejected = extract_prompt(chosen, rejected)
    if not _is_conversation(chosen):
        return Preference(prompt, chosen, rejected)
    return Preference(
        render("prompt", prompt, ends_with_newline=True),
        render("chosen", chosen),
        render("rejected", rejected),
    )


def extract_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split two texts, or two lists of messages, into common beginning and rests.

    The rule is TRL's ``extract_prompt``: cut at the first difference; a space just before it goes to
    the responses; when one is the beginning of the other, cut before its last element, so that no
    rest is empty. (TRL looks at index -1 when the very first characters differ; here the prompt is
    then empty.)

    Returns:
        (prompt, rest of chosen, rest of rejected), of the types given.
    """
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(response, list):
            check_text(name, response)
    shorter = min(len(chosen), len(rejected))
    cut = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter - 1)
    cut = max(cut, 0)
    if cut > 0 and chosen[cut] != rejected[cut] and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def render(name: str, messages: Any, *, ends_with_newline: bool = False) -> str:
    r"""Messages as one text, independent of any model's chat template.

    ``[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]`` becomes
    ``"user: Hi\nassistant: Hello"``. A prompt ends with a newline, so that prompt + response is again
    one line a message. ``name`` is the field's, for messages of errors.
    """
    if not isinstance(messages, list):
        raise DataError(f"{name!r} must be a conversation, not {kind_of(messages)}")
    lines = [f"{_message_text(name, message, 'role')}: {_content(name, message)}" for message in messages]
    return "".join(line + "\n" for line in lines) if ends_with_newline else "\n".join(lines)


def _content(name: str, message: object) -> str:
    """A message's text; content in parts, as of multimodal rows, is joined if every part is text."""
    parts = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(parts, list):
        return _message_text(name, message, "content")
    if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
        raise DataError(f"{name!r} has a message with parts other than text")
    return "".join(_message_text(name, part, "text") for part in parts)


def _message_text(name: str, message: object, key: str) -> str:
    if not isinstance(message, Mapping):
        raise DataError(f"{name!r} has a message that is {kind_of(message)}, not an object")
    value = message.get(key)
    if not isinstance(value, str):
        raise DataError(f"{name!r} has a message whose {key!r} must be a string, not {kind_of(value)}")
    return value


def _is_conversation(value: object) -> bool:
    return isinstance(value, list)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used: where it is (``file:line``) and why; it never quotes the row."""

    where: str
    reason: str

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


@dataclass(frozen=True, slots=True)
class Labelled:
    """A preference and who has it; ``person`` is None where the data names nobody."""

    person: str | None
    preference: Preference


class RowLog:
    """Counts rows and names the bad ones; :meth:`finish` gives the report, or refuses."""

    def __init__(self, bad_rows: BadRows = "refuse") -> None:
        if bad_rows not in ("refuse", "skip"):
            raise DataError(f"bad_rows is {bad_rows!r}; it must be 'refuse' or 'skip'")
        self._refuse = bad_rows == "refuse"
        self._count = 0
        self._bad: list[BadRow] = []

    def met(self) -> None:
        """Count a row, good or bad."""
        self._count += 1

    def reject(self, where: str, reason: str | DataError) -> None:
        """Note that a row, already counted, can't be used."""
        self._bad.append(BadRow(where, str(reason)))

    def finish(self, source: str | Path) -> ReadReport:
        """The report on everything read.

        Raises:
            DataError: bad rows are refused and there are some, or no row is left.
        """
        report = ReadReport(self._count, tuple(self._bad))
        if report.bad and self._refuse:
            remedy = f"{report.summary()}; correct them, or skip them"
            raise DataError(f'{remedy} (bad_rows="skip")', on_command_line=f"{remedy} (--skip-bad-rows)")
        if not report.kept:
            reason = report.summary() if report.bad else "it has no rows"
            raise DataError(f"{source}: nothing to use, {reason}")
        return report


def read_rows(path: str | Path | Sequence[Path], log: RowLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of JSON-lines and Parquet files: where each is (``file:line``, from 1) and its columns.

    ``path`` is one file, a list of them, or a folder whose files, at any depth, are read in the order
    of their names. A line that is not a row is rejected in ``log``; blank lines of JSON lines don't count.

    Raises:
        DataError: there is no such file, its suffix is unknown, it isn't Parquet though it is called
            so, or Parquet is met without pyarrow.
    """
    files = _data_files(Path(path)) if isinstance(path, str | Path) else tuple(path)
    for file in files:
        read = _parquet_rows if file.suffix == PARQUET_SUFFIX else _jsonl_rows
        for where, row in read(file):
            log.met()
            if isinstance(row, str):
                log.reject(where, row)
            else:
                yield where, row


def read_preferences(
    path: str | Path, *, person_column: str | None = None, bad_rows: BadRows = "refuse"
) -> tuple[list[Labelled], ReadReport]:
    """Preferences from a file or folder in TRL's format, in file order.

    Raises:
        DataError: no such file; bad rows, unless skipped; or no row left. See :func:`read_rows`,
            :func:`collect_preferences`.
    """
    log = RowLog(bad_rows)
    return collect_preferences(read_rows(path, log), log, person_column), log.finish(path)


def collect_preferences(
    rows: Iterable[tuple[str, Mapping[str, Any]]], log: RowLog, person_column: str | None = None
) -> list[Labelled]:
    """Preferences from TRL rows; bad ones are rejected in ``log``.

    Without ``person_column``, the first row decides which of :data:`PERSON_FIELDS` names the person;
    if it has none, nobody is named. Once a column is decided on, a row without it is a bad one.
    """
    found: list[Labelled] = []
    column, decided = person_column, person_column is not None
    for where, row in rows:
        if not decided:
            column, decided = next((name for name in PERSON_FIELDS if name in row), None), True
        try:
            person = None if column is None else person_name(row, column)
            found.append(Labelled(person, parse_preference(row)))
        except DataError as error:
            log.reject(where, error)
    return found


def person_name(row: Mapping[str, Any], column: str) -> str:
    """The person a row names: a text, or a whole number, as a text.

    Raises:
        DataError: the column is missing, empty, or of another type.
    """
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise DataError(f"{column!r} is missing")
    check_text(column, value)
    name = str(value).strip()
    if not name:
        raise DataError(f"{column!r} is empty")
    return name


def write_jsonl(
    path: str | Path, rows: Iterable[Labelled | Preference], *, person_column: str = "person"
) -> None:
    """Write preferences as JSON lines, standard format with explicit prompt; reading gives them back."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            labelled = row if isinstance(row, Labelled) else Labelled(None, row)
            pair = labelled.preference
            columns = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
            if labelled.person is not None:
                columns = {person_column: labelled.person, **columns}
            file.write(json.dumps(columns, ensure_ascii=False) + "\n")


def _data_files(path: Path) -> tuple[Path, ...]:
    suffixes = (*JSONL_SUFFIXES, PARQUET_SUFFIX)
    if path.is_dir():
        files = tuple(sorted(f for f in path.rglob("*") if f.name.endswith(suffixes) and f.is_file()))
        if not files:
            raise DataError(f"{path} holds no {', '.join(suffixes)} file")
        return files
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if not path.name.endswith(suffixes):
        raise DataError(f"{path} must end in {' or '.join(suffixes)}")
    return (path,)


def _jsonl_rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
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
    return row if isinstance(row, dict) else f"not a JSON object but {kind_of(row)}"


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
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
