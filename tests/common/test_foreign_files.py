"""Somebody else's files, read up to a bound."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from penchant.common.errors import DataError
from penchant.common.foreign_files import CHUNK, read_bytes


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
