"""The agent: the trust boundary of a device.

It owns the preferences, the personal factor and the keys, enforces the owner's policy, and offers
nothing but readiness and the five exchanges of a round (docs/threat-model.md#attack-defence-test). It
executes nothing that a server sends; what leaves on refusal is one abort code, and the owner's log says why.
Once it has answered `keys`, no choice of its owner decides whether, when or how much leaves
(`penchant.client.agent.round_work`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import numpy as np
from numpy.typing import NDArray

from penchant.client.agent.accepted_runs import Entered, admit, check_roster, check_survivors
from penchant.client.agent.kept_model import Model, kept_with
from penchant.client.agent.known_lists import KnownList, ListInVault
from penchant.client.agent.open_attempt import AttemptsInMemory, OpenAttempts
from penchant.client.agent.owner import Choices, Owner, member_identity
from penchant.client.agent.policy import MOST_COUNTED, OwnerPolicy, checked_factors
from penchant.client.agent.privacy_cost import budget_of, cost_of, honest_in
from penchant.client.agent.round_work import Pace, RoundWork
from penchant.client.learning.outcome import Outcome, contribution_of
from penchant.client.learning.workplace import Job, Workplace
from penchant.client.secagg import Done, Participant, Role, RoleOf, SecAggPolicy, SharesDealt
from penchant.client.vault.budget import Room
from penchant.client.vault.privacy_ledger import LedgerEntry
from penchant.client.vault.vault import Vault
from penchant.common.config import Plan
from penchant.common.crypto.domain import domain
from penchant.common.crypto.entropy import Entropy
from penchant.common.crypto.keys import Verifier, derive, verify
from penchant.common.crypto.masks import Ring
from penchant.common.errors import (
    AgreementError,
    BaseModelError,
    DeviceError,
    MembershipError,
    PenchantError,
    PolicyRefusal,
    StageError,
)
from penchant.common.membership.identity import MemberList, Membership
from penchant.common.membership.manifest import day_of
from penchant.common.model import announced
from penchant.common.model.factors import Split
from penchant.common.printable import one_line
from penchant.common.secagg.stages import CONFIRM, KEYS, MASKED, SHARES, STATUS, UNMASK
from penchant.common.secagg.update_vector import HONEST_FOR_HISTOGRAM, Contribution, UpdateLayout
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import (
    Abort,
    AbortCode,
    Announce,
    Hello,
    Status,
    abort_code,
)

__all__ = ["Agent", "Choices"]

log = logging.getLogger(__name__)

Vector = NDArray[np.float32]
REASON_MOST = 300  # characters of a reason that the owner is shown


@dataclass(frozen=True)
class _Task:
    """What a round asks of this device, checked under the owner's policy."""

    announce: Announce
    policy: OwnerPolicy
    plan: Plan
    split: Split
    layout: UpdateLayout
    shared: Vector
    start: Vector  # of the personal part


class _NotAdmittedError(Exception):
    """An announcement, or a greeting's member list, that is not taken and ends no attempt; `why` is the
    refusal."""

    def __init__(self, why: PenchantError) -> None:
        super().__init__()
        self.why = why


