"""The console's pages, each a function of a `ConsoleRequest`, from what run_history and operations tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from markupsafe import Markup

from penchant.common import wording
from penchant.common.secagg.update_vector import CORRECT, LOSS, TOTAL, WEIGHT
from penchant.server import charts
from penchant.server.console.operations import RunOperations
from penchant.server.console.requests import ConsoleRequest, HTTPError
from penchant.server.measured import Measurement
from penchant.server.monitoring import labels
from penchant.server.monitoring.run_history import RunLocation, RunSummary, summary_of

MOST_COMPARED = 6
MOST_DIGITS = 18  # of a number in an address: SQLite's end at 2^63
COUNTERS = {
    WEIGHT: "how many choices were learned from, over all",
    LOSS: "training loss, added up",
    CORRECT: "held-out choices ranked right, over all",
    TOTAL: "held-out choices, over all",
}

T = TypeVar("T")


# --- what pages share -----------------------------------------------------------------------------


def all_runs(operations: RunOperations) -> list[RunSummary]:
    """The facts of every run: running ones first, then by their latest change; what can't be read last."""
    locations = operations.locations()
    activity = operations.activity(locations)
    found = [
        summary_of(location, activity[location.id], whole=activity[location.id].running)
        for location in locations
    ]
    return sorted(found, key=lambda run: (run.state == "damaged", run.state != "running", -run.touched))


def location_of(operations: RunOperations, wanted: str) -> RunLocation:
    """The run with this id. Refused when there is none: an id is looked up, never made into a path."""
    for location in operations.locations():
        if location.id == wanted:
            return location
    raise HTTPError("There is no such run. It may have been deleted.", status=404)


def run_of(operations: RunOperations, wanted: str) -> RunSummary:
    """Its facts."""
    location = location_of(operations, wanted)
    return summary_of(location, operations.activity([location])[location.id])


def chosen(request: ConsoleRequest) -> tuple[list[RunSummary], RunSummary | None]:
    """All runs, and the one that a page is about, read whole: the one asked for, or the first that can be."""
    found = all_runs(request.operations)
    if request.asked("run"):
        return found, run_of(request.operations, request.asked("run"))
    whole = (summary_of(run.location, run.activity) for run in found)
    return found, next((run for run in whole if run.state != "damaged"), None)


@dataclass(frozen=True)
class ListPage(Generic[T]):
    """One page of a list: its rows, which page it is (from 1), of how many, and how many rows there are."""

    rows: Sequence[T]
    number: int
    pages: int
    count: int


