"""Frozen states on a disk: the same bits, a bound that holds, nothing to find, and no error when it fails."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.model import state_store
from penchant.common.model.state_store import StateStore
from penchant.common.model.tails import Activations

PAGE = state_store._PAGE
TYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int16)


def entry(number: int, size: int = 10) -> Activations:
    """Numbers that no other entry has, of several formats and shapes, some of them empty or single."""
    draw = torch.Generator().manual_seed(number)
    numbers = torch.randint(-(2**15), 2**15, (size, 4), generator=draw)
    return (numbers.to(TYPES[number % 4]), torch.tensor(float(number)), torch.empty(0, 3), numbers.float().T)


def same(one: Activations | None, other: Activations) -> bool:
    """Whether the tensors are of the same format, shape and bits."""
    if one is None or len(one) != len(other):
        return False
    return all(
        (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        and a.contiguous().numpy(force=True).tobytes() == b.contiguous().numpy(force=True).tobytes()
        if a.dtype != torch.bfloat16
        else torch.equal(a.view(torch.int16), b.view(torch.int16))
        for a, b in zip(one, other, strict=True)
    )


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def contents(store: StateStore) -> bytes:
    """All bytes of its file."""
    assert store._file is not None
    return os.pread(store._file, os.fstat(store._file).st_size, 0)


def test_what_is_read_has_the_same_bits_in_memory_of_its_own(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for number in range(8):
        assert store.put(key(number), entry(number, 3000 * number))
    for number in range(8):
        found = store.get(key(number))
        assert same(found, entry(number, 3000 * number))
        assert found is not None
        found[0].zero_()  # which changes nothing of what is kept
        assert found[0].data_ptr() % 64 == 0
        assert same(store.get(key(number)), entry(number, 3000 * number))
    assert store.get(key(9)) is None
    assert store.size(key(9)) is None
    assert store.size(key(2)) == 6000 * 4 * 8 + 4 + 6000 * 4 * 4


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = StateStore(tmp_path, limit=3 * PAGE)
    for number in range(3):
        store.put(key(number), entry(number))
    store.get(key(0))
    store.put(key(1), entry(1))  # is there, and was used now
    store.put(key(3), entry(3))
    assert store.keys() == [key(0), key(1), key(3)]
    assert not store.put(key(4), entry(4, 3 * PAGE))  # more than all of it: nothing goes for that
    assert store.keys() == [key(0), key(1), key(3)]
    store.discard(key(0))
    store.discard(key(0))
    assert (len(store), store.held) == (2, 2 * PAGE)
    store.clear()
    assert (len(store), store.held) == (0, 0)
    assert store.get(key(1)) is None
    assert store.put(key(1), entry(1))
    assert same(store.get(key(1)), entry(1))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "discard"]), st.integers(0, 9), st.sampled_from([0, 100, 2000, 5000])
    ),
    max_size=60,
)


@given(OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_it_is_a_mapping_with_a_bound_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, int]]
) -> None:
    """Against a dictionary from which the least recently used goes while the pages are too many."""
    most = 8
    store = StateStore(tmp_path_factory.getbasetemp(), limit=most * PAGE)
    model: OrderedDict[int, tuple[int, int]] = OrderedDict()  # number -> (size, pages)
    for operation, number, size in operations:
        if operation == "get":
            found = store.get(key(number))
            assert (found is not None) == (number in model)
            if found is not None:
                assert same(found, entry(number, model[number][0]))
                model.move_to_end(number)
        elif operation == "discard":
            store.discard(key(number))
            model.pop(number, None)
        elif number in model:
            assert store.put(key(number), entry(number, size))  # what is there stays
            model.move_to_end(number)
        else:
            _, end = state_store.layout(entry(number, size))
            pages = -(-(end + 16) // PAGE)
            assert store.put(key(number), entry(number, size)) == (pages <= most)
            if pages <= most:
                while sum(taken for _, taken in model.values()) + pages > most:
                    model.popitem(last=False)
                model[number] = (size, pages)
        assert store.keys() == [key(one) for one in model]
        assert store.held == sum(taken for _, taken in model.values()) * PAGE
        if store._file is not None:
            assert os.fstat(store._file).st_size <= most * PAGE


def test_the_file_has_no_name_and_says_nothing(tmp_path: Path) -> None:
    store = StateStore(tmp_path, limit=2 * PAGE)
    for number in range(6):  # each place is written several times
        store.put(key(number), entry(0))
        assert list(tmp_path.iterdir()) == []
        assert store._file is not None
        assert os.fstat(store._file).st_nlink == 0
        assert os.fstat(store._file).st_mode & 0o077 == 0
        data = contents(store)
        assert entry(0)[0].numpy().tobytes()[:16] not in data
        assert entry(0)[3].contiguous().numpy().tobytes()[:16] not in data
    first, second = contents(store)[:64], contents(store)[PAGE : PAGE + 64]
    assert first != second  # the same states, and not the same bytes
    file = store._file
    del store
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_no_two_entries_are_encrypted_with_the_same_nonce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where a place is written anew, nor where the one before was not kept after all."""
    used: list[bytes] = []
    keys: list[bytes] = []
    real = AESGCM

    class Seen:
        def __init__(self, secret: bytes) -> None:
            keys.append(secret)
            self._real = real(secret)

        def encrypt(self, nonce: bytes, data: Any, associated: bytes) -> bytes:
            used.append(keys[-1] + nonce)
            return self._real.encrypt(nonce, data, associated)

    monkeypatch.setattr(state_store, "AESGCM", Seen)
    store = StateStore(tmp_path, limit=2 * PAGE)
    write = os.pwrite

    def refused(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(12):
        monkeypatch.setattr(os, "pwrite", refused if number % 3 == 1 else write)
        store.put(key(number), entry(number))
        if number == 6:
            store.clear()
    assert len(used) == 12
    assert len(set(used)) == 12
    assert len(set(keys)) == 2


def test_damage_is_noticed_and_the_entry_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = StateStore(tmp_path)
    for number in range(4):
        store.put(key(number), entry(number, 4000))
    file, pages = store._file, [stored.pages[0].start for stored in store._stored.values()]
    assert file is not None
    os.pwrite(file, b"?", pages[0] * PAGE + 5)  # a byte
    os.pwrite(file, os.pread(file, 2 * PAGE, pages[2] * PAGE), pages[1] * PAGE)  # another entry's place
    os.ftruncate(file, pages[3] * PAGE + 100)
    with caplog.at_level(logging.WARNING):
        assert [store.get(key(number)) for number in (0, 1, 3)] == [None] * 3
    assert same(store.get(key(2)), entry(2, 4000))
    assert store.keys() == [key(2)]
    (told,) = caplog.messages
    assert told == ("frozen states can't be read from the disk; they are computed again when they are needed")
    assert store.put(key(0), entry(0, 4000))
    assert same(store.get(key(0)), entry(0, 4000))


def test_a_full_disk_is_told_once_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = StateStore(tmp_path, limit=64 * PAGE)
    store.put(key(0), entry(0))
    real, left = os.pwrite, [PAGE]

    def write(file: int, data: Any, place: int) -> int:
        """One page has room, and then there is none."""
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(file, data[: left[0]], place)
        left[0] -= count
        return count

    monkeypatch.setattr(os, "pwrite", write)
    with caplog.at_level(logging.WARNING):
        assert [store.put(key(number), entry(number, 9000)) for number in (1, 2)] == [False, False]
    assert same(store.get(key(0)), entry(0))
    assert (store.keys(), store.held) == ([key(0)], PAGE)
    assert caplog.messages == [
        "frozen states can't be kept on the disk (No space left on device); they are computed again when "
        "they are needed"
    ]
    left[0] = 1 << 30
    assert store.put(key(1), entry(1, 9000))
    assert same(store.get(key(1)), entry(1, 9000))


def test_where_no_file_can_be_made_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = StateStore(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        assert not store.put(key(0), entry(0))
    assert (len(store), store.room(), len(caplog.messages)) == (0, 0, 1)


def test_it_leaves_twice_what_it_takes_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StateStore(tmp_path)

    class Disk:
        f_frsize = PAGE

        @property
        def f_bavail(self) -> int:
            return 30 - store._end

    monkeypatch.setattr(os, "fstatvfs", lambda _: Disk())
    assert store.room() == 10 * PAGE
    for number in range(20):
        assert store.put(key(number), entry(number))
    assert store.held == 10 * PAGE
    assert store.keys() == [key(number) for number in range(10, 20)]


def test_a_forked_process_has_a_file_and_a_key_of_its_own(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.put(key(0), entry(0))
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            before = store._file, store._cipher
            gone = store.get(key(0)) is None and store.put(key(1), entry(1))
            right = gone and same(store.get(key(1)), entry(1)) and store._cipher is not before[1]
            os.write(writing, b"y" if right else b"n")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"y"
    os.close(reading)
    os.close(writing)
    assert store.keys() == [key(0)]
    assert same(store.get(key(0)), entry(0))
    assert len(contents(store)) < PAGE


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="says what is in memory")
def test_temporary_files_in_memory_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {tmp_path / "memory": "tmpfs", tmp_path / "disk": "ext4"}
    monkeypatch.setattr(state_store, "_in_memory", lambda folder: kinds.get(folder) != "ext4")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "disk"))
    assert state_store.lasting_folder() == tmp_path / "disk"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "memory"))
    assert state_store.lasting_folder() is None
    monkeypatch.undo()
    if Path("/dev/shm").is_dir():
        assert state_store._in_memory(Path("/dev/shm"))


