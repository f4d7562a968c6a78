"""Health of a server's parts: one that lives and does nothing is not well."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
import uvicorn
from click.testing import Result
from flwr.supercore.constant import MAX_TIMESTAMP_DIFF_SECONDS
from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.state.schema.corestate_models import NonceStore
from support.processes import wait_for
from typer.testing import CliRunner

from penchant.common.errors import UsageError
from penchant.common.wording import duration
from penchant.deploy.cli import authority as authority_cli
from penchant.deploy.cli import server as server_cli
from penchant.deploy.error_report import ErrorReport
from penchant.deploy.fleet import processes
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import BEAT as ATTEND_BEAT
from penchant.deploy.fleet.authority_inbox import LOCK as ATTEND_LOCK
from penchant.deploy.fleet.enrolment_service import build_service
from penchant.deploy.fleet.health import EXECUTOR_SECONDS, ailing
from penchant.deploy.fleet.heartbeat import LONGEST, SLACK, Heartbeat
from penchant.deploy.fleet.run_keeper import BEAT, LOCK, LOOK_SECONDS, START_SECONDS, RunKeeper
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.executor_looks import last_look
from penchant.deploy.run_directory import claim, held_locks, is_held

NOW = 1_800_000_000.0


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    authority_store = AuthorityStore.init(tmp_path / "authority")
    settings = ServerSettings(addresses=("fleet.example",), superlink_port=9, port=10)
    return ServerDirectory.create(
        tmp_path / "server", settings, authority_store.authority.public_key, authority_store.latest()
    )


def looked(server: ServerDirectory, at: float) -> None:
    """The SuperLink's database after a look of the executor."""
    assert NonceStore.__tablename__ == "nonce_store"
    with closing(sqlite3.connect(server.flower_state)) as db, db:
        db.execute("CREATE TABLE IF NOT EXISTS nonce_store (namespace TEXT, nonce TEXT, expires_at REAL)")
        row = "superexec:/AcquireTask", str(at), at + MAX_TIMESTAMP_DIFF_SECONDS
        db.execute("INSERT INTO nonce_store VALUES (?, ?, ?)", row)


def test_flower_keeps_the_time_of_a_look_where_it_is_read(tmp_path: Path) -> None:
    """Flower's own store writes it; another version of Flower that keeps it elsewhere fails here."""

    class State(SqlCoreState):
        def get_node_id(self) -> int:  # type: ignore[override]
            raise NotImplementedError

        def store_message_and_object_tree(self, *args: object) -> None:  # type: ignore[override]
            raise NotImplementedError

    state = State(str(tmp_path / "state.db"), None)  # type: ignore[arg-type]
    state.initialize()
    assert last_look(tmp_path / "state.db") is None
    assert state.reserve_nonce("superexec:method", "one", NOW + MAX_TIMESTAMP_DIFF_SECONDS)
    assert state.reserve_nonce("supernode:method", "two", NOW + 10_000)
    assert last_look(tmp_path / "state.db") == NOW
    assert last_look(tmp_path / "nothing.db") is None
    assert not (tmp_path / "nothing.db").exists()


def test_an_executor_that_asks_for_no_work_is_not_well(server: ServerDirectory) -> None:
    def said(now: float) -> list[str]:
        return ailing(server, ["executor"], lambda: now)

    assert said(NOW) == ["executor: never asked the SuperLink for work"]
    looked(server, NOW)
    assert said(NOW + EXECUTOR_SECONDS) == []
    assert said(NOW + 600) == [f"executor: asked for no work for {duration(600)}"]


def test_a_queue_that_hangs_is_not_well(server: ServerDirectory) -> None:
    """Its lock alone says that it lives; what it promised says when it should be heard of."""
    now = [NOW]

    def said() -> list[str]:
        return ailing(server, ["queue"], lambda: now[0])

    assert said() == ["queue: is down"]
    with claim(server.path, LOCK):
        assert said() == ["queue: was never heard of"]
        Heartbeat(server.path / BEAT, lambda: now[0]).beat(5.0)
        now[0] += 5.0 + SLACK
        assert said() == []
        now[0] += 60.0
        assert said() == [f"queue: should have been heard of {duration(60)} ago"]
    assert said() == ["queue: is down"]


