"""A run that begins with a finished round of an earlier one: the operator's way back after a liar."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.deployment import Deployment
from support.tastes import small_run, write_choices

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, JournalError, RunDirectoryError, UsageError
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Announce
from penchant.deploy import run_directory
from penchant.deploy.earlier_round import EarlierRound, begin_from, begun_with, earlier_round
from penchant.deploy.fleet import served_run
from penchant.deploy.simulation import runner
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.models import RunModels
from penchant.deploy.simulation.world import prepare
from penchant.server.journal import Journal, RoundLog
from penchant.server.optimizers import ServerState
from penchant.server.releases import named_round, promote, roll_back

BENCHES = ModelCache()
PEOPLE = 5


@pytest.fixture(scope="module")
def first(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """(configuration, directory) of a finished simulation of three rounds."""
    place = tmp_path_factory.mktemp("first")
    choices = place / "choices.jsonl"
    write_choices(choices, [16] * PEOPLE)
    config = RunConfig().changed(small_run(tiny_model("bert"), choices, PEOPLE, epochs=1))
    simulated(place / "run", config)
    return config, place / "run"


def simulated(directory: Path, config: RunConfig, start: EarlierRound | None = None) -> Any:
    world = prepare(config, BENCHES, start=start)
    run_directory.create(directory, config, start.encode() if start else b"")
    return runner.simulate(world, directory)


def factors(directory: Path, round: int) -> np.ndarray:
    with closing(Journal(directory)) as journal:
        found = journal.load(round)
    assert found is not None
    return found[1].factors


def test_the_new_run_begins_with_the_factors_of_that_round(
    first: tuple[RunConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, directory = first
    start = earlier_round(directory, 2, config)
    assert (start.name, start.factors.tobytes()) == ("run:2", factors(directory, 2).tobytes())
    heard: list[Announce] = []
    answer = SimulatedDevices.answer_of

    def listening(self: Any, context: Any) -> Any:
        inner = answer(self, context)

        def reply(stage: str, payload: bytes) -> bytes:
            if stage == "keys":
                heard.append(decode(payload, Announce))
            return inner(stage, payload)

        return reply

    monkeypatch.setattr(SimulatedDevices, "answer_of", listening)
    result = simulated(tmp_path / "again", config, start)
    told = next(a for a in heard if a.round == 1)
    assert told.factors == start.factors.astype("<f4").tobytes()
    assert "The shared factors began as those of run:2." in result.caveats
    assert told.run != prepare(config, BENCHES).run  # another run: devices have nothing of the old one


def test_a_resumed_run_remembers_where_it_began(first: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, directory = first
    start = earlier_round(directory, 1, config)
    run_directory.create(tmp_path / "run", config, start.encode())
    found = begun_with(tmp_path / "run")
    assert found is not None
    assert (found.name, found.digest, found.factors.tobytes()) == (
        start.name,
        start.digest,
        start.factors.tobytes(),
    )
    assert begun_with(directory) is None


def test_factors_are_not_taken_over_under_other_settings_than_their_own(
    first: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    """A scale that was edited after the run would make another model of its factors."""
    config, directory = first
    shutil.copytree(directory, tmp_path / "run")
    other = config.changed({"adapter.alpha": 2 * config.adapter.alpha})
    (tmp_path / "run" / run_directory.CONFIG).write_text(other.to_toml(), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match="run was begun with another configuration"):
        earlier_round(tmp_path / "run", 2, other)
    where = config.changed({"workers": 2})
    (tmp_path / "run" / run_directory.CONFIG).write_text(where.to_toml(), encoding="utf-8")
    assert earlier_round(tmp_path / "run", 2, config).digest == earlier_round(directory, 2, config).digest


def test_a_run_goes_on_and_is_read_with_the_round_that_it_began_with_alone(
    first: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, directory = first
    simulated(tmp_path / "run", config, earlier_round(directory, 1, config))
    people = [RunModels(tmp_path / "run").of_person(name) for name in ("p0", "p1")]
    assert people[0].scores([("q ", "a")]) != people[1].scores([("q ", "a")])
    for other in (earlier_round(directory, 2, config).encode(), None):
        (tmp_path / "run" / run_directory.START).unlink()
        if other is not None:
            (tmp_path / "run" / run_directory.START).write_bytes(other)
        with pytest.raises(RunDirectoryError, match="run was begun with another start; put back what it was"):
            RunModels(tmp_path / "run").of_person("p0")


def test_what_is_left_of_a_killed_beginning_is_not_taken_over(
    first: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, directory = first
    (tmp_path / run_directory.START).write_bytes(earlier_round(directory, 1, config).encode())
    run_directory.create(tmp_path, config)  # killed before the configuration was there: no run
    assert begun_with(tmp_path) is None


def test_a_damaged_start_is_an_error_in_one_line(first: tuple[RunConfig, Path], tmp_path: Path) -> None:
    run_directory.create(tmp_path / "run", first[0], b"junk")
    with pytest.raises(RunDirectoryError, match=r"start\.safetensors is damaged"):
        begun_with(tmp_path / "run")


def stored(dtype: str, shape: list[int], data: bytes, **told: str) -> bytes:
    """A safetensors file of one tensor, of whatever kind."""
    about = {"name": "run:1", "digest": "0" * 64} | told
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    head = json.dumps({"__metadata__": about, "factors": tensor}).encode()
    return struct.pack("<Q", len(head)) + head + data


@pytest.mark.parametrize(
    "start",
    [
        stored("BF16", [2], bytes(4)),
        stored("F8_E4M3", [2], bytes(2)),
        stored("F64", [2], bytes(16)),
        stored("F32", [1, 2], bytes(8)),
        stored("F32", [2], np.array([np.nan, 0], np.float32).tobytes()),
        stored("F32", [2], np.array([1e30, 0], np.float32).tobytes()),
        stored("F32", [2], bytes(8), name="run\x1b[2J:1"),
        stored("F32", [2], bytes(8), digest="none"),
    ],
)
def test_a_start_that_nobody_here_wrote_is_refused(
    first: tuple[RunConfig, Path], tmp_path: Path, start: bytes
) -> None:
    sound = tmp_path / "sound"
    run_directory.create(sound, first[0], stored("F32", [2], bytes(8)))
    assert begun_with(sound) is not None
    run_directory.create(tmp_path / "run", first[0], start)
    with pytest.raises(RunDirectoryError, match=r"start\.safetensors is damaged"):
        begun_with(tmp_path / "run")


@pytest.mark.parametrize(
    "text", ["", "run-1", "run-1:", ":3", "run-1:x", "run-1:-1", "run-1:³", "r:9999999999"]
)
def test_what_is_no_round_of_a_run_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--from takes RUN:ROUND"):
        named_round(text)


def test_a_round_is_named_by_run_and_number() -> None:
    assert named_round("run-1:12") == ("run-1", "12")
    assert named_round("/some/where:else:3") == ("/some/where:else", "3")
    assert named_round("run-1:release-2") == ("run-1", "release-2")


def test_a_run_begins_with_a_release(first: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, original = first
    directory = tmp_path / "run"
    shutil.copytree(original, directory)
    with pytest.raises(UsageError, match="run has no release in use; promote a round of it first"):
        begin_from("run:release", tmp_path.joinpath, config)
    digest = {number: earlier_round(directory, number, config).digest for number in (1, 2)}
    promote(directory, 1, digest[1], "olga")
    promote(directory, 2, digest[2], "olga")
    assert begin_from("run:release", tmp_path.joinpath, config).name == "run:2"
    assert begin_from("run:release-1", tmp_path.joinpath, config).digest == digest[1]
    assert begin_from("run:1", tmp_path.joinpath, config).digest == digest[1]
    roll_back(directory, 1, "olga")
    found = begin_from("run:release", tmp_path.joinpath, config)
    assert (found.name, found.factors.tobytes()) == ("run:1", factors(directory, 1).tobytes())
    promote(directory, 3, "0" * 64, "olga")
    with pytest.raises(UsageError, match="a different checkpoint than release 3 had"):
        begin_from("run:release", tmp_path.joinpath, config)


def test_a_round_that_can_not_be_begun_with_is_refused(first: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, directory = first
    with pytest.raises(UsageError, match=r"round 9 .* is not finished; its last finished one is 4"):
        earlier_round(directory, 9, config)
    with pytest.raises(ConfigError, match="another adapter"):
        earlier_round(directory, 1, config.changed({"adapter.share": "B"}))
    with pytest.raises(RunDirectoryError):
        earlier_round(tmp_path, 1, config)
    run_directory.create(tmp_path / "new", config)
    with pytest.raises(UsageError, match=r"no round of .* is finished"):
        earlier_round(tmp_path / "new", 1, config)
    assert not (tmp_path / "new" / "journal.db").exists()  # looking makes nothing
    warm = config.changed({"federation.warmup_rounds": 1})
    with pytest.raises(UsageError, match=r"set federation\.warmup_rounds to 0"):
        prepare(warm, BENCHES, start=earlier_round(directory, 1, config))


def test_a_ruined_round_is_refused_and_the_one_before_it_is_not(
    first: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, directory = first
    run_directory.create(tmp_path / "run", config)
    sound = factors(directory, 1)
    with closing(Journal(tmp_path / "run")) as journal:
        for number, state in enumerate((sound, sound + 1e6), 1):
            journal.begin(number, "main")
            log = RoundLog(number, 1, "main", 5, 5, {}, 0.0, 0, 0, 1, None, None, None, 1.0)
            journal.finish(log, ServerState.begin(state.astype(np.float32), np.zeros(0, np.float32)))
    with pytest.raises(UsageError, match=r"at run:2 the factors exceed 1000.*take an earlier round"):
        earlier_round(tmp_path / "run", 2, config)
    assert earlier_round(tmp_path / "run", 1, config).factors.tobytes() == sound.tobytes()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW idle AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
        "CREATE TRIGGER t AFTER INSERT ON rounds BEGIN DELETE FROM meta; END",
        "UPDATE rounds SET checkpoint = '../../elsewhere ' || substr(checkpoint, -64) WHERE round = 1",
    ],
)
def test_somebody_elses_run_is_read_as_such(
    first: tuple[RunConfig, Path], tmp_path: Path, statement: str
) -> None:
    config, directory = first
    theirs = tmp_path / "a" / "theirs"
    shutil.copytree(directory, theirs)
    shutil.move(theirs / "checkpoints" / "round-000001.safetensors", tmp_path / "elsewhere")
    with closing(sqlite3.connect(theirs / "journal.db", isolation_level=None)) as db:
        db.execute(statement)
        db.execute("PRAGMA journal_mode=DELETE")
    before = {path: path.stat().st_mtime_ns for path in theirs.rglob("*")}
    with pytest.raises(JournalError):
        earlier_round(theirs, 1, config)
    assert {path: path.stat().st_mtime_ns for path in theirs.rglob("*")} == before


def test_a_served_run_begins_with_it_too(tiny_model: Any, tmp_path: Path) -> None:
    fleet = Deployment(tmp_path, tiny_model("bert"), 3)
    public = (tmp_path / "authority" / "authority.pub").read_bytes()
    served_run.create(tmp_path / "run-1", fleet.config, public, fleet.authority_store.latest())
    fleet.sign_run(tmp_path / "run-1")
    run = served_run.open_served(tmp_path / "run-1")
    begun = run.model_signature.split(fleet.config.plan("main", 3)).initial(0)[0] + np.float32(0.5)
    run.journal.begin(1, "main")
    log = RoundLog(1, 1, "main", 3, 3, {}, 0.0, 0, 0, 1, None, None, None, 1.0)
    run.journal.finish(log, ServerState.begin(begun, np.zeros(0, np.float32)))
    run.journal.close()
    start = earlier_round(tmp_path / "run-1", 1, fleet.config)
    served_run.create(tmp_path / "run-2", fleet.config, public, fleet.authority_store.latest(), start)
    fleet.sign_run(tmp_path / "run-2")
    again = served_run.open_served(tmp_path / "run-2")
    assert again.start is not None
    assert again.start.tobytes() == begun.tobytes()
    assert again.id != run.id
    assert (again.journal.fact("from") or "").startswith("run-1:1 ")
    again.tell("round 1, attempt 1, is skipped")
    said = (tmp_path / "run-2" / served_run.LOG).read_text()
    assert "is skipped" in said
    assert time.strftime("%Y") in said
    again.journal.close()


def test_a_served_run_needs_groups_for_its_rule(tiny_model: Any, tmp_path: Path) -> None:
    fleet = Deployment(tmp_path, tiny_model("bert"), 3, {"federation.combine": "median"})
    with pytest.raises(ConfigError, match="median needs at least 3 groups"):
        fleet.init_server()
    assert not fleet.run.exists()
