"""What every loader hands over, and how it becomes a federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penchant.common.data.preferences import Federation, Person
from penchant.common.data.row_files import ReadReport
from penchant.common.data.splits import FEWEST_TEST_PAIRS, Cause, Shortfall, Sizes, choose_people
from penchant.common.errors import DataError
from penchant.common.printable import one_line
from penchant.common.wording import percent

__all__ = ["Prepared", "to_federation"]

NAMED_IN_CAVEATS = 10
NAME_MOST = 60  # characters of a name that are shown
FEW_TRAIN_PAIRS = 20
"""Training pairs of which it is said who has fewer: what is asked for may be no more than a ceiling."""
_CAUSES: dict[Cause, tuple[str, str]] = {
    "one prompt": (
        "all their choices have one prompt, and no prompt may be trained and tested on",
        "give each choice a prompt of its own, or say what is tested on",
    ),
    "other people": (
        "the test part and the training part have no person in common",
        "call people alike in both",
    ),
    "tested on": (
        "all their pairs for training are tested on as well, and are left out of training",
        "keep apart what is trained and tested on",
    ),
}
"""Why somebody has no pairs, and what to do."""


@dataclass(frozen=True)
class Prepared:
    """Everybody whom a data set can give, before clients are chosen.

    ``strict`` refuses data in which somebody has to be left out: right for data that its owner can
    correct, wrong for a published data set. ``unused`` says of what was read that nothing came of it, to be
    told where nobody is left.
    """

    name: str
    people: Sequence[Person]
    shortfalls: Sequence[Shortfall]
    caveats: Sequence[str] = ()
    report: ReadReport | None = None
    strict: bool = False
    unused: Sequence[str] = ()


def to_federation(prepared: Prepared, sizes: Sizes, clients: int | None, seed: int) -> Federation:
    """Choose the clients and say in caveats what is missing.

    Raises:
        DataError: nobody is left, more clients are asked for than there are, or, where strict,
            somebody has no pairs or one class; see also :class:`Federation`.
    """
    left_out = [short for short in prepared.shortfalls if not short.kept]
    if prepared.strict and left_out:
        raise _refusal(left_out[0], prepared)
    if not prepared.people:
        why = f": {_CAUSES[left_out[0].cause][0]}" if left_out and left_out[0].cause else ""
        raise DataError(
            f"data set {prepared.name!r} gives nobody both a training and a test pair{why}{_unused(prepared)}"
        )
    chosen = set(choose_people([person.name for person in prepared.people], clients, seed))
    kept = [short for short in prepared.shortfalls if short.kept and short.person in chosen]
    caveats = [*prepared.caveats, *_shortfall_caveats(kept, left_out, sizes)]
    if sizes.until < 1:
        caveats.append(f"only the first {percent(sizes.until, 0)} of the items, to choose settings")
    if prepared.report is not None and prepared.report.bad:
        caveats.append(f"skipped bad rows: {prepared.report.summary()}")
    people = tuple(person for person in prepared.people if person.name in chosen)
    return Federation(prepared.name, people, tuple(caveats))


def _unused(prepared: Prepared) -> str:
    """What is said of rows that nothing came of, behind a refusal; empty where there are none."""
    bad = prepared.report.summary() if prepared.report is not None and prepared.report.bad else ""
    lines = [*prepared.unused, *([bad] if bad else [])]
    return f"; of what was read: {'; '.join(lines)}" if lines else ""


def _refusal(short: Shortfall, prepared: Prepared) -> DataError:
    """Why data are refused in which somebody has to be left out, and what to do."""
    said = f"client {one_line(short.person, NAME_MOST)!r} {short.reason}"
    remedy, in_python, on_command_line = "give it more choices", "", ""
    if short.cause is not None:
        why, remedy = _CAUSES[short.cause]
        said += f": {why}"
        if short.cause == "one prompt":
            in_python, on_command_line = " (test=FILE)", " (--test FILE)"
    if prepared.people:
        leave = ", leave it out, or leave such clients out"
        in_python += f'{leave} (bad_rows="skip")'
        on_command_line += f"{leave} (--skip-bad-rows)"
    else:
        in_python += _unused(prepared)
        on_command_line += _unused(prepared)
    return DataError(f"{said}; {remedy}{in_python}", on_command_line=f"{said}; {remedy}{on_command_line}")


def _shortfall_caveats(kept: list[Shortfall], left_out: list[Shortfall], sizes: Sizes) -> list[str]:
    caveats = []
    if left_out:
        causes = dict.fromkeys(_CAUSES[short.cause][0] for short in left_out if short.cause)
        listed = _listed([f"{one_line(short.person, NAME_MOST)} {short.reason}" for short in left_out])
        caveats.append("; ".join((f"left out: {listed}", *causes)))
    for part, wanted in (
        ("train", min(sizes.pairs, FEW_TRAIN_PAIRS)),
        ("validation", sizes.validation_pairs),
        ("test", sizes.test_pairs),
    ):
        counts = {short.person: getattr(short, part) for short in kept}
        fewer = [f"{one_line(name, NAME_MOST)} {count}" for name, count in counts.items() if count < wanted]
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
