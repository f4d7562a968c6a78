"""Somebody else's files, read up to a bound."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from penchant.common.errors import DataError, JournalError
from penchant.common.foreign_files import CHUNK, Remembered, mark_of, read_bytes


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_a_file_is_read_up_to_its_bound_and_not_a_byte_further(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert read_bytes(path, DataError, size) == path.read_bytes()
    with path.open("ab") as file:
        file.write(b"y")
    with pytest.raises(DataError, match=f"is longer than {size} bytes; it is not what penchant wrote"):
        read_bytes(path, DataError, size)


def test_a_small_file_takes_little_memory_whatever_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "file", DataError, 1 << 34) == b"x"
        assert tracemalloc.get_traced_memory()[1] < 4 * CHUNK
    finally:
        tracemalloc.stop()


# --- what was read before -------------------------------------------------------------------------


def test_a_file_is_read_again_once_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    read: list[str | None] = []

    def whole(path: Path, before: str | None) -> str:
        read.append(before)
        return path.read_text()

    remembered = Remembered(whole, 10)
    assert [remembered.get(path, mark_of(path)) for _ in range(3)] == ["one"] * 3
    with path.open("a") as file:
        file.write(" more")
    assert remembered.get(path, mark_of(path)) == "one more"
    (tmp_path / "new").write_text("two")
    (tmp_path / "new").replace(path)
    assert remembered.get(path, mark_of(path)) == "two"
    assert read == [None, "one", None]  # what was replaced is not what was known


def test_why_a_file_can_not_be_read_is_remembered_too(tmp_path: Path) -> None:
    path, tries = tmp_path / "file", 0

    def never(path: Path, before: object) -> object:
        nonlocal tries
        tries += 1
        raise JournalError("it is damaged")

    remembered = Remembered(never, 10)
    for _ in range(3):
        with pytest.raises(JournalError, match="it is damaged"):
            remembered.get(path, mark_of(path))
    assert tries == 1


def test_what_was_asked_for_longest_ago_is_forgotten_first(tmp_path: Path) -> None:
    read: list[str] = []

    def noted(path: Path, before: str | None) -> str:
        read.append(path.name)
        return path.name

    remembered = Remembered(noted, 5, weigh=len)
    for name in ("a", "bb", "a", "ccc", "a", "bb", "longer than all"):
        remembered.get(tmp_path / name, mark_of(tmp_path / name))
    assert read == ["a", "bb", "ccc", "bb", "longer than all"]
    remembered.get(tmp_path / "longer than all", mark_of(tmp_path / "longer than all"))
    assert len(read) == 5  # the last one is kept, whatever it weighs
