"""Names of the methods, as tables and pages show them."""

from __future__ import annotations

from typing import Protocol

from penchant.common.shares import Head, find_share


def method(share: str) -> str:
    """What a share is called in tables; its own name where its rule is not known here."""
    rule = find_share(share)
    return rule.label if rule else share


class Adapted(Protocol):
    """What says which method made it: a result of a run, or a row of a comparison."""

    @property
    def share(self) -> str: ...
    @property
    def head(self) -> str | None: ...


def head_of(made: Adapted) -> str:
    """Whose score head it is: ``shared`` or ``personal``."""
    head = made.head or "auto"
    if head != "auto":
        return head
    rule = find_share(made.share)
    return (Head.PERSONAL if rule and rule.shares_nothing else Head.SHARED).value


def is_one_for_all(made: Adapted) -> bool:
    """Whether everybody has the same model: all factors and the head are shared."""
    rule = find_share(made.share)
    if rule is None or not rule.shares_everything or rule.personal:
        return False
    return head_of(made) != Head.PERSONAL.value
