"""What an owner has forgotten is on no block of the disk: the raw file system image is searched for it.

Texts are looked for, and every key that could open what was sealed. Needs root, for a loop mount.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from system.disks import raw_disk

from penchant.client.device.device import Device
from penchant.client.device.preference_store import KEYS as CHOICE_KEYS
from penchant.client.device.preference_store import TIE_KEYS
from penchant.client.vault.sealing import OLD_KEY_FILE
from penchant.client.vault.vault import KEYS as VAULT_KEYS
from penchant.common.crypto.passphrase import ScryptCost
from penchant.common.data.preferences import Preference
from penchant.common.storage import erase, write_private
from penchant.deploy.fleet.authority import KEY, AuthorityStore

pytestmark = pytest.mark.system

RUN = bytes(16)
SECRET = b"thirty-two bytes of an identity."
FACTOR = np.linspace(0.123, 0.321, 500, dtype=np.float32)


def choice(number: int) -> Preference:
    """Texts long enough for pages of their own, with a word that nothing else on a disk holds."""
    return Preference(
        f"quagmire{number:04d} " * 40, f"xylophone{number:04d} " * 90, f"zeppelin{number:04d} " * 90
    )


class Disk:
    """An image, the folder that it is mounted at, and a device's home in it."""

    def __init__(self, place: Path) -> None:
        self.image = place / "image"
        self.folder = place / "disk"

    def mounted(self) -> AbstractContextManager[Path]:
        return raw_disk(self.image, self.folder)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def keys(self) -> list[bytes]:
        """Every key that opens something now."""
        os.sync()
        found = []
        for name in (CHOICE_KEYS, TIE_KEYS, VAULT_KEYS):
            data = (self.home / name).read_bytes()
            slots = [data[i : i + 32] for i in range(0, len(data), 32)]
            found += [slot for slot in slots if slot.strip(b"\0")]
        return found

    def holds(self, *needles: bytes) -> list[bytes]:
        """Those of the needles that are somewhere on the raw disk, unmounted by now."""
        data = self.image.read_bytes()
        return [needle for needle in needles if needle in data]


TEXTS = (b"quagmire", b"xylophone", b"zeppelin", b"a-telling-file-name", SECRET, FACTOR[:8].tobytes())


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def filled(home: Path) -> Device:
    """A device that has recorded, found some equal, changed its mind, trained and joined, several times
    over."""
    device = Device(home)
    device.record([choice(n) for n in range(40)], "file a-telling-file-name.jsonl")
    for n in range(40, 48):
        device.record([choice(n)], "label")
    for n in range(50, 52):
        device.store.add_tie(choice(n), "equal", "label")
    for turn in range(4):
        device.vault.keep_personal(RUN, 1, FACTOR * (turn + 1), SECRET, version=device.vault.version())
        device.vault.keep_blob("identity", SECRET)
    return device


def test_what_is_forgotten_is_on_no_block_of_the_disk(disk: Disk) -> None:
    with disk.mounted():
        (disk.folder / "control").write_bytes(b"a word in clear: ornithopter")
        device = filled(disk.home)
        before = disk.keys()
    assert disk.holds(b"ornithopter") == [b"ornithopter"]  # the search finds what there is
    assert len(before) == 48 + 2 + 3
    assert disk.holds(*before) == before
    assert disk.holds(*TEXTS) == []  # sealed from the first byte

    with disk.mounted():
        device = Device(disk.home)
        assert device.store.remove(choice(7))
        (gone,) = set(before) - set(disk.keys())
        assert len(device.store) == 47
    assert disk.holds(gone) == []
    assert disk.holds(*before) == [key for key in before if key != gone]

    with disk.mounted():
        device = Device(disk.home)
        device.vault.tell_owner("keys", "POLICY", "a-telling-reason")
        assert device.forget() == 47
        assert disk.keys() == []
    assert disk.holds(*before, *TEXTS, b"a-telling-reason") == []


def test_chosen_choices_and_what_was_learned_are_on_no_block_of_the_disk(disk: Disk) -> None:
    with disk.mounted():
        device = filled(disk.home)
        before = disk.keys()
    with disk.mounted():
        device = Device(disk.home)
        assert device.store.remove_these(device.store.recorded()[10:13]) == 3
        device.vault.forget_learned()
        left = disk.keys()
        gone = [key for key in before if key not in left]
        assert len(gone) == 3 + 2  # personal part and what belongs to it, which was sealed anew
        assert len(device.store) == 45
    assert disk.holds(*before) == [key for key in before if key not in gone]
    assert disk.holds(*TEXTS) == []


def test_a_tie_that_is_forgotten_is_on_no_block_of_the_disk(disk: Disk) -> None:
    with disk.mounted():
        filled(disk.home)
        before = disk.keys()
    with disk.mounted():
        store = Device(disk.home).store
        assert store.remove_ties(store.ties()[:1]) == 1
        (gone,) = set(before) - set(disk.keys())
        assert (len(store), len(store.ties())) == (48, 1)
    assert disk.holds(*before) == [key for key in before if key != gone]
    assert disk.holds(*TEXTS) == []


def test_leaving_a_fleet_leaves_no_identity_on_the_disk(disk: Disk) -> None:
    with disk.mounted():
        device = filled(disk.home)
        before = set(disk.keys())
        device.vault.keep_blobs({"identity": b""})  # as `leave` does
        gone = before - set(disk.keys())
        assert len(device.store) == 48
    assert len(gone) == 1
    assert disk.holds(*gone, SECRET) == []


def test_an_authoritys_key_under_2048_rounds_is_overwritten_when_it_is_upgraded(disk: Disk) -> None:
    form, rounds = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"old")
    with disk.mounted():
        authority_store = AuthorityStore.init(disk.home)
        key = serialization.load_pem_private_key((disk.home / KEY).read_bytes(), None)
        clear = (disk.home / KEY).read_bytes().splitlines()[1]
        erase(disk.home / KEY)
        weak = key.private_bytes(serialization.Encoding.PEM, form, rounds)
        write_private(disk.home / KEY, weak)
        lines = [line for line in weak.splitlines() if not line.startswith(b"-")]
    assert disk.holds(clear) == []
    assert disk.holds(*lines) == lines
    with disk.mounted():
        assert AuthorityStore(disk.home, "old", cost=ScryptCost(2**10)).digest == authority_store.digest
    assert disk.holds(*lines) == []


def test_what_an_earlier_version_kept_in_clear_is_sealed_and_overwritten(disk: Disk) -> None:
    with disk.mounted():
        disk.home.mkdir(mode=0o700)
        (disk.home / OLD_KEY_FILE).write_bytes(SECRET)
        (disk.home / OLD_KEY_FILE).chmod(0o600)
        db = sqlite3.connect(disk.home / "preferences.db")
        db.execute(
            "CREATE TABLE choices (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, "
            "prompt TEXT NOT NULL, chosen TEXT NOT NULL, rejected TEXT NOT NULL, source TEXT NOT NULL, "
            "recorded REAL NOT NULL)"
        )
        for n in range(20):
            p = choice(n)
            row = (bytes([n]), p.prompt, p.chosen, p.rejected, "file a-telling-file-name", 1.0)
            db.execute("INSERT INTO choices VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)
        db.commit()
        db.close()
    assert len(disk.holds(*TEXTS)) == 5  # all but a factor, which was never made
    with disk.mounted():
        device = Device(disk.home)
        assert set(device.store._all()) == {choice(n) for n in range(20)}
        assert not (disk.home / OLD_KEY_FILE).exists()
    assert disk.holds(*TEXTS) == []
