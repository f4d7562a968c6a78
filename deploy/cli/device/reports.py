"""What `penchant device status` and `runs` write with `--json`, in the order of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from penchant.client.device.privacy_report import PrivacyReport
from penchant.client.device.taking_part import TakingPart
from penchant.client.learning.chosen import Blend
from penchant.client.learning.outcome import Counts
from penchant.client.vault.budget import DiskUse
from penchant.client.vault.run_ledger import KnownRun
from penchant.common.membership.manifest import shown_day
from penchant.common.membership.release_manifest import EVERYBODY

if TYPE_CHECKING:  # what lists runs needs no model
    from penchant.client.device.device import Quality, Report
    from penchant.client.device.known_release import KnownRelease

__all__ = ["AskedRun", "DeviceStatus", "DiskReport", "LeftPart", "Refusal", "ReleaseReport", "RightAnswers"]


@dataclass(frozen=True, kw_only=True)
class AskedRun:
    """A run that asked for the device: how far it came here, and what the authority lets it ask.

    Attributes:
        run: the run's id, in hex.
        state: "accepted", "waiting to be accepted" by the owner, or "signed" where that is enough.
        rounds: in how many rounds the device took part.
        attempts: in how many attempts it took part.
        most_rounds: how many rounds the run may have.
        least_cohort: how many people a round asks at least.
        least_group: how many people a sum is over at least.
        first_day: the first day on which the run may ask.
        last_day: the last day on which the run may ask.
        asks: all of this and the settings, in words.
    """

    run: str
    state: str
    rounds: int
    attempts: int
    most_rounds: int
    least_cohort: int
    least_group: int
    first_day: str
    last_day: str
    asks: tuple[str, ...]

    @classmethod
    def of(cls, run: KnownRun, each: bool) -> Self:
        """As the device's ledger knows it; `each` says whether the owner accepts each run."""
        asks = run.asks
        return cls(
            run=run.run.hex(),
            state="accepted" if run.accepted else "waiting to be accepted" if each else "signed",
            rounds=run.rounds,
            attempts=run.attempts,
            most_rounds=asks.rounds,
            least_cohort=asks.least_cohort,
            least_group=asks.least_group,
            first_day=shown_day(asks.first_day),
            last_day=shown_day(asks.last_day),
            asks=tuple(asks.lines()),
        )


@dataclass(frozen=True)
class RightAnswers:
    """How many of so many held-out choices a model ranks right."""

    correct: int
    of: int

    @classmethod
    def counted(cls, counts: Counts) -> Self:
        """As an evaluation counts them."""
        return cls(counts.correct, counts.total)


@dataclass(frozen=True)
class LeftPart:
    """A part of vectors that left the device: how often, and how many bytes together."""

    name: str
    times: int
    bytes: int


@dataclass(frozen=True)
class Refusal:
    """A message that the device refused, with the code that the server got and the reason for the owner."""

    stage: str
    code: str
    why: str


@dataclass(frozen=True, kw_only=True)
class DiskReport(DiskUse):
    """`DiskUse`, and `vault_most`, the bytes that the owner allows the vault."""

    vault_most: int | None


