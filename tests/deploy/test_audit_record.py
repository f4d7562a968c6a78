"""What leaves a client: the shared tensors by name and shape, masked, and nothing of what is private.

Whole runs are recorded with canaries in preferences, personal factors, identity keys, device secrets and
round secrets; everything that left is then searched for them, in every encoding that bytes, texts and
numbers are likely to travel in. A search that finds nothing proves little by itself: controls plant and
leak the same canaries and must find them.
"""

from __future__ import annotations

import base64
import os
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as MessageProto
from support.recorded_run import (
    BENCHES,
    FIRST_NODE,
    RUN,
    Haystack,
    Leak,
    Recorded,
    encodings_of_bytes,
    encodings_of_numbers,
    encodings_of_text,
    honest,
    record,
    rows_of,
    seeded,
    some_people,
    texts_of,
    world_of,
)

from penchant.client import secagg as role
from penchant.client.agent.agent import Agent
from penchant.client.agent.flower_app import build_app
from penchant.client.vault.vault import Vault
from penchant.common.crypto.entropy import Entropy, SeededEntropy
from penchant.common.errors import DeviceError, RunDirectoryError
from penchant.common.model.factors import Split
from penchant.common.secagg.update_vector import COUNTERS, UpdateLayout
from penchant.common.wire.codec import encode
from penchant.common.wire.flower import message_type, pack
from penchant.common.wire.messages import Abort, AbortCode, Masked, Plain, Status
from penchant.deploy.audit.audit import audit
from penchant.deploy.audit.record import WIRE, Tensor, read_tensors, read_wire, rules_of
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.recorder import MessageRecorder
from penchant.deploy.simulation.world import tensors_of

PEOPLE = 4
SLOT = "encoder.layer.2.output.dense"
A, B = Tensor(f"{SLOT}.lora_A", (2, 32)), Tensor(f"{SLOT}.lora_B", (16, 2))
HEAD, BASIS = Tensor("head.weight", (1, 16)), Tensor("lore.basis", (2, 16))
SPREAD = Tensor("mixed.spread", (1,))
SHARED = {
    "B": (B, HEAD),
    "A": (A, HEAD),
    "kernel": (A, B, HEAD),
    "svd": (A, B, HEAD),
    "AB": (A, B, HEAD),
    "none": (),
    "ffa": (B, HEAD),
    "lore": (BASIS,),
    "mixed": (A, B, SPREAD, HEAD),
    "common": (
        Tensor("common.head", (1, 16)),
        Tensor("common.basis", (2, 16)),
        Tensor("common.spread", (1,)),
    ),
    "finetune": (A, B, Tensor("common.head", (1, 16))),
    "meta": (Tensor("meta.basis", (2, 16)), Tensor("meta.start", (2,))),
    "shrinkage": (Tensor("common.head", (1, 16)), Tensor("shrinkage.spread", (1,))),
}
"""Worked out by hand for rank 2 on the last block's output of the tiny model: 32 wide inside, 16 outside."""
CAN_WARM_UP = ("B", "A", "kernel", "svd", "mixed")
COUNTS = tuple(Tensor(name, ()) for name in COUNTERS)


# --- secrets, as they come up ------------------------------------------------------------------------


@dataclass
class Canaries:
    """All that must never leave, gathered while a run makes it."""

    numbers: list[tuple[str, np.ndarray]] = field(default_factory=list)
    secrets: list[tuple[str, bytes]] = field(default_factory=list)
    vectors: list[tuple[str, np.ndarray]] = field(default_factory=list)  # unmasked, as ring elements

    def entropy(self, person: int) -> Entropy:
        """A device's generator: mask keys, channel keys, self-mask seeds, and what shares are made of."""
        return Drawn(person, self)

    def patterns(self, recorded: Recorded) -> Iterator[tuple[str, bytes]]:
        """(what it is and how it is written, bytes)."""
        for person in recorded.world.federation.people:
            for preference in (*person.train, *person.validation, *person.test):
                for place, text in zip(("asked", "chosen", "rejected"), texts_of(preference), strict=True):
                    yield from _named(f"text {place}", encodings_of_text(text.split()[-1]))
        fleet, secrets = recorded.fleet, list(self.secrets)
        for index in range(len(fleet)):
            secrets += [
                ("device secret", fleet.agent(index)._secret),
                ("identity key", _identity(fleet, index)),
            ]
        for name, secret in secrets:
            yield from _named(name, encodings_of_bytes(secret))
        for name, vector in self.numbers:
            for row in rows_of(vector):
                yield from _named(name, encodings_of_numbers(row))
        for name, elements in self.vectors:
            for row in rows_of(elements):
                yield from _named(name, encodings_of_bytes(row.tobytes()))


