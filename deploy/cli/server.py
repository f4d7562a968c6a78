"""`penchant server …`: an operator brings a server up, invites devices, starts and watches runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penchant.common.durations import DAY
from penchant.common.errors import DeliveryError, OlderList, UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import log_to_stderr, say, say_json
from penchant.deploy.cli.errors import command, notice, on_interrupt

if TYPE_CHECKING:
    from penchant.common.config import RunConfig
    from penchant.deploy.console.releases import ReleasesOnThisMachine
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.deploy.fleet.status import ServerReport
    from penchant.server.monitoring.fleet import QueuedRun
    from penchant.server.monitoring.run_history import RunSummary
    from penchant.server.monitoring.run_report import RunReport
    from penchant.server.releases import FleetRelease, Release

__all__ = ["app"]

app = typer.Typer(
    name="server",
    help="The operator of a fleet: bring a server up, invite devices, start and watch runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

queue_app = typer.Typer(
    name="queue",
    help="Runs that wait for their turn: `penchant server run --queue`, `--at` or `--every` adds one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(queue_app)
release_app = typer.Typer(
    name="release",
    help="Releases: which round's shared adapter the fleet uses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(release_app)

Where = Annotated[Path, typer.Argument(metavar="DIR", help="The server's directory.")]
RunName = Annotated[
    str,
    typer.Option("--run", help="The run's name; by default the one that was made last.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
QueueNumber = Annotated[
    int, typer.Argument(metavar="NUMBER", help="Its number, as `penchant server queue list` has it.")
]
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
        str,
        typer.Option(
            "--only", help="One part, in this process: superlink, executor, enrol, gateway, queue or signals."
        ),
    ] = "",
) -> None:
    """Run the server until it is stopped: SuperLink, its executor, enrolment, gateway, the queue of runs."""
    from penchant.deploy.fleet import processes
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    if only == processes.SIGNALS:
        from penchant.deploy.fleet import signals

        log_to_stderr()
        signals.run(server_directory)
        return
    if only:
        processes.only(server_directory, only)
        return
    log_to_stderr(as_json="server" if server_directory.settings.log_format == "json" else "")
    processes.up(
        server_directory, lambda: say(f"devices reach this server at {server_directory.settings.gateway}")
    )


@command(app)
def health(
    directory: Where,
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PART...",
            help="superlink, executor, enrol, gateway, queue or signals; all of them by default.",
        ),
    ] = None,
) -> None:
    """Whether the server's parts do their work: for health checks. Ends with 1 where one does not."""
    from penchant.deploy.fleet.health import ailing
    from penchant.deploy.fleet.server_directory import ServerDirectory

    found = ailing(ServerDirectory(directory), parts or ())
    for line in found:
        say(one_line(line), error=True)
    if found:
        raise typer.Exit(1)
    say("well")


@command(app, formerly="enroll")
def invite(
    directory: Where,
    name: Annotated[str, typer.Option("--name", help="Your name for the device.")] = "",
    days: Annotated[float, typer.Option("--days", help="How long the token is valid.")] = 7.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write the token to, instead of showing it.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--csv", help="CSV file with a column name: a token for each row; needs --out or --qr."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--qr", help="HTML file to write: a sheet of QR codes to print.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show all tokens and what became of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hand out a join token for one device: one-time, expiring, with the digests that the device trusts.

    With --csv one for each row, as CSV (--out), as a sheet of QR codes (--qr), or both.
    """
    from penchant.deploy.fleet.enrolment import hand_out
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    if show:
        _print_enrolments(directory, as_json)
        return
    for option, path in (("--out", out), ("--qr", sheet)):
        if path is not None and path.exists():
            raise UsageError(f"{path} is there already; choose another {option}")
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.absolute().parent} for {option}")
    ServerDirectory(directory)  # refused before anything is written
    if table is not None or sheet is not None:
        _invite_many(directory, table, name, days, out, sheet)
        return
    with recorded(directory, "hand out a token", name, f"days: {days:g}"):
        text = hand_out(directory, name, time.time() + days * DAY).text()
    if out is None:
        say(text)
        return
    _write_secret(out, text + "\n")
    say(f"{out}: take it to the device by a channel that nobody else can tamper with")


@command(app)
def withdraw(
    directory: Where,
    token: Annotated[
        str,
        typer.Argument(metavar="TOKEN", help="The token's name, as `penchant server invite --list` has it."),
    ],
) -> None:
    """Take back a token, and deny the request that came with it, before the authority has answered."""
    from penchant.deploy.fleet.enrolment import EnrolmentRegistry
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "withdraw a token", token):
        EnrolmentRegistry(server_directory).withdraw(token)
    say(f"token {one_line(token)} lets nobody in any more")


@command(app)
def members(
    directory: Where,
    file: Annotated[Path, typer.Argument(help="The authority's newer member list.")],
) -> None:
    """Take over a newer member list; a run that goes on heeds it from its next round."""
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "take over a member list", str(file)):
        data = _read(file)
        try:
            number = server_directory.take_members(data)
        except OlderList:
            known = server_directory.known_members().number
            raise UsageError(f"{file} is older than list {known}, which this server has") from None
    say(f"member list {number}")


@command(app)
def revoke(
    directory: Where,
    member: Annotated[int, typer.Argument(help="The member's number.")],
    why: Annotated[str, typer.Option("--why", help="For the authority's record.")] = "",
) -> None:
    """Ask the authority to revoke a member; it takes effect with the authority's next list."""
    from penchant.deploy.fleet.enrolment import request_revocation
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.revoked_members import contributed
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "ask for a revocation", str(member), why):
        path = request_revocation(directory, member, why)
    say(f"{path}: for the authority")
    say(one_line(contributed(server_directory, member)))


