"""The look of all our pages: templates, style sheet, scripts and icon, the console's and those of others.

What lies in this folder's `templates/` and `static/` is there for everybody; a program with further pages
adds a folder of its own with both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from penchant.server.charts import STYLE

__all__ = ["Look"]

HERE = Path(__file__).parent
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Look:
    """Templates and files of some folders, those of earlier ones before those of later ones.

    Args:
        filters: of the templates.
        folders: further folders with `templates/` and `static/`; the console's is the last.
    """

    def __init__(self, filters: Mapping[str, Any], *folders: Path) -> None:
        places = [*folders, HERE]
        self._files: dict[str, tuple[bytes, str]] = {}
        for place in reversed(places):
            self._files.update(_files_of(place / "static"))
        self._files["charts.css"] = (STYLE.encode(), TYPES[".css"])
        self.templates = Environment(
            loader=FileSystemLoader([place / "templates" for place in places]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters.update(filters)
        self.templates.globals["asset"] = self.asset

    def asset(self, name: str) -> str:
        """The address of a file of ours: another one when it holds something else."""
        return f"/static/{name}?{hashlib.sha256(self._files[name][0]).hexdigest()[:12]}"

    async def static(self, request: Request) -> Response:
        """One of our files, which browsers may keep for good. There are no others to ask for."""
        found = self._files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return Response(
            found[0], media_type=found[1], headers={"cache-control": "public, max-age=31536000, immutable"}
        )


def _files_of(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> (what it holds, its type)."""
    found = [path for path in folder.rglob("*") if path.suffix in TYPES]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), TYPES[path.suffix]) for path in found}
