"""A server is backed up while it runs, and goes on from the file on a bare directory."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sqlite3
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.console_scene import log, make_run, shared

from penchant.common.errors import JournalError, UsageError
from penchant.common.membership.enrolment import request
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.backup import INDEX, back_up, restore
from penchant.deploy.fleet.enrolment import EnrolmentRegistry, hand_out, request_revocation
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.server.journal import Journal
from penchant.server.journal_reader import JournalReader


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    """Three members, an open token, a revocation asked for, a run with three of eight rounds."""
    authority_store = AuthorityStore.init(tmp_path / "authority")
    for number in range(3):
        authority_store.issue(request(bytes([number + 1]) * 32), f"device {number}")
    settings = ServerSettings(addresses=("fleet.example",))
    made = ServerDirectory.create(
        tmp_path / "server", settings, authority_store.authority.public_key, authority_store.latest()
    )
    hand_out(made.path, "kitchen", time.time() + 86400)
    request_revocation(made.path, 2, "lost")
    (made.answers / "members.list").write_bytes(authority_store.latest())
    make_run(made.run("spring"), 3)
    return made


def test_a_restored_server_has_the_same_members_factors_and_rounds_and_its_run_goes_on(
    server: ServerDirectory, tmp_path: Path
) -> None:
    made = back_up(server, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    before = JournalReader(server.run("spring")).load()
    secret, tokens = server.secret.read_bytes(), EnrolmentRegistry(server).enrolments()
    shutil.rmtree(server.path)

    assert restore(tmp_path / "backup", tmp_path / "bare" / "server").files == made.files
    again = ServerDirectory(tmp_path / "bare" / "server")
    assert again.membership().number == 4
    assert again.secret.read_bytes() == secret
    assert again.secret.stat().st_mode & 0o077 == 0
    assert EnrolmentRegistry(again).enrolments() == tokens
    assert [path.name for path in again.requests.iterdir()] == ["revoke-2.json"]
    assert (again.answers / "members.list").exists()
    after = JournalReader(again.run("spring")).load()
    assert before is not None
    assert after is not None
    assert after[0] == before[0] == 3
    np.testing.assert_array_equal(after[1].factors, before[1].factors)
    journal = Journal(again.run("spring"))
    assert journal.begin(4, "main") == 1  # the run goes on
    journal.finish(log(4), shared(4))
    journal.close()
    assert JournalReader(again.run("spring")).settled() == 4
    assert {path.name for path in again.path.iterdir()} >= {"gateway", "logs", "flower", "tls", "answers"}


def test_a_back_up_of_a_server_at_work_is_of_one_moment(server: ServerDirectory, tmp_path: Path) -> None:
    """Rounds end meanwhile: each checkpoint that the copied journal names is there."""
    directory, stop = make_run(server.run("busy"), 1, of=4000), threading.Event()

    def work() -> None:
        journal, number = Journal(directory), 2
        while not stop.is_set():
            journal.begin(number, "main")
            journal.finish(log(number), shared(number))
            number += 1
        journal.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        back_up(server, tmp_path / "backup")
    finally:
        stop.set()
        thread.join()
    restore(tmp_path / "backup", tmp_path / "again")
    reader = JournalReader(tmp_path / "again" / "runs" / "busy")
    finished = [attempt for attempt in reader.attempts() if attempt.digest is not None]
    assert finished
    assert [hashlib.sha256(reader.checkpoint(one)).hexdigest() for one in finished] == [
        one.digest for one in finished
    ]


def changed(file: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """The same file with each entry put through `change`; None takes it out."""
    with tarfile.open(file) as tar:
        entries = [(entry, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    with tarfile.open(file, "w") as tar:
        for entry, data in entries:
            new = change(entry.name, data)
            if new is not None:
                entry.size = len(new)
                tar.addfile(entry, io.BytesIO(new))


def of_index(**values: object) -> Callable[[str, bytes], bytes]:
    return lambda name, data: json.dumps(json.loads(data) | values).encode() if name == INDEX else data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda name, data: data[::-1] if name == "tls/ca.pem" else data,
            "ca.pem in .* is not what was backed",
        ),
        (lambda name, data: None if name == "members.list" else data, "lacks members.list"),
        (of_index(form=2), "made by a later version of penchant .form 2"),
        (of_index(files=[{"path": "../x", "sha256": "", "size": 0, "mode": 0o600}]), "is damaged"),
        (of_index(files=[{"path": "/x", "sha256": "", "size": 0, "mode": 0o600}]), "is damaged"),
        (of_index(files=[{"path": "x", "sha256": "", "size": 0, "mode": 0o4755}]), "is damaged"),
        (of_index(files=[]), "holds more than its index says"),
        (lambda name, data: None if name == INDEX else data, "is no back-up of a server"),
    ],
)
def test_what_was_changed_is_refused_and_nothing_is_made(
    server: ServerDirectory, tmp_path: Path, change: Callable[[str, bytes], bytes | None], said: str
) -> None:
    back_up(server, tmp_path / "backup")
    changed(tmp_path / "backup", change)
    with pytest.raises(UsageError, match=said):
        restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "x").exists()


def test_a_back_up_that_is_cut_off_or_none_at_all_is_refused(server: ServerDirectory, tmp_path: Path) -> None:
    back_up(server, tmp_path / "backup")
    whole = (tmp_path / "backup").read_bytes()
    for size in (0, 100, len(whole) // 2):
        (tmp_path / "part").write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"back-up|cut off|lacks"):
            restore(tmp_path / "part", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_nothing_is_written_over(server: ServerDirectory, tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is there already"):
        back_up(server, tmp_path / "backup")
    back_up(server, tmp_path / "other")
    with pytest.raises(UsageError, match="is in use"):
        restore(tmp_path / "other", server.path)
    assert (tmp_path / "backup").read_text(encoding="utf-8") == "mine"


def test_a_damaged_checkpoint_is_found_when_it_is_backed_up(server: ServerDirectory, tmp_path: Path) -> None:
    (server.run("spring") / "checkpoints" / "round-000002.safetensors").write_bytes(b"another")
    with pytest.raises(JournalError, match="not what the journal wrote"):
        back_up(server, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_back_up_of_a_later_schema_is_refused_by_name(server: ServerDirectory, tmp_path: Path) -> None:
    EnrolmentRegistry(server)
    with sqlite3.connect(server.path / "enrolment.db") as db:
        (mark,) = db.execute("PRAGMA application_id").fetchone()
        db.execute(f"PRAGMA application_id = {mark + 1}")
    back_up(server, tmp_path / "backup")
    with pytest.raises(JournalError, match=r"enrolment\.db was written by a later version of penchant"):
        restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_server_makes_what_is_missing_and_can_be_made(server: ServerDirectory) -> None:
    """By hand, from a list of files, as earlier versions had it."""
    for name in ("gateway", "logs", "flower", "requests", "answers"):
        shutil.rmtree(server.path / name)
    server.secret.unlink()
    server.complete()
    assert len(server.secret.read_text(encoding="ascii")) == 64
    assert server.requests.stat().st_mode & 0o777 == 0o750
    assert (server.path / "gateway").is_dir()