@command(app)
def devices(
    directory: Where,
    search: Annotated[str, typer.Option("--search", help="Those whose number, name or tag has this.")] = "",
    tag: Annotated[str, typer.Option("--tag", help="Those with this tag.")] = "",
    as_json: AsJson = False,
) -> None:
    """All devices: names, tags, whether each would take part now, and why not."""
    from penchant.common.errors import JournalError
    from penchant.deploy.fleet.fleet_devices import device_rows, waiting_now
    from penchant.deploy.fleet.member_facts import FleetRecords
    from penchant.deploy.fleet.missing_devices import connections
    from penchant.deploy.fleet.processes import door
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.deploy.flower.superlink import Control

    server_directory, link = ServerDirectory(directory), None
    with suppress(JournalError), Control(door(server_directory)) as control:
        link = connections(control)
    rows = device_rows(
        FleetRecords(server_directory), link, waiting_now(server_directory), server_directory, time.time()
    )
    found = [row for row in rows if row.is_called(search, tag)]
    if as_json:
        say_json([asdict(row) for row in found])
        return
    for row in found:
        words = {True: "ready", False: "not ready", None: "not known"}[row.ready]
        about = "; the authority is asked to revoke it" if row.revocation else ""
        said = f"{row.why}{about}" if row.why != words else f"{words}{about}"
        say(one_line(f"{row.member:6d}  {words:9s}  {row.name:24s}  {' '.join(row.tags):20s}  {said}"))
    if not found:
        say("no device is called so" if search or tag else "the authority's list has no member yet")


@command(app, "tag")
def tag_devices(
    directory: Where,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Lower-case letters, digits, '-', '_', '.'.")],
    members: Annotated[list[int], typer.Argument(metavar="MEMBER...", help="Members' numbers.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag from them.")] = False,
) -> None:
    """Give devices a tag, to find them by, and to have runs ask only those (`server run --tag`)."""
    from penchant.common.wording import ranges
    from penchant.deploy.fleet.device_notes import DeviceNotes
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    act = "take a tag from devices" if remove else "tag devices"
    with recorded(server_directory.path, act, tag, f"members: {ranges(sorted(set(members)))}"):
        _refuse_strangers(server_directory, members)
        notes = DeviceNotes(server_directory.path)
        (notes.untag if remove else notes.tag)(members, tag)
    say(f"{len(members)} devices {'lose' if remove else 'have'} the tag {one_line(tag)}")


@command(app, "name")
def name_device(
    directory: Where,
    member: Annotated[int, typer.Argument(help="The member's number.")],
    name: Annotated[str, typer.Argument(help="Your name for it; empty for that of its invitation.")],
) -> None:
    """Call a device by another name than that of its invitation."""
    from penchant.deploy.fleet.device_notes import DeviceNotes
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "name a device", str(member), f"name: {name}"):
        _refuse_strangers(server_directory, [member])
        DeviceNotes(server_directory.path).name(member, name)
    say(f"member {member} is called {one_line(name)}" if name else f"member {member} has no name of its own")


@command(app)
def renew(directory: Where) -> None:
    """Make new server certificates under the same authorities; restart the server to use them."""
    from penchant.deploy.fleet.certificates import days_left
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "renew certificates"):
        server_directory.renew()
    say(f"good for {days_left(server_directory.tls.gateway.certificate):.0f} days; now restart the server")


@command(app)
def backup(
    directory: Where,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write; it holds the server's keys.")
    ],
) -> None:
    """Write all that the server goes on from into one file, while it runs."""
    from penchant.common.wording import size
    from penchant.deploy.fleet.backup import back_up, left_outside
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "back up the server", str(file)):
        made = back_up(server_directory, file)
    say(f"{file}: {made.files} files, {made.runs} runs, {size(made.size)}; it holds the server's keys")
    for path in left_outside(server_directory):
        notice(f"{path} is not in it: server.toml names it, and it lies outside {directory}")