@dataclass(frozen=True, kw_only=True)
class ReleaseReport:
    """The newest release of the fleet that this device has fetched.

    Attributes:
        name: how the fleet calls it.
        sequence: the number under which the authority signed it.
        signed: when it did, in Unix seconds.
        fetched: when this device fetched it, in Unix seconds.
        in_use: whether the model on this device is made of it.
        canary: which part of the devices use it, from 0 to 1; None for all.
        says: what the manifest says, in words.
    """

    name: str
    sequence: int
    signed: int
    fetched: int
    in_use: bool
    canary: float | None
    says: tuple[str, ...]

    @classmethod
    def of(cls, known: KnownRelease) -> Self:
        """As the device knows it."""
        manifest, contents = known.manifest, known.manifest.contents
        return cls(
            name=contents.name,
            sequence=manifest.sequence,
            signed=manifest.signed,
            fetched=known.fetched,
            in_use=known.in_use,
            canary=contents.share / EVERYBODY if contents.is_canary else None,
            says=contents.lines(),
        )


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What was chosen between the owner's own model, everybody's, and the one halfway between.

    Attributes:
        own_percent: how much of what is the owner's own is in use: 100, 50 or 0.
        best_percent: of the model that ranked most held-out choices right.
        ahead: how many of these that one alone has right, against the owner's own model.
        behind: how many only the owner's own has right.
        of: how many were held out.
        says: all of it in words.
    """

    own_percent: int
    best_percent: int
    ahead: int
    behind: int
    of: int
    says: str

    @classmethod
    def of_blend(cls, blend: Blend) -> Self:
        """As the device has kept it."""
        return cls(
            own_percent=blend.percent,
            best_percent=blend.tried,
            ahead=blend.ahead,
            behind=blend.behind,
            of=blend.judged,
            says=blend.words(),
        )


@dataclass(frozen=True, kw_only=True)
class DeviceStatus:
    """A device at a glance.

    Attributes:
        choices: how many choices are recorded.
        held_out: how many of them are kept aside to judge the model by.
        ties: of how many comparisons the owner said that neither response is preferred.
        lost_ties: how many of those can't be read any more, because their keys are gone.
        sources: how many choices came from where.
        member: the device's number in its fleet; None without one.
        agent_runs: whether the agent is running.
        takes_part: whether the device takes part in rounds now.
        why_not: why it does not.
        server_heard: when the server answered last, in Unix seconds; None before the first time.
        turned_away: why the server takes nothing from the device any more; None while it does.
        last_taken: the day on which it last took part; None before the first.
        run: the last run, in hex.
        round: the last round of it.
        rounds_joined: in how many rounds of all runs the device took part.
        runs: the runs that asked for it.
        held_out_right: how the "personal" and the "global" model do on the held-out choices.
        model_in_use: which model was chosen for the owner, and why; none where there was no choice.
        why_unknown: why that is not known.
        other_settings: whether the model was trained alone, and model.toml says something else by now.
        left: everything that ever left the device.
        refused: what it refused.
        disk: what it takes on the disk.
        privacy: what taking part has cost.
        release: the newest release of the fleet that it has fetched; None before the first.
    """

    choices: int
    held_out: int
    ties: int
    lost_ties: int
    sources: Mapping[str, int]
    member: int | None
    agent_runs: bool
    takes_part: bool
    why_not: str | None
    server_heard: float | None
    turned_away: str | None
    last_taken: str | None
    run: str | None
    round: int
    rounds_joined: int
    runs: tuple[AskedRun, ...]
    held_out_right: Mapping[str, RightAnswers] | None
    model_in_use: ModelReport | None
    why_unknown: str | None
    other_settings: bool
    left: tuple[LeftPart, ...]
    refused: tuple[Refusal, ...]
    disk: DiskReport
    privacy: PrivacyReport | None
    release: ReleaseReport | None

    @classmethod
    def of(cls, report: Report, part: TakingPart) -> Self:
        """As the device reports it; `part` says whether it can be asked now."""
        quality = report.quality
        return cls(
            choices=report.choices,
            held_out=report.held_out,
            ties=report.ties,
            lost_ties=report.lost_ties,
            sources=report.sources,
            member=report.member,
            agent_runs=part.agent,
            takes_part=not part.why_not,
            why_not=part.why_not or None,
            server_heard=part.heard or None,
            turned_away=part.refused or None,
            last_taken=part.last_taken or None,
            run=report.run or None,
            round=report.round,
            rounds_joined=report.rounds_joined,
            runs=tuple(AskedRun.of(run, report.each_run) for run in report.runs),
            held_out_right=None if quality is None else _right(quality),
            model_in_use=None if report.blend is None else ModelReport.of_blend(report.blend),
            why_unknown=report.unknown or None,
            other_settings=report.other_settings,
            left=tuple(LeftPart(name, times, size) for name, times, size in report.left),
            refused=tuple(Refusal(stage, code, why) for stage, code, why in report.refused),
            disk=DiskReport(**asdict(report.disk), vault_most=report.disk_most),
            privacy=report.privacy,
            release=None if report.release is None else ReleaseReport.of(report.release),
        )


def _right(quality: Quality) -> dict[str, RightAnswers]:
    return {
        "personal": RightAnswers.counted(quality.personal),
        "global": RightAnswers.counted(quality.common),
    }
