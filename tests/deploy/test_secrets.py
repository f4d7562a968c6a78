"""Secrets stay where they belong: in the agent. A search for canaries in everything else that a run leaves.

Canaries are texts in every preference, a personal factor that training leaves as it is, keys, and all that
devices draw or quantise. They are looked for in logs, output, errors, `repr`, Flower's contexts, the server's
files and, while an attempt is open, on the device's own disk. What travels is searched in
tests/deploy/test_audit_record.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import logging
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fleet_scene import BENCHES, STAGES, FleetScene
from support.recorded_run import (
    Haystack,
    encodings_of_bytes,
    encodings_of_numbers,
    encodings_of_text,
    rows_of,
    some_people,
    some_person,
    texts_of,
    world_of,
)
from support.scene import identity

from penchant.client.agent.agent import Agent
from penchant.client.agent.open_attempt import SealedAttempts
from penchant.client.agent.owner import Choices
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.trainer import LocalTrainer
from penchant.client.secagg import Confirmed, Done, Keyed, Masking, SharesDealt, Unmasked
from penchant.client.vault.vault import Vault
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.errors import PenchantError
from penchant.common.secagg.update_vector import Contribution, UpdateLayout
from penchant.common.wire.codec import encode
from penchant.common.wire.messages import Abort, AbortCode, Announce, Collect, Finished, Hello, Kind
from penchant.deploy import run_directory
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.report import write_report
from penchant.deploy.simulation import runner
from penchant.deploy.simulation.devices import SimulatedDevices

log = logging.getLogger("penchant.tests")

PEOPLE = 5
WITNESS = "all that is logged is heard"
Patterns = list[tuple[str, bytes]]
SHORTEST_TEXT = 9  # characters of a number: pictures hold many shorter ones


# --- canaries -------------------------------------------------------------------------------------


def own_factor(size: int, person: int) -> Any:
    """Numbers that are nowhere else, float32 [size]."""
    return (7.32918 + np.random.default_rng([77, person]).random(size)).astype(np.float32)


def keep_factor(home: Path, run: bytes, vector: Any) -> None:
    """The device comes from a round that stands, with this factor of its own."""
    vault = Vault(home)
    vault.stage(run, 0, 0, vector)
    vault.settle(run, [(0, 0)])


class Drawing:
    """A device's generator, which remembers what it gave."""

    def __init__(self, person: int, drawn: list[bytes]) -> None:
        self._inner = SeededEntropy(b"the seed of secrets", f"{person}")
        self._drawn = drawn

    def draw(self, count: int) -> bytes:
        self._drawn.append(self._inner.draw(count))
        return self._drawn[-1]


def of_bytes(name: str, secrets: Iterable[bytes]) -> Patterns:
    return [(f"{name}, {how}", pattern) for s in secrets for how, pattern in encodings_of_bytes(s)]


def of_texts(people: Iterable[Any]) -> Patterns:
    pairs = [pair for person in people for pair in (*person.train, *person.validation)]
    texts = {text.strip() for pair in pairs for text in texts_of(pair)}
    return [(f"preference, {how}", pattern) for text in texts for how, pattern in encodings_of_text(text)]


def of_numbers(name: str, vectors: Iterable[Any]) -> Patterns:
    return [
        (f"{name}, {how}", pattern)
        for vector in vectors
        for row in rows_of(vector)
        for how, pattern in encodings_of_numbers(row)
        if ("text" not in how and "%" not in how) or len(pattern) >= SHORTEST_TEXT
    ]


def found(places: Mapping[str, bytes], patterns: Patterns) -> list[str]:
    """Which canary is where; empty is well."""
    names = set(Haystack(places.values()).find(patterns))
    hits = [(name, pattern) for name, pattern in patterns if name in names]
    return sorted({f"{name} in {place}" for name, p in hits for place, data in places.items() if p in data})


# --- a whole simulated federation -------------------------------------------------------------------


@dataclass
class Federation:
    """A run that is over, and what it must not have told."""

    directory: Path
    secrets: Patterns
    logs: str
    output: str
    grids: list[InProcessGrid] = field(default_factory=list)
    fleets: list[SimulatedDevices] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)  # contributions and outcomes of training


