"""`penchant authority …`: the enrolment authority. It never talks to a network: files in, files out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say, say_json
from penchant.deploy.cli import passphrase as passphrases
from penchant.deploy.cli.errors import command, on_interrupt

if TYPE_CHECKING:
    from penchant.deploy.fleet.authority import AuthorityStore
    from penchant.deploy.fleet.authority_inbox import PendingDecision

__all__ = ["app"]

app = typer.Typer(
    name="authority",
    help="The enrolment authority, apart from the server: certifies devices, revokes, publishes the list.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PASSPHRASE = "PENCHANT_AUTHORITY_PASSPHRASE"
NEW = "give --new-passphrase-file FILE (- for standard input)"
HOW = "give --passphrase-file FILE (- for standard input)"
REQUEST_MOST = 4096  # bytes of a device's request: all are smaller
SIGN_SECONDS = 60.0  # between two signs of life, at most
NAME_SHOWN, REASON_SHOWN = 100, 1000  # characters of what the server wrote

Where = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's directory.")]
Out = Annotated[Path, typer.Option("--out", help="File to write; an existing one is never replaced.")]
Ask = Annotated[
    bool,
    typer.Option(
        "--passphrase", help="Ask for the passphrase, as is done anyway where the key is kept under one."
    ),
]
From = Annotated[
    str,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Take the passphrase from the first line of a file; - for standard input.",
        show_default=False,
    ),
]


@command(app)
def init(
    directory: Where,
    passphrase: Ask = False,
    passphrase_file: From = "",
    no_passphrase: Annotated[
        bool,
        typer.Option(
            "--no-passphrase",
            help="Keep the key unencrypted: whoever can read its file, or a copy, can enrol anybody.",
        ),
    ] = False,
) -> None:
    """Make a new authority, its key under a passphrase; prints the digest that join tokens carry."""
    from penchant.deploy.fleet.authority import AuthorityStore, refuse_existing

    if no_passphrase and (passphrase or passphrase_file):
        raise UsageError("--no-passphrase and a passphrase exclude each other; choose one")
    refuse_existing(directory)
    secret = None if no_passphrase else _new_passphrase(passphrase_file, passphrase)
    authority_store = AuthorityStore.init(directory, secret)
    say(f"authority {authority_store.digest.hex()}")
    say(f"keep {directory} off the server, and a copy of it in a safe place")
    if no_passphrase:
        say("its key is not encrypted: whoever can read it, or a copy, can enrol anybody", error=True)


@command(app, "passphrase")
def change_passphrase(
    directory: Where,
    passphrase: Ask = False,
    passphrase_file: From = "",
    new_passphrase_file: Annotated[
        str,
        typer.Option(
            "--new-passphrase-file",
            metavar="FILE",
            help="Take the new passphrase from the first line of a file; - for standard input.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Give the authority's key another passphrase, or its first one."""
    authority_store = _opened(directory, passphrase, passphrase_file)
    authority_store.protect(_new_passphrase(new_passphrase_file, variable=""))
    say(f"the key in {directory} opens with the new passphrase; copies of the old file with the old one")


@command(app)
def issue(
    directory: Where,
    request: Annotated[Path, typer.Argument(help="The device's request.")],
    out: Out,
    name: Annotated[str, typer.Option("--name", help="For the authority's own record.")] = "",
    passphrase: Ask = False,
    passphrase_file: From = "",
) -> None:
    """Certify a device and write the answer for it."""
    from penchant.common.membership.enrolment import NamedRequest

    asked = NamedRequest.decode(_read(request))
    _refuse_existing(out)
    answer = _opened(directory, passphrase, passphrase_file).issue(asked.request, name or asked.name)
    _write(out, answer.encode())
    say(f"member {answer.certificate.member}: {out}")


@command(app)
def revoke(
    directory: Where,
    member: Annotated[int, typer.Argument(help="The member's number.")],
    out: Out,
    why: Annotated[str, typer.Option("--why", help="For the authority's own record.")] = "",
    passphrase: Ask = False,
    passphrase_file: From = "",
) -> None:
    """Revoke a member for good, and write the new list."""
    _refuse_existing(out)
    _write(out, _opened(directory, passphrase, passphrase_file).revoke(member, why))
    say(f"member {member} is revoked; give {out} to the server")
    say(
        "what sums of earlier rounds hold of them stays in factors and releases: a run's epsilon bounds it, "
        "where it has one"
    )


