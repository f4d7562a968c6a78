"""A server's back-up: one file with all that it goes on from, made while it runs, checked when it is used.

    index.json                          what follows, with its SHA-256, and the version of this form
    server.toml, authority.pub, members.list, superexec.secret, tls/, notices.json, release.json
    files that server.toml names, where they lie in the server's directory
    enrolment.db, queue.db, devices.db, requests/, answers/, acts/, release/
    runs/NAME/…                         journal, checkpoints, configuration, manifest, releases, log

Databases are copied by SQLite's own back-up, which sees one moment of each; of a run the journal first, so
that every checkpoint it names is there. Flower's own state, logs and what nginx writes are not in it: `server
up` makes them anew. The file holds the server's keys, and is for its owner alone.
A back-up comes from elsewhere when it is used: its index is bounded, it makes no more bytes than it has, and
nothing is written but below the new directory.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO

from penchant.common.errors import JournalError, RunDirectoryError, UsageError
from penchant.common.foreign_files import CHUNK, open_foreign, parse_json
from penchant.common.storage import sync_directory
from penchant.deploy.fleet.device_notes import NOTES
from penchant.deploy.fleet.enrolment import DATABASE, EnrolmentRegistry
from penchant.deploy.fleet.fleet_release import FLEET_RELEASE
from penchant.deploy.fleet.notifier import NOTICES
from penchant.deploy.fleet.recorded_acts import FOLDER as ACTS
from penchant.deploy.fleet.release_signature import FOLDER as RELEASE
from penchant.deploy.fleet.run_queue import QUEUE
from penchant.deploy.fleet.server_directory import (
    AUTHORITY,
    MEMBERS,
    SECRET,
    SETTINGS,
    ServerDirectory,
)
from penchant.server.journal_reader import JOURNAL, JournalReader
from penchant.server.waiting import WAITING

__all__ = ["BackupContents", "back_up", "left_outside", "restore"]

FORM = 1  # of the file; a later one is refused
INDEX = "index.json"
INDEX_MOST = 64 * 1024 * 1024  # bytes, for some 300,000 files
WAIT_SECONDS = 30.0  # for a database that is being written
FILES = (SETTINGS, AUTHORITY, MEMBERS, SECRET)
FOLDERS = ("tls", "requests", "answers", ACTS, RELEASE)
NOT_OF_A_RUN = ("flower", "flwr")  # Flower's, made anew at each start
SIDE_FILES = ("-wal", "-shm", "-journal")  # of a database: its copy needs none
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # what exFAT, SMB and others say

Modes = dict[Path, int]
"""Each copy and its rights, of which the disk that it lies on may know nothing."""


@dataclass(frozen=True)
class BackupContents:
    """What a back-up holds. made: Unix seconds; version: of the penchant that made it; size: in bytes."""

    made: float
    version: str
    files: int
    runs: int
    size: int


@dataclass(frozen=True)
class _File:
    """One file of a back-up: its place, SHA-256 in hex, bytes and rights."""

    path: str
    sha256: str
    size: int
    mode: int


def back_up(server_directory: ServerDirectory, out: Path) -> BackupContents:
    """Write the back-up of a server, which may run meanwhile, to `out`; -> what it holds.

    UsageError when `out` is there already, RunDirectoryError or JournalError when something can't be read or
    is damaged: then nothing is written.
    """
    if out.exists():
        raise UsageError(f"{out} is there already; choose another file")
    with tempfile.TemporaryDirectory(prefix=".penchant-backup-", dir=_parent(out)) as folder:
        copy = Path(folder) / "server"
        copy.mkdir(mode=0o700)
        modes = _copy_all(server_directory, copy)
        _check_runs(copy)
        files = [_described(copy, path, modes[path]) for path in sorted(modes)]
        contents = _contents(time.time(), version("penchant"), files)
        packed = Path(folder) / "packed"
        _pack(copy, packed, contents, files)
        try:
            _place(packed, out)
        except OSError as error:
            raise UsageError(f"can't write {out}: {error.strerror}") from None
    sync_directory(out.absolute().parent)
    return contents


def left_outside(server_directory: ServerDirectory) -> list[Path]:
    """Files that server.toml names and that lie outside the server's directory: no back-up holds them."""
    within = server_directory.path.resolve()
    return sorted({path for path in _named_files(server_directory) if not path.is_relative_to(within)})


def restore(file: Path, directory: Path) -> BackupContents:
    """Make the server of a back-up in `directory`, which must not exist or be empty; -> what was in it.

    Every file is checked against its digest before the directory is there. UsageError for a file that is no
    back-up, of a later version, changed or cut off, and for a directory in use.
    """
    ServerDirectory.refuse_used(directory)
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".penchant-restore-", dir=_parent(directory)) as folder:
        made = Path(folder) / "server"
        made.mkdir(mode=0o700)
        ServerDirectory.make_folders(made)
        contents = _unpack(file, made)
        server_directory = ServerDirectory(made)
        EnrolmentRegistry(server_directory).enrolments()  # it opens, and is not of a later version
        _check_runs(made)
        if directory.exists():
            directory.rmdir()
        made.rename(directory)
    sync_directory(directory.absolute().parent)
    return contents