def test_the_keeper_promises_as_much_time_as_what_it_does_takes(server: ServerDirectory) -> None:
    beat = Heartbeat(server.path / BEAT, lambda: NOW)
    during: list[float | None] = []

    def call(words: object) -> ErrorReport | None:
        during.append(beat.late())
        return None

    keeper = RunKeeper(server, call, lambda: NOW, lambda: 0.0)
    stop = threading.Event()
    stop.set()
    keeper.run(stop)
    assert beat.late() == -(LOOK_SECONDS + SLACK)
    keeper._recorded("start a run", "spring", "", ["run"])
    assert during == [-(START_SECONDS + SLACK)]


def test_parts_that_are_down_are_named_and_others_not_looked_at(server: ServerDirectory) -> None:
    assert ailing(server, clock=lambda: NOW) == [
        "superlink: does not answer",
        "executor: never asked the SuperLink for work",
        "enrol: does not listen",
        "gateway: is closed",
        "queue: is down",
    ]
    assert ailing(server, ["signals"]) == ["signals: server.toml asks for none"]
    with pytest.raises(UsageError, match="no part 'nginx'"):
        ailing(server, ["nginx"])


class Registrar:
    """A SuperLink that nobody asks anything of."""

    def register(self, public_key: bytes, name: str) -> int:
        raise NotImplementedError

    def unregister(self, node: int) -> None:
        raise NotImplementedError


