"""The device's role in secure aggregation: Bonawitz et al. 2017, active-adversary variant, one group.

Five messages come, five go; between them the role is in one of the states

    begin -> `Keyed` -> share -> `SharesDealt` -> mask -> `Masking` -> confirm -> `Confirmed`
    -> unmask -> `Done`

(plain rounds: begin -> `Unmasked` -> mask -> `Done`). Each step is a function of the state and the message:
it returns the next state with the reply, or raises a typed error and changes nothing. The caller — the
agent — burns (run, round, attempt) durably before the reply of `begin` leaves, drops the state at the first
error and answers that with one abort code, and never uses a state twice.

The server is taken to be malicious and to collude with up to `max_colluders` devices; every check that the
proof needs is made here, and none depends on the server's word. Sections and figures are those of
eprint 2017/281; what goes beyond it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Final, Protocol, TypeVar

from penchant.common.crypto.entropy import Entropy
from penchant.common.crypto.keys import AgreementKey, Verifier, check_point, open_sealed, seal, verify
from penchant.common.crypto.masks import Ring, accumulate, ring_type
from penchant.common.crypto.shamir import split
from penchant.common.errors import (
    AgreementError,
    CodecError,
    ConfigError,
    DeviceError,
    PolicyRefusal,
    SecretSharingError,
    SignatureError,
    StageError,
)
from penchant.common.membership.identity import Identity, Membership
from penchant.common.secagg.transcript import (
    commitment,
    confirmation_text,
    context_digest,
    entry_text,
    masked_text,
    pair_mask_key,
    roster_digest,
    seal_key,
    sealed_for,
    self_mask_key,
    threshold,
)
from penchant.common.wire.codec import (
    U8,
    U16,
    U32,
    Exactly,
    Many,
    decode,
    decode_record,
    encode,
    encode_record,
)
from penchant.common.wire.messages import (
    MAX_GROUP,
    MAX_WORDS,
    SHARE,
    Announce,
    Collect,
    Confirmation,
    Confirmations,
    Delivery,
    Digest,
    Entry,
    Indices,
    Kind,
    Masked,
    Plain,
    PublicKey,
    Ready,
    Roster,
    RunId,
    SecretShare,
    Shares,
    Survivors,
    Unmasking,
)

__all__ = [
    "AttemptInfo",
    "Confirmed",
    "Done",
    "Keyed",
    "Masking",
    "Participant",
    "Role",
    "RoleOf",
    "SecAggPolicy",
    "SharesDealt",
    "State",
    "Unmasked",
    "decode_state",
    "encode_state",
]

Secret = Annotated[bytes, Exactly(32)]
Keys = Annotated[tuple[PublicKey, ...], Many(MAX_GROUP)]
SecretShares = Annotated[tuple[SecretShare, ...], Many(MAX_GROUP)]


@dataclass(frozen=True)
class SecAggPolicy:
    """The owner's conditions. The server's word counts for none of them.

    min_honest: the sum must hold at least this many honest devices.
    max_colluders: as many devices of the whole fleet may work with the server.
    allow_unmasked: whether this device ever sends a vector without masks.
    """

    min_honest: int = 10
    max_colluders: int = 2
    allow_unmasked: bool = False

    def __post_init__(self) -> None:
        if self.min_honest < 1 or self.max_colluders < 0:
            raise ConfigError("min_honest must be 1 or more and max_colluders 0 or more")

    def refuse_small(self, n: int) -> None:
        """Raise `PolicyRefusal` unless a group of `n` keeps n >= 3c + 1 and t - c >= min_honest."""
        c, t = self.max_colluders, threshold(n)
        if n < 3 * c + 1:
            raise PolicyRefusal(
                f"{n} devices in the group; with {c} colluders it takes {3 * c + 1}: wait for a larger "
                "one, or lower max_colluders in the policy"
            )
        if t - c < self.min_honest:
            raise PolicyRefusal(
                f"{n} devices in the group leave {t - c} honest ones in the sum, {self.min_honest} are "
                "needed: wait for a larger one, or lower min_honest in the policy"
            )


# --- states ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttemptInfo:
    """Which attempt this is, and the shape of its vectors."""

    run: RunId
    round: U32
    attempt: U16
    context: Digest
    group: U16
    ring: U8
    words: U32


@dataclass(frozen=True, slots=True)
class Keyed:
    """Keys are advertised; nothing is shared yet."""

    info: AttemptInfo
    entry: Entry
    mask_private: Secret = field(repr=False)
    channel_private: Secret = field(repr=False)
    seed: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class SharesDealt:
    """Seed and mask key are shared among the roster; peers' shares are still to come.

    identities, mask_keys: by index in the roster. openers: keys for what each peer seals for this device
    (by index; its own place holds zeros).
    """

    info: AttemptInfo
    me: U16
    roster: Digest
    identities: Keys
    mask_keys: Keys
    mask_private: Secret = field(repr=False)
    seed: Secret = field(repr=False)
    openers: Annotated[tuple[Secret, ...], Many(MAX_GROUP)] = field(repr=False)
    own_seed_share: SecretShare = field(repr=False)
    own_key_share: SecretShare = field(repr=False)


@dataclass(frozen=True, slots=True)
class Masking:
    """The masked vector is out. seed_shares, key_shares: one of each device of U2, in its order."""

    info: AttemptInfo
    me: U16
    roster: Digest
    identities: Keys
    sharers: Indices
    seed_shares: SecretShares = field(repr=False)
    key_shares: SecretShares = field(repr=False)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The survivors are confirmed by this device's signature."""

    info: AttemptInfo
    me: U16
    roster: Digest
    identities: Keys
    sharers: Indices
    survivors: Indices
    seed_shares: SecretShares = field(repr=False)
    key_shares: SecretShares = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unmasked:
    """A plain round: the vector will go out as it is, which the owner's policy allows."""

    info: AttemptInfo


