"""`penchant server …`: an operator brings a server up, invites devices, starts and watches runs."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penchant.common.durations import DAY
from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import log_to_stderr, say, say_json
from penchant.deploy.cli.errors import command, on_interrupt

if TYPE_CHECKING:
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.deploy.fleet.status import ServerReport
    from penchant.server.monitoring.run_history import RunSummary
    from penchant.server.monitoring.run_report import RunReport

__all__ = ["app"]

app = typer.Typer(
    name="server",
    help="The operator of a fleet: bring a server up, invite devices, start and watch runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Where = Annotated[Path, typer.Argument(metavar="DIR", help="The server's directory.")]
RunName = Annotated[
    str,
    typer.Option("--run", help="The run's name; by default the one that was made last.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Detach = Annotated[bool, typer.Option("--detach", help="Start it and don't wait for its end.")]


@command(app)
def init(
    directory: Where,
    authority: Annotated[Path, typer.Option("--authority", help="The authority's authority.pub.")],
    members: Annotated[Path, typer.Option("--members", help="The authority's latest member list.")],
    address: Annotated[
        list[str], typer.Option("--address", help="Name or IP that devices connect to; may be repeated.")
    ],
    listen: Annotated[str, typer.Option("--listen", help="Address that the gateway listens on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", help="Port of the gateway.")] = 8443,
    superlink_port: Annotated[
        int, typer.Option("--superlink-port", help="Port of the SuperLink, on loopback.")
    ] = 9092,
) -> None:
    """Make a fleet's server: its directory, settings and certificates."""
    from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings

    settings = ServerSettings(
        addresses=tuple(address), listen=listen, port=port, superlink_port=superlink_port
    )
    ServerDirectory.create(directory, settings, _read(authority), _read(members))
    say(f"{directory} is ready; bring it up with `penchant server up {directory}`")


@command(app)
def up(
    directory: Where,
    only: Annotated[
        str, typer.Option("--only", help="One part, in this process: superlink, executor, enrol or gateway.")
    ] = "",
) -> None:
    """Run the server until it is stopped: SuperLink, its executor, the enrolment service, the gateway."""
    from penchant.deploy.fleet import processes
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    if only:
        processes.only(server_directory, only)
        return
    log_to_stderr()
    processes.up(
        server_directory, lambda: say(f"devices reach this server at {server_directory.settings.gateway}")
    )


@command(app, formerly="enroll")
def invite(
    directory: Where,
    name: Annotated[str, typer.Option("--name", help="Your name for the device.")] = "",
    days: Annotated[float, typer.Option("--days", help="How long the token is valid.")] = 7.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write the token to, instead of showing it.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show all tokens and what became of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hand out a join token for one device: one-time, expiring, with the digests that the device trusts."""
    from penchant.deploy.fleet.enrolment import hand_out

    if show:
        _print_enrolments(directory, as_json)
        return
    if out is not None and out.exists():
        raise UsageError(f"{out} is there already; choose another --out")
    text = hand_out(directory, name, time.time() + days * DAY).text()
    if out is None:
        say(text)
        return
    with open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    say(f"{out}: take it to the device by a channel that nobody else can tamper with")


@command(app)
def members(
    directory: Where,
    file: Annotated[Path, typer.Argument(help="The authority's newer member list.")],
) -> None:
    """Take over a newer member list; a run that goes on heeds it from its next round."""
    from penchant.deploy.fleet.server_directory import ServerDirectory

    say(f"member list {ServerDirectory(directory).take_members(_read(file))}")


@command(app)
def revoke(
    directory: Where,
    member: Annotated[int, typer.Argument(help="The member's number.")],
    why: Annotated[str, typer.Option("--why", help="For the authority's record.")] = "",
) -> None:
    """Ask the authority to revoke a member; it takes effect with the authority's next list."""
    from penchant.deploy.fleet.enrolment import request_revocation
    from penchant.deploy.fleet.revoked_members import contributed
    from penchant.deploy.fleet.server_directory import ServerDirectory

    say(f"{request_revocation(directory, member, why)}: for the authority")
    say(one_line(contributed(ServerDirectory(directory), member)))


@command(app)
def renew(directory: Where) -> None:
    """Make new server certificates under the same authorities; restart the server to use them."""
    from penchant.deploy.fleet.certificates import days_left
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    server_directory.renew()
    say(f"good for {days_left(server_directory.tls.gateway.certificate):.0f} days; now restart the server")


@command(app)
def run(
    directory: Where,
    config: Annotated[Path, typer.Option("--config", help="TOML configuration of the run.")],
    name: Annotated[str, typer.Option("--name", help="A name for the run.")] = "",
    begin_with: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="RUN:ROUND",
            help="Begin with the shared factors of a finished round of an earlier run.",
            show_default=False,
        ),
    ] = "",
    days: Annotated[int, typer.Option("--days", help="How many days the run may take.")] = 30,
    detach: Detach = False,
) -> None:
    """Make a run and start it on the server. It begins once the authority has signed what it may ask."""
    from penchant.common.config import RunConfig
    from penchant.deploy.earlier_round import earlier_round, named_round
    from penchant.deploy.fleet import served_run
    from penchant.deploy.fleet.follow import refuse_second
    from penchant.deploy.fleet.processes import door
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.server.privacy_figures import EXACT

    server_directory, settings = ServerDirectory(directory), RunConfig.read(config)
    refuse_second(server_directory, door(server_directory))
    chosen = name or f"run-{len(server_directory.runs()) + 1}"
    start = None
    if begin_with:
        earlier, number = named_round(begin_with)
        start = earlier_round(server_directory.run(_chosen(server_directory, earlier)), number, settings)
    figures = served_run.create(
        server_directory.run(chosen),
        settings,
        server_directory.authority,
        server_directory.membership().encoded,
        start,
    )
    say(f"run {chosen}")
    say(f"note: {EXACT if figures is None else figures.told}", error=True)
    _ask_for_signature(server_directory, chosen, days)
    _play(server_directory, chosen, detach)


