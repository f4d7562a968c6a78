"""Who did what at this console."""

from __future__ import annotations

from starlette.responses import Response

from penchant.server.console.requests import ConsoleRequest
from penchant.server.console.views.common import whole_number

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
