"""What a device never loses and never tears: burnt attempts, and the personal factor of a finished round."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.client.vault.privacy_ledger import Cost, LedgerEntry
from penchant.client.vault.run_ledger import Attempt, RunLimits, enter
from penchant.client.vault.sealing import SealedStorage
from penchant.client.vault.vault import TOLD_MOST, Vault
from penchant.common.errors import DeviceError, StageError

RUN, OTHER = bytes(16), bytes(range(16))


def factor(number: float, size: int = 5) -> np.ndarray:
    """The personal factor that a round is to leave behind."""
    return np.full(size, number, dtype=np.float32)


def kept(home: Path, run: bytes = RUN) -> tuple[int, float, bytes] | None:
    """(round, value, context) of the committed factor, read by a vault opened anew."""
    found = Vault(home).personal(run)
    return None if found is None else (found.round, float(found.vector[0]), found.context)


# --- attempts are burnt ---------------------------------------------------------------------------


def test_an_attempt_is_used_once_even_after_reopening(tmp_path: Path) -> None:
    Vault(tmp_path).begin(RUN, 1, 1, [])
    for vault in (Vault(tmp_path), Vault(tmp_path)):
        with pytest.raises(StageError, match="attempt 1 of round 1 was already used"):
            vault.begin(RUN, 1, 1, [])
    Vault(tmp_path).begin(RUN, 1, 2, [])
    with pytest.raises(StageError, match="attempt 1 of round 1 was already used"):
        Vault(tmp_path).begin(RUN, 1, 1, [])


def test_an_older_attempt_is_refused_although_it_was_never_seen(tmp_path: Path) -> None:
    Vault(tmp_path).begin(RUN, 1, 5, [])
    with pytest.raises(StageError, match="attempt 3 of round 1"):
        Vault(tmp_path).begin(RUN, 1, 3, [])


def test_an_older_round_is_refused(tmp_path: Path) -> None:
    Vault(tmp_path).begin(RUN, 4, 1, [])
    with pytest.raises(StageError, match="round 3 is over: this device has been in round 4"):
        Vault(tmp_path).begin(RUN, 3, 9, [])
    Vault(tmp_path).begin(RUN, 7, 1, [])  # rounds in which it was not asked are skipped


def test_no_attempt_follows_an_unmasking(tmp_path: Path) -> None:
    Vault(tmp_path).begin(RUN, 1, 1, [])
    Vault(tmp_path).mark_unmasked(RUN, 1, 1)
    with pytest.raises(StageError, match="round 1 was already unmasked; no other attempt of it is accepted"):
        Vault(tmp_path).begin(RUN, 1, 2, [])
    Vault(tmp_path).begin(RUN, 2, 1, [])
    assert Vault(tmp_path).rounds() == [(RUN, 1, True), (RUN, 2, False)]


def test_an_attempt_is_unmasked_once_and_only_if_it_was_begun(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    with pytest.raises(StageError, match="never begun here"):
        vault.mark_unmasked(RUN, 1, 1)
    vault.begin(RUN, 1, 1, [])
    vault.mark_unmasked(RUN, 1, 1)
    with pytest.raises(StageError, match="already asked to unmask"):
        Vault(tmp_path).mark_unmasked(RUN, 1, 1)
    with pytest.raises(StageError, match="never begun here"):
        vault.mark_unmasked(RUN, 1, 2)


def test_runs_do_not_burn_each_others_attempts(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 3, 1, [])
    vault.mark_unmasked(RUN, 3, 1)
    vault.begin(OTHER, 1, 1, [])
    vault.begin(OTHER, 3, 1, [])
    assert vault.rounds() == [(RUN, 3, True), (OTHER, 1, False), (OTHER, 3, False)]


def test_one_attempt_is_unmasked_and_no_other(tmp_path: Path) -> None:
    """Neither another attempt of the round, nor another round, nor the same place of another run."""
    vault = Vault(tmp_path)
    places = [(RUN, 1, 2), (RUN, 2, 1), (RUN, 2, 2), (OTHER, 2, 2)]
    for run, number, attempt in places:
        vault.begin(run, number, attempt, [])
    vault.mark_unmasked(RUN, 2, 2)
    assert vault.rounds() == [(RUN, 1, False), (RUN, 2, False), (RUN, 2, True), (OTHER, 2, False)]


# --- staged, then committed or dropped ------------------------------------------------------------


def test_what_is_staged_counts_only_once_the_server_names_its_round_and_attempt(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 2, [])
    vault.stage(RUN, 1, 2, factor(1.5), b"shared of round 1")
    assert kept(tmp_path) is None
    Vault(tmp_path).settle(RUN, [(1, 2)])
    assert kept(tmp_path) == (1, 1.5, b"shared of round 1")
    Vault(tmp_path).settle(RUN, [(1, 2)])  # told again
    assert kept(tmp_path) == (1, 1.5, b"shared of round 1")


@pytest.mark.parametrize("finished", [[], [(1, 1)], [(2, 1)], [(1, 3), (2, 2)]], ids=str)
def test_what_belongs_to_another_attempt_is_dropped_for_good(
    tmp_path: Path, finished: list[tuple[int, int]]
) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 2, [])
    vault.stage(RUN, 1, 2, factor(1.5))
    vault.settle(RUN, finished)
    vault.settle(RUN, [(1, 2)])  # too late: the next message said otherwise
    assert kept(tmp_path) is None


def test_a_dropped_round_leaves_the_factor_of_the_last_one_that_stood(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for number, finished in ((1, []), (2, [(1, 1)]), (3, [(1, 1)])):
        vault.begin(RUN, number, 1, finished)
        vault.stage(RUN, number, 1, factor(number), b"%d" % number)
    assert kept(tmp_path) == (1, 1.0, b"1")  # round 2 was not among the finished ones
    vault.settle(RUN, [(1, 1), (3, 1)])
    assert kept(tmp_path) == (3, 3.0, b"3")


def test_a_new_attempt_settles_the_old_one_in_the_same_breath(tmp_path: Path) -> None:
    """A refused beginning changes nothing: what is staged waits for a message that counts."""
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(1))
    with pytest.raises(StageError):
        vault.begin(RUN, 1, 1, [(1, 1)])
    assert kept(tmp_path) is None
    vault.begin(RUN, 2, 1, [(1, 1)])
    assert kept(tmp_path) == (1, 1.0, b"")


def test_settling_one_run_leaves_another_alone(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for run in (RUN, OTHER):
        vault.begin(run, 1, 1, [])
        vault.stage(run, 1, 1, factor(1))
    vault.settle(OTHER, [])
    vault.settle(RUN, [(1, 1)])
    assert kept(tmp_path, RUN) == (1, 1.0, b"")
    assert kept(tmp_path, OTHER) is None


def test_a_factor_comes_back_bit_for_bit_and_as_a_copy_of_its_own(tmp_path: Path) -> None:
    odd = np.float32([0.1, -0.0, 1e-45, 3.4e38, np.pi])
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, odd)
    vault.settle(RUN, [(1, 1)])
    found = vault.personal(RUN)
    assert found is not None
    assert found.vector.tobytes() == odd.tobytes()
    found.vector[0] = 7  # writable, and nobody else's
    assert kept(tmp_path) == (1, float(odd[0]), b"")
    assert "0.1" not in repr(found)


def test_an_empty_personal_part_is_one_as_well(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(0, size=0))
    vault.settle(RUN, [(1, 1)])
    found = vault.personal(RUN)
    assert found is not None
    assert found.vector.shape == (0,)


# --- a simulator's rewind, an owner's forgetting --------------------------------------------------


def test_rewinding_forgets_every_later_round_of_that_run(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for number in (1, 2, 3):
        vault.begin(RUN, number, 1, [(number - 1, 1)])
        vault.stage(RUN, number, 1, factor(number))
    vault.mark_unmasked(RUN, 3, 1)
    vault.begin(OTHER, 3, 1, [])
    vault.rewind(RUN, 2)
    assert vault.rounds() == [(RUN, 1, False), (RUN, 2, False), (OTHER, 3, False)]
    assert kept(tmp_path) == (2, 2.0, b"")
    vault.begin(RUN, 3, 1, [(2, 1)])  # the same attempt as if it had never been
    assert kept(tmp_path) == (2, 2.0, b"")


def test_rewinding_forgets_what_later_rounds_of_that_run_were_counted_and_charged_for(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    limits, cost = RunLimits(9, 9, 9, 9), Cost(rho=0.25, most=9.0, times=3)
    places = [(run, number) for run in (RUN, OTHER) for number in (1, 2, 3)]
    for run, number in places:
        with vault._transaction() as db:
            enter(db, Attempt(run, number, 1, b"its manifest", 20_000), limits, 20_000)
            vault.privacy.charge(db, LedgerEntry.of(run, number, 1, cost.rho), cost)
    vault.rewind(RUN, 2)
    assert {known.run: (known.rounds, known.attempts) for known in vault.ledger.runs()} == {
        RUN: (2, 2),
        OTHER: (3, 3),
    }
    assert [(entry.run, entry.round) for entry in vault.privacy.entries()] == [
        place for place in places if place != (RUN, 3)
    ]


def test_rewinding_one_run_leaves_the_factors_of_another(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    for run in (RUN, OTHER):
        vault.begin(run, 3, 1, [])
        vault.stage(run, 3, 1, factor(3))
        vault.settle(run, [(3, 1)])
    vault.rewind(RUN, 2)
    assert (kept(tmp_path, RUN), kept(tmp_path, OTHER)) == (None, (3, 3.0, b""))


def test_rewinding_to_the_beginning_leaves_nothing_of_the_run(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(1))
    vault.settle(RUN, [(1, 1)])
    vault.rewind(RUN, 0)
    assert (vault.rounds(), kept(tmp_path)) == ([], None)


def test_forgetting_leaves_only_that_attempts_were_burnt(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(1))
    vault.settle(RUN, [(1, 1)])
    vault.keep_blob("member list", b"list")
    vault.tell_owner("keys", "POLICY", "no")
    vault.forget()
    assert (kept(tmp_path), vault.latest(), vault.blob("member list"), vault.refusals()) == (
        None,
        None,
        b"",
        [],
    )
    with pytest.raises(StageError, match="no other attempt of it"):
        Vault(tmp_path).begin(RUN, 1, 1, [])


def test_nothing_comes_of_a_round_that_was_open_when_the_owner_had_all_forgotten(tmp_path: Path) -> None:
    agent, owner = Vault(tmp_path), Vault(tmp_path)
    agent.begin(RUN, 1, 1, [])
    owner.forget()
    with pytest.raises(StageError, match="forgotten while this round was open"):
        agent.stage(RUN, 1, 1, factor(1))
    with pytest.raises(StageError):
        agent.mark_unmasked(RUN, 1, 1)
    agent.settle(RUN, [(1, 1)])
    assert (kept(tmp_path), owner.latest(), owner.rounds()) == (None, None, [(RUN, 1, False)])
    agent.begin(RUN, 2, 1, [(1, 1)])
    agent.stage(RUN, 2, 1, factor(2))
    agent.settle(RUN, [(2, 1)])
    assert kept(tmp_path) == (2, 2.0, b"")


def test_forgetting_does_not_make_a_sum_unseen_that_this_device_helped_to_open(tmp_path: Path) -> None:
    """Where no entry says so, as with an earlier version, that is all that tells the owner what left."""
    vault = Vault(tmp_path)
    for number in (1, 2):
        vault.begin(RUN, number, 1, [])
    vault.mark_unmasked(RUN, 2, 1)
    vault.begin(OTHER, 1, 1, [])
    vault.forget()
    assert vault.rounds() == [(RUN, 1, False), (RUN, 2, True), (OTHER, 1, False)]
    assert [(run.run, run.rounds, run.exact) for run in vault.contributed()] == [(RUN, 1, 1)]


def test_forgetting_what_was_learned_keeps_what_the_model_in_use_belongs_to(tmp_path: Path) -> None:
    vault = Vault(tmp_path, SealedStorage(bytes(32)))
    for run in (OTHER, RUN):
        vault.begin(run, 1, 1, [])
        vault.stage(run, 1, 1, factor(1), b"its factors")
        vault.settle(run, [(1, 1)])
    vault.begin(RUN, 2, 1, [])
    vault.stage(RUN, 2, 1, factor(2), why="it diverged")
    vault.keep_blob("identity", b"me")
    before = vault.version()
    vault.forget_learned()
    assert vault.version() != before  # a training that began with the old one is not kept
    latest = vault.latest()
    assert latest is not None
    assert (latest[0], latest[1].round, latest[1].vector.size) == (RUN, 1, 0)
    assert (latest[1].context, vault.personal(OTHER)) == (b"its factors", None)
    vault.settle(RUN, [(2, 1)])
    assert vault.latest() is not None
    assert (vault.refusals(), vault.blob("identity")) == ([], b"me")
    vault.forget_learned()
    again = vault.latest()
    assert again is not None
    assert again[1].context == b"its factors"


def test_giving_up_what_is_open_keeps_what_was_committed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(1))
    vault.settle(RUN, [(1, 1)])
    vault.begin(RUN, 2, 1, [])
    vault.stage(RUN, 2, 1, factor(2))
    vault.give_up_open()
    vault.settle(RUN, [(2, 1)])
    assert kept(tmp_path) == (1, 1.0, b"")
    with pytest.raises(StageError):
        vault.mark_unmasked(RUN, 2, 1)


@pytest.mark.parametrize("place", [(OTHER, 1, 1), (RUN, 2, 1), (RUN, 1, 2)], ids=["run", "round", "attempt"])
def test_only_the_attempt_that_was_open_is_given_up(tmp_path: Path, place: tuple[bytes, int, int]) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.begin(*place, [])
    with sqlite3.connect(tmp_path / "vault.db") as db:  # as if forgotten before the second one began
        db.execute("UPDATE burnt SET unmasked = 2 WHERE run = ? AND round = 1 AND attempt = 1", (RUN,))
    vault.stage(*place, factor(2))
    with pytest.raises(StageError, match="forgotten while this round was open"):
        vault.stage(RUN, 1, 1, factor(1))


def test_the_latest_factor_is_one_that_was_committed(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(1))
    assert (vault.latest(), vault.personal(RUN)) == (None, None)
    vault.begin(RUN, 2, 1, [(1, 1)])
    vault.stage(RUN, 2, 1, factor(2))
    latest = vault.latest()
    assert latest is not None
    assert latest[1].round == 1


def test_a_model_trained_alone_never_replaces_what_came_meanwhile(tmp_path: Path) -> None:
    """The owner trains in one process while a round finishes, or all is forgotten, in another."""
    agent, owner = Vault(tmp_path), Vault(tmp_path)
    before = owner.version()
    agent.begin(RUN, 1, 1, [])
    agent.stage(RUN, 1, 1, factor(1))
    assert owner.version() == before  # staged is not committed
    agent.settle(RUN, [(1, 1)])
    with pytest.raises(DeviceError, match="changed while this one was trained"):
        owner.keep_personal(RUN, 1, factor(9), b"", version=before)
    assert kept(tmp_path) == (1, 1.0, b"")
    before = owner.version()
    agent.forget()
    with pytest.raises(DeviceError, match="changed while this one was trained"):
        owner.keep_personal(RUN, 1, factor(9), b"", version=before)
    assert kept(tmp_path) is None
    owner.keep_personal(RUN, 1, factor(3), b"", version=owner.version())
    assert kept(tmp_path) == (1, 3.0, b"")


def test_what_was_committed_last_is_the_latest_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(1))
    vault.keep_personal(OTHER, 0, factor(2), b"", version=vault.version())  # between staging and its end
    monkeypatch.setattr("penchant.client.vault.vault.time.time", lambda: 0.0)  # set back to 1970
    vault.settle(RUN, [(1, 1)])
    latest = vault.latest()
    assert latest is not None
    assert latest[0] == RUN


def test_a_run_that_began_while_the_clock_was_ahead_pushes_out_none_that_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, now = Vault(tmp_path), time.time()
    monkeypatch.setattr("penchant.client.vault.vault.time.time", lambda: now)
    vault.begin(bytes([7]) * 16, 1, 1, [])
    now += 1e9
    vault.stage(bytes([7]) * 16, 1, 1, factor(1))
    now -= 1e9
    for run in (OTHER, RUN):
        vault.begin(run, 1, 1, [])
        vault.stage(run, 1, 1, factor(2))
        vault.settle(run, [(1, 1)])
    vault.prune(2)
    assert (kept(tmp_path, OTHER), kept(tmp_path, RUN)) == ((1, 2.0, b""), (1, 2.0, b""))


def test_what_leaves_is_counted_by_name(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.note_sent([("lora_A", 40), ("masked message", 7)])
    vault.note_sent([("lora_A", 40), ("masked message", 9)])
    assert Vault(tmp_path).sent() == [("lora_A", 2, 80), ("masked message", 2, 16)]
    vault.forget()
    assert vault.sent() == []


# --- what the owner is told, and blobs ------------------------------------------------------------


def test_the_owner_is_told_the_newest_refusals_in_order(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.tell_owner("keys", "POLICY", "paused by the owner")
    vault.tell_owner("masked", "AGREEMENT", "rosters differ")
    assert Vault(tmp_path).refusals() == [
        ("keys", "POLICY", "paused by the owner"),
        ("masked", "AGREEMENT", "rosters differ"),
    ]


def test_refusals_do_not_pile_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TOLD_MOST == 1000
    monkeypatch.setattr("penchant.client.vault.vault.TOLD_MOST", 5)
    vault = Vault(tmp_path)
    for number in range(12):
        vault.tell_owner("keys", "STAGE", str(number))
    assert [reason for _, _, reason in vault.refusals()] == ["7", "8", "9", "10", "11"]


def test_blobs_are_replaced_and_empty_before(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    assert vault.blob("members") == b""
    vault.keep_blob("members", b"first")
    vault.keep_blob("other", b"mine")
    vault.keep_blob("members", bytes(range(256)))
    assert Vault(tmp_path).blob("members") == bytes(range(256))
    assert Vault(tmp_path).blob("other") == b"mine"


# --- at rest --------------------------------------------------------------------------------------


def test_the_directory_and_its_files_are_the_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "agents" / "000007"
    before = os.umask(0)
    try:
        vault = Vault(home)
        vault.begin(RUN, 1, 1, [])
        vault.stage(RUN, 1, 1, factor(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    assert modes["vault.db"] == 0o600
    assert set(modes.values()) == {0o600}


def test_with_a_box_nothing_personal_lies_there_in_clear(tmp_path: Path) -> None:
    secret, context, blob = factor(0.123, 64), b"the shared factors of round 1", b"a list of members"
    sealed, storage = tmp_path / "sealed", SealedStorage(bytes(32))
    clear = tmp_path / "clear"
    for home, used in ((sealed, storage), (clear, None)):
        vault = Vault(home, used)
        vault.begin(RUN, 1, 1, [])
        vault.stage(RUN, 1, 1, secret, context)
        vault.settle(RUN, [(1, 1)])
        vault.keep_blob("list", blob)
    for each in (secret[:16].tobytes(), context, blob):
        assert each in (clear / "vault.db").read_bytes()
        assert not any(each in path.read_bytes() for path in sealed.iterdir())
    found = Vault(sealed, storage).personal(RUN)
    assert found is not None
    assert np.array_equal(found.vector, secret)
    assert (found.context, Vault(sealed, storage).blob("list")) == (context, blob)
    with pytest.raises(DeviceError, match="does not open"):
        Vault(sealed, SealedStorage(bytes([1]) * 32)).personal(RUN)


def test_what_is_forgotten_is_gone_from_the_file(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(0.123, 4000))
    vault.settle(RUN, [(1, 1)])
    trace = factor(0.123, 16).tobytes()
    assert trace in (tmp_path / "vault.db").read_bytes()
    vault.forget()
    assert not any(trace in path.read_bytes() for path in tmp_path.iterdir())


# --- files that fail ------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_is_one_typed_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DeviceError, match="can't make the agent's directory"):
        Vault(tmp_path / "file" / "home")


def test_a_file_that_is_no_database_is_one_typed_line(tmp_path: Path) -> None:
    (tmp_path / "vault.db").write_bytes(b"something else, longer than a header of SQLite's " * 40)
    with pytest.raises(DeviceError, match="nothing was changed"):
        Vault(tmp_path)


def test_a_full_disk_is_a_device_error_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(tmp_path)
    vault.begin(RUN, 1, 1, [])
    vault.stage(RUN, 1, 1, factor(1))
    with small_disk(monkeypatch):
        with pytest.raises(DeviceError, match="full; nothing was changed"):
            vault.stage(RUN, 1, 1, factor(2, size=100_000))
        with pytest.raises(DeviceError, match="full; nothing was changed"):
            vault.keep_blob("big", bytes(400_000))
    vault.settle(RUN, [(1, 1)])
    assert kept(tmp_path) == (1, 1.0, b"")


@contextmanager
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Databases opened in here can't grow beyond 20 pages."""
    real = sqlite3.connect

    def connect(*args: Any, **more: Any) -> sqlite3.Connection:
        db = real(*args, **more)
        db.execute("PRAGMA max_page_count = 20")
        return db

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        yield


