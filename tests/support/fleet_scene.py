"""A stage for tests of whole rounds: a small fleet of real agents, an honest server, and a wire that lies.

`FleetScene.play_to` stops an honest attempt before a stage, so that a test can send what it likes to whom it
likes. `FleetScene.serve` plays the server's own `federate` over the in-process grid, with devices that are
silent, mute or lying, requests that are twisted on their way, and a server that is killed where it hurts.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray
from support.scene import (
    NOW,
    RUN,
    SEED,
    UNLIMITED,
    VERIFY,
    authority,
    handed_over,
    identity,
    membership,
    signed_for,
    signed_manifest,
)
from support.tiny_models import WORDS

from penchant.client.agent.agent import Agent
from penchant.client.agent.flower_app import Answer, build_app
from penchant.client.agent.open_attempt import AttemptsInMemory
from penchant.client.agent.owner import Choices
from penchant.client.agent.policy import OwnerPolicy
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.model_cache import ModelCache
from penchant.client.vault.vault import Vault
from penchant.common.config import Phase, Plan, RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.data.preferences import Preference
from penchant.common.errors import DeviceError
from penchant.common.membership.identity import Identity, Membership
from penchant.common.membership.manifest import phases_of
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.wire.codec import decode, decode_any, encode
from penchant.common.wire.flower import stage_of
from penchant.common.wire.messages import (
    Abort,
    Announce,
    Confirmation,
    Entry,
    Finished,
    Hello,
    Kind,
    Masked,
    Plain,
    Ready,
    Shares,
    Status,
    Unmasking,
)
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.journal import Journal
from penchant.server.noise_terms import settle_noise
from penchant.server.optimizers import ServerState
from penchant.server.round import federate
from penchant.server.run import ServerRun
from penchant.server.secagg.aggregation import Aggregate, Aggregation, MemoryRecords, Record, Take
from penchant.server.secagg.plain import PlainAggregation
from penchant.server.secagg.secure import SecureAggregation

STAGES = ("keys", "shares", "masked", "confirm", "unmask")
REPLIES: dict[str, tuple[type[Any], ...]] = {
    "status": (Status, Abort),
    "keys": (Entry, Ready, Abort),
    "shares": (Shares, Abort),
    "masked": (Masked, Plain, Abort),
    "confirm": (Confirmation, Abort),
    "unmask": (Unmasking, Abort),
}
LENIENT = {  # an owner who allows what there is: what is refused all the same, no policy refuses
    "min_honest": 1,
    "max_colluders": 0,
    "max_epochs": 1000,
    "max_epsilon": 100.0,
    "allow_exact_sums": True,
    "shares": ("*",),
    "modules": ("*",),
    "base_parts": ("*",),
    "any_block": True,
    "max_modules": 10_000,
    "max_rank": 512,
    "max_scale": 4096.0,
    "max_shared": 1 << 31,
    "max_factor_ratio": 1e9,
    "max_head_norm": 1e9,
    "min_tokens": 2,
    "poolings": ("*",),
    "max_normalize": 1000.0,
    "unnormalized": True,
    "optimizers": ("adamw", "sgd"),
    "max_rate": 1e9,
    "min_batch": 1,
    "max_clip": 1e6,
    "max_weight": 1 << 20,
    "min_training_seconds": 0.1,
    "max_training_seconds": 3000.0,
    **UNLIMITED,
}
FIRST_NODE = 1000  # of the in-process grid

Change = Callable[[str, int, bytes], bytes]
"""(stage, device, payload) -> payload: what arrives in the place of what was sent."""

BENCHES = ModelCache()  # one tiny model for all tests


def unchanged(stage: str, device: int, payload: bytes) -> bytes:
    return payload


def some_choices(device: int) -> Choices:
    """Four pairs to learn from and two to judge by, of somebody who likes some words better than others."""
    draw = random.Random(device)
    liking = {word: draw.random() for word in WORDS}
    pairs = []
    for _ in range(6):
        words = sorted(draw.sample(WORDS, 2), key=lambda word: -liking[word])
        pairs.append(Preference(draw.choice(WORDS) + " ", *words))
    return Choices(pairs[:4], pairs[4:])


class Killed(BaseException):
    """The server's process ends here."""


class Curtain(Exception):
    """The stage that a test waits for is reached."""


@dataclass(frozen=True)
class Kill:
    """Where the server dies: in a round's stage (round 0: stage status), "before" its requests leave, "after"
    every device answered them but before a reply is read, or when so many replies have been read."""

    round: int
    stage: str
    when: str | int


