"""The server dies at every stage and comes back over the same journal and the same living devices.

Before an unmask request may have left, a round is tried again as a new attempt; past that it is completed
from the replies that were journaled, or skipped. No round counts twice, and every device's personal factor is
of the same round as the shared ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.fleet_scene import FIRST_NODE, STAGES, FleetScene, Kill, Killed, shared_of, states
from support.scene import RUN, plain_sum

from penchant.common.errors import TooManyDropouts
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Announce, Entry, Plain
from penchant.server.journal import Journal
from penchant.server.round import federate
from penchant.server.run import ServerRun

Scenes = Callable[..., FleetScene]
N = 4  # t = 3
LAST = 3  # two rounds and the closing one
FINISHED = [(1, 1, "finished"), (2, 1, "finished"), (3, 1, "finished")]


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Any:
    made: list[FleetScene] = []

    def make(n: int = N, **settings: Any) -> FleetScene:
        made.append(FleetScene(tiny_model("bert"), tmp_path / str(len(made)), n, **settings))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


class Story:
    """What devices were told and what they held, whenever a round was announced to them."""

    def __init__(self, scene: FleetScene) -> None:
        self.scene = scene
        self.factors: dict[tuple[int, int], bytes] = {}  # (round, attempt) -> as announced
        self.entries: list[Entry] = []
        self._told: Announce | None = None

    def twist(self, stage: str, i: int, payload: bytes) -> bytes:
        if stage == "keys":
            self._told = decode(payload, Announce)
        return payload

    def lie(self, stage: str, i: int, reply: bytes) -> bytes:
        """Not a lie: looks at the device right after it has answered an announcement."""
        if stage == "keys" and self._told is not None:
            told = self._told
            self.factors[told.round, told.attempt] = told.factors
            self.entries.append(decode(reply, Entry))
            kept = self.scene.personal(i)
            assert (0 if kept is None else kept[0]) == (told.finished[-1].round if told.finished else 0)
        return reply

    def serve(self, **wire: Any) -> ServerRun:
        return self.scene.serve(twist=self.twist, lie=self.lie, **wire)


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run in which nothing happens: its story, the shared factors and everybody's personal ones."""
    scene = FleetScene(tiny_model("bert"), tmp_path_factory.mktemp("calm"), N)
    story = Story(scene)
    run = story.serve()
    assert states(run) == FINISHED
    found = story.factors, shared_of(run), [scene.personal(i) for i in range(N)]
    scene.close()
    return found


def personal(scene: FleetScene) -> list[tuple[int, NDArray[np.float32]]]:
    kept = [scene.personal(i) for i in range(scene.n)]
    assert all(own is not None for own in kept)
    return kept  # type: ignore[return-value]


def check_as_undisturbed(scene: FleetScene, run: ServerRun, undisturbed: Any) -> None:
    """Bit for bit what the run without a crash gave, in as many steps."""
    _, shared, own = undisturbed
    after = shared_of(run)
    assert after.steps == shared.steps == 2
    assert (after.factors == shared.factors).all()
    for (number, vector), (expected, reference) in zip(personal(scene), own, strict=True):
        assert number == expected == LAST
        assert (vector == reference).all()


def killed_and_back(story: Story, kill: Kill) -> ServerRun:
    """The server dies, and another one goes on to the end."""
    story.serve(kill=kill)
    return story.serve()


# --- before unmasking -----------------------------------------------------------------------------


MOMENTS = [(2, "before"), (2, "after"), (2, 2), (LAST, "before"), (LAST, "after")]


@pytest.mark.parametrize(("number", "when"), MOMENTS)
@pytest.mark.parametrize("stage", STAGES[:-1])
def test_before_unmasking_the_round_is_tried_again_with_fresh_keys(
    scenes: Scenes, undisturbed: Any, number: int, stage: str, when: str | int
) -> None:
    scene = scenes()
    story = Story(scene)
    run = killed_and_back(story, Kill(number, stage, when))
    expected = [(number, 1, "failed"), (number, 2, "finished")]
    assert states(run) == [row for row in FINISHED if row[0] < number] + expected + FINISHED[number:]
    check_as_undisturbed(scene, run, undisturbed)
    keys = [key for entry in story.entries for key in (entry.mask_key, entry.channel_key, entry.commitment)]
    assert len(set(keys)) == len(keys)
    assert not any(scene.agents[i].reasons() for i in range(N))


