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
from penchant.deploy.fleet.processes import door, gateway_open
from penchant.deploy.fleet.server_directory import MEMBERS, ServerDirectory
from penchant.deploy.flower.superlink import Control

__all__ = ["state_of"]


def state_of(server_directory: ServerDirectory) -> dict[str, Any]:
    """Gateway, SuperLink, member list, certificates, enrolments and runs. Nothing is changed."""
    known = Membership(server_directory.authority).know((server_directory.path / MEMBERS).read_bytes())
    expires = known.current.expires if known.current is not None else 0
    return {
        "gateway": server_directory.settings.gateway,
        "up": gateway_open(server_directory),
        "superlink": _superlink(server_directory),
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
