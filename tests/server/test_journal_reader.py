"""Strangers' run directories: every attack costs its own run a line, and neither a page nor a thread."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.console_scene import Console, make_run, text_of

from penchant.common import foreign_files
from penchant.common.errors import JournalError
from penchant.server import journal_reader
from penchant.server.journal import Journal, RoundLog
from penchant.server.journal_reader import JournalReader, open_journal
from penchant.server.monitoring.run_history import Activity, RunLocation, summary_of
from penchant.server.privacy_figures import FACT, PrivacyFigures

ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT "
COLUMNS = "n AS round, 1 AS attempt, 'main' AS phase, 'failed' AS state, 1.0 AS started, NULL AS log, "


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def tamper(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "journal.db", isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)
        db.execute("PRAGMA journal_mode=DELETE")


def state_of(directory: Path) -> tuple[str, str]:
    facts = summary_of(RunLocation("id", "run", directory, "simulation"), Activity())
    return facts.state, facts.why


# --- what a stranger can put into a directory -------------------------------------------------------


def endless_view(run: Path) -> None:
    tamper(
        run,
        "ALTER TABLE rounds RENAME TO old",
        f"CREATE VIEW rounds AS {ENDLESS}{COLUMNS} 'x' AS why, NULL AS checkpoint FROM r",
    )


def another_view(run: Path) -> None:
    tamper(run, f"CREATE VIEW idle AS {ENDLESS} n FROM r")


def computed_column(run: Path) -> None:
    tamper(
        run,
        "DROP TABLE stages",
        "CREATE TABLE stages (round INTEGER, attempt INTEGER, stage TEXT AS (hex(zeroblob(500000000))),"
        " began REAL, ended REAL, asked INTEGER, answered INTEGER)",
    )


def trigger(run: Path) -> None:
    tamper(run, "CREATE TRIGGER t AFTER INSERT ON rounds BEGIN DELETE FROM meta; END")


def virtual_table(run: Path) -> None:
    tamper(run, "DROP TABLE stages", "CREATE VIRTUAL TABLE stages USING fts5(stage)")


def index_on_an_expression(run: Path) -> None:
    tamper(run, "CREATE INDEX i ON rounds (abs(round))")


def other_columns(run: Path) -> None:
    tamper(run, "ALTER TABLE devices RENAME COLUMN node TO nodes")


def number_that_is_none(run: Path) -> None:
    tamper(run, "UPDATE devices SET joined = 'many' WHERE member = 1")


def round_without_end(run: Path) -> None:
    tamper(run, "UPDATE rounds SET started = 9e999 WHERE round = 1")


def negative_count(run: Path) -> None:
    tamper(run, "UPDATE stages SET asked = -1")


def binary_text(run: Path) -> None:
    tamper(run, "UPDATE rounds SET phase = x'ff'")


def text_that_is_no_utf8(run: Path) -> None:
    tamper(run, "UPDATE rounds SET phase = CAST(x'ff' AS TEXT)")


def escape_in_a_phase(run: Path) -> None:
    tamper(run, "UPDATE rounds SET phase = 'main' || char(27) || '[2J'")


def log_of(**changes: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        with closing(sqlite3.connect(run / "journal.db")) as db:
            table = json.loads(db.execute("SELECT log FROM rounds WHERE round = 1").fetchone()[0])
            db.execute("UPDATE rounds SET log = ? WHERE round = 1", (json.dumps(table | changes),))
            db.commit()

    return change


def log_text(text: str) -> Callable[[Path], None]:
    return lambda run: tamper(run, f"UPDATE rounds SET log = '{text}' WHERE round = 1")


def figures_of(**changes: object) -> Callable[[Path], None]:
    """Of a run's differential privacy, as the journal notes them."""
    honest = PrivacyFigures(8.0, 1e-5, 1.1, 6, 21, 0.4, 0.5).to_dict()

    def change(run: Path) -> None:
        with closing(sqlite3.connect(run / "journal.db")) as db:
            row = (FACT, json.dumps(honest | changes))
            db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", row)
            db.commit()

    return change


