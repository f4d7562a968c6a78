"""A device's home: the directory that --home names, as its owner and its agent have it, without any model.

policy.toml      what the owner allows; only the owner writes it
model.toml       base model, adapter and training for work on the device alone
preferences.db   recorded choices and ties (`client.device.preference_store`), each sealed under its own key,
                 and that there is a ledger of privacy in vault.db
vault.db         personal factor, keys, burnt attempts (`client.vault`), sealed likewise
fitted.db        how sure the personal factor is, and whether rightly (`client.device.fitted`); sealed
*.keys           those keys: what is destroyed when something is forgotten
vault.root       the root key that opens all of it, itself under a passphrase if the owner chose one
paused           there while the owner has paused the device

What needs a model is in `client.device.device`: whoever only takes part loads neither torch nor transformers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from penchant.client.agent.agent import Agent
from penchant.client.agent.known_lists import MEMBERS
from penchant.client.agent.owner import Choices, member_identity
from penchant.client.agent.policy import OwnerPolicy
from penchant.client.agent.privacy_cost import budget_of
from penchant.client.agent.round_work import Pace, WallClock
from penchant.client.device.preference_store import Added, PreferenceStore
from penchant.client.learning.training_process import TrainingProcess
from penchant.client.learning.workplace import Workplace
from penchant.client.vault.sealing import SealedStorage
from penchant.client.vault.vault import Vault
from penchant.common.config import AdapterConfig, ModelConfig, TrainingConfig, refuse_unread_head
from penchant.common.crypto.entropy import SystemEntropy
from penchant.common.data.preferences import Preference
from penchant.common.errors import DeviceError, MembershipError, UsageError
from penchant.common.membership.enrolment import Answer, LeaveNotice, Request, request
from penchant.common.membership.identity import Identity, Membership, authority_digest
from penchant.common.settings import Section
from penchant.common.shares import EVERYONE_ALONE
from penchant.common.storage import write_private

__all__ = ["OFFLINE_TRAINING", "DeviceHome", "OfflineConfig"]

POLICY = "policy.toml"
MODEL = "model.toml"
PAUSED = "paused"
PENDING, IDENTITY, AUTHORITY, SECRET = "pending key", "identity", "authority", "device secret"
OFFLINE_TRAINING = TrainingConfig(lr_personal=1e-3, lr_head=1e-2, local_epochs=6)


@dataclass(frozen=True)
class OfflineConfig(Section):
    """What the device uses before it has joined a run: all that is trained is personal."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=lambda: AdapterConfig(share=EVERYONE_ALONE))
    training: TrainingConfig = field(default_factory=lambda: OFFLINE_TRAINING)

    def _check(self) -> None:
        # a file that leaves training.lr_head out has TrainingConfig's own
        refuse_unread_head(self.model, self.training, OFFLINE_TRAINING, TrainingConfig())

    @classmethod
    def _title(cls) -> str:
        return "offline"


