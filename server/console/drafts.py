"""What is shown once: forms that a login interrupted, join tokens that were just handed out."""

from __future__ import annotations

import threading
from collections.abc import Mapping

__all__ = ["Drafts"]

MOST = 32  # of all sessions together; the oldest is forgotten first


class Drafts:
    """One for each key, in memory: a console that is started again has none. Thread-safe."""

    def __init__(self) -> None:
        self._forms: dict[str, Mapping[str, str]] = {}
        self._lock = threading.Lock()

    def keep(self, session: str, form: Mapping[str, str]) -> None:
        """Remember a form. session: begins with what the session's forms carry against forgery."""
        with self._lock:
            self._forms.pop(session, None)
            self._forms[session] = form
            while len(self._forms) > MOST:
                del self._forms[next(iter(self._forms))]

    def take(self, session: str) -> Mapping[str, str] | None:
        """What was kept, once."""
        with self._lock:
            return self._forms.pop(session, None)