@command(app)
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `penchant server backup` wrote.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory for the server.")],
) -> None:
    """Make a server from its back-up, every file checked; members and finished rounds are as they were."""
    from penchant.deploy.fleet.backup import restore as restore_server
    from penchant.deploy.fleet.recorded_acts import recorded

    found = restore_server(file, directory)
    with recorded(directory, "restore the server", str(file)):
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.made))
        say(f"{directory}: {found.files} files, {found.runs} runs, as of {made}")
    say(f"bring it up with `penchant server up {directory}`, then `penchant server resume {directory}`")


@command(app, "config")
def write_config(
    directory: Where,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write it to, instead of showing it.")
    ] = None,
    like: Annotated[
        str,
        typer.Option(
            "--like", metavar="RUN", help="As this run of the fleet was configured; by default by penchant's."
        ),
    ] = "",
) -> None:
    """Write a run.toml for this fleet: everybody asked, every setting explained."""
    from penchant.deploy import run_directory
    from penchant.deploy.fleet import run_checks
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.server.noise_terms import as_asked

    server_directory = ServerDirectory(directory)
    members = server_directory.known_members().count
    settings = (
        as_asked(run_directory.read_config(server_directory.run(_chosen(server_directory, like))))
        if like
        else run_checks.fleet_defaults(members)
    )
    text = run_checks.annotated(settings, members)
    if out is None:
        for line in text.splitlines():
            say(line)
        return
    if out.exists():
        raise UsageError(f"{out} is there already; choose another --out")
    out.write_text(text, encoding="utf-8")
    say(
        f"{out}: look at rounds, deadlines and privacy, then `penchant server run {directory} --config {out}`"
    )


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
            help="Begin with the shared factors of a finished round of an earlier run, or of a release: "
            "RUN:release, RUN:release-NUMBER, or the fleet's: release.",
            show_default=False,
        ),
    ] = "",
    days: Annotated[int, typer.Option("--days", help="How many days the run may take.")] = 30,
    tag: Annotated[
        str, typer.Option("--tag", help="Ask only devices that `penchant server tag` gave this tag.")
    ] = "",
    queue: Annotated[bool, typer.Option("--queue", help="Begin once the runs before it are over.")] = False,
    at: Annotated[
        str,
        typer.Option("--at", metavar="TIME", help="Begin then at the earliest, as in “2026-12-01 03:00”."),
    ] = "",
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="Begin again and again: 12h, 7d, 2w.")
    ] = "",
    detach: Detach = False,
    queued: Annotated[int, typer.Option("--queued", hidden=True)] = 0,
) -> None:
    """Make a run and start it on the server. It begins once the authority has signed what it may ask.

    With --queue, --at or --every it waits for its turn, which `penchant server up` gives it.
    """
    from penchant.common.config import RunConfig
    from penchant.deploy.earlier_round import begin_from
    from penchant.deploy.fleet import run_checks, served_run
    from penchant.deploy.fleet.fleet_release import resolved
    from penchant.deploy.fleet.follow import only_start
    from penchant.deploy.fleet.processes import door
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.run_queue import RunQueue
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.server.privacy_figures import EXACT

    server_directory, settings = ServerDirectory(directory), RunConfig.read(config)
    for why in run_checks.objections(settings, server_directory):
        notice(f"it needs devices whose owners allow more than the defaults: {why}")
    if queue or at or every:
        _enqueue(server_directory, settings, name, begin_with, days, tag, at, every)
        return
    chosen = name or f"run-{len(server_directory.runs()) + 1}"
    with recorded(server_directory.path, "start a run", chosen):
        server_directory.membership()  # the list is good
        run_checks.refuse_unfit(settings, run_checks.members_with(server_directory, tag), tag)
        with only_start(server_directory, door(server_directory), say):
            if queued:
                RunQueue(server_directory).find(queued)  # nobody has removed it since the queue began with it
            start = None
            if begin_with:
                start = begin_from(
                    resolved(server_directory, begin_with),
                    lambda run: server_directory.run(_chosen(server_directory, run)),
                    settings,
                )
            figures = served_run.create(
                server_directory.run(chosen),
                settings,
                server_directory.authority,
                server_directory.membership().encoded,
                start,
                tag,
                days,
                queued,
            )
            say(f"run {chosen}")
            notice(EXACT if figures is None else figures.told)
            _ask_for_signature(server_directory, chosen)
            flower = _begin(server_directory, chosen)
    _follow(server_directory, chosen, flower, detach)