class DeviceHome:
    """One device's home, for its owner, who is the `Owner` that its agent asks.

    Opening it makes what is missing; a wrong passphrase is refused first.
    """

    def __init__(self, directory: Path, passphrase: str | None = None) -> None:
        self.directory = directory
        self.storage = SealedStorage.of(directory, passphrase)
        self.store = PreferenceStore(directory, self.storage)
        self.vault = Vault(directory, self.storage, self.store)
        self._training: TrainingProcess | None = None  # of its agents
        for name, text in ((POLICY, OwnerPolicy().to_toml()), (MODEL, OfflineConfig().to_toml())):
            path = directory / name
            if not path.exists():
                write_private(path, text.encode(), replace=False)

    # --- what the owner allows -----------------------------------------------------------------------

    def policy(self) -> OwnerPolicy:
        """As it is now; the agent reads it for each message."""
        policy = OwnerPolicy.read(self.directory / POLICY)
        return replace(policy, paused=True) if self.paused else policy

    @property
    def paused(self) -> bool:
        """Whether the owner paused the device; policy.toml may say so as well."""
        return (self.directory / PAUSED).exists()

    def pause(self) -> None:
        """Take part in nothing until `resume`."""
        write_private(self.directory / PAUSED, b"")

    def resume(self) -> None:
        """Take part again, as the policy says. UsageError when policy.toml itself says paused."""
        if OwnerPolicy.read(self.directory / POLICY).paused:
            raise UsageError(f"{self.directory / POLICY} says paused = true; change it there")
        try:
            (self.directory / PAUSED).unlink(missing_ok=True)
        except OSError as error:
            raise DeviceError(f"can't end the pause: {error.strerror}; this device stays paused") from None

    # --- choices -------------------------------------------------------------------------------------

    def choices(self) -> Choices:
        """As they are now; the agent reads them for each round."""
        return Choices(*self.store.sides())

    def record(self, preferences: Iterable[Preference], source: str = "import") -> Added:
        """Record choices and ties, all or none."""
        return self.store.add(preferences, source)

    # --- a fleet -------------------------------------------------------------------------------------

    def request(self) -> Request:
        """What the enrolment authority needs to certify this device. The private key stays here.

        The same request as long as the device has not joined.
        """
        private = self.vault.blob(PENDING)
        if not private:
            private = os.urandom(32)
            self.vault.keep_blob(PENDING, private)
        return request(private)

    def join(self, answer: bytes, authority: bytes) -> int:
        """Take the authority's answer; -> the member number. `authority`: its 32-byte digest, which came by
        another way than the answer.

        A newer list of the same authority that is known here stays.

        Raises CertificateError when the answer is of another authority or for another device,
        MembershipError when its list, or the newer one, does not hold this device now.
        """
        private = self.vault.blob(PENDING)
        if not private:
            raise UsageError("this device has asked for nothing; make a request first")
        given = Answer.decode(answer, authority)
        identity = Identity(private, given.certificate)
        membership = self._newest(Membership(given.authority).accept(given.members, int(time.time())))
        membership.check(identity.certificate)
        self.vault.keep_blobs(
            {
                AUTHORITY: given.authority,
                MEMBERS: membership.encoded,
                IDENTITY: identity.encode(),
                PENDING: b"",
            }
        )
        return identity.member

    def _newest(self, given: Membership) -> Membership:
        """The list of an answer, or the one that was known before where that is the same authority's and
        newer: an answer that was held back must bring no older one back."""
        try:
            known = Membership(given.authority).know(self.vault.blob(MEMBERS))
        except MembershipError:  # none, or another authority's
            return given
        return known if known.number > given.number else given

    def leave_notice(self) -> LeaveNotice:
        """What tells the server that this member left (`joining.tell_server`). Made before `leave` or
        `forget`: it needs the identity. UsageError when this device is in no fleet."""
        return LeaveNotice.of(member_identity(self), authority_digest(self.vault.blob(AUTHORITY)))

    def leave(self) -> int:
        """Give up membership: the identity is deleted, no round is joined any more; -> the member number.

        Choices and the personal model stay. A running agent refuses everything from then on. The authority
        should revoke the member as well.
        """
        identity = member_identity(self)
        self.vault.keep_blobs(dict.fromkeys((IDENTITY, AUTHORITY, PENDING), b""))
        return identity.member

    @property
    def member(self) -> int | None:
        """The member number, None before `join`."""
        identity = self.identity()
        return None if identity is None else identity.member

    def agent(self) -> Agent:
        """The agent of this device, as it takes part in rounds: it works in a separate process and keeps to
        real time. UsageError before `join`."""
        if self._training is None:  # one for all agents of this device, with the models that it has loaded
            self._training = TrainingProcess(self.policy().max_training_mb, self.directory)
        agent = self._agent(self._training, WallClock())
        with suppress(DeviceError):  # of which each round tells the owner
            self.choices()  # read now, rather than when a server asks
        return agent

    def give_up_budget(self) -> None:
        """Count all of the owner's budget as spent, where the ledger of privacy was lost or set back."""
        self.vault.privacy.give_up(budget_of(self.policy()))

    def accept_run(self, named: str) -> bytes:
        """Take part in the run whose id begins with `named`, where the policy says runs = "each"; -> its id.

        UsageError when no run, or more than one, that asked for this device is meant.
        """
        return self.vault.ledger.accept(named)

    def identity(self) -> Identity | None:
        """Who this device is in its fleet, None before `join` and after `leave`."""
        encoded = self.vault.blob(IDENTITY)
        if not encoded:
            self.store.let_go()  # a running agent: the owner has left, and perhaps forgotten everything
            if self._training is not None:
                self._training.let_go()
        return Identity.decode(encoded) if encoded else None

    def membership(self) -> Membership:
        """The authority that the owner joined under; its lists are the agent's business."""
        return Membership(self.vault.blob(AUTHORITY))

    # --- inner parts ---------------------------------------------------------------------------------

    def _agent(self, workplace: Workplace, pace: Pace | None) -> Agent:
        member_identity(self)
        self.vault.prune(self.policy().keep_runs)
        secret = self.vault.blob(SECRET)
        if not secret:
            secret = os.urandom(32)
            self.vault.keep_blob(SECRET, secret)
        return Agent(
            self.vault,
            self,
            workplace=workplace,
            secret=secret,
            entropy=SystemEntropy(),
            ahead=True,
            pace=pace,
            keep_model=True,
        )
