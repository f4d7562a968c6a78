"""The file in the device's directory that leads a browser to the owner's page, and says which page is newest.

On a browser's command line every user of the machine could read the link itself, and use it first. The file
is its owner's alone. Once another page has written another one, the earlier page lets nobody in, from the
next request on: that is how an owner takes back a link or a cookie that somebody else may have.
"""

from __future__ import annotations

import html
from pathlib import Path

from penchant.common.storage import write_private

__all__ = ["LinkFile"]


class LinkFile:
    """Where the link to one page lies, as long as no other page is opened."""

    NAME = "page.html"

    def __init__(self, home: Path) -> None:
        """home: the device's directory."""
        self.path = home.absolute() / self.NAME
        self._written = b""

    def write(self, link: str) -> None:
        """Lead on to `link` from now on, and take the place of an earlier page. DeviceError when the disk
        refuses."""
        shown = html.escape(link, quote=True)
        head = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0;url={shown}">'
        page = f'<!doctype html>{head}<title>penchant</title><p><a href="{shown}">Your page</a>\n'
        write_private(self.path, page.encode())
        self._written = page.encode()

    @property
    def is_newest(self) -> bool:
        """Whether it is there still, as it was written: no other page was opened since, and nobody removed
        it."""
        try:
            return self.path.read_bytes() == self._written
        except OSError:
            return False

    def remove(self) -> None:
        """Leave no link behind; that of another page stays."""
        if self.is_newest:
            self.path.unlink(missing_ok=True)
