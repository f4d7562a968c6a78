"""The owner's ledger: charged before a vector leaves, never refunded, and not to be set back."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.client.device.preference_store import PreferenceStore
from penchant.client.vault.privacy_ledger import (
    ANCHOR,
    Cost,
    LedgerAnchor,
    LedgerEntry,
    PrivacyLedger,
    Spent,
)
from penchant.client.vault.sealing import SealedStorage
from penchant.client.vault.vault import Vault
from penchant.common.errors import DeviceError, LedgerError, PolicyRefusal

RUN, OTHER = bytes(range(16)), bytes(16)
BOX = SealedStorage(bytes(32))
CHEAP = Cost(rho=0.25, most=1.0, times=4)


def spend(ledger: PrivacyLedger, run: bytes = RUN, number: int = 1, cost: Cost = CHEAP) -> None:
    with ledger._transaction() as db:
        ledger.charge(db, LedgerEntry.of(run, number, 1, cost.rho), cost)


def vault(place: Path) -> Vault:
    return Vault(place / "home", BOX)


def test_a_worked_example(tmp_path: Path) -> None:
    ledger = vault(tmp_path).privacy
    assert ledger.spent() == Spent(0.0, 0, 0)
    for number in range(1, 5):
        spend(ledger, number=number)
    assert vault(tmp_path).privacy.spent() == Spent(1.0, 4, 0)
    with pytest.raises(PolicyRefusal, match="as often as its plan says"):
        spend(ledger, number=5)
    with pytest.raises(PolicyRefusal, match="max_epsilon"):
        spend(ledger, OTHER)
    assert ledger.spent() == Spent(1.0, 4, 0)
    assert ledger.ready(OTHER, 1.0, 4)  # it is asked first what it wants
    assert not ledger.ready(RUN, 1.0, 99)
    assert not ledger.ready(RUN, 9.0, 4)


def test_a_run_takes_no_more_vectors_than_its_plan_says(tmp_path: Path) -> None:
    ledger, twice = vault(tmp_path).privacy, Cost(1e-6, 1.0, times=2)
    spend(ledger, number=1, cost=twice)
    spend(ledger, number=1, cost=twice)  # another attempt of the same round counts as well
    with pytest.raises(PolicyRefusal, match="2 attempts of the run"):
        ledger.check(RUN, twice)
    spend(ledger, OTHER, cost=twice)


def test_a_run_is_not_ready_for_more_vectors_than_it_may_take_noised_or_not(tmp_path: Path) -> None:
    for name, rho in (("noised", 0.25), ("exact", None)):
        ledger = vault(tmp_path / name).privacy
        assert ledger.ready(RUN, 1.0, 1)  # others are heard first
        spend(ledger, cost=Cost(rho, 1.0, times=2))
        assert ledger.ready(RUN, 1.0, 2)
        assert not ledger.ready(RUN, 1.0, 1)
        assert ledger.ready(OTHER, 1.0, 1)


def test_a_run_is_begun_only_if_all_of_it_can_be_paid_for(tmp_path: Path) -> None:
    ledger = vault(tmp_path).privacy
    with pytest.raises(PolicyRefusal, match="with up to 5 rounds"):
        spend(ledger, cost=Cost(0.25, 1.0, times=5))
    spend(ledger, cost=Cost(0.25, 1.0, times=4))
    spend(ledger, number=2, cost=Cost(0.25, 0.5, times=4))  # begun: what is left counts from here on


def test_sums_without_noise_are_counted_and_have_no_bound(tmp_path: Path) -> None:
    ledger = vault(tmp_path).privacy
    spend(ledger, cost=Cost(None, 0.0, 5))
    assert ledger.spent() == Spent(0.0, 0, 1)
    spend(ledger, OTHER)
    assert ledger.spent() == Spent(0.25, 1, 1)


@settings(max_examples=25, deadline=None)
@given(costs=st.lists(st.floats(1e-12, 1.0), max_size=12))
def test_the_total_is_the_sum_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, costs: list[float]
) -> None:
    ledger = vault(tmp_path_factory.mktemp("total")).privacy
    for number, rho in enumerate(costs):
        spend(ledger, number=number, cost=Cost(rho, 1e9, 100))
    assert ledger.spent().rho == sum(costs)


def test_forgetting_takes_nothing_back(tmp_path: Path) -> None:
    opened = vault(tmp_path)
    spend(opened.privacy)
    opened.forget()
    assert vault(tmp_path).privacy.spent() == Spent(0.25, 1, 0)


# --- set back -------------------------------------------------------------------------------------


def refused(place: Path, why: str) -> None:
    ledger = vault(place).privacy
    for act in (ledger.spent, lambda: ledger.check(RUN, CHEAP), lambda: spend(ledger, number=9)):
        with pytest.raises(LedgerError, match=why) as caught:
            act()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", ["database alone", "anchor alone", "both"])
def test_a_backup_that_is_put_back_is_noticed(tmp_path: Path, kept: str) -> None:
    spend(vault(tmp_path).privacy)
    shutil.copytree(tmp_path / "home", tmp_path / "backup")
    for number in (2, 3):
        spend(vault(tmp_path).privacy, number=number)
    for name, part in (("vault.db", "database"), (ANCHOR, "anchor")):
        if kept in ("both", f"{part} alone"):
            (tmp_path / "home" / name).unlink()
            shutil.copy2(tmp_path / "backup" / name, tmp_path / "home" / name)
    refused(tmp_path, "set back")


def test_a_backup_of_the_first_day_is_noticed(tmp_path: Path) -> None:
    vault(tmp_path)
    shutil.copytree(tmp_path / "home", tmp_path / "backup")
    spend(vault(tmp_path).privacy)
    shutil.rmtree(tmp_path / "home")
    shutil.copytree(tmp_path / "backup", tmp_path / "home")
    refused(tmp_path, "its anchor is a copy")


def test_a_ledger_that_was_emptied_is_noticed(tmp_path: Path) -> None:
    spend(vault(tmp_path).privacy)
    with sqlite3.connect(tmp_path / "home/vault.db") as db:
        db.execute("DELETE FROM spent")
    (tmp_path / "home" / ANCHOR).unlink()
    refused(tmp_path, "its anchor is gone")


def test_after_a_loss_the_owner_goes_on_with_nothing_left(tmp_path: Path) -> None:
    spend(vault(tmp_path).privacy)
    before = vault(tmp_path).privacy
    assert ([entry.round for entry in before.entries()], before.lost()) == ([1], False)
    (tmp_path / "home" / ANCHOR).unlink()
    vault(tmp_path).privacy.give_up(1.0)
    ledger = vault(tmp_path).privacy
    assert ([entry.round for entry in ledger.entries()], ledger.lost()) == ([1], True)  # no vector left since
    assert ledger.spent() == Spent(1.0, 1, 0)  # what was given up is no vector
    with pytest.raises(PolicyRefusal, match="max_epsilon"):
        spend(ledger, OTHER)
    spend(ledger, OTHER, cost=Cost(0.25, 2.0, 4))  # whose owner allows more


def test_the_owner_goes_on_after_an_entry_was_changed_as_well(tmp_path: Path) -> None:
    spend(vault(tmp_path).privacy)
    with sqlite3.connect(tmp_path / "home/vault.db") as db:
        db.execute("UPDATE spent SET rho = 'many'")
    refused(tmp_path, "an entry was changed")
    vault(tmp_path).privacy.give_up(1.0)
    assert vault(tmp_path).privacy.spent() == Spent(1.0, 0, 0)  # no vector is known any more


def test_an_entry_that_the_database_lost_is_put_in_again(tmp_path: Path) -> None:
    spend(vault(tmp_path).privacy)
    shutil.copy2(tmp_path / "home/vault.db", tmp_path / "before")
    spend(vault(tmp_path).privacy, number=2)
    shutil.copy2(tmp_path / "before", tmp_path / "home/vault.db")
    assert vault(tmp_path).privacy.spent() == Spent(0.5, 2, 0)


def test_two_entries_less_are_noticed_and_so_is_one_that_was_made_cheaper(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        spend(vault(tmp_path).privacy, number=number)
    for change in ("DELETE FROM spent WHERE number > 1", "UPDATE spent SET rho = '0.1' WHERE number = 1"):
        shutil.copy2(tmp_path / "home/vault.db", tmp_path / "before")
        with sqlite3.connect(tmp_path / "home/vault.db") as db:
            db.execute(change)
        refused(tmp_path, "does not match its anchor")
        shutil.copy2(tmp_path / "before", tmp_path / "home/vault.db")
    assert vault(tmp_path).privacy.spent() == Spent(0.75, 3, 0)


@pytest.mark.parametrize("rho", ["-1", "nan", "inf", "many", "1e400"])
def test_an_entry_that_is_no_cost_is_refused(tmp_path: Path, rho: str) -> None:
    spend(vault(tmp_path).privacy)
    with sqlite3.connect(tmp_path / "home/vault.db") as db:
        db.execute("UPDATE spent SET rho = ?", (rho,))
    refused(tmp_path, "set back")


def test_an_anchor_that_is_gone_or_was_changed_is_noticed(tmp_path: Path) -> None:
    spend(vault(tmp_path).privacy)
    anchor = tmp_path / "home" / ANCHOR
    data = anchor.read_bytes()
    anchor.unlink()
    refused(tmp_path, "its anchor is gone")
    anchor.write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))
    refused(tmp_path, "its anchor was changed")


def test_an_anchor_that_can_not_be_read_keeps_the_device_out(tmp_path: Path) -> None:
    spend(vault(tmp_path).privacy)
    anchor = tmp_path / "home" / ANCHOR
    anchor.unlink()
    anchor.mkdir()
    with pytest.raises(DeviceError, match="can't read"):
        vault(tmp_path).privacy.spent()


def test_a_crash_between_anchor_and_database_costs_the_owner(tmp_path: Path) -> None:
    ledger = vault(tmp_path).privacy
    spend(ledger)

    class Crash(BaseException):
        """Power fails."""

    def died() -> None:
        with ledger._transaction() as db:
            ledger.charge(db, LedgerEntry.of(RUN, 2, 1, 0.25), CHEAP)
            raise Crash

    with pytest.raises(Crash):
        died()
    assert vault(tmp_path).privacy.spent() == Spent(0.5, 2, 0)
    assert vault(tmp_path).privacy.spent() == Spent(0.5, 2, 0)  # once


# --- gone altogether ------------------------------------------------------------------------------


def home(place: Path) -> Vault:
    """The vault of a device's home, with the choices beside it, as `Device` opens both."""
    return Vault(place / "home", BOX, PreferenceStore(place / "home", BOX))


