"""Keys that can be destroyed: in place, one by one, and never one that is still needed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from penchant.client.device.preference_store import KEYS, PreferenceStore
from penchant.client.vault.erasable import ErasableStorage
from penchant.client.vault.key_slots import KeySlots
from penchant.client.vault.sealing import OLD_KEY_FILE, OLD_SALT_FILE, ROOT_FILE, SealedStorage
from penchant.client.vault.vault import Vault
from penchant.common.crypto.passphrase import ScryptCost, stretched
from penchant.common.data.preferences import Preference
from penchant.common.errors import DeviceError, UsageError
from penchant.common.storage import write_private

CHEAP = ScryptCost(2**10)
RUN, OTHER = bytes(16), bytes(range(16))


def choice(number: int) -> Preference:
    return Preference(f"question {number}? ", f"yes {number}", f"no {number}")


# --- slots ----------------------------------------------------------------------------------------


def test_a_destroyed_key_is_overwritten_where_it_lay_and_its_slot_is_used_again(tmp_path: Path) -> None:
    slots = KeySlots(tmp_path / "keys")
    taken = dict(slots.take(200))
    inode = (tmp_path / "keys").stat().st_ino
    assert list(taken) == list(range(200))
    slots.keep_only(set(range(200)) - {3, 150})
    data = (tmp_path / "keys").read_bytes()
    assert [key in data for key in taken.values()] == [slot not in (3, 150) for slot in taken]
    assert ((tmp_path / "keys").stat().st_ino, len(data) % 4096) == (inode, 0)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    again = slots.take(3)
    assert [slot for slot, _ in again] == [3, 150, 200]
    assert not set(taken.values()) & {key for _, key in again}


def test_a_slot_that_is_free_or_not_there_holds_no_key(tmp_path: Path) -> None:
    slots = KeySlots(tmp_path / "keys")
    ((slot, key),) = slots.take(1)
    assert slots.at(slots.keys(), slot) == key
    for other in (slot + 1, 10**6):
        with pytest.raises(DeviceError, match="its key was destroyed, or the file of keys was changed"):
            slots.at(slots.keys(), other)


def test_a_value_that_is_too_short_to_name_a_slot_is_refused(tmp_path: Path) -> None:
    storage = ErasableStorage(SealedStorage(bytes(32)), tmp_path / "keys")
    with pytest.raises(DeviceError, match="does not open: the file was changed"):
        storage.open([(b"abc", "personal")])


def test_a_value_does_not_open_once_its_key_is_destroyed_nor_under_another_root(tmp_path: Path) -> None:
    storage = ErasableStorage(SealedStorage(bytes(32)), tmp_path / "keys")
    one, other = storage.seal([(b"one", "it"), (b"other", "it")])
    foreign = ErasableStorage(SealedStorage(bytes(31) + b"1"), tmp_path / "keys")
    with pytest.raises(DeviceError, match="does not open"):
        foreign.open([(one, "it")])
    storage.destroy_but([other])
    assert storage.open([(other, "it")]) == [b"other"]
    for gone in (one, one[:3], b"\xff" * 40):
        with pytest.raises(DeviceError, match="does not open"):
            storage.open([(gone, "it")])
    assert repr(storage) == "ErasableStorage()"


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DeviceError, match="the disk is full; nothing was changed"):
        store.add([choice(2)])
    monkeypatch.undo()
    assert PreferenceStore(tmp_path)._all() == [choice(1)]


# --- broken off -----------------------------------------------------------------------------------


def used(home: Path) -> int:
    data = (home / KEYS).read_bytes()
    return sum(data[i : i + 32] != bytes(32) for i in range(0, len(data), 32))


def test_a_removal_that_was_broken_off_is_finished_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    store = PreferenceStore(tmp_path)
    store.add([choice(n) for n in range(5)])
    monkeypatch.setattr(KeySlots, "keep_only", killed)
    with pytest.raises(KeyboardInterrupt):
        store.remove(choice(2))
    assert used(tmp_path) == 5
    monkeypatch.undo()
    assert len(PreferenceStore(tmp_path)) == 4
    assert used(tmp_path) == 4


def test_an_import_that_was_broken_off_leaves_no_key_and_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    store = PreferenceStore(tmp_path)
    store.add([choice(1)])
    monkeypatch.setattr(SealedStorage, "seal", killed)  # after the keys were written
    with pytest.raises(KeyboardInterrupt):
        store.add([choice(2), choice(3)])
    assert used(tmp_path) == 3
    monkeypatch.undo()
    again = PreferenceStore(tmp_path)
    assert used(tmp_path) == 1
    assert again._all() == [choice(1)]


def test_an_agent_that_writes_on_after_forgetting_leaves_a_vault_that_opens(tmp_path: Path) -> None:
    agent = Vault(tmp_path, SealedStorage.of(tmp_path))
    agent.keep_blob("identity", b"somebody")
    Vault(tmp_path, SealedStorage.of(tmp_path)).forget()
    agent.keep_blob("member list", b"a newer one")
    assert agent.blob("identity") == b""
    assert Vault(tmp_path, SealedStorage.of(tmp_path)).blob("member list") == b"a newer one"


# --- files of earlier versions --------------------------------------------------------------------


def earlier(home: Path, passphrase: str | None) -> SealedStorage:
    """A home as 0.3 left it: a vault whose values are sealed under one key, and nothing else."""
    home.mkdir(mode=0o700)
    if passphrase is None:
        write_private(home / OLD_KEY_FILE, bytes(range(32)))
        old = SealedStorage(bytes(range(32)))
    else:
        write_private(home / OLD_SALT_FILE, bytes(16))
        old = SealedStorage(stretched(passphrase.encode(), bytes(16), CHEAP))
    write_private(home / "vault.check", old.seal(b"penchant vault", "check"))
    vault = Vault(home)
    with vault._transaction() as db:
        db.execute("PRAGMA application_id = 0")
        for name, value in (("identity", b"somebody"), ("member list", b"all of them")):
            db.execute("INSERT INTO blobs VALUES (?, ?)", (name, old.seal(value, f"blob {name}")))
        for run, state, number in ((RUN, "committed", 3), (RUN, "staged", 4), (OTHER, "committed", 2)):
            vector = old.seal(np.arange(number, dtype="<f4").tobytes(), "personal")
            db.execute(
                "INSERT INTO personal VALUES (?, ?, ?, 1, ?, ?, ?)",
                (run, state, number, vector, old.seal(b"factors of %d" % number, "context"), number),
            )
    return old


@pytest.mark.parametrize("passphrase", [None, "short"])
@pytest.mark.parametrize("broken_off", ["", "before the root", "before the vault", "before the old key goes"])
def test_an_earlier_home_is_upgraded_whenever_it_was_broken_off(
    tmp_path: Path, passphrase: str | None, broken_off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    home = tmp_path / "home"
    earlier(home, passphrase)
    cheap = "penchant.client.vault.sealing.OLD", CHEAP
    monkeypatch.setattr(*cheap)
    at = {
        "before the root": "penchant.client.vault.sealing.write_private",
        "before the vault": "penchant.client.vault.erasable.ErasableStorage.seal",
        "before the old key goes": "penchant.client.vault.sealing.erase",
    }.get(broken_off)
    if at:
        monkeypatch.setattr(at, killed)
        with pytest.raises(KeyboardInterrupt):
            Vault(home, SealedStorage.of(home, passphrase, CHEAP))
        monkeypatch.undo()
        monkeypatch.setattr(*cheap)
    if passphrase is not None:
        with pytest.raises(DeviceError, match="wrong passphrase"):
            SealedStorage.of(home, "another", CHEAP)
    for _ in range(2):
        vault = Vault(home, SealedStorage.of(home, passphrase, CHEAP))
        assert [held(vault, run) for run in (RUN, OTHER)] == [
            ([0, 1, 2], b"factors of 3"),
            ([0, 1], b"factors of 2"),
        ]
        assert vault.blob("identity") == b"somebody"
        assert vault.blob("member list") == b"all of them"
        assert not (home / OLD_KEY_FILE).exists()
        assert not (home / OLD_SALT_FILE).exists()
    vault.settle(RUN, [(4, 1)])  # what was staged before the upgrade
    assert held(vault, RUN) == ([0, 1, 2, 3], b"factors of 4")


def held(vault: Vault, run: bytes) -> tuple[list[float], bytes]:
    found = vault.personal(run)
    assert found is not None
    return found.vector.tolist(), found.context


def test_the_old_key_opens_nothing_of_an_upgraded_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    old = earlier(home, None)
    with (home / OLD_KEY_FILE).open("rb") as kept:
        Vault(home, SealedStorage.of(home))
        assert kept.read() == bytes(32)
    with Vault(home)._transaction() as db:
        sealed = [bytes(row[0]) for row in db.execute("SELECT data FROM blobs")]
    for data in sealed:
        for cut in (data, data[4:]):
            with pytest.raises(DeviceError, match="does not open"):
                old.open(cut, "blob identity")


def test_a_new_passphrase_must_not_be_weak_and_costs_what_is_recommended(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="passphrase"):
        SealedStorage.of(tmp_path / "weak", "short", CHEAP)
    assert list((tmp_path / "weak").iterdir()) == []
    SealedStorage.of(tmp_path / "good", "correct horse", CHEAP)
    root = tmp_path / "good" / ROOT_FILE
    assert root.read_bytes().startswith(b"penchant-scrypt$1024$8$1$")
    with root.open("rb") as kept:  # today's cost has risen meanwhile
        key = SealedStorage.of(tmp_path / "good", "correct horse", ScryptCost(2**11))._key
        assert set(kept.read()) == {0}
    assert root.read_bytes().startswith(b"penchant-scrypt$2048$8$1$")
    assert SealedStorage.of(tmp_path / "good", "correct horse", CHEAP)._key == key
