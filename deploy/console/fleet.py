"""A fleet's server as the console sees it: nodes, members, invitations, revocations asked for, live runs.

Everything goes through what `penchant server` itself uses; nothing here can enrol or revoke anybody: that is
the authority's, by files.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from penchant.common.config import RunConfig
from penchant.common.durations import DAY
from penchant.common.errors import PenchantError, UsageError
from penchant.common.foreign_files import mark_of
from penchant.deploy.fleet import (
    canary_check,
    fleet_release,
    follow,
    release_acts,
    release_signature,
    run_checks,
)
from penchant.deploy.fleet.child_command import refuse_failed, run_command
from penchant.deploy.fleet.device_notes import NOTES, DeviceNotes, tag_of
from penchant.deploy.fleet.enrolment import DATABASE, EnrolmentRegistry, hand_out, request_revocation
from penchant.deploy.fleet.fleet_devices import SILENT, waiting_now
from penchant.deploy.fleet.fleet_release import FLEET_RELEASE
from penchant.deploy.fleet.member_facts import FleetRecords, asked_revocations
from penchant.deploy.fleet.missing_devices import connections, missing_of, readiness
from penchant.deploy.fleet.processes import door, gateway_state
from penchant.deploy.fleet.recorded_acts import BY_CONSOLE
from penchant.deploy.fleet.revoked_members import contributed
from penchant.deploy.fleet.run_queue import QUEUE, RunQueue, moment_of
from penchant.deploy.fleet.server_directory import MEMBERS, ServerDirectory
from penchant.deploy.fleet.status import expiries, wrong_parts
from penchant.deploy.flower.superlink import Control
from penchant.server import releases
from penchant.server.canary import CanaryVerdict
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.operations import RunTurn
from penchant.server.monitoring.fleet import (
    ConnectedNode,
    DeviceNote,
    Expiry,
    FleetStatus,
    MemberListStatus,
    QueuedRun,
    Revocation,
    Token,
)
from penchant.server.monitoring.run_history import RunLocation
from penchant.server.releases import FleetRelease, OfferedRelease
from penchant.server.waiting import Waiting

__all__ = ["FleetOnThisMachine"]

log = logging.getLogger(__name__)

REQUEST_MOST = 64 * 1024  # bytes of a request in a file
ASK_SECONDS = 3.0  # of the SuperLink, and as long is its answer good
START_SECONDS = 300.0  # the base model is loaded for its blueprint, then Flower takes the run


class FleetOnThisMachine:
    """The `FleetOperations` of one server's directory, and its live runs. Thread-safe; its files are read
    again once they change."""

    def __init__(self, fleet: RunLocation, store: ConsoleStore, program: Sequence[str]) -> None:
        """`fleet` is where the server's directory lies, `store` remembers who asked here for a revocation,
        and `program` are the words that `penchant` is called with."""
        self.directory = fleet.directory
        self._id = fleet.id
        self._store = store
        self._records: FleetRecords | None = None
        self._program = list(program)
        self._lock = threading.Lock()
        self._link = FleetStatus()
        self._asked = -ASK_SECONDS  # when it was asked last, monotonic
        self._asking = False

    # --- who is there --------------------------------------------------------------------------------

    def link(self) -> FleetStatus:
        """What the SuperLink said last. It is asked in a separate thread, at most every 3 s: a page never
        waits for it, however slow it is."""
        with self._lock:
            ago = time.monotonic() - self._asked
            if self._asking:  # a server that trickles its answer counts as unresponsive
                return replace(self._link, state="silent") if ago > 2 * ASK_SECONDS else self._link
            if ago >= ASK_SECONDS:
                self._asking, self._asked = True, time.monotonic()
                threading.Thread(target=self._ask, name="superlink", daemon=True).start()
            return self._link

    def _ask(self) -> None:
        try:
            answer = FleetStatus("up", self._nodes(), time.time())
            if self._link.state == "silent":
                log.info("the SuperLink of %s answers again", self.directory)
        except PenchantError as error:
            if self._link.state != "silent":  # once, not every three seconds
                log.warning("%s", error)
            answer = replace(self._link, state="silent")
        except Exception:
            log.exception("can't ask the SuperLink of %s", self.directory)
            answer = replace(self._link, state="silent")
        answer = replace(answer, wrong=self._wrong(answer.state == "up"))
        with self._lock:
            self._link, self._asking = answer, False

    def _wrong(self, superlink: bool) -> tuple[tuple[str, str], ...]:
        """What is wrong with the other parts of the server; what can't be looked at is said where it is
        read."""
        server = ServerDirectory(self.directory)
        try:
            found = list(wrong_parts(server, gateway_state(server), superlink))
        except (PenchantError, OSError) as error:
            log.warning("can't look at the parts of %s: %s", self.directory, error)
            return ()
        return tuple((notice.title, notice.text) for notice in found)

    def _nodes(self) -> dict[str, ConnectedNode]:
        with Control(door(ServerDirectory(self.directory)), seconds=ASK_SECONDS) as control:
            return connections(control)

    def missing(self, run: RunLocation, waiting: Waiting) -> list[tuple[int, str]]:
        """Who is not ready while a run waits for them, and why."""
        tag = tag_of(run.directory)
        found = missing_of(self._known(), waiting, self.link().nodes, time.time(), tag)
        return [(one.member, one.why) for one in found]

    def notes(self) -> dict[int, DeviceNote]:
        """Member -> what the operator noted of it."""
        return self._known().notes()

    def note(self, member: int, name: str, tags: Sequence[str]) -> None:
        """Call a member so, and give it these tags and no others."""
        if not self._known().membership().holds(member):
            raise UsageError(f"there is no member {member}")
        DeviceNotes(self.directory).note(member, name, tags)

    def readiness(self, nodes: Mapping[int, str | None]) -> dict[int, tuple[bool | None, str]]:
        """Member -> (whether it would take part now, in words why); None: it can't be told."""
        link = self.link()
        if link.state != "up":
            return dict.fromkeys(nodes, (None, SILENT))
        waiting, now = waiting_now(ServerDirectory(self.directory)), time.time()
        return {member: readiness(member, node, link.nodes, waiting, now) for member, node in nodes.items()}

    def contributed(self, member: int) -> str:
        """What sums of the fleet's runs hold of a member."""
        return contributed(ServerDirectory(self.directory), member)

    def mark(self) -> object:
        """Changes with what `link`, `enrolment`, `tokens` and `revocations` tell."""
        link, files = (
            self.link(),
            [self.directory / name for name in (MEMBERS, DATABASE, QUEUE, NOTES, FLEET_RELEASE, "requests")],
        )
        return link.state, [(node, row.online) for node, row in link.nodes.items()], mark_of(*files)

    def _known(self) -> FleetRecords:
        with self._lock:
            if self._records is None:
                self._records = FleetRecords(ServerDirectory(self.directory))
            return self._records

    def enrolment(self) -> MemberListStatus:
        """Who belongs to the fleet, by the list that the server holds, even one that is past its date."""
        return self._known().member_list()

    def expiries(self) -> list[Expiry]:
        """What of the fleet ends one day."""
        return expiries(ServerDirectory(self.directory))

    # --- invitations ---------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """Every token handed out, the latest first."""
        return self._known().tokens()

    def invite(self, label: str, days: int) -> Token:
        """Hand out a token; its text is nowhere kept."""
        expires = time.time() + days * DAY
        token = hand_out(self.directory, label, expires)
        return Token(token.name, label, time.time(), expires, text=token.text())

    def withdraw(self, token: str) -> None:
        """Take back an invitation, and the request that came with it."""
        EnrolmentRegistry(ServerDirectory(self.directory)).withdraw(token)

    # --- revocations ---------------------------------------------------------------------------------

    def ask_revocation(self, member: int, why: str, by: str) -> None:
        """Put the request where the authority finds it, and remember who asked."""
        request_revocation(self.directory, member, why)
        self._store.keep_revocation(self._id, member, why, by)

    def revocations(self) -> list[Revocation]:
        """What was asked for from here and elsewhere, the latest first; each signed or pending. What the
        authority declined is neither: it is in the audit."""
        membership = self._known().membership()
        pending = asked_revocations(ServerDirectory(self.directory))
        waits = {one.member for one in pending}
        asked = [Revocation(*row, None) for row in self._store.revocations(self._id)]
        asked = [one for one in asked if one.member in waits or not membership.holds(one.member)]
        found = {r.member: r for r in [*pending, *asked]}
        known = [
            Revocation(r.member, r.why, r.by, r.at, None if membership.holds(r.member) else membership.number)
            for r in found.values()
        ]
        return sorted(known, key=lambda r: -r.at)

    # --- runs that wait ------------------------------------------------------------------------------

    def queue(self) -> list[QueuedRun]:
        """Runs that wait for their turn, the next one first."""
        return self._queue.runs()

    def enqueue(self, name: str, config: RunConfig, turn: RunTurn) -> None:
        """Put a run at the end of the queue."""
        run_checks.refuse_start(ServerDirectory(self.directory), turn.begin_with)
        self._queue.add(
            config,
            turn.by,
            name=name,
            begin_with=turn.begin_with,
            tag=turn.tag,
            due=moment_of(turn.at) if turn.at else 0.0,
            every=turn.every,
        )

    def release(self) -> FleetRelease:
        """Which release the fleet uses."""
        return fleet_release.read(self.directory)

    def hold(self, held: bool) -> FleetRelease:
        """Stay with the release in use whatever is promoted, or hold no more; -> what is in use then."""
        return (release_acts.hold if held else release_acts.unhold)(ServerDirectory(self.directory))

    def to_everybody(self, release: str) -> FleetRelease:
        """The release that a part of the devices tries is for all of them; -> what is in use then."""
        return release_acts.to_everybody(ServerDirectory(self.directory), release)

    def ask_again(self) -> str:
        """Ask the authority once more to sign what was chosen last; -> its name."""
        return release_acts.ask_again(ServerDirectory(self.directory))

    def canary_verdict(self) -> CanaryVerdict:
        """What the counts of a canary's devices say of it, beside the release in use."""
        return canary_check.verdict(ServerDirectory(self.directory))

    def offered(self) -> OfferedRelease:
        """What the fleet's devices can fetch."""
        return release_signature.state(ServerDirectory(self.directory))

    def dequeue(self, number: int) -> None:
        """Take a run out of the queue."""
        self._queue.remove(number)

    def move_in_queue(self, number: int, place: int) -> None:
        """Put a run at a place of the queue, 1 for the next."""
        self._queue.move(number, place)

    def retry_queued(self, number: int) -> None:
        """Try a run of the queue again that was refused."""
        self._queue.retry(number)

    def beginnings(self) -> list[tuple[str, str]]:
        """(what a run can begin with, in words): the releases of the fleet's runs, the latest first."""
        server_directory, found = ServerDirectory(self.directory), []
        for name in server_directory.runs():
            with suppress(PenchantError):  # its own page says what is wrong with it
                found += [(name, release) for release in releases.releases(server_directory.run(name))]
        found.sort(key=lambda pair: -pair[1].at)
        used = fleet_release.read(self.directory).used
        first = [("release", f"the fleet’s release, now {used}")] if used else []
        return first + [
            (releases.release_name(name, one.number), f"release {one.number} of {name}, round {one.round}")
            for name, one in found
        ]

    @property
    def _queue(self) -> RunQueue:
        return RunQueue(ServerDirectory(self.directory))

    # --- live runs -----------------------------------------------------------------------------------

    def start(
        self, name: str, config: RunConfig, log: Callable[[str], None], begin_with: str = "", tag: str = ""
    ) -> None:
        """Make a run and hand it to the SuperLink. The base model is loaded in a separate process."""
        with tempfile.TemporaryDirectory(prefix="penchant-run-") as folder:
            path = Path(folder) / "config.toml"
            path.write_text(config.to_toml(), encoding="utf-8")
            words = ["run", str(self.directory), "--config", str(path), "--name", name, "--detach"]
            words += ["--tag", tag] if tag else []
            self._call([*words, "--from", begin_with] if begin_with else words, log)

    def resume(self, name: str, log: Callable[[str], None]) -> None:
        """Go on with a run: a new Flower run continues it from its journal."""
        self._call(["resume", str(self.directory), "--run", name, "--detach"], log)

    def stop(self, name: str) -> None:
        """Have the SuperLink stop the Flower run that drives it, and wait until it has."""
        server_directory = ServerDirectory(self.directory)
        follow.stop(server_directory.run(name), door(server_directory))

    def _call(self, words: list[str], log: Callable[[str], None]) -> None:
        command = [*self._program, "server", *words]
        done = run_command(command, START_SECONDS, "the server took too long; see its log", BY_CONSOLE)
        log(done.stdout + done.stderr)
        refuse_failed(done, "the server refused")
