"""Run manifests: what a run may ask of devices, fixed and signed by the authority before the server asks.

A manifest names the run, the base model, the plan of every phase, the most rounds, the least cohort and the
least group, the first and the last day, and what the run promises about privacy. It travels with every
announcement; a device takes part in nothing that goes beyond it. The server asks for a signature with a
`RunRequest`, a file; the authority answers with a `SignedManifest`, a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Final

from penchant.common.config import Phase, Plan, RunConfig
from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import Verifier, verify
from penchant.common.durations import DAY
from penchant.common.errors import AgreementError, CodecError, ConfigError, PolicyRefusal
from penchant.common.membership.identity import Authority
from penchant.common.settings import dotted_table
from penchant.common.wire.codec import U16, U32, AtMost, Many, decode_record, encode_record
from penchant.common.wire.messages import MAX_GROUP, MAX_PLAN, Digest, RunId, Signature

__all__ = [
    "LAST_DAY",
    "MAX_LINE",
    "MAX_RUN_REQUEST",
    "NONCE_BYTES",
    "PrivacyParameter",
    "RunManifest",
    "RunRequest",
    "SignedManifest",
    "day_of",
    "phases_of",
    "promised",
    "shown_day",
    "sign_run",
]

LAST_DAY: Final = (date.max - date(1970, 1, 1)).days
"""The last day that a manifest can name: the end of the year 9999."""
MAX_NAME: Final = 100  # bytes of a run's name
MAX_RUN_REQUEST: Final = 4 * MAX_PLAN  # bytes: three plans and little else
NONCE_BYTES: Final = 16  # behind a request that was declined before
MAX_LINE: Final = 1900
"""Characters of a line that says what a run may ask: fewer than are shown of a text (`printable`), so that
nothing is cut off before somebody signs."""
_PHASES: Final[tuple[Phase, ...]] = ("warmup", "main", "close")
_SHOWN: Final[dict[Phase, str]] = {
    "warmup": "warm-up rounds",
    "main": "main rounds",
    "close": "the closing round",
}


@dataclass(frozen=True, slots=True)
class PrivacyParameter:
    """One promise about privacy, such as a noise multiplier, an epsilon, a delta or a clip, by its name."""

    name: Annotated[str, AtMost(40)]
    value: Annotated[str, AtMost(40)]


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What a run may ask. Days are counted from 1970-01-01, in UTC.

    Attributes:
        run: the 16 bytes that name the run.
        base: the digest of the base model.
        rounds: the most rounds of the run; the last of them is the closing one.
        warmup: how many of them, from the first, share both factors.
        least_cohort: the fewest people that a round may be planned for.
        least_group: the fewest people that one sum may be over, as the roster shows.
        unmasked: whether vectors are sent without secure aggregation.
        first_day: the first day on which a round may begin.
        last_day: the last such day.
        plans: the encoded plan of each phase that the run goes through, in their order. A round's own plan
            may name a larger cohort, and differs in nothing else.
        privacy: what is promised about privacy, by ascending names, as `promised` says it of the plans.
    """

    run: RunId
    base: Digest
    rounds: U32
    warmup: U32
    least_cohort: U32
    least_group: U16
    unmasked: bool
    first_day: U32
    last_day: U32
    plans: Annotated[tuple[Annotated[bytes, AtMost(MAX_PLAN)], ...], Many(len(_PHASES))]
    privacy: Annotated[tuple[PrivacyParameter, ...], Many(16)] = ()

    def encode(self) -> bytes:
        """The canonical bytes: what is signed."""
        return encode_record(self)

    @property
    def digest(self) -> bytes:
        """32 bytes that stand for the whole content."""
        return hashlib.sha256(_text(self)).digest()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that the numbers of rounds give, in order."""
        return phases_of(self.rounds, self.warmup)

    def phase_of(self, number: int) -> Phase:
        """The phase of round `number`, from 1 to `rounds`."""
        if number == self.rounds:
            return "close"
        return "warmup" if number <= self.warmup else "main"

    def check(self) -> None:
        """AgreementError unless the parts fit one another; nobody signs, and no device follows, any other."""
        try:
            plans = [_plan(plan) for plan in self.plans]
        except ConfigError as error:
            raise AgreementError(f"a plan of the run manifest can't be read: {error}") from None
        sound = (
            self.rounds > 0
            and self.warmup < self.rounds
            and self.least_cohort > 0
            and 0 < self.least_group <= MAX_GROUP
            and self.first_day <= self.last_day <= LAST_DAY
            and tuple(plan.phase for plan in plans) == self.phases
            and all(plan.cohort >= self.least_cohort for plan in plans)
            and len({plan.model.base_model for plan in plans}) == 1
            and all(self._keeps_its_promise(plan) for plan in plans)
        )
        if not sound:
            raise AgreementError("the run manifest contradicts itself; ask the operator for another one")
        if any(len(line) > MAX_LINE for line in self.lines()):
            raise AgreementError(
                f"the run manifest takes lines of more than {MAX_LINE} characters to say what it asks for; "
                "the operator must ask for less"
            )

    def _keeps_its_promise(self, plan: Plan) -> bool:
        """Whether the promise is the plan's, and sums hold as many honest people as it counts on."""
        enough = 1 <= plan.dp_honest <= self.least_group and plan.dp_participations > 0
        return self.privacy == promised(plan) and (not plan.dp_epsilon or (enough and not self.unmasked))

    def allows(self, plan: Plan) -> bool:
        """Whether `plan` is the one of its phase, for as large a cohort or a larger one."""
        if plan.cohort < self.least_cohort:
            return False
        for encoded in self.plans:
            own = _plan(encoded)
            if own.phase == plan.phase:
                return replace(plan, cohort=own.cohort).encode() == encoded
        return False

    def lines(self) -> tuple[str, ...]:
        """The content, a line each, for whoever signs it and for owners.

        What it is about comes first, in plain words; then, for each phase, every setting of its plan that is
        not penchant's default, so that manifests with different plans have different lines.
        """
        plan = _plan(self.plans[-1])
        main = _plan(self.plans[min(1, len(self.plans) - 1) if self.warmup else 0])
        privacy = ", ".join(f"{p.name} {p.value}" for p in self.privacy)
        masked = "NO: the server sees every single update" if self.unmasked else "yes"
        return (
            f"run {self.run.hex()}",
            f"base model {plan.model.base_model}, digest {self.base.hex()[:16]}…",
            f"share {main.adapter.share}, rank {main.adapter.rank}, {main.training.epochs} epochs a round",
            f"at most {self.rounds} rounds, {shown_day(self.first_day)} to {shown_day(self.last_day)} (UTC)",
            f"at least {self.least_cohort} people are asked, at least {self.least_group} are in one sum",
            f"a person's update has norm {main.clip:g} at most, and counts for {main.max_weight} pairs",
            f"secure aggregation: {masked}",
            f"privacy: {privacy or 'no noise is added, so sums are exact'}",
            *map(_settings_line, self.plans),
        )


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest with the authority's signature, as it travels and as it lies in files."""

    manifest: RunManifest
    signature: Signature

    def encode(self) -> bytes:
        """The bytes that an announcement carries."""
        return encode_record(self)

    @classmethod
    def read(cls, encoded: bytes, authority: bytes, *, verify: Verifier = verify) -> RunManifest:
        """The manifest in `encoded`, if `authority` (a public key of 32 bytes) has signed it.

        Raises PolicyRefusal when it is missing or not signed by the authority, AgreementError when it can't
        be read or contradicts itself.
        """
        if not encoded:
            raise PolicyRefusal(
                "the run has no manifest that the authority signed; the operator asks for one with "
                "`penchant server resume`"
            )
        try:
            signed = decode_record(encoded, cls)
        except CodecError as error:
            raise AgreementError(f"the run manifest can't be read: {error}") from None
        if not verify(authority, _text(signed.manifest), signed.signature):
            raise PolicyRefusal("the run manifest is not signed by this fleet's authority")
        signed.manifest.check()
        return signed.manifest


