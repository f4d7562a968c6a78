"""`penchant console DIR…`: the operator's console; `penchant console account …`: who may use it."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

from penchant.common.errors import UsageError
from penchant.common.terminal import log_to_stderr, say
from penchant.deploy.cli.errors import command, ending_in_one_line
from penchant.deploy.cli.listening import TlsCert, TlsKey, reachable_as
from penchant.deploy.fleet.listen_address import ListenAddress
from penchant.deploy.fleet.recorded_acts import who_is_here

if TYPE_CHECKING:
    from penchant.server.console.accounts import ConsoleStore

__all__ = ["app"]

CONNECTIONS = 500  # at the same time, of everybody
PORT = 8900


class _Console(TyperGroup):
    """A group whose own arguments are directories: `account` is a command, anything else is a DIR."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before = 0  # words of a --state that stands before the command
        while before < len(args) and args[before].partition("=")[0] == "--state":
            before += 1 if "=" in args[before] else 2
        if before < len(args) and args[before] in self.commands:
            args = [*args[before:], *args[:before]]
        if args and args[0] in self.commands:
            rest = super().parse_args(ctx, [])
            ctx._protected_args, ctx.args = args[:1], args[1:]
            return rest
        ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="console",
    cls=_Console,
    help="The operator's console: a web application over the runs of a fleet.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
account = typer.Typer(
    name="account",
    help="Who may use the console: viewers look, operators act, each where it has that role.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(account)

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        help="The console's own directory; by default the user's state directory.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")]
OnFleets = Annotated[
    list[str] | None,
    typer.Option(
        "--fleet",
        metavar="DIR=ROLE",
        help="Another role on the fleet whose server is at DIR: none, viewer or operator. Repeatable.",
    ),
]


@app.callback(invoke_without_command=True)
@ending_in_one_line
def console(
    context: typer.Context,
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR…", help="Runs, and folders of runs; the first folder takes new ones."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.", min=1, max=65535)] = PORT,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            "--origin", help="The address that browsers use behind a TLS proxy, https://NAME[:PORT]."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of data sets and models that new runs may use.")
    ] = None,
    state: State = None,
) -> None:
    """The operator's console: a web application over the runs of a fleet."""
    if context.invoked_subcommand is not None or context.resilient_parsing:
        return
    if not directories:
        raise UsageError("name at least one run, or folder of runs: penchant console DIR")
    hosts, https = reachable_as(
        "the console",
        host,
        port,
        (tls_cert, tls_key),
        origins=origin or [],
        otherwise=" (or on 127.0.0.1 behind a proxy that does TLS, with --origin)",
        tunnels=True,
    )
    _serve(directories, host, port, (tls_cert, tls_key), hosts, https, data, state)


@command(account)
def add(
    name: Name,
    role: Annotated[
        str,
        typer.Option(
            "--role", help="The account's role where --fleet says no other: none, viewer or operator."
        ),
    ],
    fleet: OnFleets = None,
    state: State = None,
) -> None:
    """Make an account. The password is asked for, or read from standard input."""
    fleets = _roles_on(fleet or [])
    store = _store(state)
    store.add(name, role, _password(), fleets)
    store.note(who_is_here(), "", "make an account", name, detail=_roles_told(role, fleet or []))
    say(f"{name} may log in as {role}{_and_on(fleet or [])}")


@command(account, "role")
def give_role(
    name: Name,
    role: Annotated[
        str | None,
        typer.Option("--role", help="The role where --fleet says no other; without it, that stays as it is."),
    ] = None,
    fleet: OnFleets = None,
    state: State = None,
) -> None:
    """Give an account other roles: from its next click on."""
    if role is None and not fleet:
        raise UsageError("say which role: --role ROLE, --fleet DIR=ROLE, or both")
    fleets = _roles_on(fleet or [])
    store = _store(state)
    store.give_role(name, role, fleets)
    store.note(who_is_here(), "", "change a role", name, detail=_roles_told(role or "", fleet or []))
    say(f"{name} is now {role or 'as before'}{_and_on(fleet or [])}")


