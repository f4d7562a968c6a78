"""`penchant device request`, `join`, `accept` and `leave`: how a device becomes a member of a fleet."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from penchant.common.durations import DAY
from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say
from penchant.deploy.cli.device.options import (
    HERE,
    SOCKET,
    Ask,
    HomeOption,
    NodeOption,
    SocketOption,
    make_sure,
    node_folder,
    open_home,
    part,
)
from penchant.deploy.cli.errors import command, notice, on_interrupt

__all__ = ["app"]

app = typer.Typer()


@command(app)
def request(
    out: Annotated[Path, typer.Option("--out", help="File to write, for the enrolment authority.")],
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Make this device's keys and write what the authority needs to certify it."""
    if out.exists():
        raise UsageError(f"{out} is there already; choose another --out")
    data = open_home(home, passphrase).request().encode()
    out.write_bytes(data)
    say(f"give {out} to the enrolment authority; the private key stays here")


@command(app)
def join(
    token: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A file that holds the join token, or - for standard input. (The token itself is taken as "
            "well, but then other users of this machine can read it in `ps`.)",
        ),
    ],
    authority: Annotated[
        str,
        typer.Option("--authority", help="The authority's digest: a token of another authority is refused."),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the authority has answered.")] = False,
    wait_seconds: Annotated[
        float, typer.Option("--wait-seconds", help="How long to wait at most; a week by default.")
    ] = 7.0 * DAY,
    node: NodeOption = None,
    socket: SocketOption = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Become a member of a fleet with a token from its operator."""
    found = _token_or_answer(token)
    if isinstance(found, bytes):  # until 0.3: an answer was given to this command as well
        notice("give an authority's answer to `penchant device accept ANSWER --authority DIGEST`")
        _accept(found, authority, home, passphrase)
        return
    from penchant.client.device import joining
    from penchant.common.membership.join_token import JoinToken

    read = JoinToken.read(found, time.time())
    if authority and authority != read.terms.authority.hex():
        raise UsageError("the token comes from a different authority than --authority names")
    directory = home.expanduser()
    device, folder = open_home(home, passphrase), node_folder(home, node)
    with on_interrupt("the same command goes on"):
        member = joining.wait(
            lambda: joining.join(device, read, folder, socket or directory / SOCKET),
            wait_seconds if wait else 0.0,
            lambda text: say(one_line(text)),
        )
    say(f"this device is member {member}")
    where = "" if home == HERE else f" --home {shlex.quote(str(home))}"
    say(f"now run `penchant device serve{where}`, and beside it")
    say(f"  penchant device connect --node {shlex.quote(str(folder))}")


@command(app)
def accept(
    answer: Annotated[
        Path, typer.Argument(metavar="ANSWER", help="The file with which the authority answered the request.")
    ],
    authority: Annotated[
        str, typer.Option("--authority", help="The authority's digest, as you received it by other means.")
    ],
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Become a member of a fleet with the authority's answer to `penchant device request`."""
    _accept(_read(answer), authority, home, passphrase)


@command(app)
def leave(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    node: NodeOption = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Leave the fleet: the identity is deleted, the server is told; choices and the personal model stay."""
    make_sure(yes, "Leave the fleet?")
    device = open_home(home, passphrase)
    part(device, home, node, device.leave)


# --- inner parts --------------------------------------------------------------------------------------


def _accept(answer: bytes, authority: str, home: Path, passphrase: bool) -> None:
    try:
        digest = bytes.fromhex(authority)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UsageError("--authority must be a digest of 64 hexadecimal digits")
    say(f"this device is member {open_home(home, passphrase).join(answer, digest)}")


def _token_or_answer(what: str) -> str | bytes:
    """A token's text, or the bytes of an authority's answer."""
    from penchant.common.membership.join_token import JoinToken

    if what == "-":
        return sys.stdin.readline(4096) if sys.stdin.isatty() else sys.stdin.read(4096)
    if JoinToken.looks_like(what):
        notice(
            "a token on the command line can be read by every user of this machine (`ps`); "
            "give a file that holds it, or - for standard input"
        )
        return what
    data = _read(Path(what))
    text = data[:4096].decode("ascii", errors="replace")
    return text if JoinToken.looks_like(text) else data


def _read(path: Path) -> bytes:
    from penchant.common.wire.messages import MAX_MEMBERSHIP
    from penchant.deploy.fleet.shared_folder import read_regular

    return read_regular(path, MAX_MEMBERSHIP + 1024)
