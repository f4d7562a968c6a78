"""The console's passwords: kept at today's cost, those of earlier versions from the next login on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from penchant.common.crypto import passphrase
from penchant.common.crypto.passphrase import RECOMMENDED, ScryptCost
from penchant.server.console import passwords
from penchant.server.console.accounts import ConsoleStore, LoginPlace

OLD, NEW = ScryptCost(2**10), ScryptCost(2**11)
PASSWORD = "correct horse battery"

HERE = LoginPlace("192.0.2.1", "192.0.2.1", False, False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ConsoleStore]:
    """A console of today, with one account of today and one that an earlier version made."""
    with closing(ConsoleStore(tmp_path, OLD)) as earlier:
        earlier.add("olga", "operator", PASSWORD)
    with closing(ConsoleStore(tmp_path, NEW)) as made:
        made.add("vera", "viewer", PASSWORD)
        yield made


def kept(store: ConsoleStore) -> dict[str, str]:
    with closing(sqlite3.connect(store.directory / "console.db")) as db:
        return dict(db.execute("SELECT name, password FROM accounts"))


def test_a_password_costs_a_guess_what_is_recommended(tmp_path: Path) -> None:
    with closing(ConsoleStore(tmp_path)) as store:
        store.add("olga", "operator", PASSWORD)
        assert kept(store)["olga"].startswith(f"scrypt${RECOMMENDED}$")


def test_an_old_password_is_kept_at_todays_cost_after_its_next_login(store: ConsoleStore) -> None:
    before = kept(store)
    assert passwords.cost_of(before["olga"]) == OLD
    assert store.login("olga", "wrong horse battery", HERE) is None
    assert kept(store) == before
    for _ in range(2):
        token = store.login("olga", PASSWORD, HERE)
        assert token is not None
        assert store.session(token) is not None
        assert passwords.cost_of(kept(store)["olga"]) == NEW
    assert kept(store)["vera"] == before["vera"]
    assert store.login("olga", "wrong horse battery", HERE) is None


def test_the_work_of_a_login_does_not_tell_whether_there_is_such_an_account(
    store: ConsoleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One account is still kept at the old cost: a stranger, it and another cost the same to refuse."""
    spent: list[int] = []
    real = passphrase.stretched

    def counted(secret: bytes, salt: bytes, cost: ScryptCost = RECOMMENDED) -> bytes:
        spent.append(cost.n)
        return real(secret, salt, cost)

    monkeypatch.setattr(passwords, "stretched", counted)
    work = []
    for name in ("olga", "vera", "nobody"):
        spent.clear()
        assert store.login(name, "wrong horse battery", HERE) is None
        work.append(sorted(spent))
    assert work == [[OLD.n, NEW.n]] * 3


@pytest.mark.parametrize(
    "damaged",
    ["", "scrypt$nonsense", "scrypt$1000$8$1$00$00", "scrypt$-2$8$1$00$00"],
)
def test_a_damaged_hash_lets_nobody_in(damaged: str) -> None:
    assert not passwords.check(PASSWORD, damaged)
