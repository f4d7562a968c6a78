"""A fleet's figures in Prometheus' text form: what `penchant server metrics` answers with.

Nothing is counted here: every figure is one that the server's directory records already. Labels hold names of
runs, stages and the like, and never those of people, devices or members; how many values one can have is
bounded, whatever the journals say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final, Self, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from penchant.common.secagg.stages import STAGES
from penchant.common.wire.messages import AbortCode
from penchant.server.journal_reader import JournalContents, Stage
from penchant.server.monitoring.fleet import Expiry
from penchant.server.monitoring.run_history import RunSummary, State

__all__ = [
    "CONTENT_TYPE",
    "OTHER",
    "RUNS_MOST",
    "DeviceFigures",
    "DiskFigures",
    "FleetFigures",
    "RequestFigures",
    "RunFigures",
    "exposition",
    "families",
]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
RUNS_MOST: Final = 20
"""Runs that have figures of their own: those at work, and then the ones that moved last."""
OTHER: Final = "other"
"""The label of a stage or code that this version does not know."""

_CODES = tuple(code.name for code in AbortCode)


@dataclass(frozen=True)
class RunFigures:
    """A run's figures.

    Attributes:
        name: the name of its directory.
        state: what `RunSummary.state` says.
        rounds: how many rounds it has, the closing one included.
        settled: how many of them need no more work.
        attempts: how many attempts ended in each way: "finished", "failed", "skipped".
        touched: when it last moved, Unix seconds.
        cohort: devices asked in the last finished round; None before the first.
        survivors: devices in the sum of that round.
        seconds: how long that round took.
        stage_seconds: stage -> how long it took in that round.
        lost: stage -> devices lost there, over all finished rounds.
        aborts: abort code -> how many times devices sent it, over all finished rounds.
        bytes_up: what devices sent, over all finished rounds.
        bytes_down: what they were sent.
        accuracy: the part of held-out choices ranked right, as measured last; None where nobody measured.
        epsilon_spent: what one person has spent at most by now; None without noise.
        epsilon: what the whole run may cost one person.
        open_stages: the stages of the attempt that is under way.
        ready: devices that are ready, while a round waits for more; None while none does.
        needed: devices that it waits for.
        stored: bytes of its journal and checkpoints.
    """

    name: str
    state: State
    rounds: int = 0
    settled: int = 0
    attempts: Mapping[str, int] = field(default_factory=dict)
    touched: float = 0.0
    cohort: int | None = None
    survivors: int | None = None
    seconds: float | None = None
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    aborts: Mapping[str, int] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    accuracy: float | None = None
    epsilon_spent: float | None = None
    epsilon: float | None = None
    open_stages: Sequence[Stage] = ()
    ready: int | None = None
    needed: int | None = None
    stored: int = 0

    @classmethod
    def of(cls, run: RunSummary, journal: JournalContents, stored: int) -> Self:
        """The figures of a run, whose journal holds `journal`."""
        last, logs, privacy, waiting = run.last, run.logs, journal.privacy, run.waiting
        spent = None if privacy is None else privacy.spent(run.tried)
        return cls(
            name=run.location.name,
            state=run.state,
            rounds=run.total,
            settled=run.settled,
            attempts=Counter(a.state for a in run.attempts if a.state in _ENDS),
            touched=run.touched,
            cohort=last.cohort if last else None,
            survivors=last.survivors if last else None,
            seconds=last.seconds if last else None,
            stage_seconds=_seconds(journal.stages.get((last.round, last.attempt), ())) if last else {},
            lost=_added((log.dropped for log in logs), STAGES),
            aborts=_added((log.aborts for log in logs), _CODES),
            bytes_up=sum(log.bytes_up for log in logs),
            bytes_down=sum(log.bytes_down for log in logs),
            accuracy=run.accuracy,
            epsilon_spent=spent,
            epsilon=None if privacy is None else privacy.epsilon,
            open_stages=journal.stages.get((run.open.round, run.open.attempt), ()) if run.open else (),
            ready=len(waiting.ready) if waiting else None,
            needed=waiting.needed if waiting else None,
            stored=stored,
        )


_ENDS = ("finished", "failed", "skipped")


@dataclass(frozen=True)
class DeviceFigures:
    """How many devices there are, by the member list and as the SuperLink knows them (None: it is silent)."""

    members: int
    revoked: int
    registered: int | None
    online: int | None


@dataclass(frozen=True)
class RequestFigures:
    """What waits for the authority: kind -> how many, and when the oldest was made (Unix seconds)."""

    waiting: Mapping[str, int]
    oldest: float | None


@dataclass(frozen=True)
class DiskFigures:
    """Bytes of the file system that holds the server's directory, and what is used by its parts."""

    size: int
    free: int
    used: Mapping[str, int]