def test_an_enrolment_service_that_listens_and_says_nothing_is_not_well(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped: the system still lets callers in."""
    monkeypatch.setattr(processes, "ANSWER_SECONDS", 0.2)
    server.enrol_socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(server.enrol_socket))
        listening.listen()
        assert ailing(server, ["enrol"]) == ["enrol: does not answer"]
    assert ailing(server, ["enrol"]) == ["enrol: does not listen"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", []),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", ["enrol: does not answer as it should"]),
        (b"", ["enrol: does not answer as it should"]),
        (b"x" * 10_000, ["enrol: does not answer as it should"]),
    ],
)
def test_an_enrolment_service_is_judged_by_its_answer(
    server: ServerDirectory, said: bytes, why: list[str]
) -> None:
    server.enrol_socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(server.enrol_socket))
        listening.listen()

        def answer() -> None:
            for text in (b"", said):  # the first caller only looks whether anybody listens
                caller, _ = listening.accept()
                with caller, suppress(OSError):
                    caller.recv(1000)
                    caller.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()
        assert ailing(server, ["enrol"]) == why
        thread.join()


def test_the_enrolment_service_answers_what_health_asks(server: ServerDirectory) -> None:
    config = uvicorn.Config(
        build_service(server, Registrar(), collect=False), uds=str(server.enrol_socket), log_config=None
    )
    service = uvicorn.Server(config)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        wait_for("the service", lambda: service.started, 30)
        assert ailing(server, ["enrol"]) == []
    finally:
        service.should_exit = True
        thread.join()


def test_the_commands_end_with_1_where_something_is_not_well(server: ServerDirectory) -> None:
    run = CliRunner().invoke
    done = run(server_cli.app, ["health", str(server.path), "gateway", "queue"])
    assert done.exit_code == 1
    assert done.stderr == "gateway: is closed\nqueue: is down\n"


# --- who attends ----------------------------------------------------------------------------------


def test_only_who_holds_the_lock_and_keeps_its_word_attends(server: ServerDirectory) -> None:
    authority = server.path.parent / "authority"
    beat = Heartbeat(authority / ATTEND_BEAT)

    def said() -> tuple[int, str]:
        done = CliRunner().invoke(authority_cli.app, ["health", str(authority)])
        return done.exit_code, done.output.strip()

    nobody = (1, f"nobody attends in {authority}")
    assert said() == nobody
    beat.beat(3600.0)
    assert said() == nobody  # whoever promised was killed
    with claim(authority, ATTEND_LOCK):
        assert said() == (0, "attend is well")
        for text in ("nan", "inf", "-inf", f"{time.time() + LONGEST + 1000:.0f}", "9e99"):
            (authority / ATTEND_BEAT).write_text(text)
            assert said() == (1, "attend was never heard of"), text
        Heartbeat(authority / ATTEND_BEAT, lambda: NOW - 10**9).beat(5.0)
        assert said()[0] == 1
        assert "should have been heard of" in said()[1]
    assert said() == nobody


def attend(server: ServerDirectory, *words: str) -> Result:
    folders = ["--requests", str(server.requests), "--answers", str(server.answers)]
    authority = str(server.path.parent / "authority")
    return CliRunner().invoke(authority_cli.app, ["attend", authority, *folders, "--yes", *words])


def test_one_look_promises_nothing(server: ServerDirectory) -> None:
    assert attend(server).exit_code == 0
    assert not (server.path.parent / "authority" / ATTEND_BEAT).exists()


def test_who_watches_holds_the_lock_and_goes_on_without_a_sign_of_life(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = server.path.parent / "authority"
    (authority / ATTEND_BEAT).mkdir()  # nothing can be written there
    slept: list[tuple[float, bool]] = []

    def sleep(seconds: float) -> None:
        slept.append((seconds, is_held(authority / ATTEND_LOCK, held_locks())))
        if len(slept) == 2:
            (authority / ATTEND_BEAT).rmdir()
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("penchant.deploy.cli.authority.time.sleep", sleep)
    done = attend(server, "--watch", "7")
    assert slept == [(7.0, True)] * 3
    assert done.output.count("no sign of life can be written") == 1
    late = Heartbeat(authority / ATTEND_BEAT).late()
    assert late is not None
    assert late <= 0


def test_who_looks_once_an_hour_gives_a_sign_of_life_each_minute(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one that hangs is missed after two minutes, however seldom it looks."""
    beat, slept, promised = server.path.parent / "authority" / ATTEND_BEAT, list[float](), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        promised.append(-(Heartbeat(beat).late() or 0.0))
        if len(slept) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("penchant.deploy.cli.authority.time.sleep", sleep)
    attend(server, "--watch", "150")
    assert slept == [60.0, 60.0, 30.0, 60.0]
    assert max(promised) <= 121.0


def test_two_who_watch_and_odd_times_are_refused_in_one_line(server: ServerDirectory) -> None:
    with claim(server.path.parent / "authority", ATTEND_LOCK):
        second = attend(server, "--watch", "5")
    assert isinstance(second.exception, UsageError) or second.exit_code
    assert "another `attend --watch` works with" in f"{second.output}{second.exception}"
    for odd in ("nan", "inf", "-1", "1e9"):
        refused = attend(server, "--watch", odd)
        assert "give between 0 and 86400 seconds" in f"{refused.output}{refused.exception}", odd


def test_the_keeper_goes_on_without_a_sign_of_life(
    server: ServerDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    (server.path / BEAT).mkdir()
    stop = threading.Event()
    stop.set()
    keeper = RunKeeper(server, lambda words: None, lambda: NOW, lambda: 0.0)
    keeper.run(stop)
    assert keeper._recorded("start a run", "spring", "", ["run"]) is None
    assert [record.getMessage() for record in caplog.records] == [
        "no sign of life can be written: Is a directory"
    ]


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b"\xff"), lambda path: path.mkdir()])
def test_a_damaged_sign_of_life_is_none(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "beat")
    assert Heartbeat(tmp_path / "beat").late() is None
