"""Forms that a login interrupted: what was written is there again after it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

__all__ = ["Drafts"]

MOST = 32  # of all sessions together; the oldest is forgotten first


class Drafts:
    """One form a session, in memory: a console that is started again has none. Thread-safe."""

    def __init__(self) -> None:
        self._forms: dict[str, Mapping[str, str]] = {}
        self._lock = threading.Lock()

    def keep(self, session: str, form: Mapping[str, str]) -> None:
        """Remember a form for a session; `session` is what its forms carry against forgery."""
        with self._lock:
            self._forms.pop(session, None)
            self._forms[session] = form
            while len(self._forms) > MOST:
                del self._forms[next(iter(self._forms))]

    def take(self, session: str) -> Mapping[str, str] | None:
        """The form that a session's login interrupted, once."""
        with self._lock:
            return self._forms.pop(session, None)