def lose(place: Path) -> None:
    """What `rm vault.db* ledger.anchor` does."""
    for path in (place / "home").glob("vault.db*"):
        path.unlink()
    (place / "home" / ANCHOR).unlink()


def test_a_ledger_that_is_gone_altogether_is_noticed_and_the_owner_goes_on_with_nothing_left(
    tmp_path: Path,
) -> None:
    spend(home(tmp_path).privacy)
    lose(tmp_path)
    home(tmp_path)  # opening it begins no new one
    ledger = home(tmp_path).privacy
    for act in (ledger.spent, lambda: ledger.check(RUN, CHEAP), lambda: spend(ledger, number=2)):
        with pytest.raises(LedgerError, match=r"its anchor is gone.*`penchant device spent`"):
            act()
    home(tmp_path).privacy.give_up(1.0)
    assert (home(tmp_path).privacy.spent().rho, home(tmp_path).privacy.lost()) == (1.0, True)
    with pytest.raises(PolicyRefusal, match="max_epsilon"):
        spend(home(tmp_path).privacy, OTHER)


def test_forgetting_everything_does_not_make_a_lost_ledger_a_new_one(tmp_path: Path) -> None:
    spend(home(tmp_path).privacy)
    PreferenceStore(tmp_path / "home", BOX).forget()
    home(tmp_path).forget()
    assert home(tmp_path).privacy.spent() == Spent(0.25, 1, 0)
    lose(tmp_path)
    with pytest.raises(LedgerError, match="its anchor is gone"):
        home(tmp_path).privacy.spent()


