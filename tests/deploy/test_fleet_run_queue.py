"""Runs that wait for their turn: the queue as a file, its keeper, and the commands."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.console_scene import log, shared
from support.fleet_directory import make_served_run, make_server
from support.terminal import server_command

from penchant.common.config import RunConfig
from penchant.common.errors import JournalError, RunInProgress, SuperLinkError, UsageError
from penchant.deploy import run_directory
from penchant.deploy.error_report import AS_JSON, ErrorReport
from penchant.deploy.fleet import follow, recorded_acts, run_activity, run_checks, run_signature
from penchant.deploy.fleet.run_keeper import LONGEST_PAUSE, RunKeeper
from penchant.deploy.fleet.run_queue import MARK, QUEUE, TRIES, RunQueue, mark, moment_of, period_of
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.journal import Journal
from penchant.server.releases import promote

NOW = 1_800_000_000.0
HOUR = 3600.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


class Server:
    """Stands for `penchant server run` and `resume`: makes a run's directory, or says no."""

    def __init__(self, server: ServerDirectory) -> None:
        self.directory = server
        self.called: list[list[str]] = []
        self.answer: ErrorReport | None = None

    def __call__(self, words: Sequence[str]) -> ErrorReport | None:
        self.called.append(list(words))
        if self.answer is not None:
            return self.answer
        if words[0] == "run":
            name = words[words.index("--name") + 1]
            config = RunConfig.read(Path(words[words.index("--config") + 1]))
            made(self.directory, name, config, int(words[words.index("--queued") + 1]))
        return None


def made(server: ServerDirectory, name: str, config: RunConfig, queued: int = 0) -> Path:
    """A run that Flower has, and that is over as soon as anybody looks.

    queued: its number in the queue; 0: an operator's own.
    """
    directory = server.run(name)
    run_directory.create(directory, config, more={MARK: mark(queued)} if queued else {})
    (directory / run_directory.MODEL_SIGNATURE).write_text("{}")
    flower(directory, "7", "begins", "is done")
    return directory


def flower(directory: Path, number: str, *words: str, ago: float = 300.0) -> None:
    """What Flower's run has said of a run, and how long ago."""
    (directory / run_activity.FLOWER_RUN).write_text(number)
    lines = [f"2026-01-01T00:00:00+0000 Flower run {number} {word}\n" for word in words]
    (directory / run_activity.LOG).write_text("".join(lines))
    for name in (run_activity.FLOWER_RUN, run_activity.LOG):
        os.utime(directory / name, (time.time() - ago,) * 2)


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    return make_server(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def calls(server: ServerDirectory) -> Server:
    return Server(server)


@pytest.fixture
def keeper(server: ServerDirectory, calls: Server, clock: Clock) -> RunKeeper:
    return RunKeeper(server, calls, clock, clock)


def names(server: ServerDirectory) -> list[str]:
    return [one.called for one in RunQueue(server).runs()]


def add(server: ServerDirectory, name: str = "", **more: Any) -> int:
    config = RunConfig().changed({"federation.cohort": 5})
    return RunQueue(server).add(config, "olga", name=name, now=NOW, **more).number


# --- the file -----------------------------------------------------------------------------------------


def test_runs_wait_in_order_and_outlast_the_process(server: ServerDirectory) -> None:
    assert RunQueue(server).runs() == []
    assert not (server.path / QUEUE).exists()  # looking makes nothing
    for name in ("spring", "summer", "autumn"):
        add(server, name)
    assert names(server) == ["spring", "summer", "autumn"]
    RunQueue(server).move(3, 1)
    assert names(server) == ["autumn", "spring", "summer"]
    assert RunQueue(server).remove(1).name == "spring"
    assert names(server) == ["autumn", "summer"]
    found = RunQueue(server).find(3)
    assert RunConfig.from_toml(found.config).federation.cohort == 5
    assert (found.by, found.added, found.days, found.due, found.every) == ("olga", NOW, 30, 0.0, 0.0)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=6))
