"""Where rows come from: local files, or the Hugging Face hub. After reading, all is the same."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.common.data.trl_format import RowLog, read_rows
from penchant.common.errors import DataError

__all__ = ["HubSource", "number_in", "text_in"]

Rows = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class HubSource:
    """A split of a data set on the hub, and where it lies in a local copy of it.

    ``patterns`` are tried in order inside a local folder; the files of the first that matches are read.
    """

    hub_id: str
    config: str | None = None
    split: str = "train"
    patterns: tuple[str, ...] = ("train*.jsonl", "train*.jsonl.gz", "train*.parquet", "data/train*.parquet")

    def rows(self, path: Path | None, log: RowLog) -> Rows:
        """Rows of a local file or folder, or of the hub if there is no path.

        Raises:
            DataError: no such files, or the hub can't be reached.
        """
        return self._hub_rows(log) if path is None else read_rows(self._files(path), log)

    def _files(self, path: Path) -> Path | list[Path]:
        if not path.is_dir():
            return path
        for pattern in self.patterns:
            if files := sorted(path.glob(pattern)):
                return files
        raise DataError(f"{path} is not a copy of {self.hub_id}: it has no {' or '.join(self.patterns)}")

    def _hub_rows(self, log: RowLog) -> Rows:
        try:
            hub = importlib.import_module("datasets")
        except ImportError:
            raise DataError(
                f"{self.hub_id} comes from the Hugging Face hub, which needs: pip install 'penchant[hub]'"
            ) from None
        try:
            data = hub.load_dataset(self.hub_id, self.config, split=self.split)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{self.hub_id} can't be fetched from the hub ({type(error).__name__}); check the name and "
                "the connection, or give a local copy"
            ) from None
        for number, row in enumerate(data, start=1):
            log.met()
            yield f"{self.hub_id}:{self.split}:{number}", row


def text_in(row: dict[str, Any], column: str) -> str:
    """A column's text.

    Raises:
        DataError: it is missing, or not text.
    """
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{column!r} is {'missing' if value is None else 'not text'}")
    return value


def number_in(row: dict[str, Any], column: str) -> float:
    """A column's number.

    Raises:
        DataError: it is missing, not a number, or not finite.
    """
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{column!r} is {'missing' if value is None else 'not a number'}")
    if not float("-inf") < value < float("inf"):
        raise DataError(f"{column!r} is not finite")
    return float(value)
