"""Every message of a simulation, recorded as it passes, for the audit."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Message

from penchant.common.errors import CodecError, JournalError, ProtocolError
from penchant.common.storage import claim_schema
from penchant.common.wire.codec import decode_any
from penchant.common.wire.flower import stage_of, unpack
from penchant.deploy.audit.record import (
    COLUMNS,
    ERROR,
    REPLIES,
    UNKNOWN,
    WIRE,
    WIRE_SCHEMA,
    Field,
    Sent,
    Tensor,
    inspect_wire,
    rules_of,
)
from penchant.deploy.flower.in_process_grid import message_bytes

__all__ = ["MessageRecorder"]
_ALL = tuple({kind for kinds in REPLIES.values() for kind in kinds})
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    number INTEGER PRIMARY KEY, place TEXT NOT NULL, stage TEXT NOT NULL, node INTEGER NOT NULL,
    kind TEXT NOT NULL, bytes INTEGER NOT NULL, framed INTEGER NOT NULL, sha256 TEXT NOT NULL,
    fields TEXT NOT NULL, said TEXT NOT NULL, message BLOB);
CREATE TABLE IF NOT EXISTS tensors (phase TEXT PRIMARY KEY, layout TEXT NOT NULL) WITHOUT ROWID;
"""


class MessageRecorder:
    """Records what leaves clients. Use it as a context manager and give `record` to the grid.

    Thread-safe. Each message is written before `record` returns, so that a killed run has lost none.
    """

    def __init__(self, directory: Path, *, whole: bool = False) -> None:
        """`whole`: keep each message's bytes too."""
        self._whole = whole
        self._lock = threading.Lock()
        inspect_wire(directory)
        try:
            self._db = sqlite3.connect(directory / WIRE, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")  # survives a killed process; a dead machine need not
            claim_schema(self._db, directory / WIRE, JournalError, WIRE_SCHEMA)
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise JournalError(f"can't open {directory / WIRE}: {error}") from None

    def __enter__(self) -> MessageRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):  # one file, readable where nothing can be written; not while it is read
            self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.close()

    def forms(self, phases: Mapping[str, Sequence[Tensor]]) -> None:
        """Note what the vector of each phase is made of, in its order."""
        for phase, tensors in phases.items():
            layout = json.dumps([asdict(tensor) for tensor in tensors])
            self._write("INSERT OR REPLACE INTO tensors VALUES (?, ?)", (phase, layout))

    def rewind(self, round: int) -> None:
        """Forget what was recorded after `round`: a resumed simulation repeats it."""
        rows = self._db.execute("SELECT DISTINCT place FROM sent").fetchall()
        for (place,) in rows:
            head = place.split(".")[0]
            if head.isdecimal() and int(head) > round:
                self._write("DELETE FROM sent WHERE place = ?", (place,))

    def record(self, node: int, message: Message) -> None:
        """Note one message that left `node`."""
        s = _read(node, message, self._whole)
        described = json.dumps([asdict(f) for f in s.fields])
        self._write(
            f"INSERT INTO sent ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (s.place, s.stage, s.node, s.kind, s.size, s.framed, s.sha256, described, s.said, s.message),
        )

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            with self._lock:
                self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise JournalError(f"can't record the wire: {error}") from None


def _read(node: int, message: Message, whole: bool) -> Sent:
    framed = message_bytes(message)
    stage = stage_of(message.metadata.message_type)
    kind, payload, said = ERROR, b"", ""
    parts: tuple[Field, ...] = ()
    if message.has_error():
        said = message.error.reason or ""
    else:
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
        said,
        framed if whole else None,
    )


def _taken_apart(stage: str, message: Message) -> tuple[str, bytes, tuple[Field, ...]]:
    """Type, payload and fields; a message of another stage by its own name, anything else as UNKNOWN."""
    try:
        payload = unpack(message.content)
    except CodecError:
        return UNKNOWN, b"", ()
    try:
        reply = decode_any(payload, _ALL)
    except ProtocolError:
        return UNKNOWN, payload, ()
    return type(reply).__name__, payload, tuple(_fields(reply))


def _fields(reply: Any) -> Iterator[Field]:
    for rule in _RULES[type(reply)]:
        value = reply
        for name in rule.name.split("."):
            value = getattr(value, name)
        yield rule.read(value)


_RULES = {kind: rules_of(kind) for kind in _ALL}
