"""What each run has revealed, and to whom."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from penchant.common.secagg.update_vector import BIN_NAMES
from penchant.server.console.requests import ConsoleRequest
from penchant.server.console.views.common import COUNTERS, chosen
from penchant.server.console.views.run import ROUNDS_SHOWN
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
    every = request.asked("rounds") == "all"
    smallest = min((log.survivors for log in run.logs), default=None)
    return request.render(
        "privacy.html.j2",
        runs=found,
        run=run,
        sums=sums,
        numbers={s.phase: sum(_product(shape) for _, shape in s.parts) for s in sums},
        rows=shown if every else shown[:ROUNDS_SHOWN],
        hidden=0 if every else max(len(shown) - ROUNDS_SHOWN, 0),
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
