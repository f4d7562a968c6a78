"""The recorded wire of a simulated run: every message that left a client, as its strict decoder reads it.

One SQLite file in the run directory. For each message: when (round, attempt, stage), who, how many bytes,
their SHA-256, and each field's name, type, shape and bytes. The bytes themselves are kept where that is
asked for (tests search them for what must never leave).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto

from penchant.common.codec import decode_any
from penchant.common.errors import CodecError, JournalError, ProtocolError, RunDirectoryError
from penchant.common.flower import stage_of, unpack
from penchant.common.messages import (
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

__all__ = ["REPLIES", "Field", "Sent", "Tensor", "WireLog", "read_tensors", "read_wire"]

WIRE = "wire.db"

REPLIES: Mapping[str, tuple[type, ...]] = {
    "status": (Status, Abort),
    "keys": (Entry, Ready, Abort),
    "shares": (Shares, Abort),
    "masked": (Masked, Plain, Abort),
    "confirm": (Confirmation, Abort),
    "unmask": (Unmasking, Abort),
}
"""What a client may send in each stage: nothing else."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    number INTEGER PRIMARY KEY, place TEXT NOT NULL, stage TEXT NOT NULL, node INTEGER NOT NULL,
    kind TEXT NOT NULL, bytes INTEGER NOT NULL, framed INTEGER NOT NULL, sha256 TEXT NOT NULL,
    fields TEXT NOT NULL, message BLOB);
CREATE TABLE IF NOT EXISTS tensors (phase TEXT PRIMARY KEY, layout TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Field:
    """One field of a message that left: shape counts its elements (or bytes)."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int  # bytes


@dataclass(frozen=True)
class Tensor:
    """One tensor of the shared vector in a phase, or one counter: what the masked vector is made of."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sent:
    """One message that left a client. place: "round.attempt" ("status" outside of rounds).

    size: bytes of its payload; framed: all of the Flower message. kind: the message's type, "error" for
    one of Flower's, "?" for bytes that are no message of the protocol.
    """

    place: str
    stage: str
    node: int
    kind: str
    size: int
    framed: int
    sha256: str
    fields: tuple[Field, ...]
    message: bytes | None = None

    @property
    def round(self) -> int:
        """The round's number, 0 outside of rounds."""
        head = self.place.split(".")[0]
        return int(head) if head.isdigit() else 0


class WireLog:
    """Records what leaves clients. Use it as a context manager and give `record` to the grid."""

    def __init__(self, directory: Path, *, whole: bool = False) -> None:
        """`whole`: keep each message's bytes too."""
        self._whole = whole
        self._lock = threading.Lock()
        self._waiting: list[Sent] = []
        try:
            self._db = sqlite3.connect(directory / WIRE, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")  # a record for people, no part of any decision
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise JournalError(f"can't open {directory / WIRE}: {error}") from None

    def __enter__(self) -> WireLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._db.close()

    def forms(self, phases: Mapping[str, Sequence[Tensor]]) -> None:
        """Note what the vector of each phase is made of, in its order."""
        for phase, tensors in phases.items():
            layout = json.dumps([asdict(tensor) for tensor in tensors])
            self._db.execute("INSERT OR REPLACE INTO tensors VALUES (?, ?)", (phase, layout))

    def rewind(self, round: int) -> None:
        """Forget what was recorded after `round`: a resumed simulation plays it anew."""
        rows = self._db.execute("SELECT number, place FROM sent").fetchall()
        later = [(n,) for n, place in rows if (head := place.split(".")[0]).isdigit() and int(head) > round]
        self._db.executemany("DELETE FROM sent WHERE number = ?", later)

    def record(self, node: int, message: Message) -> None:
        """Note one message that left `node`."""
        sent = _read(node, message, self._whole)
        with self._lock:
            self._waiting.append(sent)
            if len(self._waiting) >= 256:
                self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        rows = [
            (
                s.place, s.stage, s.node, s.kind, s.size, s.framed, s.sha256,
                json.dumps([asdict(f) for f in s.fields]), s.message,
            )
            for s in waiting
        ]  # fmt: skip
        try:
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO sent (place, stage, node, kind, bytes, framed, sha256, fields, message)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise JournalError(f"can't record the wire: {error}") from None


def read_wire(directory: Path) -> Iterator[Sent]:
    """All that left clients in a run, in order. RunDirectoryError when nothing is recorded."""
    for row in _rows(
        directory,
        "SELECT place, stage, node, kind, bytes, framed, sha256, fields, message FROM sent ORDER BY number",
    ):
        place, stage, node, kind, size, framed, sha256, described, message = row
        parts = tuple(
            Field(f["name"], f["type"], tuple(f["shape"]), f["size"]) for f in json.loads(described)
        )
        yield Sent(place, stage, node, kind, size, framed, sha256, parts, message)


def read_tensors(directory: Path) -> dict[str, tuple[Tensor, ...]]:
    """phase -> what its vector is made of."""
    return {
        phase: tuple(Tensor(t["name"], tuple(t["shape"])) for t in json.loads(layout))
        for phase, layout in _rows(directory, "SELECT phase, layout FROM tensors")
    }


def _rows(directory: Path, query: str) -> list[Any]:
    path = directory / WIRE
    if not path.is_file():
        raise RunDirectoryError(
            f"{directory} holds no record of the wire; it is written by runs on the in-process grid"
        )
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return db.execute(query).fetchall()
    except sqlite3.Error as error:
        raise RunDirectoryError(f"can't read {path}: {error}") from None


# --- reading a message --------------------------------------------------------------------------------


def _read(node: int, message: Message, whole: bool) -> Sent:
    framed = message_to_proto(message).SerializeToString()
    stage = stage_of(message.metadata.message_type)
    kind, payload = "error", b""
    parts: tuple[Field, ...] = ()
    if not message.has_error():
        kind, payload, parts = _taken_apart(stage, message)
    return Sent(
        message.metadata.group_id,
        stage,
        node,
        kind,
        len(payload),
        len(framed),
        hashlib.sha256(payload).hexdigest(),
        parts,
        framed if whole else None,
    )


def _taken_apart(stage: str, message: Message) -> tuple[str, bytes, tuple[Field, ...]]:
    try:
        payload = unpack(message.content)
    except CodecError:
        return "?", b"", ()
    try:
        reply = decode_any(payload, REPLIES.get(stage, ()))
    except ProtocolError:
        return "?", payload, ()
    return type(reply).__name__, payload, tuple(_fields(reply))


def _fields(reply: Any, prefix: str = "") -> Iterator[Field]:
    """A message's fields, nested ones with dotted names."""
    for f in fields(reply):
        value = getattr(reply, f.name)
        name = prefix + f.name
        if hasattr(value, "__dataclass_fields__"):
            yield from _fields(value, f"{name}.")
        elif isinstance(value, bytes | memoryview):
            yield Field(name, "bytes", (len(value),), len(value))
        elif isinstance(value, tuple):
            width = len(value[0]) if value and isinstance(value[0], bytes | memoryview) else 0
            yield Field(name, "list of bytes", (len(value), width), len(value) * width)
        else:
            yield Field(name, type(value).__name__, (), 1 if isinstance(value, bool) else 8)
