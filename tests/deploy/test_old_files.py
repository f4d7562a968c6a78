"""What 0.1.0 wrote to disk opens today: sealed vaults, an open attempt, choices, a journal, a password.

`tests/data/old/files-0.1.0.json` holds the files as that version wrote them, each gzipped and in base 85.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penchant.client.agent.open_attempt import SealedAttempts
from penchant.client.device.preference_store import PreferenceStore
from penchant.client.vault.sealing import SealedStorage
from penchant.client.vault.vault import Vault
from penchant.common.crypto.passphrase import ScryptCost
from penchant.common.errors import DeviceError, JournalError, PenchantError, StageError
from penchant.common.storage import MARK
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.enrolment import EnrolmentRegistry
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.server.console import passwords
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.rights import Rights
from penchant.server.journal import Journal, RoundRow
from penchant.server.journal_reader import JournalReader

WRITTEN = json.loads((Path(__file__).parents[1] / "data" / "old" / "files-0.1.0.json").read_text("utf-8"))
RUN = bytes(16)
CHEAP = ScryptCost(2**10)  # of a passphrase: a test has nothing to protect


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with the old files in it, as private as they were."""
    for name, packed in WRITTEN["files"].items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, mode=0o700, parents=True)
        path.write_bytes(gzip.decompress(base64.b85decode(packed)))
        path.chmod(0o600)
    return tmp_path


@pytest.mark.parametrize(("place", "passphrase"), [("passphrase", "a long passphrase"), ("key file", None)])
def test_a_vault(old: Path, place: str, passphrase: str | None) -> None:
    vault = Vault(old / place, SealedStorage.of(old / place, passphrase, CHEAP))
    assert vault.blob("identity") == b"somebody"
    kept = vault.personal(RUN)
    assert kept is not None
    assert (kept.round, kept.vector.tolist(), kept.context) == (1, [0, 1, 2], b"context")
    assert vault.rounds() == [(RUN, 1, False)]
    assert vault.refusals() == [("keys", "POLICY", "paused by the owner")]
    vault.keep_blobs({"identity": b"", "authority": b"new"})
    assert (vault.blob("identity"), vault.blob("authority")) == (b"", b"new")


def test_another_passphrase_opens_no_old_vault_either(old: Path) -> None:
    with pytest.raises(DeviceError, match="wrong passphrase"):
        SealedStorage.of(old / "passphrase", "another long passphrase")


def test_recorded_choices(old: Path) -> None:
    store = PreferenceStore(old / "key file")
    assert len(store) == 6
    assert store.sources() == {"import": 6}
    assert {p.chosen for p in (*store.train(), *store.validation())} == {"tea"}


def test_an_open_attempt_of_a_simulation_is_sat_out(old: Path) -> None:
    """Its announcement has no manifest; the simulation's next attempt makes it anew."""
    open_attempts = SealedAttempts(old / "session", b"the secret of one device, 32 byt")
    with pytest.raises(StageError, match="earlier version"):
        open_attempts.take()
    with pytest.raises(StageError, match="no attempt is open"):
        open_attempts.take()


def test_a_servers_journal_and_checkpoint(old: Path) -> None:
    journal = Journal(old / "server")
    found = journal.load()
    assert found is not None
    number, shared = found
    assert number == 1
    parts = shared.factors, shared.first, shared.second, shared.start
    assert all((part == np.arange(4) + i).all() for i, part in enumerate(parts))
    assert journal.interrupted() == RoundRow(2, 1, "main", "unmasking", None, None)
    assert journal.records(2, 1) == [("cohort", 0, b"everybody"), ("asked", 0, b"this")]
    journal.close()


def test_a_password_of_the_console() -> None:
    assert passwords.check("correct horse battery", WRITTEN["password"])
    assert not passwords.check("correct horse batterz", WRITTEN["password"])


OLD_CONSOLE = """
CREATE TABLE accounts (
    name TEXT PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('viewer', 'operator')),
    password TEXT NOT NULL, made REAL NOT NULL, used REAL) WITHOUT ROWID;
CREATE TABLE sessions (
    digest TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    began REAL NOT NULL, used REAL NOT NULL, flash TEXT) WITHOUT ROWID;
CREATE TABLE deeds (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, account TEXT NOT NULL, address TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL,
    begun INTEGER, chain TEXT NOT NULL);
"""
"""The tables of the console's file before it knew fleets and providers."""


