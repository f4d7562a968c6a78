"""The server's memory: every step is durable before the act, and what was written is what is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant.common.errors import JournalError
from penchant.common.storage import write_durably
from penchant.server import journal as journal_module
from penchant.server.journal import Journal, RoundLog, RoundRow
from penchant.server.optimizers import ServerState


def log(round: int = 1, attempt: int = 1, **changes: Any) -> RoundLog:
    usual = RoundLog(
        round=round,
        attempt=attempt,
        phase="main",
        cohort=5,
        survivors=4,
        dropped={"masked": 1},
        seconds=1.25,
        bytes_up=100,
        bytes_down=200,
        examples=80,
        train_loss=0.693,
        val_accuracy=0.61,
        histogram=[0, 0, 1, 0, 0, 2, 1, 0, 0, 0],
        update_norm=0.1,
    )
    return replace(usual, **changes)


def shared(value: float) -> ServerState:
    """A state whose every part can be told from the others."""
    parts = [np.float32([value, value + 0.25, -value]) + step for step in (0, 10, 20)]
    return ServerState(*parts, start=np.float32([value, 0.5]), steps=int(value))


def same(one: ServerState, other: ServerState) -> bool:
    names = ("factors", "first", "second", "start")
    alike = all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in names)
    return alike and one.steps == other.steps


def reopened(directory: Path) -> Journal:
    """What a server that starts after a kill finds: the files alone."""
    return Journal(directory)


# --- a round's life -------------------------------------------------------------------------------


def test_every_step_of_a_round_is_durable_before_the_next(tmp_path: Path) -> None:
    """The journal is never closed; a second one opened on the same files sees each step at once."""
    journal = Journal(tmp_path)
    assert journal.begin(1, "main") == 1
    assert reopened(tmp_path).interrupted() == RoundRow(1, 1, "main", "started", None, None)
    journal.record(1, 1, "cohort", 0, b"everyone")
    journal.record(1, 1, "asked", 0, b"all that it takes")
    assert reopened(tmp_path).records(1, 1) == [
        ("cohort", 0, b"everyone"),
        ("asked", 0, b"all that it takes"),
    ]
    journal.unmasking(1, 1)
    assert reopened(tmp_path).interrupted() == RoundRow(1, 1, "main", "unmasking", None, None)
    journal.record(1, 1, "reply", 1003, b"shares")
    assert reopened(tmp_path).records(1, 1)[-1] == ("reply", 1003, b"shares")
    assert reopened(tmp_path).load() is None
    journal.finish(log(), shared(1))
    after = reopened(tmp_path)
    assert after.interrupted() is None
    assert after.rows() == [RoundRow(1, 1, "main", "finished", log(), None)]
    assert (after.finished(), after.settled(), after.logs()) == (((1, 1),), 1, [log()])
    found = after.load()
    assert found is not None
    assert found[0] == 1
    assert same(found[1], shared(1))


def test_a_failed_attempt_is_followed_by_another_number(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(3, "main")
    journal.fail(3, 1, "too many dropped out")
    assert reopened(tmp_path).settled() == 0
    assert reopened(tmp_path).interrupted() is None
    assert journal.begin(3, "main") == 2
    assert journal.attempts(3) == 2
    journal.finish(log(3, 2), shared(3))
    assert reopened(tmp_path).finished() == ((3, 2),)
    assert [(row.state, row.why) for row in reopened(tmp_path).rows()] == [
        ("failed", "too many dropped out"),
        ("finished", None),
    ]


def test_a_skipped_round_is_settled_but_gives_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(1, "main")
    journal.finish(log(1), shared(1))
    journal.begin(2, "main")
    journal.unmasking(2, 1)
    journal.skip(2, 1, "too few replies")
    after = reopened(tmp_path)
    assert (after.settled(), after.finished(), after.interrupted()) == (2, ((1, 1),), None)
    found = after.load()
    assert found is not None
    assert same(found[1], shared(1))


@pytest.mark.parametrize("end", ["finish", "fail", "skip"])
def test_the_records_of_a_round_go_with_its_end(tmp_path: Path, end: str) -> None:
    journal = Journal(tmp_path)
    for number in (1, 2):
        journal.begin(number, "main")
        journal.record(number, 1, "reply", 5, b"somebody's shares")
    if end == "finish":
        journal.finish(log(), shared(1))
    else:
        getattr(journal, end)(1, 1, "why")
    assert reopened(tmp_path).records(1, 1) == []
    assert reopened(tmp_path).records(2, 1) == [("reply", 5, b"somebody's shares")]


@pytest.mark.parametrize("end", ["fail", "skip", "unmasking", "finish"])
@pytest.mark.parametrize("before", ["never begun", "failed", "skipped", "finished"])
def test_only_an_open_attempt_can_go_on(tmp_path: Path, before: str, end: str) -> None:
    journal = Journal(tmp_path)
    if before != "never begun":
        journal.begin(1, "main")
        ends: dict[str, Callable[[], None]] = {
            "failed": lambda: journal.fail(1, 1, "first"),
            "skipped": lambda: journal.skip(1, 1, "first"),
            "finished": lambda: journal.finish(log(), shared(1)),
        }
        ends[before]()
    rows, files = journal.rows(), sorted((tmp_path / "checkpoints").iterdir())
    steps: dict[str, Callable[[], None]] = {
        "fail": lambda: journal.fail(1, 1, "again"),
        "skip": lambda: journal.skip(1, 1, "again"),
        "unmasking": lambda: journal.unmasking(1, 1),
        "finish": lambda: journal.finish(log(), shared(9)),
    }
    with pytest.raises(JournalError, match="round 1 attempt 1 is not open"):
        steps[end]()
    assert (journal.rows(), sorted((tmp_path / "checkpoints").iterdir())) == (rows, files)
    if before == "finished":
        found = journal.load()
        assert found is not None
        assert same(found[1], shared(1))


def test_a_round_that_was_unmasked_can_still_be_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(1, "close")
    journal.unmasking(1, 1)
    journal.finish(log(phase="close", histogram=None, train_loss=None, val_accuracy=None), shared(1))
    (kept,) = reopened(tmp_path).logs()
    assert (kept.phase, kept.histogram, kept.train_loss, kept.val_accuracy) == ("close", None, None, None)


def test_records_keep_their_order_and_nodes_of_64_bits(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(1, "main")
    parties = [2**64 - 1, 0, 7, 2**63, 7]
    for place, party in enumerate(parties):
        journal.record(1, 1, "reply", party, b"%d" % place)
    assert reopened(tmp_path).records(1, 1) == [("reply", p, b"%d" % i) for i, p in enumerate(parties)]


# --- facts ----------------------------------------------------------------------------------------


def test_a_fact_can_be_noted_again_only_as_it_is(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.fact("run") is None
    journal.note("run", "aa")
    journal.note("run", "aa")
    journal.note("data", "bb")
    with pytest.raises(JournalError, match="holds another run; it belongs to another run"):
        reopened(tmp_path).note("run", "cc")
    assert (reopened(tmp_path).fact("run"), reopened(tmp_path).fact("data")) == ("aa", "bb")


# --- a simulator's rewind -------------------------------------------------------------------------


def test_a_fact_of_the_latest_attempt_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for value in ("3", "3", "5"):
        journal.note_anew("turn 4", value)
        assert reopened(tmp_path).fact("turn 4") == value


def test_rewinding_forgets_whatever_came_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(1, "main")
    journal.finish(log(1), shared(1))
    journal.begin(2, "main")
    journal.fail(2, 1, "why")
    journal.begin(2, "main")
    journal.record(2, 2, "asked", 0, b"x")
    journal.unmasking(2, 2)
    journal.rewind(journal.settled())
    after = reopened(tmp_path)
    assert (after.interrupted(), after.attempts(2), after.records(2, 2)) == (None, 0, [])
    assert after.finished() == ((1, 1),)
    assert after.begin(2, "main") == 1


# --- what is shown, and decides nothing -----------------------------------------------------------


def test_stages_and_devices_are_kept_without_waiting_for_the_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    waits: list[str] = []
    journal._db.set_trace_callback(waits.append)
    journal.begin(1, "main")
    journal.stage(1, 1, "keys", 5)
    journal.answered(1, 1, "keys", 3)
    journal.answered(1, 1, "keys", 4, over=True)
    journal.seen({2**64 - 1 >> 1: 2**64 - 1, 7: 1})
    journal.joined([7], 1)
    assert [line for line in waits if "synchronous=" in line] == [
        "PRAGMA synchronous=1",
        "PRAGMA synchronous=2",
    ] * 5
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL, for all else
    other = reopened(tmp_path)
    ((stage, asked, answered, ended),) = other._read("SELECT stage, asked, answered, ended FROM stages")
    assert (stage, asked, answered) == ("keys", 5, 4)
    assert ended is not None
    assert other._read("SELECT member, node, joined, last FROM devices ORDER BY member") == [
        (7, "1", 1, 1), (2**63 - 1, str(2**64 - 1), 0, None),
    ]  # fmt: skip
    journal.rewind(0)
    assert reopened(tmp_path)._read("SELECT * FROM stages") == []


def test_a_journal_from_before_stages_gains_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(1, "main")
    journal.finish(log(), shared(1))
    journal._db.execute("DROP TABLE stages")
    journal._db.execute("DROP TABLE devices")
    journal.close()
    again = reopened(tmp_path)
    assert again.finished() == ((1, 1),)
    again.stage(1, 1, "keys", 5)


def test_a_checkpoint_of_an_earlier_round_is_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in (1, 2):
        journal.begin(number, "main")
        journal.finish(log(number), shared(number))
    found = journal.load(1)
    assert found is not None
    assert (found[0], same(found[1], shared(1))) == (1, True)
    assert journal.load(3) is None
    assert journal.digest(3) is None
    path = tmp_path / "checkpoints" / "round-000001.safetensors"
    assert journal.digest(1) == hashlib.sha256(path.read_bytes()).hexdigest()


# --- checkpoints ----------------------------------------------------------------------------------


def with_checkpoint(directory: Path, value: float = 7) -> Path:
    journal = Journal(directory)
    journal.begin(7, "main")
    journal.finish(log(7), shared(value))
    return directory / "checkpoints" / "round-000007.safetensors"


def test_a_checkpoint_is_plain_safetensors_that_others_can_read(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(with_checkpoint(tmp_path))
    assert set(tensors) == {"factors", "first", "second", "start", "steps"}
    assert tensors["factors"].tobytes() == shared(7).factors.tobytes()
    assert tensors["steps"].tolist() == [7]


@pytest.mark.parametrize("how", ["a bit", "cut", "longer", "another run's", "empty"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, how: str) -> None:
    path = with_checkpoint(tmp_path)
    data = path.read_bytes()
    damaged = {
        "a bit": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-4],
        "longer": data + b"\0",
        "another run's": with_checkpoint(tmp_path / "other", 8).read_bytes(),
        "empty": b"",
    }[how]
    assert damaged != data
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=r"checkpoint round-000007\.safetensors is not what the journal"):
        reopened(tmp_path).load()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with_checkpoint(tmp_path).unlink()
    with pytest.raises(
        JournalError, match=r"checkpoint round-000007\.safetensors can't be read: No such file"
    ):
        reopened(tmp_path).load()


def test_a_kill_after_the_checkpoint_and_before_its_row_leaves_the_round_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file alone says nothing: the attempt is tried again, and its checkpoint written over."""

    class Killed(BaseException):
        pass

    def dies(*_: object) -> str:
        raise Killed

    journal = Journal(tmp_path)
    journal.begin(1, "main")
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", dies)
        with pytest.raises(Killed):
            journal.finish(log(), shared(1))
    after = reopened(tmp_path)
    assert (tmp_path / "checkpoints" / "round-000001.safetensors").exists()
    assert (after.load(), after.finished()) == (None, ())
    assert after.interrupted() == RoundRow(1, 1, "main", "started", None, None)
    after.fail(1, 1, "the server stopped")
    after.begin(1, "main")
    after.finish(log(1, 2), shared(2))
    found = reopened(tmp_path).load()
    assert found is not None
    assert same(found[1], shared(2))


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result"
    write_durably(path, b"first")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space"):
            write_durably(path, b"second, longer")
    assert path.read_bytes() == b"first"
    write_durably(path, b"third")
    assert path.read_bytes() == b"third"
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


