"""A server that plays an attempt as it likes, with colluding devices, and then computes all that it knows.

The devices are real and get real messages. `View` says what one honest device is told: which roster, which
U2, which U3; two devices may be told different things. Colluders share, seal and sign whatever helps. At
unmasking each honest device gets every signature that there is on its own lists.

`Attempt.opened` is what comes of it. A masked vector is the vector plus its self mask and one mask for each
peer of U2. What the server can't derive, from shares at or above the threshold and from the colluders' keys,
is taken as unknown and uniform, as the proof's assumptions have it. A sum of vectors is learned if and only
if all that is unknown cancels in it: devices are nodes, an unknown mask that two of them applied (with
opposite signs) is an edge, one that a single device applied, or an unknown self mask, closes its whole
component. So what is learned is the sum over each component that is not closed, and nothing else. Each such
sum is also really computed, and compared with the plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from support.scene import Scene, identity

from penchant.client import secagg
from penchant.client.secagg import Keyed, Participant, SecAggPolicy, SharesDealt
from penchant.common.crypto.keys import AgreementKey, Verifier, open_sealed
from penchant.common.crypto.masks import Ring, expand
from penchant.common.crypto.shamir import Combiner
from penchant.common.errors import PenchantError
from penchant.common.secagg.transcript import (
    confirmation_text,
    pair_mask_key,
    roster_digest,
    sealed_for,
    self_mask_key,
)
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import (
    SEALED,
    SHARE,
    Confirmation,
    Confirmations,
    Delivery,
    Entry,
    Masked,
    Roster,
    Shares,
    Survivors,
    Unmasking,
)

WORDS = 2
Devices = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """What a device is told. Devices by number, ascending."""

    roster: Devices
    sharers: Devices  # U2
    survivors: Devices  # U3


@cache
def keyed(n: int, colluders: int, min_honest: int) -> Scene:
    """n devices that have advertised their keys, under a policy of so many colluders."""
    scene = Scene(n, policy=SecAggPolicy(min_honest, colluders), words=WORDS)
    for node in range(n):
        scene.tell("keys", node, encode(scene.announce))
    return scene


@dataclass
class Attempt:
    """One attempt. The last `bad` devices work with the server; the others' owners allow for `colluders`."""

    n: int
    colluders: int
    bad: int
    views: Mapping[int, View]  # of each honest device
    verify: Verifier | None = None  # how devices verify, if not as they should
    min_honest: int = 1
    participants: Mapping[int, type[Participant]] = field(default_factory=dict)  # who is not as it should be
    refused: dict[int, PenchantError] = field(default_factory=dict)
    unmasked: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        stage = keyed(self.n, self.colluders, self.min_honest)
        self.scene = replace(stage, states=dict(stage.states), sent={})
        if self.verify is not None:
            self.scene.devices = [replace(device, verify=self.verify) for device in self.scene.devices]
        for u, kind in self.participants.items():
            device = self.scene.devices[u]
            other = kind(device.identity, device.membership, device.policy, device.verify)
            self.scene.devices = [other if node == u else one for node, one in enumerate(self.scene.devices)]
        self.keyed = {node: self._keyed(state) for node, state in stage.states.items()}
        self.entries = [decode(stage.sent["keys"][node], Entry) for node in range(self.n)]
        self.context = self.keyed[0].info.context
        self.honest = range(self.n - self.bad)
        self.rosters = {u: Roster(tuple(self.entries[v] for v in self.views[u].roster)) for u in self.honest}
        self.digests = {u: roster_digest(self.rosters[u]) for u in self.honest}
        self.sealed: dict[tuple[bytes, int, int], bytes] = {}  # (roster, from, to)
        self.spies: dict[tuple[bytes, int], SharesDealt] = {}  # (roster, colluder) -> its state
        self.masked: dict[int, Ring] = {}
        self.seeds: dict[int, dict[int, bytes]] = {u: {} for u in self.honest}  # owner -> giver -> share
        self.keys: dict[int, dict[int, bytes]] = {u: {} for u in self.honest}
        self._play()

    @staticmethod
    def _keyed(state: secagg.State) -> Keyed:
        if not isinstance(state, Keyed):
            raise TypeError("keys are not advertised")
        return state

    # --- the play ----------------------------------------------------------------------------------------

    def _play(self) -> None:
        for u in self.honest:
            self._each(u, self._share)
        self._spy()
        for u in self.honest:
            self._each(u, self._mask)
        signatures: dict[bytes, dict[int, bytes]] = {}
        for u in self.honest:
            self._each(u, lambda u: self._confirm(u, signatures))
        for u in self.honest:
            self._each(u, lambda u: self._unmask(u, signatures))

    def _each(self, u: int, step: Callable[[int], None]) -> None:
        """A step of a device that has not refused yet."""
        if u in self.refused:
            return
        try:
            step(u)
        except PenchantError as error:
            self.refused[u] = error

    def _share(self, u: int) -> None:
        reply = self.scene.tell("shares", u, encode(self.rosters[u]))
        peers = [v for v in self.views[u].roster if v != u]
        for v, one in zip(peers, decode(reply, Shares).sealed, strict=True):
            self.sealed[self.digests[u], u, v] = one

    def _spy(self) -> None:
        """Colluders share under every roster that is going about, and open what was sealed for them."""
        for u in self.honest:
            digest, roster = self.digests[u], self.views[u].roster
            for spy in (v for v in roster if v not in self.honest):
                if (digest, spy) not in self.spies:
                    with suppress(PenchantError):
                        self._join(spy, digest, roster, self.rosters[u])
                state = self.spies.get((digest, spy))
                one = self.sealed.get((digest, u, spy))
                if state is not None and one is not None:
                    a, b = roster.index(u), roster.index(spy)
                    opened = open_sealed(state.openers[a], one, sealed_for(self.context, digest, a, b))
                    self.seeds[u][spy], self.keys[u][spy] = opened[:SHARE], opened[SHARE:]

    def _join(self, spy: int, digest: bytes, devices: Devices, roster: Roster) -> None:
        device, entropy = self.scene.devices[spy], self.scene.entropy[spy]
        state, reply = device.share(self.keyed[spy], encode(roster), entropy)
        self.spies[digest, spy] = state
        peers = [v for v in devices if v != spy]
        for v, one in zip(peers, decode(reply, Shares).sealed, strict=True):
            self.sealed[digest, spy, v] = one

    def _mask(self, u: int) -> None:
        view, digest = self.views[u], self.digests[u]
        sealed = [self.sealed.get((digest, v, u), bytes(SEALED)) for v in view.sharers if v != u]
        delivery = Delivery(self._indices(u, view.sharers), tuple(sealed))
        reply = self.scene.tell("masked", u, encode(delivery))
        self.masked[u] = np.frombuffer(decode(reply, Masked).vector, "<u4")

    def _confirm(self, u: int, signatures: dict[bytes, dict[int, bytes]]) -> None:
        view = self.views[u]
        named = Survivors(self._indices(u, view.sharers), self._indices(u, view.survivors))
        reply = self.scene.tell("confirm", u, encode(named))
        signatures.setdefault(self._text(u), {})[u] = decode(reply, Confirmation).signature

    def _unmask(self, u: int, signatures: Mapping[bytes, Mapping[int, bytes]]) -> None:
        text, view = self._text(u), self.views[u]
        signed = {v: signatures[text][v] for v in view.survivors if v in signatures.get(text, {})}
        signed |= {v: identity(v + 1).sign(text) for v in view.survivors if v not in self.honest}
        if self.verify is not None:  # whoever checks nothing takes anything
            signed |= {v: bytes(64) for v in view.survivors if v not in signed}
        signers = tuple(sorted(signed))
        given = Confirmations(self._indices(u, signers), tuple(signed[v] for v in signers))
        reply = decode(self.scene.tell("unmask", u, encode(given)), Unmasking)
        self.unmasked.add(u)
        alive = [v for v in view.sharers if v in view.survivors]  # all of U3, where the device checks U3
        lost = [v for v in view.sharers if v not in view.survivors]
        for held, peers, shares in (
            (self.seeds, alive, reply.seed_shares),
            (self.keys, lost, reply.key_shares),
        ):
            for v, share in zip(peers, shares, strict=True):
                if v in self.honest and self.digests[v] == self.digests[u]:
                    held[v][u] = share

    def _indices(self, u: int, devices: Iterable[int]) -> tuple[int, ...]:
        """Places in the roster that `u` was told."""
        return tuple(self.views[u].roster.index(v) for v in devices)

    def _text(self, u: int) -> bytes:
        view = self.views[u]
        lists = self._indices(u, view.sharers), self._indices(u, view.survivors)
        return confirmation_text(self.context, self.digests[u], *lists)

    # --- what comes of it --------------------------------------------------------------------------------

    def threshold(self, u: int) -> int:
        """t of the roster that `u` was told, as devices compute it."""
        return secagg.threshold(len(self.views[u].roster))  # type: ignore[attr-defined]  # tests replace it

    def _rebuilt(self, u: int, shares: Mapping[int, bytes]) -> bytes | None:
        """A secret of `u`, if the server has shares enough."""
        if len(shares) < self.threshold(u):
            return None
        chosen = sorted(shares)[: self.threshold(u)]
        points = [self.views[u].roster.index(v) + 1 for v in chosen]
        return Combiner(points).combine([shares[v] for v in chosen])

    def opened(self) -> list[tuple[int, ...]]:
        """The sets of honest devices whose sums the server learns; each is checked to be the plain sum."""
        keys = {u: self._rebuilt(u, self.keys[u]) for u in self.honest}
        rest = {u: self.masked[u].copy() for u in self.masked}
        closed: set[int] = set()
        unknown: dict[tuple[bytes, int, int], list[int]] = {}
        for u in self.masked:
            seed = self._rebuilt(u, self.seeds[u])
            if seed is None:
                closed.add(u)
            else:
                place = self.views[u].roster.index(u)
                rest[u] -= expand(self_mask_key(seed, self.context, self.digests[u], place), WORDS)
            for v in self.views[u].sharers:
                if v != u and not self._without(u, v, keys, rest[u]):
                    unknown.setdefault((self.digests[u], min(u, v), max(u, v)), []).append(u)
        closed |= {users[0] for users in unknown.values() if len(users) == 1}
        pairs = [(users[0], users[1]) for users in unknown.values() if len(users) == 2]
        found = [part for part in components(sorted(rest), pairs) if not closed & set(part)]
        for part in found:
            self._check_sum(part, rest)
        return found

    def _without(self, u: int, v: int, keys: Mapping[int, bytes | None], rest: NDArray[np.uint32]) -> bool:
        """Take the mask of `u` and `v` off what is left of `u`'s vector, if a private key of one is known."""
        private, other = keys.get(u), v
        if v not in self.honest:
            private, other = self.keyed[v].mask_private, u
        elif private is None:
            private, other = keys.get(v), u
        if private is None:
            return False
        roster = self.views[u].roster
        agreed = AgreementKey(private).agree(self.entries[other].mask_key)
        key = pair_mask_key(agreed, self.context, self.digests[u], roster.index(u), roster.index(v))
        mask = expand(key, WORDS)
        rest += -mask if u > v else mask
        return True

    def _check_sum(self, part: tuple[int, ...], rest: Mapping[int, Ring]) -> None:
        learned = np.sum([rest[u] for u in part], axis=0, dtype=np.uint32)
        plain = np.sum([self.scene.vectors[u] for u in part], axis=0, dtype=np.uint32)
        if (learned != plain).any():
            raise AssertionError("the accounting is wrong: this is not what the masks leave")


def components(nodes: Iterable[int], edges: Iterable[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The connected components of a graph."""
    parts = {node: {node} for node in nodes}
    for a, b in edges:
        if parts[a] is not parts[b]:
            parts[a] |= parts[b]
            parts |= dict.fromkeys(parts[b], parts[a])
    return sorted({tuple(sorted(part)) for part in parts.values()})