@dataclass(frozen=True, slots=True)
class _NamedManifest:
    """A manifest, and what the operator calls the run."""

    name: Annotated[str, AtMost(MAX_NAME)]
    manifest: RunManifest


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A server asks the authority to sign a manifest.

    Attributes:
        name: what the operator calls the run.
        manifest: what is to be signed.
        nonce: nothing, or `NONCE_BYTES` random bytes once the authority has declined: no two requests are
            the same bytes.
    """

    name: str
    manifest: RunManifest
    nonce: bytes = b""

    def encode(self) -> bytes:
        """The request as a file: a record, and the nonce behind it."""
        return encode_record(_NamedManifest(self.name, self.manifest)) + self.nonce

    @classmethod
    def decode(cls, data: bytes) -> RunRequest:
        """Undo `encode`; AgreementError for anything else, or a manifest that contradicts itself."""
        nonce = b""
        try:
            try:
                named = decode_record(data, _NamedManifest)
            except CodecError:
                named, nonce = decode_record(data[:-NONCE_BYTES], _NamedManifest), data[-NONCE_BYTES:]
        except CodecError as error:
            raise AgreementError(f"this does not ask for a run's signature: {error}") from None
        asked = cls(named.name, named.manifest, nonce)
        if not asked.name.isprintable():
            raise AgreementError("the run's name holds characters that can't be printed")
        asked.manifest.check()
        return asked


def phases_of(rounds: int, warmup: int) -> tuple[Phase, ...]:
    """The phases of a run of so many rounds, the closing one included, of which so many are a warm-up."""
    own = ("warmup",) if warmup else ()
    main = ("main",) if rounds > warmup + 1 else ()
    return (*own, *main, "close")


def promised(plan: Plan) -> tuple[PrivacyParameter, ...]:
    """What a plan promises about privacy, by ascending names; nothing where sums are exact."""
    if not plan.dp_epsilon:
        return ()
    return (
        PrivacyParameter("delta", repr(plan.dp_delta)),
        PrivacyParameter("epsilon", repr(plan.dp_epsilon)),
        PrivacyParameter("honest people's noise", str(plan.dp_honest)),
        PrivacyParameter("rounds a person", str(plan.dp_participations)),
    )


def sign_run(authority: Authority, manifest: RunManifest) -> SignedManifest:
    """Sign a manifest. AgreementError when it contradicts itself."""
    manifest.check()
    return SignedManifest(manifest, authority.sign(_text(manifest)))


def day_of(seconds: float) -> int:
    """The day (UTC, from 1970-01-01) of a moment in Unix seconds."""
    return int(seconds // DAY)


def shown_day(day: int) -> str:
    """A day as people write it, such as 2026-11-28."""
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
    except OverflowError:
        return f"day {day}"


@lru_cache(maxsize=32)
def _plan(encoded: bytes) -> Plan:
    """A manifest's plan. The same few are read for every round."""
    return Plan.decode(encoded)


@lru_cache(maxsize=32)
def _settings_line(encoded: bytes) -> str:
    """What an encoded plan asks for beside the defaults: in the order of the page of settings, in JSON, which
    writes whatever can't be printed as an escape."""
    plan = _plan(encoded)
    usual = dotted_table(RunConfig().plan(plan.phase, plan.cohort))
    usual.pop("cohort")  # it has no default
    asked = (
        f"{key} = {json.dumps(value)}"
        for key, value in dotted_table(plan).items()
        if key not in usual or value != usual[key]
    )
    return f"settings of {_SHOWN[plan.phase]} that are not the default: {', '.join(asked)}"


def _text(manifest: RunManifest) -> bytes:
    return domain("run manifest", manifest.encode())