# --- disks that fail ------------------------------------------------------------------------------

READS: dict[str, Callable[[Journal], object]] = {
    "fact": lambda journal: journal.fact("run"),
    "records": lambda journal: journal.records(1, 1),
    "rows": lambda journal: journal.rows(),
    "finished": lambda journal: journal.finished(),
    "logs": lambda journal: journal.logs(),
    "settled": lambda journal: journal.settled(),
    "interrupted": lambda journal: journal.interrupted(),
    "attempts": lambda journal: journal.attempts(1),
    "load": lambda journal: journal.load(),
}
WRITES: dict[str, Callable[[Journal], object]] = {
    "note": lambda journal: journal.note("run", "aa"),
    "begin": lambda journal: journal.begin(2, "main"),
    "unmasking": lambda journal: journal.unmasking(1, 1),
    "record": lambda journal: journal.record(1, 1, "reply", 1, b"x"),
    "finish": lambda journal: journal.finish(log(), shared(1)),
    "fail": lambda journal: journal.fail(1, 1, "why"),
    "skip": lambda journal: journal.skip(1, 1, "why"),
    "rewind": lambda journal: journal.rewind(0),
}


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_whatever_sqlite_says_is_a_journal_error(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path)
    journal.begin(1, "main")
    journal.close()  # every statement fails from here on
    with pytest.raises(JournalError, match=r"journal\.db"):
        {**READS, **WRITES}[name](journal)


