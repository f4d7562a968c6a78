"""What the console itself remembers: accounts, sessions, tries to log in, and who did what.

One SQLite file that only its owner can read. Of a password it holds a scrypt hash, of a session's token and
of a recovery code a SHA-256: who reads the file can't log in with them. The key of a second factor it must
hold as it is: it is worth nothing without the password. The audit only grows, and each line is bound to the
one before by a hash, so that a line that was changed or taken out later shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.common.crypto.passphrase import RECOMMENDED, ScryptCost
from penchant.common.durations import DAY
from penchant.common.errors import ConsoleError, UsageError
from penchant.common.network import network_of
from penchant.common.printable import one_line
from penchant.common.storage import change, claim_schema
from penchant.server.console import passwords, second_factor
from penchant.server.console.audit_filter import AuditEntry, AuditFilter
from penchant.server.console.rights import Rights, Role, refuse_unknown_role

__all__ = ["Account", "ConsoleStore", "LoginPlace", "RunProcess", "Session", "default_state"]

IDLE_SECONDS = 2 * 3600.0
SESSION_SECONDS = 12 * 3600.0
WINDOW_SECONDS = 3600.0  # in which tries to log in are counted
FIRST_WAIT, LONGEST_WAIT = 15.0, 900.0  # seconds after a try too many; doubles with each further one
TRIES = 5  # that fail for one account from one place, before it has to wait
TRIES_NETWORK = 20  # from one network, whatever account
TRIES_ACCOUNT = 50  # for one account from strangers, wherever they are: then strangers wait
DEVICE_SECONDS = 180.0 * DAY  # that a browser is remembered after it was last let in
DEVICES_MOST = 20  # of one account
CODE_SECONDS = 300.0  # after a right password, in which the second factor must come

_ACCOUNT = (
    "name, role, made, accounts.used, issuer,"
    " EXISTS (SELECT 1 FROM second_factors AS s WHERE s.account = name)"
)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_SCHEMA_VERSION = 2
_ACCOUNTS = """(
    name TEXT PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('none', 'viewer', 'operator')),
    password TEXT NOT NULL, made REAL NOT NULL, used REAL,
    issuer TEXT NOT NULL DEFAULT '', subject TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
"""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS accounts {_ACCOUNTS}
CREATE TABLE IF NOT EXISTS fleet_roles (
    account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE, fleet TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('none', 'viewer', 'operator')),
    PRIMARY KEY (account, fleet)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS second_factors (
    account TEXT PRIMARY KEY REFERENCES accounts (name) ON DELETE CASCADE,
    key BLOB NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recovery_codes (
    account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE, digest TEXT NOT NULL,
    PRIMARY KEY (account, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS half_logins (
    digest TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    began REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    digest TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    began REAL NOT NULL, used REAL NOT NULL, flash TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS devices (
    digest TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    network TEXT NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tries (at REAL NOT NULL, account TEXT NOT NULL, address TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deeds (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, account TEXT NOT NULL, address TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL,
    begun INTEGER, chain TEXT NOT NULL, fleet TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS begun_deeds ON deeds (begun);
CREATE TABLE IF NOT EXISTS jobs (
    place TEXT PRIMARY KEY, job TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revocations (
    fleet TEXT NOT NULL, member INTEGER NOT NULL, why TEXT NOT NULL, account TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (fleet, member)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Account:
    """One who may log in.

    Attributes:
        name: its name; that of a provider's account holds a colon, which no other's does.
        rights: what it may do, and where.
        made: Unix seconds.
        used: Unix seconds of its last login; None: never.
        issuer: the provider that lets it in; empty where a password here does.
        second_factor: whether a code is asked for after the password.
    """

    name: str
    rights: Rights
    made: float
    used: float | None
    issuer: str = ""
    second_factor: bool = False


@dataclass(frozen=True)
class Session:
    """A browser that is logged in."""

    account: Account
    digest: str  # of its token


@dataclass(frozen=True)
class LoginPlace:
    """Where a try to log in comes from.

    Attributes:
        key: what tries are counted by: a browser that was let in before counts for itself, any other as its
            network.
        network: the network, as `common.network` makes it of the address.
        known: whether this account was let in from here before: in this browser, or from this network.
        own: whether the browser itself is known, so that what others do on its network is not its fault.
    """

    key: str
    network: str
    known: bool
    own: bool


def default_state() -> Path:
    """Where the console keeps its own file unless told otherwise: the user's state directory (XDG)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "penchant" / "console"