# --- killed ---------------------------------------------------------------------------------------

WORKER = """
import os, sys
from pathlib import Path
import numpy as np
from penchant.client.vault.vault import Vault

RUN, home = bytes(16), Path(sys.argv[1])

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def work():
    vault = Vault(home)
    number = max([r for _, r, _ in vault.rounds()], default=0)
    while True:
        number += 1
        say("begins", number)
        vault.begin(RUN, number, 1, [(number - 1, 1)])
        say("begun", number)
        vault.stage(RUN, number, 1, np.full(3000, number, np.float32), b"%d" % number)
        say("staged", number)
        vault.mark_unmasked(RUN, number, 1)
        say("unmasked", number)

for line in sys.stdin:  # a worker for each line: forked, so that it starts at once
    child = os.fork()
    if child == 0:
        work()
    say("worker", child)
    os.waitpid(child, 0)
    say("gone", child)
"""


def test_a_kill_at_any_instant_leaves_the_state_before_or_after_an_operation(tmp_path: Path) -> None:
    draw = random.Random(0)
    seen: set[str] = set()
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for _ in range(40):
            said = one_kill(server.stdin, server.stdout, draw.random() * 0.03)
            seen.add(said[-1][0] if said else "nothing")
            check_after_kill(tmp_path, said)
        server.stdin.close()
    assert len(seen) > 1  # the kills came at different places