@dataclass(frozen=True, slots=True)
class Done:
    """The attempt is over for this device; there is no step from here."""

    info: AttemptInfo


State = Keyed | SharesDealt | Masking | Confirmed | Unmasked | Done
S = TypeVar("S", Keyed, SharesDealt, Masking, Confirmed)

_STATES: Final[tuple[type[State], ...]] = (Keyed, SharesDealt, Masking, Confirmed, Unmasked, Done)


def encode_state(state: State) -> bytes:
    """The state with all its secrets, for a simulation that seals it between messages and erases it after."""
    return bytes((_STATES.index(type(state)),)) + encode_record(state)


def decode_state(data: bytes) -> State:
    """Undo `encode_state`; raises `CodecError`."""
    if not data or data[0] >= len(_STATES):
        raise CodecError("not a state of the secure-aggregation role")
    return decode_record(memoryview(data)[1:], _STATES[data[0]])


def _in_state(state: State, kind: type[S]) -> S:
    if not isinstance(state, kind):
        raise StageError(f"a step of {kind.__name__} in {type(state).__name__}: skipped or repeated")
    return state


# --- the role -------------------------------------------------------------------------------------


class Role(Protocol):
    """What an agent asks of a device's part in an aggregation protocol; another protocol can take its place.

    One method for each stage, called in whatever order a server likes. Each takes the state that the one
    before gave, as the agent kept it, and returns the next with the reply, or raises a typed error. `Done`
    ends the attempt; any other state is nothing to the agent, and is used once. A role whose states are not
    those of this module keeps them in memory (`client.agent.open_attempt`).
    """

    def begin(self, announce: Announce, entropy: Entropy, now: int) -> tuple[Any, bytes]:
        """Answer the announcement. The agent has checked plan, base model and factors."""

    def share(self, state: Any, payload: bytes, entropy: Entropy) -> tuple[Any, bytes]:
        """Stage shares."""

    def mask(self, state: Any, payload: bytes, vector: Ring) -> tuple[Any, bytes]:
        """Stage masked. vector: the device's ring elements, uint32 or uint64 [words]."""

    def confirm(self, state: Any, payload: bytes) -> tuple[Any, bytes]:
        """Stage confirm."""

    def unmask(self, state: Any, payload: bytes) -> tuple[Any, bytes]:
        """Stage unmask. The agent makes durable that it was asked before the reply leaves."""


RoleOf = Callable[[Identity, Membership, SecAggPolicy, Verifier], Role]
"""The role of a device, by who it is, whom it believes and what its owner allows."""


