"""What the operator calls devices: a name and tags for each member, in one SQLite file of the server.

Nothing of it leaves the machine. A run may ask only members with a tag: the file `tag` in its directory names
it, and who has it is looked up before each round.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from penchant.common.errors import JournalError, RunDirectoryError, UsageError
from penchant.common.printable import is_printable
from penchant.common.storage import schema_transaction
from penchant.server.monitoring.fleet import DeviceNote

__all__ = ["NOTES", "TAG", "DeviceNotes", "checked_tag", "tag_of", "tagged"]

NOTES = "devices.db"
TAG = "tag"  # in the directory of a run that asks only some
SCHEMA_VERSION = 1
NAME_MOST = 100  # bytes, as of an invitation
TAGS_MOST = 20  # of one device
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS names (member INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tags (member INTEGER NOT NULL, tag TEXT NOT NULL, PRIMARY KEY (member, tag))
    WITHOUT ROWID;
"""


class DeviceNotes:
    """The notes of one server; the file may be opened for every call, by several processes."""

    def __init__(self, server: Path) -> None:
        self._path = server / NOTES

    def all(self) -> dict[int, DeviceNote]:
        """Member -> what is noted of it. Nothing is written where nothing ever was."""
        if not self._path.exists():
            return {}
        with self._open() as db:
            names = dict(db.execute("SELECT member, name FROM names"))
            tags: dict[int, list[str]] = {}
            for member, tag in db.execute("SELECT member, tag FROM tags ORDER BY tag"):
                tags.setdefault(member, []).append(tag)
        return {
            member: DeviceNote(names.get(member, ""), tuple(tags.get(member, ())))
            for member in {*names, *tags}
        }

    def name(self, member: int, name: str) -> None:
        """Call a member so; an empty name takes that back. UsageError for one that can't be shown."""
        _refuse_name(name)
        with self._open() as db:
            _put_name(db, member, name)

    def tag(self, members: Iterable[int], tag: str) -> None:
        """Give members a tag. UsageError for what is none, or where one of them has too many."""
        checked = checked_tag(tag)
        with self._open() as db:
            for member in members:
                db.execute("INSERT OR IGNORE INTO tags VALUES (?, ?)", (member, checked))
                (count,) = db.execute("SELECT COUNT(*) FROM tags WHERE member = ?", (member,)).fetchone()
                if count > TAGS_MOST:
                    raise UsageError(f"member {member} has {TAGS_MOST} tags already; remove one first")

    def untag(self, members: Iterable[int], tag: str) -> None:
        """Take a tag from members; one that hasn't it is fine."""
        with self._open() as db:
            db.executemany("DELETE FROM tags WHERE member = ? AND tag = ?", [(m, tag) for m in members])

    def note(self, member: int, name: str, tags: Iterable[str]) -> None:
        """Call a member so, and give it these tags and no others: both, or a UsageError and neither."""
        _refuse_name(name)
        wanted = sorted({checked_tag(tag) for tag in tags})
        if len(wanted) > TAGS_MOST:
            raise UsageError(f"a device has at most {TAGS_MOST} tags")
        with self._open() as db:
            _put_name(db, member, name)
            db.execute("DELETE FROM tags WHERE member = ?", (member,))
            db.executemany("INSERT INTO tags VALUES (?, ?)", [(member, tag) for tag in wanted])

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return schema_transaction(self._path, JournalError, SCHEMA_VERSION, _SCHEMA)


def tagged(notes: Mapping[int, DeviceNote], tag: str, members: Iterable[int]) -> frozenset[int]:
    """Those of `members` that have a tag; all of them where it is empty."""
    return frozenset(m for m in members if not tag or (m in notes and tag in notes[m].tags))


def tag_of(directory: Path) -> str:
    """The tag of those that a run asks; empty: it asks everybody. RunDirectoryError for a damaged file."""
    try:
        text = (directory / TAG).read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        text = ""
    if not _TAG.fullmatch(text):  # never everybody, where only some were meant
        raise RunDirectoryError(f"{directory / TAG} names no tag; restore it from a back-up")
    return text


def _refuse_name(name: str) -> None:
    if len(name.encode()) > NAME_MOST or not is_printable(name):
        raise UsageError(f"a device's name has at most {NAME_MOST} bytes of printable characters")


def _put_name(db: sqlite3.Connection, member: int, name: str) -> None:
    db.execute("DELETE FROM names WHERE member = ?", (member,))
    if name:
        db.execute("INSERT INTO names VALUES (?, ?)", (member, name))


def checked_tag(tag: str) -> str:
    """The tag. UsageError for what is none."""
    if not _TAG.fullmatch(tag):
        raise UsageError(
            f"{tag!r} is no tag: 1 to 32 lower-case letters, digits, '-', '_', '.', a letter or digit first"
        )
    return tag
