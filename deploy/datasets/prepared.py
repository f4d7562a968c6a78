"""What every loader hands over, and how it becomes a federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penchant.common.data.preferences import Federation, Person
from penchant.common.data.row_files import ReadReport
from penchant.common.data.splits import FEWEST_TEST_PAIRS, Shortfall, Sizes, choose_people
from penchant.common.errors import DataError
from penchant.common.wording import percent

__all__ = ["Prepared", "to_federation"]

NAMED_IN_CAVEATS = 10
FEW_TRAIN_PAIRS = 20
"""Training pairs of which it is said who has fewer: what is asked for may be no more than a ceiling."""


@dataclass(frozen=True)
class Prepared:
    """Everybody whom a data set can give, before clients are chosen.

    ``strict`` refuses data in which somebody has to be left out: right for data that its owner can
    correct, wrong for a published data set.
    """

    name: str
    people: Sequence[Person]
    shortfalls: Sequence[Shortfall]
    caveats: Sequence[str] = ()
    report: ReadReport | None = None
    strict: bool = False


def to_federation(prepared: Prepared, sizes: Sizes, clients: int | None, seed: int) -> Federation:
    """Choose the clients and say in caveats what is missing.

    Raises:
        DataError: nobody is left, more clients are asked for than there are, or, where strict,
            somebody has no pairs or one class; see also :class:`Federation`.
    """
    left_out = [short for short in prepared.shortfalls if not short.kept]
    if prepared.strict and left_out:
        remedy = (
            f"client {left_out[0].person!r} {left_out[0].reason}; give it more choices, leave it out, "
            "or leave such clients out"
        )
        raise DataError(f'{remedy} (bad_rows="skip")', on_command_line=f"{remedy} (--skip-bad-rows)")
    if not prepared.people:
        raise DataError(f"data set {prepared.name!r} gives nobody both a training and a test pair")
    chosen = set(choose_people([person.name for person in prepared.people], clients, seed))
    kept = [short for short in prepared.shortfalls if short.kept and short.person in chosen]
    caveats = [*prepared.caveats, *_shortfall_caveats(kept, left_out, sizes)]
    if sizes.until < 1:
        caveats.append(f"only the first {percent(sizes.until, 0)} of the items, to choose settings")
    if prepared.report is not None and prepared.report.bad:
        caveats.append(f"skipped bad rows: {prepared.report.summary()}")
    people = tuple(person for person in prepared.people if person.name in chosen)
    return Federation(prepared.name, people, tuple(caveats))


def _shortfall_caveats(kept: list[Shortfall], left_out: list[Shortfall], sizes: Sizes) -> list[str]:
    caveats = []
    if left_out:
        caveats.append(f"left out: {_listed([f'{short.person} {short.reason}' for short in left_out])}")
    for part, wanted in (
        ("train", min(sizes.pairs, FEW_TRAIN_PAIRS)),
        ("validation", sizes.validation_pairs),
        ("test", sizes.test_pairs),
    ):
        counts = {short.person: getattr(short, part) for short in kept}
        fewer = [f"{name} {count}" for name, count in counts.items() if count < wanted]
        if fewer:
            caveats.append(f"fewer than {wanted} {part} pairs: {_listed(fewer)}")
    coarse = [short.person for short in kept if short.test < min(FEWEST_TEST_PAIRS, sizes.test_pairs)]
    if coarse:
        caveats.append(
            f"accuracy is coarse (fewer than {FEWEST_TEST_PAIRS} test pairs) for {len(coarse)} clients"
        )
    return caveats


def _listed(entries: list[str]) -> str:
    more = f", and {len(entries) - NAMED_IN_CAVEATS} more" if len(entries) > NAMED_IN_CAVEATS else ""
    return f"{len(entries)} ({', '.join(entries[:NAMED_IN_CAVEATS])}{more})"