@dataclass(frozen=True)
class Participant:
    """One device: who it is, whom it believes, what its owner allows. Holds no state of a round.

    membership: the latest list the device accepted.
    verify: how signatures are verified; only a simulator injects another (`keys.SignatureCache`).
    """

    identity: Identity
    membership: Membership
    policy: SecAggPolicy
    verify: Verifier = verify

    def begin(self, announce: Announce, entropy: Entropy, now: int) -> tuple[Keyed | Unmasked, bytes]:
        """Stage keys (figure 4, round 0, AdvertiseKeys). `now`: Unix seconds.

        The caller has checked plan and factors, and burns (run, round, attempt) before the reply leaves.
        The commitment to the seed and the context digest go beyond the paper.

        Raises:
            PolicyRefusal: unmasked vectors, or a group that can't meet the owner's conditions.
            MembershipError: the member list is stale, or this device is revoked.
            ConfigError: a ring, group or vector length out of range.
        """
        info = _attempt_info(announce)
        if announce.kind is Kind.PLAIN:
            if not self.policy.allow_unmasked:
                raise PolicyRefusal("the server asks for an unmasked vector: this device's owner forbids it")
            return Unmasked(info), encode(Ready(info.context))
        self.policy.refuse_small(announce.group)
        self.membership.refuse_stale(now)
        self.membership.check(self.identity.certificate)
        mask_private, channel_private, seed = entropy.draw(32), entropy.draw(32), entropy.draw(32)
        entry = self._sign_entry(
            Entry(
                self.identity.certificate,
                info.context,
                AgreementKey(mask_private).public(),
                AgreementKey(channel_private).public(),
                commitment(seed, info.context, self.identity.member),
                bytes(64),
            )
        )
        return Keyed(info, entry, mask_private, channel_private, seed), encode(entry)

    def _sign_entry(self, entry: Entry) -> Entry:
        signature = self.identity.sign(entry_text(entry))
        return Entry(
            entry.certificate, entry.context, entry.mask_key, entry.channel_key, entry.commitment, signature
        )

    def share(self, state: State, payload: bytes, entropy: Entropy) -> tuple[SharesDealt, bytes]:
        """Stage shares (figure 4, round 1, ShareKeys): verify the roster, share seed and mask key t-of-n.

        Raises:
            AgreementError: the roster is not in order, repeats or lacks somebody, or differs in context.
            PolicyRefusal: the group does not meet the owner's conditions.
            CertificateError, MembershipError, SignatureError, SecretSharingError: an entry is not genuine.
        """
        keyed = _in_state(state, Keyed)
        roster = decode(payload, Roster)
        me = self._check_roster(keyed, roster)
        info, entries, digest = keyed.info, roster.entries, roster_digest(roster)
        n, t = len(entries), threshold(len(entries))
        seed_shares = split(keyed.seed, t, n, entropy)
        key_shares = split(keyed.mask_private, t, n, entropy)
        channel = AgreementKey(keyed.channel_private)
        sealed, openers = [], []
        for peer, entry in enumerate(entries):
            if peer == me:
                openers.append(bytes(32))
                continue
            agreed = channel.agree(entry.channel_key)
            key = seal_key(agreed, info.context, digest, me, peer)
            associated = sealed_for(info.context, digest, me, peer)
            sealed.append(seal(key, seed_shares[peer] + key_shares[peer], associated))
            openers.append(seal_key(agreed, info.context, digest, peer, me))
        shared = SharesDealt(
            info,
            me,
            digest,
            tuple(entry.certificate.public_key for entry in entries),
            tuple(entry.mask_key for entry in entries),
            keyed.mask_private,
            keyed.seed,
            tuple(openers),
            seed_shares[me],
            key_shares[me],
        )
        return shared, encode(Shares(tuple(sealed)))

    def _check_roster(self, keyed: Keyed, roster: Roster) -> int:
        """All that docs/protocol.md#stages asks of a roster; returns this device's index."""
        entries = roster.entries
        if len(entries) > keyed.info.group:
            raise AgreementError(
                f"{len(entries)} devices in a group announced for {keyed.info.group}: sums could overflow"
            )
        members = [entry.certificate.member for entry in entries]
        if any(a >= b for a, b in pairwise(members)):
            raise AgreementError("the roster repeats a member or is out of order")
        if keyed.entry not in entries:
            raise AgreementError("the roster does not hold this device's own entry")
        self.policy.refuse_small(len(entries))
        _refuse_repeated([entry.certificate.public_key for entry in entries], "identity")
        _refuse_repeated([key for entry in entries for key in (entry.mask_key, entry.channel_key)], "key")
        for entry in entries:
            self._check_entry(entry, keyed.info.context)
        return entries.index(keyed.entry)

    def _check_entry(self, entry: Entry, context: bytes) -> None:
        member = entry.certificate.member
        if entry.context != context:
            raise AgreementError(
                f"member {member} was sent something else: context digests differ; if it goes "
                "on, distrust the server"
            )
        self.membership.check(entry.certificate)
        check_point(entry.mask_key)
        check_point(entry.channel_key)
        if not self.verify(entry.certificate.public_key, entry_text(entry), entry.signature):
            raise SignatureError(
                f"member {member}'s entry is not signed by its identity; if it goes on, distrust the server"
            )

    def mask(self, state: State, payload: bytes, vector: Ring) -> tuple[Masking | Done, bytes]:
        """Stage masked (figure 4, round 2, MaskedInputCollection): add self mask and pairwise masks over U2.

        vector: quantised ring elements, uint32 or uint64 [words]. The signature goes beyond the paper.
        Sealed shares are opened here already: a tampered one ends the attempt before the vector leaves.

        Raises:
            AgreementError, PolicyRefusal: U2 is not a subset of the roster with this device and t members.
            SecretSharingError: a sealed share does not open.
            DeviceError: the caller's vector has another type or length than announced.
        """
        if isinstance(state, Unmasked):
            return _send_plain(state, payload, vector)
        shared = _in_state(state, SharesDealt)
        delivery = decode(payload, Delivery)
        info, me = shared.info, shared.me
        n = len(shared.identities)
        _check_subset(delivery.sharers, range(n), "U2", "the roster")
        if me not in delivery.sharers:
            raise AgreementError("this device shared its secrets but is not in U2")
        _refuse_few(len(delivery.sharers), n, "U2")
        seed_shares, key_shares = _open_shares(shared, delivery)
        masked = _checked_vector(vector, info).copy()
        private = AgreementKey(shared.mask_private)
        add, subtract = [self_mask_key(shared.seed, info.context, shared.roster, me)], list[bytes]()
        for peer in delivery.sharers:
            if peer != me:
                agreed = private.agree(shared.mask_keys[peer])
                key = pair_mask_key(agreed, info.context, shared.roster, me, peer)
                (add if me > peer else subtract).append(key)
        accumulate(masked, add, subtract)
        raw = masked.tobytes()
        signature = self.identity.sign(masked_text(info.context, shared.roster, raw))
        masking = Masking(
            info, me, shared.roster, shared.identities, delivery.sharers, seed_shares, key_shares
        )
        return masking, encode(Masked(signature, raw))

    def confirm(self, state: State, payload: bytes) -> tuple[Confirmed, bytes]:
        """Stage confirm (figure 4, round 3, ConsistencyCheck): sign the survivors; beyond the paper, U2 too.

        Raises `AgreementError` unless U2 is as before and own index in U3, a subset of U2; `PolicyRefusal`
        unless |U3| >= t.
        """
        masking = _in_state(state, Masking)
        named = decode(payload, Survivors)
        if named.sharers != masking.sharers:
            raise AgreementError("U2 is not the one that this device masked for")
        _check_subset(named.survivors, named.sharers, "U3", "U2")
        if masking.me not in named.survivors:
            raise AgreementError("this device sent its vector but is not in U3")
        _refuse_few(len(named.survivors), len(masking.identities), "U3")
        text = confirmation_text(masking.info.context, masking.roster, named.sharers, named.survivors)
        confirmed = Confirmed(
            masking.info,
            masking.me,
            masking.roster,
            masking.identities,
            masking.sharers,
            named.survivors,
            masking.seed_shares,
            masking.key_shares,
        )
        return confirmed, encode(Confirmation(self.identity.sign(text)))

    def unmask(self, state: State, payload: bytes) -> tuple[Done, bytes]:
        """Stage unmask (figure 4, round 4, Unmasking): a peer's seed share or its key share, not both.

        Raises `AgreementError` for signers who repeat or are not in U3, `PolicyRefusal` for fewer than t,
        `SignatureError` for one that does not hold on exactly the lists this device signed.
        """
        confirmed = _in_state(state, Confirmed)
        given = decode(payload, Confirmations)
        if len(given.signers) != len(given.signatures):
            raise SignatureError("confirmations without signature, or signatures without signer")
        _check_subset(given.signers, confirmed.survivors, "the signers", "U3")
        _refuse_few(len(given.signers), len(confirmed.identities), "the signers")
        text = confirmation_text(
            confirmed.info.context, confirmed.roster, confirmed.sharers, confirmed.survivors
        )
        for signer, signature in zip(given.signers, given.signatures, strict=True):
            if not self.verify(confirmed.identities[signer], text, signature):
                raise SignatureError(f"device {signer} of the roster did not confirm these survivors")
        alive = frozenset(confirmed.survivors)
        places = list(enumerate(confirmed.sharers))
        seeds = tuple(confirmed.seed_shares[at] for at, peer in places if peer in alive)
        keys = tuple(confirmed.key_shares[at] for at, peer in places if peer not in alive)
        return Done(confirmed.info), encode(Unmasking(seeds, keys))


