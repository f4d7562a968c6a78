"""Whoever can write to a shared folder plays tricks there: nothing outside is touched, and work goes on."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.release_scene import NoNodes

from penchant.common.errors import SharedFileError, UsageError
from penchant.common.membership.enrolment import NamedRequest, request
from penchant.common.membership.identity import MemberList
from penchant.deploy.fleet.authority import KEY, AuthorityStore
from penchant.deploy.fleet.authority_inbox import attend, revocation_of
from penchant.deploy.fleet.declined_request import DeclinedRequest
from penchant.deploy.fleet.enrolment import EnrolmentRegistry, request_revocation
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.fleet.shared_folder import opened, read_regular, strict_json

GOOD = NamedRequest("kitchen", request(bytes(range(32)))).encode()


class Town:
    """An authority and two folders that it shares with a server that is not to be trusted."""

    def __init__(self, place: Path) -> None:
        self.authority_store = AuthorityStore.init(place / "authority")
        self.requests, self.answers = place / "requests", place / "answers"
        self.requests.mkdir(0o755)
        self.answers.mkdir(0o755)
        self.key = (place / "authority" / KEY).read_bytes()

    def attend(self) -> list[str]:
        return attend(self.authority_store, self.requests, self.answers, lambda decision: True)

    def unharmed(self) -> None:
        """The key is as it was, and the next good request is answered."""
        assert (self.authority_store.directory / KEY).read_bytes() == self.key
        (self.requests / "good.request").write_bytes(GOOD)
        assert "member 1: kitchen" in self.attend()
        assert (self.answers / "good.answer").is_file()
        assert not (self.answers / "good.answer").is_symlink()


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["good.answer", ".good.answer.tmp", "members.list", ".members.list.tmp", "good.request.rejected"]
)
def test_a_link_in_answers_overwrites_nothing(town: Town, name: str) -> None:
    (town.answers / name).symlink_to(town.authority_store.directory / KEY)
    town.unharmed()
    assert stat.S_IMODE((town.authority_store.directory / KEY).stat().st_mode) == 0o600
    assert MemberList.decode((town.answers / "members.list").read_bytes()).number == 2


def test_a_link_to_nowhere_makes_no_file_there(town: Town, tmp_path: Path) -> None:
    (town.answers / "good.answer").symlink_to(tmp_path / "new")
    town.unharmed()
    assert not (tmp_path / "new").exists()


def test_a_linked_request_is_not_read(town: Town, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(GOOD)
    (town.requests / "a.request").symlink_to(tmp_path / "secret")
    (line,) = town.attend()
    assert "a.request is refused: a.request is not a plain file" in line
    town.unharmed()


@pytest.mark.parametrize("which", ["requests", "answers"])
def test_a_folder_that_is_a_link_is_refused(town: Town, which: str) -> None:
    folder = getattr(town, which)
    folder.rmdir()
    folder.symlink_to(town.authority_store.directory)
    with pytest.raises(UsageError, match="not a link"):
        town.attend()


# --- what is no plain file ------------------------------------------------------------------------


def test_a_pipe_holds_nothing_up(town: Town) -> None:
    for name in ("a.request", "revoke-1.json", f"run-{'00' * 16}.manifest"):
        os.mkfifo(town.requests / name)
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.extend(town.attend()), daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    assert [line.split()[0] for line in done] == ["a.request", "revoke-1.json", f"run-{'00' * 16}.manifest"]
    assert all("not a plain file" in line for line in done)
    town.unharmed()


def test_folders_and_sockets_are_refused(town: Town) -> None:
    (town.requests / "a.request").mkdir()
    (line,) = town.attend()
    assert "not a plain file" in line
    town.unharmed()


def test_a_folder_in_the_place_of_an_answer_is_said_in_one_line(town: Town) -> None:
    (town.answers / "good.answer").mkdir()
    (town.requests / "good.request").write_bytes(GOOD)
    with pytest.raises(UsageError, match=r"can't write .*good.answer"):
        town.attend()
    assert list(town.answers.glob(".*")) == []  # the temporary file is gone


def test_a_huge_request_is_not_read(town: Town) -> None:
    with (town.requests / "a.request").open("wb") as file:
        file.truncate(1 << 34)
    (line,) = town.attend()
    assert "has more than 4096 bytes" in line
    town.unharmed()


# --- what is in them ------------------------------------------------------------------------------

BAD_JSON = [
    b'{"member": 1e999}',
    b'{"member": 1e5}',
    b'{"member": NaN}',
    b'{"member": -Infinity}',
    b'{"member": true}',
    b'{"member": "1"}',
    b'{"member": 0}',
    b'{"member": -1}',
    b'{"member": 1.0}',
    b'{"member": 9223372036854775808}',
    b'{"member": 1, "member": 2}',
    b'{"member": 1, "why": 2}',
    b'{"member": 1, "why": ' + b"[" * 2000,
    b"[" * 2000 + b"]" * 2000,
    b'{"member":' * 10 + b"1" + b"}" * 10,
    b"\xff",
    b"",
    b"[]",
    b"null",
    b'"member"',
    b'{"member": ' + b"9" * 4000 + b"}",
    b'{"why": "no"}',
]


@pytest.mark.parametrize("content", BAD_JSON)
def test_a_bad_request_to_revoke_is_refused_once_and_work_goes_on(town: Town, content: bytes) -> None:
    (town.requests / "revoke-1.json").write_bytes(content)
    (line,) = town.attend()
    assert line.startswith("revoke-1.json is refused: ")
    said = DeclinedRequest.of(line.partition(": ")[2], content)
    assert (town.answers / "revoke-1.json.rejected").read_bytes() == said.encode()
    assert town.attend() == []
    town.unharmed()


@pytest.mark.parametrize("content", BAD_JSON[:4] + BAD_JSON[10:11] + BAD_JSON[12:16])
def test_strict_json(content: bytes) -> None:
    if content == b'{"member": 1e5}':
        assert strict_json(content) == {"member": 1e5}
        return
    with pytest.raises(SharedFileError, match="not the JSON that belongs here"):
        strict_json(content)


def test_names_with_other_characters_are_said_and_left_alone(town: Town) -> None:
    for name in ("a\nb.request", "\x1b[2J.request", "-a.request"):
        (town.requests / name).write_bytes(GOOD)
    lines = town.attend()
    assert len(lines) == 3
    assert all(line.isprintable() and "left alone" in line for line in lines)
    town.unharmed()


# --- whose folder it is ---------------------------------------------------------------------------


def test_a_folder_that_others_could_write_to_is_closed_to_them(town: Town) -> None:
    town.answers.chmod(0o777)
    town.unharmed()
    assert stat.S_IMODE(town.answers.stat().st_mode) == 0o755


def test_another_users_folder_is_not_written_to(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    (town.requests / "good.request").write_bytes(GOOD)
    with pytest.raises(UsageError, match="belongs to another user"):
        town.attend()
    assert list(town.answers.iterdir()) == []


def test_files_are_whole_or_not_there(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with opened(town.answers, writes=True) as folder:
        folder.write("a", b"old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="No space left"):
            folder.write("a", b"new")
        assert folder.read("a", 3) == b"old"
    assert [path.name for path in town.answers.iterdir()] == ["a"]


def test_a_file_that_a_person_names_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link", 4) == b"1234"
    for path, most, says in (
        (tmp_path / "file", 3, "more than 3 bytes"),
        (tmp_path / "pipe", 3, "not a plain file"),
        (tmp_path, 3, "not a plain file"),
        (tmp_path / "none", 3, "can't read"),
    ):
        with pytest.raises(UsageError, match=says):
            read_regular(path, most)


# --- the server's side ----------------------------------------------------------------------------


@pytest.fixture
def server_directory(town: Town, tmp_path: Path) -> ServerDirectory:
    settings = ServerSettings(addresses=("fleet.example",))
    public = town.authority_store.authority.public_key
    return ServerDirectory.create(tmp_path / "server", settings, public, town.authority_store.latest())


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 34)


@pytest.mark.parametrize("make", [_link, _huge, os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", ["a.answer", "members.list"])
def test_a_bad_answer_is_put_aside_and_the_next_is_taken(
    server_directory: ServerDirectory, town: Town, make: Callable[[Path], None], name: str
) -> None:
    make(server_directory.answers / name)
    newer = town.authority_store.publish()
    if name != "members.list":
        (server_directory.answers / "members.list").write_bytes(newer)
    registry = EnrolmentRegistry(server_directory)
    registry.collect(NoNodes())
    assert [path.name for path in server_directory.answers.iterdir()] == [f"{name}.refused"]
    (server_directory.answers / "members.list").write_bytes(newer)
    registry.collect(NoNodes())
    assert server_directory.membership().number == 2


def test_a_link_in_requests_is_replaced_and_not_followed(
    server_directory: ServerDirectory, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    for name in ("revoke-1.json", ".revoke-1.json.tmp"):
        (server_directory.requests / name).symlink_to(tmp_path / "mine")
    with opened(server_directory.requests, writes=True) as folder:
        folder.write("revoke-1.json", b"{}")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert (server_directory.requests / "revoke-1.json").read_bytes() == b"{}"


def test_answers_that_can_not_be_removed_are_taken_once(
    server_directory: ServerDirectory, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is the authority's alone, as it should be: the server only reads there."""

    def forbidden(*args: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    (server_directory.answers / "members.list").write_bytes(town.authority_store.publish())
    (server_directory.answers / "bad.answer").write_bytes(b"junk")
    monkeypatch.setattr(os, "unlink", forbidden)
    monkeypatch.setattr(os, "rename", forbidden)
    registry = EnrolmentRegistry(server_directory)
    taken: list[bytes] = []
    monkeypatch.setattr(registry, "_take_members", lambda name, data: taken.append(data))
    for _ in range(3):
        registry.collect(NoNodes())
    assert len(taken) == 1


def test_what_the_authority_could_not_read_is_withdrawn(
    server_directory: ServerDirectory, town: Town
) -> None:
    (server_directory.requests / "revoke-9.json").write_bytes(b'{"member": 1e999}')
    (line,) = attend(
        town.authority_store, server_directory.requests, server_directory.answers, lambda decision: True
    )
    assert "revoke-9.json is refused" in line
    EnrolmentRegistry(server_directory).collect(NoNodes())
    assert list(server_directory.requests.iterdir()) == list(server_directory.answers.iterdir()) == []


def test_what_neither_side_can_read_is_withdrawn(server_directory: ServerDirectory, town: Town) -> None:
    os.mkfifo(server_directory.requests / "revoke-9.json")
    (line,) = attend(
        town.authority_store, server_directory.requests, server_directory.answers, lambda decision: True
    )
    assert "revoke-9.json is refused" in line
    EnrolmentRegistry(server_directory).collect(NoNodes())
    assert list(server_directory.requests.iterdir()) == list(server_directory.answers.iterdir()) == []


def test_the_servers_own_requests_are_read_by_the_authority(
    server_directory: ServerDirectory, town: Town
) -> None:
    town.authority_store.issue(request(bytes(range(32))), "kitchen")
    server_directory.take_members(town.authority_store.latest())
    path = request_revocation(server_directory.path, 1, "lost")
    assert revocation_of(path.read_bytes()) == (1, "lost")
    assert attend(
        town.authority_store, server_directory.requests, server_directory.answers, lambda m: True
    ) == ["member 1 is revoked"]
