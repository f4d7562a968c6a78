"""How the command line shows what is old and still works: one line on standard error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from penchant.deploy.cli.errors import notice

__all__ = ["notices_in_one_line"]


@contextmanager
def notices_in_one_line() -> Iterator[None]:
    """Within it, a setting's old name is answered by one line, not by Python's two; other warnings stay."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        from penchant.common.settings import RenamedSetting  # few commands have settings

        if issubclass(category, RenamedSetting):
            notice(str(message))
        else:
            usual(message, category, *rest, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual
