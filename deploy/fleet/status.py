"""How a server is: what `penchant server status` prints, and whoever watches it reads as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from penchant.common.durations import DAY
from penchant.common.errors import JournalError
from penchant.deploy.fleet.certificates import days_left, valid
from penchant.deploy.fleet.enrolment import EnrolmentRegistry
from penchant.deploy.fleet.health import part_notices, worth_telling
from penchant.deploy.fleet.processes import (
    SIGNALS_LOCK,
    GatewayState,
    door,
    gateway_state,
    signals_state,
)
from penchant.deploy.fleet.run_queue import RunQueue
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.superlink import Control
from penchant.server.monitoring import alerts
from penchant.server.monitoring.alerts import Notice
from penchant.server.monitoring.fleet import Expiry

__all__ = [
    "DOWN",
    "SOON",
    "AttentionReport",
    "ListReport",
    "ServerReport",
    "SuperLinkReport",
    "exit_code",
    "expiries",
    "gateway_notices",
    "report_of",
    "superlink_report",
    "wrong_parts",
]

DOWN, SOON = 1, 3  # exit codes: something is down or past its date; something ends soon
PLAN = "Devices know no other: plan a new server."
LIST_SOON, LEAF_SOON, CA_SOON = 7 * DAY, 30 * DAY, 365 * DAY  # in which somebody has to be told


@dataclass(frozen=True)
class SuperLinkReport:
    """Whether the SuperLink answers, how many nodes it knows, and how many of them are connected."""

    up: bool = False
    nodes: int = 0
    online: int = 0


@dataclass(frozen=True)
class ListReport:
    """The member list: its number, how many members it has, and for how many days it is still valid."""

    number: int
    count: int
    days_left: float


@dataclass(frozen=True)
class AttentionReport:
    """What somebody should look at. kind: "bad" for what is down or past its date, "warn" for what ends soon;
    title and text: what it is, and what to do about it."""

    kind: str
    title: str
    text: str


@dataclass(frozen=True)
class ServerReport:
    """How a server is; the order of fields is that of `penchant server status --json`.

    Attributes:
        gateway: the address at which devices reach the gateway.
        up: whether the gateway is open.
        gateway_state: "open", "closed", "foreign" where another program holds its port, or "silent" where
            what holds it does not answer.
        superlink: the SuperLink.
        members: the member list.
        certificate_days_left: for how many days the gateway's certificate is still valid.
        enrolments: how many enrolments there are in each state.
        waiting_for_authority: the names of the files that wait for the authority.
        runs: the names of the runs.
        attention: what needs attention.
        queue: how many runs wait for their turn.
    """

    gateway: str
    up: bool
    gateway_state: str
    superlink: SuperLinkReport
    members: ListReport
    certificate_days_left: float
    enrolments: Mapping[str, int]
    waiting_for_authority: tuple[str, ...]
    runs: tuple[str, ...]
    attention: tuple[AttentionReport, ...]
    queue: int


def expiries(server_directory: ServerDirectory) -> list[Expiry]:
    """What of a server ends one day: its member list and its certificates. UsageError for one that can't be
    read."""
    known = server_directory.known_members()
    tls, listed = server_directory.tls, known.current
    renew = f"Make another with `penchant server renew {server_directory.path}` and restart the server."
    publish = "Have the authority publish the next one; without it devices refuse to take part."
    since, ends = (float(listed.issued), float(listed.expires)) if listed is not None else (0.0, 0.0)
    return [
        Expiry("member_list", f"Member list {known.number}", since, ends, publish, LIST_SOON),
        *(
            Expiry(name, what, *valid(pair.certificate), cure, soon)
            for name, what, pair, cure, soon in (
                ("gateway_certificate", "The gateway's certificate", tls.gateway, renew, LEAF_SOON),
                ("superlink_certificate", "The SuperLink's certificate", tls.loopback, renew, LEAF_SOON),
                ("gateway_ca", "The gateway's CA", tls.ca, PLAN, CA_SOON),
                ("loopback_ca", "The loopback's CA", tls.loopback_ca, "Plan a new server.", CA_SOON),
            )
        ),
    ]


def report_of(server_directory: ServerDirectory) -> ServerReport:
    """Gateway, SuperLink, member list, certificates, enrolments and runs, and what needs attention. Nothing
    is changed."""
    known = server_directory.known_members()
    expires = known.current.expires if known.current is not None else 0
    states = Counter(enrolment.state for enrolment in EnrolmentRegistry(server_directory).enrolments())
    gateway, superlink = gateway_state(server_directory), superlink_report(server_directory)
    return ServerReport(
        gateway=server_directory.settings.gateway,
        up=gateway == "open",
        gateway_state=gateway,
        superlink=superlink,
        members=ListReport(known.number, known.count, round((expires - time.time()) / DAY, 2)),
        certificate_days_left=round(days_left(server_directory.tls.gateway.certificate), 2),
        enrolments=dict(states),
        waiting_for_authority=tuple(sorted(path.name for path in server_directory.requests.iterdir())),
        runs=tuple(server_directory.runs()),
        attention=tuple(_attention(server_directory, gateway, superlink)),
        queue=len(RunQueue(server_directory).runs()),
    )


def exit_code(report: ServerReport) -> int:
    """What a watcher is told: DOWN, SOON, or 0 where nothing needs attention."""
    kinds = {one.kind for one in report.attention}
    return DOWN if "bad" in kinds else SOON if "warn" in kinds else 0


def gateway_notices(server_directory: ServerDirectory, gateway: GatewayState) -> Iterator[Notice]:
    """What is wrong where devices connect."""
    if gateway == "closed":
        yield Notice("bad", "The gateway is closed", _bring_up(server_directory), "", "gateway")
    if gateway == "silent":
        text = f"Something listens at port {server_directory.settings.port} and says nothing: see its log."
        yield Notice("bad", "The gateway does not answer", text, "", "gateway")
    if gateway == "foreign":
        port = server_directory.settings.port
        text = (
            f"What listens at port {port} has no certificate of this server; end it, or choose another port."
        )
        yield Notice("bad", "Another program holds the gateway's port", text, "", "gateway")


def wrong_parts(
    server_directory: ServerDirectory, gateway: GatewayState, superlink: bool
) -> Iterator[Notice]:
    """What is wrong with the parts of a server, but for its SuperLink; superlink: whether that answers."""
    yield from gateway_notices(server_directory, gateway)
    yield from worth_telling(part_notices(server_directory), superlink)
    yield from _signals_notices(server_directory)


def _attention(
    server_directory: ServerDirectory, gateway: GatewayState, superlink: SuperLinkReport
) -> Iterator[AttentionReport]:
    notices = [*wrong_parts(server_directory, gateway, superlink.up)]
    if not superlink.up:
        down = Notice("bad", "The SuperLink is down", _bring_up(server_directory), "", "superlink")
        notices.insert(1 if gateway != "open" else 0, down)
    notices += alerts.of_queue(RunQueue(server_directory).runs())
    notices += alerts.ending(expiries(server_directory), _now())
    return (AttentionReport(notice.kind, notice.title, notice.text) for notice in notices)


def _signals_notices(server_directory: ServerDirectory) -> Iterator[Notice]:
    """What is wrong with the part that would tell of the others: nobody hears of it but from here."""
    state = signals_state(server_directory)
    if state == "down":
        text = f"Nobody is told what needs attention. {_bring_up(server_directory)}"
        yield Notice("bad", "The signals part is down", text, "", "signals")
    if state == "silent":
        text = (
            "It lives and does nothing: nobody is told. End its process, whose number is in "
            f"{server_directory.path / SIGNALS_LOCK}: it is started again."
        )
        yield Notice("bad", "The signals part hangs", text, "", "signals")
    if state == "unheard":
        where = server_directory.settings.metrics
        text = "Notices go on; monitoring gets no answer, or another program's. Its log says why."
        yield Notice("bad", f"The signals part does not answer at {where}", text, "", "signals")


def _bring_up(server_directory: ServerDirectory) -> str:
    return f"Bring it up with `penchant server up {server_directory.path}`, or see its log."


def _now() -> float:
    """Unix seconds."""
    return time.time()


def superlink_report(server_directory: ServerDirectory) -> SuperLinkReport:
    """What the SuperLink says; it is given three seconds."""
    try:
        with Control(door(server_directory), seconds=3.0) as control:
            nodes = control.nodes()
    except JournalError:
        return SuperLinkReport()
    return SuperLinkReport(True, len(nodes), sum(node.status == "online" for node in nodes.values()))