def test_moving_changes_the_order_and_nothing_else(moves: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = make_server(Path(folder))
        for name in "abcd":
            add(server, name)
        expected = [1, 2, 3, 4]
        for number, place in moves:
            RunQueue(server).move(number, place)
            expected.remove(number)
            expected.insert(place - 1, number)
        assert [one.number for one in RunQueue(server).runs()] == expected


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"name": "spring"}, "a run spring waits already"),
        ({"name": "winter"}, "there is a run winter already"),
        ({"name": "../x"}, "can't name a run"),
        ({"due": NOW - 3 * HOUR}, "lies in the future"),
        ({"due": NOW + 400 * 24 * HOUR}, "within a year"),
        ({"every": 5.0}, "ten minutes at least"),
        ({"every": HOUR, "name": "a" * 57}, "at most 56 characters: a number follows"),
    ],
)
def test_what_can_never_begin_is_refused(server: ServerDirectory, more: dict[str, Any], why: str) -> None:
    add(server, "spring")
    make_served_run(server, "winter", 1)
    with pytest.raises(UsageError, match=why):
        add(server, **more)
    assert names(server) == ["spring"]


def test_a_number_or_place_that_is_not_there_is_refused(server: ServerDirectory) -> None:
    add(server, "spring")
    queue = RunQueue(server)
    with pytest.raises(UsageError, match="has the number 9; there are: 1"):
        queue.remove(9)
    with pytest.raises(UsageError, match="their places are 1 to 1"):
        queue.move(1, 2)
    with pytest.raises(UsageError, match="was not refused"):
        queue.retry(1)


