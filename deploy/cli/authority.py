"""`penchant authority …`: the enrolment authority. It never talks to a network: files in, files out."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.errors import UsageError
from penchant.common.wording import one_line
from penchant.deploy.cli.errors import command, on_interrupt

if TYPE_CHECKING:
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

Where = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's directory.")]
Out = Annotated[Path, typer.Option("--out", help="File to write; an existing one is never replaced.")]
Ask = Annotated[bool, typer.Option("--passphrase", help=f"Ask for the passphrase (or set {PASSPHRASE}).")]


@command(app)
def init(directory: Where, passphrase: Ask = False) -> None:
    """Make a new authority; prints the digest that join tokens carry."""
    from penchant.deploy.fleet.authority import AuthorityStore

    office = AuthorityStore.init(directory, _passphrase(passphrase, confirm=True))
    print(f"authority {office.digest.hex()}")
    print(f"keep {directory} off the server, and a copy of it in a safe place")


@command(app)
def issue(
    directory: Where,
    request: Annotated[Path, typer.Argument(help="The device's request.")],
    out: Out,
    name: Annotated[str, typer.Option("--name", help="For the authority's own record.")] = "",
    passphrase: Ask = False,
) -> None:
    """Certify a device and write the answer for it."""
    from penchant.common.membership.enrolment import Asked
    from penchant.deploy.fleet.authority import AuthorityStore

    asked = Asked.decode(_read(request))
    _refuse_existing(out)
    answer = AuthorityStore(directory, _passphrase(passphrase)).issue(asked.request, name or asked.name)
    _write(out, answer.encode())
    print(f"member {answer.certificate.member}: {out}")


@command(app)
def revoke(
    directory: Where,
    member: Annotated[int, typer.Argument(help="The member's number.")],
    out: Out,
    why: Annotated[str, typer.Option("--why", help="For the authority's own record.")] = "",
    passphrase: Ask = False,
) -> None:
    """Revoke a member for good, and write the new list."""
    from penchant.deploy.fleet.authority import AuthorityStore

    _refuse_existing(out)
    _write(out, AuthorityStore(directory, _passphrase(passphrase)).revoke(member, why))
    print(f"member {member} is revoked; give {out} to the server")


@command(app)
def publish(
    directory: Where,
    out: Out,
    days: Annotated[int, typer.Option("--days", help="How long the list is valid.")] = 30,
    passphrase: Ask = False,
) -> None:
    """Sign the next member list, and write it."""
    from penchant.deploy.fleet.authority import AuthorityStore

    _refuse_existing(out)
    _write(out, AuthorityStore(directory, _passphrase(passphrase)).publish(days=days))
    print(f"{out} is valid for {days} days")


@command(app)
def attend(
    directory: Where,
    requests: Annotated[Path, typer.Option("--requests", help="Folder of the server's requests.")],
    answers: Annotated[Path, typer.Option("--answers", help="Folder to write answers and lists into.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Grant everything: then whoever runs the server can enrol anybody.")
    ] = False,
    watch: Annotated[
        float,
        typer.Option("--watch", help="Seconds between two looks at the folder, until stopped; 0 looks once."),
    ] = 0.0,
    passphrase: Ask = False,
) -> None:
    """Decide on the server's requests, one by one: files in, files out."""
    from penchant.deploy.fleet import authority_inbox
    from penchant.deploy.fleet.authority import AuthorityStore

    office = AuthorityStore(directory, _passphrase(passphrase))
    if yes:
        print("everything is granted: whoever runs the server can enrol anybody", file=sys.stderr)
    with on_interrupt("what was decided is kept, and the same command asks about the rest"):
        while True:
            for line in authority_inbox.attend(office, requests, answers, lambda m: yes or _granted(m)):
                print(one_line(line), flush=True)
            if not watch:
                return
            time.sleep(watch)


@command(app, "list")
def list_members(
    directory: Where,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    passphrase: Ask = False,
) -> None:
    """Everybody ever certified."""
    from penchant.deploy.fleet.authority import AuthorityStore

    members = AuthorityStore(directory, _passphrase(passphrase)).members()
    if as_json:
        rows = [
            {"number": m.number, "name": m.name, "issued": m.issued, "revoked": m.revoked, "why": m.why}
            for m in members
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for m in members:
        state = f"revoked {_day(m.revoked)} {m.why}" if m.revoked is not None else "member"
        print(f"{m.number:6d}  {_day(m.issued)}  {one_line(state):10s}  {one_line(m.name)}".rstrip())


# --- inner parts --------------------------------------------------------------------------------------


def _granted(decision: PendingDecision) -> bool:
    if decision.kind == "enrol":
        print(one_line(f"request {decision.who} {decision.what}"))
        return typer.confirm("Does the device's owner see the same request, and do you know them?")
    print(one_line(f"the server asks to revoke member {decision.who}: {decision.what or 'no reason given'}"))
    return typer.confirm("Revoke it for good?")


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def _passphrase(ask: bool, *, confirm: bool = False) -> str | None:
    given = os.environ.get(PASSPHRASE)
    if given is None and ask:
        given = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm)
    return given or None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} is there already; choose another --out")


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from None