@pytest.fixture(scope="module")
def federation(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """`penchant simulate` as it is, report and all, at the most talkative log level."""
    world = world_of(
        tiny_model("bert"),
        some_people(PEOPLE),
        training__lr_personal=0.0,
        training__final_fit_lr=0.0,
        adapter__share="A",
    )
    directory = tmp_path_factory.mktemp("secrets") / "run"
    run_directory.create(directory, world.config)
    size = BENCHES.of(world.config.plan("main", PEOPLE)).split.personal.size
    for i in range(PEOPLE):
        keep_factor(directory / "agents" / f"{i:06d}", world.run, own_factor(size, i))
    drawn: list[bytes] = []
    vectors: list[Any] = []
    run = Federation(directory, [], "", "")

    class WatchedFleet(SimulatedDevices):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings, entropy=lambda i: Drawing(i, drawn))
            run.fleets.append(self)

    class WatchedGrid(InProcessGrid):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            run.grids.append(self)

    with pytest.MonkeyPatch.context() as patch, talkative() as (logs, output):
        patch.setattr(runner, "SimulatedDevices", WatchedFleet)
        patch.setattr(runner, "InProcessGrid", WatchedGrid)
        patch.setattr(UpdateLayout, "quantise", remembering(UpdateLayout.quantise, run.made, vectors))
        patch.setattr(LocalTrainer, "train", remembering(LocalTrainer.train, [], run.made))
        patch.setattr(InThisProcess, "work", remembering(InThisProcess.work, run.made, run.made))
        runner.simulate(world, directory, command="test", write_report=write_report)
    run.logs, run.output = logs.getvalue(), output.getvalue()
    (fleet,) = run.fleets
    certified = vars(fleet)["_certified"]
    agents = [fleet.agent(i) for i in range(PEOPLE)]
    run.secrets = [
        *of_texts(world.federation.people),
        *of_numbers("personal factor", (own_factor(size, i) for i in range(PEOPLE))),
        *of_bytes("identity key", (private for private, _ in certified)),
        *of_bytes("device secret", (vars(agent)["_secret"] for agent in agents)),
        *of_bytes("drawn bytes", (chunk for draw in drawn for chunk in parts(draw))),
        *of_bytes("one device's vector", (chunk for v in vectors if v.any() for chunk in update_of(v))),
    ]
    return run


def remembering(function: Callable[..., Any], given: list[Any], made: list[Any]) -> Callable[..., Any]:
    """The method, which also notes its first argument and what it returns."""

    def call(self: Any, *args: Any, **settings: Any) -> Any:
        given.append(args[0])
        made.append(function(self, *args, **settings))
        return made[-1]

    return call


def parts(drawn: bytes) -> Iterator[bytes]:
    """A draw in pieces: some are many secrets in one."""
    return (drawn[at : at + 32] for at in range(0, len(drawn) - 15, 32))


def update_of(vector: Any) -> Iterator[bytes]:
    """Four numbers in a row of a quantised update, where they are no small ones that stand anywhere."""
    for at in range(0, vector.size - 4, 4):
        row = vector[at : at + 4]
        if (np.abs(row.view(f"<i{row.itemsize}")) > 1000).all():
            yield row.tobytes()


@contextlib.contextmanager
def talkative() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Everything that anybody logs or prints, down to DEBUG, tracebacks included."""
    logs, output = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(logs)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)r"))
    root, level, disabled = logging.getLogger(), logging.getLogger().level, logging.root.manager.disable
    others = [logging.getLogger(name) for name in ("flwr", "penchant")]
    levels = [other.level for other in others]
    logging.disable(logging.NOTSET)
    root.addHandler(handler)
    for logger in (root, *others):
        logger.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            log.debug(WITNESS)  # whether others say anything depends on what was imported before
            yield logs, output
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        logging.disable(disabled)
        for other, before in zip(others, levels, strict=True):
            other.setLevel(before)


def files(directory: Path, *, but: str = "") -> dict[str, bytes]:
    """Every file under a directory, those of SQLite and hidden ones too."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and (not but or path.relative_to(directory).parts[0] != but)
    }