# --- making it ----------------------------------------------------------------------------------------


def _copy_all(server_directory: ServerDirectory, copy: Path) -> Modes:
    source, modes = server_directory.path, Modes()
    for name in (DATABASE, QUEUE, NOTES):
        if (source / name).exists():
            _copy_database(source / name, copy / name, modes)
    for name in FILES:
        try:
            _copy_file((source / name).resolve(), copy / name, modes)
        except FileNotFoundError:
            if name != SECRET:  # which a server makes anew
                raise RunDirectoryError(f"{source / name} is missing; this is no whole server") from None
    for name in (NOTICES, FLEET_RELEASE):
        with suppress(FileNotFoundError):  # nobody was told anything; nothing was released
            _copy_file((source / name).resolve(), copy / name, modes)
    for name in FOLDERS:
        _copy_folder(source / name, copy / name, modes)
    for name in server_directory.runs():
        run = server_directory.run(name)
        target = copy / "runs" / name
        target.mkdir(parents=True, mode=0o700)
        if (run / JOURNAL).exists():
            _copy_database(run / JOURNAL, target / JOURNAL, modes)
        _copy_folder(run, target, modes)
    _copy_named(server_directory, copy, modes)
    return modes


def _copy_named(server_directory: ServerDirectory, copy: Path, modes: Modes) -> None:
    """The files that settings name, of those in the server's directory."""
    within = server_directory.path.resolve()
    for path in _named_files(server_directory):
        if not path.is_relative_to(within) or copy / path.relative_to(within) in modes:
            continue
        target = copy / path.relative_to(within)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _copy_file(path.resolve(), target, modes)
        except FileNotFoundError:
            raise RunDirectoryError(
                f"{path} is missing, which {SETTINGS} names; write it, or take its name out"
            ) from None


def _named_files(server_directory: ServerDirectory) -> Iterator[Path]:
    """Where the files are that server.toml names; the last part of a path may be a link."""
    settings = server_directory.settings
    names = (settings.metrics_token, settings.notices.webhook_secret, settings.notices.smtp_password)
    for name in names:
        if name:
            path = server_directory.file(name)
            yield path.parent.resolve() / path.name


def _copy_folder(source: Path, target: Path, modes: Modes) -> None:
    """The plain files of a folder, without databases, which are copied apart, and what is made anew. A file
    that goes meanwhile is not in it. RunDirectoryError for a link: what it leads to is not the server's."""
    if not source.is_dir():
        return
    target.mkdir(exist_ok=True, mode=0o700)
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name in (*NOT_OF_A_RUN, WAITING):
            continue
        if path.is_symlink():
            raise RunDirectoryError(
                f"{path} is a symbolic link, which no back-up follows; put what it leads to in its place"
            )
        if path.is_dir():
            _copy_folder(path, target / path.name, modes)
        elif path.is_file() and not _is_of_a_database(path.name):
            with suppress(FileNotFoundError):
                _copy_file(path, target / path.name, modes)


def _is_of_a_database(name: str) -> bool:
    return name.endswith(".db") or any(name.endswith(f".db{side}") for side in SIDE_FILES)


def _copy_file(source: Path, target: Path, modes: Modes) -> None:
    """A regular file, never what a link leads to. RunDirectoryError when it can't be copied,
    FileNotFoundError when it is gone."""
    with open_foreign(source, RunDirectoryError) as file:
        try:
            with target.open("wb") as copy:
                shutil.copyfileobj(file, copy, CHUNK)
            modes[target] = os.fstat(file.fileno()).st_mode & 0o777
        except OSError as error:
            raise RunDirectoryError(f"can't copy {source}: {error.strerror}") from None


def _copy_database(source: Path, target: Path, modes: Modes) -> None:
    """A database as it is at one moment, whoever writes it meanwhile."""
    try:
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, timeout=WAIT_SECONDS)) as here,
            closing(sqlite3.connect(target)) as there,
        ):
            here.backup(there)
            there.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        modes[target] = 0o600
    except (OSError, sqlite3.Error) as error:
        raise JournalError(f"can't copy {source}: {error}") from None


def _check_runs(copy: Path) -> None:
    """JournalError unless each journal can be read, and each checkpoint is what it names."""
    folder = copy / "runs"
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        reader = JournalReader(run)
        for attempt in reader.attempts():
            if attempt.digest is not None:
                reader.checkpoint(attempt)


def _described(root: Path, path: Path, mode: int) -> _File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    return _File(path.relative_to(root).as_posix(), digest, size, mode)