@dataclass(frozen=True)
class RunProcess:
    """A process that this console started for a run.

    Attributes:
        pid: its number.
        began: when it began, as `process_table.began` counts; None if it was gone at once.
        stopping: whether an operator had it stopped.
    """

    pid: int
    began: str | None
    stopping: bool = False

    def encode(self) -> str:
        """As the store keeps it."""
        kept = {"pid": self.pid, "began": self.began}
        return json.dumps(kept | {"stopping": True} if self.stopping else kept)

    @classmethod
    def decode(cls, text: str) -> RunProcess:
        """The inverse of `encode`."""
        return cls(**json.loads(text))


class ConsoleStore:
    """The console's file in its state directory. Thread-safe."""

    def __init__(self, directory: Path, cost: ScryptCost = RECOMMENDED) -> None:
        """Open it, making it if there is none; ConsoleError when that fails. `cost`: of a password."""
        self.directory = directory
        self._cost = cost
        self._path = directory / "console.db"
        self._lock = threading.RLock()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._path.exists():
                self._path.touch(mode=0o600)
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._db.execute("PRAGMA secure_delete=ON")  # a hash that was replaced does not stay
            claim_schema(self._db, self._path, ConsoleError, _SCHEMA_VERSION)
            self._bring_up_to_date()
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConsoleError(f"can't open {self._path}: {error}") from None

    def close(self) -> None:
        """Close the file; nothing is pending."""
        self._db.close()

    def _bring_up_to_date(self) -> None:
        """Give a file of 0.3 or before the tables of today, which know more roles, providers and fleets."""
        columns = {row[1] for row in self._db.execute("PRAGMA table_info(accounts)")}
        if not columns or "issuer" in columns:
            return
        self._db.execute("PRAGMA foreign_keys=OFF")  # or sessions would go with the table they point to
        with change(self._db, self._path, ConsoleError):
            self._db.execute(f"CREATE TABLE accounts_now {_ACCOUNTS.strip().rstrip(';')}")
            self._db.execute(
                "INSERT INTO accounts_now (name, role, password, made, used)"
                " SELECT name, role, password, made, used FROM accounts"
            )
            self._db.execute("DROP TABLE accounts")
            self._db.execute("ALTER TABLE accounts_now RENAME TO accounts")
            self._db.execute("ALTER TABLE deeds ADD COLUMN fleet TEXT NOT NULL DEFAULT ''")
        self._db.execute("PRAGMA foreign_keys=ON")

    # --- accounts ------------------------------------------------------------------------------------

    def add(self, name: str, role: str, password: str, fleets: Mapping[str, str] | None = None) -> None:
        """A new account. UsageError when the name is taken or unfit, a role unknown, the password weak.

        role: everywhere but on `fleets`, which has roles by the fleet's id.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                "an account's name is 1 to 32 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
            )
        refuse_unknown_role(role, *(fleets or {}).values())
        passwords.refuse_weak_password(password)
        with self._transaction():
            if self._one("SELECT 1 FROM accounts WHERE name = ?", name):
                raise UsageError(f"there is an account {name} already; give it a password with `passwd`")
            self._db.execute(
                "INSERT INTO accounts (name, role, password, made) VALUES (?, ?, ?, ?)",
                (name, role, passwords.hashed(password, self._cost), time.time()),
            )
            self._keep_fleet_roles(name, fleets or {})

    def give_role(self, name: str, role: str | None, fleets: Mapping[str, str]) -> None:
        """Other roles for an account: everywhere else (None: as it was), and on these fleets, by id; those
        on further fleets stay. UsageError for no such account, one of a provider, or an unknown role."""
        refuse_unknown_role(*([] if role is None else [role]), *fleets.values())
        with self._transaction():
            self._refuse_foreign(name, "the provider’s settings say what it may do")
            if role is not None:
                self._db.execute("UPDATE accounts SET role = ? WHERE name = ?", (role, name))
            self._keep_fleet_roles(name, fleets)

    def _keep_fleet_roles(self, name: str, fleets: Mapping[str, str]) -> None:
        for fleet, role in fleets.items():
            self._db.execute("INSERT OR REPLACE INTO fleet_roles VALUES (?, ?, ?)", (name, fleet, role))

    def _refuse_foreign(self, name: str, why: str) -> None:
        """UsageError unless there is such an account, and it is not one of a provider."""
        row = self._one("SELECT issuer FROM accounts WHERE name = ?", name)
        if row is None:
            raise UsageError(f"there is no account {name!r}")
        if row[0]:
            raise UsageError(f"{name} is an account of {row[0]}: {why}")

    def passwd(self, name: str, password: str) -> None:
        """Another password; whoever is logged in under the old one is out. UsageError for no such account."""
        passwords.refuse_weak_password(password)
        with self._transaction():
            self._refuse_foreign(name, "it has no password here")
            self._db.execute(
                "UPDATE accounts SET password = ? WHERE name = ?",
                (passwords.hashed(password, self._cost), name),
            )
            self._end_logins(name)

    def remove(self, name: str) -> None:
        """Take an account away, and its sessions. UsageError for no such account."""
        with self._transaction():
            if self._db.execute("DELETE FROM accounts WHERE name = ?", (name,)).rowcount != 1:
                raise UsageError(f"there is no account {name!r}")

    def accounts(self) -> list[Account]:
        """All accounts by name."""
        rows = self._all(f"SELECT {_ACCOUNT} FROM accounts ORDER BY name")
        return [self._account(*row) for row in rows]

    def _account(
        self, name: str, role: Role, made: float, used: float | None, issuer: str, second: int
    ) -> Account:
        fleets = dict(self._all("SELECT fleet, role FROM fleet_roles WHERE account = ?", name))
        return Account(name, Rights(role, fleets), made, used, issuer, bool(second))

    def _end_logins(self, name: str, but: str = "") -> None:
        """but: the digest of a session that goes on."""
        self._db.execute("DELETE FROM sessions WHERE account = ? AND digest <> ?", (name, but))
        self._db.execute("DELETE FROM half_logins WHERE account = ?", (name,))

    # --- accounts of a provider ----------------------------------------------------------------------

    def let_in(self, name: str, issuer: str, subject: str, rights: Rights) -> str:
        """A new session of somebody for whom a provider vouches; -> its token.

        The account is made at the first login, and has the rights that the settings give it now. Sessions of
        the same person under an earlier address end.
        ConsoleError where the name belongs to another subject: somebody got the address of one who left.
        """
        now = time.time()
        with self._transaction():
            row = self._one("SELECT issuer, subject FROM accounts WHERE name = ?", name)
            if row is not None and row != (issuer, subject):
                raise ConsoleError(
                    f"{name} was somebody else's before; remove that account with `penchant console account "
                    "remove`"
                )
            self._db.execute(
                "INSERT INTO accounts (name, role, password, made, issuer, subject)"
                " VALUES (?, ?, '', ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET role = excluded.role",
                (name, rights.elsewhere, now, issuer, subject),
            )
            self._db.execute("DELETE FROM fleet_roles WHERE account = ?", (name,))
            self._keep_fleet_roles(name, rights.fleets)
            self._end_sessions_of(issuer, subject, but=name)
            return self._begin_session(name, now)

    def end_sessions_of(self, issuer: str, subject: str) -> None:
        """End all sessions of a provider's person, under whatever address: they were refused just now."""
        with self._transaction():
            self._end_sessions_of(issuer, subject)

    def _end_sessions_of(self, issuer: str, subject: str, but: str = "") -> None:
        self._db.execute(
            "DELETE FROM sessions WHERE account IN"
            " (SELECT name FROM accounts WHERE issuer = ? AND subject = ? AND name <> ?)",
            (issuer, subject, but),
        )

    def end_provider_sessions(self) -> None:
        """End all sessions of providers' accounts: the settings may give them other rights now."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM sessions WHERE account IN (SELECT name FROM accounts WHERE issuer <> '')"
            )

    # --- logging in ----------------------------------------------------------------------------------

    def place_of(self, name: str, address: str, device: str = "") -> LoginPlace:
        """Where a try to log in as `name` comes from; `device` is the token of `remember`, if it has one."""
        network, since = network_of(address), time.time() - DEVICE_SECONDS
        digest = _digest(device)
        found = self._all(
            "SELECT digest FROM devices WHERE account = ? AND used > ? AND (digest = ? OR network = ?)",
            name, since, digest, network,
        )  # fmt: skip
        own = (digest,) in found
        return LoginPlace(f"device {digest}" if own else network, network, bool(found), own)

    def provider_place(self, address: str, device: str = "") -> LoginPlace:
        """Where a try to log in by a provider comes from, whose name is not known yet."""
        network, since = network_of(address), time.time() - DEVICE_SECONDS
        digest = _digest(device)
        own = self._one("SELECT 1 FROM devices WHERE used > ? AND digest = ?", since, digest) is not None
        return LoginPlace(f"device {digest}" if own else network, network, own, own)

    def remember(self, name: str, device: str, address: str) -> str:
        """Know the browser again that was let in, and its network; -> its token, `device` if that is known.

        The token lets nobody in. It only keeps the tries of others from slowing this browser down.
        """
        now = time.time()
        token = device if self.place_of(name, address, device).own else secrets.token_urlsafe(32)
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)",
                (_digest(token), name, network_of(address), now),
            )
            self._db.execute("DELETE FROM devices WHERE used < ?", (now - DEVICE_SECONDS,))
            self._db.execute(
                "DELETE FROM devices WHERE account = ? AND digest NOT IN"
                " (SELECT digest FROM devices WHERE account = ? ORDER BY used DESC LIMIT ?)",
                (name, name, DEVICES_MOST),
            )
        return token

    def admit(self, name: str, place: LoginPlace) -> float:
        """Seconds until another try is looked at; 0: now, and it counts as failed until `login` knows better.

        Counted before the password is looked at: many tries at once get no further than tries in turn. A
        known browser is slowed down by its own tries alone, a network from which the account was let in
        before by those from this network: so nobody elsewhere can shut somebody out.

        name: empty where a provider will say it: then only the place counts.
        """
        now = time.time()
        since = now - WINDOW_SECONDS
        limits = [(1, TRIES if name else TRIES_NETWORK)]
        limits += [] if place.own else [(2, TRIES_NETWORK)]
        limits += [] if place.known or not name else [(3, TRIES_ACCOUNT)]
        with self._transaction():
            rows = self._all(
                "SELECT at, account = ? AND address = ?, address = ?, account = ? FROM tries"
                " WHERE at > ? AND (account = ? OR address = ?) ORDER BY at DESC",
                name, place.key, place.key, name, since, name, place.key,
            )  # fmt: skip
            longest = 0.0
            for column, most in limits:
                times = [row[0] for row in rows if row[column]]
                if len(times) >= most:
                    wait = min(FIRST_WAIT * 2.0 ** min(len(times) - most, 10), LONGEST_WAIT)
                    longest = max(longest, times[0] + wait - now)
            if longest <= 0:
                self._db.execute("INSERT INTO tries VALUES (?, ?, ?)", (now, name[:64], place.key))
                self._db.execute("DELETE FROM tries WHERE at < ?", (since,))
        return max(longest, 0.0)

    def forget_tries(self, name: str, place: LoginPlace) -> None:
        """Somebody is in: the tries before it count no more."""
        with self._transaction():
            self._db.execute("DELETE FROM tries WHERE account = ? AND address = ?", (name, place.key))

    def login(self, name: str, password: str, place: LoginPlace) -> str | None:
        """A new session's token, or None for a wrong name or password; both take equally long.

        Where the account has a second factor, the token is that of a login which `second` completes, and no
        session's: `has_second_factor` says which. A password that was kept at an older cost is kept at
        today's from then on.
        """
        row = self._one("SELECT password FROM accounts WHERE name = ? AND issuer = ''", name)
        kept = row[0] if row else passwords.nobody(self._cost)
        right = passwords.check(password, kept)
        for cost in self._costs() - {passwords.cost_of(kept)}:  # the same work whoever's password it is
            passwords.spend(password, cost)
        if not right or row is None:
            return None
        if passwords.cost_of(kept) != self._cost:
            self._rehash(name, kept, password)
        now = time.time()
        with self._transaction():
            if self.has_second_factor(name):
                return self._begin_half(name, now)
            self._db.execute("DELETE FROM tries WHERE account = ? AND address = ?", (name, place.key))
            return self._begin_session(name, now)

    def _begin_session(self, name: str, now: float) -> str:
        self._db.execute("DELETE FROM sessions WHERE began < ?", (now - SESSION_SECONDS,))
        self._db.execute("UPDATE accounts SET used = ? WHERE name = ?", (now, name))
        token = secrets.token_urlsafe(32)
        self._db.execute(
            "INSERT INTO sessions (digest, account, began, used) VALUES (?, ?, ?, ?)",
            (_digest(token), name, now, now),
        )
        return token

    def _begin_half(self, name: str, now: float) -> str:
        """A login that lacks its second factor. The tries before it still count, and codes add to them."""
        self._db.execute("DELETE FROM half_logins WHERE began < ?", (now - CODE_SECONDS,))
        token = secrets.token_urlsafe(32)
        self._db.execute("INSERT INTO half_logins VALUES (?, ?, ?)", (_digest(token), name, now))
        return token

    # --- the second factor ---------------------------------------------------------------------------

    def has_second_factor(self, name: str) -> bool:
        """Whether a code is asked for after this account's password."""
        return self._one("SELECT 1 FROM second_factors WHERE account = ?", name) is not None

    def half_login(self, half: str) -> str | None:
        """Whose login lacks its second factor; None where it took too long, or there is none such."""
        row = self._one(
            "SELECT account FROM half_logins WHERE digest = ? AND began > ?",
            _digest(half), time.time() - CODE_SECONDS,
        )  # fmt: skip
        return None if row is None else str(row[0])

    def second(self, half: str, code: str, place: LoginPlace) -> str | None:
        """The session's token of a login that a right code completes; None for a wrong one, or no login."""
        now = time.time()
        with self._transaction():
            name = self.half_login(half)
            if name is None or not self._spend_code(name, code, now):
                return None
            self._db.execute("DELETE FROM half_logins WHERE digest = ?", (_digest(half),))
            self._db.execute("DELETE FROM tries WHERE account = ? AND address = ?", (name, place.key))
            return self._begin_session(name, now)

    def _spend_code(self, name: str, code: str, now: float) -> bool:
        """Whether a code of the app or for recovery is right and was not used before; it is used then."""
        row = self._one("SELECT key, used FROM second_factors WHERE account = ?", name)
        if row is None:
            return False
        step = second_factor.step_of(row[0], code, now)
        if step is not None:
            if step <= row[1]:
                return False
            self._db.execute("UPDATE second_factors SET used = ? WHERE account = ?", (step, name))
            return True
        found = self._db.execute(
            "DELETE FROM recovery_codes WHERE account = ? AND digest = ?",
            (name, _digest(second_factor.plain(code))),
        )
        return found.rowcount == 1

    def set_second_factor(
        self, name: str, key: bytes, code: str, own: Session | None = None
    ) -> list[str] | None:
        """Ask for a code from now on, once one of `key` shows that the app has it; -> the recovery codes,
        which are kept nowhere, or None for a wrong code. All sessions but one's `own` end: a password alone
        has opened them. UsageError for an account of a provider, or one that has a second factor already."""
        step = second_factor.step_of(key, code, time.time())
        if step is None:
            return None
        codes = second_factor.recovery_codes()
        with self._transaction():
            self._refuse_foreign(name, "its second factor is the provider's affair")
            if self.has_second_factor(name):
                raise UsageError(f"{name} has a second factor already; take that one away first")
            self._db.execute("INSERT INTO second_factors VALUES (?, ?, ?)", (name, key, step))
            self._keep_recovery_codes(name, codes)
            self._end_logins(name, but=own.digest if own else "")
        return codes

    def _keep_recovery_codes(self, name: str, codes: list[str]) -> None:
        self._db.execute("DELETE FROM recovery_codes WHERE account = ?", (name,))
        for code in codes:
            digest = _digest(second_factor.plain(code))
            self._db.execute("INSERT INTO recovery_codes VALUES (?, ?)", (name, digest))

    def recovery_codes_left(self, name: str) -> int:
        """How many recovery codes are not used yet."""
        return int(self._one("SELECT COUNT(*) FROM recovery_codes WHERE account = ?", name)[0])

    def drop_second_factor(self, name: str, code: str) -> bool:
        """Ask for codes no more, if this one is right; -> whether it was."""
        with self._transaction():
            if not self._spend_code(name, code, time.time()):
                return False
            self._forget_second_factor(name)
        return True

    def reset_second_factor(self, name: str) -> None:
        """Take an account's second factor away without a code, and log it out: the machine's owner does so.
        UsageError where it has none."""
        with self._transaction():
            self._refuse_foreign(name, "its second factor is the provider's affair")
            if not self.has_second_factor(name):
                raise UsageError(f"{name} has no second factor")
            self._forget_second_factor(name)
            self._end_logins(name)

    def _forget_second_factor(self, name: str) -> None:
        for table in ("second_factors", "recovery_codes"):
            self._db.execute(f"DELETE FROM {table} WHERE account = ?", (name,))

    # --- passwords at today's cost, and sessions -----------------------------------------------------

    def _costs(self) -> set[ScryptCost]:
        """Today's cost, and those at which passwords are still kept."""
        found = {passwords.cost_of(row[0]) for row in self._all("SELECT password FROM accounts")}
        return {cost for cost in found if cost is not None} | {self._cost}

    def _rehash(self, name: str, kept: str, password: str) -> None:
        """Keep a password that was right at today's cost, unless it was changed meanwhile."""
        fresh = passwords.hashed(password, self._cost)
        with self._transaction():
            self._db.execute(
                "UPDATE accounts SET password = ? WHERE name = ? AND password = ?", (fresh, name, kept)
            )

    def session(self, token: str, *, used: bool = True) -> Session | None:
        """The session of a token, unless it is over; `used` says that a person caused the request."""
        now = time.time()
        row = self._one(
            f"SELECT {_ACCOUNT}, digest, sessions.used FROM sessions"
            " JOIN accounts ON name = account WHERE digest = ? AND began > ? AND sessions.used > ?",
            _digest(token), now - SESSION_SECONDS, now - IDLE_SECONDS,
        )  # fmt: skip
        if row is None:
            return None
        *account, digest, last = row
        if used and now - last > 60:  # not a write for every request
            with self._transaction():
                self._db.execute("UPDATE sessions SET used = ? WHERE digest = ?", (now, digest))
        return Session(self._account(*account), digest)

    def logout(self, session: Session) -> None:
        """End a session."""
        with self._transaction():
            self._db.execute("DELETE FROM sessions WHERE digest = ?", (session.digest,))

    def set_flash(self, session: Session, text: str) -> None:
        """Say this on the next page that the session sees."""
        with self._transaction():
            self._db.execute("UPDATE sessions SET flash = ? WHERE digest = ?", (text, session.digest))

    def take_flash(self, session: Session) -> str | None:
        """What is to be said now, once."""
        row = self._one("SELECT flash FROM sessions WHERE digest = ?", session.digest)
        if row is None or row[0] is None:
            return None
        with self._transaction():
            self._db.execute("UPDATE sessions SET flash = NULL WHERE digest = ?", (session.digest,))
        return str(row[0])

    # --- who did what --------------------------------------------------------------------------------

    def note(
        self,
        account: str,
        address: str,
        action: str,
        target: str,
        outcome: str = "done",
        detail: str = "",
        begun: int | None = None,
        at: float | None = None,
        fleet: str = "",
    ) -> int:
        """Write a line of the audit, durably; -> its number. `begun` is that of the line which it ends, `at`
        (Unix seconds) when it was, if not now; `fleet` the id of the fleet that it is about."""
        told = (one_line(text, most) for text, most in ((target, 300), (outcome, 300), (detail, 2000)))
        values = (
            time.time() if at is None else at,
            one_line(account, 100),
            one_line(address, 100),
            action,
            *told,
            begun,
        )
        with self._transaction():
            row = self._one("SELECT chain FROM deeds ORDER BY number DESC LIMIT 1")
            made = self._db.execute(
                "INSERT INTO deeds"
                " (at, account, address, action, target, outcome, detail, begun, fleet, chain)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, fleet, _chained(row[0] if row else "", (*values, fleet))),
            )
        return int(made.lastrowid or 0)

    def audit_entries(
        self, *, limit: int = 50, before: int | None = None, wanted: AuditFilter | None = None
    ) -> list[AuditEntry]:
        """Lines of the audit, the latest first; before: only those with a smaller number.

        What was begun is listed only as long as its end is not. wanted: which lines; None for all of them.
        """
        where, values = (wanted or AuditFilter()).condition()
        rows = self._all(
            "SELECT number, at, account, address, action, target, outcome, detail, fleet FROM deeds"
            " WHERE number < ? AND NOT EXISTS (SELECT 1 FROM deeds AS ends WHERE ends.begun = deeds.number)"
            f" AND {where} ORDER BY number DESC LIMIT ?",
            before or 2**62, *values, limit,
        )  # fmt: skip
        return [AuditEntry(*row) for row in rows]

    def audit_names(self, wanted: AuditFilter) -> tuple[list[str], list[str]]:
        """(who, what) that lines of the audit name, by the alphabet."""
        where, values = wanted.condition()
        who = self._all(f"SELECT DISTINCT account FROM deeds WHERE {where} ORDER BY account", *values)
        what = self._all(f"SELECT DISTINCT action FROM deeds WHERE {where} ORDER BY action", *values)
        return [row[0] for row in who], [row[0] for row in what]

    def broken(self) -> int | None:
        """The number of the first line that is not what was written, or after which one is missing."""
        chain = ""
        rows = self._all(
            "SELECT number, at, account, address, action, target, outcome, detail, begun, fleet, chain"
            " FROM deeds ORDER BY number"
        )
        for number, *values, kept in rows:
            chain = _chained(chain, tuple(values))
            if chain != kept:
                return int(number)
        return None

    # --- what runs on the console's behalf -----------------------------------------------------------

    def keep_job(self, place: str, job: RunProcess | None) -> None:
        """Record which process runs a run, or None when none does."""
        with self._transaction():
            self._db.execute("DELETE FROM jobs WHERE place = ?", (place,))
            if job is not None:
                self._db.execute("INSERT INTO jobs VALUES (?, ?)", (place, job.encode()))

    def jobs(self) -> dict[str, RunProcess]:
        """place -> the process that runs it, or ran it last."""
        return {place: RunProcess.decode(job) for place, job in self._all("SELECT place, job FROM jobs")}

    # --- revocations that were asked for -------------------------------------------------------------

    def keep_revocation(self, fleet: str, member: int, why: str, account: str) -> None:
        """Remember who asked for a revocation, and why."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO revocations VALUES (?, ?, ?, ?, ?)",
                (fleet, member, why, account, time.time()),
            )

    def revocations(self, fleet: str) -> list[tuple[int, str, str, float]]:
        """(member, why, account, when) of all that were asked for here."""
        query = "SELECT member, why, account, at FROM revocations WHERE fleet = ?"
        return [tuple(row) for row in self._all(query, fleet)]

    # --- SQLite --------------------------------------------------------------------------------------

    def _one(self, query: str, *values: object) -> Any:
        rows = self._all(query, *values)
        return rows[0] if rows else None

    def _all(self, query: str, *values: object) -> list[Any]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise ConsoleError(f"{self._path}: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One change: all of it is durable at the end, or nothing of it happened."""
        with self._lock, change(self._db, self._path, ConsoleError):
            yield


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _chained(before: str, values: tuple[Any, ...]) -> str:
    """The hash of a line, whose last value is its fleet; without one as in 0.3 and before."""
    values = values if values[-1] else values[:-1]
    return hashlib.sha256(json.dumps([before, *values]).encode()).hexdigest()
