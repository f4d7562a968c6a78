"""A look at a whole fleet from outside of it: figures, what needs attention, whether devices can take part.

Everything is read from the server's directory, or asked of its parts on this machine; nothing is changed.
What takes long is remembered until the files that say it change: the journal of a run that
is over is read once, that of one that goes on after each of its steps.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penchant.common.errors import JournalError
from penchant.common.foreign_files import mark_of
from penchant.common.printable import one_line
from penchant.deploy.fleet.health import part_notices, worth_telling
from penchant.deploy.fleet.member_facts import FleetRecords, asked_revocations
from penchant.deploy.fleet.processes import gateway_state
from penchant.deploy.fleet.run_activity import activity_of
from penchant.deploy.fleet.run_queue import RunQueue
from penchant.deploy.fleet.server_directory import MEMBERS, ServerDirectory
from penchant.deploy.fleet.status import SuperLinkReport, expiries, gateway_notices, superlink_report
from penchant.deploy.run_directory import CONFIG, RESULT, held_locks
from penchant.server.journal_reader import JOURNAL, JournalContents, JournalReader
from penchant.server.monitoring import alerts
from penchant.server.monitoring.alerts import Notice
from penchant.server.monitoring.fleet import Expiry, FleetStatus, MemberListStatus, Token
from penchant.server.monitoring.metrics import (
    DeviceFigures,
    DiskFigures,
    FleetFigures,
    RequestFigures,
    RunFigures,
)
from penchant.server.monitoring.run_history import RunLocation, RunSummary, summary_of
from penchant.server.releases import RELEASES
from penchant.server.waiting import WAITING

__all__ = ["FleetLook", "FleetWatch"]

LOOK_SECONDS = 5.0  # that a look is good for: who asks more often gets the same
SLOW_SECONDS = 60.0  # that folders are
_REQUESTS: Final = (("enrolment", "*.request"), ("revocation", "revoke-*.json"), ("run", "run-*.manifest"))
_FOLDERS = ("logs", "flower", "gateway")
_NEEDED = ("gateway", "superlink", "enrolment")  # topics of what keeps devices out while it is bad


@dataclass(frozen=True)
class FleetLook:
    """A fleet as it was at a moment.

    notices: what needs attention, the bad first. unready: why devices can't take part now, a line each.
    """

    figures: FleetFigures
    notices: tuple[Notice, ...]
    unready: tuple[str, ...]


class FleetWatch:
    """Looks at one server. Thread-safe; who looks waits for the look that is under way."""

    def __init__(self, server_directory: ServerDirectory, *, clock: Callable[[], float] = time.time) -> None:
        """clock: the time, Unix seconds."""
        self._server = server_directory
        self._clock = clock
        self._lock = threading.Lock()
        self._looked: tuple[float, FleetLook] | None = None
        self._runs = _Runs(server_directory)
        self._records = FleetRecords(server_directory)
        self._expiries: tuple[object, list[Expiry]] | None = None
        self._sizes: tuple[float, dict[str, int]] | None = None

    def look(self) -> FleetLook:
        """The fleet as it is, or was a few seconds ago. A PenchantError says what of it can't be read."""
        with self._lock:
            now = time.monotonic()
            if self._looked is None or now - self._looked[0] >= LOOK_SECONDS:
                self._looked = now, self._look()
            return self._looked[1]

    def _look(self) -> FleetLook:
        now, server = self._clock(), self._server
        gateway, superlink = gateway_state(server), superlink_report(server)
        parts = part_notices(server, self._clock)
        listed, tokens, ends = self._records.member_list(), self._records.tokens(), self._known_expiries()
        runs = self._runs.look()
        notices = [*gateway_notices(server, gateway), *worth_telling(parts, superlink.up)]
        notices += alerts.of_queue(RunQueue(server).runs())
        for run in filter(None, (summary for _, summary in runs)):
            notices += alerts.of_run(run, now)
        notices += alerts.of_fleet(
            RunLocation("", server.path.name, server.path, "fleet"),
            FleetStatus("up" if superlink.up else "silent"),
            [summary for _, summary in runs if summary is not None],
            listed,
            asked_revocations(server),
            tokens,
            ends,
            now,
        )
        notices.sort(key=lambda notice: notice.kind != "bad")
        needed = {*_NEEDED, *(one.name for one in ends)}
        unready = tuple(n.title for n in notices if n.kind == "bad" and n.topic in needed)
        figures = FleetFigures(
            parts={
                "gateway": gateway == "open",
                "superlink": superlink.up,
                **{_PART_NAMES.get(name, name): wrong is None for name, wrong in parts.items()},
            },
            ready=not unready,
            attention=Counter(notice.kind for notice in notices),
            devices=_devices(listed, superlink),
            list_number=listed.list_number,
            expiries=ends,
            requests=_requests(server.requests),
            invitations=_by_state(tokens),
            disk=self._disk(sum(run.stored for run, _ in runs)),
            runs=[run for run, _ in runs],
            at=now,
        )
        return FleetLook(figures, tuple(notices), unready)

    def _known_expiries(self) -> list[Expiry]:
        """What ends one day: read again once a file of it changes."""
        tls = self._server.tls
        pairs = (tls.gateway, tls.loopback, tls.ca, tls.loopback_ca)
        mark = mark_of(self._server.path / MEMBERS, *(pair.certificate for pair in pairs))
        if self._expiries is None or self._expiries[0] != mark:
            self._expiries = mark, expiries(self._server)
        return self._expiries[1]

    def _disk(self, runs: int) -> DiskFigures:
        path, now = self._server.path, time.monotonic()
        if self._sizes is None or now - self._sizes[0] > SLOW_SECONDS:
            self._sizes = now, {name: _bytes_below(path / name) for name in _FOLDERS}
        room = shutil.disk_usage(path)
        return DiskFigures(room.total, room.free, {"runs": runs, **self._sizes[1]})