def paged(request: ConsoleRequest, rows: Sequence[T], each: int) -> ListPage[T]:
    """The page of a list that is asked for with `page`; the last one where there are fewer."""
    pages = max(-(-len(rows) // each), 1)
    number = min(max(whole_number(request.asked("page", "1"), "page"), 1), pages)
    return ListPage(rows[(number - 1) * each : number * each], number, pages, len(rows))


@dataclass(frozen=True)
class Order:
    """In which order a list is shown, and the addresses of the same list in others.

    Attributes:
        by: the name of what it goes by.
        falling: whether from the largest to the least.
        rest: what else the address asks for, as a query that is empty or ends with &.
        anchor: where on its page the list is, such as #rounds.
    """

    by: str
    falling: bool
    rest: str = ""
    anchor: str = ""

    @property
    def asked(self) -> str:
        """As the address asks for it."""
        return f"{'-' * self.falling}{self.by}"

    @property
    def base(self) -> str:
        """The query of the same list in this order, without its page."""
        return f"?{self.rest}order={self.asked}"

    def query(self, by: str) -> str:
        """The query of the list by something; by what it goes by now, the other way round."""
        falling = not self.falling if by == self.by else False
        return f"?{self.rest}order={'-' * falling}{by}{self.anchor}"

    def sorted(self, by: str) -> str:
        """What screen readers say of the column: ascending, descending or none."""
        return "none" if by != self.by else "descending" if self.falling else "ascending"


def ordered(
    request: ConsoleRequest,
    rows: Sequence[T],
    orders: Mapping[str, Callable[[T], Any]],
    default: str,
    anchor: str = "",
) -> tuple[list[T], Order]:
    """(the rows in the order that is asked for with `order`, that order).

    Args:
        request: what the browser asks for.
        rows: the rows.
        orders: name -> what rows are compared by; where it is None, a row comes last.
        default: the order without a question; -NAME is the same from the largest to the least.
        anchor: where on its page the list is.
    """
    asked = request.asked("order", default)
    by, falling = asked.removeprefix("-"), asked.startswith("-")
    if by not in orders:
        raise HTTPError(f"This list goes by {', '.join(orders)}.", status=400)
    known = [row for row in rows if orders[by](row) is not None]
    unknown = [row for row in rows if orders[by](row) is None]
    query = request.http_request.query_params.multi_items()
    rest = urlencode([(key, value) for key, value in query if key not in ("order", "page") and value])
    order = Order(by, falling, f"{rest}&" if rest else "", anchor)
    return [*sorted(known, key=orders[by], reverse=falling), *unknown], order


def whole_number(text: str, what: str) -> int:
    """A whole number from a form or an address, such as databases hold. Refused for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > MOST_DIGITS:
        raise HTTPError(f"{what} must be a whole number of at most {MOST_DIGITS} digits", status=422)
    return int(text)


def curve(run: RunSummary, value: Callable[[Any], float | None]) -> list[tuple[float, float | None]]:
    """(round, value) of every finished round."""
    return [(float(log.round), value(log)) for log in run.logs]


def measured_curve(
    run: RunSummary, value: Callable[[Measurement], float | None]
) -> list[tuple[float, float | None]]:
    """(round, value) of the factors that each round ended with; 0: those that the run began with."""
    return [(float(one.after), value(one)) for one in run.measured]


def accuracy_sparks(found: Sequence[RunSummary]) -> dict[str, Markup]:
    """Run id -> its accuracy as a small line in a table. All lines of the table have one scale."""
    values = [value for run in found for value in run.accuracies]
    span = (min(values), max(values)) if values else None
    return {
        run.location.id: charts.spark(
            run.accuracies, f"accuracy of {run.location.name} by round, on the scale of all runs here", span
        )
        for run in found
    }


def failures(run: RunSummary) -> list[tuple[float, str]]:
    """(round, what failed) of attempts that came to nothing, and of rounds that were skipped."""
    return [
        (float(one.round), f"attempt {one.attempt} {one.state}: {one.why or 'for no reason on record'}")
        for one in run.attempts
        if one.state in ("failed", "skipped")
    ]


@dataclass(frozen=True)
class Span:
    """The rounds that curves show, both ends included; None for an end that is open."""

    first: int | None = None
    last: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether that is all of them."""
        return self.first is None and self.last is None

    def part_of(self, chart: charts.LineChart) -> charts.LineChart:
        """A chart of these rounds, whose files are of them too."""
        chart = replace(chart, zoom=ZOOM)
        if self.is_whole:
            return chart
        ends = urlencode({k: v for k, v in (("first", self.first), ("last", self.last)) if v is not None})
        files = f"{chart.files}{'&' if '?' in chart.files else '?'}{ends}" if chart.files else ""
        part = chart.within(self.first or 0, math.inf if self.last is None else self.last)
        return replace(part, files=files)


ZOOM = "zoom"
"""The id of the form that says which rounds curves show."""


def span_of(request: ConsoleRequest) -> Span:
    """The rounds that are asked for with `first` and `last`; turned round where they are the wrong way."""
    first, last = (
        whole_number(text, f"the {name} round") if (text := request.asked(name)) else None
        for name in ("first", "last")
    )
    if first is not None and last is not None and first > last:
        first, last = last, first
    return Span(first, last)


BAND = "± one standard error"


def accuracy_series(run: RunSummary, label: str = "Fleet accuracy", look: int = 1) -> charts.Series:
    """The accuracy of the factors that each round ended with, and how far it may be off."""
    return charts.Series(
        label, measured_curve(run, lambda one: one.accuracy), look, [one.error for one in run.measured]
    )


def accuracy_chart(run: RunSummary, height: int = 220) -> charts.LineChart:
    """How well choices that no model learned from are ranked, by round."""
    return charts.LineChart(
        "Fleet accuracy on held-out choices",
        _percent,
        height,
        BAND if any(one.error is not None for one in run.measured) else "",
        chart_files(run, "accuracy"),
        series=[accuracy_series(run)],
        x_label="after round",
        references=[(0.5, "guessing")],
        marks=failures(run),
    )


def chart_files(run: RunSummary, name: str) -> str:
    """Where the files of a run's chart are, with {} for their endings."""
    return f"/runs/{run.location.id}/charts/{name}{{}}"


def _percent(part: float) -> str:
    return wording.percent(part, 0 if round(100 * part, 6) % 1 == 0 else 1)


def loss_chart(run: RunSummary, height: int = 220) -> charts.LineChart:
    """Training loss by round."""
    return charts.LineChart(
        "Training loss, mean over choices",
        lambda y: f"{y:.3g}",
        height,
        files=chart_files(run, "loss"),
        series=[charts.Series("Training loss", measured_curve(run, lambda one: one.train_loss), 2)],
        x_label="after round",
        marks=failures(run),
    )


def histogram_chart(run: RunSummary) -> charts.BarChart | None:
    """People per tenth of accuracy in the latest round that reports it; None where none does."""
    found = run.histogram
    if found is None:
        return None
    return charts.BarChart(
        f"People by their accuracy, {labels.after_round(found[0])}",
        lambda n: wording.whole(n),
        files=chart_files(run, "people"),
        values=[float(n) for n in found[1]],
        labels=[f"{10 * i}–{10 * i + 10}" for i in range(len(found[1]))],
        axis="percent of their own held-out choices ranked right",
    )
