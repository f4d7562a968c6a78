"""A server is backed up while it runs, and goes on from the file on a bare directory."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from support.console_scene import log, make_run, shared
from typer.testing import CliRunner

from penchant.common.errors import JournalError, RunDirectoryError, UsageError
from penchant.common.membership.enrolment import request
from penchant.deploy.cli.server import app
from penchant.deploy.fleet import backup as backup_module
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.backup import INDEX, back_up, left_outside, restore
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
        (of_index(files=[{"path": "x", "sha256": "", "size": 0, "mode": 0o4755}]), "is damaged"),
        (of_index(files=[{"path": "\ud800", "sha256": "", "size": 0, "mode": 0o600}]), "is damaged"),
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


def made_up(file: Path, path: str, data: bytes = b"", sparse: int = 0, sparse_index: int = 0) -> None:
    """A back-up of one file that is what its index says. sparse: bytes of zeros that only a map tells of."""
    whole = data or bytes(sparse)
    row = {"path": path, "sha256": hashlib.sha256(whole).hexdigest(), "size": len(whole), "mode": 0o600}
    index = json.dumps({"form": 1, "made": 0.0, "version": "0", "files": [row]}).encode()
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, zeros in ((INDEX, index, sparse_index), (path, data, sparse)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if zeros:
                entry.pax_headers = {
                    "GNU.sparse.map": f"0,{len(content)}",
                    "GNU.sparse.size": str(zeros),
                }
            tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    "place", ["../x", "../../x", "tls/../../../x", "{}/x", "/{}/x", "//{}/x", "", ".", "..", "a\0b"]
)
def test_no_file_is_written_outside_the_new_directory(tmp_path: Path, place: str) -> None:
    """`../x` is in the temporary folder, `../../x` beside the new server, `//tmp/x` is absolute as well."""
    made_up(tmp_path / "backup", place.format(tmp_path), b"taken")
    with pytest.raises(UsageError, match=r"index of .* is damaged"):
        restore(tmp_path / "backup", tmp_path / "again")
    assert [found.name for found in tmp_path.rglob("*")] == ["backup"]


@pytest.mark.parametrize("of", ["sparse", "sparse_index"])
def test_a_sparse_entry_is_refused_before_it_is_read(tmp_path: Path, of: str) -> None:
    """A file of some kilobytes would make as many zeros as it says."""
    sizes = {of: 48 * 1024 * 1024}
    made_up(tmp_path / "backup", "server.toml", **sizes)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=r"lacks server\.toml|is no back-up of a server"):
            restore(tmp_path / "backup", tmp_path / "again")
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert [found.name for found in tmp_path.iterdir()] == ["backup"]


def test_no_file_is_held_in_memory(
    server: ServerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.server.journal_reader.CHECKPOINT_MOST", 1024 * 1024)  # which is reserved
    with (server.run("spring") / "large").open("wb") as file:
        file.truncate(32 * 1024 * 1024)
    tracemalloc.start()
    try:
        back_up(server, tmp_path / "backup")
        restore(tmp_path / "backup", tmp_path / "again")
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert (tmp_path / "again" / "runs" / "spring" / "large").stat().st_size == 32 * 1024 * 1024


def test_an_index_that_no_restore_would_take_is_not_written(
    server: ServerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "INDEX_MOST", 1000)
    with pytest.raises(RunDirectoryError, match="too many files for one back-up"):
        back_up(server, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


# --- what is in it ----------------------------------------------------------------------------------


def with_signals(server: ServerDirectory, outside: Path) -> ServerDirectory:
    """The same server, with files for its signals: three below it, one outside."""
    (server.path / "keys").mkdir()
    (server.path / "keys" / "token").write_text("t" * 32, encoding="ascii")
    (server.path / ".mail").write_text("password", encoding="ascii")
    (server.path / ".mail").chmod(0o400)
    (server.path / "notices.json").write_text("{}", encoding="ascii")
    outside.write_text("s" * 32, encoding="ascii")
    settings = server.path / "server.toml"
    text = settings.read_text(encoding="utf-8").replace('metrics_token = ""', 'metrics_token = "keys/token"')
    mail = (
        'smtp_host = "mail.example"\nsmtp_user = "me"\nmail_from = "a@b.example"\nmail_to = ["c@d.example"]\n'
    )
    named = f'webhook_secret = "{outside}"\nsmtp_password = ".mail"\n'
    settings.write_text(f"{text}\n[notices]\n{named}{mail}", encoding="utf-8")
    return ServerDirectory(server.path)


def test_files_that_the_settings_name_are_in_it(server: ServerDirectory, tmp_path: Path) -> None:
    """Those in the server's directory; the command says which lie outside."""
    whole = with_signals(server, tmp_path / "secret")
    done = CliRunner().invoke(app, ["backup", str(whole.path), str(tmp_path / "backup")])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'secret'} is not in it" in " ".join(done.output.split())
    assert "keys/token is not in it" not in done.output
    restore(tmp_path / "backup", tmp_path / "again")
    for name in ("keys/token", ".mail", "notices.json"):
        copy, original = tmp_path / "again" / name, server.path / name
        assert copy.read_bytes() == original.read_bytes()
        assert copy.stat().st_mode == original.stat().st_mode
    assert left_outside(ServerDirectory(tmp_path / "again")) == [tmp_path / "secret"]
    (server.path / ".mail").unlink()
    with pytest.raises(RunDirectoryError, match=r"\.mail is missing, which server\.toml names"):
        back_up(whole, tmp_path / "other")


def test_a_link_is_named_and_not_left_out(server: ServerDirectory, tmp_path: Path) -> None:
    (server.run("spring") / "notes").symlink_to(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"spring/notes is a symbolic link"):
        back_up(server, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_disk_without_rights_and_links_will_do(
    server: ServerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refused)
        patch.setattr(os, "chmod", refused)
        patch.setattr(Path, "chmod", refused)
        back_up(server, tmp_path / "backup")
        with pytest.raises(UsageError, match="is there already"):
            back_up(server, tmp_path / "backup")
        (tmp_path / "taken").symlink_to(tmp_path / "nowhere")  # there, though it does not exist
        with pytest.raises(UsageError, match="can't write"):
            back_up(server, tmp_path / "taken")
    assert not (tmp_path / "nowhere").exists()
    restore(tmp_path / "backup", tmp_path / "again")
    key = "tls/ca.key"
    assert (tmp_path / "again" / key).stat().st_mode == (server.path / key).stat().st_mode


def test_a_copy_that_fails_leaves_no_part(
    server: ServerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    copied = shutil.copyfileobj

    def full(source: IO[bytes], copy: IO[bytes], size: int) -> None:
        if Path(str(source.name)).name != "packed":
            copied(source, copy, size)
            return
        copy.write(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UsageError, match=r"can't write .*No space left"):
        back_up(server, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


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
