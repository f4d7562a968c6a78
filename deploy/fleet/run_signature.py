"""The authority's signature under a served run: asked for with a file, awaited, kept with the run.

    days                how many days it may take, before it asked
    manifest.request    what was asked for last: the run's name and its manifest
    manifest            the manifest, signed by the authority
    manifest.declined   why the authority did not sign

In `requests/` and `answers/` the files are called run-ID.manifest and run-ID.declined.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from secrets import token_bytes, token_hex

from penchant.common.errors import ConfigError, RunDirectoryError
from penchant.common.membership.identity import CLOCK_SKEW
from penchant.common.membership.manifest import NONCE_BYTES, RunRequest, SignedManifest, day_of
from penchant.common.printable import one_line
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.deploy.fleet.declined_request import DeclinedRequest
from penchant.deploy.fleet.server_directory import AUTHORITY, ServerDirectory
from penchant.deploy.fleet.shared_folder import opened
from penchant.server.journal import Journal
from penchant.server.run_manifest import manifest_of, refuse_outgrown

__all__ = [
    "DAYS",
    "DAYS_FILE",
    "NOT_SIGNED",
    "SIGNED",
    "WAITS",
    "ask",
    "await_signature",
    "checked_days",
    "request_of",
    "signed_manifest",
    "take",
    "take_declined",
]

DAYS_FILE = "days"
DAYS = 30  # that a run may take, unless the operator says otherwise
LONGEST = 366
LOOK_SECONDS = 1.0
REASON_MOST = 300
_REQUEST, SIGNED, _DECLINED = "manifest.request", "manifest", "manifest.declined"
WAITS = "waits for the authority's signature"
NOT_SIGNED = "the authority has not signed this run yet; once it has, `penchant server resume` goes on"


def checked_days(days: int) -> int:
    """How many days a run may take. ConfigError for a number that makes no sense."""
    if not 1 <= days <= LONGEST:
        raise ConfigError(f"a run of {days} days; between 1 and {LONGEST} make sense")
    return days


def request_of(directory: Path, days: int | None = None) -> RunRequest:
    """What the authority is asked to sign for the run in `directory`; the same until it declines.

    days: how many days the run may take, from today on, where nothing was asked for before; None: as many as
        its directory says.
    """
    path = directory / _REQUEST
    if path.is_file():
        return RunRequest.decode(path.read_bytes())
    days = checked_days(_days_of(directory) if days is None else days)
    config = run_directory.read_config(directory)
    with closing(Journal(directory)) as journal:
        run = journal.fact("run")  # a run of an earlier version has begun without a manifest
        if run is None:
            run = token_hex(16)
            journal.note("run", run)
    first = day_of(time.time() - CLOCK_SKEW)  # devices' clocks may be behind
    manifest = manifest_of(
        config,
        run=bytes.fromhex(run),
        base=_base(directory),
        cohort=config.federation.cohort,
        first_day=first,
        last_day=first + days,
    )
    asked = RunRequest(directory.name, manifest)
    write_durably(path, asked.encode())
    return asked


def ask(server_directory: ServerDirectory, name: str, days: int | None = None) -> Path | None:
    """Put the request for a run's signature where the authority finds it; -> the file, or None once signed.

    RunDirectoryError when the run has outgrown what was asked for.
    """
    directory = server_directory.run(name)
    asked = request_of(directory, days)
    refuse_outgrown(asked.manifest, run_directory.read_config(directory), _base(directory), time.time())
    if (directory / SIGNED).is_file():
        return None
    if (directory / _DECLINED).is_file():
        asked = replace(
            asked, nonce=token_bytes(NONCE_BYTES)
        )  # what was said of the last request is not of this
        write_durably(directory / _REQUEST, asked.encode())
        (directory / _DECLINED).unlink(missing_ok=True)
    name = f"run-{asked.manifest.run.hex()}.manifest"
    with opened(server_directory.requests, writes=True) as requests:
        requests.write(name, asked.encode())
    return server_directory.requests / name


def take(directory: Path, encoded: bytes) -> None:
    """Keep what the authority signed. PolicyRefusal for another's signature, RunDirectoryError for a manifest
    that was not asked for."""
    manifest = SignedManifest.read(encoded, (directory / AUTHORITY).read_bytes())
    if manifest != request_of(directory).manifest:
        raise RunDirectoryError("the authority signed a different manifest than the run asked for")
    write_durably(directory / SIGNED, encoded)


def take_declined(directory: Path, said: DeclinedRequest) -> bool:
    """Keep that the authority does not sign, and why; -> whether it is about what was asked for last."""
    asked = request_of(directory)
    if not said.is_about(asked.encode(), once=not asked.nonce):
        return False
    write_durably(directory / _DECLINED, one_line(said.why)[:REASON_MOST].encode())
    return True


def signed_manifest(directory: Path) -> bytes:
    """The signed manifest of a run. RunDirectoryError when there is none, or the run has outgrown it."""
    try:
        encoded = (directory / SIGNED).read_bytes()
    except OSError:
        raise RunDirectoryError(
            "the run has no manifest signed by the authority; `penchant server resume` asks for one"
        ) from None
    manifest = SignedManifest.read(encoded, (directory / AUTHORITY).read_bytes())
    refuse_outgrown(manifest, run_directory.read_config(directory), _base(directory), time.time())
    return encoded


def await_signature(directory: Path, seconds: float, say: Callable[[str], None]) -> None:
    """Wait until the authority has signed. RunDirectoryError when it declines, or takes longer than that."""
    end, said = time.monotonic() + seconds, False
    while not (directory / SIGNED).is_file():
        if (directory / _DECLINED).is_file():
            why = (directory / _DECLINED).read_text("utf-8", "replace")
            raise RunDirectoryError(f"the authority did not sign this run: {why}")
        if time.monotonic() >= end:
            raise RunDirectoryError(NOT_SIGNED)
        if not said:
            say(f"{WAITS}; the authority signs with `penchant authority attend`")
            said = True
        time.sleep(LOOK_SECONDS)


def run_of(server_directory: ServerDirectory, run: str) -> Path | None:
    """The directory of the run with this id (hexadecimal) that asked for a signature; None if none did."""
    for name in server_directory.runs():
        directory = server_directory.run(name)
        if (directory / _REQUEST).is_file() and request_of(directory).manifest.run.hex() == run:
            return directory
    return None


def _days_of(directory: Path) -> int:
    try:
        text = (directory / DAYS_FILE).read_text("ascii").strip()
    except FileNotFoundError:
        return DAYS  # a run of an earlier version
    except (OSError, ValueError):
        text = ""
    if not text.isdecimal():
        raise RunDirectoryError(f"{directory / DAYS_FILE} holds no number; restore it from a back-up")
    return int(text)


def _base(directory: Path) -> bytes:
    from penchant.common.model.signature import ModelSignature  # it needs torch, which most callers don't

    return ModelSignature.read(directory / run_directory.MODEL_SIGNATURE).digest
