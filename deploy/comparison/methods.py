"""Names of the methods, as tables and pages show them."""

from __future__ import annotations

from penchant.common.model.shares import Head, find_share
from penchant.deploy.report.rendering import Row

ALONE, ONE_FOR_ALL = "none", "AB"  # what every other method is compared with


def method(share: str) -> str:
    """What a share is called in tables; its own name where its rule is not known here."""
    rule = find_share(share)
    return rule.label if rule else share


def head_of(result: Row) -> str:
    """Whose score head it is: ``shared`` or ``personal``."""
    head = str(result.get("head") or "auto")
    if head != "auto":
        return head
    rule = find_share(result["share"])
    return (Head.PERSONAL if rule and rule.shares_nothing else Head.SHARED).value
