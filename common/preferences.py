"""Preferences: what they are, and reading and writing them in TRL's format.

The format is the one of TRL's `preference datasets
<https://huggingface.co/docs/trl/dataset_formats#preference>`_: rows with ``chosen``, ``rejected``
and usually ``prompt``, in JSON lines or Parquet.

- *Standard*: each field is a string. *Conversational*: each field is a list of
  ``{"role": …, "content": …}`` messages.
- *Explicit prompt*: the field ``prompt`` is there. *Implicit prompt*: it is not, and the prompt is
  the common beginning of ``chosen`` and ``rejected`` (:func:`extract_prompt`, as TRL does it).

A conversation becomes one text, the same for every model: a line ``role: content`` for each message
(:func:`render`). The text of a response in its context is always ``prompt + response``, as in TRL's
standard format.

A column may name the person who chose: ``person``, ``worker`` or ``user_id`` unless told otherwise.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from penchant.common.errors import DataError

__all__ = [
    "PERSON_FIELDS",
    "BadRow",
    "BadRows",
    "Federation",
    "Labelled",
    "Person",
    "Preference",
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


# --- the data -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Preference:
    """One choice: with ``prompt`` given, ``chosen`` is preferred to ``rejected``.

    The model sees ``prompt + chosen`` and ``prompt + rejected``; the prompt may be empty.

    Raises:
        DataError: a field is no text, a response is blank, or both responses are the same.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        for name in ("prompt", "chosen", "rejected"):
            _check_text(name, getattr(self, name))
        for name in ("chosen", "rejected"):
            if not getattr(self, name).strip():
                raise DataError(f"{name!r} is empty")
        if self.chosen == self.rejected:
            raise DataError("'chosen' and 'rejected' are the same")

    def __repr__(self) -> str:
        """Lengths only: the texts are somebody's choices and stay out of logs and tracebacks."""
        lengths = ", ".join(f"{name}={len(getattr(self, name))}" for name in ("prompt", "chosen", "rejected"))
        return f"Preference(characters: {lengths})"


@dataclass(frozen=True, repr=False)
class Person:
    """One person's pairs; no item is in more than one of the three parts."""

    name: str
    train: tuple[Preference, ...]
    validation: tuple[Preference, ...]
    test: tuple[Preference, ...]

    def __repr__(self) -> str:
        counts = f"train={len(self.train)}, validation={len(self.validation)}, test={len(self.test)}"
        return f"Person({self.name!r}, {counts})"


@dataclass(frozen=True)
class Federation:
    """The people of one simulated federation, checked.

    ``caveats`` are sentences to print beside every result. ``digest`` is the SHA-256 of the name and
    of everybody's pairs in order (not of the caveats): equal digests mean equal data.

    Raises:
        DataError: nobody is in it, two people have one name, or a person has no training or no test
            pairs, one class, or the same pair in training and test. The message names the person.

    *One class* means that there is nothing to learn a taste from. Item by item (votes, ratings) it is
    somebody who always says the same, so that no pair can be formed at all. Pair by pair it is
    somebody whose pairs, two or more, are all one and the same comparison. A single pair is fine: it
    is little, not degenerate.
    """

    name: str
    people: tuple[Person, ...]
    caveats: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.people:
            raise DataError(f"data set {self.name!r} has no clients; give rows of at least one person")
        repeated = [name for name, times in Counter(p.name for p in self.people).items() if times > 1]
        if repeated:
            raise DataError(f"client {repeated[0]!r} is there twice; give every person one name")
        for person in self.people:
            _check_person(person)
        object.__setattr__(self, "digest", _digest(self.name, self.people))


def _check_person(person: Person) -> None:
    if not person.name:
        raise DataError("a client has an empty name; name every person")
    for part in ("train", "test"):
        if not getattr(person, part):
            raise DataError(
                f"client {person.name!r} has no pairs to {part} on; give it more choices or leave it out"
            )
    train = {_comparison(pair) for pair in person.train}
    if len(train) == 1 and len(person.train) > 1:
        raise DataError(
            f"client {person.name!r} has one class: all its training pairs are the same comparison; "
            "give it other choices or leave it out"
        )
    if not train.isdisjoint(_comparison(pair) for pair in (*person.validation, *person.test)):
        raise DataError(f"client {person.name!r} holds out a training pair; split it again")


def _comparison(pair: Preference) -> tuple[str, frozenset[str]]:
    """What was compared, whichever won."""
    return pair.prompt, frozenset((pair.chosen, pair.rejected))


def _digest(name: str, people: Iterable[Person]) -> str:
    digest = hashlib.sha256(json.dumps(["penchant federation 1", name]).encode())
    for person in people:
        parts = [
            [[pair.prompt, pair.chosen, pair.rejected] for pair in part]
            for part in (person.train, person.validation, person.test)
        ]
        digest.update(b"\n" + json.dumps([person.name, parts]).encode())
    return digest.hexdigest()


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise DataError(f"{name!r} is no text but {_kind(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name!r} holds half a surrogate pair, which is no text") from None


def _kind(value: object) -> str:
    """A JSON-like name of a value's type, for messages; never the value itself."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return names.get(type(value), f"of type {type(value).__name__}")


# --- one row --------------------------------------------------------------------------------------


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
            _check_text(name, response)
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
        raise DataError(f"{name!r} is no conversation but {_kind(messages)}")
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
        raise DataError(f"{name!r} has a message that is {_kind(message)}, not an object")
    value = message.get(key)
    if not isinstance(value, str):
        raise DataError(f"{name!r} has a message whose {key!r} is no text but {_kind(value)}")
    return value


def _is_conversation(value: object) -> bool:
    return isinstance(value, list)


# --- files ----------------------------------------------------------------------------------------


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
            raise DataError(f"{report.summary()}; correct them, or skip them (--skip-bad-rows)")
        if not report.kept:
            reason = report.summary() if report.bad else "it has no rows"
            raise DataError(f"nothing to use in {source}: {reason}")
        return report


def read_rows(path: str | Path | Sequence[Path], log: RowLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of JSON-lines and Parquet files: where each is (``file:line``, from 1) and its columns.

    ``path`` is one file, a list of them, or a folder whose files, at any depth, are read in the order
    of their names. What is no row at all is rejected in ``log``; blank lines of JSON lines don't count.

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
    _check_text(column, value)
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
        raise DataError(f"{path} is none of {', '.join(suffixes)}")
    return (path,)


def _jsonl_rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", _json_object(line)
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{file} can't be read after line {number}; make it anew") from None


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with the line."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return row if isinstance(row, dict) else f"not a JSON object but {_kind(row)}"


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
        raise DataError(f"{file} can't be read as Parquet after row {number}; make it anew") from None
