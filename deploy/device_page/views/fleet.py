"""Fleet: what this device took part in, what left it, what that cost, and a pause."""

from __future__ import annotations

import time

from starlette.responses import Response

from penchant.client.agent.connection_note import read_note
from penchant.client.agent.socket import at_work
from penchant.client.device.supernode_files import NODE
from penchant.client.device.taking_part import TakingPart
from penchant.common.printable import one_line
from penchant.deploy.device_page.page_requests import PageRequest

__all__ = ["accept", "fleet", "pause", "resume"]


def fleet(request: PageRequest) -> Response:
    """As `penchant device status` says it."""
    device = request.device
    report = device.report(judged=False)
    note = read_note(device.directory / NODE)
    part = TakingPart.of(report, at_work(device.directory), note, time.time())
    return request.render("fleet.html.j2", report=report, part=part, paused=device.paused)


def pause(request: PageRequest) -> Response:
    """Take part in nothing."""
    request.device.pause()
    return request.go("/fleet", "This device takes part in nothing now.")


def resume(request: PageRequest) -> Response:
    """Take part again."""
    request.device.resume()
    return request.go("/fleet", "This device takes part again.")


def accept(request: PageRequest) -> Response:
    """Take part in a run, where the owner accepts each."""
    run = request.device.accept_run(one_line(request.form.get("run", ""), 64))
    return request.go("/fleet", f"This device takes part in run {run.hex()[:8]}.")
