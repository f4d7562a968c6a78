"""How a server is: what `penchant server status` prints, and whoever watches it reads as JSON."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from penchant.common.durations import DAY
from penchant.common.errors import JournalError
from penchant.common.membership.identity import Membership
from penchant.deploy.fleet.certificates import days_left
from penchant.deploy.fleet.enrolment import EnrolmentRegistry
from penchant.deploy.fleet.processes import door, gateway_state
from penchant.deploy.fleet.server_directory import MEMBERS, ServerDirectory
from penchant.deploy.flower.superlink import Control
from penchant.server.monitoring import alerts
from penchant.server.monitoring.fleet import Expiry

__all__ = ["DOWN", "SOON", "exit_code", "expiries", "state_of"]

DOWN, SOON = 1, 3  # exit codes: something is down or past its date; something ends soon
LIST_SOON, LEAF_SOON, CA_SOON = 7 * DAY, 30 * DAY, 365 * DAY  # in which somebody has to be told


def expiries(server_directory: ServerDirectory) -> list[Expiry]:
    """What of a server ends one day: its member list and its certificates. UsageError for one that can't be
    read."""
    known = Membership(server_directory.authority).know((server_directory.path / MEMBERS).read_bytes())
    tls, now = server_directory.tls, time.time()
    renew = f"Make another with `penchant server renew {server_directory.path}` and restart the server."
    publish = "Have the authority publish the next one; without it devices refuse to take part."
    ends = known.current.expires if known.current is not None else 0
    return [
        Expiry(f"Member list {known.number}", float(ends), publish, LIST_SOON),
        *(
            Expiry(what, now + days_left(pair.certificate) * DAY, cure, soon)
            for what, pair, cure, soon in (
                ("The gateway's certificate", tls.gateway, renew, LEAF_SOON),
                ("The SuperLink's certificate", tls.loopback, renew, LEAF_SOON),
                ("The gateway's CA", tls.ca, "Devices know no other: plan a new server.", CA_SOON),
                ("The loopback's CA", tls.loopback_ca, "Plan a new server.", CA_SOON),
            )
        ),
    ]


def state_of(server_directory: ServerDirectory) -> dict[str, Any]:
    """Gateway, SuperLink, member list, certificates, enrolments and runs, and what needs attention: a list of
    tables with `kind` ("bad" or "warn"), `title` and `text`. Nothing is changed."""
    known = Membership(server_directory.authority).know((server_directory.path / MEMBERS).read_bytes())
    expires = known.current.expires if known.current is not None else 0
    gateway, superlink = gateway_state(server_directory), _superlink(server_directory)
    state = {
        "gateway": server_directory.settings.gateway,
        "up": gateway == "open",
        "gateway_state": gateway,
        "superlink": superlink,
        "members": {
            "number": known.number,
            "count": known.count,
            "days_left": round((expires - time.time()) / DAY, 2),
        },
        "certificate_days_left": round(days_left(server_directory.tls.gateway.certificate), 2),
        "enrolments": dict(
            Counter(enrolment.state for enrolment in EnrolmentRegistry(server_directory).enrolments())
        ),
        "waiting_for_authority": sorted(path.name for path in server_directory.requests.iterdir()),
        "runs": server_directory.runs(),
    }
    return state | {"attention": [_row(notice) for notice in _attention(server_directory, state)]}


def exit_code(state: dict[str, Any]) -> int:
    """What a watcher is told: DOWN, SOON, or 0 where nothing needs attention."""
    kinds = {row["kind"] for row in state["attention"]}
    return DOWN if "bad" in kinds else SOON if "warn" in kinds else 0


def _attention(server_directory: ServerDirectory, state: dict[str, Any]) -> list[alerts.Notice]:
    up = f"Bring it up with `penchant server up {server_directory.path}`, or see its log."
    found = []
    if state["gateway_state"] == "closed":
        found.append(alerts.Notice("bad", "The gateway is closed", up, ""))
    if state["gateway_state"] == "foreign":
        port = server_directory.settings.port
        text = (
            f"What listens at port {port} has no certificate of this server; end it, or choose another port."
        )
        found.append(alerts.Notice("bad", "Another program holds the gateway's port", text, ""))
    if not state["superlink"]["up"]:
        found.append(alerts.Notice("bad", "The SuperLink is down", up, ""))
    return [*found, *alerts.ending(expiries(server_directory), _now())]


def _now() -> float:
    """Unix seconds."""
    return time.time()


def _row(notice: alerts.Notice) -> dict[str, str]:
    return {"kind": notice.kind, "title": notice.title, "text": notice.text}


def _superlink(server_directory: ServerDirectory) -> dict[str, Any]:
    try:
        with Control(door(server_directory), seconds=3.0) as control:
            nodes = control.nodes()
    except JournalError:
        return {"up": False, "nodes": 0, "online": 0}
    return {
        "up": True,
        "nodes": len(nodes),
        "online": sum(node.status == "online" for node in nodes.values()),
    }