def one_kill(requests: Any, lines: Any, delay: float) -> list[tuple[str, int]]:
    """Start a worker, kill it a moment after its first words, and return all that it said."""
    requests.write("work\n")
    said: list[tuple[str, int]] = []
    child = 0
    while True:
        word, number = lines.readline().split()
        if word == "worker":
            child = int(number)
        elif word == "gone":
            return said
        else:
            said.append((word, int(number)))
        if child and said and delay >= 0:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            delay = -1


def check_after_kill(home: Path, said: list[tuple[str, int]]) -> None:
    """The vault stands where the last words say, or one operation further; nothing is torn."""
    last, number = said[-1]
    vault = Vault(home)
    rounds = vault.rounds()
    burnt = [r for _, r, _ in rounds]
    assert burnt == list(range(1, len(burnt) + 1))
    assert len(burnt) in ((number - 1, number) if last == "begins" else (number,))
    if last == "unmasked":
        assert rounds[-1][2]
    if last == "begun":
        assert not rounds[-1][2]
    newest = burnt[-1] if burnt else 0
    found = vault.personal(RUN)
    if found is not None:
        assert found.round < newest or last == "begins"  # staged is not committed
        assert set(found.vector.tolist()) == {float(found.round)}
        assert (found.vector.size, found.context) == (3000, b"%d" % found.round)
    if last in ("staged", "unmasked"):
        vault.settle(RUN, [(newest, 1)])
        after = vault.personal(RUN)
        assert after is not None
        assert (after.round, float(after.vector[0]), after.context) == (newest, newest, b"%d" % newest)


