"""Memory and disk of a simulation grow with its people, not with their square: counted, not timed."""

from __future__ import annotations

import gc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tastes import small_run, write_choices
from support.tiny_models import write_tiny_model

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.errors import DeviceError
from penchant.common.membership.identity import Member
from penchant.common.secagg.stages import KEYS
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Entry
from penchant.deploy import run_directory
from penchant.deploy.simulation.devices import LISTS, SimulatedDevices
from penchant.deploy.simulation.world import open_run, prepare
from penchant.server.journal_reader import open_journal
from penchant.server.round import _announce, _shared

PARTS = tuple((Preference(part, "a motion", "a table"),) for part in ("train", "validation", "test"))
LISTED = 44  # bytes of one member in an encoded list, and what is left of its length's


def fleet(folder: Path, people: int) -> SimulatedDevices:
    """Every person's agent, as a run of so many people makes them."""
    persons = tuple(Person(f"p{number}", *PARTS) for number in range(people))
    devices = SimulatedDevices(
        RunConfig(), folder / str(people), Federation("made up", persons), ModelCache(), people
    )
    for index in range(people):
        devices.agent(index)
    return devices


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def listed_members() -> int:
    gc.collect()
    return sum(type(one) is Member for one in gc.get_objects())


def test_an_agent_takes_the_same_room_however_many_others_there_are(tmp_path: Path) -> None:
    each = {}
    for people in (50, 100, 200):
        before = listed_members()
        devices = fleet(tmp_path, people)
        held = listed_members() - before
        assert held <= 2 * people, "lists are decoded once for the process, not once for each agent"
        assert len({id(devices.agent(index)._membership) for index in range(people)}) == 1
        agents = size(tmp_path / str(people) / "agents")
        lists = size(tmp_path / str(people) / LISTS)
        assert lists <= LISTED * people + 200
        each[people] = agents / people
        del devices
    assert each[50] == each[100] == each[200]


def test_agents_that_come_back_hold_the_one_list_too(tmp_path: Path) -> None:
    fleet(tmp_path, 20)
    again = fleet(tmp_path, 20)
    assert {id(again.agent(index)._membership) for index in range(20)} == {id(again.membership())}
    (path,) = (tmp_path / "20" / LISTS).iterdir()
    path.unlink()
    with pytest.raises(DeviceError, match="put it back"):
        fleet(tmp_path, 20)


def test_what_was_announced_to_all_is_in_memory_once(tmp_path: Path) -> None:
    """In the closing round everybody's attempt is open at the same time."""
    write_tiny_model("bert", tmp_path / "tiny")
    write_choices(tmp_path / "choices.jsonl", [10] * 4)
    config = RunConfig().changed(small_run(tmp_path / "tiny", tmp_path / "choices.jsonl", 4, 1))
    world = prepare(config)
    run_directory.create(tmp_path / "run", config)
    with closing(open_journal(tmp_path / "run")) as journal:
        devices = SimulatedDevices(config, tmp_path / "run", world.federation, world.model_cache, 4)
        run = open_run(world, journal, devices)
        task = run.task(run.last, 4)
        payload = encode(_announce(run, task, 1, _shared(run, task)))
        tasks: list[Any] = []
        for index in range(4):
            decode(devices.agent(index).answer(KEYS, bytes(bytearray(payload))), Entry)
            tasks.append(devices.agent(index)._task)
    assert len({id(one.announce.factors) for one in tasks}) == 1
    assert all(np.shares_memory(one.shared, tasks[0].shared) for one in tasks)
    assert len({id(one.start) for one in tasks}) == 1
    assert not tasks[0].shared.flags.writeable
    assert not tasks[0].start.flags.writeable