@command(app)
def resume(directory: Where, run: RunName = "", detach: Detach = False) -> None:
    """Go on with a run after a crash or a stop: finished rounds are kept."""
    from penchant.deploy.fleet.follow import is_done, refuse_second
    from penchant.deploy.fleet.processes import door
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    chosen = _chosen(server_directory, run)
    if is_done(server_directory.run(chosen)):
        say(f"run {chosen} is finished")
        return
    refuse_second(server_directory, door(server_directory))
    _ask_for_signature(server_directory, chosen)
    _play(server_directory, chosen, detach)


@command(app)
def status(directory: Where, run: RunName = "", as_json: AsJson = False) -> None:
    """The server, its devices, and how far a run is: every round and attempt, who was lost where."""
    from penchant.deploy.cli.show_run import run_facts, show_run
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.deploy.fleet.status import report_of

    if (directory / "config.toml").is_file():  # one run's directory, of a simulation say
        facts: RunSummary | None = run_facts(directory)
        server: ServerReport | None = None
    else:
        server_directory = ServerDirectory(directory)
        server = report_of(server_directory)
        chosen = _chosen(server_directory, run) if server_directory.runs() or run else ""
        facts = run_facts(server_directory.run(chosen)) if chosen else None
    if as_json:
        say_json(_table(server) | _table(facts.report() if facts else None))
        return
    if server:
        _print_server(server)
    if facts:
        show_run(facts)


@command(app)
def export(
    directory: Where,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="An empty directory to write into.")],
    run: RunName = "",
) -> None:
    """Write the shared adapter of a run's last round as plain peft and safetensors files, with a card."""
    from penchant.deploy.fleet import served_run
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    say(f"round {served_run.export(server_directory.run(_chosen(server_directory, run)), out)}: {out}")


# --- inner parts --------------------------------------------------------------------------------------


def _chosen(server_directory: ServerDirectory, name: str) -> str:
    """The run that is meant. UsageError when there is none."""
    runs = server_directory.runs()
    if name and name not in runs:
        raise UsageError(f"there is no run {name!r}; there are: {', '.join(runs) or 'none'}")
    if not runs:
        raise UsageError("there is no run yet; start one with `penchant server run`")
    return name or runs[-1]


def _ask_for_signature(server_directory: ServerDirectory, name: str, days: int = 30) -> None:
    """Have the authority asked to sign what the run may ask, unless it has, and say what is to be done."""
    from penchant.deploy.fleet import run_signature

    asked = run_signature.ask(server_directory, name, days)
    if asked is None:
        return
    say(f"run {name} waits for the authority's signature: {asked}")
    say(
        f"  at the authority: penchant authority attend DIR --requests {server_directory.requests} "
        f"--answers {server_directory.answers}"
    )


def _play(server_directory: ServerDirectory, name: str, detach: bool) -> None:
    """Start a run at the SuperLink, and watch it unless detached."""
    from penchant.deploy.fleet import served_run
    from penchant.deploy.fleet.follow import watch
    from penchant.deploy.fleet.processes import door

    flower = served_run.start(server_directory.run(name), door(server_directory))
    say(f"Flower run {flower}")
    if detach:
        return
    with on_interrupt(
        f"run {name} goes on; `penchant server status {server_directory.path}` shows how far it is, "
        "and the console can stop it"
    ):
        watch(server_directory.run(name), door(server_directory), flower, say)


def _print_enrolments(directory: Path, as_json: bool) -> None:
    from penchant.deploy.fleet.enrolment import EnrolmentRegistry
    from penchant.deploy.fleet.server_directory import ServerDirectory

    rows = EnrolmentRegistry(ServerDirectory(directory)).enrolments()
    if as_json:
        say_json([asdict(row) for row in rows])
        return
    for row in rows:
        member = "" if row.member is None else f"member {row.member}"
        name = one_line(row.name, 100)
        say(f"{row.token}  {row.state:8s}  {member:12s}  {row.fingerprint:24s}  {name}".rstrip())


def _table(report: ServerReport | RunReport | None) -> dict[str, Any]:
    """What stands in the JSON of a report; nothing without one."""
    from penchant.deploy.json_tables import plain_value

    return {} if report is None else dict(plain_value(report))


def _print_server(report: ServerReport) -> None:
    link, members = report.superlink, report.members
    say(f"gateway {report.gateway}: {'open' if report.up else 'closed'}")
    say(f"SuperLink {'up' if link.up else 'down'}, {link.online} of {link.nodes} nodes online")
    say(f"member list {members.number}: {members.count} members, good for {members.days_left:.1f} days")
    say(f"server certificate good for {report.certificate_days_left:.0f} days")


def _read(path: Path) -> bytes:
    from penchant.common.wire.messages import MAX_MEMBERSHIP
    from penchant.deploy.fleet.shared_folder import read_regular

    return read_regular(path, MAX_MEMBERSHIP)