BLOBS_WORKER = """
import os, sys
from pathlib import Path
from penchant.client.vault.vault import Vault

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def work():
    vault = Vault(Path(sys.argv[1]))
    number = int(vault.blob("first") or b"0")
    while True:
        number += 1
        say("begins", number)
        vault.keep_blobs({name: b"%d" % number for name in ("first", "second", "third", "fourth")})
        say("kept", number)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        work()
    say("worker", child)
    os.waitpid(child, 0)
    say("gone", child)
"""

NAMES = ("first", "second", "third", "fourth")


def test_a_kill_leaves_all_of_several_blobs_or_none(tmp_path: Path) -> None:
    draw = random.Random(1)
    with subprocess.Popen(
        [sys.executable, "-c", BLOBS_WORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for _ in range(25):
            last, number = one_kill(server.stdin, server.stdout, draw.random() * 0.02)[-1]
            kept = {Vault(tmp_path).blob(name) for name in NAMES}
            assert len(kept) == 1
            newest = int(kept.pop() or b"0")
            assert newest in ((number - 1, number) if last == "begins" else (number,))
        server.stdin.close()


@pytest.mark.parametrize("at", range(4))
def test_a_failure_among_several_blobs_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    vault = Vault(tmp_path, SealedStorage(bytes(32)))
    vault.keep_blobs(dict.fromkeys(NAMES, b"before"))
    real = SealedStorage.seal
    sealed: list[str] = []

    def fails(self: SealedStorage, data: bytes, purpose: str) -> bytes:
        sealed.append(purpose)
        if len(sealed) > at:
            raise DeviceError("no more")
        return real(self, data, purpose)

    with monkeypatch.context() as patch:
        patch.setattr(SealedStorage, "seal", fails)
        with pytest.raises(DeviceError, match="no more"):
            vault.keep_blobs(dict.fromkeys(NAMES, b"after"))
    assert len(sealed) == at + 1
    assert [vault.blob(name) for name in NAMES] == [b"before"] * 4
    vault.keep_blobs(dict.fromkeys(NAMES, b"after"))
    assert [vault.blob(name) for name in NAMES] == [b"after"] * 4


# --- whether it waits for the disk ------------------------------------------------------------------


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 0)], ids=["FULL", "OFF"])
def test_transactions_wait_for_the_disk_unless_a_simulation_says_not_to(
    tmp_path: Path, durable: bool, level: int
) -> None:
    vault = Vault(tmp_path, durable=durable)
    with vault._transaction() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (level,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("persist",)  # a kill tears nothing


def test_a_device_waits_for_the_disk_where_nothing_is_said(tmp_path: Path) -> None:
    with Vault(tmp_path)._transaction() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
