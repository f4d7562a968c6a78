"""Choices that other programs send: read and recorded as those of a file are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from penchant.client.device.device import Device
from penchant.client.device.preference_store import Added
from penchant.common.data.importers.choices import Choice
from penchant.common.data.importers.reading import Found, choices_of_rows
from penchant.common.data.row_files import RowLog, rows_of_json
from penchant.common.errors import DataError
from penchant.deploy.device_api.bodies import EXPORT_DEPTH_MOST, ApiLimits, check_depth
from penchant.deploy.device_api.dialects import ApiRefusal

__all__ = ["FEEDBACK_KINDS", "Recording", "bounded_choices", "record_feedback"]

FEEDBACK_KINDS = ("application/json", "application/x-ndjson", "application/jsonl")
Row = dict[str, Any]
SOURCE = "a program, by the API"


@dataclass(frozen=True)
class Recording:
    """What became of a body: choices that are new and repeated, and what must be said of the rest."""

    added: Added
    notes: list[str]


def record_feedback(
    device: Device, data: bytes, limits: ApiLimits, *, person: str | None = None, skip_bad_rows: bool = False
) -> Recording:
    """Record the choices of a JSON document or JSON lines, in any format of `penchant device import`: all, or
    none.

    Args:
        device: the owner's.
        data: what was sent.
        limits: how many choices it may make.
        person: whose choices they are, where they name several people.
        skip_bad_rows: leave rows out that can't be used; otherwise one of them refuses all.

    Raises:
        DataError: there is nothing to record, a row is bad, there are too many rows, or it is not said who
            the owner is.
            ApiRefusal: the body is too deep, or makes too many choices.
    """
    log = RowLog("skip" if skip_bad_rows else "refuse", most=limits.rows)
    found = bounded_choices(rows_of_json(data, log), log, limits)
    report = log.finish("the body")
    people = found.people
    if person is None and len(people) > 1:
        raise DataError(f"the choices are of {len(people)} people; say which of them is you (?person=NAME)")
    if person is not None and person not in people:
        raise DataError(f"no choice names the person that is asked for; {len(people)} people are named")
    kept = found.of(person)
    notes = [*found.notes, *([report.summary()] if report.bad else [])]
    return Recording(device.record(kept, SOURCE), notes)


def bounded_choices(rows: Iterator[tuple[str, Row]], log: RowLog, limits: ApiLimits) -> Found:
    """The choices of rows, in any format. ApiRefusal when a row is too deep, or when they make too many
    choices; DataError as `choices_of_rows`."""

    def bounded(choices: Iterator[Choice]) -> Iterator[Choice]:
        return _bounded(choices, limits)

    found = choices_of_rows(_checked(rows), log, bounded=bounded)
    if len(found.labelled) > limits.choices:  # of rows that are choices themselves
        raise ApiRefusal(413, _too_many(limits))
    return found


def _checked(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    for where, row in rows:
        check_depth(row, EXPORT_DEPTH_MOST)
        yield where, row


def _bounded(choices: Iterator[Choice], limits: ApiLimits) -> Iterator[Choice]:
    """The same choices. ApiRefusal once they are too many: a short body may make long ones."""
    characters = 0
    for number, choice in enumerate(choices, start=1):
        pair = choice.preference
        characters += len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
        if number > limits.choices or characters > limits.choice_characters:
            raise ApiRefusal(413, _too_many(limits))
        yield choice


def _too_many(limits: ApiLimits) -> str:
    return (
        f"the body makes more than {limits.choices} choices, or {limits.choice_characters} characters of "
        "them; send less at a time"
    )