def test_no_secret_is_among_the_servers_files(federation: Federation) -> None:
    servers = files(federation.directory, but="agents")
    assert {"config.toml", "journal.db", "wire.db", "result.json", "report.html"} <= set(servers)
    assert any(name.startswith("checkpoints/") for name in servers)
    assert found(servers, federation.secrets) == []


def test_no_secret_is_logged_or_printed(federation: Federation) -> None:
    told = {"logs": federation.logs.encode(), "output": federation.output.encode()}
    assert found(told, federation.secrets) == []
    assert f"DEBUG {WITNESS}" in federation.logs


def test_flowers_contexts_stay_empty(federation: Federation) -> None:
    (grid,) = federation.grids
    contexts = vars(grid)["_contexts"].values()
    assert len(contexts) == PEOPLE
    assert all(len(context.state) == 0 for context in contexts)
    shown = {str(context.node_id): repr(context).encode() for context in contexts}
    assert found(shown, federation.secrets) == []


def test_no_secret_is_in_the_repr_of_anything_that_is_left(federation: Federation) -> None:
    things = penchants([*federation.fleets, *federation.grids])
    kinds = {"Agent", "Vault", "Identity", "Choices", "Preference", "Membership", "RewardModel"}
    assert kinds <= names(things)
    assert found(shown(things), federation.secrets) == []


def test_no_secret_is_in_the_repr_of_what_training_made(federation: Federation) -> None:
    things = penchants(federation.made)
    assert {"Contribution", "Outcome", "Job", "Counts"} <= names(things)
    assert found(shown(things), federation.secrets) == []


