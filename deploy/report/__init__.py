"""The pages of results; what draws them is loaded when the first page is written."""

from __future__ import annotations

from pathlib import Path

from penchant.deploy.comparison.runner import ComparisonPages
from penchant.deploy.comparison.table import Comparison
from penchant.deploy.simulation.result import RunResult

__all__ = ["PAGES", "write_comparison", "write_report"]


def write_report(result: RunResult, path: Path) -> None:
    """Write the page of one run to `path`."""
    from penchant.deploy.report import run_page

    run_page.write_report(result, path)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page of a comparison to `path`."""
    from penchant.deploy.report import run_page

    run_page.write_comparison(comparison, path)


PAGES = ComparisonPages(write_report, write_comparison)
"""Every page of a comparison."""
