"""What the report pages have in common: filling a template, and a few facts as people read them."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from penchant.server.charts import STYLE

__all__ = ["base_name", "toml", "typical", "version_of", "write"]


def write(path: Path, template: str, page: Mapping[str, Any]) -> None:
    """Render `template` with `page`, every text escaped, and put the file in place in one step."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(
            environment.get_template(template).render(page, chart_style=STYLE), encoding="utf-8"
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def base_name(base_model: str) -> str:
    """A base model without its owner or folder."""
    return base_model.rstrip("/").rsplit("/", 1)[-1]


def version_of(versions: Mapping[str, str]) -> str:
    """The version of penchant that made a result, or this one."""
    try:
        return versions.get("penchant") or importlib.metadata.version("penchant")
    except importlib.metadata.PackageNotFoundError:
        return ""


def toml(config: Mapping[str, Any]) -> str:
    """A configuration as TOML; empty where there is none."""
    return tomli_w.dumps(dict(config)) if config else ""


def typical(values: Iterable[float | None]) -> float | None:
    """The median of what is known."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
