"""The process of a run ends with the SuperLink that began it.

Flower's own watch asks the process to end by SIGINT, once. Where a message is on its way to a SuperLink that
is gone, Flower tries again for ever, and the process would keep the run's directory from whoever goes on.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

__all__ = ["GRACE", "end_with_parent"]

GRACE: Final = 20.0
"""Seconds that the process has to end by itself once its parent is gone."""
_LOOK: Final = 1.0  # seconds between looks


def end_with_parent(grace: float = GRACE) -> None:
    """Watch the parent from a thread; `grace` seconds after it is gone, end this process, whatever it does.

    A run's journal is durable before anything is told, so whoever resumes goes on where this one was.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(min(_LOOK, grace))
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, name="ends with its parent", daemon=True).start()