@command(app)
def publish(
    directory: Where,
    out: Out,
    days: Annotated[int, typer.Option("--days", help="How long the list is valid.")] = 30,
    passphrase: Ask = False,
    passphrase_file: From = "",
) -> None:
    """Sign the next member list, and write it."""
    _refuse_existing(out)
    _write(out, _opened(directory, passphrase, passphrase_file).publish(days=days))
    say(f"{out} is valid for {days} days")


@command(app)
def attend(
    directory: Where,
    requests: Annotated[Path, typer.Option("--requests", help="Folder of the server's requests.")],
    answers: Annotated[Path, typer.Option("--answers", help="Folder to write answers and lists into.")],
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Grant everything: whoever runs the server can enrol and run anything."),
    ] = False,
    watch: Annotated[
        float,
        typer.Option("--watch", help="Seconds between two looks at the folder, until stopped; 0 looks once."),
    ] = 0.0,
    passphrase: Ask = False,
    passphrase_file: From = "",
) -> None:
    """Decide on the server's requests, one by one: files in, files out."""
    from penchant.deploy.fleet import authority_inbox
    from penchant.deploy.fleet.heartbeat import LONGEST

    if not 0 <= watch <= LONGEST:
        raise UsageError(f"--watch {watch:g}: give between 0 and {LONGEST} seconds")
    authority_store = _opened(directory, passphrase, passphrase_file)
    if yes:
        say(
            "everything is granted: whoever runs the server can enrol anybody and run anything",
            error=True,
        )
    said: set[str] = set()  # at the last look: what is left alone is said once
    later: set[str] = set()  # digests of requests that were left for another time: each is asked about once

    def decide(pending: PendingDecision) -> bool | None:
        if yes:
            return True
        if pending.request in later:
            return None
        granted = _decided(pending)
        if granted is None:
            later.add(pending.request)
            say("it is left undecided; `penchant authority attend` asks again when it is started anew")
        return granted

    def look() -> None:
        lines = authority_inbox.attend(authority_store, requests, answers, decide)
        for line in lines:
            if line not in said:
                say(one_line(line))
        said.clear()
        said.update(lines)

    with on_interrupt("what was decided is kept, and the same command asks about the rest"):
        if not watch:
            look()
            return
        _watch(directory, look, watch)


@command(app)
def health(directory: Where) -> None:
    """Whether `attend --watch` looks at requests: ends with 1 where it is down, or was not heard of when it
    should be."""
    from penchant.common.wording import duration
    from penchant.deploy.fleet.authority_inbox import BEAT, LOCK
    from penchant.deploy.fleet.heartbeat import Heartbeat
    from penchant.deploy.run_directory import held_locks, is_held

    late = Heartbeat(directory / BEAT).late()
    if not is_held(directory / LOCK, held_locks()):
        wrong = f"nobody attends in {directory}"
    elif late is None:
        wrong = "attend was never heard of"
    else:
        wrong = f"attend should have been heard of {duration(late)} ago" if late > 0 else ""
    if wrong:
        say(wrong, error=True)
        raise typer.Exit(1)
    say("attend is well")


@command(app, "list")
def list_members(
    directory: Where,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    passphrase: Ask = False,
    passphrase_file: From = "",
) -> None:
    """Everybody ever certified."""
    members = _opened(directory, passphrase, passphrase_file).members()
    if as_json:
        rows = [
            {"number": m.number, "name": m.name, "issued": m.issued, "revoked": m.revoked, "why": m.why}
            for m in members
        ]
        say_json(rows)
        return
    for m in members:
        state = f"revoked {_day(m.revoked)} {m.why}" if m.revoked is not None else "member"
        name = one_line(m.name, NAME_SHOWN)
        say(f"{m.number:6d}  {_day(m.issued)}  {one_line(state, REASON_SHOWN):10s}  {name}".rstrip())


# --- inner parts --------------------------------------------------------------------------------------