def test_a_disk_that_others_fill_has_its_bytes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, others = StateStore(tmp_path), [0]

    class Disk:
        f_frsize = PAGE

        @property
        def f_bavail(self) -> int:
            return 30 - store._end - others[0]

    monkeypatch.setattr(os, "fstatvfs", lambda _: Disk())
    assert all(store.put(key(number), entry(number)) for number in range(10))
    others[0] = 9
    assert store.put(key(10), entry(10))  # 10 pages, and 11 left
    others[0] = 11
    assert not store.put(key(11), entry(11))  # 9 left
    assert (len(store), store.held) == (0, 0)
    assert "nearly full" in caplog.text
    assert store.put(key(12), entry(12))  # begins again, with what there is
    assert same(store.get(key(12)), entry(12))


def test_models_share_a_store_and_its_bound_and_no_entry(tmp_path: Path) -> None:
    store = StateStore(tmp_path, 4 * PAGE)
    one, other = store.part(), store.part()
    for part, first in ((one, 0), (other, 10)):
        assert part.put(key(1), entry(first))
        assert part.put(key(2), entry(first + 1))
    assert same(one.get(key(1)), entry(0))
    assert same(other.get(key(1)), entry(10))
    assert one.keys() == [key(2), key(1)]
    assert one.size(key(2)) == store.size(one._mark + key(2))
    one.clear()
    assert (one.keys(), other.keys(), key(1) in one, key(1) in other) == ([], [key(2), key(1)], False, True)
    other.discard(key(2))
    assert one.put(key(7), entry(7))
    assert store.held <= 4 * PAGE
