"""Take the README's picture of a report: its upper part, at a desk, in light.

Usage: picture.py REPORT.html PICTURE.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> int:
    """Write the picture; the page's plot of all people is the last thing on it."""
    report, picture = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags) as browser:
            page = browser.new_page(viewport={"width": 1120, "height": 900}, color_scheme="light")
            page.goto(report.as_uri())
            plot = page.locator("figure").first.bounding_box()
            if plot is None:
                print(f"{report} has no plot", file=sys.stderr)
                return 1
            height = plot["y"] + plot["height"] + 40
            page.screenshot(
                path=picture, clip={"x": 0, "y": 0, "width": 1120, "height": height}, full_page=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
