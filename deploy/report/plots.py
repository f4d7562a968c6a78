"""The report's charts: what each shows, for the engine that draws the console's as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penchant.common import wording
from penchant.deploy.simulation.result import RoundSummary
from penchant.server.charts import HALF, LOOKS, WIDE, LineChart, RangeChart, Row, Series

__all__ = ["Curve", "comparison", "costs", "curves", "people", "rounds"]

GUESSING = (0.5, "guessing")


def rounds(measured: Mapping[int, RoundSummary]) -> list[LineChart]:
    """Training loss and validation accuracy by the round that ended with the factors, see
    `RunResult.measured`; without what is not known at all."""
    loss = [(float(number), row.train_loss) for number, row in measured.items()]
    accuracy = [(float(number), row.val_accuracy) for number, row in measured.items()]
    found = [
        LineChart(
            "Training loss",
            _short,
            series=[Series("Training loss", loss, 2)],
            x_label="after round",
            width=HALF,
        ),
        LineChart(
            "Validation accuracy",
            _percent,
            series=[Series("Validation accuracy", accuracy)],
            x_label="after round",
            width=HALF,
        ),
    ]
    return [chart for chart in found if chart.is_known]


def costs(log: Sequence[RoundSummary]) -> list[LineChart]:
    """Bytes sent and received by one client, and seconds, by round; none for an empty log."""
    sent = Series("sent", [(float(row.round), row.upload) for row in log], 1)
    received = Series("received", [(float(row.round), row.download) for row in log], 2)
    seconds = Series("Seconds", [(float(row.round), row.seconds) for row in log], 3)
    found = [
        LineChart("Traffic of one client", wording.size, series=[sent, received], zero=True),
        LineChart("Time of a round", wording.duration, series=[seconds], zero=True),
    ]
    return [chart for chart in found if chart.is_known]


def people(accuracies: Sequence[float], mean: float) -> LineChart:
    """Everyone's accuracy, sorted, one dot each, with the mean and the line of guessing."""
    dots = [(float(place), accuracy) for place, accuracy in enumerate(sorted(accuracies), 1)]
    return LineChart(
        "Accuracy of every person, sorted",
        _percent,
        280,
        series=[Series("accuracy", dots)],
        x_label="people, from the worst to the best served",
        place="person",
        references=[GUESSING, (mean, f"mean {wording.percent(mean)}")],
        width=WIDE,
        dots=True,
    )


def comparison(
    labels: Sequence[str],
    means: Sequence[float],
    errors: Sequence[float | None],
    seeds: Sequence[Sequence[float]],
) -> RangeChart:
    """One line a method, the best at the top: the mean, its standard error, and every seed's value."""
    found = zip(labels, means, errors, seeds, strict=True)
    return RangeChart(
        "Accuracy of each method with its standard error",
        _percent,
        rows=[Row(label, mean, error, values) for label, mean, error, values in found],
        axis="accuracy",
        reference=GUESSING,
    )


@dataclass(frozen=True)
class Curve:
    """One method's accuracies (parts of 1) at ascending numbers, with standard errors where known."""

    label: str
    at: Sequence[int]
    means: Sequence[float]
    errors: Sequence[float | None]

    def series(self, look: int) -> Series:
        """The same as a line of a chart."""
        points = [(float(x), y) for x, y in zip(self.at, self.means, strict=True)]
        return Series(self.label, points, look, self.errors)


def curves(found: Sequence[Curve], axis: str) -> LineChart:
    """Learning curves: accuracy against a number (logarithmic), one line a method, bands of one s.e."""
    return LineChart(
        f"Accuracy against {axis}",
        _percent,
        320,
        "± one standard error",
        series=[one.series(place % LOOKS + 1) for place, one in enumerate(found)],
        x_label=axis,
        references=[GUESSING],
        width=WIDE,
        log=True,
    )


def _percent(part: float) -> str:
    return wording.percent(part, 0 if round(100 * part, 6) % 1 == 0 else 1)


def _short(value: float) -> str:
    return f"{value:.3g}"
