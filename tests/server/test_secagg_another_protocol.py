"""Another protocol in the place of secure aggregation: what the interface on either side takes.

The stand-in is the first step on the way to Bonawitz et al.: pairwise masks alone. There are no shares, so
nobody may be lost, and no agreement on who is there. Agents, rounds, journal, grid stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.fleet_scene import FleetScene, shared_of, states

from penchant.client.secagg import Done, Keyed, Participant, Role, SecAggPolicy, SharesDealt
from penchant.common.crypto.entropy import Entropy
from penchant.common.crypto.keys import AgreementKey, Verifier
from penchant.common.crypto.masks import Ring, accumulate
from penchant.common.errors import JournalError, StageError, TooManyDropouts
from penchant.common.membership.identity import Identity, Membership
from penchant.common.secagg.transcript import pair_mask_key, roster_digest
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Announce, Entry, Masked, Roster
from penchant.server.round import federate
from penchant.server.secagg.aggregation import Aggregate, Aggregation, ExchangeWithGroup, Record, RecordStore

N = 4


@dataclass(frozen=True)
class PairwiseRole:
    """The device: keys, then the vector under one mask for each peer. Two stages of five."""

    identity: Identity
    membership: Membership
    policy: SecAggPolicy
    verify: Verifier

    def begin(self, announce: Announce, entropy: Entropy, now: int) -> tuple[Any, bytes]:
        return self._participant.begin(announce, entropy, now)

    def share(self, state: Any, payload: bytes, entropy: Entropy) -> tuple[Any, bytes]:
        raise StageError("there are no shares in this protocol")

    def mask(self, state: Any, payload: bytes, vector: Ring) -> tuple[Done, bytes]:
        if not isinstance(state, Keyed):
            raise StageError("a stage was skipped or repeated")
        roster = decode(payload, Roster)
        me = self._participant._check_roster(state, roster)
        private, digest = AgreementKey(state.mask_private), roster_digest(roster)
        masks: dict[bool, list[bytes]] = {True: [], False: []}
        for peer, entry in enumerate(roster.entries):
            if peer != me:
                agreed = private.agree(entry.mask_key)
                masks[me > peer].append(pair_mask_key(agreed, state.info.context, digest, me, peer))
        masked = vector.copy()
        accumulate(masked, masks[True], masks[False])
        return Done(state.info), encode(Masked(bytes(64), masked.tobytes()))

    def confirm(self, state: Any, payload: bytes) -> tuple[Any, bytes]:
        raise StageError("nothing is confirmed in this protocol")

    def unmask(self, state: Any, payload: bytes) -> tuple[Any, bytes]:
        raise StageError("nothing is left to unmask in this protocol")

    @property
    def _participant(self) -> Participant:
        """Whose checks of announcement and roster serve here as well."""
        return Participant(self.identity, self.membership, self.policy, self.verify)


class PairwiseAggregation:
    """The server: two exchanges, and the masks cancel; whoever is lost costs the attempt."""

    def run(
        self, announce: Announce, nodes: Sequence[int], exchange: ExchangeWithGroup, journal: RecordStore
    ) -> Aggregate:
        keys = self._all("keys", exchange, dict.fromkeys(nodes, encode(announce)))
        entries = {node: decode(reply, Entry) for node, reply in keys.items()}
        ordered = sorted(entries.values(), key=lambda entry: entry.certificate.member)
        masked = self._all("masked", exchange, dict.fromkeys(nodes, encode(Roster(tuple(ordered)))))
        vectors = [np.frombuffer(decode(reply, Masked).vector, "<u4") for reply in masked.values()]
        total: NDArray[np.uint32] = np.sum(vectors, axis=0, dtype=np.uint32)
        survivors = tuple(sorted(nodes))
        return Aggregate(total.view(np.int32).astype(np.int64), survivors, survivors, {}, {}, {})

    def _all(
        self, stage: str, exchange: ExchangeWithGroup, requests: Mapping[int, bytes]
    ) -> Mapping[int, bytes]:
        replies = exchange(stage, requests)
        if len(replies) < len(requests):
            raise TooManyDropouts(
                f"{len(requests) - len(replies)} devices lost by stage {stage}, none can be"
            )
        return replies

    def complete(self, records: Iterable[Record]) -> Aggregate:
        raise JournalError("nothing is asked to unmask here: try the round again instead")


ROLE: Callable[[Identity, Membership, SecAggPolicy, Verifier], Role] = PairwiseRole
AGGREGATION: Aggregation = PairwiseAggregation()


@pytest.fixture
def scenes(tiny_model: Callable[[str], Path], tmp_path: Path) -> Any:
    made: list[FleetScene] = []

    def make() -> FleetScene:
        made.append(FleetScene(tiny_model("bert"), tmp_path / str(len(made)), N))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


def play(scene: FleetScene, silent: dict[tuple[int, str], list[int]] | None = None) -> Any:
    for i in range(N):
        scene.restart(i, role=ROLE)
    run = replace(scene.run(), aggregation=AGGREGATION)
    with scene.wire(silent=silent) as grid:
        federate(run, grid)
    return run


def test_a_whole_run_over_another_protocol_gives_the_same_factors(scenes: Callable[[], FleetScene]) -> None:
    scene, usual = scenes(), scenes()
    run = play(scene)
    assert states(run) == [(1, 1, "finished"), (2, 1, "finished"), (3, 1, "finished")]
    assert {stage for stage, _, _ in scene.log} == {"status", "keys", "masked"}
    assert (shared_of(run).factors == shared_of(usual.serve()).factors).all()
    for i in range(N):
        mine, theirs = scene.personal(i), usual.personal(i)
        assert mine is not None
        assert theirs is not None
        assert mine[0] == theirs[0]
        assert (mine[1] == theirs[1]).all()
    assert not any(isinstance(vars(scene.open_attempts[i])["_open"], SharesDealt) for i in range(N))


def test_its_failures_are_failures_of_a_round(scenes: Callable[[], FleetScene]) -> None:
    scene = scenes()
    with pytest.raises(TooManyDropouts, match="1 devices lost by stage masked, none can be"):
        play(scene, {(1, "masked"): [2]})
    assert states(scene.run()) == [(1, 1, "failed"), (1, 2, "failed")]
