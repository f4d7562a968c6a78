"""A stage for tests of secure aggregation: a small fleet, an honest server, and room for villains.

Everything is seeded, every message is real bytes. `Scene.run` plays a whole attempt with silent or lying
devices; `Scene.play_to` stops before a stage, so that a test can send what it likes to whom it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.client.agent.policy import MOST_COUNTED
from penchant.client.secagg import Participant, SecAggPolicy, State
from penchant.common.config import Plan, RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import SignatureCache
from penchant.common.crypto.masks import Ring, ring_type
from penchant.common.errors import PenchantError
from penchant.common.membership.identity import Authority, Identity, Membership
from penchant.common.membership.manifest import LAST_DAY, RunManifest, day_of, promised, sign_run
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Abort, Announce, Kind, abort_code
from penchant.server.run_manifest import manifest_of
from penchant.server.secagg.aggregation import Aggregate, MemoryRecords, Take
from penchant.server.secagg.secure import SecureAggregation

SEED = b"the seed of all tests"
NOW = 1_800_000_000
RUN = bytes(range(16))
LENIENT = SecAggPolicy(min_honest=1, max_colluders=0)
VERIFY = SignatureCache()
UNLIMITED = dict.fromkeys(
    ("rounds_a_day", "runs_a_month", "attempts_a_round", "attempts_a_day"), MOST_COUNTED
)
"""Owners' limits for tests that play more rounds than people's devices do."""


@cache
def authority() -> Authority:
    return Authority.create(SeededEntropy(SEED, "authority"))


@cache
def identity(number: int) -> Identity:
    """Member `number` of the fleet, the same in every test."""
    private = SeededEntropy(SEED, f"identity {number}").draw(32)
    return Identity(private, authority().issue(number, Identity.public_of(private)))


@cache
def membership(n: int, number: int = 1, revoked: tuple[int, ...] = ()) -> Membership:
    """Members 1..n under list `number`, valid around NOW."""
    listed = authority().publish(
        number,
        [identity(i).certificate for i in range(1, n + 1)],
        revoked=revoked,
        issued=NOW - 1000,
        expires=NOW + 1000,
    )
    return Membership(authority().public_key, verify=VERIFY).accept(listed.encode(), NOW)


def signed_manifest(plans: Sequence[bytes], base: bytes, run: bytes = RUN, **changes: Any) -> bytes:
    """A manifest for these plans, valid around NOW, signed by the authority of all tests; then changed."""
    read = [Plan.decode(plan) for plan in plans]
    plain = RunManifest(
        run=run,
        base=base,
        rounds=1000,
        warmup=0,
        least_cohort=min(plan.cohort for plan in read),
        least_group=max(read[-1].dp_honest, 1),
        unmasked=False,
        first_day=day_of(NOW) - 10,
        last_day=day_of(NOW) + 10,
        plans=tuple(plans),
        privacy=promised(read[-1]),
    )
    return sign_run(authority(), replace(plain, **changes)).encode()


def signed_for(authority: Authority, config: RunConfig, run: bytes, base: bytes, cohort: int) -> bytes:
    """The manifest of a run as its server asks for it, on any day, signed."""
    asked = manifest_of(config, run=run, base=base, cohort=cohort, first_day=0, last_day=LAST_DAY)
    return sign_run(authority, asked).encode()


def announcement(n: int, *, ring: int = 32, words: int = 3, **changes: Any) -> Announce:
    """An announcement for groups of up to `n` (3 at least)."""
    plain = Announce(
        Kind.SECAGG,
        RUN,
        1,
        1,
        max(n, 3),
        ring,
        words,
        bytes(32),
        b"{}",
        (),
        bytes(32),
        b"",
        np.zeros(2, "<f4").tobytes(),
    )
    return replace(plain, **changes)


def vectors(n: int, words: int, ring: int, *, seed: int = 0) -> list[Ring]:
    """For each device a quantised vector; sums of n stay within half the ring."""
    bound = (2 ** (ring - 1) - 1) // n
    rng = np.random.default_rng([seed, n, words])
    return [
        rng.integers(-bound, bound, words, endpoint=True, dtype=np.int64)
        .astype(f"<i{ring // 8}")
        .view(ring_type(ring))
        for _ in range(n)
    ]


def plain_sum(chosen: Iterable[Ring]) -> NDArray[np.int64]:
    """The sum that secure aggregation must give: centred integers, in exact arithmetic."""
    return sum((v.view(f"<i{v.itemsize}").astype(np.int64) for v in chosen), np.int64(0))


def handed_over(replies: Iterable[tuple[int, bytes]], take: Take | None) -> dict[int, bytes]:
    """What an exchange returns: the replies, or nothing where `take` has them one by one as they are made."""
    if take is None:
        return dict(replies)
    for node, reply in replies:
        take(node, reply)
    return {}


class Curtain(Exception):
    """The stage that a test waits for is reached."""


@dataclass
class Scene:
    """One attempt over devices 0..n-1, which are members 1..n."""

    n: int
    policy: SecAggPolicy = LENIENT
    ring: int = 32
    words: int = 3
    group: int = 0  # most devices in a group; 0: all in one
    changes: dict[str, Any] = field(default_factory=dict)  # of the announcement
    label: str = ""  # of the devices' entropy
    states: dict[int, State] = field(default_factory=dict)
    refusals: dict[int, PenchantError] = field(default_factory=dict)
    requests: dict[int, bytes] = field(default_factory=dict)
    sent: dict[str, dict[int, bytes]] = field(default_factory=dict)  # stage -> node -> what the device sent
    journal: MemoryRecords = field(default_factory=MemoryRecords)

    def __post_init__(self) -> None:
        self.members = membership(self.n)
        self.devices = [
            Participant(identity(i + 1), self.members, self.policy, VERIFY) for i in range(self.n)
        ]
        self.entropy = [SeededEntropy(SEED, f"entropy {self.label} {i}") for i in range(self.n)]
        self.vectors = vectors(self.n, self.words, self.ring)
        self.announce = announcement(self.group or self.n, ring=self.ring, words=self.words, **self.changes)
        self.server = SecureAggregation(self.members, VERIFY)

    def tell(self, stage: str, node: int, payload: bytes) -> bytes:
        """Give a device one message; its reply, or its typed error."""
        device, state = self.devices[node], self.states.get(node)
        if stage == "keys":
            after, reply = device.begin(decode(payload, Announce), self.entropy[node], NOW)
        elif stage == "shares":
            after, reply = device.share(state, payload, self.entropy[node])
        elif stage == "masked":
            after, reply = device.mask(state, payload, self.vectors[node])
        elif stage == "confirm":
            after, reply = device.confirm(state, payload)
        else:
            after, reply = device.unmask(state, payload)
        self.states[node] = after
        self.sent.setdefault(stage, {})[node] = reply
        return reply

    def answer(self, stage: str, node: int, payload: bytes) -> bytes:
        """As `tell`, but as an agent answers: an error becomes one abort code and ends the attempt."""
        try:
            return self.tell(stage, node, payload)
        except PenchantError as error:
            self.states.pop(node, None)
            self.refusals[node] = error
            return encode(Abort(abort_code(error)))

    def run(
        self,
        silent: Mapping[str, Iterable[int]] | None = None,
        *,
        lie: Callable[[str, int, bytes], bytes] = lambda stage, node, reply: reply,
        twist: Callable[[str, int, bytes], bytes] = lambda stage, node, request: request,
    ) -> Aggregate:
        """A whole attempt. silent: stage -> devices that send nothing from there on. lie: what a device
        sends instead of its reply. twist: what reaches a device instead of the server's request."""
        gone: set[int] = set()

        def exchange(
            stage: str, requests: Mapping[int, bytes], take: Take | None = None, /
        ) -> dict[int, bytes]:
            gone.update((silent or {}).get(stage, ()))
            replies = (
                (node, lie(stage, node, self.answer(stage, node, twist(stage, node, payload))))
                for node, payload in requests.items()
                if node not in gone
            )
            return handed_over(replies, take)

        return self.server.run(self.announce, range(self.n), exchange, self.journal)

    def play_to(self, stage: str, silent: Mapping[str, Iterable[int]] | None = None) -> Scene:
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

        with suppress(Curtain):
            self.server.run(self.announce, range(self.n), exchange, self.journal)
        return self