@pytest.mark.parametrize("when", ["before", "after", 1])
def test_a_server_that_dies_while_it_asks_who_is_ready_has_lost_nothing(
    scenes: Scenes, undisturbed: Any, when: str | int
) -> None:
    scene = scenes()
    run = killed_and_back(Story(scene), Kill(0, "status", when))
    assert states(run) == FINISHED
    check_as_undisturbed(scene, run, undisturbed)


def test_a_server_may_die_in_every_stage_of_the_same_round(scenes: Scenes, undisturbed: Any) -> None:
    scene = scenes(federation__attempts=9)
    story = Story(scene)
    for stage in STAGES[:-1]:
        story.serve(kill=Kill(1, stage, "after"))
    run = story.serve()
    assert states(run) == [(1, k, "failed") for k in range(1, 5)] + [(1, 5, "finished"), *FINISHED[1:]]
    check_as_undisturbed(scene, run, undisturbed)


# --- past unmasking -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, LAST])
def test_past_unmasking_a_round_is_completed_from_the_replies_that_were_journaled(
    scenes: Scenes, undisturbed: Any, number: int
) -> None:
    scene = scenes()
    run = killed_and_back(Story(scene), Kill(number, "unmask", 3))  # t of them
    assert states(run) == FINISHED
    check_as_undisturbed(scene, run, undisturbed)
    assert run.journal.records(number, 1) == []


def test_a_completed_round_says_what_it_is(scenes: Scenes) -> None:
    scene = scenes()
    run = killed_and_back(Story(scene), Kill(2, "unmask", 3))
    log = run.journal.logs()[1]
    assert (log.round, log.attempt, log.phase) == (2, 1, "main")
    assert (log.cohort, log.survivors, log.examples) == (N, N, 4 * N)
    assert log.train_loss == run.journal.logs()[1].train_loss is not None


@pytest.mark.parametrize("when", ["before", "after", 0, 1, 2])
def test_past_unmasking_a_round_with_too_few_replies_is_skipped_and_never_run_again(
    scenes: Scenes, undisturbed: Any, when: str | int
) -> None:
    """Round 2 is lost: the closing round goes on from the shared and the personal factors of round 1."""
    scene = scenes()
    story = Story(scene)
    run = killed_and_back(story, Kill(2, "unmask", when))
    assert states(run) == [(1, 1, "finished"), (2, 1, "skipped"), (3, 1, "finished")]
    assert shared_of(run).steps == 1
    assert story.factors[3, 1] == story.factors[2, 1] == undisturbed[0][2, 1]
    assert [number for number, _ in personal(scene)] == [LAST] * N
    assert (2, 2) not in story.factors


def test_the_closing_round_too_is_completed_or_skipped(scenes: Scenes) -> None:
    scene = scenes()
    run = killed_and_back(Story(scene), Kill(LAST, "unmask", 1))
    assert states(run) == [*FINISHED[:2], (3, 1, "skipped")]
    assert [number for number, _ in personal(scene)] == [2] * N


def test_devices_that_unmasked_refuse_the_round_even_if_the_server_forgets(
    scenes: Scenes,
) -> None:
    """A server restored from an old back-up plays round 2 once more: nobody who unmasked takes part."""
    scene = scenes()
    scene.serve(kill=Kill(2, "unmask", "after"))
    forgetful = Journal(scene.directory / "server")
    forgetful.rewind(1)
    forgetful.close()
    with pytest.raises(Exception, match="0 of 4 devices advertised keys"):
        scene.serve()
    assert {scene.reason(i)[2] for i in range(N)} == {
        "round 2 was already unmasked; no other attempt of it is accepted"
    }


