"""What was fitted to choices: sealed, replaced as a whole, and gone for good when it is forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from penchant.client.vault.fitted_store import KEYS, STORE, FittedStore
from penchant.client.vault.sealing import SealedStorage
from penchant.common.errors import DeviceError

LEARNED = b"what was learned from choices" * 400


def opened(home: Path) -> FittedStore:
    return FittedStore(home, SealedStorage.of(home))


def test_it_outlives_the_process_and_lies_in_no_file_in_clear(tmp_path: Path) -> None:
    opened(tmp_path).replace({"about": b"this", "doubt": LEARNED})
    assert opened(tmp_path).read("doubt") == LEARNED
    assert opened(tmp_path).read("nothing") == b""
    assert all(LEARNED[:20] not in path.read_bytes() for path in tmp_path.iterdir())
    opened(tmp_path).replace({"about": b"that"})
    assert (opened(tmp_path).read("about"), opened(tmp_path).read("doubt")) == (b"that", b"")


@pytest.mark.parametrize("how", ["forget", "replace"])
def test_what_was_kept_opens_no_more_even_from_a_copy_of_its_file(tmp_path: Path, how: str) -> None:
    store = opened(tmp_path)
    store.replace({"doubt": LEARNED})
    copy = tmp_path / "copy"
    shutil.copy(tmp_path / STORE, copy)
    if how == "forget":
        store.forget()
        assert store.read("doubt") == b""
        assert not any((tmp_path / KEYS).read_bytes())  # every key is overwritten
    else:
        store.replace({"about": b"other"})
    shutil.copy(copy, tmp_path / STORE)
    (tmp_path / f"{STORE}-journal").unlink()
    with pytest.raises(DeviceError, match="does not open"):
        store.read("doubt")


def test_its_mark_is_another_one_after_each_change_and_no_other_way(tmp_path: Path) -> None:
    store = opened(tmp_path)
    marks = [store.mark()]
    for change in (
        lambda: store.replace({"about": b"this", "doubt": b"that"}),
        lambda: store.replace({"about": b"this", "doubt": b"that"}),
        lambda: store.replace({"about": b"this", "doubt": b"those"}),
    ):
        change()
        marks.append(store.mark())
        assert store.read("about") == b"this"
        assert opened(tmp_path).mark() == marks[-1]
    assert len(set(marks)) == 4
    store.forget()
    assert store.mark() == marks[0]


def test_another_devices_key_opens_nothing(tmp_path: Path) -> None:
    opened(tmp_path).replace({"doubt": LEARNED})
    with pytest.raises(DeviceError, match="does not open"):
        FittedStore(tmp_path, SealedStorage(bytes(32))).read("doubt")