def test_the_search_finds_what_is_where_it_belongs(federation: Federation) -> None:
    """Controls: the personal factor in the agent's own folder, and each kind of canary where planted."""
    hits = found(files(federation.directory / "agents"), federation.secrets)
    assert {hit.split(",")[0] for hit in hits} == {"personal factor"}
    kinds = {name.split(",")[0] for name, _ in federation.secrets}
    assert kinds == {
        "preference",
        "personal factor",
        "identity key",
        "device secret",
        "drawn bytes",
        "one device's vector",
    }
    for kind in kinds:
        of_kind = [(name, pattern) for name, pattern in federation.secrets if name.startswith(kind)]
        for name, pattern in (of_kind[0], of_kind[len(of_kind) // 2], of_kind[-1]):
            places = {"a": b"some words" + pattern + b"!", "b": b""}
            assert f"{name} in a" in found(places, federation.secrets)


def test_the_personal_factor_was_a_canary_to_the_end(federation: Federation) -> None:
    """Training left it as it was, or the search would have looked for something else."""
    for i in range(PEOPLE):
        latest = Vault(federation.directory / "agents" / f"{i:06d}").latest()
        assert latest is not None
        assert latest[1].round == 3
        assert (latest[1].vector == own_factor(latest[1].vector.size, i)).all()


# --- what can be reached ----------------------------------------------------------------------------

PLAIN = (str, bytes, int, float, bool, type(None), np.ndarray, type, type(sys))


def penchants(roots: Iterable[Any]) -> list[Any]:
    """Every object of this project's own types that can be reached from some, through whatever holds it."""
    seen: dict[int, Any] = {}
    waiting = deque(roots)
    while waiting:
        thing = waiting.popleft()
        if id(thing) in seen or isinstance(thing, PLAIN):
            continue
        seen[id(thing)] = thing
        waiting.extend(parts_of(thing))
    return [
        thing
        for thing in seen.values()
        if any(kind.__module__.startswith("penchant.") for kind in type(thing).__mro__)
    ]


def parts_of(thing: Any) -> Iterator[Any]:
    home = type(thing).__module__
    if isinstance(thing, Mapping):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from thing
    elif callable(thing) and getattr(thing, "__closure__", None):
        yield from (cell.cell_contents for cell in thing.__closure__)
    elif home.split(".")[0] in ("torch", "transformers", "tokenizers", "peft", "threading", "_thread"):
        return
    else:
        yield from vars(thing).values() if hasattr(thing, "__dict__") else ()
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        yield from (getattr(thing, name) for name in slots if hasattr(thing, name))
        if hasattr(thing, "__self__"):
            yield thing.__self__


def names(things: Iterable[Any]) -> set[str]:
    return {type(thing).__name__ for thing in things}


def shown(things: Iterable[Any]) -> dict[str, bytes]:
    """Class -> what `repr`, `str` and `format` show of its instances; longer arrays too."""
    texts: dict[str, list[str]] = {}
    with np.printoptions(threshold=sys.maxsize, precision=9):
        for thing in things:
            texts.setdefault(type(thing).__name__, []).append(f"{thing!r} {thing!s} {thing}")
    return {name: " ".join(text).encode(errors="replace") for name, text in texts.items()}


# --- an open attempt --------------------------------------------------------------------------------

N = 4
RUN = b"a run of secrets"


@dataclass
class Open:
    """A fleet in an open attempt, and its secrets."""

    scene: FleetScene
    drawn: list[bytes]

    @property
    def round_secrets(self) -> Patterns:
        return of_bytes("drawn bytes", (chunk for draw in self.drawn for chunk in parts(draw)))

    @property
    def secrets(self) -> Patterns:
        size = self.scene.model_cache.of(self.scene.config.plan("main", N)).split.personal.size
        return [
            *self.round_secrets,
            *of_texts(some_person(i) for i in range(N)),
            *of_numbers("personal factor", (own_factor(size, i) for i in range(N))),
            *of_bytes("identity key", (identity(i + 1).private for i in range(N))),
            *of_bytes("device secret", (vars(agent)["_secret"] for agent in self.scene.agents)),
            *(p for i in range(N) for p in state_secrets(self.scene, i)),
        ]


def state_secrets(scene: FleetScene, i: int) -> Patterns:
    """What is in the state of an open attempt and marked as not to be shown."""
    kept = vars(scene.open_attempts[i])["_open"]
    if kept is None:
        return []
    state = kept[1]
    hidden = [getattr(state, f.name) for f in dataclasses.fields(state) if not f.repr]
    flat = [v for value in hidden for v in (value if isinstance(value, tuple) else (value,))]
    return of_bytes("state", (value for value in flat if any(value)))


@pytest.fixture
def opened(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Open]:
    def make(stage: str = "", *, sealed: bool = False) -> Open:
        drawn: list[bytes] = []
        scene = FleetScene(
            tiny_model("bert"),
            tmp_path / (stage or "begin"),
            N,
            entropy=lambda i: Drawing(i, drawn),
            choices=lambda i: Choices(some_person(i).train, some_person(i).validation),
            training__lr_personal=0.0,
            training__final_fit_lr=0.0,
        )
        size = scene.model_cache.of(scene.config.plan("main", N)).split.personal.size
        for i in range(N):
            keep_factor(scene.home(i), RUN, own_factor(size, i))
            if sealed:
                scene.agents[i] = scene.restart(
                    i, open_attempts=SealedAttempts(scene.home(i), bytes([i]) * 32)
                )
        if stage:
            scene.play_to(stage, announce=scene.announce(run=RUN))
        return Open(scene, drawn)

    return make


@pytest.mark.parametrize("stage", [*STAGES[1:], "end"])
def test_round_secrets_of_an_open_attempt_are_not_on_the_devices_disk(
    opened: Callable[..., Open], stage: str
) -> None:
    """Not in the vault, not in SQLite's journal, in no other file."""
    fleet = opened(stage if stage != "end" else "unmask")
    if stage == "end":
        fleet.scene.finish("unmask")
    assert all(fleet.scene.is_open(i) == (stage != "end") for i in range(N))
    on_disk = files(fleet.scene.directory)
    secrets = fleet.round_secrets + [p for i in range(N) for p in state_secrets(fleet.scene, i)]
    assert secrets
    assert found(on_disk, secrets) == []
    size = fleet.scene.model_cache.of(fleet.scene.config.plan("main", N)).split.personal.size
    own = of_numbers("personal factor", [own_factor(size, 0)])
    assert found(on_disk, own)  # the search reaches this disk


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_simulations_sealed_attempts_show_no_secret_and_are_gone_after_the_round(
    opened: Callable[..., Open], stage: str
) -> None:
    fleet = opened(stage, sealed=True)
    on_disk = files(fleet.scene.directory)
    assert sum(name.endswith("attempt.sealed") for name in on_disk) == N
    assert found(on_disk, fleet.round_secrets) == []
    for i in range(N):
        fleet.scene.ask(stage, i, b"")
    assert not [name for name in files(fleet.scene.directory) if "attempt" in name]


@pytest.mark.parametrize("stage", ["", *STAGES[1:]])
def test_no_secret_is_in_the_repr_of_anything_that_an_agent_holds(
    opened: Callable[..., Open], stage: str
) -> None:
    fleet = opened(stage)
    scene = fleet.scene
    asked = scene.announce(run=RUN, attempt=9)
    task = [agent._loaded(asked, *agent._allowed(asked)) for agent in scene.agents]
    participants = [vars(Agent)["_participant"](agent, scene.policy) for agent in scene.agents]
    vaults = [Vault(scene.home(i)).personal(RUN) for i in range(N)]
    things = penchants([*scene.agents, *scene.open_attempts, task, participants, vaults])
    held = {"shares": "Keyed", "masked": "SharesDealt", "confirm": "Masking", "unmask": "Confirmed"}
    expected = {"Agent", "Vault", "Participant", "Personal", "Plan", "_Task", "Announce"}
    assert expected | {held.get(stage, "Agent")} <= names(things)
    assert found(shown(things), fleet.secrets) == []


def test_a_contribution_shows_nothing_of_what_it_holds() -> None:
    contribution = Contribution(np.full(4, 7.3291846, np.float32), 12345, 7.3291846, 54321, 67890)
    assert repr(contribution) == "Contribution(in_histogram=False)"


# --- errors -----------------------------------------------------------------------------------------


def provoked(scene: FleetScene) -> Iterator[tuple[str, bytes]]:
    """One message for each kind of refusal and stage, as far as a server can make one."""
    honest = scene.announce(run=RUN)
    for changes in (
        {"factors": b""},
        {"base": bytes(32)},
        {"kind": Kind.PLAIN},
        {"ring": 64},
        {"plan": b"{}"},
        {"plan": scene.plan(model__base_model="elsewhere")},
        {"plan": scene.plan(training__refit_epochs=1001)},
        {"plan": scene.plan(adapter__target_modules=["nowhere"])},
        {"list_digest": bytes(32)},
        {"round": 0, "attempt": 0},
    ):
        yield "keys", encode(replace(honest, **changes))  # type: ignore[arg-type]
    yield "keys", encode(scene.announce(run=RUN, base=bytes(32)))  # and signed for it
    for stage in (*STAGES, "status", "nowhere"):
        yield stage, b"noise"
        yield stage, encode(Abort(AbortCode.MALFORMED))
        yield stage, encode(Hello(RUN, ())) + b"!"
        yield stage, encode(Collect(bytes(32)))


def test_no_secret_is_in_any_error_or_its_traceback(
    opened: Callable[..., Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every refusal that a server can provoke in every stage, and failures inside the agent with secrets at
    hand: neither the error nor what it came from says one; nor do logs, nor what the owner is told."""
    raised: list[str] = []
    honest_refusal = vars(Agent)["_refuse"]

    def refuse(agent: Agent, *told: Any, **how: Any) -> Any:
        error = sys.exception()
        for one in (error, getattr(error, "why", None)):  # what was not admitted wraps why
            raised.append("".join(traceback.format_exception(one)) if one else "")
        return honest_refusal(agent, *told, **how)

    monkeypatch.setattr(Agent, "_refuse", refuse)
    with talkative() as (logs, output):
        fleets = [opened(stage) for stage in ("", *STAGES[1:])]
        for fleet in fleets:
            scene = fleet.scene
            kept = vars(scene.open_attempts[0])["_open"]
            for stage, payload in provoked(scene):
                if kept is not None:
                    scene.open_attempts[0].keep(*kept)
                scene.tell(stage, 0, payload)
    kinds = {match for text in raised for match in re.findall(r"errors\.(\w+): ", text)}
    expected = {"CodecError", "StageError", "PolicyRefusal", "AgreementError", "ConfigError"}
    assert expected | {"BaseModelError", "MembershipError"} <= kinds
    told = "\n".join(" ".join(row) for fleet in fleets for row in fleet.scene.agents[0].reasons())
    texts = {"errors": "\n".join(raised), "logs": logs.getvalue(), "output": output.getvalue(), "told": told}
    secrets = [pattern for fleet in fleets for pattern in fleet.secrets]
    assert found({name: text.encode() for name, text in texts.items()}, secrets) == []


@pytest.mark.parametrize("where", ["prepare", "train", "quantise", "stage"])
def test_an_error_that_holds_a_secret_tells_it_to_nobody(
    opened: Callable[..., Open], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A library fails with a person's text in its message: no text leaves, the owner hears the type."""
    fleet = opened("masked")
    scene = fleet.scene
    secret = texts_of(some_person(0).train[0])[0]

    def fails(*_: object, **__: object) -> None:
        raise ValueError(f"can't read {secret!r}")

    place = {
        "prepare": "penchant.common.model.reward.RewardModel.prepare",
        "train": "penchant.client.learning.trainer.LocalTrainer.train",
        "quantise": "penchant.common.secagg.update_vector.UpdateLayout.quantise",
        "stage": "penchant.client.vault.vault.Vault.stage",
    }[where]
    monkeypatch.setattr(place, fails)
    with talkative() as (logs, output):
        reply = scene.tell("masked", 0, scene.requests[0])
    if where in ("prepare", "train"):  # zeros leave in place of what it was to make
        assert len(reply) > len(encode(Abort(AbortCode.INTERNAL)))
        assert scene.reason(0) == ("masked", "NOTHING", "the work failed: ValueError")
    else:
        assert len(reply) == len(encode(Abort(AbortCode.INTERNAL)))
        assert scene.reason(0) == ("masked", "INTERNAL", "ValueError")
    told = {"logs": logs.getvalue(), "output": output.getvalue(), "told": str(scene.reason(0))}
    assert found({name: text.encode() for name, text in told.items()}, fleet.secrets) == []


def test_errors_of_this_project_carry_no_bytes_and_no_numbers_of_a_vector() -> None:
    """Their texts are written by hand; a subclass that formats its arguments would show up here."""
    for kind in all_kinds(PenchantError):
        assert str(kind("what is wrong")) == "what is wrong"
        assert "__str__" not in vars(kind)


def all_kinds(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for sub in kind.__subclasses__():
        yield from all_kinds(sub)


# --- afterwards -------------------------------------------------------------------------------------


def test_after_a_round_no_state_of_it_is_left_anywhere_in_memory(opened: Callable[..., Open]) -> None:
    fleet = opened("unmask")
    assert states_of(RUN) == {"Confirmed": N}
    fleet.scene.finish("unmask")
    assert states_of(RUN) == {}
    assert not any(vars(agent)["_work"] for agent in fleet.scene.agents)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_of_a_round_that_stands_without_the_device_no_state_is_left(
    opened: Callable[..., Open], stage: str
) -> None:
    """It was not asked any further, and the next greeting says that this round, or a later one, is over."""
    fleet = opened(stage)
    for i in range(N):
        fleet.scene.tell("status", i, encode(Hello(RUN, ())))
        fleet.scene.tell("status", i, encode(Hello(RUN[::-1], (Finished(1, 1),))))
    assert sum(states_of(RUN).values()) == N
    for i in range(N):
        fleet.scene.tell("status", i, encode(Hello(RUN, (Finished(1 + i % 2, 1),))))
    assert states_of(RUN) == {}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_after_a_refusal_no_state_of_the_round_is_left_anywhere_in_memory(
    opened: Callable[..., Open], stage: str
) -> None:
    fleet = opened(stage)
    assert sum(states_of(RUN).values()) == N
    for i in range(N):
        fleet.scene.ask(stage, i, b"")
    assert states_of(RUN) == {}


STATES = (Keyed, SharesDealt, Masking, Confirmed, Unmasked, Done)


def states_of(run: bytes) -> dict[str, int]:
    """How many states of a run's attempts are alive, by class."""
    gc.collect()
    counts: dict[str, int] = {}
    for thing in gc.get_objects():
        if type(thing) in STATES and thing.info.run == run:
            counts[type(thing).__name__] = counts.get(type(thing).__name__, 0) + 1
    return counts


def test_an_announcement_shows_no_factors() -> None:
    announce = Announce(Kind.SECAGG, RUN, 1, 1, 3, 32, 3, bytes(32), b"{}", (), b"", b"", b"factors of a run")
    assert "factors" not in repr(announce)
