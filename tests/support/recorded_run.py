"""A whole run over the in-process grid, with everything that leaves a client kept, and a search through it.

`record` plays a small federation with real agents. What left is seen twice: by `MessageRecorder` at the grid,
and by a tap around the ClientApp itself, through which every reply passes, late ones and errors too.
"""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from support.scene import signed_for
from support.tiny_models import WORDS

from penchant.client.agent.flower_app import Answer, build_app
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.crypto.entropy import Entropy, SeededEntropy
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.errors import CodecError
from penchant.common.wire.flower import stage_of, unpack
from penchant.deploy import run_directory
from penchant.deploy.audit.record import Sent, read_wire
from penchant.deploy.flower.in_process_grid import Fault, InProcessGrid
from penchant.deploy.owner_policy import fleet_policy
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.recorder import MessageRecorder
from penchant.deploy.simulation.world import SimulationSetup, open_run, tensors_of
from penchant.server.flower_app import build_app as build_server_app
from penchant.server.journal import Journal
from penchant.server.run import cohort_size

SEED = b"the seed of recorded runs"
RUN = bytes(range(16))
FIRST_NODE = 1000
BENCHES = ModelCache()  # one tiny model for all runs


# --- people -------------------------------------------------------------------------------------------


def canary(person: int, number: int, place: str) -> str:
    """A text that is nowhere else, with letters that encodings write differently."""
    return f"Ünverkennbar-{place}-{person:03d}-{number:03d}-Zitterrochen"


def texts_of(preference: Preference) -> tuple[str, str, str]:
    return preference.prompt, preference.chosen, preference.rejected


def some_person(
    number: int, pairs: int = 4, validation: int = 2, *, words: int = 5, seed: int = 0, name: str = ""
) -> Person:
    """Somebody who likes some words better than others; a canary in every text."""
    draw = random.Random(f"{number} {seed}")
    liking = {word: draw.random() for word in WORDS}

    def preference(at: int) -> Preference:
        better, worse = sorted(draw.sample(WORDS, 2), key=lambda word: -liking[word])
        prompt = " ".join(draw.choices(WORDS, k=words))
        return Preference(
            f"{prompt} {canary(number, at, 'asked')} ",
            f"{better} {canary(number, at, 'chosen')}",
            f"{worse} {canary(number, at, 'rejected')}",
        )

    made = [preference(at) for at in range(pairs + validation + 1)]
    return Person(
        name or f"person {number}",
        tuple(made[:pairs]),
        tuple(made[pairs : pairs + validation]),
        tuple(made[pairs + validation :]),
    )


def some_people(count: int) -> Federation:
    return Federation("made up", tuple(some_person(i) for i in range(count)))


# --- a run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """One message that left: what the tap saw."""

    place: str
    stage: str
    node: int
    payload: bytes
    frame: bytes  # all of the Flower message


@dataclass
class Tap:
    """A ClientApp that keeps what the real one sends."""

    app: ClientApp
    left: list[Left] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        with self._lock:
            self.left.append(left_of(context.node_id, reply))
        return reply


def left_of(node: int, reply: Message) -> Left:
    frame = message_to_proto(reply).SerializeToString()
    try:
        payload = b"" if reply.has_error() else unpack(reply.content)
    except CodecError:
        payload = b""
    return Left(reply.metadata.group_id, stage_of(reply.metadata.message_type), node, payload, frame)


@dataclass
class Recorded:
    """A run that is over."""

    directory: Path
    world: SimulationSetup
    fleet: SimulatedDevices
    left: list[Left]  # by the tap
    sent: list[Sent]  # by the wire log

    def whole(self) -> list[Message]:
        """The recorded messages, as Flower reads them."""
        return [message_from_proto(MessageProto.FromString(s.message or b"")) for s in self.sent]

    def haystack(self) -> Haystack:
        """Everything that left, by either record."""
        frames = [left.frame for left in self.left] + [s.message or b"" for s in self.sent]
        return Haystack(frames)


Leak = Callable[[SimulatedDevices, int, str, bytes], bytes]
"""(fleet, person, stage, reply) -> what leaves instead. For positive controls."""


def honest(fleet: SimulatedDevices, person: int, stage: str, reply: bytes) -> bytes:
    return reply


def seeded(person: int) -> Entropy:
    return SeededEntropy(SEED, f"agent {person}")


def world_of(base: Path, federation: Federation, **changes: Any) -> SimulationSetup:
    """changes: of the configuration, dots written as double underscores."""
    people = len(federation.people)
    settings = {
        "model.base_model": str(base),
        "federation.rounds": 2,
        "federation.cohort": people,
        "training.local_epochs": 2,
        "training.final_fit_epochs": 2,
    }
    config = RunConfig().changed(settings | {k.replace("__", "."): v for k, v in changes.items()})
    cohort = cohort_size(config, people)
    return SimulationSetup(config, federation, BENCHES, cohort, fleet_policy(config, cohort))


