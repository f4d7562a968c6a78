"""Which runs a device takes part in: those that the authority signed, within the owner's limits.

Asked after an announcement is checked otherwise and before the reply to `keys`. What is refused here depends
on the announcement, the date and counts of earlier rounds: never on the owner's choices.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial

from penchant.client.agent.policy import OwnerPolicy
from penchant.client.vault.run_ledger import Attempt, RunLedger, enter
from penchant.common.config import Plan
from penchant.common.crypto.keys import Verifier
from penchant.common.errors import AgreementError, PolicyRefusal, ProtocolError
from penchant.common.membership.manifest import RunManifest, SignedManifest, day_of, shown_day
from penchant.common.wire.codec import decode, decode_record
from penchant.common.wire.messages import Announce, Kind, Roster, Survivors

__all__ = ["Entered", "admit", "check_roster", "check_survivors", "least_group"]

Entered = Callable[[sqlite3.Connection], None]
"""Counts an attempt inside the transaction that burns it, or refuses it."""


def admit(
    announce: Announce,
    plan: Plan,
    policy: OwnerPolicy,
    ledger: RunLedger,
    authority: bytes,
    now: float,
    verify: Verifier,
) -> Entered:
    """Check what is announced against the run's manifest; -> what counts the attempt when it is burnt.

    Args:
        announce: what the server asks.
        plan: the announced plan, decoded.
        policy: what the owner allows now.
        ledger: what the device remembers of runs.
        authority: the public key of the authority that the device trusts.
        now: the clock, in Unix seconds. It is not believed when it goes backwards.
        verify: how signatures are checked.

    Raises:
        PolicyRefusal: no manifest, one of another authority, outside its days, one that changed, or a run
            that the owner has not accepted.
        AgreementError: the announcement is not what the manifest says.
    """
    manifest = SignedManifest.read(announce.manifest, authority, verify=verify)
    today = ledger.day(day_of(now))
    check_announced(manifest, announce, plan, today)
    attempt = Attempt(announce.run, announce.round, announce.attempt, manifest.encode(), manifest.last_day)
    if policy.runs == "each" and not ledger.offer(attempt, today):
        raise PolicyRefusal(
            f"the owner has not accepted this run: `penchant device accept-run {announce.run.hex()[:8]}`"
        )
    return partial(enter, attempt=attempt, limits=policy.limits(), today=today)


def check_announced(manifest: RunManifest, announce: Announce, plan: Plan, today: int) -> None:
    """AgreementError or PolicyRefusal unless the announcement keeps to the run's manifest on day `today`."""
    if manifest.run != announce.run:
        raise AgreementError("the run manifest belongs to a different run than the announcement")
    if manifest.base != announce.base:
        raise AgreementError("the run manifest names a different base model than the announcement")
    if manifest.unmasked != (announce.kind is not Kind.SECAGG):
        raise AgreementError("the run manifest says otherwise about secure aggregation")
    if not 1 <= announce.round <= manifest.rounds:
        raise AgreementError(
            f"round {announce.round} is announced, and the run manifest allows {manifest.rounds}; for more "
            "rounds a new run is needed"
        )
    if plan.cohort < manifest.least_cohort:
        raise AgreementError(
            f"a round for {plan.cohort} people is announced, and the run manifest asks for at least "
            f"{manifest.least_cohort}"
        )
    if plan.phase != manifest.phase_of(announce.round) or not manifest.allows(plan):
        raise AgreementError("the announced plan is not the one that the run manifest gives for this round")
    if announce.group < manifest.least_group:
        raise AgreementError(
            f"groups of at most {announce.group} are announced, and the run manifest asks for at least "
            f"{manifest.least_group} people in a sum"
        )
    if not manifest.first_day <= today <= manifest.last_day:
        days = f"{shown_day(manifest.first_day)} to {shown_day(manifest.last_day)}"
        raise PolicyRefusal(f"the run manifest is valid from {days}, and today is {shown_day(today)}")


def check_roster(announce: Announce, payload: bytes) -> None:
    """AgreementError when a roster holds fewer people than the run's manifest asks for in one sum.

    announce: one that `admit` has checked.
    """
    try:
        found = len(decode(payload, Roster).entries)
    except ProtocolError:
        return  # no roster: whether another message belongs here, the role says
    _refuse_few(announce, found)


def check_survivors(announce: Announce, payload: bytes) -> None:
    """The same for those whose vectors have arrived, before this device helps to open their sum."""
    try:
        found = len(decode(payload, Survivors).survivors)
    except ProtocolError:
        return
    _refuse_few(announce, found)


def least_group(announce: Announce) -> int:
    """The fewest people in a sum, by the run's manifest. announce: one that `admit` has checked."""
    return decode_record(announce.manifest, SignedManifest).manifest.least_group


def _refuse_few(announce: Announce, found: int) -> None:
    least = least_group(announce)
    if found < least:
        raise AgreementError(f"a sum over {found} people, and the run manifest asks for at least {least}")