def _identity(fleet: SimulatedDevices, person: int) -> bytes:
    private: bytes = fleet._certified[person][0]
    return private


def _personal(fleet: SimulatedDevices, person: int) -> np.ndarray:
    """What a device holds after the last finished round that it heard of; nothing before."""
    kept = Vault(fleet._home(person)).personal(RUN)
    return np.zeros(0, np.float32) if kept is None else kept.vector


def _named(what: str, patterns: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    return ((f"{what}, {how}", pattern) for how, pattern in patterns)


class Drawn:
    """A seeded generator whose draws are canaries, 32 bytes at a time."""

    def __init__(self, person: int, canaries: Canaries) -> None:
        self._inner = seeded(person)
        self._canaries = canaries

    def draw(self, count: int) -> bytes:
        drawn = self._inner.draw(count)
        parts = [drawn[at : at + 32] for at in range(0, count, 32)]
        self._canaries.secrets += [("drawn", part) for part in parts if len(part) == 32]
        return drawn


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Canaries:
    """Gathers personal parts as they are staged, vectors before they are masked, and derived keys."""
    found = Canaries()
    stage, quantise, derived = Vault.stage, UpdateLayout.quantise, Agent._derived

    def staged(
        self: Vault, run: bytes, round: int, attempt: int, vector: Any, *rest: Any, **more: Any
    ) -> None:
        found.numbers.append(("personal part", vector.copy()))
        stage(self, run, round, attempt, vector, *rest, **more)

    def quantised(self: UpdateLayout, contribution: Any, key: bytes) -> Any:
        vector = quantise(self, contribution, key)
        if not contribution.weight:  # the zeros that are made in any case
            return vector
        found.numbers.append(("update", contribution.update.copy()))
        found.vectors.append(("unmasked vector", vector[: contribution.update.size].copy()))
        found.secrets.append(("unmasked vector", vector.tobytes()))  # whole: counters may stand elsewhere
        return vector

    def device_key(self: Agent, *args: Any) -> bytes:
        return _kept(found, "key of the device", derived(self, *args))

    monkeypatch.setattr(Vault, "stage", staged)
    monkeypatch.setattr(UpdateLayout, "quantise", quantised)
    monkeypatch.setattr(Agent, "_derived", device_key)
    for name in ("self_mask_key", "pair_mask_key", "seal_key"):
        _spy(monkeypatch, found, name)
    return found


def _kept(canaries: Canaries, name: str, secret: bytes) -> bytes:
    canaries.secrets.append((name, secret))
    return secret


def _spy(monkeypatch: pytest.MonkeyPatch, canaries: Canaries, name: str) -> None:
    inner = getattr(role, name)
    monkeypatch.setattr(role, name, lambda *args: _kept(canaries, name, inner(*args)))


@pytest.fixture
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("bert")


def play(base: Path, directory: Path, canaries: Canaries, *, leak: Leak = honest, **changes: Any) -> Recorded:
    world = world_of(base, some_people(PEOPLE), **changes)
    return record(directory / "run", world, entropy=canaries.entropy, leak=leak)


# --- nothing private leaves, and exactly what is shared does ----------------------------------------------


@pytest.mark.parametrize("share", list(SHARED))
def test_what_leaves_is_what_is_shared_and_no_canary(
    base: Path, tmp_path: Path, canaries: Canaries, share: str
) -> None:
    warm = share in CAN_WARM_UP
    run = play(base, tmp_path, canaries, adapter__share=share, federation__warmup_rounds=int(warm))
    found = audit(run.directory)
    assert found.violations == ()
    assert found.vectors == {
        **({"warmup": (A, B, HEAD, *COUNTS)} if warm else {}),
        "main": (*SHARED[share], *COUNTS),
        "close": COUNTS,
    }
    words = {phase: sum(t.words for t in tensors) for phase, tensors in found.vectors.items()}
    sizes = {line.phase: (line.least, line.most) for line in found.lines if line.kind == "Masked"}
    assert sizes == {phase: (73 + 4 * count,) * 2 for phase, count in words.items()}

    patterns = list(canaries.patterns(run))
    kinds = {name.split(",")[0] for name, _ in patterns}
    private = {"text asked", "text chosen", "text rejected", "device secret", "identity key", "drawn"}
    private |= {"key of the device", "self_mask_key", "pair_mask_key", "seal_key", "unmasked vector"}
    assert kinds >= private
    assert ("personal part" in kinds) == (share not in ("AB", "ffa"))
    assert ("update" in kinds) == (share != "none")
    assert run.haystack().find(patterns) == []


@pytest.mark.parametrize("share_base", [("norm",), ("encoder.layer.2.intermediate.dense",)])
def test_parts_of_the_base_leave_by_their_names(base: Path, tmp_path: Path, share_base: tuple[str]) -> None:
    world = world_of(base, some_people(PEOPLE), adapter__share_base=list(share_base))
    found = audit(record(tmp_path / "run", world).directory)
    assert found.violations == ()
    of_base = [t.name for t in found.vectors["main"] if t.name.startswith("base.encoder.layer.2.")]
    assert len(of_base) >= 2
    assert [t.name for t in found.vectors["main"]] == [A.name, HEAD.name, *of_base, *COUNTERS]


def test_a_plain_run_sends_the_same_integers_in_clear(base: Path, tmp_path: Path, canaries: Canaries) -> None:
    """Without secure aggregation a vector is its quantised elements and nothing else."""
    run = play(base, tmp_path, canaries, privacy__secagg=False)
    vectors = [s for s in run.left if s.stage == "masked"]
    assert [encode(Plain(s.payload[9:])) for s in vectors] == [s.payload for s in vectors]
    assert len(vectors) == len(canaries.vectors) == 3 * PEOPLE
    for sent, (_, elements) in zip(vectors, canaries.vectors, strict=True):
        assert sent.payload[9:].startswith(elements.tobytes())
        assert len(sent.payload) == 9 + 4 * (elements.size + len(COUNTERS))


# --- the search finds what is there -----------------------------------------------------------------------


def test_the_search_finds_unmasked_vectors_of_a_plain_run(
    base: Path, tmp_path: Path, canaries: Canaries
) -> None:
    run = play(base, tmp_path, canaries, privacy__secagg=False)
    found = run.haystack().find(canaries.patterns(run))
    assert {name.split(",")[0] for name in found} == {"unmasked vector"}


LEAKS: dict[str, Callable[[SimulatedDevices, int], bytes]] = {
    "personal part, <f4 raw": lambda fleet, person: _personal(fleet, person).tobytes(),
    "personal part, float64 text": lambda fleet, person: str(_personal(fleet, person).tolist()).encode(),
    "text chosen, utf-16-le": lambda fleet, person: fleet._people[person].train[0].chosen.encode("utf-16-le"),
    "identity key, hex": lambda fleet, person: _identity(fleet, person).hex().encode(),
    "device secret, reversed raw": lambda fleet, person: fleet.agent(person)._secret[::-1],
}


@pytest.mark.parametrize("leaked", list(LEAKS))
def test_the_search_and_the_audit_find_what_a_faulty_client_sends_along(
    base: Path, tmp_path: Path, canaries: Canaries, leaked: str
) -> None:
    """One client adds a secret to its last message."""

    def leak(fleet: SimulatedDevices, person: int, stage: str, reply: bytes) -> bytes:
        last = stage == "status" and person == 2 and _personal(fleet, person).size
        return reply + LEAKS[leaked](fleet, person) if last else reply

    run = play(base, tmp_path, canaries, leak=leak, federation__rounds=1)
    found = run.haystack().find(canaries.patterns(run))
    assert leaked in found
    assert {name.split(",")[0] for name in found} == {leaked.split(",")[0]}
    (violation,) = audit(run.directory).violations
    assert f"node {FIRST_NODE + 2}" in violation
    assert "not a message of the protocol" in violation


SECRET = bytes(range(7, 39))
NUMBERS = np.array([0.1234567, -3.7654321, 2.5e-5, -0.0098765], np.float32)
TEXT = "Ünverkennbar-Zitterrochen"


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_every_pattern_is_found_where_it_is_planted(offset: int) -> None:
    patterns = [
        *_named("bytes", encodings_of_bytes(SECRET)),
        *_named("numbers", encodings_of_numbers(NUMBERS)),
        *_named("text", encodings_of_text(TEXT)),
    ]
    hay = [os.urandom(100 + offset) + pattern + os.urandom(50) for _, pattern in patterns]
    assert Haystack(hay).find(patterns) == [name for name, _ in patterns]
    assert Haystack([os.urandom(200) for _ in hay]).find(patterns) == []


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_base64_is_found_wherever_the_secret_stands_in_what_was_encoded(offset: int) -> None:
    whole = os.urandom(30 + offset) + SECRET + os.urandom(10)
    patterns = dict(encodings_of_bytes(SECRET))
    assert Haystack([base64.b64encode(whole)]).find(patterns)[0] == f"base64 +{offset}"
    assert f"base64url +{offset}" in Haystack([base64.urlsafe_b64encode(whole)]).find(patterns)


# --- everything that leaves is seen -----------------------------------------------------------------------


def test_the_record_holds_every_reply_that_a_client_made(base: Path, tmp_path: Path) -> None:
    run = record(tmp_path / "run", world_of(base, some_people(PEOPLE)))
    assert [s.message for s in run.sent] == [left.frame for left in run.left]
    assert [(s.place, s.stage, s.node) for s in run.sent] == [(s.place, s.stage, s.node) for s in run.left]
    assert Counter(s.kind for s in run.sent if s.round) == dict.fromkeys(
        ("Entry", "Shares", "Masked", "Confirmation", "Unmasking"), 3 * PEOPLE
    )


def asked(grid: InProcessGrid, stage: str, node: int, timeout: float | None) -> list[Any]:
    """One message to one node -> the replies that came in time."""
    message = Message(
        pack(b"asked"), dst_node_id=node, message_type=message_type(stage), group_id="1.1", ttl=60.0
    )
    return list(grid.send_and_receive([message], timeout=timeout))


def test_a_reply_that_comes_too_late_is_on_record(tmp_path: Path) -> None:
    """The server gave up; the client sends all the same."""
    gate = threading.Event()

    def slow(stage: str, payload: bytes) -> bytes:
        gate.wait(60)
        return encode(Status(True, 7, bytes(32)))

    with MessageRecorder(tmp_path) as wire:
        grid = InProcessGrid(build_app(lambda context: slow), 1, workers=1, recorder=wire.record)
        assert asked(grid, "status", FIRST_NODE, 0.05) == []
        assert list(read_wire(tmp_path)) == []
        gate.set()
        grid.close()
    assert [(s.stage, s.kind, s.node) for s in read_wire(tmp_path)] == [("status", "Status", FIRST_NODE)]


def test_an_error_of_flowers_is_on_record_by_the_name_of_its_type(tmp_path: Path) -> None:
    app = ClientApp()

    @app.train("masked")
    def fails(message: Message, context: Context) -> Message:
        raise DeviceError("text that may not leave")

    with MessageRecorder(tmp_path) as wire:
        grid = InProcessGrid(app, 1, workers=1, recorder=wire.record)
        (reply,) = asked(grid, "masked", FIRST_NODE, None)
        grid.close()
    (sent,) = read_wire(tmp_path)
    assert (sent.kind, sent.said, reply.error.reason) == ("error", "DeviceError", "DeviceError")


def test_a_relay_sends_one_code_whatever_goes_wrong_in_it(tmp_path: Path) -> None:
    def broken(stage: str, payload: bytes) -> bytes:
        raise RuntimeError("text that may not leave")

    with MessageRecorder(tmp_path, whole=True) as wire:
        grid = InProcessGrid(build_app(lambda context: broken), 1, workers=1, recorder=wire.record)
        asked(grid, "masked", FIRST_NODE, None)
        grid.close()
    (sent,) = read_wire(tmp_path)
    assert (sent.kind, sent.size) == ("Abort", 6)
    assert b"may not leave" not in (sent.message or b"")


def test_a_client_that_nothing_reaches_sends_nothing(tmp_path: Path) -> None:
    with MessageRecorder(tmp_path) as wire:
        grid = InProcessGrid(
            build_app(lambda context: lambda stage, payload: payload),
            1,
            workers=1,
            recorder=wire.record,
            fault=lambda node, kind: True,
        )
        (reply,) = asked(grid, "keys", FIRST_NODE, None)
        grid.close()
    assert reply.has_error()
    assert list(read_wire(tmp_path)) == []


# --- the record itself ------------------------------------------------------------------------------------


def reply_of(payload: RecordDict, stage: str = "masked", place: str = "3.2") -> Message:
    asked = Message(payload, dst_node_id=5, message_type=message_type(stage), group_id=place, ttl=60.0)
    return Message(payload, reply_to=asked)


@pytest.fixture
def process() -> None:
    """Flower makes messages only in a process that has a task: a grid gives it one."""
    InProcessGrid(ClientApp(), 0, workers=1).close()


@pytest.mark.usefixtures("process")
def test_a_message_is_described_field_by_field(tmp_path: Path) -> None:
    with MessageRecorder(tmp_path) as wire:
        wire.record(5, reply_of(pack(encode(Masked(bytes(64), bytes(20))))))
        wire.record(5, reply_of(pack(encode(Abort(AbortCode.POLICY))), "status", "status"))
        wire.record(5, reply_of(pack(b"PEN\x01\xffwhat is this")))
        wire.record(5, reply_of(pack(encode(Status(True, 1, bytes(32))) + b"left over")))
        wire.record(5, reply_of(RecordDict()))
        wire.record(5, reply_of(pack(encode(Plain(bytes(8)))), "shares"))
    masked, abort, unknown, longer, empty, misplaced = read_wire(tmp_path)
    assert [(f.name, f.type, f.shape, f.size) for f in masked.fields] == [
        ("signature", "bytes", (64,), 64),
        ("vector", "bytes", (20,), 20),
    ]
    assert (masked.place, masked.round, masked.stage, masked.size) == ("3.2", 3, "masked", 93)
    assert [(f.name, f.type, f.size) for f in abort.fields] == [("code", "AbortCode", 1)]
    assert (abort.round, abort.size) == (0, 6)
    assert [s.kind for s in (unknown, longer, empty)] == ["?", "?", "?"]
    assert (misplaced.kind, misplaced.stage) == ("Plain", "shares")
    assert masked.message is None


@pytest.mark.usefixtures("process")
def test_bytes_are_kept_only_where_asked_for(tmp_path: Path) -> None:
    with MessageRecorder(tmp_path, whole=True) as wire:
        wire.record(5, reply_of(pack(encode(Status(True, 1, bytes(32))))))
    (sent,) = read_wire(tmp_path)
    again = message_from_proto(MessageProto.FromString(sent.message or b""))
    assert again.content == pack(encode(Status(True, 1, bytes(32))))
    assert sent.framed == len(sent.message or b"")


@pytest.mark.usefixtures("process")
def test_what_is_recorded_is_there_before_the_message_goes_on(tmp_path: Path) -> None:
    """A run that is killed has lost nothing: another connection sees each message at once."""
    with MessageRecorder(tmp_path) as wire:
        for count in range(1, 4):
            wire.record(5, reply_of(pack(encode(Status(True, 1, bytes(32))))))
            assert len(list(read_wire(tmp_path))) == count
    assert [path.name for path in tmp_path.iterdir()] == [WIRE]


@pytest.mark.usefixtures("process")
def test_a_resumed_run_forgets_the_rounds_that_it_plays_anew(tmp_path: Path) -> None:
    with MessageRecorder(tmp_path) as wire:
        for place in ("status", "1.1", "2.1", "2.2", "10.1"):
            wire.record(5, reply_of(pack(encode(Status(True, 1, bytes(32)))), place=place))
    with MessageRecorder(tmp_path) as wire:
        wire.rewind(1)
    assert [s.place for s in read_wire(tmp_path)] == ["status", "1.1"]


def test_forms_are_read_back(tmp_path: Path) -> None:
    with MessageRecorder(tmp_path) as wire:
        wire.forms({"main": (A, *COUNTS)})
        wire.forms({"main": (B, *COUNTS), "close": COUNTS})
    assert read_tensors(tmp_path) == {"main": (B, *COUNTS), "close": COUNTS}


def test_rules_are_those_that_the_codec_writes_by() -> None:
    """For every type a client sends: the bytes that its rules explain are the bytes there are."""
    value = Masked(bytes(64), bytes(12))
    fields = [rule.read(getattr(value, rule.name)) for rule in rules_of(Masked)]
    assert [rule.fits(f) for rule, f in zip(rules_of(Masked), fields, strict=True)] == [True, True]
    assert 5 + sum(f.size for f in fields) + sum(r.prefix for r in rules_of(Masked)) == len(encode(value))
    assert not rules_of(Masked)[0].fits(fields[1])


def test_vectors_have_the_length_of_the_split_in_every_phase(base: Path) -> None:
    """The record's forms and the round's own form come from one rule table."""
    lengths: dict[str, set[int]] = defaultdict(set)
    for share in CAN_WARM_UP:
        world = world_of(base, some_people(PEOPLE), adapter__share=share, federation__warmup_rounds=1)
        for phase in world.phases:
            plan = world.config.plan(phase, PEOPLE)
            split: Split = BENCHES.of(plan).split
            words = sum(t.words for t in tensors_of(world, phase))
            assert words == UpdateLayout.of(plan, split).words
            lengths[phase].add(words)
    assert lengths == {
        "warmup": {64 + 32 + 16 + 14},
        "main": {64 + 16 + 14, 32 + 16 + 14, 64 + 32 + 16 + 14, 64 + 32 + 1 + 16 + 14},
        "close": {14},
    }


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / WIRE).write_bytes(b"no database, whatever its name says" * 100)
    with pytest.raises(RunDirectoryError, match="can't read"):
        list(read_wire(tmp_path))
    (tmp_path / WIRE).unlink()
    with MessageRecorder(tmp_path):
        pass
    with sqlite3.connect(tmp_path / WIRE) as db:
        db.execute("INSERT INTO sent VALUES (1, '1.1', 'keys', 5, 'Entry', 1, 1, '', '[{}]', '', NULL)")
    with pytest.raises(RunDirectoryError, match="damaged"):
        list(read_wire(tmp_path))


def test_seeded_draws_repeat() -> None:
    """What the searches above rely on: a canary drawn is the secret used."""
    canaries = Canaries()
    drawn = Drawn(3, canaries).draw(96)
    assert drawn == SeededEntropy(b"the seed of recorded runs", "agent 3").draw(96)
    assert b"".join(secret for _, secret in canaries.secrets) == drawn
