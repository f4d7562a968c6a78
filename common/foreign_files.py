"""Files that somebody else may have written: read within bounds, or refused in one line; never changed.

No link is followed, nothing but a regular file is read and opening never waits (a FIFO would), no more than a
bound is taken in, JSON holds finite numbers only. A SQLite file is read from a private copy, so that nothing
appears beside it and no second look finds another file: with `ForeignDatabase`, only tables are there to be
read, each question has a limit of time and of size, and what the file says of itself is not trusted.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Generic, TypeVar, cast

from safetensors import SafetensorError

from penchant.common.errors import PenchantError

__all__ = [
    "BAD_TENSORS",
    "CHUNK",
    "CONFIG_MOST",
    "JSON_MOST",
    "FileMark",
    "ForeignDatabase",
    "Limits",
    "Remembered",
    "finite_json",
    "foreign_database",
    "mark_of",
    "open_foreign",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_json",
]

Failure = type[PenchantError]

CONFIG_MOST: Final = 1024 * 1024
CHUNK: Final = 1024 * 1024  # bytes read at a time: no buffer is as large as what a file may hold
JSON_MOST: Final = 64 * 1024 * 1024
DATABASE_MOST: Final = 2 * 1024 * 1024 * 1024  # bytes of a SQLite file, and of its log
CELL_MOST: Final = 64 * 1024 * 1024  # bytes of one value
BAD_TENSORS: Final = (SafetensorError, KeyError, ValueError, TypeError, AttributeError)
"""What reading a safetensors file into NumPy raises: the last two for kinds of numbers that NumPy lacks."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_STEPS = 2000  # of SQLite's machine between two looks at the clock
_TRIES = 5  # to copy a database that is being written
_WAL = "-wal"
_ROLLBACK = "-journal"
_ROLLBACK_MAGIC = bytes.fromhex("d9d505f920a163d7")
_WAL_HEADER = 32
_PRAGMAS = ("synchronous=OFF", "trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "temp_store=MEMORY")
_BROKEN = (sqlite3.Error, UnicodeDecodeError, OverflowError, MemoryError)  # of what SQLite quotes or returns
_FUNCTIONS = frozenset({"count", "coalesce", "max", "length", "typeof"})


# --- plain files --------------------------------------------------------------------------------------


def open_regular(path: Path | str, *, at: int | None = None, links: bool = False) -> BinaryIO | None:
    """A regular file, open to read; None for anything else that is there. Opening never waits.

    Args:
        path: the file.
        at: the descriptor of the folder that `path` is in; None for the current one.
        links: whether a symbolic link is followed.

    Raises:
        OSError: it isn't there, can't be read, or is a link that is not to be followed.
    """
    descriptor = os.open(path, _READ if links else _READ | os.O_NOFOLLOW, dir_fd=at)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def open_foreign(path: Path, failure: Failure) -> BinaryIO:
    """A regular file, open to read. FileNotFoundError when nothing is there; `failure` for anything else
    that is not a regular file, a link to one included."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise failure(f"can't read {path}: {_why(error)}") from None
    if file is None:
        raise failure(f"can't read {path}: it is not a regular file")
    return file


def read_bytes(path: Path, failure: Failure, most: int) -> bytes:
    """What a regular file holds. FileNotFoundError when it isn't there; `failure` when it can't be read or
    holds more than `most` bytes."""
    with open_foreign(path, failure) as file:
        data = bytearray()
        try:
            while len(data) <= most and (chunk := file.read(min(CHUNK, most + 1 - len(data)))):
                data += chunk
        except OSError as error:
            raise failure(f"can't read {path}: {_why(error)}") from None
    if len(data) > most:
        raise failure(f"{path} is longer than {most} bytes; it is not what penchant wrote")
    return bytes(data)


def read_json(path: Path, failure: Failure, most: int = JSON_MOST) -> Any:
    """The value in a JSON file, as `parse_json` has it. FileNotFoundError when it isn't there."""
    return parse_json(read_bytes(path, failure, most), failure, str(path))


def parse_json(data: bytes | str, failure: Failure, what: str) -> Any:
    """The value that is written in JSON. `failure` unless it is UTF-8, not too deep, and all of its numbers
    are finite; `what` is how the error calls it."""
    try:
        return finite_json(data)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise failure(f"{what} is damaged: {why}") from None


def finite_json(data: bytes | str, *, once: bool = False) -> Any:
    """The value that is written in JSON. ValueError or RecursionError unless it is JSON in which all numbers
    are finite and, with `once`, no table gives a key twice."""
    return json.loads(
        data,
        parse_constant=_not_finite,
        parse_float=_finite,
        object_pairs_hook=_each_once if once else None,
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is given twice")
    return table


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text)


def _not_finite(text: str) -> float:
    raise ValueError(f"{text[:20]} is not a finite number")


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == 40:  # ELOOP: O_NOFOLLOW met a link
        return "it is a symbolic link"
    return getattr(error, "strerror", None) or str(error)


# --- what was read before ------------------------------------------------------------------------------

FileMark = tuple[tuple[int, int, int] | None, ...]
T = TypeVar("T")


def mark_of(*paths: Path) -> FileMark:
    """Changes whenever one of these files does: of each its inode, size and time; None where it isn't."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            known = os.lstat(path)
        except (OSError, ValueError):
            found.append(None)
        else:
            found.append((known.st_ino, known.st_size, known.st_mtime_ns))
    return tuple(found)


class Remembered(Generic[T]):
    """What was read of files, or why that can't be read, until the files change.

    Thread-safe: whoever asks for what another thread is reading waits for it, and reads nothing itself.
    """

    def __init__(
        self, read: Callable[[Path, T | None], T], most: int, weigh: Callable[[T], int] = lambda _: 1
    ) -> None:
        """`read` is given what was known before of the same file, if anything: a file that was replaced is
        read anew. A PenchantError is remembered like anything else.

        What was asked for longest ago is forgotten once all that is known weighs more than `most`, the last
        one excepted.
        """
        self._read = read
        self._most = most
        self._weigh = weigh
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, _Known[T]] = OrderedDict()

    def get(self, path: Path, mark: FileMark) -> T:
        """What `path` holds, whose files have this mark."""
        with self._lock:
            known = self._known.setdefault(path, _Known())
            self._known.move_to_end(path)
        with known.lock:
            if known.mark != mark:
                same = known.mark is not None and _inode(known.mark) == _inode(mark)
                try:
                    known.value, known.error = self._read(path, known.value if same else None), None
                except PenchantError as error:
                    known.value, known.error = None, error
                known.mark = mark
                known.weight = 1 if known.value is None else self._weigh(known.value)
                self._forget()
            if known.error is not None:
                raise known.error.with_traceback(None)
            return cast(T, known.value)

    def _forget(self) -> None:
        with self._lock:
            weight = sum(known.weight for known in self._known.values())
            while weight > self._most and len(self._known) > 1:
                _, oldest = self._known.popitem(last=False)
                weight -= oldest.weight


def _inode(mark: FileMark) -> int | None:
    """That of the first file."""
    first = mark[0] if mark else None
    return None if first is None else first[0]


@dataclass
class _Known(Generic[T]):
    mark: FileMark | None = None
    value: T | None = None
    error: PenchantError | None = None
    weight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


# --- SQLite -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What reading one database may cost: seconds of the processor, rows, and bytes in all of its values."""

    seconds: float = 5.0
    rows: int = 1_000_000
    values: int = 256 * 1024 * 1024


class ForeignDatabase:
    """A SQLite file of somebody else, open to read. Made by `foreign_database`."""

    def __init__(self, db: sqlite3.Connection, path: Path, failure: Failure, limits: Limits) -> None:
        self._db = db
        self._path = path
        self._failure = failure
        self._limits = limits
        self._end = time.thread_time() + limits.seconds
        self._rows_left, self._bytes_left = limits.rows, limits.values
        self._late = False
        self._tables: dict[str, dict[str, bool]] = {}
        self._mark = 0
        self._restrict()

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a question of ours, within the limits."""
        return list(self.each(query, *values))

    def each(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """The same, one row after another."""
        try:
            for row in self._db.execute(query, values):
                self._rows_left -= 1
                self._bytes_left -= sum(len(value) for value in row if isinstance(value, str | bytes))
                if self._rows_left < 0 or self._bytes_left < 0:
                    raise self._failure(f"{self._path} holds more than any run writes; it is not penchant's")
                yield row
        except _BROKEN as error:
            raise self._damaged(error) from None

    def has(self, table: str) -> bool:
        """Whether it holds this table."""
        return table in self._tables

    @property
    def mark(self) -> int:
        """What SQLite calls `application_id`: whose file it is, and the version of its schema."""
        return self._mark

    def expect(self, tables: Mapping[str, Sequence[str]]) -> None:
        """Check that those of these tables that are there have at least these columns, and plain ones."""
        for table, columns in tables.items():
            if not self.has(table):
                continue
            found = self._tables[table]
            if not set(columns) <= set(found):
                raise self._failure(f"{self._path} is damaged: its table {table} has other columns")
            if any(found.values()):
                raise self._failure(f"{self._path} is not penchant's: its table {table} computes columns")

    # --- inner parts -----------------------------------------------------------------------------

    def _restrict(self) -> None:
        db = self._db
        db.set_progress_handler(self._overdue, _STEPS)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, CELL_MOST)
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        db.setlimit(sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 0)
        try:
            for pragma in _PRAGMAS:
                db.execute(f"PRAGMA {pragma}")
            self._mark = int(db.execute("PRAGMA application_id").fetchone()[0])
            schema = db.execute("SELECT type, name, rootpage, sql FROM sqlite_schema LIMIT 1000").fetchall()
            db.execute("PRAGMA query_only=ON")
        except _BROKEN as error:
            raise self._damaged(error) from None
        for kind, name, root, made in schema:
            plain = kind == "table" and type(root) is int and root > 0
            own = kind == "index" and made is None  # of a primary key; others may be on expressions
            if not (plain or own):
                raise self._failure(
                    f"{self._path} is not penchant's: it holds more than tables ({kind} {str(name)[:40]})"
                )
        tables = [str(name) for kind, name, *_ in schema if kind == "table"]
        try:
            self._tables = {table: self._columns(table) for table in tables}
        except _BROKEN as error:
            raise self._damaged(error) from None
        db.set_authorizer(self._allowed)

    def _columns(self, table: str) -> dict[str, bool]:
        """Column -> whether it is computed."""
        quoted = table.replace('"', '""')
        rows = self._db.execute(f'PRAGMA table_xinfo("{quoted}")').fetchall()
        return {str(row[1]): bool(row[6]) for row in rows}

    def _allowed(
        self, action: int, first: str | None, second: str | None, database: str | None, inner: str | None
    ) -> int:
        """Reading tables, and a few functions; nothing from within a view or a trigger."""
        if inner is None and action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ):
            return sqlite3.SQLITE_OK
        if inner is None and action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def _overdue(self) -> int:
        self._late = self._late or time.thread_time() > self._end
        return int(self._late)

    def _damaged(self, error: BaseException) -> PenchantError:
        if self._late:
            return self._failure(f"{self._path} takes too long to read; it is not penchant's")
        return self._failure(f"can't read {self._path}: {error or type(error).__name__}")


@contextmanager
def foreign_database(path: Path, failure: Failure, limits: Limits = Limits()) -> Iterator[ForeignDatabase]:
    """The SQLite file at `path`, to read, as it is at this moment: nothing in its folder is written or made.

    FileNotFoundError when there is none; `failure` when it can't be read or is not penchant's.
    """
    with _copied(path, failure) as db, closing(db):
        yield ForeignDatabase(db, path, failure, limits)


@contextmanager
def _copied(path: Path, failure: Failure) -> Iterator[sqlite3.Connection]:
    """A connection to a copy in a folder of our own, together with the logs that belong to it: SQLite itself
    brings them in."""
    with tempfile.TemporaryDirectory(prefix="penchant-read-") as folder:
        copy = Path(folder) / "copy.db"
        _copy(path, copy, failure)
        try:
            db = sqlite3.connect(copy, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise failure(f"can't read {path}: {error}") from None
        try:
            yield db
        except sqlite3.Error as error:
            raise failure(f"can't read {path}: {error}") from None


def _copy(path: Path, copy: Path, failure: Failure) -> None:
    """Copy a database, and the logs that belong to it, as of one moment.

    While it is copied somebody may write: into the log, which is fine, or begin the log anew after its pages
    have come into the file; then once more.
    """
    logs = [(path.with_name(path.name + end), copy.with_name(copy.name + end)) for end in (_WAL, _ROLLBACK)]
    for _ in range(_TRIES):
        before = [_head(log, failure) for log, _ in logs]
        with open_foreign(path, failure) as source:
            _pour(source, copy, failure, path)
        try:
            for (log, copied), head in zip(logs, before, strict=True):
                copied.unlink(missing_ok=True)
                if head:
                    with open_foreign(log, failure) as source:
                        _pour(source, copied, failure, log)
        except FileNotFoundError:
            continue
        if [_head(log, failure) for log, _ in logs] == before:
            _refuse_super_journal(logs[1][1], path, failure)
            return
    raise failure(f"{path} changes faster than it can be read; try again")


def _refuse_super_journal(rollback: Path, path: Path, failure: Failure) -> None:
    """SQLite deletes the file that the end of a rollback journal names, wherever it lies: none of ours names
    one."""
    if rollback.exists() and rollback.read_bytes()[-len(_ROLLBACK_MAGIC) :] == _ROLLBACK_MAGIC:
        raise failure(f"{path} is not penchant's: its rollback journal names another file")


def _head(path: Path, failure: Failure) -> bytes:
    """The first bytes of a file, none where there is none."""
    try:
        with open_foreign(path, failure) as file:
            return file.read(_WAL_HEADER)
    except FileNotFoundError:
        return b""


def _pour(source: BinaryIO, copy: Path, failure: Failure, path: Path) -> None:
    left = DATABASE_MOST
    with copy.open("wb") as target:
        try:
            while data := source.read(CHUNK):
                left -= len(data)
                if left < 0:
                    raise failure(
                        f"{path} is longer than {DATABASE_MOST} bytes; it is not what penchant wrote"
                    )
                target.write(data)
        except OSError as error:
            raise failure(f"can't copy {path} to read it: {_why(error)}") from None
