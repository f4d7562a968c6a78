"""What each run has revealed, and to whom."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from penchant.common.secagg.update_vector import BIN_NAMES
from penchant.server.console.requests import ConsoleRequest
from penchant.server.console.views.common import COUNTERS, chosen, paged
from penchant.server.console.views.run import ROUNDS_A_PAGE
from penchant.server.monitoring.run_history import JournalReader

__all__ = ["privacy"]


def privacy(request: ConsoleRequest) -> Response:
    """What the server saw, round by round."""
    found, run = chosen(request)
    if run is None:
        return request.render("privacy.html.j2", runs=found, run=None)
    journal = JournalReader(run.location.directory)
    sums = journal.sums()
    shown = list(reversed(run.logs))
    smallest = min((log.survivors for log in run.logs), default=None)
    return request.render(
        "privacy.html.j2",
        runs=found,
        run=run,
        sums=sums,
        numbers={s.phase: sum(_product(shape) for _, shape in s.parts) for s in sums},
        listed=paged(request, shown, ROUNDS_A_PAGE),
        smallest=smallest,
        dp=journal.privacy(),
        counters=COUNTERS,
        bin_names=BIN_NAMES,
    )


def _product(sides: Sequence[int]) -> int:
    product = 1
    for side in sides:
        product *= side
    return product