@dataclass(frozen=True)
class FleetFigures:
    """A fleet at a moment (`at`, Unix seconds).

    Attributes:
        parts: part of the server -> whether it answers.
        ready: whether devices can take part in rounds now.
        attention: "bad" and "warn" -> how many notices there are.
        devices: how many devices there are.
        list_number: the number of the member list.
        expiries: what ends one day.
        requests: what waits for the authority.
        invitations: state of a token -> how many there are.
        disk: room, and what takes it.
        runs: every run; `RUNS_MOST` of them have figures of their own.
        at: the moment.
    """

    parts: Mapping[str, bool]
    ready: bool
    attention: Mapping[str, int]
    devices: DeviceFigures
    list_number: int
    expiries: Sequence[Expiry]
    requests: RequestFigures
    invitations: Mapping[str, int]
    disk: DiskFigures
    runs: Sequence[RunFigures]
    at: float


def exposition(figures: FleetFigures) -> bytes:
    """The figures in Prometheus' text form."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(figures))
    return generate_latest(registry)


class _Figures(Collector):
    """What prometheus-client asks for metrics."""

    def __init__(self, figures: FleetFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        return families(self._figures)


def families(figures: FleetFigures) -> Iterator[Metric]:
    """Every metric that there is, also where it has no value now: its name is known from the start."""
    yield from _of_server(figures)
    yield from _of_devices(figures)
    yield from _of_dates(figures)
    yield from _of_disk(figures)
    states = Counter(run.state for run in figures.runs)
    yield _gauge(
        "penchant_runs",
        "Runs in each state.",
        ("state",),
        [((state,), states[state]) for state in get_args(State)],
    )
    runs = sorted(figures.runs, key=lambda run: (run.state != "running", -run.touched))[:RUNS_MOST]
    yield from _of_rounds(runs)
    yield from _of_stages(runs)
    yield from _of_privacy(runs)


# --- one subject each ---------------------------------------------------------------------------------


def _of_server(figures: FleetFigures) -> Iterator[Metric]:
    yield _gauge(
        "penchant_build_info",
        "The version of penchant that answers.",
        ("version",),
        [((version("penchant"),), 1)],
    )
    yield _gauge(
        "penchant_part_up",
        "Whether a part of the server answers (1) or not (0).",
        ("part",),
        [((part,), answers) for part, answers in figures.parts.items()],
    )
    yield _gauge(
        "penchant_ready",
        "Whether devices can take part: parts up, certificates and member list within their dates.",
        values=[((), figures.ready)],
    )
    yield _gauge(
        "penchant_attention",
        "Notices that need attention: bad for what is down or past its date, warn for what may become so.",
        ("kind",),
        [((kind,), figures.attention.get(kind, 0)) for kind in ("bad", "warn")],
    )
    requests, invitations = figures.requests, figures.invitations
    yield _gauge(
        "penchant_requests_waiting",
        "Requests that wait for the authority.",
        ("kind",),
        [((kind,), count) for kind, count in requests.waiting.items()],
    )
    yield _gauge(
        "penchant_requests_oldest_seconds",
        "How long the oldest of them has been waiting; 0 where none does.",
        values=[((), 0.0 if requests.oldest is None else max(figures.at - requests.oldest, 0.0))],
    )
    yield _gauge(
        "penchant_invitations",
        "Invitations in each state.",
        ("state",),
        [((state,), count) for state, count in invitations.items()],
    )


def _of_devices(figures: FleetFigures) -> Iterator[Metric]:
    devices = figures.devices
    yield _gauge("penchant_members", "Members on the member list.", values=[((), devices.members)])
    yield _gauge("penchant_members_revoked", "Members that the list revokes.", values=[((), devices.revoked)])
    yield _gauge(
        "penchant_devices_registered",
        "Devices that the SuperLink lets in; none said while it is silent.",
        values=[((), devices.registered)],
    )
    yield _gauge(
        "penchant_devices_online",
        "Devices that are connected; none said while the SuperLink is silent.",
        values=[((), devices.online)],
    )


def _of_dates(figures: FleetFigures) -> Iterator[Metric]:
    yield _gauge(
        "penchant_member_list_number", "The number of the member list.", values=[((), figures.list_number)]
    )
    yield _gauge(
        "penchant_remaining_seconds",
        "Seconds until the member list or a certificate ends; negative after.",
        ("what",),
        [((one.name,), one.at - figures.at) for one in figures.expiries],
    )
    yield _gauge(
        "penchant_age_seconds",
        "Seconds since the member list or a certificate was made.",
        ("what",),
        [((one.name,), figures.at - one.since) for one in figures.expiries],
    )


def _of_disk(figures: FleetFigures) -> Iterator[Metric]:
    disk = figures.disk
    yield _gauge("penchant_disk_size_bytes", "Size of the server's file system.", values=[((), disk.size)])
    yield _gauge("penchant_disk_free_bytes", "Room on it for the server's user.", values=[((), disk.free)])
    yield _gauge(
        "penchant_disk_used_bytes",
        "What the parts of the server's directory take.",
        ("part",),
        [((part,), used) for part, used in disk.used.items()],
    )


def _of_rounds(runs: Sequence[RunFigures]) -> Iterator[Metric]:
    run = ("run",)
    yield _gauge(
        "penchant_run_running",
        "Whether a process drives the run now.",
        run,
        [((one.name,), one.state == "running") for one in runs],
    )
    yield _gauge(
        "penchant_run_rounds",
        "Rounds that the run has, the closing one included.",
        run,
        [((one.name,), one.rounds) for one in runs],
    )
    yield _gauge(
        "penchant_run_rounds_settled",
        "Rounds that need no more work.",
        run,
        [((one.name,), one.settled) for one in runs],
    )
    yield _counter(
        "penchant_run_attempts",
        "Attempts at rounds, by how they ended.",
        ("run", "state"),
        [((one.name, state), one.attempts.get(state, 0)) for one in runs for state in _ENDS],
    )
    yield _gauge(
        "penchant_run_last_change_timestamp_seconds",
        "When the run last moved, in Unix seconds.",
        run,
        [((one.name,), one.touched) for one in runs],
    )
    yield _gauge(
        "penchant_run_cohort",
        "Devices asked in the last finished round.",
        run,
        [((one.name,), one.cohort) for one in runs],
    )
    yield _gauge(
        "penchant_run_survivors",
        "Devices in the sum of the last finished round.",
        run,
        [((one.name,), one.survivors) for one in runs],
    )
    yield _gauge(
        "penchant_run_round_seconds",
        "How long the last finished round took.",
        run,
        [((one.name,), one.seconds) for one in runs],
    )
    yield _gauge(
        "penchant_run_accuracy",
        "The part of held-out choices that was ranked right, as measured last.",
        run,
        [((one.name,), one.accuracy) for one in runs],
    )
    yield _counter(
        "penchant_run_bytes",
        "What devices sent (up) and were sent (down) in finished rounds.",
        ("run", "direction"),
        [
            ((one.name, way), count)
            for one in runs
            for way, count in (("up", one.bytes_up), ("down", one.bytes_down))
        ],
    )
    yield _gauge(
        "penchant_run_stored_bytes",
        "What the run's journal and checkpoints take.",
        run,
        [((one.name,), one.stored) for one in runs],
    )


def _of_stages(runs: Sequence[RunFigures]) -> Iterator[Metric]:
    yield _gauge(
        "penchant_run_devices_ready",
        "Devices that are ready, said only while a round waits for more.",
        ("run",),
        [((one.name,), one.ready) for one in runs],
    )
    yield _gauge(
        "penchant_run_devices_needed",
        "Devices that have to be ready, said only while a round waits for more.",
        ("run",),
        [((one.name,), one.needed) for one in runs],
    )
    by_stage = ("run", "stage")
    under_way = [(one.name, stage) for one in runs for stage in one.open_stages if stage.name in STAGES]
    yield _gauge(
        "penchant_run_stage_asked",
        "Devices asked, by stage of the attempt that is under way.",
        by_stage,
        [((name, stage.name), stage.asked) for name, stage in under_way],
    )
    yield _gauge(
        "penchant_run_stage_answered",
        "Devices that have answered, by stage of the attempt that is under way.",
        by_stage,
        [((name, stage.name), stage.answered) for name, stage in under_way],
    )
    yield _gauge(
        "penchant_run_stage_seconds",
        "How long each stage of the last finished round took.",
        by_stage,
        [((one.name, stage), seconds) for one in runs for stage, seconds in one.stage_seconds.items()],
    )
    yield _counter(
        "penchant_run_devices_lost",
        "Devices lost in finished rounds, by stage.",
        by_stage,
        [((one.name, stage), count) for one in runs for stage, count in one.lost.items()],
    )
    yield _counter(
        "penchant_run_aborts",
        "Refusals of devices in finished rounds, by error code.",
        ("run", "code"),
        [((one.name, code), count) for one in runs for code, count in one.aborts.items()],
    )


def _of_privacy(runs: Sequence[RunFigures]) -> Iterator[Metric]:
    yield _gauge(
        "penchant_run_epsilon_spent",
        "The epsilon that one person has spent at most; none said of a run without noise.",
        ("run",),
        [((one.name,), one.epsilon_spent) for one in runs],
    )
    yield _gauge(
        "penchant_run_epsilon",
        "The epsilon that the whole run costs one person at most.",
        ("run",),
        [((one.name,), one.epsilon) for one in runs],
    )


# --- inner parts --------------------------------------------------------------------------------------

_Values = Iterable[tuple[tuple[str, ...], float | None]]  # (values of the labels, value; None: not known)


def _gauge(name: str, help: str, labels: Sequence[str] = (), values: _Values = ()) -> Metric:
    found = GaugeMetricFamily(name, help, labels=labels)
    for of, value in values:
        if value is not None:
            found.add_metric(of, value)
    return found


def _counter(name: str, help: str, labels: Sequence[str], values: _Values) -> Metric:
    """A counter, whose name gets `_total` behind it."""
    found = CounterMetricFamily(name, help, labels=labels)
    for of, value in values:
        if value is not None:
            found.add_metric(of, value)
    return found


def _added(counts: Iterable[Mapping[str, int]], known: Sequence[str]) -> dict[str, int]:
    """The sum of counts by the keys that are known, each of which is there; all others are one."""
    total = dict.fromkeys([*known, OTHER], 0)
    for count in counts:
        for key, number in count.items():
            total[key if key in total else OTHER] += number
    return total


def _seconds(stages: Sequence[Stage]) -> dict[str, float]:
    """How long each stage that has ended took."""
    return {s.name: s.ended - s.began for s in stages if s.name in STAGES and s.ended is not None}
