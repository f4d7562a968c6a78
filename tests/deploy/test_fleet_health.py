"""Health of a server's parts: one that lives and does nothing is not well."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from flwr.supercore.constant import MAX_TIMESTAMP_DIFF_SECONDS
from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.state.schema.corestate_models import NonceStore
from typer.testing import CliRunner

from penchant.common.errors import UsageError
from penchant.common.wording import duration
from penchant.deploy.cli import authority as authority_cli
from penchant.deploy.cli import server as server_cli
from penchant.deploy.error_report import ErrorReport
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import BEAT as ATTEND_BEAT
from penchant.deploy.fleet.health import EXECUTOR_SECONDS, ailing
from penchant.deploy.fleet.heartbeat import SLACK, Heartbeat
from penchant.deploy.fleet.run_keeper import BEAT, LOCK, LOOK_SECONDS, START_SECONDS, RunKeeper
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.executor_looks import last_look
from penchant.deploy.run_directory import claim

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


def test_the_commands_end_with_1_where_something_is_not_well(server: ServerDirectory) -> None:
    run = CliRunner().invoke
    done = run(server_cli.app, ["health", str(server.path), "gateway", "queue"])
    assert done.exit_code == 1
    assert done.stderr == "gateway: is closed\nqueue: is down\n"
    authority = server.path.parent / "authority"
    nobody = run(authority_cli.app, ["health", str(authority)])
    assert (nobody.exit_code, "nobody attends" in nobody.stderr) == (1, True)
    Heartbeat(authority / ATTEND_BEAT).beat(5.0)
    well = run(authority_cli.app, ["health", str(authority)])
    assert (well.exit_code, well.stdout) == (0, "attend is well\n")
    Heartbeat(authority / ATTEND_BEAT, lambda: NOW - 10**9).beat(5.0)
    assert run(authority_cli.app, ["health", str(authority)]).exit_code == 1


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b"\xff"), lambda path: path.mkdir()])
def test_a_damaged_sign_of_life_is_none(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "beat")
    assert Heartbeat(tmp_path / "beat").late() is None
