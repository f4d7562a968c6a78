"""Names of the methods, as tables and pages show them."""

from __future__ import annotations

from penchant.deploy.report.rendering import Row

# share -> (what is shared, what stays, the name in tables). An unknown share is shown by its own name.
SHARES = {
    "A": ("factor A", "factor B", "A shared, B personal"),
    "B": ("factor B", "factor A", "B shared, A personal"),
    "kernel": ("factors A and B", "the kernel K between them", "A, B shared, K personal"),
    "svd": ("factors A and B", "the scales s between them", "A, B shared, s personal"),
    "AB": ("factors A and B", "", "one model for all"),
    "ffa": ("factor B", "", "one model, A frozen"),
    "lore": ("the low-rank basis", "the weights over the basis", "LoRe basis shared"),
    "none": ("", "factors A and B", "everyone alone"),
}
ALONE, ONE_FOR_ALL = "none", "AB"


def method(share: str) -> str:
    """What a share is called in tables."""
    return SHARES[share][2] if share in SHARES else share


def head_of(result: Row) -> str:
    """Whose score head it is: ``shared`` or ``personal``."""
    head = str(result.get("head") or "auto")
    return head if head != "auto" else "personal" if result["share"] == ALONE else "shared"