def link_to_a_journal(run: Path) -> None:
    (run / "journal.db").rename(run.parent / "elsewhere.db")
    (run / "journal.db").symlink_to(run.parent / "elsewhere.db")


def pipe_for(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return change


def link_to_a_log(run: Path) -> None:
    (run / "journal.db-wal").symlink_to("/dev/zero")


def folder_in_its_place(run: Path) -> None:
    (run / "journal.db").unlink()
    (run / "journal.db").mkdir()


ATTACKS: dict[str, Callable[[Path], object]] = {
    attack.__name__: attack
    for attack in (
        endless_view, another_view, computed_column, trigger, virtual_table, index_on_an_expression,
        other_columns, number_that_is_none, round_without_end, negative_count, binary_text,
        text_that_is_no_utf8, escape_in_a_phase, link_to_a_journal, link_to_a_log, folder_in_its_place,
    )
} | {
    "releases that are a list": lambda run: (run / "releases.json").write_text("[1]"),
    "a release of a word": lambda run: (run / "releases.json").write_text('{"current": 1, "releases": [7]}'),
    "a release without end": lambda run: (run / "releases.json").write_text('{"current": 1e999}'),
    "a pipe for releases": pipe_for("releases.json"),
    "a pipe for a journal": pipe_for("journal.db"),
    "a pipe for a log": pipe_for("journal.db-wal"),
    "a pipe for a rollback journal": pipe_for("journal.db-journal"),
    "a pipe for a configuration": pipe_for("config.toml"),
    "a delta beyond all": figures_of(delta=7.0),
    "an epsilon without end": figures_of(epsilon=float("inf")),
    "a cost of text": figures_of(rho="much"),
    "a cost of more digits than a float has": figures_of(rho=10**400),
    "a log of text": log_of(cohort="34"),
    "a log of a truth": log_of(survivors=True),
    "a log without end": log_of(seconds=float("inf")),
    "a log of no number": log_of(train_loss=float("nan")),
    "an accuracy out of range": log_of(val_accuracy=-153391688.0),
    "a histogram of words": log_of(histogram=["a"] * 10),
    "a histogram of two": log_of(histogram=[1, 2]),
    "losses that are a list": log_of(dropped=[1]),
    "names that are a number": log_of(named=7),
    "a log of another round": log_of(round=2),
    "a log that is a list": log_text("[1]"),
    "a log with a piece missing": log_text('{"round": 1}'),
    "a log that is deep": log_text("[" * 200_000),
    "a number too long": log_text('{"round": ' + "9" * 5000 + "}"),
}  # fmt: skip


def test_a_sound_journal_is_read_whole(run: Path) -> None:
    found = JournalReader(run).contents()
    assert [(a.round, a.state) for a in found.attempts] == [(n, "finished") for n in (1, 2, 3)]
    assert [stage.name for stage in found.stages[1, 1]] == ["keys", "shares", "masked", "confirm", "unmask"]
    assert [one.member for one in JournalReader(run).devices()] == [1, 2, 3, 4, 5]
    assert [s.phase for s in found.sums] == ["main"]
    assert JournalReader(run).load() is not None
    assert found.privacy is None
    figures_of()(run)
    assert JournalReader(run).privacy() == PrivacyFigures(8.0, 1e-5, 1.1, 6, 21, 0.4, 0.5)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_bad_journal_costs_its_own_run_one_line(run: Path, attack: Callable[[Path], object]) -> None:
    attack(run)
    began = time.thread_time()
    state, why = state_of(run)
    assert state == "damaged"
    assert why
    assert why.isprintable()
    assert "authorized" not in why
    assert time.thread_time() - began < 8


def test_all_of_them_together_take_no_page_from_the_sound_one(tmp_path: Path, sound: Path) -> None:
    console = Console(tmp_path)
    shutil.copytree(sound, console.runs / "sound")
    for number, attack in enumerate(ATTACKS.values()):
        shutil.copytree(sound, console.runs / f"bad-{number}")
        attack(console.runs / f"bad-{number}")
    browser = console.browser("vera")
    for path in ("/", "/runs", "/devices", "/privacy", "/releases"):
        answer = browser.get(path)
        assert answer.status_code == 200, path
    said = text_of(browser.get("/runs").text)
    # A pipe for a configuration makes no run, and a list of runs looks at nobody's devices.
    assert said.count("unreadable") >= len(ATTACKS) - 2
    assert "finished" in said or "stopped" in said


def checkpoint_of(dtype: str, shape: list[int], data: bytes, name: str) -> bytes:
    """A checkpoint of two numbers, of which one tensor is of another kind."""
    row = ("F32", [2], bytes(8))
    tensors = {
        **dict.fromkeys(("factors", "first", "second", "start"), row),
        **{"steps": ("I64", [1], bytes(8)), name: (dtype, shape, data)},
    }
    head, body = {}, b""
    for key, (kind, sides, content) in tensors.items():
        head[key] = {"dtype": kind, "shape": sides, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "name"),
    [
        ("BF16", [2], bytes(4), "factors"),
        ("F8_E4M3", [2], bytes(2), "factors"),
        ("F64", [2], bytes(16), "factors"),
        ("F32", [1, 2], bytes(8), "first"),
        ("BOOL", [2], bytes(2), "start"),
        ("F64", [1], np.array([np.inf]).tobytes(), "steps"),
        ("I64", [0], b"", "steps"),
    ],
)
def test_a_checkpoint_of_other_kinds_is_refused_in_one_line(
    run: Path, dtype: str, shape: list[int], data: bytes, name: str
) -> None:
    def load(content: bytes) -> object:
        (run / "checkpoints" / "round-000003.safetensors").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        tamper(run, f"UPDATE rounds SET checkpoint = 'round-000003.safetensors {digest}' WHERE round = 3")
        return JournalReader(run).load()

    assert load(checkpoint_of("F32", [2], bytes(8), "factors")) is not None
    with pytest.raises(JournalError, match="holds no shared state"):
        load(checkpoint_of(dtype, shape, data, name))