# --- steps and checks -----------------------------------------------------------------------------


def _attempt_info(announce: Announce) -> AttemptInfo:
    if announce.ring not in (32, 64):
        raise ConfigError(f"a ring of {announce.ring} bits is announced; it must have 32 or 64")
    if not 1 <= announce.words <= MAX_WORDS:
        raise ConfigError(
            f"vectors of {announce.words} ring elements are announced; 1 to {MAX_WORDS} are possible"
        )
    if not 1 <= announce.group <= MAX_GROUP:
        raise ConfigError(f"groups of {announce.group} devices are announced; 1 to {MAX_GROUP} are possible")
    return AttemptInfo(
        announce.run,
        announce.round,
        announce.attempt,
        context_digest(announce),
        announce.group,
        announce.ring,
        announce.words,
    )


def _refuse_repeated(values: Sequence[bytes], what: str) -> None:
    if len(set(values)) != len(values):
        raise AgreementError(f"the roster holds the same {what} twice")


def _check_subset(part: Sequence[int], whole: Iterable[int], name: str, of: str) -> None:
    """Refuse `part` unless it strictly ascends and lies within `whole`."""
    if any(a >= b for a, b in pairwise(part)):
        raise AgreementError(f"{name} repeats a device or is out of order")
    if not set(part) <= set(whole):
        raise AgreementError(f"{name} names devices outside {of}")


