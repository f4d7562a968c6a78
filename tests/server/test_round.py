"""The round, over stand-ins for devices and aggregation: what is asked of whom, and what stands after.

A stand-in device knows its update by heart; the stand-in aggregation adds vectors up in clear, in the same
stages and with the same journal lines as the real one. Real agents play whole rounds in other tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error
from support.fake_grid import FakeClock, FakeGrid, Late

from penchant.common.config import Plan, RunConfig
from penchant.common.errors import JournalError, NotUnmasked, RoundFailed, TooFewDevices, TooManyDropouts
from penchant.common.membership.identity import list_digest
from penchant.common.model.factors import AdaptedModule
from penchant.common.model.signature import ModelSignature
from penchant.common.secagg.update_vector import BINS, Contribution, UpdateLayout
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Abort, AbortCode, Announce, Finished, Hello, Kind, Status
from penchant.server import availability
from penchant.server.availability import Availability
from penchant.server.cohort import sample_cohort
from penchant.server.exchange import Exchange
from penchant.server.journal import Journal, RoundLog
from penchant.server.round import federate, play_round, recover
from penchant.server.run import ServerRun, run_id
from penchant.server.secagg.aggregation import Aggregate, Record
from penchant.server.waiting import Waiting

MODEL_SIGNATURE = ModelSignature((AdaptedModule("block.dense", 3, 4),), 3, bytes(range(32)))
RUN = bytes(16)
LIST, NEWER = b"a list", b"a newer list"
LIST_DIGEST = list_digest(LIST)
FIRST = 2**63  # node ids fill 64 bits: node FIRST + m is member m's


@dataclass
class Device:
    """A device that is one person's: what it would add to a round, whatever the round."""

    member: int
    value: float = 0.0  # its update is this everywhere, and as much again times the round's number / 100
    weight: int = 10
    ready: bool = True
    silent: set[str] = field(default_factory=set)  # stages in which it says nothing
    told: list[tuple[tuple[int, int], ...]] = field(default_factory=list)  # finished rounds, at each greeting
    announced: list[Announce] = field(default_factory=list)
    list_digest: bytes = LIST_DIGEST
    lists: list[bytes] = field(default_factory=list)  # member lists, at each greeting
    takes_lists: bool = True

    def update(self, round: int, size: int) -> np.ndarray:
        return np.full(size, self.value * (1 + round / 100), np.float32)

    def answer(self, stage: str, payload: bytes) -> bytes | None:
        if stage in self.silent:
            return None
        if stage == "status":
            self.told.append(tuple((f.round, f.attempt) for f in decode(payload, Hello).finished))
            self.lists.append(decode(payload, Hello).membership)
            if self.lists[-1] and self.takes_lists:
                self.list_digest = list_digest(self.lists[-1])
            elif self.lists[-1]:
                return encode(Abort(AbortCode.MEMBERSHIP))
            return encode(Status(self.ready, self.member, self.list_digest))
        if stage == "keys":
            announce = decode(payload, Announce)
            self.announced.append(announce)
            if announce.list_digest != self.list_digest:
                return encode(Abort(AbortCode.MEMBERSHIP))
        return self._vector() if stage == "masked" else b"well"

    def _vector(self) -> bytes:
        announce = self.announced[-1]
        plan = Plan.decode(announce.plan)
        layout = UpdateLayout.of(plan, MODEL_SIGNATURE.split(plan))
        update = self.update(announce.round, layout.quantiser.size)
        mine = Contribution(update, self.weight, 0.5 * self.weight, correct=3, total=4, in_histogram=True)
        return layout.quantise(mine, bytes(31) + bytes([self.member])).tobytes()


@dataclass
class Adding:
    """Adds vectors up in clear. fails: (round, attempt, stage) -> the error there; in stage unmask it comes
    after the replies, in the others before the requests."""

    fails: dict[tuple[int, int, str], RoundFailed] = field(default_factory=dict)
    asked: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)
    completed: int = 0

    def run(self, announce: Announce, nodes: Sequence[int], exchange: Any, journal: Any) -> Aggregate:
        self.asked.append((announce.round, announce.attempt, tuple(node - FIRST for node in nodes)))

        def step(stage: str, payloads: Mapping[int, bytes]) -> dict[int, bytes]:
            if stage != "unmask":
                self._fail(announce, stage)
            replies = dict(exchange(stage, payloads))
            self._fail(announce, stage)
            return replies

        heard = step("keys", dict.fromkeys(nodes, encode(announce)))
        there = [node for node, reply in heard.items() if reply == b"well"]
        refused = sorted(set(heard) - set(there))
        vectors = step("masked", dict.fromkeys(there, b"send"))
        if not vectors:
            raise TooManyDropouts("nobody is left")
        total = sum(np.frombuffer(v, f"<i{announce.ring // 8}").astype(np.int64) for v in vectors.values())
        journal.about_to_reveal(len(vectors))
        step("confirm", dict.fromkeys(vectors, b"these"))
        line = {"total": np.asarray(total).tolist(), "cohort": list(nodes), "survivors": sorted(vectors)}
        line |= {"refused": refused}
        journal.record("cohort", 0, b"everybody")
        journal.record("asked", 0, json.dumps(line).encode())
        answers = step("unmask", dict.fromkeys(vectors, b"open"))
        for node, payload in answers.items():
            journal.record("reply", node, payload)
        return self._opened(line, answers)

    def complete(self, records: Iterable[Record]) -> Aggregate:
        self.completed += 1
        lines = {record.kind: record.payload for record in records if record.kind == "asked"}
        return self._opened(json.loads(lines["asked"]), [r.key for r in records if r.kind == "reply"])

    def _fail(self, announce: Announce, stage: str) -> None:
        error = self.fails.pop((announce.round, announce.attempt, stage), None)
        if error is not None:
            raise error

    @staticmethod
    def _opened(line: Any, replied: Iterable[int]) -> Aggregate:
        if not set(line["survivors"]) <= set(replied):
            raise NotUnmasked("too few replies")
        refused = tuple(line.get("refused", ()))
        lost = tuple(n for n in line["cohort"] if n not in line["survivors"] and n not in refused)
        dropped = {stage: nodes for stage, nodes in (("keys", refused), ("masked", lost)) if nodes}
        survivors, cohort = tuple(line["survivors"]), tuple(line["cohort"])
        aborts = dict.fromkeys(refused, AbortCode.MEMBERSHIP)
        return Aggregate(np.array(line["total"], np.int64), survivors, cohort, dropped, aborts, {})