@command(account, "reset-second-factor")
def reset_second_factor(name: Name, state: State = None) -> None:
    """Take an account's second factor away, for whoever lost app and recovery codes; it is logged out."""
    store = _store(state)
    store.reset_second_factor(name)
    store.note(who_is_here(), "", "reset a second factor", name)
    say(f"{name} logs in with the password alone, and can set up another second factor")


@command(account)
def passwd(name: Name, state: State = None) -> None:
    """Give an account another password; whoever is logged in with the old one is out."""
    store = _store(state)
    store.passwd(name, _password())
    store.note(who_is_here(), "", "change a password", name)
    say(f"{name} has a new password")


@command(account)
def remove(name: Name, state: State = None) -> None:
    """Take an account away; whoever is logged in with it is out."""
    store = _store(state)
    store.remove(name)
    store.note(who_is_here(), "", "remove an account", name)
    say(f"{name} is removed")


@command(account, "list")
def list_accounts(state: State = None) -> None:
    """All accounts."""
    for one in _store(state).accounts():
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used)) if one.used else "never"
        more = [f"{fleet}: {role}" for fleet, role in sorted(one.rights.fleets.items())]
        more += ["second factor"] if one.second_factor else []
        more += [f"by {one.issuer}"] if one.issuer else []
        say("  ".join([f"{one.name:32s}  {one.rights.elsewhere:8s}  last login {used}", *more]))


# --- inner parts --------------------------------------------------------------------------------------


def _roles_on(given: list[str]) -> dict[str, str]:
    """The console's id of each fleet -> the role. UsageError for what is not DIR=ROLE."""
    found = {}
    for one in given:
        directory, equals, role = one.rpartition("=")
        if not equals:
            raise UsageError(f"--fleet {one}: write DIR=ROLE, such as /var/lib/penchant/server=viewer")
        found[_fleet_id(directory)] = role
    return found


def _fleet_id(directory: str) -> str:
    from penchant.deploy.console.local import fleet_id

    return fleet_id(Path(directory))


def _roles_told(role: str, fleets: list[str]) -> str:
    return ", ".join([*([f"role: {role}"] if role else []), *(f"fleet: {one}" for one in fleets)])


def _and_on(fleets: list[str]) -> str:
    return "".join(
        f", {role} on {directory}" for directory, _, role in (one.rpartition("=") for one in fleets)
    )


def _serve(
    directories: list[Path],
    host: str,
    port: int,
    tls: tuple[Path | None, Path | None],
    hosts: frozenset[str],
    https: bool,
    data: Path | None,
    state: Path | None,
) -> None:
    try:
        from penchant.deploy.console.connections import bounded_server
        from penchant.deploy.console.local import (
            OperationsOnThisMachine,
            refuse_strangers,
            roles_without_fleet,
        )
        from penchant.server.console.app import build_app
        from penchant.server.console.provider_login import ProviderLogin
        from penchant.server.console.provider_settings import trusted_provider
    except ModuleNotFoundError as missing:
        raise UsageError(f"the console needs {missing.name}; install penchant[console]") from None

    refuse_strangers(directories)
    log_to_stderr()
    store = _store(state)
    trusted = trusted_provider(store.directory, _fleet_id)
    store.end_provider_sessions()  # what they may do is in that file
    operations = OperationsOnThisMachine(directories, store, data)
    operations.look_ahead()
    for line in roles_without_fleet(operations, store.accounts(), trusted.allowed if trusted else ()):
        say(line, error=True)
    scheme = "https" if tls[0] else "http"
    if not store.accounts() and trusted is None:
        where = f" --state {shlex.quote(str(state))}" if state else ""
        add = f"penchant console account add NAME --role operator{where}"
        say(f"no account yet: {add}", error=True)
    address = ListenAddress(host, port)
    listener = address.bind()
    say(f"the console is at {scheme}://{address}")
    provider = ProviderLogin(trusted) if trusted else None
    app = build_app(store, operations, hosts=hosts, https=https, provider=provider)
    bounded_server(app, tls, CONNECTIONS).run(sockets=[listener])


def _store(state: Path | None) -> ConsoleStore:
    from penchant.server.console.accounts import ConsoleStore, default_state

    return ConsoleStore(state or default_state())


def _password() -> str:
    """From the terminal, twice; else the first line of standard input. Never from the command line."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    given: Any = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return str(given)