class Wire(InProcessGrid):
    """The in-process grid, over which a server can die."""

    def __init__(
        self,
        scene: FleetScene,
        answer: Callable[[Context], Answer],
        silent: Mapping[tuple[int, str], Iterable[int]],
        kill: Kill | None,
    ) -> None:
        super().__init__(build_app(answer), scene.n, workers=1, fault=self._struck)
        self.round = 0  # that is running
        self._out_of_reach = silent
        self._kill = kill
        self._dying: Kill | None = None

    def _struck(self, node: int, kind: str) -> bool:
        stage = stage_of(kind)
        return any(
            node - FIRST_NODE in devices
            and number == self.round
            and STAGES.index(since) <= STAGES.index(stage)
            for (number, since), devices in self._out_of_reach.items()
            if stage in STAGES
        )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        waiting = list(messages)
        self._dying = None
        if waiting:
            place = waiting[0].metadata.group_id.split(".")[0]
            self.round = 0 if place == "status" else int(place)
            stage = stage_of(waiting[0].metadata.message_type)
            if self._kill and (self.round, stage) == (self._kill.round, self._kill.stage):
                self._dying = self._kill
        if self._dying and self._dying.when == "before":
            raise Killed
        ids = list(super().push_messages(waiting))
        if self._dying and self._dying.when == "after":
            self._all(ids)
            raise Killed
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._dying is None:
            return super().pull_messages(message_ids)
        return self._some(list(message_ids), int(self._dying.when))

    def _some(self, ids: list[str], count: int) -> Iterator[Message]:
        yield from self._all(ids)[:count]
        raise Killed

    def _all(self, ids: list[str]) -> list[Message]:
        found: list[Message] = []
        while len(found) < len(ids):
            found += super().pull_messages(ids)
        return sorted(found, key=lambda message: message.metadata.src_node_id)


@dataclass
class Watched:
    """An aggregation that remembers what it gave."""

    inner: Aggregation
    given: list[Aggregate] = field(default_factory=list)

    def run(self, announce: Announce, nodes: Sequence[int], exchange: Any, journal: Any) -> Aggregate:
        self.given.append(self.inner.run(announce, nodes, exchange, journal))
        return self.given[-1]

    def complete(self, records: Iterable[Record]) -> Aggregate:
        self.given.append(self.inner.complete(records))
        return self.given[-1]


class SceneOwner:
    """An owner who may change their mind: each answer is given, or is what a function says when asked."""

    def __init__(self, policy: Any, identity: Any, membership: Membership, choices: Any) -> None:
        self._policy, self._identity = policy, identity
        self._membership, self._choices = membership, choices
        self.asked = Counter[str]()

    def _now(self, name: str, answer: Any) -> Any:
        self.asked[name] += 1
        return answer() if callable(answer) else answer

    def policy(self) -> OwnerPolicy:
        return cast("OwnerPolicy", self._now("policy", self._policy))

    def identity(self) -> Identity | None:
        return cast("Identity | None", self._now("identity", self._identity))

    def membership(self) -> Membership:
        return self._membership

    def choices(self) -> Choices:
        return cast("Choices", self._now("choices", self._choices))