@command(app)
def resume(directory: Where, run: RunName = "", detach: Detach = False) -> None:
    """Go on with a run after a crash or a stop: finished rounds are kept."""
    from penchant.deploy.fleet.follow import only_start
    from penchant.deploy.fleet.processes import door
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.run_activity import is_done
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    chosen = _chosen(server_directory, run)
    if is_done(server_directory.run(chosen)):
        say(f"run {chosen} is finished")
        return
    with (
        recorded(server_directory.path, "resume a run", chosen),
        only_start(server_directory, door(server_directory), say),
    ):
        _ask_for_signature(server_directory, chosen)
        flower = _begin(server_directory, chosen)
    _follow(server_directory, chosen, flower, detach)


@command(queue_app, "list")
def list_queue(directory: Where, as_json: AsJson = False) -> None:
    """All runs that wait, the next one first: since when, until when, and why one was refused."""
    from penchant.deploy.fleet.run_queue import RunQueue
    from penchant.deploy.fleet.server_directory import ServerDirectory

    waiting = RunQueue(ServerDirectory(directory)).runs()
    if as_json:
        say_json([asdict(one) | {"held": one.held} for one in waiting])
        return
    for one in waiting:
        say(f"{one.number:4d}  {_waits(one)}")
    if not waiting:
        say("no run waits; `penchant server run --queue` adds one")


@command(queue_app, "remove")
def remove_queued(directory: Where, number: QueueNumber) -> None:
    """Take a run out of the queue."""
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.run_queue import RunQueue
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "remove a run from the queue", str(number)):
        gone = RunQueue(server_directory).remove(number)
    say(f"{one_line(gone.called)} waits no more")


@command(queue_app, "move")
def move_queued(
    directory: Where,
    number: QueueNumber,
    place: Annotated[int, typer.Argument(metavar="PLACE", help="Its new place; 1 is the next.")],
) -> None:
    """Put a run at another place of the queue. One whose time has not come lets others pass."""
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.run_queue import RunQueue
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "move a run in the queue", str(number), f"place: {place}"):
        moved = RunQueue(server_directory).move(number, place)
    say(f"{one_line(moved.called)} is at place {place}")


@command(queue_app, "retry")
def retry_queued(directory: Where, number: QueueNumber) -> None:
    """Try a run of the queue again that was refused."""
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.run_queue import RunQueue
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "try a run of the queue again", str(number)):
        again = RunQueue(server_directory).retry(number)
    say(f"{one_line(again.called)} waits for its turn again")


@command(app)
def status(directory: Where, run: RunName = "", as_json: AsJson = False) -> None:
    """The server, its devices, and how far a run is: every round and attempt, who was lost where.

    Exit 0: all is well; 1: something is down or past its date; 3: something ends soon.
    """
    from penchant.deploy.cli.show_run import run_facts, show_run
    from penchant.deploy.fleet.follow import waiting_lines
    from penchant.deploy.fleet.processes import door
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.deploy.fleet.status import exit_code, report_of

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
    else:
        if server:
            _print_server(server)
        if facts:
            show_run(facts)
        if server and facts and facts.waiting is not None:
            where = facts.location.directory
            for line in waiting_lines(where, door(ServerDirectory(directory)), facts.waiting):
                say(line)
    if server and (code := exit_code(server)):
        raise typer.Exit(code)


@command(app)
def runs(directory: Where, as_json: AsJson = False) -> None:
    """All runs, the one that was made last at the end: how far each is, and how well it does."""
    from penchant.common.wording import percent
    from penchant.deploy.cli.show_run import run_facts
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    found = [run_facts(server_directory.run(name), whole=False) for name in server_directory.runs()]
    if as_json:
        say_json([_listed(one) for one in found])
        return
    for one in found:
        moved = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.touched))
        far = f"{one.settled} of {one.total}"
        say(f"{one.location.name:24s}  {one.state:8s}  {far:>12s}  {percent(one.accuracy):>6s}  {moved}")
    if not found:
        say("there is no run yet; start one with `penchant server run`")


@command(app)
def watch(directory: Where, run: RunName = "") -> None:
    """Watch a run that goes on until its end: its rounds, and what it waits for. Ctrl-C leaves it alone."""
    from penchant.deploy.fleet.run_activity import flower_run, is_done
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    chosen = _chosen(server_directory, run)
    if is_done(server_directory.run(chosen)):
        say(f"run {chosen} is finished")
        return
    flower = flower_run(server_directory.run(chosen))
    if flower is None:
        raise UsageError(f"run {chosen} was never started; start it with `penchant server resume`")
    _follow(server_directory, chosen, flower, detach=False)