# --- nothing is changed, nothing is followed --------------------------------------------------------


def files(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.iterdir())
        if path.is_file()
    }


def test_reading_leaves_no_trace_beside_a_journal_that_is_being_written(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", 2)
    with closing(Journal(directory)) as journal:
        journal.begin(3, "main")
        before = files(directory)
        assert "journal.db-wal" in before
        os.chmod(directory, 0o500)
        assert [a.round for a in JournalReader(directory).attempts()] == [1, 2, 3]
        os.chmod(directory, 0o700)
        assert files(directory) == before


def test_a_rollback_journal_deletes_nothing_that_it_names(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    name = str(victim).encode()
    end = name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + foreign_files._ROLLBACK_MAGIC
    head = foreign_files._ROLLBACK_MAGIC + bytes(512 - 8)
    (run / "journal.db-journal").write_bytes(head + bytes(4) + end)
    with pytest.raises(JournalError, match="names another file"):
        JournalReader(run).contents()
    assert victim.read_text() == "precious"


def test_a_run_goes_on_only_after_its_journal_was_read(run: Path) -> None:
    trigger(run)
    with pytest.raises(JournalError, match="more than tables"):
        open_journal(run)


def test_a_run_that_is_written_is_read_whole_all_the_time(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", 1)
    script = (
        "import sys; from pathlib import Path; from penchant.server.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "j._db.execute('PRAGMA wal_autocheckpoint=5')\n"
        "for n in range(2, 400):\n"
        "    j.begin(n, 'main'); j.stage(n, 1, 'keys', 34); j.fail(n, 1, 'x' * 500)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(directory)]) as writer:
        seen = [0]
        while writer.poll() is None:
            with suppress(JournalError):
                seen.append(len(JournalReader(directory).attempts()))
    assert seen == sorted(seen)
    assert len(JournalReader(directory).attempts()) == 399


# --- bounds, and mutated files ----------------------------------------------------------------------


def test_every_value_of_a_log_has_a_check() -> None:
    assert set(journal_reader._LOG) == {f.name for f in fields(RoundLog)}


def test_a_file_that_is_too_long_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files, "DATABASE_MOST", 100)
    with pytest.raises(JournalError, match="longer than"):
        JournalReader(run).contents()


def test_a_database_whose_rows_have_no_end_is_left(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files.Limits, "rows", 2)
    limits = foreign_files.Limits(rows=2)
    with (
        pytest.raises(JournalError, match="more than any run"),
        foreign_files.foreign_database(run / "journal.db", JournalError, limits) as db,
    ):
        db.rows("SELECT * FROM stages")


def test_a_question_without_end_is_broken_off(run: Path) -> None:
    limits = foreign_files.Limits(seconds=0.2, rows=10**9)
    with (
        pytest.raises(JournalError, match="too long"),
        foreign_files.foreign_database(run / "journal.db", JournalError, limits) as db,
    ):
        db.rows("SELECT count(*) FROM stages a, stages b, stages c, stages d, stages e, stages f, stages g")


def test_only_tables_are_asked(run: Path) -> None:
    with foreign_files.foreign_database(run / "journal.db", JournalError) as db:
        for query in (
            "SELECT hex(zeroblob(9))",
            "DELETE FROM rounds",
            "ATTACH '/tmp/x' AS x",
            "PRAGMA user_version",
        ):
            with pytest.raises(JournalError, match="can't read"):
                db.rows(query)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 40), cut=st.booleans())
def test_whatever_bytes_are_changed_there_is_a_verdict(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, changes: int, cut: bool
) -> None:
    rng = random.Random(seed)
    data = bytearray((sound / "journal.db").read_bytes())
    for _ in range(changes):
        at = rng.randrange(min(len(data), rng.choice([200, 8192, len(data)])))
        data[at] = rng.choice([0, 255, rng.randrange(256)])
    if cut:
        del data[rng.randrange(len(data)) :]
    path = tmp_path_factory.mktemp("mutated") / "journal.db"
    path.write_bytes(data)
    _verdict(path.parent)


VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=20), st.binary(max_size=20),
    st.just("9" * 5000), st.just("[" * 5000), st.just('{"round": 1e999}'),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_values_are_in_it_there_is_a_verdict(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("values")
    shutil.copyfile(sound / "journal.db", folder / "journal.db")
    table = data.draw(st.sampled_from(sorted(journal_reader._TABLES)))
    column = data.draw(st.sampled_from(journal_reader._TABLES[table]))
    value = data.draw(VALUES)
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    with closing(sqlite3.connect(folder / "journal.db")) as db:
        kind = "CAST(? AS TEXT)" if data.draw(st.booleans()) and isinstance(value, bytes) else "?"
        try:
            db.execute("PRAGMA ignore_check_constraints=ON")
            db.execute(f"UPDATE OR REPLACE {table} SET {column} = {kind}", (value,))
            db.commit()
        except (sqlite3.Error, OverflowError):
            return  # SQLite itself refuses it
    _verdict(folder)


def _verdict(directory: Path) -> None:
    """It is read, or refused in one line: nothing else is raised."""
    with suppress(JournalError):
        for attempt in JournalReader(directory).contents().attempts:
            assert attempt.phase.isprintable()
    with suppress(JournalError):
        for attempt in JournalReader(directory).glance().recent:
            assert attempt.phase.isprintable()
    with suppress(JournalError):
        for device in JournalReader(directory).devices():
            assert device.node.isprintable()


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    yield
    for remembered in (journal_reader._contents, journal_reader._devices, journal_reader._glances):
        remembered._known.clear()  # type: ignore[attr-defined]
