"""How a server is: what `penchant server status` prints, and whoever watches it reads as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from penchant.common.durations import DAY
from penchant.common.errors import JournalError
from penchant.common.membership.identity import Membership
from penchant.deploy.fleet.certificates import days_left
from penchant.deploy.fleet.enrolment import EnrolmentRegistry
from penchant.deploy.fleet.processes import door, gateway_open
from penchant.deploy.fleet.server_directory import MEMBERS, ServerDirectory
from penchant.deploy.flower.superlink import Control

__all__ = ["ListReport", "ServerReport", "SuperLinkReport", "report_of"]


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
class ServerReport:
    """How a server is; the order of fields is that of `penchant server status --json`.

    Attributes:
        gateway: the address at which devices reach the gateway.
        up: whether the gateway is open.
        superlink: the SuperLink.
        members: the member list.
        certificate_days_left: for how many days the gateway's certificate is still valid.
        enrolments: how many enrolments there are in each state.
        waiting_for_authority: the names of the files that wait for the authority.
        runs: the names of the runs.
    """

    gateway: str
    up: bool
    superlink: SuperLinkReport
    members: ListReport
    certificate_days_left: float
    enrolments: Mapping[str, int]
    waiting_for_authority: tuple[str, ...]
    runs: tuple[str, ...]


def report_of(server_directory: ServerDirectory) -> ServerReport:
    """Gateway, SuperLink, member list, certificates, enrolments and runs. Nothing is changed."""
    known = Membership(server_directory.authority).know((server_directory.path / MEMBERS).read_bytes())
    expires = known.current.expires if known.current is not None else 0
    states = Counter(enrolment.state for enrolment in EnrolmentRegistry(server_directory).enrolments())
    return ServerReport(
        gateway=server_directory.settings.gateway,
        up=gateway_open(server_directory),
        superlink=_superlink(server_directory),
        members=ListReport(known.number, known.count, round((expires - time.time()) / DAY, 2)),
        certificate_days_left=round(days_left(server_directory.tls.gateway.certificate), 2),
        enrolments=dict(states),
        waiting_for_authority=tuple(sorted(path.name for path in server_directory.requests.iterdir())),
        runs=tuple(server_directory.runs()),
    )


def _superlink(server_directory: ServerDirectory) -> SuperLinkReport:
    try:
        with Control(door(server_directory), seconds=3.0) as control:
            nodes = control.nodes()
    except JournalError:
        return SuperLinkReport()
    return SuperLinkReport(True, len(nodes), sum(node.status == "online" for node in nodes.values()))