@command(app)
def stop(directory: Where, run: RunName = "") -> None:
    """Stop a run. Finished rounds are kept, and `penchant server resume` goes on after them."""
    from penchant.deploy.fleet.follow import stop as stop_run
    from penchant.deploy.fleet.processes import door
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    chosen = _chosen(server_directory, run)
    with recorded(server_directory.path, "stop a run", chosen):
        stop_run(server_directory.run(chosen), door(server_directory))
    say(f"run {chosen} has stopped; `penchant server resume {directory} --run {chosen}` goes on with it")


@command(app)
def logs(
    directory: Where,
    run: RunName = "",
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.", min=1)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
) -> None:
    """The last lines of what a run's server said; with --follow what it says from now on as well."""
    from penchant.deploy.fleet.log_tail import log_lines, new_lines
    from penchant.deploy.fleet.run_activity import LOG
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    path = server_directory.run(_chosen(server_directory, run)) / LOG
    with on_interrupt("the run is left alone"):
        for line in new_lines(path, lines) if follow else log_lines(path)[-lines:]:
            say(line)


@command(app)
def metrics(
    directory: Where,
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT to listen at.")] = "127.0.0.1:9464",
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with a token that is wanted; needed beyond loopback."),
    ] = None,
) -> None:
    """Answer to monitoring: /metrics in Prometheus' form, /healthz and /readyz. It only reads."""
    from penchant.deploy.fleet.fleet_watch import FleetWatch
    from penchant.deploy.fleet.listen_address import ListenAddress
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.deploy.fleet.signals_service import serve_signals, token_in

    server_directory, where = ServerDirectory(directory), ListenAddress.parse(listen, "--listen")
    token = token_in(token_file) if token_file is not None else ""
    log_to_stderr()
    serve_signals(
        FleetWatch(server_directory), where, token, lambda: say(f"metrics are at http://{where}/metrics")
    )


@command(app)
def notify(
    directory: Where,
    test: Annotated[bool, typer.Option("--test", help="Send a notice to everybody who gets some.")] = False,
) -> None:
    """What needs attention, as it is told beyond this machine; with --test, whether the ways there work."""
    from penchant.deploy.fleet.fleet_watch import FleetWatch
    from penchant.deploy.fleet.notice_channels import channels_of
    from penchant.deploy.fleet.notifier import event_of
    from penchant.deploy.fleet.server_directory import SETTINGS, ServerDirectory
    from penchant.server.monitoring.alerts import Notice

    server_directory = ServerDirectory(directory)
    if not test:
        for one in FleetWatch(server_directory).look().notices:
            say(f"! {one.title}. {one.outward}")
        return
    channels = channels_of(server_directory)
    if not channels:
        raise UsageError(f"{server_directory.path / SETTINGS} names nobody to tell; see [notices] there")
    text = "Nothing is wrong: somebody wants to know whether notices arrive."
    notice = Notice("warn", "This is a test", text, "", "test")
    failed = False
    for channel in channels:
        try:
            channel.send(event_of("test", notice, server_directory, time.time()))
            say(f"{channel.name}: sent")
        except DeliveryError as error:
            failed = True
            say(str(error), error=True)
    if failed:
        raise typer.Exit(1)


@command(app)
def export(
    directory: Where,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="An empty directory to write into.")],
    run: Annotated[
        str,
        typer.Option(
            "--run", help="The last round of this run, instead of the fleet's release.", show_default=False
        ),
    ] = "",
) -> None:
    """Write the shared adapter of the fleet's release as plain peft and safetensors files, with a card.

    Where nothing was promoted yet it is that of the last round of the run that was made last.
    """
    from penchant.deploy.fleet import fleet_release, served_run
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    used = "" if run else fleet_release.read(server_directory.path).used
    if used:
        where, release = fleet_release.found(server_directory, used)
        number = served_run.export(where, out, release)
        say(f"release {release.number} of {where.name}, round {number}: {out}")
        return
    if not run:
        notice("no release is in use; this is the last round of the latest run")
    say(f"round {served_run.export(server_directory.run(_chosen(server_directory, run)), out)}: {out}")


@command(release_app, "list")
def list_releases(directory: Where, as_json: AsJson = False) -> None:
    """All releases of all runs, the latest first, and which one the fleet uses."""
    from penchant.deploy.fleet import fleet_release, release_signature
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.server.releases import release_name, releases

    server_directory = ServerDirectory(directory)
    now, offered = fleet_release.read(server_directory.path), release_signature.state(server_directory)
    states = {now.waiting: "waits", now.canary: f"canary, {now.share / 100:g}%"}
    states[now.used] = "held" if now.held else "in use"
    found = [
        {"name": release_name(name, one.number), "run": name, **asdict(one)}
        for name in server_directory.runs()
        for one in releases(server_directory.run(name))
    ]
    found.sort(key=lambda row: -row["at"])
    for row in found:
        del row["current"]  # of its run; what counts is the fleet's
        row["state"] = states.get(row["name"], "")
        row["signature"] = offered.state_of(row["name"]) if row["state"] else ""
    if as_json:
        say_json(found)
        return
    for row in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["at"]))
        words = f"{row['name']:24s}  round {row['round']:5d}  {row['digest'][:12]}  {when}  {row['by']}"
        state = ", ".join(filter(None, (row["state"], row["signature"])))
        say(one_line(f"{words}  {state}".rstrip()))
    if not found:
        say("nothing was promoted yet; `penchant server release promote` does")
    _say_verdict(server_directory, now)


