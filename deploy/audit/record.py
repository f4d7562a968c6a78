"""The recorded wire of a simulated run: every message that left a client, as its strict decoder reads it.

One SQLite file in the run directory. For each message: when (round, attempt, stage), who, how many bytes,
their SHA-256, and each field's name, type, shape and bytes. The bytes themselves are kept where that is
asked for (tests search them for what must never leave). `deploy.audit` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from penchant.common.errors import RunDirectoryError
from penchant.common.foreign_files import ForeignDatabase, Limits, foreign_database, parse_json
from penchant.common.secagg.stages import CONFIRM, KEYS, MASKED, SHARES, STATUS, UNMASK
from penchant.common.storage import refuse_schema
from penchant.common.wire.codec import MAGIC, AtMost, Exactly, Many, Unsigned
from penchant.common.wire.messages import (
    Abort,
    Confirmation,
    Entry,
    Masked,
    Plain,
    Ready,
    Shares,
    Status,
    Unmasking,
)

__all__ = [
    "ERROR",
    "HEADER",
    "REPLIES",
    "UNKNOWN",
    "WIRE",
    "WIRE_SCHEMA",
    "Field",
    "FieldRule",
    "Sent",
    "Tensor",
    "inspect_wire",
    "read_tensors",
    "read_wire",
    "rules_of",
]

ERROR = "error"
"""Kind of one of Flower's error messages."""
UNKNOWN = "?"
"""Kind of bytes that are not a message that a client may ever send."""
HEADER = len(MAGIC) + 2
"""Bytes before a message's fields: magic number, protocol version, tag."""

REPLIES: Mapping[str, tuple[type, ...]] = {
    STATUS: (Status, Abort),
    KEYS: (Entry, Ready, Abort),
    SHARES: (Shares, Abort),
    MASKED: (Masked, Plain, Abort),
    CONFIRM: (Confirmation, Abort),
    UNMASK: (Unmasking, Abort),
}
"""What a client may send in each stage: nothing else."""


LIMITS = Limits(seconds=120.0, rows=10_000_000, values=2 * 1024**3)
TEXT_MOST, SAID_MOST = 300, 1_000_000  # characters of a name, and of an error of Flower's
LARGEST, DIMENSIONS = 2**48, 9  # of sides and sizes; of numbers beside a name
COLUMNS = "place, stage, node, kind, bytes, framed, sha256, fields, said, message"
_TABLES = {
    "sent": (
        "number",
        "place",
        "stage",
        "node",
        "kind",
        "bytes",
        "framed",
        "sha256",
        "fields",
        "said",
        "message",
    ),
    "tensors": ("phase", "layout"),
}


@dataclass(frozen=True)
class Field:
    """One field of a message that left. shape: () for a number; size: its bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class FieldRule:
    """What the codec allows one field to be. shape: None where the length may vary; most: its bound;
    width: bytes of an element."""

    name: str
    type: str
    shape: tuple[int | None, ...]
    width: int
    most: int = 0

    @property
    def prefix(self) -> int:
        """Bytes of the length or count that travels before it."""
        return 4 if None in self.shape else 0

    def read(self, value: Any) -> Field:
        """The field that `value` makes."""
        varying = len(value) if None in self.shape else 0
        shape = tuple(varying if side is None else side for side in self.shape)
        return Field(self.name, self.type, shape, self.width * math.prod(shape))

    def fits(self, field: Field) -> bool:
        """Whether `field` is one that the codec could have written."""
        return (
            (field.name, field.type, len(field.shape)) == (self.name, self.type, len(self.shape))
            and all(
                0 <= is_side <= self.most if side is None else is_side == side
                for side, is_side in zip(self.shape, field.shape, strict=True)
            )
            and field.size == self.width * math.prod(field.shape)
        )


@dataclass(frozen=True)
class Tensor:
    """One tensor of the shared vector in a phase, or one counter: what a client's vector is made of."""

    name: str
    shape: tuple[int, ...]

    @property
    def words(self) -> int:
        """Ring elements that it takes."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Sent:
    """One message that left a client.

    Attributes:
        place: when it was sent, as "round.attempt" ("status" outside of rounds).
        size: the bytes of its payload.
        framed: the bytes of the whole Flower message.
        kind: the message's type, "error" for one of Flower's own, "?" for bytes that are not a message of
            the protocol.
        said: the text of an error.
    """

    place: str
    stage: str
    node: int
    kind: str
    size: int
    framed: int
    sha256: str
    fields: tuple[Field, ...]
    said: str = ""
    message: bytes | None = None

    @property
    def round(self) -> int:
        """The round's number, 0 outside of rounds."""
        head = self.place.split(".")[0]
        return int(head) if head.isdecimal() else 0


