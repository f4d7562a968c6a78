"""`penchant authority …`: the enrolment authority at the command line. It never talks to a network."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from penchant.common.errors import UsageError

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
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks for errors.")]


@app.command()
def init(directory: Where, passphrase: Ask = False, debug: Debug = False) -> None:
    """Make a new authority; prints the digest that join tokens carry."""

    def work() -> None:
        from penchant.deploy.authority import Office

        office = Office.init(directory, _passphrase(passphrase, confirm=True))
        print(f"authority {office.digest.hex()}")
        print(f"keep {directory} off the server, and a copy of it in a safe place")

    _guarded(work, debug)


@app.command()
def issue(
    directory: Where,
    request: Annotated[Path, typer.Argument(help="The device's request.")],
    out: Out,
    name: Annotated[str, typer.Option("--name", help="For the authority's own record.")] = "",
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Certify a device and write the answer for it."""

    def work() -> None:
        from penchant.common.enrolment import Request
        from penchant.deploy.authority import Office

        asked = Request.decode(_read(request))
        _refuse_existing(out)
        answer = Office(directory, _passphrase(passphrase)).issue(asked, name)
        _write(out, answer.encode())
        print(f"member {answer.certificate.member}: {out}")

    _guarded(work, debug)


@app.command()
def revoke(
    directory: Where,
    member: Annotated[int, typer.Argument(help="The member's number.")],
    out: Out,
    why: Annotated[str, typer.Option("--why", help="For the authority's own record.")] = "",
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Revoke a member for good, and write the new list."""

    def work() -> None:
        from penchant.deploy.authority import Office

        _refuse_existing(out)
        _write(out, Office(directory, _passphrase(passphrase)).revoke(member, why))
        print(f"member {member} is revoked; give {out} to the server")

    _guarded(work, debug)


@app.command()
def publish(
    directory: Where,
    out: Out,
    days: Annotated[int, typer.Option("--days", help="How long the list is valid.")] = 30,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Sign the next member list, and write it."""

    def work() -> None:
        from penchant.deploy.authority import Office

        _refuse_existing(out)
        _write(out, Office(directory, _passphrase(passphrase)).publish(days=days))
        print(f"{out} is valid for {days} days")

    _guarded(work, debug)


@app.command("list")
def list_members(
    directory: Where,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Everybody ever certified."""

    def work() -> None:
        from penchant.deploy.authority import Office

        members = Office(directory, _passphrase(passphrase)).members()
        if as_json:
            rows = [
                {"number": m.number, "name": m.name, "issued": m.issued, "revoked": m.revoked, "why": m.why}
                for m in members
            ]
            print(json.dumps(rows, indent=2, ensure_ascii=False))
            return
        for m in members:
            state = f"revoked {_day(m.revoked)} {m.why}" if m.revoked is not None else "member"
            print(f"{m.number:6d}  {_day(m.issued)}  {state:10s}  {m.name}".rstrip())

    _guarded(work, debug)


# --- inner parts --------------------------------------------------------------------------------------


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


def _guarded(work: Callable[[], None], debug: bool) -> None:
    from penchant.deploy.cli import guarded

    guarded(work, debug)