def test_a_file_of_a_later_version_is_refused(server: ServerDirectory) -> None:
    add(server, "spring")
    with closing(sqlite3.connect(server.path / QUEUE)) as db:
        db.execute(f"PRAGMA application_id = {0x50454E00 | 9}")
        db.commit()
    with pytest.raises(JournalError, match="later version"):
        RunQueue(server).runs()


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert period_of(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1d", "1.5h", "5m", "367d", "7 d", "٧d"])
def test_other_lengths_of_time_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        period_of(text)


def test_times_are_of_this_machine() -> None:
    at = time.mktime((2027, 3, 1, 3, 0, 0, 0, 0, -1))
    assert moment_of("2027-03-01 03:00", NOW) == at == moment_of("2027-03-01T03:00:00", NOW)
    assert moment_of("2027-03-01 03:00Z", NOW) == 1_803_870_000.0
    for text, why in (
        ("2026-03-01 03:00", "is over"),
        ("tomorrow", "is no time"),
        ("2027-13-01 03:00", "is no"),
    ):
        with pytest.raises(UsageError, match=why):
            moment_of(text, NOW)


# --- its keeper ---------------------------------------------------------------------------------------


def test_runs_begin_one_after_the_other(server: ServerDirectory, keeper: RunKeeper, calls: Server) -> None:
    add(server, "spring", begin_with="winter:12", days=9)
    add(server)
    keeper.look()
    assert (server.run("spring") / "config.toml").is_file()
    words = calls.called[0]
    assert [*words[:2], *words[4:]] == [
        "run", str(server.path), "--name", "spring", "--detach", "--days", "9", "--queued", "1",
        "--from", "winter:12",
    ]  # fmt: skip
    assert names(server) == ["run 2"]
    with run_directory.claim(server.run("spring")):  # it goes on
        keeper.look()
    assert len(calls.called) == 1
    keeper.look()
    assert calls.called[1][5] == "run-2"  # as `penchant server run` would call it
    assert names(server) == []
    keeper.look()
    assert len(calls.called) == 2


def test_what_the_queue_does_is_on_record(server: ServerDirectory, keeper: RunKeeper) -> None:
    add(server, "spring")
    keeper.look()
    found: list[recorded_acts.Act] = []
    recorded_acts.take(server.path, found.append)
    told = [(act.account, act.action, act.target, act.detail, act.outcome) for act in found]
    assert told == [("the queue", "start a run", "spring", "from the queue, for olga", "done")]


def test_a_run_waits_for_its_time_and_lets_others_pass(
    server: ServerDirectory, keeper: RunKeeper, clock: Clock
) -> None:
    add(server, "later", due=NOW + HOUR)
    add(server, "now")
    keeper.look()
    keeper.look()
    assert (server.runs(), names(server)) == (["now"], ["later"])
    clock.now += HOUR
    keeper.look()
    assert (server.runs(), names(server)) == (["now", "later"], [])


def test_a_run_comes_again_and_what_was_missed_is_over(
    server: ServerDirectory, keeper: RunKeeper, clock: Clock
) -> None:
    add(server, "weekly", due=NOW + HOUR, every=24 * HOUR)
    clock.now = NOW + HOUR
    keeper.look()
    assert server.runs() == ["weekly-1"]
    (waiting,) = RunQueue(server).runs()
    assert waiting.due == NOW + 25 * HOUR
    clock.now = NOW + 80 * HOUR  # the server was down on the second day and the third
    keeper.look()
    keeper.look()
    assert server.runs() == ["weekly-1", "weekly-2"]
    (waiting,) = RunQueue(server).runs()
    assert waiting.due == NOW + 97 * HOUR


@pytest.mark.parametrize("refused", [False, True])
def test_a_run_whose_time_has_always_come_lets_others_have_their_turn(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock, refused: bool
) -> None:
    """Each of its runs, or each try, takes longer than the time between them."""
    add(server, "often", every=HOUR)
    add(server, "mine")
    add(server, "yours")
    calls.answer = ErrorReport("config", "too few members") if refused else None
    for _ in range(2):
        clock.now += 2 * HOUR
        keeper.look()
        calls.answer = None
    assert server.runs() == (["mine"] if refused else ["often-1", "mine"])
    assert names(server) == (["yours", "often"])
    clock.now += 2 * HOUR
    keeper.look()
    assert names(server) == ["often"]


def test_a_refused_run_is_held_and_keeps_nobody_waiting(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock
) -> None:
    add(server, "large")
    add(server, "small")
    calls.answer = ErrorReport("config", "federation.cohort is 5, but this fleet has 2 members")
    keeper.look()
    held = RunQueue(server).find(1)
    assert (held.held, held.why, held.began) == (True, calls.answer.message, "")
    calls.answer = None
    clock.now += HOUR
    keeper.look()
    assert (server.runs(), names(server)) == (["small"], ["large"])
    keeper.look()
    assert server.runs() == ["small"]
    RunQueue(server).retry(1)
    keeper.look()
    assert (server.runs(), names(server)) == (["small", "large"], [])


@pytest.mark.parametrize("code", ["superlink", "run-in-progress"])
def test_what_is_possible_later_is_tried_again_ever_later(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock, code: str
) -> None:
    add(server, "spring")
    calls.answer = ErrorReport(code, "not now")
    keeper.look()
    keeper.look()
    assert len(calls.called) == 1  # a pause
    tries = 1
    while clock.now < NOW + 4 * HOUR:
        clock.now += 60
        keeper.look()
    tries = len(calls.called)
    assert 4 * HOUR / LONGEST_PAUSE <= tries <= 24
    assert not RunQueue(server).find(1).why
    calls.answer = None
    clock.now += HOUR
    keeper.look()
    assert names(server) == []


def test_what_was_removed_before_its_process_was_up_is_not_made(
    server: ServerDirectory, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "refuse_second", lambda *_: None)
    number = add(server, "spring")
    RunQueue(server).remove(number)
    words = ("--config", config, "--name", "spring", "--queued", number, "--detach")
    assert server_command(monkeypatch, "run", server.path, *words) == 2
    assert f"no run of the queue has the number {number}" in capsys.readouterr().err
    assert not server.run("spring").exists()


def test_a_clock_that_is_set_back_makes_no_pause_longer(
    server: ServerDirectory, calls: Server, clock: Clock
) -> None:
    stopwatch = Clock()
    keeper = RunKeeper(server, calls, clock, stopwatch)
    add(server, "spring")
    calls.answer = ErrorReport("superlink", "not now")
    keeper.look()
    calls.answer = None
    clock.now -= 24 * HOUR
    keeper.look()
    assert len(calls.called) == 1
    stopwatch.now += LONGEST_PAUSE
    keeper.look()
    assert (server.runs(), names(server)) == (["spring"], [])


def test_a_run_that_is_removed_as_its_turn_comes_does_not_begin(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither does one that another keeper was quicker with."""
    add(server, "spring")
    add(server, "summer")
    queue = RunQueue(server)
    turn = queue.next(NOW)
    assert turn is not None
    monkeypatch.setattr(RunQueue, "next", lambda *_: turn)  # as it was when the keeper looked
    queue.remove(turn.number)
    keeper.look()
    turn = queue.find(2)
    queue.begins(turn, "autumn")
    keeper.look()
    assert calls.called == []
    assert [(one.called, one.began) for one in queue.runs()] == [("summer", "autumn")]


def test_a_broken_run_is_held_whatever_file_is_damaged(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock
) -> None:
    add(server, "bad", begin_with="release")
    add(server, "good")
    calls.answer = ErrorReport(JournalError.code, "release.json is damaged")
    keeper.look()
    held = RunQueue(server).find(1)
    assert (held.held, held.why, held.began) == (True, "release.json is damaged", "")
    calls.answer = None
    clock.now += HOUR
    keeper.look()
    assert (server.runs(), names(server)) == (["good"], ["bad"])
    assert RunQueue(server).remove(1).name == "bad"


def test_a_name_that_no_run_can_have_is_refused_in_its_turn(
    server: ServerDirectory, keeper: RunKeeper, calls: Server
) -> None:
    """Of an earlier version, which let longer names in."""
    add(server, "long", every=HOUR)
    add(server, "good")
    with closing(sqlite3.connect(server.path / QUEUE)) as db:
        db.execute("UPDATE queued SET name = ? WHERE number = 1", ("a" * 63,))
        db.commit()
    keeper.look()
    assert "can't name a run" in RunQueue(server).find(1).why
    keeper.look()
    assert server.runs() == ["good"]


def test_what_was_about_to_begin_and_did_not_can_be_removed(server: ServerDirectory) -> None:
    """The keeper was killed: before anything was made, and before Flower had it."""
    queue = RunQueue(server)
    for name in ("spring", "summer"):
        number = add(server, name)
        queue.begins(queue.find(number), name)
        if name == "summer":
            (made(server, name, RunConfig(), number) / run_activity.FLOWER_RUN).unlink()
        with (
            run_directory.claim(server.path, run_activity.START_LOCK),
            pytest.raises(UsageError, match="begins just now"),
        ):
            queue.remove(number)
        assert queue.remove(number).name == name
    assert names(server) == []
    assert server.runs() == ["summer"]  # the operator's now, to resume or not


def test_a_keeper_that_was_killed_starts_no_run_twice(
    server: ServerDirectory, calls: Server, clock: Clock
) -> None:
    """Killed after the run was made and before Flower had it, and after Flower had it."""
    number = add(server, "spring")
    queue = RunQueue(server)
    queue.begins(queue.find(number), "spring")
    directory = made(server, "spring", RunConfig(), number)
    (directory / run_activity.FLOWER_RUN).unlink()
    RunKeeper(server, calls, clock, clock).look()
    assert calls.called == [["resume", str(server.path), "--run", "spring", "--detach"]]
    assert names(server) == []

    number = add(server, "summer")
    queue.begins(queue.find(number), "summer")
    made(server, "summer", RunConfig(), number)
    with pytest.raises(UsageError, match="begins just now"):
        queue.remove(number)
    RunKeeper(server, calls, clock, clock).look()
    assert len(calls.called) == 1
    assert names(server) == []


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("killed", [True, False])
def test_a_run_that_took_the_name_meanwhile_is_somebody_elses(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock, started: bool, killed: bool
) -> None:
    """The queue's `run-1` could not begin, and then an operator's own run has that name.

    started: whether Flower has the operator's. killed: whether the keeper was, before it knew the answer.
    """
    number = add(server)
    if killed:
        RunQueue(server).begins(RunQueue(server).find(number), "run-1")
    else:
        calls.answer = ErrorReport("run-in-progress", "not now")
        keeper.look()
        assert RunQueue(server).find(number).began == ""
    own = made(server, "run-1", RunConfig())
    if not started:
        (own / run_activity.FLOWER_RUN).unlink()
    calls.answer, calls.called = None, []
    clock.now += HOUR
    keeper.look()
    (words,) = calls.called
    assert (words[0], words[words.index("--name") + 1]) == ("run", "run-2")
    assert (server.runs(), names(server)) == (["run-1", "run-2"], [])


# --- runs that were cut off ---------------------------------------------------------------------------


def test_a_run_that_was_cut_off_goes_on_before_others_begin(
    server: ServerDirectory, keeper: RunKeeper, calls: Server
) -> None:
    directory = make_served_run(server, "spring", 2)
    flower(directory, "3", "begins")
    add(server, "summer")
    keeper.look()
    assert calls.called == [["resume", str(server.path), "--run", "spring", "--detach"]]
    assert names(server) == ["summer"]


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (["begins"], True),
        ([], True),  # Flower lost it
        (["begins", f"{run_signature.WAITS}; the authority signs"], True),
        (["begins", "was stopped"], False),
        (["begins", "ends: too few devices"], False),
        (["begins", "is done"], False),
    ],
)
def test_what_somebody_ended_does_not_go_on(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, words: list[str], goes_on: bool
) -> None:
    flower(make_served_run(server, "spring", 2), "3", *words)
    keeper.look()
    assert len(calls.called) == goes_on


def test_an_earlier_run_does_not_go_on_once_another_was_started(
    server: ServerDirectory, keeper: RunKeeper, calls: Server
) -> None:
    flower(make_served_run(server, "spring", 2), "3", "begins", ago=900.0)
    flower(make_served_run(server, "summer", 2), "4", "begins", "was stopped")
    keeper.look()
    assert calls.called == []


def test_a_run_goes_on_once_the_authority_has_signed(
    server: ServerDirectory, keeper: RunKeeper, calls: Server
) -> None:
    directory = make_served_run(server, "spring", 0)
    flower(directory, "3", "begins", f"ends: {run_signature.NOT_SIGNED}")
    keeper.look()
    assert calls.called == []
    (directory / run_signature.SIGNED).write_bytes(b"signed")
    keeper.look()
    assert len(calls.called) == 1


def test_a_finished_run_does_not_go_on(server: ServerDirectory, keeper: RunKeeper, calls: Server) -> None:
    """Its process was killed after the closing round, before it said so."""
    flower(make_served_run(server, "spring", 4, of=3), "3", "begins")
    keeper.look()
    assert calls.called == []


def test_nobody_goes_on_for_ever_without_a_round(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock
) -> None:
    directory = make_served_run(server, "spring", 2)
    flower(directory, "3", "begins")
    for _ in range(10):
        clock.now += HOUR
        keeper.look()
    assert len(calls.called) == TRIES
    with closing(Journal(directory)) as journal:
        journal.begin(3, "main")
        journal.finish(log(3), shared(3))
    clock.now += HOUR
    keeper.look()
    assert len(calls.called) == TRIES + 1


def test_a_run_that_has_the_name_of_one_that_is_gone_has_tries_of_its_own(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock
) -> None:
    for again in range(2):
        directory = make_served_run(server, "spring", 2)
        os.utime(directory / "config.toml", (NOW + again,) * 2)
        flower(directory, "3", "begins")
        for _ in range(10):
            clock.now += HOUR
            keeper.look()
        assert len(calls.called) == TRIES * (again + 1)
        shutil.rmtree(directory)


def test_a_run_that_can_not_be_resumed_is_tried_once(
    server: ServerDirectory, keeper: RunKeeper, calls: Server, clock: Clock
) -> None:
    flower(make_served_run(server, "spring", 2), "3", "begins")
    add(server, "summer")
    calls.answer = ErrorReport("run-directory", "the run's days are over")
    keeper.look()
    calls.answer = None
    clock.now += HOUR
    keeper.look()
    assert [words[0] for words in calls.called] == ["resume", "run"]


def test_whoever_wants_it_by_hand_says_so(tmp_path: Path, clock: Clock) -> None:
    server = make_server(tmp_path, resume_runs=False)
    flower(make_served_run(server, "spring", 2), "3", "begins")
    calls = Server(server)
    RunKeeper(server, calls, clock, clock).look()
    assert calls.called == []


def test_a_damaged_run_keeps_nobody_waiting(
    server: ServerDirectory, keeper: RunKeeper, calls: Server
) -> None:
    directory = make_served_run(server, "spring", 2)
    flower(directory, "3", "begins")
    (directory / "journal.db").write_bytes(b"no database")
    add(server, "summer")
    keeper.look()
    assert [words[0] for words in calls.called] == ["run"]


# --- the commands -------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_checks, "refuse_unfit", lambda *given: None)
    path = tmp_path / "run.toml"
    path.write_text("[federation]\ncohort = 17\n")
    return path


def test_a_run_is_queued_moved_and_removed_at_the_terminal(
    server: ServerDirectory, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("run", server.path, "--config", config)
    assert server_command(monkeypatch, *run, "--queue", "--name", "spring") == 0
    assert server_command(monkeypatch, *run, "--every", "7d", "--name", "weekly") == 0
    assert server_command(monkeypatch, *run, "--at", "2026-01-01 00:00") == 2
    assert "is over" in capsys.readouterr().err
    assert server_command(monkeypatch, "queue", "move", server.path, 2, 1) == 0
    assert server_command(monkeypatch, "queue", "list", server.path, "--json") == 0
    out = capsys.readouterr().out
    told = json.loads(out[out.index("[") :])
    assert [(one["name"], one["every"]) for one in told] == [("weekly", 604_800.0), ("spring", 0.0)]
    assert server_command(monkeypatch, "status", server.path, "--json") == 1  # nothing is up
    assert json.loads(capsys.readouterr().out)["queue"] == 2
    assert server_command(monkeypatch, "queue", "remove", server.path, 1) == 0
    assert server_command(monkeypatch, "queue", "list", server.path) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("   2  weekly, not before ")
    found: list[recorded_acts.Act] = []
    recorded_acts.take(server.path, found.append)
    assert [(act.action, act.outcome.partition(":")[0]) for act in found] == [
        ("queue a run", "done"),
        ("queue a run", "done"),
        ("queue a run", "refused"),
        ("move a run in the queue", "done"),
        ("remove a run from the queue", "done"),
    ]


HOLD = """
import sys
from pathlib import Path
from penchant.deploy.fleet.run_activity import START_LOCK
from penchant.deploy.run_directory import claim

with claim(Path(sys.argv[1]), START_LOCK):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_nobody_starts_a_run_while_another_is_being_started(
    server: ServerDirectory,
    keeper: RunKeeper,
    calls: Server,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another process holds the lock, as it loads the base model: nothing of its run is to be seen yet."""
    directory = make_served_run(server, "spring", 2)
    flower(directory, "3", "begins")
    add(server, "summer")
    before = {path: path.read_bytes() for path in server.path.rglob("runs/**/*") if path.is_file()}
    monkeypatch.setenv(*next(iter(AS_JSON.items())))
    words = [sys.executable, "-c", HOLD, str(server.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for command in (["run", server.path, "--config", config, "--name", "own"], ["resume", server.path]):
            assert server_command(monkeypatch, *command, "--detach") == 2
            report = ErrorReport.last_in(capsys.readouterr().err)
            assert report is not None
            assert report.code == RunInProgress.code
        keeper.look()
        other.stdin.close()
    assert calls.called == []
    assert before == {path: path.read_bytes() for path in server.path.rglob("runs/**/*") if path.is_file()}
    assert server.runs() == ["spring"]
    keeper.look()
    assert [words[0] for words in calls.called] == ["resume"]
    assert server_command(monkeypatch, "resume", server.path) == 1  # free: no SuperLink is next
    report = ErrorReport.last_in(capsys.readouterr().err)
    assert report is not None
    assert report.code == SuperLinkError.code


def test_a_queued_run_can_begin_with_a_release(
    server: ServerDirectory, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = ("run", server.path, "--config", config, "--queue")
    assert server_command(monkeypatch, *queue, "--from", "winter:release") == 2
    assert "there is no run 'winter' to begin with" in capsys.readouterr().err
    promote(make_served_run(server, "winter", 2), 2, "0" * 64, "olga")
    assert server_command(monkeypatch, *queue, "--from", "winter:release-2") == 2
    assert "winter has no release 2" in capsys.readouterr().err
    assert server_command(monkeypatch, *queue, "--from", "winter:release") == 0
    assert [one.begin_with for one in RunQueue(server).runs()] == ["winter:release"]


def test_a_refused_run_needs_attention(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = RunQueue(server)
    queue.refused(queue.find(add(server, "spring")), "there is no such model.", NOW)
    server_command(monkeypatch, "status", server.path)
    out = capsys.readouterr().out
    assert "! spring of the queue was refused. there is no such model. Remove it, or try it again." in out
    assert server_command(monkeypatch, "queue", "retry", server.path, 1) == 0
    assert queue.find(1).why == ""
