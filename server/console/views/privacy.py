"""What each run has revealed, and to whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.responses import Response

from penchant.common.secagg.update_vector import BIN_NAMES
from penchant.server.console.requests import ConsoleRequest
from penchant.server.console.views.common import COUNTERS, chosen, ordered, paged
from penchant.server.console.views.run import ROUNDS_A_PAGE
from penchant.server.journal import RoundLog
from penchant.server.monitoring.run_history import JournalReader

__all__ = ["privacy"]

ORDERS: Mapping[str, Callable[[RoundLog], Any]] = {
    "round": lambda log: log.round,
    "people": lambda log: log.survivors,
    "choices": lambda log: log.examples,
    "loss": lambda log: log.train_loss,
    "accuracy": lambda log: log.val_accuracy,
}


def privacy(request: ConsoleRequest) -> Response:
    """What the server saw, round by round."""
    found, run = chosen(request)
    if run is None:
        return request.render("privacy.html.j2", runs=found, run=None)
    journal = JournalReader(run.location.directory)
    sums = journal.sums()
    shown, order = ordered(request, run.logs, ORDERS, "-round", "#seen")
    smallest = min((log.survivors for log in run.logs), default=None)
    return request.render(
        "privacy.html.j2",
        runs=found,
        run=run,
        sums=sums,
        numbers={s.phase: sum(_product(shape) for _, shape in s.parts) for s in sums},
        listed=paged(request, shown, ROUNDS_A_PAGE),
        order=order,
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