def _contents(made: float, by: str, files: list[_File]) -> BackupContents:
    runs = {PurePosixPath(one.path).parts[1] for one in files if one.path.startswith("runs/")}
    return BackupContents(made, by, len(files), len(runs), sum(one.size for one in files))


def _pack(copy: Path, out: Path, contents: BackupContents, files: list[_File]) -> None:
    index = {"form": FORM, "made": contents.made, "version": contents.version}
    told = json.dumps(index | {"files": [asdict(one) for one in files]}).encode()
    if len(told) > INDEX_MOST:
        raise RunDirectoryError(
            f"the server has too many files for one back-up ({len(files)}); remove old runs"
        )
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with (
        open(descriptor, "wb") as raw,
        tarfile.open(fileobj=raw, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        head = tarfile.TarInfo(INDEX)
        head.size = len(told)
        tar.addfile(head, io.BytesIO(told))
        for one in files:
            entry = tarfile.TarInfo(one.path)
            entry.size, entry.mode = one.size, one.mode
            with (copy / one.path).open("rb") as data:
                tar.addfile(entry, data)
    with out.open("rb") as file:
        os.fsync(file.fileno())


def _place(packed: Path, out: Path) -> None:
    """Under its name, never in the place of another. OSError when the disk refuses."""
    try:
        os.link(packed, out)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _copy_apart(packed, out)


def _copy_apart(packed: Path, out: Path) -> None:
    """As a second file, where there are no links; a part of it does not stay."""
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as copy, packed.open("rb") as source:
            shutil.copyfileobj(source, copy, CHUNK)
            copy.flush()
            os.fsync(copy.fileno())
    except BaseException:
        out.unlink(missing_ok=True)
        raise


# --- using it -----------------------------------------------------------------------------------------


def _unpack(file: Path, made: Path) -> BackupContents:
    try:
        with tarfile.open(file, mode="r:") as tar:
            entries = iter(tar)
            contents, files = _index(file, tar, next(entries, None), made)
            for one in files:
                _put(file, tar, next(entries, None), one, made)
            if next(entries, None) is not None:
                raise UsageError(f"{file} holds more than its index says; it was changed")
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from None
    except (tarfile.TarError, ValueError, OverflowError) as error:  # tarfile lets the last two through
        raise UsageError(f"{file} is no back-up of a server, or is cut off: {error}") from None
    return contents


def _index(
    file: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo | None, root: Path
) -> tuple[BackupContents, list[_File]]:
    if entry is None or entry.name != INDEX or not _is_plain(entry) or entry.size > INDEX_MOST:
        raise UsageError(f"{file} is no back-up of a server; make one with `penchant server backup`")
    with _opened(tar, entry) as data:
        table = parse_json(data.read(), UsageError, f"the index of {file}")
    form = table.get("form") if isinstance(table, dict) else None
    if type(form) is int and form > FORM:
        raise UsageError(
            f"{file} was made by a later version of penchant (form {form}, this one knows {FORM}); update it"
        )
    try:
        files = [_File(**row) for row in table["files"]]
        made, by = float(table["made"]), str(table["version"])
        if form != FORM or not all(_is_sound(one, root) for one in files):
            raise ValueError("a value is out of range")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the index of {file} is damaged: {error}") from None
    return _contents(made, by, files), files


def _is_sound(one: _File, root: Path) -> bool:
    """Whether a line of the index names a place inside the server's directory, which is `root`. ValueError
    for a path that no disk can have."""
    if not all(isinstance(text, str) for text in (one.path, one.sha256)):
        return False
    path = PurePosixPath(one.path)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return False
    if not (root / path).resolve().is_relative_to(root.resolve()):
        return False
    return type(one.size) is int and type(one.mode) is int and one.mode & ~0o777 == 0


def _put(file: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo | None, one: _File, made: Path) -> None:
    """One file in its place, if it is what the index says."""
    if entry is None or entry.name != one.path or not _is_plain(entry) or entry.size != one.size:
        raise UsageError(f"{file} lacks {one.path}; it was changed, or is cut off")
    target, digest = made / one.path, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, one.mode)
    with open(descriptor, "wb") as out, _opened(tar, entry) as data:
        while chunk := data.read(CHUNK):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != one.sha256:
        raise UsageError(f"{one.path} in {file} is not what was backed up; take another copy of the file")


def _is_plain(entry: tarfile.TarInfo) -> bool:
    """Whether its bytes are all in the file: those of a sparse one come from nowhere, as many as it says."""
    return entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse()


def _opened(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    """The bytes of a plain entry."""
    found = tar.extractfile(entry)
    if found is None:
        raise tarfile.ReadError(f"{entry.name} holds no bytes")
    return found


def _parent(path: Path) -> Path:
    """The folder that `path` is to lie in. UsageError when there is none."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"there is no folder {parent}")
    return parent