def _watch(directory: Path, look: Callable[[], None], seconds: float) -> None:
    """Look every so many seconds, as the only one who does with this authority, and give signs of life."""
    from penchant.deploy.fleet.authority_inbox import BEAT, LOCK
    from penchant.deploy.fleet.heartbeat import Heartbeat
    from penchant.deploy.run_directory import claim

    heartbeat, silent = Heartbeat(directory / BEAT), False
    taken = UsageError(f"another `attend --watch` works with {directory}; end it first")

    def beat() -> None:
        nonlocal silent
        try:
            heartbeat.beat(min(seconds, SIGN_SECONDS))
            silent = False
        except OSError as error:  # requests are answered all the same
            if not silent:
                say(f"no sign of life can be written: {error.strerror}", error=True)
            silent = True

    with claim(directory, LOCK, taken):
        while True:
            beat()
            look()
            left = seconds
            while left > SIGN_SECONDS:  # who looks once an hour is missed within minutes all the same
                time.sleep(SIGN_SECONDS)
                left -= SIGN_SECONDS
                beat()
            time.sleep(left)


def _decided(pending: PendingDecision) -> bool | None:
    """What the authority says: yes, no for good, or None for another time. Who does not know yet whether a
    fingerprint is right has declined nothing."""
    if _granted(pending):
        return True
    if pending.kind == "enrol":
        declined = typer.confirm("Decline it for good? Its owner is told, and needs another token")
    elif pending.kind == "revoke":
        declined = typer.confirm("Decline it for good? The server is told")
    else:
        return False  # the server asks anew
    return False if declined else None


def _granted(decision: PendingDecision) -> bool:
    """Ask the authority. What the decision is about is the last line above the question: a name before it can
    neither hide it nor put another one in its place."""
    if decision.kind == "enrol":
        say(f"the server calls the device: {one_line(decision.what, NAME_SHOWN) or 'nothing'}")
        say("the fingerprint of its request:")
        say(decision.who)
        return typer.confirm("Does the device's owner see the same fingerprint, and do you know them?")
    if decision.kind == "run":
        say(f"the server calls the run: {one_line(decision.what, NAME_SHOWN) or 'nothing'}")
        say("it asks for your signature under this, and devices will take part in nothing beyond it:")
        for line in decision.lines:
            say(f"  {one_line(line)}")
        return typer.confirm("May devices take part in this run?")
    if decision.kind == "release":
        say(f"the server calls the release: {one_line(decision.what, NAME_SHOWN) or 'nothing'}")
        say("it asks for your signature under this, and devices will start from it:")
        for line in decision.lines:
            say(f"  {one_line(line)}")
        say("(privacy, counts and accuracy are the server's word; run, base model and plan are checked)")
        return typer.confirm("May devices start from this release?")
    say(f"the server's reason: {one_line(decision.what, REASON_SHOWN) or 'none'}")
    say("it asks to revoke this member for good:")
    say(f"member {decision.who}")
    return typer.confirm("Revoke it?")


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _new_passphrase(file: str, told: bool = False, *, variable: str = PASSPHRASE) -> str:
    """For a key. Refused before anything is made: where there is none, or a weak one."""
    from penchant.common.crypto.passphrase import LEAST, refuse_weak

    found = passphrases.given(file, variable)
    if not found:
        how = f"{HOW}, or --no-passphrase for an unencrypted key" if variable else NEW
        prompt = f"New passphrase (at least {LEAST} characters)"
        found = passphrases.asked(prompt, new=True, told=told, how=how)
    refuse_weak(found)
    return found


def _opened(directory: Path, ask: bool, file: str) -> AuthorityStore:
    """The authority in `directory`; its passphrase is asked for if there is one and it is not given."""
    from penchant.common.membership.identity import Authority
    from penchant.deploy.fleet.authority import KEY, AuthorityStore, refuse_missing

    refuse_missing(directory)
    found = passphrases.given(file, PASSPHRASE) or None
    needed = Authority.asks_passphrase(directory / KEY)
    if found and not needed:
        raise UsageError(
            f"the key in {directory} has no passphrase; `penchant authority passphrase` gives it one"
        )
    if needed and found is None:
        found = passphrases.asked("Passphrase", new=False, told=ask, how=HOW)
    return AuthorityStore(directory, found)


def _read(path: Path) -> bytes:
    from penchant.deploy.fleet.shared_folder import read_regular

    return read_regular(path, REQUEST_MOST)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} is there already; choose another --out")


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from None