# --- runs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _KnownRun:
    """What is known of a run as long as its files stay as they are; with the summary of one that may need
    attention."""

    mark: object
    figures: RunFigures
    summary: RunSummary | None


class _Runs:
    """The runs of a server, each read again only once one of its files, or its process, has changed."""

    def __init__(self, server_directory: ServerDirectory) -> None:
        self._server = server_directory
        self._known: dict[str, _KnownRun] = {}
        self._stored: dict[str, tuple[object, int]] = {}

    def look(self) -> list[tuple[RunFigures, RunSummary | None]]:
        """All runs; a summary comes with those that may need attention."""
        names = self._server.runs()
        held = held_locks()
        self._known = {name: self._run(name, held) for name in names}
        self._stored = {name: self._stored[name] for name in names if name in self._stored}
        return [(known.figures, known.summary) for known in self._known.values()]

    def _run(self, name: str, held: set[tuple[int, int]]) -> _KnownRun:
        directory = self._server.run(name)
        activity, reader = activity_of(directory, held), JournalReader(directory)
        files = mark_of(*(directory / file for file in (CONFIG, RESULT, WAITING, RELEASES)))
        mark = (activity, reader.mark, files)
        known = self._known.get(name)
        if known is not None and known.mark == mark:
            return known
        run = summary_of(RunLocation(name, one_line(name), directory, "served"), activity)
        journal = JournalContents()
        with suppress(JournalError):  # its state says that it is damaged
            journal = reader.contents()
        figures = RunFigures.of(run, journal, self._bytes(name, directory))
        speaks = run.state in ("running", "failed", "damaged")
        return _KnownRun(mark, figures, run if speaks else None)

    def _bytes(self, name: str, directory: Path) -> int:
        """Journal and checkpoints; the latter are counted again once there is another."""
        checkpoints = directory / "checkpoints"
        mark, known = mark_of(checkpoints), self._stored.get(name)
        if known is None or known[0] != mark:
            self._stored[name] = known = mark, _bytes_below(checkpoints)
        return known[1] + sum(_size(directory / f"{JOURNAL}{end}") for end in ("", "-wal"))


# --- inner parts --------------------------------------------------------------------------------------


def _devices(listed: MemberListStatus, superlink: SuperLinkReport) -> DeviceFigures:
    registered, online = (superlink.nodes, superlink.online) if superlink.up else (None, None)
    return DeviceFigures(len(listed.members), len(listed.revoked), registered, online)


def _requests(folder: Path) -> RequestFigures:
    waiting, oldest = dict.fromkeys((kind for kind, _ in _REQUESTS), 0), None
    for kind, pattern in _REQUESTS:
        for path in folder.glob(pattern):
            with suppress(OSError):  # settled just now
                made = path.lstat().st_mtime
                oldest = made if oldest is None else min(made, oldest)
                waiting[kind] += 1
    return RequestFigures(waiting, oldest)


_PART_NAMES = {"enrol": "enrolment"}  # what metrics have called it since there are any
_TOKEN_STATES = ("open", "expired", "waiting", "declined", "enrolled", "out")


def _by_state(tokens: Iterable[Token]) -> dict[str, int]:
    return dict.fromkeys(_TOKEN_STATES, 0) | Counter(token.state for token in tokens)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _bytes_below(folder: Path) -> int:
    """The bytes of all files in a folder; links are not followed."""
    return sum(_size(Path(where, name)) for where, _, names in os.walk(folder) for name in names)
