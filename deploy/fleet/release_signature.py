"""The authority's signature under a release: asked for with a file, kept with the numbers that devices fetch.

    release/asked           the contents that the authority was asked to sign last
    release/everybody       what it signed for all devices, the last one
    release/canary          what it signed for a part of them, the last one
    release/latest          when the newest release that was ever asked for was made, in milliseconds
    release/not-signed      why what was chosen last is not signed, where it waits for nobody
    release/DIGEST.factors  the numbers of those, as devices fetch them

In `requests/` and `answers/` the files are called release-ID.manifest and release-ID.declined.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_bytes

import numpy as np

from penchant.common.errors import (
    AgreementError,
    EnrolmentError,
    JournalError,
    PenchantError,
    PolicyRefusal,
    RunDirectoryError,
    UsageError,
)
from penchant.common.foreign_files import read_bytes
from penchant.common.membership.identity import CLOCK_SKEW, authority_digest
from penchant.common.membership.manifest import PrivacyParameter, RunManifest, SignedManifest
from penchant.common.membership.release_manifest import (
    EVERYBODY,
    MAX_RELEASE,
    ReleaseAccuracy,
    ReleaseContents,
    ReleaseManifest,
    ReleaseOffer,
    ReleaseRequest,
    SignedRelease,
)
from penchant.common.model import announced
from penchant.common.printable import one_line
from penchant.common.storage import write_durably
from penchant.common.wire.messages import MAX_MANIFEST
from penchant.deploy import run_directory
from penchant.deploy.fleet import fleet_release
from penchant.deploy.fleet.declined_request import DeclinedRequest
from penchant.deploy.fleet.run_signature import SIGNED
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.fleet.shared_folder import opened
from penchant.server.journal import RoundLog
from penchant.server.journal_reader import JournalReader
from penchant.server.measured import by_round
from penchant.server.releases import OfferedRelease, Release, releases, turn

__all__ = ["FOLDER", "ask", "factors_file", "offer", "state", "take", "take_declined"]

FOLDER = "release"
_ASKED, _EVERYBODY, _CANARY, _LATEST, _NOT_SIGNED = "asked", "everybody", "canary", "latest", "not-signed"
_REASON_MOST = 300  # characters
_LATEST_MOST = 32  # bytes of a file with one number


def ask(server_directory: ServerDirectory, name: str, share: int = EVERYBODY) -> str:
    """Ask the authority to sign a release, so that devices can fetch it; -> why it can't be asked, empty when
    it is.

    name: RUN:release-NUMBER. share: of the devices, in ten-thousandths.
    Whoever asks has the fleet's turn. What was asked before is asked no more, and a canary is offered no
    more: what its devices have they keep until there is something newer.
    """
    folder = server_directory.path / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    _take_back(server_directory, folder)
    try:
        contents, factors = _contents(server_directory, name, share)
    except PenchantError as error:
        why = one_line(str(error))[:_REASON_MOST]
        _write(folder / _NOT_SIGNED, why.encode())
        return why
    finally:
        (folder / _CANARY).unlink(missing_ok=True)
    asked = ReleaseRequest(contents)
    _keep_latest(server_directory, contents.promoted)
    _write(folder / f"{contents.factors.hex()}.factors", factors)
    _write(folder / _ASKED, asked.encode())
    (folder / _NOT_SIGNED).unlink(missing_ok=True)
    _remove_unused(server_directory, folder)
    with opened(server_directory.requests, writes=True) as requests:
        requests.write(_file(contents), asked.encode())
    return ""


def take(server_directory: ServerDirectory, name: str, data: bytes) -> None:
    """Keep what the authority signed: devices can fetch it from now on. name: of the file.

    EnrolmentError where this was not asked for last, PolicyRefusal for another's signature, AgreementError
    when it can't be read, RunDirectoryError for a release that was not asked for.
    """
    with turn(server_directory.path):
        folder = server_directory.path / FOLDER
        contents = _asked(folder, name)
        if SignedRelease.read(data, server_directory.authority).contents != contents:
            raise RunDirectoryError("the authority signed a different release than was asked for")
        _keep_latest(server_directory, contents.promoted)
        _write(folder / (_CANARY if contents.is_canary else _EVERYBODY), data)
        _remove_unused(server_directory, folder)
        with opened(server_directory.requests, writes=True) as requests:
            requests.remove(name)


def take_declined(server_directory: ServerDirectory, name: str, said: DeclinedRequest) -> None:
    """Keep that the authority does not sign, and why. Errors as `take`; what is about another request changes
    nothing."""
    with turn(server_directory.path):
        folder = server_directory.path / FOLDER
        contents = _asked(folder, f"{name.removesuffix('.declined')}.manifest")
        if not said.is_about(ReleaseRequest(contents).encode(), once=True):
            return
        why = f"the authority did not sign it: {one_line(said.why)}"
        _write(folder / _NOT_SIGNED, why[:_REASON_MOST].encode())
        _take_back(server_directory, folder)


def offer(server_directory: ServerDirectory) -> ReleaseOffer:
    """What devices can fetch now. JournalError when what lies there is damaged."""
    return ReleaseOffer(tuple(signed for signed, _ in _offered(server_directory)))


def factors_file(server_directory: ServerDirectory, digest: bytes) -> Path | None:
    """The file with the numbers of a release that is offered; None for any other."""
    if all(manifest.contents.factors != digest for _, manifest in _offered(server_directory)):
        return None
    path = server_directory.path / FOLDER / f"{digest.hex()}.factors"
    return path if path.is_file() and not path.is_symlink() else None


def state(server_directory: ServerDirectory) -> OfferedRelease:
    """What devices can fetch, and what the authority was asked for last, for those who look."""
    folder = server_directory.path / FOLDER
    found = {m.contents.is_canary: m for _, m in _offered(server_directory)}
    everybody, canary = found.get(False), found.get(True)
    asked = _read_asked(folder)
    waits = asked is not None and asked not in [m.contents for m in found.values()]
    return OfferedRelease(
        everybody=everybody.contents.name if everybody else "",
        sequence=everybody.sequence if everybody else 0,
        canary=canary.contents.name if canary else "",
        canary_sequence=canary.sequence if canary else 0,
        asked=asked.name if waits and asked else "",
        why_not=_text(folder / _NOT_SIGNED),
    )


# --- inner parts --------------------------------------------------------------------------------------


def _contents(server_directory: ServerDirectory, name: str, share: int) -> tuple[ReleaseContents, bytes]:
    """(what the authority is to sign, the numbers that devices fetch). A PenchantError where there is nothing
    that a device could start from."""
    directory, release = fleet_release.found(server_directory, name)
    manifest = _run_manifest(server_directory, directory)
    config, journal = run_directory.read_config(directory), JournalReader(directory)
    if release.round <= config.federation.warmup_rounds:
        raise UsageError(
            "a round of the warm-up shares all that is trained; devices start from a later round"
        )
    found = journal.load(release.round)
    if found is None or journal.digest(release.round) != release.digest:
        raise UsageError(f"round {release.round} is not what it was when it was promoted; promote it again")
    plan = config.plan("main", config.federation.cohort)
    numbers = announced.join(plan, found[1].factors, found[1].start)
    announced.check(numbers)
    factors = np.ascontiguousarray(numbers, "<f4").tobytes()
    logs = [log for log in journal.logs() if log.round <= release.round]
    promoted = _first_made(directory, release)
    if promoted > 1000 * (time.time() + CLOCK_SKEW):
        raise UsageError("it was promoted in the future: this machine's clock was wrong; promote it again")
    contents = ReleaseContents(
        id=token_bytes(16),
        fleet=authority_digest(server_directory.authority),
        name=name,
        rollback=promoted < _latest(server_directory),
        share=share,
        run=manifest.run,
        round=release.round,
        base=manifest.base,
        plan=plan.encode(),
        factors=hashlib.sha256(factors).digest(),
        size=len(factors),
        privacy=_privacy(journal, release.round),
        begins_with=journal.fact("from") or "",
        rounds=len(logs),
        people=logs[-1].survivors,
        contributions=sum(log.survivors for log in logs),
        choices=logs[-1].examples,
        accuracy=_accuracy(journal.logs(), release.round),
        promoted=promoted,
    )
    contents.check()
    contents.check_run(manifest)
    return contents, factors


def _run_manifest(server_directory: ServerDirectory, directory: Path) -> RunManifest:
    """The manifest of a run as the authority signed it, whatever its days."""
    try:
        encoded = read_bytes(directory / SIGNED, RunDirectoryError, MAX_MANIFEST)
    except FileNotFoundError:
        raise RunDirectoryError(f"the authority has not signed run {directory.name}") from None
    return SignedManifest.read(encoded, server_directory.authority)


def _first_made(directory: Path, release: Release) -> int:
    """When this round of a run was first promoted, in milliseconds: promoted once more after a newer one, it
    takes devices back all the same."""
    same = [one for one in releases(directory) if (one.round, one.digest) == (release.round, release.digest)]
    return int(1000 * min(one.at for one in same))


def _latest(server_directory: ServerDirectory) -> int:
    """When the newest release that devices may have was made, in milliseconds; 0 for none.

    What was asked for counts, since the authority may have signed it, and so does what was made in runs that
    are deleted by now.
    """
    path = server_directory.path / FOLDER / _LATEST
    try:
        kept = read_bytes(path, JournalError, _LATEST_MOST)
    except FileNotFoundError:
        return _latest_made(server_directory)
    if not re.fullmatch(rb"[0-9]+\n", kept):
        raise JournalError(f"{path} is damaged; move it away, and promote again")
    return int(kept)


def _latest_made(server_directory: ServerDirectory) -> int:
    """The same where no file says it: nothing was asked for, or an earlier version asked."""
    runs = map(server_directory.run, server_directory.runs())
    made = [_first_made(directory, one) for directory in runs for one in releases(directory)]
    made += [manifest.contents.promoted for _, manifest in _signed(server_directory)]
    return max(made, default=0)


def _keep_latest(server_directory: ServerDirectory, promoted: int) -> None:
    latest = max(promoted, _latest(server_directory))
    _write(server_directory.path / FOLDER / _LATEST, b"%d\n" % latest)


def _privacy(journal: JournalReader, round: int) -> tuple[PrivacyParameter, ...]:
    figures = journal.privacy()
    if figures is None:
        return ()
    tries = sum(attempt.round <= round for attempt in journal.attempts())
    spent = repr(float(figures.spent(tries)))
    return (PrivacyParameter("delta", repr(float(figures.delta))), PrivacyParameter("epsilon", spent))


def _accuracy(logs: list[RoundLog], round: int) -> tuple[ReleaseAccuracy, ...]:
    measured = by_round(logs).get(round)
    if measured is None or measured.accuracy is None:
        return ()
    error = "" if measured.error is None else repr(float(measured.error))
    value = repr(float(measured.accuracy))
    return (ReleaseAccuracy(value, error, measured.log.round, measured.fitted),)


def _file(contents: ReleaseContents) -> str:
    return f"release-{contents.id.hex()}.manifest"


def _read_asked(folder: Path) -> ReleaseContents | None:
    try:
        return ReleaseRequest.decode(read_bytes(folder / _ASKED, JournalError, MAX_RELEASE)).contents
    except FileNotFoundError:
        return None
    except AgreementError as error:
        raise JournalError(f"{folder / _ASKED} is damaged; promote the release again: {error}") from None


def _asked(folder: Path, name: str) -> ReleaseContents:
    """What was asked for last, which the file of this name answers. EnrolmentError otherwise."""
    contents = _read_asked(folder)
    if contents is None or name != _file(contents):
        raise EnrolmentError("it answers no release that a signature was asked for here last")
    return contents


def _take_back(server_directory: ServerDirectory, folder: Path) -> None:
    """Ask no more for what was asked for last."""
    contents = _read_asked(folder)
    if contents is not None:
        with opened(server_directory.requests, writes=True) as requests:
            requests.remove(_file(contents))
        (folder / _ASKED).unlink(missing_ok=True)


def _offered(server_directory: ServerDirectory) -> Iterator[tuple[bytes, ReleaseManifest]]:
    """(signed bytes, manifest) of what devices can fetch: a canary only while nothing newer is for all."""
    newest = 0
    for signed, manifest in _signed(server_directory):
        if manifest.sequence > newest:
            newest = manifest.sequence
            yield signed, manifest


def _signed(server_directory: ServerDirectory) -> Iterator[tuple[bytes, ReleaseManifest]]:
    """(signed bytes, manifest) of the last release for everybody, and of the last canary."""
    for name in (_EVERYBODY, _CANARY):
        path = server_directory.path / FOLDER / name
        try:
            signed = read_bytes(path, JournalError, MAX_RELEASE)
            yield signed, SignedRelease.read(signed, server_directory.authority)
        except FileNotFoundError:
            continue
        except (AgreementError, PolicyRefusal) as error:
            raise JournalError(f"{path} is damaged; move it away, and promote again: {error}") from None


def _remove_unused(server_directory: ServerDirectory, folder: Path) -> None:
    """Remove numbers that nothing in the folder names any more."""
    asked = _read_asked(folder)
    used = {manifest.contents.factors.hex() for _, manifest in _signed(server_directory)}
    used |= {asked.factors.hex()} if asked else set()
    for path in folder.glob("*.factors"):
        if path.stem not in used:
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as error:
        raise JournalError(f"can't write {path}: {error.strerror}") from None


def _text(path: Path) -> str:
    try:
        return one_line(path.read_text("utf-8", "replace"))[:_REASON_MOST]
    except FileNotFoundError:
        return ""