class FleetScene:
    """Devices 0..n-1, which are members 1..n of the fleet of `scene`, each in its own directory.

    policy: what differs from `LENIENT` in every owner's policy. changes: of the run's configuration.
    """

    def __init__(
        self,
        base: Path,
        directory: Path,
        n: int = 4,
        *,
        policy: Mapping[str, Any] | None = None,
        model_cache: ModelCache = BENCHES,
        entropy: Callable[[int], Any] = lambda i: SeededEntropy(SEED, f"agent {i}"),
        choices: Callable[[int], Choices] = some_choices,
        secret: Callable[[int], bytes] = lambda i: SeededEntropy(SEED, f"secret {i}").draw(32),
        ahead: bool = False,
        **changes: Any,
    ) -> None:
        self.n = n
        self.directory = directory
        self.model_cache = model_cache
        self.now = NOW
        settings = {
            "model.base_model": str(base),
            "federation.rounds": 2,
            "federation.cohort": n,
            "federation.attempts": 2,
            "training.local_epochs": 2,
            "training.final_fit_epochs": 2,
        }
        config = RunConfig().changed(settings | {k.replace("__", "."): v for k, v in changes.items()})
        self.config = settle_noise(config, config.federation.cohort, n)
        self.policy = OwnerPolicy(base_models=(str(base),), **(LENIENT | dict(policy or {})))
        self.members = membership(n)
        self._entropy, self._choices, self._secret, self._ahead = entropy, choices, secret, ahead
        self.open_attempts = [AttemptsInMemory() for _ in range(n)]
        self.owners: dict[int, SceneOwner] = {}
        self.agents = [self._agent(i) for i in range(n)]
        self.requests: dict[int, bytes] = {}
        self.sent: dict[str, dict[int, bytes]] = {}  # stage -> device -> its last reply
        self.log: list[tuple[str, int, bytes]] = []  # all (stage, device, reply), in order
        self.watched: list[Aggregate] = []
        self._journals: list[Journal] = []

    # --- devices -----------------------------------------------------------------------------------------

    def _agent(self, i: int, **changes: Any) -> Agent:
        owner: dict[str, Any] = {
            "policy": self.policy,
            "identity": identity(i + 1),
            "membership": self.members,
            "choices": self._choices(i),
        }
        owner |= {name: changes.pop(name) for name in list(changes) if name in owner}
        settings: dict[str, Any] = {
            "workplace": InThisProcess(changes.pop("model_cache", self.model_cache)),
            "secret": self._secret(i),
            "entropy": self._entropy(i),
            "verify": VERIFY,
            "open_attempts": self.open_attempts[i],
            "clock": lambda: self.now,
            "ahead": self._ahead,
        }
        self.owners[i] = SceneOwner(**owner)
        return Agent(Vault(self.home(i)), self.owners[i], **(settings | changes))

    def home(self, i: int) -> Path:
        return self.directory / "agents" / str(i)

    def restart(self, i: int, **changes: Any) -> Agent:
        """The device's process dies and comes back: what was in memory is gone."""
        self.open_attempts[i] = AttemptsInMemory()
        self.agents[i] = self._agent(i, **changes)
        return self.agents[i]

    def personal(self, i: int, run: bytes = RUN) -> tuple[int, NDArray[np.float32]] | None:
        """(round, factor) that the device has committed."""
        kept = Vault(self.home(i)).personal(run)
        return None if kept is None else (kept.round, kept.vector)

    def is_open(self, i: int) -> bool:
        """Whether the device holds the state of an attempt."""
        return bool(vars(self.open_attempts[i])["_open"])

    # --- what a server sends -----------------------------------------------------------------------------

    def announce(
        self, number: int = 1, attempt: int = 1, *, phase: Phase = "main", plan: bytes = b"", **changes: Any
    ) -> Announce:
        """An honest announcement, then changed. plan: another one, with ring, words and factors to fit."""
        chosen = Plan.decode(plan) if plan else self.config.plan(phase, self.n)
        planned = self.model_cache.of(chosen)
        layout = UpdateLayout.of(chosen, planned.split)
        factors, _ = planned.split.initial(chosen.seed)
        honest = Announce(
            kind=Kind.SECAGG,
            run=RUN,
            round=number,
            attempt=attempt,
            group=layout.group,
            ring=layout.ring,
            words=layout.words,
            base=planned.model_signature.digest,
            plan=chosen.encode(),
            finished=tuple(Finished(r, 1) for r in range(1, number)),
            list_digest=self.members.digest,
            manifest=self.manifest(
                chosen,
                changes.get("base", planned.model_signature.digest),
                number,
                run=changes.get("run", RUN),
            ),
            factors=factors.astype("<f4").tobytes(),
        )
        return replace(honest, **changes)

    def manifest(self, plan: Plan, base: bytes, number: int = 1, **changes: Any) -> bytes:
        """A manifest of the scene's authority under which round `number` may ask for `plan`; then changed."""
        last = number if plan.phase == "close" else 1000
        warm = number if plan.phase == "warmup" else 0
        bare = {"rounds": last, "warmup": min(warm, last - 1)} | changes
        phases = phases_of(bare["rounds"], bare["warmup"])
        plans = [replace(plan, phase=phase) for phase in phases]
        return signed_manifest([p.encode() for p in plans], base, **bare)

    def plan(self, **changes: Any) -> bytes:
        """The plan's bytes with dotted keys (written with double underscores) changed to whatever value."""
        table = json.loads(self.config.plan("main", self.n).encode())
        for key, value in changes.items():
            *path, last = key.split("__")
            target = table
            for name in path:
                target = target[name]
            target[last] = value
        return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    # --- talking to one device ---------------------------------------------------------------------------

    def tell(self, stage: str, i: int, payload: bytes) -> bytes:
        """Give a device one message; its reply."""
        reply = self.agents[i].answer(stage, payload)
        self.sent.setdefault(stage, {})[i] = reply
        self.log.append((stage, i, reply))
        return reply

    def ask(self, stage: str, i: int, message: Any) -> Any:
        """As `tell`, with a message and its decoded reply."""
        payload = message if isinstance(message, bytes) else encode(message)
        return decode_any(self.tell(stage, i, payload), REPLIES.get(stage, (Abort,)))

    def greet(self, i: int, finished: Iterable[tuple[int, int]]) -> Status:
        """Tell a device which rounds stand."""
        return decode(
            self.tell("status", i, encode(Hello(RUN, tuple(Finished(*f) for f in finished)))), Status
        )

    def offer(self, i: int, membership: bytes) -> Any:
        """Offer a device a member list; its reply."""
        return decode_any(self.tell("status", i, encode(Hello(RUN, (), membership))), (Status, Abort))

    def reason(self, i: int) -> tuple[str, str, str]:
        """Why the device refused last."""
        return self.agents[i].reasons()[-1]

    # --- an honest attempt, stopped ----------------------------------------------------------------------

    def play_to(
        self, stage: str, silent: Mapping[str, Iterable[int]] | None = None, announce: Announce | None = None
    ) -> FleetScene:
        """Play honestly until the server has its requests for `stage` ready, in `requests`."""

        def exchange(
            now: str, requests: Mapping[int, bytes], take: Take | None = None, /
        ) -> dict[int, bytes]:
            if now == stage:
                self.requests = dict(requests)
                raise Curtain
            quiet = set((silent or {}).get(now, ()))
            told = ((i, self.tell(now, i, payload)) for i, payload in requests.items() if i not in quiet)
            return handed_over(told, take)

        server = SecureAggregation(self.members, VERIFY)
        with suppress(Curtain):
            server.run(announce or self.announce(), range(self.n), exchange, MemoryRecords())
        return self

    def finish(self, stage: str) -> None:
        """Go on from `play_to(stage)` with the requests as they are, in this stage only."""
        for i, payload in self.requests.items():
            self.tell(stage, i, payload)

    # --- whole runs --------------------------------------------------------------------------------------

    def run(self, place: str = "server") -> ServerRun:
        """The server's side, over the journal in `directory / place`."""
        (self.directory / place).mkdir(parents=True, exist_ok=True)
        journal = Journal(self.directory / place)
        self._journals.append(journal)
        aggregation: Aggregation = PlainAggregation()
        if self.config.privacy.secagg:
            aggregation = SecureAggregation(self.members, VERIFY)
        signature = self.model_cache.of(self.config.plan("main", self.n)).model_signature
        cohort = self.config.federation.cohort
        return ServerRun(
            config=self.config,
            id=RUN,
            model_signature=signature,
            cohort=cohort,
            aggregation=Watched(aggregation, self.watched),
            membership=self.members.encoded,
            journal=journal,
            manifest=signed_for(authority(), self.config, RUN, signature.digest, cohort),
        )

    @contextmanager
    def wire(
        self,
        *,
        silent: Mapping[tuple[int, str], Iterable[int]] | None = None,
        mute: Mapping[tuple[int, str], Iterable[int]] | None = None,
        twist: Change = unchanged,
        lie: Change = unchanged,
        kill: Kill | None = None,
    ) -> Iterator[Wire]:
        """A grid to all devices. silent: (round, stage) -> devices that nothing reaches from there to the
        end of the round. mute: whose reply is lost there. twist, lie: what reaches a device, what leaves it.
        """
        lost = {place: set(devices) for place, devices in (mute or {}).items()}

        def answer_of(context: Context) -> Answer:
            i = int(context.node_config["partition-id"])

            def answer(stage: str, payload: bytes) -> bytes:
                reply = lie(stage, i, self.tell(stage, i, twist(stage, i, payload)))
                if i in lost.get((grid.round, stage), ()):
                    raise DeviceError("the connection broke")
                return reply

            return answer

        grid = Wire(self, answer_of, silent or {}, kill)
        try:
            yield grid
        finally:
            grid.close()

    def serve(self, place: str = "server", **wire: Any) -> ServerRun:
        """A server plays (or goes on with) the whole run; it may be `Killed`. Other errors are raised."""
        run = self.run(place)
        with self.wire(**wire) as grid, suppress(Killed):
            federate(run, grid)
        return run

    def close(self) -> None:
        for journal in self._journals:
            journal.close()


@contextmanager
def opened_scenes(base: Path, directory: Path, n: int, **usual: Any) -> Iterator[Callable[..., FleetScene]]:
    """Makes fleets, each in its own directory; `n` and `usual` are what a fleet has unless it is made
    otherwise. Closes them all."""
    made: list[FleetScene] = []

    def make(n: int = n, **settings: Any) -> FleetScene:
        made.append(FleetScene(base, directory / str(len(made)), n, **(usual | settings)))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


def shared_of(run: ServerRun) -> ServerState:
    """The shared state after the last finished round."""
    found = run.journal.load()
    if found is None:
        raise LookupError("no round is finished")
    return found[1]


def states(run: ServerRun) -> list[tuple[int, int, str]]:
    """(round, attempt, state) of all attempts."""
    return [(row.round, row.attempt, row.state) for row in run.journal.rows()]