def test_a_ledger_from_before_there_were_marks_gets_one(tmp_path: Path) -> None:
    spend(vault(tmp_path).privacy)  # knows of no mark
    assert not PreferenceStore(tmp_path / "home", BOX).ledger_begun()
    assert home(tmp_path).privacy.spent() == Spent(0.25, 1, 0)
    assert PreferenceStore(tmp_path / "home", BOX).ledger_begun()
    lose(tmp_path)
    with pytest.raises(LedgerError, match="its anchor is gone"):
        home(tmp_path).privacy.spent()


@pytest.mark.parametrize("at", ["the anchor", "the mark", "the end"])
def test_a_crash_while_a_ledger_is_begun_loses_nothing(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        """Power fails."""

    def died(*args: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        if at == "the anchor":
            patch.setattr(LedgerAnchor, "write", died)
        elif at == "the mark":
            patch.setattr(PreferenceStore, "note_ledger", died)
        else:
            patch.setattr(Vault, "_destroy_unused", died)  # in the same transaction, after the ledger
        with pytest.raises(Crash):
            home(tmp_path)
    assert home(tmp_path).privacy.spent() == Spent(0.0, 0, 0)
    spend(home(tmp_path).privacy)
    lose(tmp_path)
    with pytest.raises(LedgerError, match="its anchor is gone"):
        home(tmp_path).privacy.spent()


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ANCHOR, "vault.db"])
def test_a_second_name_is_refused_before_anything_is_charged(tmp_path: Path, name: str) -> None:
    """A link keeps the old anchor's inode: with a copy of the database it could be put back later."""
    spend(vault(tmp_path).privacy)
    shutil.copy2(tmp_path / "home/vault.db", tmp_path / "copy")
    os.link(tmp_path / "home" / name, tmp_path / "kept")
    refused(tmp_path, "hard link.*find -samefile")
    with pytest.raises(LedgerError, match="hard link"):
        vault(tmp_path).privacy.give_up(1.0)
    (tmp_path / "kept").unlink()
    assert vault(tmp_path).privacy.spent() == Spent(0.25, 1, 0)  # nothing was charged, and it goes on
    spend(vault(tmp_path).privacy, number=2)