@command(release_app)
def promote(
    directory: Where,
    round: Annotated[
        int | None, typer.Argument(metavar="ROUND", help="A finished round.", show_default=False)
    ] = None,
    run: RunName = "",
    canary: Annotated[
        str,
        typer.Option(
            "--canary",
            metavar="SHARE",
            help="Have a part of the devices, such as 10%, try it first; the fleet stays with what it uses.",
            show_default=False,
        ),
    ] = "",
    everybody: Annotated[
        bool, typer.Option("--all", help="Have all devices use what a part of them tries.")
    ] = False,
) -> None:
    """Make a round's shared adapter the next release, which the fleet uses unless it holds.

    The authority is asked to sign it; once it has, devices can fetch it with `penchant device release`.
    """
    from penchant.common.membership.release_manifest import EVERYBODY
    from penchant.deploy.fleet import fleet_release, release_acts
    from penchant.deploy.fleet.server_directory import ServerDirectory

    if everybody == (round is not None) or (everybody and (canary or run)):
        raise UsageError("give a round, or --all alone for what a part of the devices tries")
    if round is None:
        server_directory = ServerDirectory(directory)
        _say_verdict(server_directory, fleet_release.read(server_directory.path))
        _choose_release(directory, "promote a canary to all", release_acts.to_everybody)
        return
    share = fleet_release.share_of(canary) if canary else EVERYBODY
    _use_release(
        directory,
        run,
        "promote a release",
        f"round: {round}" + (f", canary: {canary}" if canary else ""),
        lambda of, by: of.promote(round, by, share),
        in_use=f"is tried by {canary} of the devices" if canary else "is in use",
    )


@command(release_app)
def measure(
    directory: Where,
    config: Annotated[Path, typer.Option("--config", help="TOML configuration of both runs.")],
    days: Annotated[int, typer.Option("--days", help="How many days each run may take.")] = 30,
) -> None:
    """Measure the canary beside the release in use, by the devices that it reaches.

    Two runs are queued that move nothing: their counts come out of masked sums, with the noise of --config.
    `penchant server release list` then says what is known.
    """
    from penchant.common.config import RunConfig
    from penchant.deploy.fleet import canary_check, run_checks
    from penchant.deploy.fleet.recorded_acts import recorded, who_is_here
    from penchant.deploy.fleet.server_directory import ServerDirectory
    from penchant.server.privacy_figures import EXACT

    server_directory, settings = ServerDirectory(directory), RunConfig.read(config)
    for why in run_checks.objections(settings, server_directory):
        notice(f"it needs devices whose owners allow more than the defaults: {why}")
    with recorded(server_directory.path, "measure a canary"):
        both = canary_check.begin(server_directory, settings, who_is_here(), days)
    for one in both:
        say(f"{one.number} of the queue: {_waits(one)}")
    if not settings.privacy.dp_epsilon:
        notice(EXACT)


@command(release_app)
def rollback(
    directory: Where,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The release's number in its run.")],
    run: RunName = "",
) -> None:
    """Use an earlier release of a run again."""
    _use_release(
        directory,
        run,
        "roll a release back",
        f"number: {number}",
        lambda of, by: of.roll_back(number, by),
        in_use="is in use again",
    )


@command(release_app)
def hold(directory: Where) -> None:
    """Stay with the release in use, whatever is promoted meanwhile."""
    from penchant.deploy.fleet import release_acts

    _choose_release(directory, "hold the release", release_acts.hold, "stays in use")


@command(release_app)
def unhold(directory: Where) -> None:
    """Hold no more: what was promoted last is in use."""
    from penchant.deploy.fleet import release_acts

    _choose_release(directory, "hold no release any more", release_acts.unhold)


@command(release_app)
def sign(directory: Where) -> None:
    """Ask the authority once more to sign what was chosen last, so that devices can fetch it."""
    from penchant.deploy.fleet import release_acts
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, "ask for a release's signature"):
        name = release_acts.ask_again(server_directory)
    say(f"the authority is asked to sign {one_line(name)}; it answers with `penchant authority attend`")


# --- inner parts --------------------------------------------------------------------------------------