@contextmanager
def full_disk(journal: Journal) -> Iterator[None]:
    """The database can't grow any more."""
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        journal._db.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_changes_nothing_and_the_journal_stays_usable(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(1, "main")
    with full_disk(journal), pytest.raises(JournalError, match="full"):
        journal.record(1, 1, "reply", 1, bytes(100_000))
    assert journal.records(1, 1) == []
    journal.record(1, 1, "reply", 1, bytes(100_000))
    assert len(reopened(tmp_path).records(1, 1)) == 1


def test_a_checkpoint_that_cannot_be_written_leaves_the_round_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path)
    journal.begin(1, "main")
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_durably", fails)
        with pytest.raises(JournalError, match=r"round-000001\.safetensors can't be written: No space left"):
            journal.finish(log(), shared(1))
    assert reopened(tmp_path).interrupted() == RoundRow(1, 1, "main", "started", None, None)
    journal.finish(log(), shared(1))
    assert reopened(tmp_path).finished() == ((1, 1),)


def test_a_journal_that_cannot_be_opened_is_one_typed_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalError, match="can't open"):
        Journal(tmp_path / "file")
    (tmp_path / "journal.db").write_bytes(b"something else, longer than a header of SQLite's " * 40)
    with pytest.raises(JournalError, match=r"can't open .*journal\.db: file is not a database"):
        Journal(tmp_path)