def test_a_console_keeps_its_accounts_sessions_and_audit(tmp_path: Path) -> None:
    (tmp_path / "console").mkdir()
    now, line = time.time(), ["olga", "10.0.0.1", "stop a run", "first", "done", "", None]
    chain = hashlib.sha256(json.dumps(["", now, *line]).encode()).hexdigest()
    with sqlite3.connect(tmp_path / "console" / "console.db") as db:
        db.executescript(OLD_CONSOLE)
        db.execute("INSERT INTO accounts VALUES ('olga', 'operator', ?, ?, NULL)", (WRITTEN["password"], now))
        db.execute("INSERT INTO accounts VALUES ('vera', 'viewer', ?, ?, NULL)", (WRITTEN["password"], now))
        digest = hashlib.sha256(b"a token").hexdigest()
        db.execute("INSERT INTO sessions VALUES (?, 'olga', ?, ?, NULL)", (digest, now, now))
        db.execute("INSERT INTO deeds VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (now, *line, chain))
    for _ in range(2):
        store = ConsoleStore(tmp_path / "console", CHEAP)
        assert [(one.name, one.rights) for one in store.accounts()] == [
            ("olga", Rights("operator")),
            ("vera", Rights("viewer")),
        ]
        session = store.session("a token")
        assert session is not None
        assert session.account.name == "olga"
        store.note("olga", "", "stop a run", "second", fleet="north-1")
        assert store.broken() is None
        store.give_role("vera", "none", {"north-1": "operator"})
        store.give_role("vera", "viewer", {})
        store._db.execute("DELETE FROM fleet_roles")
        store.close()
    store = ConsoleStore(tmp_path / "console", CHEAP)
    place = store.place_of("olga", "10.0.0.1")
    assert store.login("olga", "correct horse battery", place) is not None
    store.remove("olga")
    assert store.session("a token") is None, "sessions still go with their account"
    store.close()


# --- the schemas' versions --------------------------------------------------------------------------


def make_journal(folder: Path) -> Path:
    Journal(folder).close()
    return folder / "journal.db"


def make_vault(folder: Path) -> Path:
    Vault(folder)
    return folder / "vault.db"


def make_sealed_vault(folder: Path) -> Path:
    Vault(folder, SealedStorage.of(folder, None, CHEAP))
    return folder / "vault.db"


def make_choices(folder: Path) -> Path:
    PreferenceStore(folder, SealedStorage.of(folder, None, CHEAP))
    return folder / "preferences.db"


def make_console(folder: Path) -> Path:
    ConsoleStore(folder, CHEAP).close()
    return folder / "console.db"


def make_enrolments(folder: Path) -> Path:
    if not folder.exists():
        store = AuthorityStore.init(folder.with_name("authority"))
        settings = ServerSettings(addresses=("fleet.example",))
        ServerDirectory.create(folder, settings, store.authority.public_key, store.latest())
    EnrolmentRegistry(ServerDirectory(folder))
    return folder / "enrolment.db"


def make_authority(folder: Path) -> Path:
    if not folder.exists():
        AuthorityStore.init(folder)
    AuthorityStore(folder)
    return folder / "authority.db"


@pytest.mark.parametrize(
    ("make", "version"),
    [
        (make_journal, 1),
        (make_vault, 1),
        (make_sealed_vault, 1),
        (make_choices, 3),
        (make_console, 2),
        (make_enrolments, 1),
        (make_authority, 1),
    ],
)
def test_a_database_of_a_later_version_is_refused_by_name_and_an_old_one_is_marked(
    tmp_path: Path, make: Callable[[Path], Path], version: int
) -> None:
    path = make(tmp_path / "home")
    with sqlite3.connect(path) as db:
        (mark,) = db.execute("PRAGMA application_id").fetchone()
        assert mark == MARK | version
        db.execute("PRAGMA application_id = 0")  # as 0.3 and earlier left it
    make(tmp_path / "home")
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (mark,)
        db.execute(f"PRAGMA application_id = {mark + 1}")
        before = db.execute("SELECT * FROM sqlite_schema").fetchall()
    later = f"{path.name} was written by a later version .*its schema is {version + 1}.*update penchant"
    with pytest.raises(PenchantError, match=later):
        make(tmp_path / "home")
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT * FROM sqlite_schema").fetchall() == before
        db.execute("PRAGMA application_id = 42")
    with pytest.raises(PenchantError, match="mark of another program"):
        make(tmp_path / "home")


def test_a_run_of_a_later_version_is_refused_by_name_where_it_is_only_looked_at(tmp_path: Path) -> None:
    path = make_journal(tmp_path / "run")
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA application_id = {MARK | 2}")
    with pytest.raises(JournalError, match=r"journal\.db was written by a later version of penchant"):
        JournalReader(tmp_path / "run").attempts()