def _invite_many(
    directory: Path, table: Path | None, name: str, days: float, out: Path | None, sheet: Path | None
) -> None:
    """Hand out a token for each row of a table, or for one name, and write them down."""
    from penchant.deploy.fleet import invitations
    from penchant.deploy.fleet.recorded_acts import recorded

    if table is not None and name:
        raise UsageError("--csv has the names; leave --name out")
    if table is not None and out is None and sheet is None:
        raise UsageError("say where the tokens go: --out FILE.csv, --qr SHEET.html, or both")
    names = [name] if table is None else invitations.names_in(table)
    with recorded(directory, "hand out tokens", f"{len(names)} of them", f"days: {days:g}"):
        made = invitations.invite_all(directory, names, time.time() + days * DAY)
        if out is not None:
            _write_secret(out, invitations.table(made))
        if sheet is not None:
            _write_secret(sheet, invitations.sheet(made))
    for path in filter(None, (out, sheet)):
        say(f"{path}: {len(made)} tokens; for your eyes alone until each is with its owner")


def _write_secret(path: Path, text: str) -> None:
    """A new file for this user alone."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _use_release(
    directory: Path,
    run: str,
    act: str,
    detail: str,
    choose: Callable[[ReleasesOnThisMachine, str], Release],
    *,
    in_use: str = "is in use",
) -> None:
    """Have one of a run's releases used, and say what came of it. choose: (the run's releases, who asks)."""
    from penchant.deploy.fleet import fleet_release
    from penchant.deploy.fleet.recorded_acts import recorded, who_is_here
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    chosen = _chosen(server_directory, run)
    with recorded(server_directory.path, act, chosen, detail):
        made = choose(_releases_of(server_directory, chosen), who_is_here())
    waits = fleet_release.read(server_directory.path).waiting
    what = "waits until the fleet holds no more" if waits else in_use
    say(f"release {made.number} of {chosen}, round {made.round}, {what}")
    if not waits:
        _say_signature(server_directory)


def _choose_release(
    directory: Path,
    act: str,
    choose: Callable[[ServerDirectory], FleetRelease],
    what: str = "is in use",
) -> None:
    """Change which release the fleet uses, and say what came of it."""
    from penchant.deploy.fleet.recorded_acts import recorded
    from penchant.deploy.fleet.server_directory import ServerDirectory

    server_directory = ServerDirectory(directory)
    with recorded(server_directory.path, act):
        now = choose(server_directory)
    say(f"{one_line(now.used)} {what}")
    _say_signature(server_directory)


def _say_verdict(server_directory: ServerDirectory, now: FleetRelease) -> None:
    """What is known of a canary by counts, where one is tried and signed."""
    from penchant.deploy.fleet import canary_check

    found = canary_check.verdict(server_directory) if now.canary else None
    if found is not None:
        say(f"canary {one_line(now.canary)}: {found.words()}")


def _say_signature(server_directory: ServerDirectory) -> None:
    """Why devices can't fetch the release that was chosen last, where they can't."""
    from penchant.deploy.fleet import release_signature

    offered = release_signature.state(server_directory)
    if offered.why_not:
        notice(f"devices can't fetch it: {one_line(offered.why_not)}")
    elif offered.asked:
        say("devices can fetch it once the authority has signed it (penchant authority attend)")


def _releases_of(server_directory: ServerDirectory, run: str) -> ReleasesOnThisMachine:
    """The releases of a run, as the console has them."""
    from penchant.deploy.console.releases import ReleasesOnThisMachine
    from penchant.server.monitoring.run_history import RunLocation

    location = RunLocation(run, run, server_directory.run(run), "served")
    return ReleasesOnThisMachine(location, server_directory.path)


def _refuse_strangers(server_directory: ServerDirectory, members: list[int]) -> None:
    """UsageError for a number that is no member's."""
    known = server_directory.known_members()
    for member in members:
        if not known.holds(member):
            raise UsageError(f"there is no member {member}; `penchant server devices` shows all")


def _chosen(server_directory: ServerDirectory, name: str) -> str:
    """The run that is meant. UsageError when there is none."""
    runs = server_directory.runs()
    if name and name not in runs:
        raise UsageError(f"there is no run {name!r}; there are: {', '.join(runs) or 'none'}")
    if not runs:
        raise UsageError("there is no run yet; start one with `penchant server run`")
    return name or runs[-1]


