"""Who did what at this console."""

from __future__ import annotations

from starlette.responses import Response

from penchant.server.console.requests import ConsoleRequest, HTTPError

__all__ = ["audit"]
ENTRIES_A_PAGE = 50


def audit(request: ConsoleRequest) -> Response:
    """Who did what."""
    request.context.operations.record_acts()
    before = whole_number(request.asked("before"), "before") if request.asked("before") else None
    account = request.asked("account")[:32]
    rows = request.context.store.audit_entries(limit=ENTRIES_A_PAGE + 1, before=before, account=account)
    return request.render(
        "audit.html.j2",
        rows=rows[:ENTRIES_A_PAGE],
        older=rows[ENTRIES_A_PAGE - 1].number if len(rows) > ENTRIES_A_PAGE else None,
        before=before,
        account=account,
        accounts=[one.name for one in request.context.store.accounts()],
        broken=request.context.store.broken(),
    )


def whole_number(text: str, what: str) -> int:
    """A whole number from a form or an address. Refused for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise HTTPError(f"{what} must be a whole number", status=422)
    return int(text)