def record(
    directory: Path,
    world: SimulationSetup,
    *,
    entropy: Callable[[int], Entropy] = seeded,
    fault: Fault | None = None,
    leak: Leak = honest,
) -> Recorded:
    """Play `world` from the first round to the last, one client at a time.

    The run's id is fixed: in a simulation it is a digest of everybody's data, in a deployment it is not.
    """
    run_directory.create(directory, world.config)
    fleet = SimulatedDevices(
        world.config, directory, world.federation, world.model_cache, world.cohort, entropy=entropy
    )

    def answer_of(context: Context) -> Answer:
        person = int(context.node_config["partition-id"])
        honestly = fleet.answer_of(context)
        return lambda stage, payload: leak(fleet, person, stage, honestly(stage, payload))

    tap = Tap(build_app(answer_of))
    journal = Journal(directory)
    with MessageRecorder(directory, whole=True) as wire:
        wire.forms({phase: tensors_of(world, phase) for phase in world.phases})
        grid = InProcessGrid(tap, len(fleet), workers=1, recorder=wire.record, fault=fault)  # type: ignore[arg-type]
        try:
            opened = open_run(world, journal, fleet)
            cohort, base = world.cohort, opened.model_signature.digest
            signed = signed_for(fleet.authority, world.config, RUN, base, cohort)
            run = replace(opened, id=RUN, manifest=signed)
            context = Context(
                run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={}
            )
            build_server_app(lambda _: run)(grid, context)
        finally:
            grid.close()
            journal.close()
    return Recorded(directory, world, fleet, tap.left, list(read_wire(directory)))


# --- a search -----------------------------------------------------------------------------------------

SHORTEST = 8  # bytes of a pattern: fewer are found anywhere by chance


class Haystack:
    """Messages, searched for many patterns at once: an index of all their 8-byte windows."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self.messages = list(messages)
        joined = b"".join(message + bytes(SHORTEST) for message in self.messages)
        windows = [
            np.frombuffer(joined, "<u8", (len(joined) - shift) // SHORTEST, shift)
            for shift in range(SHORTEST)
        ]
        self._index = np.unique(np.concatenate(windows))

    def find(self, patterns: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> list[str]:
        """Names of the patterns that are in some message."""
        named = list(patterns.items() if isinstance(patterns, Mapping) else patterns)
        if not named:
            return []
        heads = np.array([np.frombuffer(p[:SHORTEST], "<u8")[0] for _, p in named], "<u8")
        likely = np.isin(heads, self._index)
        return [
            name
            for (name, pattern), seen in zip(named, likely, strict=True)
            if seen and any(pattern in message for message in self.messages)
        ]


def encodings_of_bytes(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """A byte string as it might travel: (name of the encoding, pattern)."""
    for order, data in (("", secret), ("reversed ", secret[::-1])):
        yield f"{order}raw", data
        yield f"{order}hex", data.hex().encode()
        yield f"{order}HEX", data.hex().upper().encode()
        yield f"{order}hex utf-16", data.hex().encode("utf-16-le")
        for shift in range(3):
            yield f"{order}base64 +{shift}", _inside_base64(data, shift, base64.b64encode)
            yield f"{order}base64url +{shift}", _inside_base64(data, shift, base64.urlsafe_b64encode)
        yield f"{order}JSON", json.dumps(list(data))[1:-1].encode()
        yield f"{order}compact JSON", json.dumps(list(data), separators=(",", ":"))[1:-1].encode()


def _inside_base64(data: bytes, shift: int, encode: Callable[[bytes], bytes]) -> bytes:
    """The characters that `data` alone decides when it stands at an offset of 3k + shift."""
    whole = (shift + len(data)) // 3 * 3 - shift
    return encode(bytes(shift) + data[:whole])[(0, 2, 3)[shift] :]


def encodings_of_text(text: str) -> Iterator[tuple[str, bytes]]:
    """A text as it might travel."""
    for charset in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1"):
        yield charset, text.encode(charset)
    yield "JSON", json.dumps(text)[1:-1].encode()
    for name, pattern in encodings_of_bytes(text.encode()):
        yield f"utf-8 {name}", pattern


def encodings_of_numbers(values: Sequence[float] | np.ndarray) -> Iterator[tuple[str, bytes]]:
    """A few numbers in a row as they might travel."""
    vector = np.asarray(values, np.float32)
    for kind in ("<f4", ">f4", "<f8", ">f8", "<f2", ">f2"):
        data = vector.astype(kind).tobytes()
        if len(data) >= SHORTEST:
            yield from ((f"{kind} {name}", pattern) for name, pattern in encodings_of_bytes(data))
    for value in map(float, vector):
        for name, text in (
            ("float32 text", str(np.float32(value))),
            ("float64 text", repr(value)),
            ("%.6f", f"{value:.6f}"),
            ("%.6e", f"{value:.6e}"),
        ):
            if len(text) >= SHORTEST:
                yield name, text.encode()
                yield f"{name} utf-16", text.encode("utf-16-le")


def rows_of(vector: np.ndarray, width: int = 4) -> Iterator[np.ndarray]:
    """Runs of numbers of a vector, none of them a number that stands anywhere (0 or 1)."""
    width = min(width, vector.size)
    for start in range(0, vector.size - width + 1, max(width, 1)):
        row = vector[start : start + width]
        if row.size and not np.isin(row, (0.0, 1.0)).any():
            yield row