def _enqueue(
    server_directory: ServerDirectory,
    settings: RunConfig,
    name: str,
    begin_with: str,
    days: int,
    tag: str,
    at: str,
    every: str,
) -> None:
    """Put a run into the queue; what it can't be now is refused at once."""
    from penchant.deploy.fleet import run_checks
    from penchant.deploy.fleet.recorded_acts import recorded, who_is_here
    from penchant.deploy.fleet.run_queue import RunQueue, moment_of, period_of

    with recorded(server_directory.path, "queue a run", name):
        run_checks.refuse_unfit(settings, run_checks.members_with(server_directory, tag), tag)
        run_checks.refuse_start(server_directory, begin_with)
        made = RunQueue(server_directory).add(
            settings,
            who_is_here(),
            name=name,
            begin_with=begin_with,
            days=days,
            tag=tag,
            due=moment_of(at) if at else 0.0,
            every=period_of(every) if every else 0.0,
        )
    say(f"{made.number} of the queue: {_waits(made)}")


def _waits(one: QueuedRun) -> str:
    """A run of the queue in a line."""
    words = [one_line(one.called)]
    if one.tag:
        words.append(f"of devices tagged {one.tag}")
    if one.begin_with:
        words.append(f"from {one_line(one.begin_with)}")
    if one.due:
        words.append(f"not before {time.strftime('%Y-%m-%d %H:%M', time.localtime(one.due))}")
    if one.every:
        words.append(one.often)
    words.append(f"for {one_line(one.by)}")
    if one.began:
        words.append(f"begins as {one.began}")
    if one.why:
        words.append(f"refused: {one.why}")
    return ", ".join(words)


def _ask_for_signature(server_directory: ServerDirectory, name: str) -> None:
    """Have the authority asked to sign what the run may ask, unless it has, and say what is to be done."""
    from penchant.deploy.fleet import run_signature

    asked = run_signature.ask(server_directory, name)
    if asked is None:
        return
    say(f"run {name} waits for the authority's signature: {asked}")
    say(
        f"  at the authority: penchant authority attend DIR --requests {server_directory.requests} "
        f"--answers {server_directory.answers}"
    )


def _begin(server_directory: ServerDirectory, name: str) -> str:
    """Start a run at the SuperLink; -> the id of its Flower run."""
    from penchant.deploy.fleet import served_run
    from penchant.deploy.fleet.processes import door

    flower = served_run.start(server_directory.run(name), door(server_directory))
    say(f"Flower run {flower}")
    return flower


def _follow(server_directory: ServerDirectory, name: str, flower: str, detach: bool) -> None:
    """Watch a run until its end, unless detached."""
    from penchant.deploy.fleet.follow import watch
    from penchant.deploy.fleet.processes import door

    if detach:
        return
    with on_interrupt(
        f"run {name} goes on; `penchant server watch {server_directory.path}` looks at it again, "
        f"and `penchant server stop {server_directory.path}` stops it"
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
        ends = time.strftime("%Y-%m-%d", time.localtime(row.expires))
        words = f"{row.token}  {row.state:8s}  until {ends}  {member:12s}  {row.fingerprint:24s}  {name}"
        say(words.rstrip())


def _table(report: ServerReport | RunReport | None) -> dict[str, Any]:
    """What stands in the JSON of a report; nothing without one."""
    from penchant.deploy.json_tables import plain_value

    return {} if report is None else dict(plain_value(report))


def _print_server(report: ServerReport) -> None:
    link, members = report.superlink, report.members
    words = {
        "foreign": "not this server's: another program holds the port",
        "silent": "does not answer",
    }
    say(f"gateway {report.gateway}: {words.get(report.gateway_state, report.gateway_state)}")
    say(f"SuperLink {'up' if link.up else 'down'}, {link.online} of {link.nodes} nodes online")
    say(f"member list {members.number}: {members.count} members, good for {members.days_left:.1f} days")
    say(f"server certificate good for {report.certificate_days_left:.0f} days")
    if report.enrolments:
        say(f"tokens: {', '.join(f'{count} {name}' for name, count in report.enrolments.items())}")
    if report.waiting_for_authority:
        say(f"waiting for the authority: {', '.join(map(one_line, report.waiting_for_authority))}")
    if report.queue:
        say(f"{report.queue} in the queue; `penchant server queue list` shows them")
    for one in report.attention:
        say(f"! {one.title}. {one.text}")


def _listed(run: RunSummary) -> dict[str, Any]:
    """A run in a list, for a machine."""
    return {
        "run": run.location.name,
        "state": run.state,
        "why": run.why or None,
        "rounds": run.config.federation.rounds if run.config else 0,
        "settled": run.settled,
        "val_accuracy": run.accuracy,
        "val_accuracy_after_round": run.accuracy_after,
        "began": run.began,
        "touched": run.touched,
    }


def _read(path: Path) -> bytes:
    from penchant.common.wire.messages import MAX_MEMBERSHIP
    from penchant.deploy.fleet.shared_folder import read_regular

    return read_regular(path, MAX_MEMBERSHIP)
