"""Who did what at this console: a page with filters, and the same lines as CSV or JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from urllib.parse import urlencode

from starlette.responses import Response, StreamingResponse

from penchant.common.csv_text import csv_text
from penchant.common.printable import one_line
from penchant.server.console.audit_filter import OUTCOMES, AuditEntry, AuditFilter
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.console.views.common import whole_number

__all__ = ["as_csv", "as_jsonl", "audit"]

ENTRIES_A_PAGE = 50
ENTRIES_AT_ONCE = 1000  # that an export reads before it sends them
COLUMNS = (
    "number",
    "time",
    *(field.name for field in fields(AuditEntry) if field.name not in ("number", "at")),
)


@dataclass(frozen=True)
class AuditForm:
    """What the filter's form says: `day` and `to` are dates, all texts may be empty."""

    account: str = ""
    action: str = ""
    outcome: str = ""
    day: str = ""
    to: str = ""

    @property
    def query(self) -> str:
        """The same as the query of an address."""
        return urlencode({key: value for key, value in asdict(self).items() if value})


def audit(request: ConsoleRequest) -> Response:
    """Who did what."""
    request.context.operations.record_acts()
    before = whole_number(request.asked("before"), "before") if request.asked("before") else None
    asked, wanted = _wanted(request)
    store = request.context.store
    rows = store.audit_entries(limit=ENTRIES_A_PAGE + 1, before=before, wanted=wanted)
    who, what = store.audit_names(AuditFilter(reader=request.rights, own=request.name))
    return request.render(
        "audit.html.j2",
        rows=rows[:ENTRIES_A_PAGE],
        older=rows[ENTRIES_A_PAGE - 1].number if len(rows) > ENTRIES_A_PAGE else None,
        before=before,
        asked=asked,
        accounts=who,
        actions=what,
        outcomes=OUTCOMES,
        broken=store.broken(),
    )


def as_csv(request: ConsoleRequest) -> Response:
    """The lines that the filter leaves, the latest first; times in UTC."""
    return _download(request, "csv", "text/csv", _csv_lines)


def as_jsonl(request: ConsoleRequest) -> Response:
    """The same as JSON, one object a line."""
    return _download(request, "jsonl", "application/jsonl", _json_lines)


def _wanted(request: ConsoleRequest) -> tuple[AuditForm, AuditFilter]:
    """What the form says, and which lines that are."""
    asked = AuditForm(*(one_line(request.asked(field.name), 100) for field in fields(AuditForm)))
    if asked.outcome not in ("", *OUTCOMES):
        raise HTTPError(f"An outcome is one of {', '.join(OUTCOMES)}.", status=400)
    since, until = _midnight(asked.day), _midnight(asked.to, days=1)
    if since is not None and until is not None and until <= since:
        raise HTTPError("The last day lies before the first.", status=400)
    return asked, AuditFilter(
        asked.account, asked.action, asked.outcome, since, until, request.rights, request.name
    )


def _midnight(day: str, days: int = 0) -> float | None:
    """Unix seconds of the beginning of a day in UTC, so many days later; None without one."""
    if not day:
        return None
    try:
        found = datetime.date.fromisoformat(day)
        moment = datetime.datetime.combine(found, datetime.time(), datetime.UTC)
        return (moment + datetime.timedelta(days=days)).timestamp()
    except (ValueError, OverflowError):
        raise HTTPError("A day is written as in 2026-01-31.", status=400) from None


def _entries(request: ConsoleRequest, wanted: AuditFilter) -> Iterator[list[AuditEntry]]:
    before = None
    while found := request.context.store.audit_entries(limit=ENTRIES_AT_ONCE, before=before, wanted=wanted):
        yield found
        before = found[-1].number


def _told(entry: AuditEntry) -> dict[str, object]:
    moment = datetime.datetime.fromtimestamp(entry.at, datetime.UTC).isoformat(timespec="milliseconds")
    return {key: moment if key == "time" else getattr(entry, key) for key in COLUMNS}


def _json_lines(parts: Iterator[list[AuditEntry]]) -> Iterator[str]:
    for part in parts:
        yield "".join(json.dumps(_told(entry), ensure_ascii=False) + "\n" for entry in part)


def _csv_lines(parts: Iterator[list[AuditEntry]]) -> Iterator[str]:
    yield csv_text([COLUMNS])
    for part in parts:
        yield csv_text(list(_told(entry).values()) for entry in part)


def _download(
    request: ConsoleRequest,
    ending: str,
    kind: str,
    lines: Callable[[Iterator[list[AuditEntry]]], Iterator[str]],
) -> Response:
    request.context.operations.record_acts()
    asked, wanted = _wanted(request)
    request.context.store.note(request.name, request.address, "export the audit", ending, "done", asked.query)
    headers = {"content-disposition": f'attachment; filename="audit.{ending}"'}
    return StreamingResponse(lines(_entries(request, wanted)), media_type=kind, headers=headers)
