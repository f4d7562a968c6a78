"""Forms that a login interrupted are kept once, for their session, and not without end."""

from __future__ import annotations

from penchant.server.console import drafts
from penchant.server.console.drafts import Drafts


def test_a_form_is_there_once_and_for_its_own_session() -> None:
    kept = Drafts()
    kept.keep("a", {"name": "first"})
    kept.keep("a", {"name": "second"})
    assert kept.take("b") is None
    assert kept.take("a") == {"name": "second"}
    assert kept.take("a") is None


def test_the_oldest_is_forgotten_first() -> None:
    kept = Drafts()
    for number in range(drafts.MOST + 1):
        kept.keep(str(number), {})
    assert kept.take("0") is None
    assert kept.take("1") == {}