class Killed(BaseException):
    """The server's process ends here."""


class World:
    """Devices, a grid to them, and a server that can be started again on the same directory."""

    def __init__(self, directory: Path, devices: Sequence[Device], clock: FakeClock, **changes: Any) -> None:
        usual = {
            "federation.rounds": 2,
            "federation.cohort": len(devices),
            "federation.deadline_seconds": 1.0,
            "federation.attempts": 3,
        }
        self.config = RunConfig().changed(usual | {k.replace("__", "."): v for k, v in changes.items()})
        self.directory = directory
        self.devices = {device.member: device for device in devices}
        self.grid = FakeGrid(self._answer, [FIRST + m for m in self.devices], clock)
        self.adding = Adding()
        self.observed: list[RoundLog] = []
        self.tells: list[str] = []
        self.start()

    def start(self) -> ServerRun:
        """A server's process begins: all that it knows is in the directory."""
        self.journal = Journal(self.directory)
        self.journal._db.execute("PRAGMA synchronous=OFF")  # nobody pulls a plug here
        self.run = ServerRun(
            config=self.config,
            id=RUN,
            model_signature=MODEL_SIGNATURE,
            cohort=self.config.federation.cohort,
            aggregation=self.adding,
            membership=LIST,
            journal=self.journal,
            observe=self.observed.append,
            tell=self.tells.append,
        )
        return self.run

    def _answer(self, node: int, stage: str, payload: bytes) -> bytes | None:
        return self.devices[node - FIRST].answer(stage, payload)

    def federate(self) -> World:
        federate(self.run, self.grid)
        return self

    @property
    def ready(self) -> dict[int, int]:
        return {member: FIRST + member for member in self.devices}

    def states(self) -> list[tuple[int, int, str]]:
        return [(row.round, row.attempt, row.state) for row in self.journal.rows()]

    def factors(self) -> np.ndarray:
        found = self.journal.load()
        assert found is not None
        return found[1].factors

    def start_factors(self) -> np.ndarray:
        plan = self.config.plan("main", 2)
        return MODEL_SIGNATURE.split(plan).initial(self.config.seed)[0]

    def moved(self, round: int) -> float:
        """By how much a round with everybody moves each factor: the example-weighted mean, by hand."""
        everybody = self.devices.values()
        return sum(d.weight * float(d.update(round, 1)[0]) for d in everybody) / sum(
            d.weight for d in everybody
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock.put_in(monkeypatch)


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> Callable[..., World]:
    """world([devices], changes of the configuration)."""

    def make(devices: Sequence[Device] | int = 3, **changes: Any) -> World:
        if isinstance(devices, int):
            devices = [Device(m, value=m / 100, weight=10 * m) for m in range(1, devices + 1)]
        return World(tmp_path, devices, clock, **changes)

    return make


# --- a run ----------------------------------------------------------------------------------------


def test_a_worked_example(world: Callable[..., World]) -> None:
    """+0.3 from somebody with 30 pairs, -0.1 from somebody with 10: the factors move by +0.2."""
    scene = world([Device(1, 0.3, 30), Device(2, -0.1, 10)], federation__rounds=1).federate()
    moved = scene.factors() - scene.start_factors()
    assert moved == pytest.approx(np.full(moved.size, 0.2 * 1.01), abs=1e-4)
    first, _ = scene.journal.logs()
    assert (first.examples, first.train_loss, first.val_accuracy) == (40, pytest.approx(0.5), 0.75)
    assert first.update_norm == pytest.approx(0.202 * moved.size**0.5, abs=1e-4)
    assert first.histogram == [0, 0, 0, 0, 0, 0, 0, 2, 0, 0]


def test_a_run_is_its_rounds_and_a_closing_one(world: Callable[..., World]) -> None:
    scene = world(federation__rounds=3).federate()
    assert scene.states() == [(number, 1, "finished") for number in (1, 2, 3, 4)]
    assert [log.phase for log in scene.journal.logs()] == ["main", "main", "main", "close"]
    assert scene.observed == scene.journal.logs()
    assert scene.factors() - scene.start_factors() == pytest.approx(
        sum(scene.moved(number) for number in (1, 2, 3)), abs=1e-4
    )


def test_a_round_is_told_apart_by_what_it_announces(world: Callable[..., World]) -> None:
    scene = world(seed=9).federate()
    first, second, closing = scene.devices[1].announced
    assert (first.run, first.base, first.list_digest, first.kind) == (
        RUN,
        MODEL_SIGNATURE.digest,
        LIST_DIGEST,
        Kind.SECAGG,
    )
    assert [(a.round, a.attempt) for a in (first, second, closing)] == [(1, 1), (2, 1), (3, 1)]
    plan = Plan.decode(first.plan)
    assert plan == scene.config.plan("main", 3)
    layout = UpdateLayout.of(plan, MODEL_SIGNATURE.split(plan))
    assert (first.words, first.ring, first.group) == (layout.words, layout.ring, layout.group)
    assert np.frombuffer(first.factors, "<f4") == pytest.approx(scene.start_factors())
    assert np.frombuffer(second.factors, "<f4") == pytest.approx(
        scene.start_factors() + scene.moved(1), abs=1e-4
    )


def test_a_round_does_not_fail_for_what_is_only_shown(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages and devices that can't be journaled change nothing of what is learned."""
    untroubled = world(seed=9).federate().journal.load()

    def fails(*_: object, **__: object) -> None:
        raise JournalError("the disk is full")

    for name in ("stage", "answered", "seen", "joined"):
        monkeypatch.setattr(Journal, name, fails)
    troubled = world(seed=9).federate().journal.load()
    assert untroubled is not None
    assert troubled is not None
    assert troubled[0] == untroubled[0]
    assert np.array_equal(troubled[1].factors, untroubled[1].factors)


def test_without_secure_aggregation_the_announcement_says_so(world: Callable[..., World]) -> None:
    scene = world(privacy__secagg=False).federate()
    assert {announce.kind for announce in scene.devices[1].announced} == {Kind.PLAIN}


def test_who_was_lost_and_what_travelled_is_logged(world: Callable[..., World]) -> None:
    scene = world()
    scene.devices[2].silent = {"masked"}
    log = play_round(scene.run, scene.grid, 1, scene.ready)
    assert log is not None
    assert (log.cohort, log.survivors, log.dropped) == (3, 2, {"masked": 1})
    sent = sum(len(payload) for _, stage, payload in scene.grid.sent if stage != "status")
    assert log.bytes_down == sent
    assert log.bytes_up == 3 * 4 + 2 * scene.devices[1].announced[0].words * 4 + 2 * 4 + 2 * 4
    assert log.examples == 10 + 30


def test_a_run_that_is_finished_is_not_run_again(world: Callable[..., World]) -> None:
    scene = world().federate()
    sent = len(scene.grid.sent)
    scene.start()
    scene.federate()
    assert {stage for _, stage, _ in scene.grid.sent[sent:]} == {"status"}
    assert len(scene.states()) == 3


def test_the_same_configuration_and_people_give_the_same_run() -> None:
    assert run_id("a", "b") == run_id("a", "b")
    assert len({run_id("a", "b"), run_id("a", "c"), run_id("b", "b"), run_id("ab", "")}) == 4
    assert len(run_id("a", "b")) == 16


# --- who takes part -------------------------------------------------------------------------------


def test_only_the_cohort_is_asked(world: Callable[..., World]) -> None:
    scene = world(9, federation__cohort=4, federation__rounds=5, seed=3).federate()
    for number, _, members in scene.adding.asked[:-1]:
        assert members == sample_cohort(range(1, 10), 4, seed=3, round=number)
    assert len({members for _, _, members in scene.adding.asked[:-1]}) > 1
    assert [log.cohort for log in scene.journal.logs()] == [4, 4, 4, 4, 4, 9]


def test_everybody_closes_the_run_and_nothing_moves(world: Callable[..., World]) -> None:
    scene = world(6, federation__cohort=2, federation__rounds=1).federate()
    closing = [device.announced[-1] for device in scene.devices.values()]
    assert {(a.round, a.words) for a in closing} == {(2, 4 + BINS)}  # counters alone
    (main, close) = scene.journal.logs()
    assert (close.phase, close.cohort, close.survivors, close.update_norm) == ("close", 6, 6, 0.0)
    assert close.examples == sum(device.weight for device in scene.devices.values())
    announced = np.frombuffer(closing[0].factors, "<f4")
    assert announced.tobytes() == scene.factors().tobytes()
    assert main.cohort == 2


def test_too_few_ready_devices_are_an_error_before_anything_is_begun(world: Callable[..., World]) -> None:
    scene = world(4)
    scene.devices[1].ready = False
    with pytest.raises(TooFewDevices, match="round 1 needs 4 devices but 3 are ready"):
        scene.federate()
    assert scene.states() == []
    assert scene.grid.stages("keys") == []


def test_a_run_of_no_rounds_is_its_closing_round(world: Callable[..., World]) -> None:
    scene = world(federation__rounds=0).federate()
    assert [log.phase for log in scene.journal.logs()] == ["close"]
    assert scene.factors().tobytes() == scene.start_factors().tobytes()


# --- readiness ------------------------------------------------------------------------------------


def test_devices_are_told_which_rounds_stand(world: Callable[..., World]) -> None:
    scene = world()
    scene.adding.fails[(1, 1, "masked")] = TooManyDropouts("bad luck")
    scene.federate()
    device = scene.devices[1]
    assert [tuple((f.round, f.attempt) for f in a.finished) for a in device.announced] == [
        (),
        (),
        ((1, 2),),
        ((1, 2), (2, 1)),
    ]
    # before the first round, before its second attempt, and after the last
    assert device.told == [(), (), ((1, 2), (2, 1), (3, 1))]
    assert device.announced[-1].finished[0] == Finished(1, 2)


def test_a_device_that_is_not_ready_is_asked_again_for_every_round(world: Callable[..., World]) -> None:
    scene = world(4, federation__cohort=3, federation__rounds=3)
    shy = scene.devices[4]
    shy.ready = False
    scene.federate()
    assert len(shy.told) == 5  # three rounds, the closing one, and the end
    assert len(scene.devices[1].told) == 2
    assert shy.announced == []


def test_who_comes_later_takes_part_from_then_on(world: Callable[..., World]) -> None:
    scene = world(4, federation__cohort=3, federation__rounds=1)
    scene.grid.nodes = present = [FIRST + 1, FIRST + 2, FIRST + 3]
    honest = scene.grid.answer

    def answer(node: int, stage: str, payload: bytes) -> Any:
        if stage == "unmask" and FIRST + 4 not in present:
            present.append(FIRST + 4)
        return honest(node, stage, payload)

    scene.grid.answer = answer
    scene.federate()
    assert [members for _, _, members in scene.adding.asked] == [(1, 2, 3), (1, 2, 3, 4)]
    assert scene.devices[4].told == [((1, 1),), ((1, 1), (2, 1))]


def test_the_member_list_goes_to_those_of_a_cohort_that_know_another_one_and_once(
    world: Callable[..., World],
) -> None:
    scene = world(4, federation__cohort=4)
    behind = scene.devices[2]
    behind.list_digest = list_digest(b"an older list")
    scene.federate()
    assert behind.lists == [b"", LIST, b""]  # the last greeting is the end's
    assert all(device.lists == [b"", b""] for device in scene.devices.values() if device is not behind)
    assert {announce.list_digest for announce in behind.announced} == {LIST_DIGEST}
    assert [members for _, _, members in scene.adding.asked] == [(1, 2, 3, 4)] * 3
    first, second, _ = scene.observed
    another_finished_round = 4 * 6  # in each device's announcement
    assert first.bytes_down - second.bytes_down == len(encode(Hello(RUN, (), LIST))) - another_finished_round


def test_a_newer_list_reaches_a_cohort_before_its_round(world: Callable[..., World]) -> None:
    scene = world(4, federation__cohort=3, federation__rounds=2)
    scene.run = replace(
        scene.run,
        latest=lambda run: replace(run, membership=NEWER) if run.journal.settled() == 1 else run,
    )
    scene.federate()
    second = scene.adding.asked[1][2]
    for member, device in scene.devices.items():
        assert device.lists.count(NEWER) == 1  # everybody closes the run
        assert [a.list_digest for a in device.announced][-1] == list_digest(NEWER)
        rounds = [a.round for a in device.announced if a.list_digest == list_digest(NEWER)]
        assert rounds == ([2, 3] if member in second else [3])


def test_who_does_not_take_the_list_is_offered_it_again_for_the_next_attempt(
    world: Callable[..., World],
) -> None:
    """And is asked all the same: it refuses the announcement, which is counted."""
    scene = world(4, federation__cohort=4, federation__rounds=2)
    ahead = scene.devices[4]
    ahead.list_digest, ahead.takes_lists = list_digest(NEWER), False
    scene.adding.fails[(2, 1, "masked")] = TooManyDropouts("bad luck")
    scene.federate()
    # Greeted before each attempt, and sent the list in it; at the end as everybody is.
    assert ahead.lists == [b"", LIST] * 4 + [b"", b""]
    assert [(a.round, a.attempt) for a in ahead.announced] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert scene.tells == ["1 of 1 devices have not said that they take the newest member list"] * 4


def test_a_device_that_goes_back_to_an_older_list_is_sent_the_newest_again(
    world: Callable[..., World],
) -> None:
    """One that was restored from a back-up while its connection stood: nobody greets it anew."""
    scene = world(4, federation__cohort=4, federation__rounds=3)
    restored, honest = scene.devices[3], scene.grid.answer

    def answer(node: int, stage: str, payload: bytes) -> Any:
        if node == FIRST + 3 and stage == "keys" and decode(payload, Announce).round == 2:
            restored.list_digest = list_digest(b"an older list")
        return honest(node, stage, payload)

    scene.grid.answer = answer
    scene.federate()
    assert [log.survivors for log in scene.observed] == [4, 3, 4, 4]
    assert restored.lists.count(LIST) == 1


def test_who_takes_the_list_and_does_not_say_so_is_sent_it_once(
    world: Callable[..., World],
) -> None:
    """The reply came too late, or is never made: that keys came for the list says enough."""
    scene = world(4, federation__cohort=4, federation__rounds=3)
    slow, honest = scene.devices[2], scene.grid.answer
    slow.list_digest = list_digest(b"an older list")

    def answer(node: int, stage: str, payload: bytes) -> Any:
        reply = honest(node, stage, payload)
        return None if node == FIRST + 2 and stage == "status" and slow.lists[-1] else reply

    scene.grid.answer = answer
    scene.federate()
    assert [log.survivors for log in scene.observed] == [4, 4, 4, 4]
    assert slow.lists.count(LIST) == 1


def test_a_list_that_comes_while_a_round_waits_holds_for_that_round(
    world: Callable[..., World], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revocation must not wait for those who are awaited; who it is about is not asked any more."""
    monkeypatch.setattr(availability, "time", clock)
    scene = world(4, federation__cohort=3, federation__rounds=1)
    began, everybody = clock.now, list(scene.grid.nodes)
    scene.grid.get_node_ids = lambda: everybody if clock.now - began > 1000 else everybody[:2]  # type: ignore[method-assign]

    def latest(run: ServerRun) -> ServerRun:
        if clock.now - began < 10:
            return run
        return replace(run, membership=NEWER, belongs=lambda member: member != 1)

    scene.run = replace(scene.run, patience=3600.0, latest=latest)
    scene.federate()
    assert scene.adding.asked[0][2] == (2, 3, 4)
    assert {a.list_digest for a in scene.devices[2].announced} == {list_digest(NEWER)}
    assert not scene.devices[1].announced


@pytest.mark.parametrize("member", [5, 2**63, 2**64 - 1])
def test_whoever_says_a_number_that_is_nobodys_is_left_out(world: Callable[..., World], member: int) -> None:
    scene = world(4, federation__cohort=3, federation__rounds=1)
    scene.run = replace(scene.run, belongs=lambda number: number in scene.devices)
    honest = scene.grid.answer
    scene.grid.answer = lambda node, stage, payload: (
        encode(Status(True, member, bytes(32)))
        if node == FIRST + 4 and stage == "status"
        else honest(node, stage, payload)
    )
    scene.federate()
    assert [asked[2] for asked in scene.adding.asked] == [(1, 2, 3)] * 2
    assert member not in scene.journal.nodes().values()


def test_a_number_beyond_what_the_journal_can_hold_is_a_journal_error(world: Callable[..., World]) -> None:
    scene = world(3)
    with pytest.raises(JournalError, match="too large"):
        scene.journal.seen({1: FIRST, 2**63: FIRST + 1})
    assert scene.journal.nodes() == {}


def test_who_is_not_ready_is_sent_no_list(world: Callable[..., World]) -> None:
    scene = world(4, federation__cohort=3, federation__rounds=1)
    shy = scene.devices[4]
    shy.ready, shy.list_digest = False, list_digest(b"an older list")
    scene.federate()
    assert shy.lists == [b"", b"", b""]


def test_who_was_away_is_greeted_anew(world: Callable[..., World]) -> None:
    """A device that lost its connection may have restarted: it must hear again which rounds stand."""
    scene = world(4, federation__cohort=3, federation__rounds=3)
    everybody = list(scene.grid.nodes)
    away = iter([[], [FIRST + 2], [], [], []])  # at each call of the roll
    scene.grid.get_node_ids = lambda: sorted(set(everybody) - set(next(away)))  # type: ignore[method-assign]
    scene.federate()
    assert [len(told) for told in scene.devices[2].told] == [0, 2, 4]
    assert [len(told) for told in scene.devices[1].told] == [0, 4]
    assert 2 not in scene.adding.asked[1][2]


@pytest.mark.parametrize("reply", [b"", b"nonsense", None], ids=["empty", "nonsense", "silence"])
def test_who_cannot_say_whether_it_is_ready_is_left_out(world: Callable[..., World], reply: Any) -> None:
    scene = world(4, federation__cohort=3)
    honest = scene.grid.answer

    def answer(node: int, stage: str, payload: bytes) -> Any:
        return reply if (node, stage) == (FIRST + 2, "status") else honest(node, stage, payload)

    scene.grid.answer = answer
    scene.federate()
    assert all(2 not in members for _, _, members in scene.adding.asked)
    assert scene.journal.settled() == 3


def test_a_round_waits_until_its_cohort_is_there(
    world: Callable[..., World], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the server: devices come back one after the other."""
    monkeypatch.setattr(availability, "time", clock)
    scene = world(4)
    began, everybody = clock.now, list(scene.grid.nodes)
    scene.grid.get_node_ids = lambda: everybody[: int((clock.now - began) // 10)]  # type: ignore[method-assign]
    scene.run = replace(scene.run, patience=100.0)
    scene.federate()
    assert {members for _, _, members in scene.adding.asked} == {(1, 2, 3, 4)}
    assert 40 <= clock.now - began < 80
    assert max(clock.slept) <= 30


def test_patience_ends(
    world: Callable[..., World], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "time", clock)
    scene = world(4)
    scene.devices[1].ready = False
    scene.run = replace(scene.run, patience=100.0)
    began = clock.now
    with pytest.raises(TooFewDevices, match="needs 4 devices but 3 are ready"):
        scene.federate()
    assert 100 <= clock.now - began < 102


def test_what_a_round_waits_for_is_said_from_the_first_moment_on(
    world: Callable[..., World], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "time", clock)
    scene = world(4)
    began, everybody = clock.now, list(scene.grid.nodes)
    scene.devices[1].ready = False
    scene.devices[2].silent = {"status"}
    scene.grid.get_node_ids = lambda: everybody[:3]  # type: ignore[method-assign]
    said: list[tuple[float, Waiting | None]] = []
    waits = lambda waiting: said.append((clock.now - began, waiting))  # noqa: E731
    scene.run = replace(scene.run, patience=100.0, waits=waits)
    with pytest.raises(TooFewDevices):
        scene.federate()
    at, first = said[0]
    assert first is not None
    assert (at, first.round, first.needed, first.ready, first.until - first.since) == (0.0, 1, 4, (), 100.0)
    second = said[1][1]
    assert second is not None
    assert (second.ready, second.unready, second.silent) == ((3,), (1,), (FIRST + 2,))
    assert [waiting is None for _, waiting in said] == [False, False, True]  # when it changes, and at the end


def test_a_round_that_need_not_wait_says_nothing(world: Callable[..., World]) -> None:
    scene = world(4)
    said: list[Waiting | None] = []
    scene.run = replace(scene.run, waits=said.append)
    scene.federate()
    assert said == []


def test_a_node_that_hangs_does_not_hold_up_a_greeting_for_a_whole_deadline(
    world: Callable[..., World], clock: FakeClock
) -> None:
    scene = world(4, federation__cohort=3, federation__deadline_seconds=1000.0)
    scene.devices[2].silent = {"status"}
    began = clock.now
    Availability(scene.run, scene.grid).poll()
    assert clock.now - began < 61


def in_turn(scene: World, seconds: float) -> None:
    """One machine serves all devices, so many seconds each, one after the other."""
    honest, clock = scene.grid.answer, scene.grid.clock
    free = clock.now

    def answer(node: int, stage: str, payload: bytes) -> Late:
        nonlocal free
        free = max(free, clock.now) + seconds
        return Late(free - clock.now, honest(node, stage, payload) or b"")

    scene.grid.answer = answer


def test_where_devices_are_served_in_turn_nobody_is_lost_because_there_are_many(
    world: Callable[..., World],
) -> None:
    """Each takes .8 of the one second that a device has: nine of them take seven seconds in every exchange,
    the greeting's minute included."""
    scene = world(9, federation__cohort=3)
    in_turn(scene, 0.8)
    scene.run = replace(scene.run, in_turn=1)
    scene.federate()
    assert [len(members) for _, _, members in scene.adding.asked] == [3, 3, 9]
    assert all(log.survivors == log.cohort for log in scene.journal.logs())
    assert scene.devices[9].told[-1] == ((1, 1), (2, 1), (3, 1))


def test_those_who_answer_together_have_a_deadline_each(world: Callable[..., World]) -> None:
    """Three are trained in one computation of two seconds and a half."""
    scene = world(9, federation__cohort=3)
    in_turn(scene, 2.5)
    scene.run = replace(scene.run, in_turn=3)
    scene.federate()
    assert [log.survivors for log in scene.journal.logs()] == [3, 3, 9]


def test_elsewhere_a_deadline_is_one_for_all(world: Callable[..., World]) -> None:
    scene = world(9, federation__cohort=3, federation__attempts=1)
    in_turn(scene, 0.8)
    with pytest.raises(TooFewDevices, match="needs 3 devices but 1 are ready"):
        scene.federate()


# --- attempts that fail ---------------------------------------------------------------------------


def test_another_attempt_is_without_those_who_fell_silent(world: Callable[..., World]) -> None:
    """The same cohort would be drawn again, and fail again."""
    scene = world(6, federation__cohort=4, federation__rounds=1)
    first = sample_cohort(range(1, 7), 4, seed=scene.config.seed, round=1)
    scene.adding.fails[(1, 1, "masked")] = TooManyDropouts("two are gone")
    honest = scene.grid.answer

    def answer(node: int, stage: str, payload: bytes) -> Any:
        gone = scene.adding.asked and node - FIRST in first[:2]
        return None if gone else honest(node, stage, payload)

    scene.grid.answer = answer
    scene.federate()
    cohorts = [members for number, _, members in scene.adding.asked if number == 1]
    assert cohorts[0] == first
    assert len(cohorts[1]) == 4
    assert not set(first[:2]) & set(cohorts[1])


@pytest.mark.parametrize("stage", ["keys", "masked", "confirm"])
def test_a_failed_attempt_is_tried_again_under_a_new_number(world: Callable[..., World], stage: str) -> None:
    scene = world()
    scene.adding.fails[(2, 1, stage)] = TooManyDropouts("a third was lost")
    scene.federate()
    assert scene.states() == [
        (1, 1, "finished"),
        (2, 1, "failed"),
        (2, 2, "finished"),
        (3, 1, "finished"),
    ]
    assert scene.journal.rows()[1].why == "a third was lost"
    assert [(r, a) for r, a, _ in scene.adding.asked] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert scene.adding.asked[1][2] == scene.adding.asked[2][2]  # the same cohort
    assert scene.factors() - scene.start_factors() == pytest.approx(scene.moved(1) + scene.moved(2), abs=1e-4)


def test_where_an_attempt_fails_it_is_said_what_flower_answered_for_devices(
    world: Callable[..., World],
) -> None:
    scene = world(5, federation__min_survivors=4, federation__attempts=1)
    honest = scene.grid.answer
    gone = {
        FIRST + 1: Error(5, "no heartbeat"),
        FIRST + 2: Error(5, "no heartbeat"),
        FIRST + 3: Error(99, "no"),
    }
    scene.grid.answer = lambda node, stage, payload: (
        gone[node] if stage == "masked" and node in gone else honest(node, stage, payload)
    )
    with pytest.raises(TooFewDevices):
        scene.federate()
    assert scene.tells == [
        "round 1, attempt 1: 1 without a reply in masked: error 99 of Flower",
        "round 1, attempt 1: 2 without a reply in masked: no heartbeat of the node for a minute",
    ]
    scene.grid.answer = honest
    scene.start()
    scene.federate()
    assert len(scene.tells) == 2


def test_after_as_many_attempts_as_are_allowed_the_run_stops_and_what_is_finished_stands(
    world: Callable[..., World],
) -> None:
    scene = world(federation__attempts=2)
    for attempt in (1, 2):
        scene.adding.fails[(2, attempt, "masked")] = TooManyDropouts(f"bad luck {attempt}")
    with pytest.raises(TooManyDropouts, match="bad luck 2"):
        scene.federate()
    assert scene.states() == [(1, 1, "finished"), (2, 1, "failed"), (2, 2, "failed")]
    scene.start()
    scene.federate()  # somebody started the server again
    assert scene.journal.finished() == ((1, 1), (2, 3), (3, 1))


def test_past_unmasking_a_round_is_skipped_and_never_tried_again(world: Callable[..., World]) -> None:
    scene = world(federation__rounds=3)
    scene.adding.fails[(2, 1, "unmask")] = NotUnmasked("too many lied")
    scene.federate()
    assert scene.states() == [
        (1, 1, "finished"),
        (2, 1, "skipped"),
        (3, 1, "finished"),
        (4, 1, "finished"),
    ]
    assert scene.factors() - scene.start_factors() == pytest.approx(scene.moved(1) + scene.moved(3), abs=1e-4)
    assert scene.devices[1].told[-1] == ((1, 1), (3, 1), (4, 1))
    assert [log.round for log in scene.observed] == [1, 3, 4]


def test_a_skipped_round_is_none(world: Callable[..., World]) -> None:
    scene = world()
    scene.adding.fails[(1, 1, "unmask")] = NotUnmasked("too many lied")
    assert play_round(scene.run, scene.grid, 1, scene.ready) is None


def test_too_few_survivors_stop_the_attempt_before_anything_is_revealed(world: Callable[..., World]) -> None:
    scene = world(5, federation__min_survivors=4, federation__attempts=1)
    for member in (1, 2):
        scene.devices[member].silent = {"masked"}
    with pytest.raises(TooFewDevices, match=r"3 clients sent their part, federation\.min_survivors is 4"):
        scene.federate()
    assert scene.grid.stages("confirm") == scene.grid.stages("unmask") == []
    assert scene.states() == [(1, 1, "failed")]
    assert scene.journal.load() is None
    scene.devices[1].silent = set()
    scene.start()
    scene.federate()
    assert scene.journal.finished() == ((1, 2), (2, 1), (3, 1))


def test_too_few_survivors_of_an_aggregation_without_confirmation_count_as_well(
    world: Callable[..., World],
) -> None:
    class Hasty(Adding):
        """Two stages and no question of who survived, as in plain aggregation."""

        def run(self, announce: Announce, nodes: Sequence[int], exchange: Any, journal: Any) -> Aggregate:
            exchange("keys", dict.fromkeys(nodes, encode(announce)))
            return Aggregate(np.zeros(announce.words, np.int64), tuple(nodes[:1]), tuple(nodes), {}, {}, {})

    scene = world(federation__min_survivors=2, federation__attempts=1)
    scene.adding = Hasty()
    scene.start()
    with pytest.raises(TooFewDevices, match="1 clients sent their part"):
        scene.federate()
    assert scene.journal.load() is None


@dataclass
class Renamed(Adding):
    """The same exchanges under other names. kept: kinds of the journal's lines after the last exchange."""

    journals: list[Journal] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def run(self, announce: Announce, nodes: Sequence[int], exchange: Any, journal: Any) -> Aggregate:
        def renamed(stage: str, payloads: Mapping[int, bytes], *take: Any) -> Mapping[int, bytes]:
            replies: Mapping[int, bytes] = exchange(
                {"confirm": "agree", "unmask": "open"}.get(stage, stage), payloads, *take
            )
            lines = self.journals[-1].records(announce.round, announce.attempt)
            self.kept = [kind for kind, _, _ in lines]
            return replies

        return super().run(announce, nodes, renamed, journal)


def test_no_name_of_a_stage_decides_what_is_kept_or_stopped(world: Callable[..., World]) -> None:
    scene = world(5, federation__min_survivors=4, federation__rounds=1, federation__attempts=1)
    scene.adding = Renamed(journals=[scene.journal])
    scene.start()
    scene.adding.journals.append(scene.journal)
    for member in (1, 2):
        scene.devices[member].silent = {"masked"}
    with pytest.raises(TooFewDevices, match="3 clients sent their part"):
        scene.federate()
    assert scene.grid.stages("agree") == scene.grid.stages("open") == []
    for member in (1, 2):
        scene.devices[member].silent = set()
    scene.federate()
    assert scene.states()[1:] == [(1, 2, "finished"), (2, 1, "finished")]
    assert scene.adding.kept == ["cohort", "asked", *["reply"] * 5]  # each kept as it arrived


# --- once a round ---------------------------------------------------------------------------------


def counting(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[str]:
    """A list that grows by one for each call of a method."""
    calls: list[str] = []
    real = getattr(kind, name)

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(name)
        return real(*args, **more)

    monkeypatch.setattr(kind, name, counted)
    return calls


def test_the_checkpoint_is_read_once_for_all_attempts_of_a_round(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = world()
    play_round(scene.run, scene.grid, 1, scene.ready)
    loads = counting(monkeypatch, Journal, "load")
    scene.adding.fails[(2, 1, "masked")] = TooManyDropouts("lost")
    scene.adding.fails[(2, 2, "masked")] = TooManyDropouts("lost")
    play_round(scene.run, scene.grid, 2, scene.ready)
    assert scene.states()[1:] == [(2, 1, "failed"), (2, 2, "failed"), (2, 3, "finished")]
    assert len(loads) == 1
    announced = [a.factors for a in scene.devices[1].announced if a.round == 2]
    assert len(announced) == 3
    assert len(set(announced)) == 1


def test_a_rounds_sum_is_read_once(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counting(monkeypatch, UpdateLayout, "read")
    scene = world(federation__rounds=2).federate()
    assert len(scene.journal.logs()) == len(reads) == 3


def test_a_sum_that_a_restarted_server_completes_is_read_once(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = world()
    open_attempt(scene, asked=True, marked=True, replies=scene.devices)
    reads = counting(monkeypatch, UpdateLayout, "read")
    recover(scene.start())
    assert scene.states() == [(1, 1, "finished")]
    assert len(reads) == 1


def test_a_bug_is_no_failed_attempt(world: Callable[..., World]) -> None:
    """Only a RoundFailed is tried again; anything else ends the server, and the attempt stays open."""
    scene = world()
    scene.adding.fails[(1, 1, "masked")] = ZeroDivisionError()  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        scene.federate()
    assert scene.states() == [(1, 1, "started")]


# --- a server that died ---------------------------------------------------------------------------


def open_attempt(scene: World, *, asked: bool, marked: bool, replies: Iterable[int] = ()) -> None:
    """Round 1's first attempt as a killed server leaves it."""
    scene.journal.begin(1, "main")
    nodes = [FIRST + m for m in scene.devices]
    vectors = []
    for device in scene.devices.values():
        plan = scene.config.plan("main", len(nodes))
        layout = UpdateLayout.of(plan, MODEL_SIGNATURE.split(plan))
        update = device.update(1, layout.quantiser.size)
        each = Contribution(update, device.weight, 0.5 * device.weight, 3, 4)
        vectors.append(layout.quantise(each, bytes(32)).view("<i4").astype(np.int64))
    line = {"total": np.sum(vectors, axis=0).tolist(), "cohort": nodes, "survivors": nodes}
    scene.journal.record(1, 1, "cohort", 0, b"everybody")
    if asked:
        scene.journal.record(1, 1, "asked", 0, json.dumps(line).encode())
    if marked:
        scene.journal.unmasking(1, 1)
    for member in replies:
        scene.journal.record(1, 1, "reply", FIRST + member, b"well")


def test_nothing_was_open(world: Callable[..., World]) -> None:
    scene = world()
    recover(scene.run)
    assert (scene.states(), scene.adding.completed) == ([], 0)
    scene.federate()
    recover(scene.start())
    assert scene.journal.settled() == 3


def test_an_attempt_that_was_not_unmasked_is_tried_again(world: Callable[..., World]) -> None:
    scene = world()
    open_attempt(scene, asked=False, marked=False)
    scene.start()
    recover(scene.run)
    assert scene.states() == [(1, 1, "failed")]
    assert scene.journal.rows()[0].why == "the server stopped during this attempt"
    scene.federate()
    assert scene.journal.finished() == ((1, 2), (2, 1), (3, 1))


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "killed before it was marked"])
def test_an_attempt_with_all_its_replies_is_completed_without_a_word(
    world: Callable[..., World], marked: bool
) -> None:
    scene = world()
    open_attempt(scene, asked=True, marked=marked, replies=[1, 2, 3])
    scene.start()
    recover(scene.run)
    assert scene.grid.sent == []
    assert scene.states() == [(1, 1, "finished")]
    (log,) = scene.observed
    assert (log.cohort, log.survivors, log.examples, log.phase) == (3, 3, 60, "main")
    assert scene.factors() - scene.start_factors() == pytest.approx(scene.moved(1), abs=1e-4)
    scene.federate()
    assert scene.journal.finished() == ((1, 1), (2, 1), (3, 1))


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "killed before it was marked"])
@pytest.mark.parametrize("replies", [[], [1, 3]], ids=str)
def test_an_attempt_without_enough_replies_is_skipped(
    world: Callable[..., World], marked: bool, replies: list[int]
) -> None:
    scene = world()
    open_attempt(scene, asked=True, marked=marked, replies=replies)
    scene.start()
    scene.federate()
    assert scene.states() == [(1, 1, "skipped"), (2, 1, "finished"), (3, 1, "finished")]
    assert all(announce.round != 1 for announce in scene.devices[1].announced)
    assert scene.factors() - scene.start_factors() == pytest.approx(scene.moved(2), abs=1e-4)


@pytest.mark.parametrize(("arrived", "state"), [(2, "skipped"), (3, "finished")])
def test_unmask_replies_are_kept_on_arrival(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, arrived: int, state: str
) -> None:
    """The server dies while it waits for more: what had arrived by then decides."""
    scene = world()
    hear, taken = Exchange._hear, []

    def dies(self: Exchange, stage: str, *rest: Any) -> None:
        hear(self, stage, *rest)
        taken.append(stage)
        if taken.count("unmask") == arrived:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "_hear", dies)
        with pytest.raises(Killed):
            scene.federate()
    recover(scene.start())
    assert scene.states() == [(1, 1, state)]


def test_a_kill_at_any_instant_applies_no_round_twice_and_ends_where_it_should(
    world: Callable[..., World], tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies at its 1st, 2nd, 3rd … step of any kind, again and again, until it gets through."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    outcomes: set[str] = set()
    for last in range(1, 200):
        scene = World(
            tmp_path / str(last),
            [Device(1, 0.1, 10), Device(2, 0.2, 10)],
            clock,
            federation__rounds=1,
        )
        died = kill_at(scene, last, monkeypatch)
        scene.start()
        scene.federate()
        finished = {number for number, _ in scene.journal.finished()}
        assert scene.journal.settled() == 2
        expected = scene.start_factors() + (scene.moved(1) if 1 in finished else 0.0)
        assert scene.factors() == pytest.approx(expected, abs=1e-4)
        states = [(number, state) for number, _, state in scene.states()]
        assert all(states.count((number, "finished")) <= 1 for number in (1, 2))
        outcomes.update(state for _, state in states)
        if not died:
            break
    else:
        raise AssertionError("the run never got through")
    assert outcomes == {"finished", "failed", "skipped"}


def kill_at(scene: World, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run the server, but let it die right before or after one push, journal line or checkpoint."""
    steps = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                raise Killed
            result = function(*args, **more)
            steps += 1
            if steps == step:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        for name in ("begin", "record", "unmasking", "finish", "_write_checkpoint"):
            patch.setattr(scene.journal, name, counted(getattr(scene.journal, name)))
        patch.setattr(scene.grid, "push_messages", counted(scene.grid.push_messages))
        patch.setattr(Exchange, "_hear", counted(Exchange._hear))
        try:
            scene.federate()
        except Killed:
            return True
    return False


def test_a_closing_round_is_completed_as_well(world: Callable[..., World]) -> None:
    scene = world(4, federation__cohort=2, federation__rounds=1)

    def dies(*_: Any) -> None:
        raise Killed

    finish = scene.journal.finish
    scene.journal.finish = lambda log, shared: (dies if log.phase == "close" else finish)(log, shared)
    with pytest.raises(Killed):
        scene.federate()
    before = scene.factors()
    recover(scene.start())
    assert scene.states() == [(1, 1, "finished"), (2, 1, "finished")]
    assert scene.journal.logs()[1].cohort == 4
    assert scene.factors().tobytes() == before.tobytes()


def test_a_damaged_checkpoint_stops_the_run(world: Callable[..., World]) -> None:
    scene = world(federation__rounds=1)
    play_round(scene.run, scene.grid, 1, scene.ready)
    (path,) = (scene.directory / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    scene.start()
    with pytest.raises(JournalError, match="is not what the journal wrote"):
        scene.federate()


# --- the warm-up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["A", "B", "kernel", "svd", "mixed"])
def test_after_the_warm_up_the_personal_start_goes_out_beside_the_factors(
    world: Callable[..., World], share: str
) -> None:
    scene = world(federation__rounds=3, federation__warmup_rounds=1, adapter__share=share).federate()
    assert [log.phase for log in scene.journal.logs()] == ["warmup", "main", "main", "close"]
    warm, first, second, closing = (np.frombuffer(a.factors, "<f4") for a in scene.devices[1].announced)
    warm_split = MODEL_SIGNATURE.split(scene.config.plan("warmup", 3))
    main_split = MODEL_SIGNATURE.split(scene.config.plan("main", 3))
    assert warm.size == warm_split.shared.size
    warmed = (warm + np.float32(scene.moved(1))).astype(np.float32)
    shared, start = main_split.start_from(warm_split, warmed, scene.config.seed)
    assert first == pytest.approx(np.concatenate([shared, start]), abs=1e-4)
    assert second[: shared.size] == pytest.approx(shared + scene.moved(2), abs=2e-4)
    for later in (second, closing):
        assert later[shared.size :].tobytes() == first[shared.size :].tobytes()


def test_a_warm_up_that_was_lost_leaves_the_common_start(world: Callable[..., World]) -> None:
    scene = world(federation__rounds=2, federation__warmup_rounds=1)
    scene.adding.fails[(1, 1, "unmask")] = NotUnmasked("too many lied")
    scene.federate()
    shared, start = MODEL_SIGNATURE.split(scene.config.plan("main", 3)).initial(scene.config.seed)
    announced = np.frombuffer(scene.devices[1].announced[1].factors, "<f4")
    assert announced.tobytes() == np.concatenate([shared, start]).tobytes()


def test_a_server_that_restarts_after_the_warm_up_announces_the_same(world: Callable[..., World]) -> None:
    scene = world(federation__rounds=2, federation__warmup_rounds=1)
    scene.adding.fails[(2, 1, "masked")] = ZeroDivisionError()  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        scene.federate()
    scene.start()
    scene.federate()
    once, again = (a for a in scene.devices[1].announced if a.round == 2)
    assert (once.attempt, again.attempt) == (1, 2)
    assert once.factors == again.factors