def read_wire(directory: Path) -> Iterator[Sent]:
    """All that left clients in a run, in order. RunDirectoryError when nothing is recorded, or the record is
    not as it is written."""
    with _open(directory) as db:
        for row in db.each(f"SELECT {COLUMNS} FROM sent ORDER BY number"):
            yield _sent(directory, row)


def read_tensors(directory: Path) -> dict[str, tuple[Tensor, ...]]:
    """phase -> what its vector is made of."""
    with _open(directory) as db:
        return {
            _text(directory, phase): tuple(
                Tensor(t["name"], tuple(t["shape"])) for t in _listed(directory, layout)
            )
            for phase, layout in db.each("SELECT phase, layout FROM tensors")
        }


def inspect_wire(directory: Path) -> None:
    """Refuse, by a RunDirectoryError, a record that is not penchant's, before it is continued."""
    if (directory / WIRE).exists() or (directory / WIRE).is_symlink():
        with foreign_database(directory / WIRE, RunDirectoryError) as db:
            refuse_schema(db.mark, directory / WIRE, RunDirectoryError, WIRE_SCHEMA)
            db.expect(_TABLES)


def _sent(directory: Path, row: tuple[Any, ...]) -> Sent:
    place, stage, node, kind, size, framed, sha256, described, said, message = row
    parts = tuple(
        Field(f["name"], f["type"], tuple(f["shape"]), f["size"]) for f in _listed(directory, described)
    )
    whole = all(type(n) is int for n in (node, size, framed)) and size >= 0 and framed >= 0
    if not whole or type(message) not in (bytes, type(None)):
        raise _damaged(directory)
    texts = [_text(directory, text) for text in (place, stage, kind, sha256)]
    error = _text(directory, said, SAID_MOST)
    return Sent(texts[0], texts[1], node, texts[2], size, framed, texts[3], parts, error, message)


def _text(directory: Path, value: object, most: int = TEXT_MOST) -> str:
    if type(value) is not str or len(value) > most:
        raise _damaged(directory)
    return value


def _listed(directory: Path, text: object) -> list[dict[str, Any]]:
    """Rows of names, types, shapes and sizes as they were written. RunDirectoryError if they are not."""
    if type(text) is not str:
        raise _damaged(directory)
    rows = parse_json(text, RunDirectoryError, str(directory / WIRE))
    try:
        for row in rows:
            numbers = [*row["shape"], row.get("size", 0)]
            fine = all(type(n) is int and 0 <= n <= LARGEST for n in numbers) and len(numbers) <= DIMENSIONS
            if not fine or type(row.get("type", "")) is not str:
                raise ValueError("a number or a type is missing or malformed")
            _text(directory, row["name"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(directory) from None
    return list(rows)


def _damaged(directory: Path) -> RunDirectoryError:
    return RunDirectoryError(f"{directory / WIRE} is damaged; what left can't be read from it")


@contextmanager
def _open(directory: Path) -> Iterator[ForeignDatabase]:
    try:
        with foreign_database(directory / WIRE, RunDirectoryError, LIMITS) as db:
            refuse_schema(db.mark, directory / WIRE, RunDirectoryError, WIRE_SCHEMA)
            db.expect(_TABLES)
            if not all(db.has(table) for table in _TABLES):
                raise _damaged(directory)
            yield db
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{directory} holds no record of the wire; it is written by runs on the in-process grid"
        ) from None


# --- reading a message --------------------------------------------------------------------------------


def rules_of(kind: type) -> tuple[FieldRule, ...]:
    """The fields of a message type in their order on the wire, nested ones with dotted names: read from
    the very annotations that the codec reads."""
    hints = get_type_hints(kind, include_extras=True)
    rules: list[FieldRule] = []
    for f in fields(kind):
        hint = hints[f.name]
        if isinstance(hint, type) and is_dataclass(hint):
            nested = rules_of(hint)
            rules += [FieldRule(f"{f.name}.{r.name}", r.type, r.shape, r.width, r.most) for r in nested]
        else:
            rules.append(_rule(f.name, hint))
    return tuple(rules)


def _rule(name: str, hint: Any) -> FieldRule:
    if hint is bool:
        return FieldRule(name, "bool", (), 1)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return FieldRule(name, hint.__name__, (), 1)
    plain, rule = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    match rule:
        case Unsigned(width):
            return FieldRule(name, f"uint{8 * width}", (), width)
        case Exactly(length):
            return FieldRule(name, "bytes", (length,), 1)
        case AtMost(length):
            return FieldRule(name, "bytes", (None,), 1, length)
        case Many(count):
            item = _rule(name, get_args(plain)[0])
            return FieldRule(name, item.type, (None, *item.shape), item.width, count)
    raise TypeError(f"no rule for {name}: {hint!r}")


WIRE = "wire.db"
WIRE_SCHEMA = 1  # the version of its schema
