"""Measuring a canary: two runs that ask its devices alone, and the verdict that comes of their counts.

One run begins with the canary, one with the release in use. Each has one round, in which people train their
personal part and the shared factors stay as they are, and a closing one that measures these factors. Who the
canary's devices are is public: the authority's signature draws them. They get a tag, `signed-canary-NUMBER`
with the number under which the canary is signed, so that both runs ask the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penchant.common.config import RunConfig
from penchant.common.errors import PenchantError, UsageError
from penchant.common.membership.release_manifest import SignedRelease
from penchant.common.wire.codec import decode_record
from penchant.deploy import run_directory
from penchant.deploy.earlier_round import begun_with
from penchant.deploy.fleet import fleet_release, release_signature, run_checks
from penchant.deploy.fleet.device_notes import DeviceNotes, tag_of
from penchant.deploy.fleet.run_queue import RunQueue
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.canary import CanaryVerdict, ReleaseCounts
from penchant.server.journal_reader import JournalReader
from penchant.server.measured import Measurement, measurements
from penchant.server.monitoring.fleet import QueuedRun
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.standing import pooled_standing

__all__ = ["begin", "canary_tag", "measuring", "verdict"]

_TAG = "signed-canary-"


def begin(
    server_directory: ServerDirectory, config: RunConfig, account: str, days: int = 30
) -> tuple[QueuedRun, QueuedRun]:
    """Queue the two runs that measure the canary: from it, and from the release in use.

    config: of both; rounds, server's learning rate and warm-up are set here, and no more people are asked
    than the canary has.
    Raises UsageError where no canary is signed or nothing is in use, and as a run does that can't be queued.
    """
    now = fleet_release.read(server_directory.path)
    signed = _signed(server_directory)
    members = _reached(server_directory, signed)
    if not members:
        raise UsageError(f"{now.canary} reaches no member of this fleet; promote it to a larger part")
    tag = canary_tag(signed)
    settings = measuring(config, len(members))
    run_checks.refuse_unfit(settings, len(members), tag)
    for name in (now.canary, now.used):
        run_checks.refuse_start(server_directory, name)
    _tag(DeviceNotes(server_directory.path), members, tag)
    queue = RunQueue(server_directory)
    tried = queue.add(settings, account, begin_with=now.canary, days=days, tag=tag)
    return tried, queue.add(settings, account, begin_with=now.used, days=days, tag=tag)


def measuring(config: RunConfig, people: int) -> RunConfig:
    """The configuration of a run that measures what it begins with, and moves nothing."""
    return config.changed(
        {
            "federation.rounds": 1,
            "federation.warmup_rounds": 0,
            "federation.stop_after": 0,
            "federation.server_lr": 0.0,
            "federation.cohort": min(config.federation.cohort, people),
        }
    )


def canary_tag(signed: SignedRelease) -> str:
    """What the devices of a canary are called."""
    return f"{_TAG}{signed.manifest.sequence}"


def verdict(server_directory: ServerDirectory) -> CanaryVerdict:
    """What is known of the canary that a part of the devices tries: by the latest settings under which both
    releases were measured. Nothing is, where none is signed or a release is gone."""
    try:
        return _verdict(server_directory, canary_tag(_signed(server_directory)))
    except UsageError:
        return CanaryVerdict()


# --- inner parts --------------------------------------------------------------------------------------


def _verdict(server_directory: ServerDirectory, tag: str) -> CanaryVerdict:
    now = fleet_release.read(server_directory.path)
    tried, used = (_digest(server_directory, name) for name in (now.canary, now.used))
    found = list(_measured(server_directory, tag))
    for last in reversed(found):
        alike = [one for one in found if one.config == last.config]
        both = [_counts([one for one in alike if one.digest == digest]) for digest in (tried, used)]
        if all(both):
            return CanaryVerdict(*both)
    return CanaryVerdict(
        _counts([one for one in found if one.digest == tried][-1:]),
        _counts([one for one in found if one.digest == used][-1:]),
    )


@dataclass(frozen=True)
class _Measured:
    """What one run measured. digest: of the checkpoint that it began with; who: the members in it, none
    where the journal has not noted all."""

    config: RunConfig
    digest: str
    measurement: Measurement
    privacy: PrivacyFigures | None
    who: tuple[int, ...]


def _signed(server_directory: ServerDirectory) -> SignedRelease:
    for data in release_signature.offer(server_directory).signed:
        signed = decode_record(data, SignedRelease)
        if signed.manifest.contents.is_canary:
            return signed
    tried = fleet_release.read(server_directory.path).canary
    if tried:
        raise UsageError(f"{tried} is not signed yet, so nobody knows which devices it reaches")
    raise UsageError("no release is tried by a part of the devices; promote one with --canary")


def _reached(server_directory: ServerDirectory, signed: SignedRelease) -> list[int]:
    listed = server_directory.known_members().current
    return [one.number for one in listed.members if signed.reaches(one.number)] if listed else []


def _tag(notes: DeviceNotes, members: list[int], tag: str) -> None:
    """Give members the tag of a canary, and take those of earlier ones from all."""
    earlier: dict[str, list[int]] = {}
    for member, note in notes.all().items():
        for one in note.tags:
            if one.startswith(_TAG) and one != tag:
                earlier.setdefault(one, []).append(member)
    for one, those in earlier.items():
        notes.untag(those, one)
    notes.tag(members, tag)


def _digest(server_directory: ServerDirectory, name: str) -> str:
    return fleet_release.found(server_directory, name)[1].digest


def _measured(server_directory: ServerDirectory, tag: str) -> Iterator[_Measured]:
    """What runs of the canary's devices measured of the factors that they began with, the oldest first. A run
    that can't be read says nothing."""
    ended = []
    for name in server_directory.runs():
        directory = server_directory.run(name)
        try:
            found = _of_run(directory) if tag_of(directory) == tag else None
        except PenchantError:
            continue
        if found is not None:
            ended.append((JournalReader(directory).attempts()[-1].started, found))
    yield from (one for _, one in sorted(ended, key=lambda pair: pair[0]))


def _of_run(directory: Path) -> _Measured | None:
    """What a run's closing round measured, if the factors are those that the run began with."""
    journal, start = JournalReader(directory), begun_with(directory)
    fitted = [one for one in measurements(journal.logs()) if one.fitted]
    if start is None or not fitted:
        return None
    kept = journal.load(fitted[-1].after)
    if kept is None or not np.array_equal(kept[1].factors, start.factors):
        return None
    log = fitted[-1].log
    who = tuple(device.member for device in journal.devices() if device.last == log.round)
    return _Measured(
        run_directory.read_config(directory),
        start.digest,
        fitted[-1],
        journal.privacy(),
        who if len(who) == log.survivors else (),
    )


def _counts(runs: list[_Measured]) -> ReleaseCounts | None:
    """What runs with the same settings say together; None where there is none."""
    if not runs:
        return None
    people = [one.measurement.log.survivors for one in runs]
    known = [one.measurement for one in runs if one.measurement.accuracy is not None]
    noise = max(one.log.count_noise or 0.0 for one in known) if known else 0.0
    standing = pooled_standing(known, max(people), noise) if len(known) == len(runs) else None
    return ReleaseCounts(max(people), standing, runs[-1].privacy, len(runs), _parts(runs))


def _parts(runs: list[_Measured]) -> dict[int, float] | None:
    """Member -> the part of all counts that is theirs; None where it is not known of a run who was in it."""
    if not all(one.who for one in runs):
        return None
    times = Counter(member for one in runs for member in one.who)
    return {member: count / times.total() for member, count in times.items()}
