"""The shared adapter of one run on this machine, as the console releases it."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path

from penchant.common.errors import ConsoleError, JournalError, UsageError
from penchant.common.membership.release_manifest import EVERYBODY
from penchant.deploy.fleet import fleet_release, release_signature
from penchant.deploy.fleet.child_command import refuse_failed, run_command
from penchant.deploy.fleet.server_directory import SETTINGS, ServerDirectory
from penchant.server import releases
from penchant.server.console.at_once import HTTPError
from penchant.server.monitoring.run_history import JournalReader, RunLocation
from penchant.server.releases import Release

__all__ = ["ReleasesOnThisMachine"]

EXPORT_SECONDS = 300.0


class ReleasesOnThisMachine:
    """The `ReleaseOperations` of one run. A checkpoint counts only if it is what the journal wrote."""

    def __init__(self, location: RunLocation, scratch: Path) -> None:
        """`scratch` is a folder in which files may lie for as long as a call lasts."""
        self._location = location
        self._scratch = scratch

    def promoted(self) -> list[Release]:
        """Promoted versions, the latest first."""
        return releases.releases(self._location.directory)

    def promote(self, round: int, by: str, share: int = EVERYBODY) -> Release:
        """Make a round's shared adapter the current release, and its fleet's. UsageError when it is both.

        share: the part of the devices that try it first, in ten-thousandths; the fleet stays with the release
        in use meanwhile.
        """
        with self._turn():
            digest, again = self._checked(round), self._can_repeat()
            if share != EVERYBODY:
                self._refuse_canary(share)
            made = releases.promote(self._location.directory, round, digest, by, again=again)
            return self._used(made, share)

    def roll_back(self, number: int, by: str) -> Release:
        """Make an earlier release the current one again, and its fleet's. Its checkpoint must still be what
        it was."""
        with self._turn():
            found = next((r for r in self.promoted() if r.number == number), None)
            if found is not None and self._checked(found.round) != found.digest:
                raise ConsoleError(
                    f"round {found.round} now has a different checkpoint than release {number} had"
                )
            again = self._can_repeat()
            made = releases.roll_back(self._location.directory, number, by, again=again)
            return self._used(made, EVERYBODY)

    def _turn(self) -> AbstractContextManager[None]:
        return releases.turn(self._server or self._location.directory)

    def _refuse_canary(self, share: int) -> None:
        if self._server is None:
            raise UsageError("a simulation has no devices that could try a release first")
        fleet_release.refuse_canary(self._server, share)

    @property
    def _server(self) -> Path | None:
        """The directory of the fleet of a served run."""
        server = self._location.directory.parent.parent
        return server if self._location.kind == "served" and (server / SETTINGS).is_file() else None

    def _can_repeat(self) -> bool:
        """Whether what was chosen last in the run is not what was chosen last for its fleet: then it can be
        chosen once more. JournalError where the fleet's file is damaged, before anything is written."""
        if self._server is None:
            return False
        last, mine = fleet_release.read(self._server).last, releases.current(self._location.directory)
        return mine is not None and last != releases.release_name(self._location.directory.name, mine.number)

    def _used(self, release: Release, share: int) -> Release:
        """The same, which the fleet of a served run uses from now on, or tries first; the authority is asked
        to sign it unless the fleet holds another one."""
        if self._server is None:
            return release
        run = self._location.directory.name
        if share == EVERYBODY:
            held = fleet_release.chosen(self._server, run, release.number).held
        else:
            held = fleet_release.tried(self._server, run, release.number, share).held
        if not held:
            name = releases.release_name(run, release.number)
            release_signature.ask(ServerDirectory(self._server), name, share)
        return release

    def export(self, round: int) -> bytes:
        """A ZIP file with a round's shared adapter, made in a separate process: torch is not the console's
        to load."""
        try:
            self._checked(round)
        except ConsoleError as error:  # no such adapter, or none any more
            raise HTTPError(str(error), status=404) from None
        name = f"export-{self._location.id}-{round}-{os.getpid()}-{threading.get_ident()}.zip"
        out = self._scratch / name
        try:
            self._write(round, out)
            return out.read_bytes()
        finally:
            out.unlink(missing_ok=True)

    def _write(self, round: int, out: Path) -> None:
        words = [sys.executable, "-P", "-m", "penchant.deploy.fleet.release_files"]
        words += [str(self._location.directory), str(round), str(out)]
        refuse_failed(run_command(words, EXPORT_SECONDS, "the export took too long"), "the export failed")

    def _checked(self, round: int) -> str:
        """The digest of a round's checkpoint, which is what the journal wrote. ConsoleError otherwise."""
        reader = JournalReader(self._location.directory)
        for attempt in reader.attempts():
            if attempt.round == round and attempt.digest is not None:
                try:
                    reader.checkpoint(attempt)
                except JournalError as error:
                    raise ConsoleError(str(error)) from None
                return attempt.digest
        raise ConsoleError(f"round {round} has no checkpoint")