def _refuse_few(count: int, n: int, name: str) -> None:
    if count < threshold(n):
        raise PolicyRefusal(
            f"{name}: {count} of {n} devices, {threshold(n)} are needed; wait for the next round"
        )


def _open_shares(shared: SharesDealt, delivery: Delivery) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The seed shares and key shares of U2, in its order, this device's own among them."""
    if len(delivery.sealed) != len(delivery.sharers) - 1:
        raise SecretSharingError("the delivery does not hold one sealed share for each other device of U2")
    sealed = iter(delivery.sealed)
    seeds, keys = [], []
    for peer in delivery.sharers:
        if peer == shared.me:
            opened = shared.own_seed_share + shared.own_key_share
        else:
            associated = sealed_for(shared.info.context, shared.roster, peer, shared.me)
            opened = open_sealed(shared.openers[peer], next(sealed), associated)
        seeds.append(opened[:SHARE])
        keys.append(opened[SHARE:])
    return tuple(seeds), tuple(keys)


def _checked_vector(vector: Ring, info: AttemptInfo) -> Ring:
    if vector.dtype != ring_type(info.ring) or vector.shape != (info.words,):
        raise DeviceError(
            f"the quantised vector is {vector.dtype}{list(vector.shape)}, "
            f"but {info.words} elements of {info.ring} bits were announced"
        )
    return vector


def _send_plain(state: Unmasked, payload: bytes, vector: Ring) -> tuple[Done, bytes]:
    if decode(payload, Collect).context != state.info.context:
        raise AgreementError("the server collects for a different context than it announced")
    return Done(state.info), encode(Plain(_checked_vector(vector, state.info).tobytes()))
