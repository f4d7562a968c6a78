"""A canary is measured by its own devices, in masked sums, beside the release in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.release_scene import RUN, ReleaseScene

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, UsageError
from penchant.common.membership.release_manifest import SignedRelease
from penchant.common.wire.codec import decode_record
from penchant.deploy.earlier_round import begun_with
from penchant.deploy.fleet import canary_check, release_acts
from penchant.deploy.fleet.device_notes import DeviceNotes
from penchant.deploy.fleet.run_queue import RunQueue
from penchant.server.canary import CanaryVerdict
from penchant.server.journal_reader import JournalReader
from penchant.server.measured import measurements


@pytest.fixture(scope="module")
def scene(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> ReleaseScene:
    """A fleet whose run is over, and whose members 1 to 3 try its second release."""
    made = ReleaseScene.made(tmp_path_factory.mktemp("fleet"), tiny_model("bert"))
    made.promote(1)
    made.promote(2, share=9999)
    while not all(decode_record(made.offer().signed[-1], SignedRelease).reaches(one) for one in (1, 2, 3)):
        release_acts.ask_again(made.server_directory)
        made.sign()
    return made


def test_two_runs_measure_the_canary_and_move_nothing(scene: ReleaseScene) -> None:
    server = scene.server_directory
    assert canary_check.verdict(server) == CanaryVerdict()
    tried, used = canary_check.begin(server, scene.config, "olga")
    assert (tried.begin_with, used.begin_with) == (f"{RUN}:release-2", f"{RUN}:release-1")
    assert tried.tag == used.tag
    notes = DeviceNotes(server.path).all()
    assert sorted(member for member, note in notes.items() if tried.tag in note.tags) == [1, 2, 3]
    assert [one.number for one in RunQueue(server).runs()] == [tried.number, used.number]
    for one in (tried, used):
        settings = RunConfig.from_toml(one.config)
        name = "measure-" + one.begin_with.rpartition("-")[2]
        scene.play(name, settings, one.begin_with, one.tag)
        directory = server.run(name)
        start, kept = begun_with(directory), JournalReader(directory).load(1)
        assert start is not None
        assert kept is not None
        assert np.array_equal(kept[1].factors, start.factors)  # what is measured is the release
    verdict = canary_check.verdict(server)
    assert verdict.tried is not None
    assert verdict.used is not None
    for counts, name in ((verdict.tried, "measure-2"), (verdict.used, "measure-1")):
        closing = measurements(JournalReader(server.run(name)).logs())[-1]
        assert counts.standing is not None
        assert counts.standing.accuracy == pytest.approx(closing.accuracy)
        assert (counts.people, counts.privacy, counts.runs) == (3, None, 1)
        assert counts.parts == dict.fromkeys((1, 2, 3), 1 / 3)  # the same people judged both
    assert verdict.words().count("sums over secure aggregation, not noised") == 2


def test_only_runs_of_the_canary_s_devices_that_moved_nothing_count(scene: ReleaseScene) -> None:
    before = canary_check.verdict(scene.server_directory)
    moved = canary_check.measuring(scene.config, 3).changed({"federation.server_lr": 1.0})
    scene.play(
        "moved", moved, f"{RUN}:release-2", canary_check.begin(scene.server_directory, moved, "o")[0].tag
    )
    scene.play("everybody", canary_check.measuring(scene.config, 3), f"{RUN}:release-2")
    assert canary_check.verdict(scene.server_directory) == before


def test_what_can_t_be_measured_is_refused_before_anything_is_queued(scene: ReleaseScene) -> None:
    server = scene.server_directory
    waiting = RunQueue(server).runs()
    with pytest.raises(ConfigError, match="secure aggregation"):
        canary_check.begin(server, scene.config.changed({"privacy.secagg": False}), "olga")
    release_acts.to_everybody(server)
    with pytest.raises(UsageError, match="no release is tried by a part of the devices"):
        canary_check.begin(server, scene.config, "olga")
    assert RunQueue(server).runs() == waiting
    assert canary_check.verdict(server) == CanaryVerdict()


def test_an_earlier_canary_s_devices_lose_its_tag(scene: ReleaseScene) -> None:
    server = scene.server_directory
    notes = DeviceNotes(server.path)
    notes.tag([1, 2], "signed-canary-1")
    notes.tag([1], "kitchen")
    scene.sign()
    scene.promote(1)
    scene.promote(2, share=9999)
    tag = canary_check.begin(server, scene.config, "olga")[0].tag
    tags = {one for note in notes.all().values() for one in note.tags}
    assert tags == {tag, "kitchen"}
