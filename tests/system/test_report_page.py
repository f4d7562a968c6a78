"""The report pages in a real browser: at a desk and on a phone, in light and in dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from penchant.deploy.comparison.table import Comparison, ComparisonDetails, ComparisonRow
from penchant.deploy.report.run_page import write_comparison, write_report
from penchant.deploy.simulation.result import RunResult

pytestmark = pytest.mark.system

DATA = Path(__file__).parents[1] / "data" / "report"
FLAGS = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"

# The least contrast (WCAG 2) between any text on the page and what lies behind it.
LEAST_CONTRAST = """() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  let least = [99, ''];
  for (const element of document.querySelectorAll('main *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const a = light(rgba(element.tagName === 'text' ? style.fill : style.color));
    const b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, element.textContent];
  }
  return least;
}"""

# The smallest text of a plot, in pixels on the screen.
SMALLEST_LABEL = """() => Math.min(...[...document.querySelectorAll('svg text')]
  .filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect().height))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = [f"--{flag}" for flag in FLAGS.split()]
        with playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags) as chromium:
            yield chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    result = json.loads((DATA / "result.json").read_text(encoding="utf-8"))
    rows = json.loads((DATA / "compare.json").read_text(encoding="utf-8"))
    paths = {name: folder / f"{name}.html" for name in ("run", "unmasked", "comparison")}
    write_report(RunResult.from_dict(result), paths["run"])
    write_report(RunResult.from_dict(result | {"secagg": False}), paths["unmasked"])
    details = ComparisonDetails(dataset="senate", caveats=tuple(result["caveats"]))
    found = Comparison(tuple(ComparisonRow.from_dict(row) for row in rows), details)
    write_comparison(found, paths["comparison"])
    return paths


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run", "unmasked", "comparison"])
def test_a_page_reads_well(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    for summary in page.query_selector_all("summary"):
        summary.click()

    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ratio, text = page.evaluate(LEAST_CONTRAST)
    assert ratio >= 4.5, f"contrast {ratio:.1f} at {text!r}"
    assert page.evaluate(SMALLEST_LABEL) >= 11
    assert page.locator("h1").is_visible()
    context.close()
