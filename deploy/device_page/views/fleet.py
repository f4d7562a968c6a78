"""Fleet: what this device took part in, what left it, what that cost, a pause, and ways to part."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.responses import Response

from penchant.client.agent.connection_note import read_note
from penchant.client.agent.owner import member_identity
from penchant.client.agent.socket import at_work
from penchant.client.device.parting import Parted, part
from penchant.client.device.supernode_files import NODE
from penchant.client.device.taking_part import TakingPart
from penchant.common.printable import one_line
from penchant.common.wording import counted
from penchant.deploy.device_page.background import Tell
from penchant.deploy.device_page.page_requests import PageRequest
from penchant.server.console.at_once import HTTPError

__all__ = ["accept", "fleet", "forget", "leave", "pause", "resume"]

LEAVE, FORGET = "leave", "forget everything"
"""What the owner types, so that nothing is parted from by a slip."""
PATIENCE = 5.0  # seconds for which a page waits for that to end


def fleet(request: PageRequest) -> Response:
    """As `penchant device status` says it."""
    device = request.device
    report = device.report(judged=False)
    note = read_note(device.directory / NODE)
    taking = TakingPart.of(report, at_work(device.directory), note, time.time())
    return request.render(
        "fleet.html.j2", report=report, part=taking, paused=device.paused, words=(LEAVE, FORGET)
    )


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


def leave(request: PageRequest) -> Response:
    """Give up membership; choices and the personal model stay."""
    _typed(request, LEAVE)
    device = request.device
    member_identity(device)  # UsageError when it is in no fleet

    def parting(tell: Tell) -> str:
        return f"This device has left. {_told(part(device, device.directory / NODE, device.leave))}".strip()

    return _parted(request, "Leaving", parting)


def forget(request: PageRequest) -> Response:
    """Delete all that the device knows of its owner."""
    _typed(request, FORGET)
    context, device = request.context, request.device
    if context.asking.running:
        raise HTTPError("responses are being written; wait for their end", status=409)

    def forgotten() -> int:
        count = device.forget()
        context.forget()  # before the server is told, which may take long
        return count

    def parting(tell: Tell) -> str:
        with context.model:
            try:
                done = part(device, device.directory / NODE, forgotten)
            finally:
                tell("beginning anew")
                context.sitting.prepare()
        deleted = f"{counted(done.result, 'choice')} and the personal model are deleted."
        kept = f"Files that you imported or exported are yours. {device.privacy().lasting}."
        return " ".join(filter(None, (deleted, _told(done), kept)))

    return _parted(request, "Forgetting", parting)


# --- inner parts --------------------------------------------------------------------------------------


def _typed(request: PageRequest, word: str) -> None:
    if request.form.get("confirm", "").strip().casefold() != word:
        raise HTTPError(f"nothing was done: type “{word}” to confirm", status=422)


def _told(done: Parted[int]) -> str:
    """What is left to do, in words."""
    if done.member is None:
        return ""
    if done.not_told:
        why = one_line(done.not_told, 300)
        return f"Tell the authority to revoke member {done.member}: the server was not told ({why})."
    knows = "its server knows, and asks the authority to revoke it, where that is not done yet"
    return f"It was member {done.member}; {knows}."


def _parted(request: PageRequest, name: str, parting: Callable[[Tell], str]) -> Response:
    work = request.context.work
    work.start(name, parting, to_the_end=True)
    work.wait(PATIENCE)
    state = work.state
    if state is None or state.running:
        return request.go("/model")  # which says how far it is
    return request.go("/fleet", f"Not done: {one_line(state.wrong)}" if state.wrong else state.outcome)