def test_a_second_name_that_comes_between_reading_and_writing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(vault(tmp_path).privacy)
    read = LedgerAnchor.read

    def read_then_link(anchor: LedgerAnchor) -> object:
        found = read(anchor)
        os.link(tmp_path / "home" / ANCHOR, tmp_path / "kept")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(LedgerAnchor, "read", read_then_link)
        with pytest.raises(LedgerError, match="hard link"):
            spend(vault(tmp_path).privacy, number=2)
    (tmp_path / "kept").unlink()
    assert vault(tmp_path).privacy.spent() == Spent(0.25, 1, 0)
    assert not list((tmp_path / "home").glob(".*.tmp"))


@pytest.mark.parametrize("name", [ANCHOR, "vault.db"])
def test_a_symbolic_link_is_refused_before_anything_is_charged(tmp_path: Path, name: str) -> None:
    """The file behind a link keeps its inode while a new anchor takes the link's place."""
    spend(vault(tmp_path).privacy)
    (tmp_path / "home" / name).rename(tmp_path / "kept")
    (tmp_path / "home" / name).symlink_to(tmp_path / "kept")
    shutil.copy2(tmp_path / "home/vault.db", tmp_path / "copy")
    refused(tmp_path, f"{name}: it is no regular file but a link")
    with pytest.raises(LedgerError, match="no regular file"):
        vault(tmp_path).privacy.give_up(1.0)
    (tmp_path / "kept").rename(tmp_path / "home" / name)
    shutil.copy2(tmp_path / "copy", tmp_path / "home/vault.db")
    assert vault(tmp_path).privacy.spent() == Spent(0.25, 1, 0)  # nothing was charged, and it goes on
    spend(vault(tmp_path).privacy, number=2)
    assert vault(tmp_path).privacy.spent() == Spent(0.5, 2, 0)


def test_a_link_that_leads_nowhere_is_no_reason_to_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ANCHOR).symlink_to(tmp_path / "nothing")
    refused(tmp_path, "no regular file")
    assert (tmp_path / "home" / ANCHOR).is_symlink()


def test_a_simulated_device_may_be_set_back(tmp_path: Path) -> None:
    simulated = Vault(tmp_path / "home")
    spend(simulated.privacy, number=1)
    spend(simulated.privacy, number=2)
    simulated.rewind(RUN, 1)
    assert simulated.privacy.spent() == Spent(0.25, 1, 0)
    assert not (tmp_path / "home" / ANCHOR).exists()
