"""The charts of console and report: one engine, which draws inline SVG and needs but a style sheet."""

from penchant.server.charts.bar_chart import BarChart, bars
from penchant.server.charts.chart import HALF, LOOKS, NARROW, STYLE, WIDE, Chart
from penchant.server.charts.line_chart import POINTS, LineChart, Series, lines, spark
from penchant.server.charts.range_chart import RangeChart, Row

__all__ = [
    "HALF",
    "LOOKS",
    "NARROW",
    "POINTS",
    "STYLE",
    "WIDE",
    "BarChart",
    "Chart",
    "LineChart",
    "RangeChart",
    "Row",
    "Series",
    "bars",
    "lines",
    "spark",
]