class Agent:
    """One device. `answer` is the only entrance from outside; the rest is for the owner.

    Args:
        vault: what the device must never lose, and its personal part.
        owner: whose device it is, asked anew for each message. An identity that is gone, or is another, ends
            what the agent does: the owner has left, or joined anew.
        workplace: where local work is done.
        secret: 32 bytes of the device; rounding and local shuffling are derived from it.
        verify: how signatures are checked; only a simulator injects another.
        role: the device's part in the aggregation protocol.
        known_list: keeps the newest member list; the vault, unless a simulation gives another.
        ahead: trains while the other exchanges go by, instead of when the vector is asked for.
        pace: the time that passes on the device; the vector leaves when the time that the plan gives to
            training is over. None in a simulation, where nobody watches the clock.
        noise: gives the randomness of the noise for an attempt; only a simulator, whose runs must repeat,
            injects another than `entropy`.
        keep_model: keeps the shared factors beside the personal part, so that the owner can rank offline, and
            counts what leaves by name and bytes.
        one_copy: gives one object for all equal factors: a simulation's agents, with attempts open at the
            same time in one process, keep once what was announced to all.
    """

    def __init__(
        self,
        vault: Vault,
        owner: Owner,
        *,
        workplace: Workplace,
        secret: bytes,
        entropy: Entropy,
        verify: Verifier = verify,
        role: RoleOf = Participant,
        open_attempts: OpenAttempts | None = None,
        known_list: KnownList | None = None,
        clock: Callable[[], float] = time.time,
        ahead: bool = False,
        pace: Pace | None = None,
        noise: Callable[[Announce], Entropy] | None = None,
        keep_model: bool = False,
        one_copy: Callable[[bytes], bytes] = lambda factors: factors,
    ) -> None:
        self._vault = vault
        self._owner = owner
        self._identity = member_identity(owner)
        self._workplace = workplace
        self._secret = secret
        self._entropy = entropy
        self._verify = verify
        self._role_of = role
        self._role: tuple[Membership, SecAggPolicy, Role] | None = None
        self._clock = clock
        self._keep_model = keep_model
        self._one_copy = one_copy
        self._ahead = ahead
        self._pace = pace
        self._noise = noise or (lambda announce: entropy)
        self._task: _Task | None = None  # of the attempt that is open
        self._work: RoundWork | None = None  # of the attempt that is open
        self._place = (b"", 0)  # run and round of the last attempt
        self._vector: list[tuple[str, int]] = []  # (name, bytes) of what the last vector held
        self._known_list = known_list or ListInVault(vault)
        self._membership = self._latest(owner.membership())
        self._open_attempts = open_attempts or AttemptsInMemory()

    def __repr__(self) -> str:
        return f"Agent(member={self._identity.member})"

    # --- from outside ------------------------------------------------------------------------------------

    def answer(self, stage: str, payload: bytes) -> bytes:
        """Answer one message of a stage; an `Abort` with one code, and the round dropped, for any refusal."""
        steps = {
            STATUS: self._status,
            KEYS: self._keys,
            SHARES: self._shares,
            MASKED: self._masked,
            CONFIRM: self._confirm,
            UNMASK: self._unmask,
        }
        try:
            if stage not in steps:
                raise StageError(f"there is no stage {stage[:20]!r}")
            self._permit(stage, before=True)
            reply = steps[stage](payload)
            self._permit(stage, before=False)  # the owner may have paused or left while it trained
            if self._keep_model:
                self._vault.note_sent(self._parts(stage, reply))
            return reply
        except _NotAdmittedError as refused:
            return self._refuse(stage, abort_code(refused.why), str(refused.why), ends=False)
        except PenchantError as error:
            return self._refuse(stage, abort_code(error), str(error))
        except Exception as error:  # the boundary: no text of an exception may leave, and the agent stays up
            return self._refuse(stage, AbortCode.INTERNAL, type(error).__name__)

    def _refuse(self, stage: str, code: AbortCode, reason: str, *, ends: bool = True) -> bytes:
        """Drop the round if that `ends` it, tell the owner why; the one code is all that leaves."""
        abort = encode(Abort(code))
        if ends:
            self._drop_work()
        try:
            if ends:
                self._open_attempts.drop()
            if self._keep_model:
                self._vault.note_sent([("refusal", len(abort))])
        except DeviceError as error:  # a full disk, say: refuse all the same
            log.warning("can't note that stage %s was refused: %s", one_line(stage, 20), error)
        self._tell_owner(stage, code.name, reason)
        return abort

    def _tell_owner(self, stage: str, code: str, reason: str) -> None:
        """Note a reason for the owner; a disk that is full keeps nothing else from happening."""
        try:
            self._vault.tell_owner(one_line(stage, 20), code, one_line(reason, REASON_MOST))
        except DeviceError as error:
            log.warning("can't note what happened in stage %s: %s", one_line(stage, 20), error)

    def _drop_work(self) -> None:
        """Nothing will come of what was begun: end it."""
        self._task = None
        begun, self._work = self._work, None
        if begun is not None:
            begun.drop()

    def _permit(self, stage: str, *, before: bool) -> None:
        """PolicyRefusal when the owner has left, or has paused the device, or its hours are over.

        Before an announcement only the first counts: the check of the task asks the policy. Readiness is
        answered in a pause as well: no.
        """
        current = self._owner.identity()
        if current is None:
            raise PolicyRefusal("this device has left its fleet")
        if current.certificate != self._identity.certificate:
            raise PolicyRefusal("this device has joined anew since the agent was started")
        if stage != STATUS and not (before and stage in (KEYS, MASKED)):
            self._owner.policy().check_time(sent=stage in (CONFIRM, UNMASK))

    def _parts(self, stage: str, reply: bytes) -> list[tuple[str, int]]:
        """(name, bytes) of what a reply holds: a masked vector by tensors and counts, else the whole."""
        held = self._vector if stage == MASKED else []
        return [*held, (f"{stage} message", len(reply) - sum(size for _, size in held))]

    def _status(self, payload: bytes) -> bytes:
        hello = decode(payload, Hello)
        self._vault.settle(hello.run, [(f.round, f.attempt) for f in hello.finished])
        run, number = self._place
        if hello.run == run and any(f.round >= number for f in hello.finished):
            self._open_attempts.drop()  # that round is over: its secrets are of no use to anybody good
            self._drop_work()
        try:
            self._update_members(hello.membership)
        except PenchantError as error:
            raise _NotAdmittedError(error) from None
        # Whether there is a choice to learn from must not show: who has none sends zeros.
        policy = self._owner.policy()
        room = self._vault.ledger.has_room(hello.run, policy.limits(), day_of(self._clock()))
        times = min(self._times(hello.run), policy.sums_a_run)
        room = room and self._vault.privacy.ready(hello.run, budget_of(policy), times)
        ready = room and policy.ready(datetime.now())
        return encode(Status(ready, self._identity.member, self._membership.digest))

    def _keys(self, payload: bytes) -> bytes:
        try:
            announce, plan, policy, count = self._admitted(payload)
        except PenchantError as error:
            raise _NotAdmittedError(error) from None
        self._open_attempts.drop()  # a new attempt ends what was open
        self._drop_work()
        task = self._loaded(announce, plan, policy)
        self._vault.privacy.check(announce.run, cost_of(announce, task.plan, task.layout, task.policy))
        role = self._participant(task.policy)
        state, reply = role.begin(announce, self._entropy, self._now())
        finished = [(f.round, f.attempt) for f in announce.finished]
        room = _room(task)
        self._vault.begin(announce.run, announce.round, announce.attempt, finished, enter=count, room=room)
        self._open_attempts.keep(announce, state)
        self._place = announce.run, announce.round
        self._task = task if self._open_attempts.in_memory else None
        if self._ahead:
            self._work = self._begin(task)
        self._workplace.expect(lambda: self._job(task))
        return reply

    def _times(self, run: bytes) -> int:
        """How often a run may ask, by the plan in the manifest that was seen first."""
        manifest = self._vault.ledger.manifest(run)
        times = 0 if manifest is None else Plan.decode(manifest.plans[-1]).dp_participations
        return times or MOST_COUNTED

    def _shares(self, payload: bytes) -> bytes:
        announce, state = self._open_attempts.take()
        if announce.list_digest != self._membership.digest:  # a roster by a newer one is not this round's
            raise MembershipError("a newer member list came after the round had begun; the next goes by it")
        check_roster(announce, payload)
        after, reply = self._participant(self._owner.policy()).share(state, payload, self._entropy)
        self._open_attempts.keep(announce, after)
        return reply

    def _masked(self, payload: bytes) -> bytes:
        announce, state = self._open_attempts.take()
        task = self._task_of(announce)
        cost = cost_of(announce, task.plan, task.layout, task.policy)
        kept = self._personal(announce.run, task.start)
        noise = self._noise_for(task, state)  # before the moment: how long it takes to draw depends on it
        begun, self._work = self._work, None
        made = (begun or self._begin(task)).outcome()
        # From here to the reply the same is done whatever the work made: no file is touched but in `stage`.
        personal, vector, why = self._through_the_door(task, made, kept, state)
        vector = task.layout.with_noise(vector, noise)
        after, reply = self._participant(task.policy).mask(state, payload, vector)
        self._vector = task.layout.parts(task.split)
        model = Model(announce.base, announce.plan, announce.factors) if self._keep_model else None
        entry = LedgerEntry.of(announce.run, announce.round, announce.attempt, cost.rho)
        # Durable before the vector leaves, whatever becomes of the attempt.
        self._vault.stage(
            announce.run,
            announce.round,
            announce.attempt,
            personal,
            kept_with(model, None if isinstance(made, str) else made.blend),
            why=why,
            charge=partial(self._vault.privacy.charge, entry=entry, cost=cost),
        )
        if not isinstance(after, Done):
            self._open_attempts.keep(announce, after)
        return reply

    def _confirm(self, payload: bytes) -> bytes:
        announce, state = self._open_attempts.take()
        check_survivors(announce, payload)
        after, reply = self._participant(self._owner.policy()).confirm(state, payload)
        self._open_attempts.keep(announce, after)
        return reply

    def _unmask(self, payload: bytes) -> bytes:
        announce, state = self._open_attempts.take()
        _, reply = self._participant(self._owner.policy()).unmask(state, payload)
        # Durable before the shares leave: no other attempt of this round may ever start here.
        self._vault.mark_unmasked(announce.run, announce.round, announce.attempt)
        return reply

    # --- for the owner -----------------------------------------------------------------------------------

    def reasons(self) -> list[tuple[str, str, str]]:
        """Why this device refused what it refused: (stage, code, reason), oldest first."""
        return self._vault.refusals()

    # --- checking ----------------------------------------------------------------------------------------

    def _admitted(self, payload: bytes) -> tuple[Announce, Plan, OwnerPolicy, Entered]:
        """An announcement that the owner allows and the authority has signed, and what counts its attempt.

        For any other nothing is loaded, ended or begun: it costs the check of a signature.
        """
        announce = decode(payload, Announce)
        if announce.list_digest != self._membership.digest:
            raise MembershipError(
                f"the round goes by another member list than list {self._membership.number}, the newest that "
                "is known here; the server has to send a newer one, or to take this one itself"
            )
        self._membership.refuse_stale(self._now())
        plan, policy = self._allowed(announce)
        trusted, now = self._membership.authority, self._clock()
        count = admit(announce, plan, policy, self._vault.ledger, trusted, now, self._verify)
        return replace(announce, factors=self._one_copy(announce.factors)), plan, policy, count

    def _allowed(self, announce: Announce) -> tuple[Plan, OwnerPolicy]:
        """The announced plan, and the owner's policy as it is now, which allows it."""
        plan, policy = Plan.decode(announce.plan), self._owner.policy()
        policy.check(announce, plan)
        return plan, policy

    def _loaded(self, announce: Announce, plan: Plan, policy: OwnerPolicy) -> _Task:
        """The task of an announcement, or a typed refusal. Loads the base model, which the owner allows."""
        loaded = self._workplace.load(plan)
        if announce.base != loaded.digest:
            raise BaseModelError("the server runs another base model under this name; ask the operator which")
        split = loaded.split
        layout = UpdateLayout.of(plan, split)
        if (announce.ring, announce.words, announce.group) != (layout.ring, layout.words, layout.group):
            raise AgreementError("ring, length or group size announced are not those that the plan gives")
        size = announced.length(plan, split)
        policy.check_size(split)
        factors = checked_factors(announce.factors, size, policy.max_factor)
        shared, start = announced.parts(plan, split, factors, loaded.start)
        policy.check_norms(split, shared, start, loaded.norms)
        return _Task(announce, policy, plan, split, layout, shared, start)

    def _task_of(self, announce: Announce) -> _Task:
        """The task that stage keys has checked, under the policy as it is now, which may be stricter.

        Checked anew where another process has answered that stage, or the policy has changed.
        """
        task, self._task = self._task, None
        if task is None or task.announce != announce:
            return self._loaded(announce, *self._allowed(announce))
        policy = self._owner.policy()
        if policy != task.policy:
            return self._loaded(announce, *self._allowed(announce))
        policy.check_time()
        return task

    def _participant(self, policy: OwnerPolicy) -> Role:
        """The device's role: one for as long as member list and policy are the same."""
        membership, conditions = self._membership, policy.secagg()
        known = self._role
        if known is None or known[0] is not membership or known[1] != conditions:
            role = self._role_of(self._identity, membership, conditions, self._verify)
            known = self._role = membership, conditions, role
        return known[2]

    def _update_members(self, encoded: bytes) -> None:
        """Take over the list that came with a greeting, if any, durably; MembershipError for one that is not
        newer, not the authority's, or not valid now."""
        accepted = self._membership.accept(encoded, self._now()) if encoded else self._membership
        if accepted is not self._membership:
            self._known_list.keep(encoded)
            self._membership = accepted

    def _latest(self, membership: Membership) -> Membership:
        """The newest list this device ever knew: an old one must not become new by a restart."""
        kept = self._known_list.read()
        if kept and kept == membership.encoded:
            return membership
        if not kept or MemberList.decode(kept).number < membership.number:
            if membership.number:
                self._known_list.keep(membership.encoded)
            return membership
        # Whatever its date: a list that has run out meanwhile is refused when a round begins, not here.
        return Membership(membership.authority, verify=self._verify).know(kept)

    def _now(self) -> int:
        return int(self._clock())

    # --- working -----------------------------------------------------------------------------------------

    def _begin(self, task: _Task) -> RoundWork:
        """Begin the work of an attempt, in its own time or when the outcome is asked for."""
        return RoundWork(
            self._workplace,
            lambda: self._job(task),
            task.plan.training_seconds,
            pace=self._pace,
            ahead=self._ahead,
        )

    def _job(self, task: _Task) -> Job:
        """What a round asks to be done: training, or the final fit of the personal part."""
        announce, choices = task.announce, self._owner.choices()
        return Job(
            plan=task.plan,
            base=announce.base,
            shared=task.shared,
            start=task.start,
            personal=self._personal(announce.run, task.start),
            train=choices.train,
            held_out=choices.validation,
            seed=self._seed(announce),
            attempt=announce.run + announce.round.to_bytes(4, "big") + announce.attempt.to_bytes(2, "big"),
        )

    def _noise_for(self, task: _Task, state: object) -> Ring | None:
        """This device's part of the noise of an attempt, drawn anew; None where sums are exact."""
        people = len(state.identities) if isinstance(state, SharesDealt) else 0
        honest = honest_in(task.announce, task.plan, people)
        return task.layout.draw_noise(self._noise(task.announce), honest)

    def _through_the_door(
        self, task: _Task, made: Outcome | str, kept: Vector, state: object
    ) -> tuple[Vector, Ring, str]:
        """(personal part to keep, vector to mask, why it is zeros) of what the work has made.

        Where it has made nothing, or nothing that can be sent, these are the personal part as it was and the
        vector of zeros with weight 0; why is for the owner alone. Zeros are always made beside the other.
        """
        key, layout = self._derived(task.announce, "rounding"), task.layout
        nothing = Contribution.nothing(layout.quantiser.size)
        zeros, counted = layout.quantise(nothing, key), nothing
        if not isinstance(made, str):
            counted = contribution_of(made, in_histogram=_in_histogram(task.policy, state))
        try:
            vector = layout.quantise(counted, key)
        except Exception as error:  # whatever it is, it is no business of the server's
            made = f"what training made can't be sent: {error if _said(error) else type(error).__name__}"
        return (kept, zeros, made) if isinstance(made, str) else (made.personal, vector, "")

    def _personal(self, run: bytes, start: Vector) -> Vector:
        """The committed personal part; the common start before the first round, or after a warm-up."""
        kept = self._vault.personal(run)
        return kept.vector if kept is not None and kept.vector.shape == start.shape else start.copy()

    def _seed(self, announce: Announce) -> int:
        return int.from_bytes(self._derived(announce, "training")[:7], "big")

    def _derived(self, announce: Announce, purpose: str) -> bytes:
        """32 bytes of the device's secret for one round; the same for every attempt, so that a repeated
        round repeats its result."""
        place = announce.run + announce.round.to_bytes(4, "big")
        return derive(self._secret, domain(purpose, place))


def _said(error: Exception) -> bool:
    """Whether the text of an error is penchant's own, which names nobody's choices."""
    return isinstance(error, PenchantError)


def _room(task: _Task) -> Room:
    """What the vault will have to keep of a round: the personal part, and the model that it belongs to."""
    row = 4 * task.start.size + len(task.announce.plan) + len(task.announce.factors)
    return Room(row, task.policy.max_disk_mb << 20, task.policy.keep_runs)


def _in_histogram(policy: OwnerPolicy, state: object) -> bool:
    """Whether the sum will hold so many honest people that this device shows its tenth of accuracy."""
    return isinstance(state, SharesDealt) and (
        policy.honest_among(len(state.identities)) >= HONEST_FOR_HISTOGRAM
    )
