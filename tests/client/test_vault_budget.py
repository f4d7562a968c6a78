"""The disk that a device gives: old runs go, the owner's bound holds, what forbids to answer twice stays."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from penchant.client.vault import budget
from penchant.client.vault.budget import ALONE, FREE_LEAST, RELEASED, Room
from penchant.client.vault.vault import Vault
from penchant.common.errors import DeviceError, PolicyRefusal, StageError

MB = 1 << 20


def vector(size: int, value: float = 1.0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(size // 4, value, dtype=np.float32)


def run_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def play(vault: Vault, run: bytes, size: int, most: int = 1000 * MB, runs: int = 4, rounds: int = 1) -> None:
    """A run that leaves what it must: a committed factor and a staged one."""
    for number in range(1, rounds + 2):
        vault.begin(run, number, 1, [(number - 1, 1)], room=Room(size, most, runs))
        vault.stage(run, number, 1, vector(size))
        vault.mark_unmasked(run, number, 1)


def kept(vault: Vault, numbers: range) -> list[int]:
    return [number for number in numbers if vault.personal(run_of(number)) is not None]


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_many_runs_leave_no_more_than_a_few(tmp_path: Path) -> None:
    """A server that begins run after run: each left its rows for good."""
    vault = Vault(tmp_path)
    for number in range(1, 13):
        play(vault, run_of(number), MB // 4)
    assert kept(vault, range(1, 13)) == [9, 10, 11, 12]
    assert on_disk(tmp_path) < 5 * MB
    assert vault.disk_use().runs == 4


def test_attempts_stay_burnt_whatever_is_removed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for number in range(1, 7):
        play(vault, run_of(number), 1000)
    assert kept(vault, range(1, 7)) == [3, 4, 5, 6]
    assert vault.disk_use().attempts == 12
    for number in range(1, 7):
        for attempt in (1, 2):
            with pytest.raises(StageError):
                vault.begin(run_of(number), 2, attempt, [], room=Room(1000, 100 * MB, 4))


@pytest.mark.parametrize("most", [2 * MB, 3 * MB, 8 * MB])
def test_the_files_never_grow_beyond_what_the_owner_allows(tmp_path: Path, most: int) -> None:
    vault, size = Vault(tmp_path), MB // 4
    for number in range(1, 6):
        for round in range(1, 4):
            vault.begin(run_of(number), round, 1, [(round - 1, 1)], room=Room(size, most, 100))
            assert on_disk(tmp_path) <= most
            vault.stage(run_of(number), round, 1, vector(size))
            assert on_disk(tmp_path) <= most
    assert kept(vault, range(1, 6))[-1] == 5


def test_a_run_that_does_not_fit_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for number in range(1, 4):
        play(vault, run_of(number), MB // 4)
    with pytest.raises(PolicyRefusal, match=r"needs 40\.1 MB of disk beside .* allows 8\.0 \(max_disk_mb\)"):
        vault.begin(run_of(9), 1, 1, [], room=Room(10 * MB, 8 * MB, 4))
    assert kept(vault, range(1, 4)) == [1, 2, 3]
    vault.begin(run_of(9), 1, 1, [], room=Room(MB, 8 * MB, 4))  # and the attempt was not used up


def test_for_a_large_run_the_oldest_go_first_and_the_model_in_use_stays(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for number in range(1, 5):
        play(vault, run_of(number), MB // 2)
    vault.begin(run_of(9), 1, 1, [], room=Room(MB, 6 * MB, 100))
    assert kept(vault, range(1, 10)) == [4]
    with pytest.raises(PolicyRefusal):
        vault.begin(run_of(10), 1, 1, [], room=Room(MB, 5 * MB, 100))
    assert kept(vault, range(1, 10)) == [4]


def test_runs_that_never_finish_a_round_push_out_neither_the_model_in_use_nor_what_was_trained_alone(
    tmp_path: Path,
) -> None:
    vault = Vault(tmp_path)
    vault.keep_personal(ALONE, 0, vector(1000, 7.0), b"", version=vault.version())
    play(vault, run_of(1), 1000)
    for number in range(2, 10):
        vault.begin(run_of(number), 1, 1, [], room=Room(1000, 100 * MB, 2))
        vault.stage(run_of(number), 1, 1, vector(1000))
    alone, latest = vault.personal(ALONE), vault.latest()
    assert alone is not None
    assert alone.vector[0] == 7.0
    assert latest is not None
    assert latest[0] == run_of(1)
    assert vault.disk_use().runs == 4  # those two, the one that is open, and the one before it


def test_a_run_that_goes_on_keeps_its_factor(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    play(vault, run_of(1), 1000, runs=1)
    for number in (2, 3):
        play(vault, run_of(number), 1000, runs=1)
        vault.begin(run_of(number), 3, 1, [(2, 1)], room=Room(1000, 100 * MB, 1))
        found = vault.personal(run_of(number))
        assert found is not None
        assert found.round == 2


@pytest.mark.parametrize("name", [ALONE, RELEASED])
def test_no_server_takes_the_name_of_what_was_trained_without_it(tmp_path: Path, name: bytes) -> None:
    vault = Vault(tmp_path)
    vault.keep_personal(name, 0, vector(1000), b"", version=vault.version())
    with pytest.raises(StageError, match="trained without it"):
        vault.begin(name, 1, 1, [])


def test_a_disk_without_room_refuses_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3 * MB, f_frsize=1))
    vault.begin(run_of(1), 1, 1, [], room=Room(MB // 4, 100 * MB, 4))
    with pytest.raises(DeviceError, match=r"less than 8\.0 MB are free"):
        vault.begin(run_of(2), 1, 1, [], room=Room(MB, 100 * MB, 4))
    with pytest.raises(DeviceError, match=r"less than 4\.0 MB are free"):
        vault.begin(run_of(3), 1, 1, [], room=Room(3 * MB // 4, 100 * MB, 4))
    vault.begin(run_of(2), 1, 1, [], room=Room(MB // 4, 100 * MB, 4))


def test_a_round_may_take_all_that_is_allowed_and_all_that_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, room = Vault(tmp_path), Room(1000, 100 * MB, 4)
    with vault._transaction() as db:
        needed = budget._beside(db, run_of(1)) + room.needed
        budget.make_room(db, tmp_path / "vault.db", run_of(1), replace(room, most=needed))
        with pytest.raises(PolicyRefusal, match="max_disk_mb"):
            budget.make_room(db, tmp_path / "vault.db", run_of(1), replace(room, most=needed - 1))
        free = SimpleNamespace(f_bavail=FREE_LEAST, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda _: free)
        budget.make_room(db, tmp_path / "vault.db", run_of(1), room)
        free.f_bavail -= 1
        with pytest.raises(DeviceError, match="too full"):
            budget.make_room(db, tmp_path / "vault.db", run_of(1), room)
        assert not budget.worth_compacting(db)


def test_a_vault_of_before_is_pruned_and_gives_the_disk_back(tmp_path: Path) -> None:
    """Earlier versions kept every run: many rows, in a file that SQLite never makes smaller by itself."""
    vault = Vault(tmp_path)
    for number in range(1, 13):
        vault.begin(run_of(number), 1, 1, [])
        vault.stage(run_of(number), 1, 1, vector(MB // 2, number))
        vault.settle(run_of(number), [(1, 1)])
    assert on_disk(tmp_path) > 6 * MB
    vault.prune(4)
    assert kept(vault, range(1, 13)) == [9, 10, 11, 12]
    assert on_disk(tmp_path) < 3 * MB
    assert vault.disk_use().attempts == 12
    for number in range(1, 13):
        with pytest.raises(StageError):
            vault.begin(run_of(number), 1, 1, [])
    found = vault.personal(run_of(12))
    assert found is not None
    np.testing.assert_array_equal(found.vector, vector(MB // 2, 12))


def test_what_is_used_is_told_by_files_and_rows(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    play(vault, run_of(1), 40_000)
    (tmp_path / "preferences.db").write_bytes(bytes(5000))
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "node.key").write_bytes(bytes(300))
    os.symlink("/dev/zero", tmp_path / "endless")
    used = vault.disk_use()
    assert used.personal == 80_000
    assert (used.runs, used.attempts, used.choices) == (1, 2, 5000)
    assert used.vault == sum(path.stat().st_size for path in tmp_path.glob("vault.db*"))
    assert used.total == used.vault + 5300


def test_a_crash_while_the_file_is_written_anew_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(tmp_path)
    for number in range(1, 9):
        vault.begin(run_of(number), 1, 1, [])
        vault.stage(run_of(number), 1, 1, vector(MB // 2, number))
        vault.settle(run_of(number), [(1, 1)])
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def limited(*arguments: object, **more: object) -> sqlite3.Connection:
        db = connect(*arguments, **more)
        db.set_progress_handler(lambda: 1, 200)  # gives up in the middle, as on a full disk
        return db

    with monkeypatch.context() as patched:
        patched.setattr("penchant.common.storage.sqlite3.connect", limited)
        with pytest.raises(DeviceError, match="nothing was changed"):
            vault.prune(1)
    assert vault.personal(run_of(8)) is not None
    vault.prune(1)
    assert kept(vault, range(1, 9)) == [8]