@pytest.mark.parametrize("place", ["_write_checkpoint", "finish"])
def test_a_server_that_dies_while_it_writes_the_round_down_applies_it_once(
    scenes: Scenes, undisturbed: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies right after the checkpoint is on disk, or right before anything of the end is."""
    scene, honest = scenes(), getattr(Journal, place)

    def dies(journal: Journal, at: Any, *rest: Any) -> Any:
        number = at if isinstance(at, int) else at.round
        if number != 2:
            return honest(journal, at, *rest)
        if place == "_write_checkpoint":
            honest(journal, at, *rest)
        raise Killed

    story = Story(scene)
    monkeypatch.setattr(Journal, place, dies)
    story.serve()
    monkeypatch.undo()
    run = story.serve()
    assert states(run) == FINISHED
    check_as_undisturbed(scene, run, undisturbed)


def test_a_server_that_dies_while_it_completes_a_round_completes_it_the_next_time(
    scenes: Scenes, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes()
    story = Story(scene)
    story.serve(kill=Kill(2, "unmask", 3))

    def dies(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Journal, "finish", dies)
    story.serve()
    monkeypatch.undo()
    run = story.serve()
    assert states(run) == FINISHED
    check_as_undisturbed(scene, run, undisturbed)


def test_a_finished_run_is_not_played_again(scenes: Scenes, undisturbed: Any) -> None:
    scene = scenes()
    story = Story(scene)
    story.serve()
    seen = len(scene.log)
    run = story.serve()
    assert {stage for stage, _, _ in scene.log[seen:]} == {"status"}
    check_as_undisturbed(scene, run, undisturbed)


# --- groups and losses ----------------------------------------------------------------------------


def test_of_two_groups_the_one_whose_replies_came_is_completed(scenes: Scenes) -> None:
    """Six devices in two groups of three; only the first group's three replies were journaled."""
    scene = scenes(6, federation__rounds=1, privacy__group_size=3)
    story = Story(scene)
    run = killed_and_back(story, Kill(1, "unmask", 3))
    assert states(run) == FINISHED[:2]
    completed = scene.watched[0]
    assert completed.survivors == tuple(FIRST_NODE + i for i in range(3))
    assert "can't be completed" in completed.failed[1]
    plain = {"privacy__secagg": False, "policy": {"allow_unmasked": True}}
    whole = scenes(6, federation__rounds=1, privacy__group_size=3, **plain)
    whole.serve()
    sent = [decode(reply, Plain).vector for stage, _, reply in whole.log if stage == "masked"]
    assert (completed.total == plain_sum(np.frombuffer(vector, "<i4") for vector in sent[:3])).all()


def test_a_completed_round_with_too_few_people_for_the_configuration_is_skipped(
    scenes: Scenes,
) -> None:
    scene = scenes(6, federation__rounds=1, privacy__group_size=3, federation__min_survivors=4)
    run = killed_and_back(Story(scene), Kill(1, "unmask", 3))
    assert states(run) == [(1, 1, "skipped"), (2, 1, "finished")]
    assert [number for number, _ in personal(scene)] == [2] * 6


def test_a_round_with_losses_is_completed_with_the_survivors(scenes: Scenes) -> None:
    """Seven devices, two of them lost: what five journaled replies give is what the live round gives."""
    silent = {(1, "masked"): [6], (1, "confirm"): [2]}
    scene, other = scenes(7, federation__rounds=1), scenes(7, federation__rounds=1)
    Story(scene).serve(kill=Kill(1, "unmask", 5), silent=silent)
    run = Story(scene).serve()
    live = other.serve(silent=silent)
    assert states(run) == states(live) == FINISHED[:2]
    assert (scene.watched[0].total == other.watched[0].total).all()
    assert scene.watched[0].survivors == other.watched[0].survivors
    assert FIRST_NODE + 6 not in scene.watched[0].survivors
    assert (shared_of(run).factors == shared_of(live).factors).all()


def test_devices_that_restart_with_the_server_keep_what_stands(scenes: Scenes, undisturbed: Any) -> None:
    """Both sides lose their memory in mid-round: what is on disk is enough to go on."""
    scene = scenes()
    scene.serve(kill=Kill(2, "confirm", "after"))
    for i in range(N):
        scene.restart(i)
    run = scene.serve()
    assert states(run) == [(1, 1, "finished"), (2, 1, "failed"), (2, 2, "finished"), (3, 1, "finished")]
    check_as_undisturbed(scene, run, undisturbed)


def test_a_failing_round_is_given_up_after_its_attempts_also_across_restarts(scenes: Scenes) -> None:
    scene = scenes()  # two attempts
    scene.serve(kill=Kill(1, "confirm", "before"))
    with pytest.raises(TooManyDropouts):
        scene.serve(silent={(1, "masked"): [0, 1]})
    run = scene.run()
    assert states(run) == [(1, 1, "failed"), (1, 2, "failed")]
    assert run.journal.settled() == 0
    assert "unmask" not in {stage for stage, _, _ in scene.log}


def test_a_round_in_the_journal_of_another_server_is_not_taken_for_ones_own(scenes: Scenes) -> None:
    """Two servers with one run id over the same devices: the second can't play what the first has played."""
    scene = scenes()
    scene.serve("one")
    with scene.wire() as grid, pytest.raises(Exception, match="devices advertised keys"):
        federate(scene.run("two"), grid)
    assert all(scene.reason(i)[1] == "STAGE" for i in range(N))
    assert scene.personal(0, RUN) is not None
