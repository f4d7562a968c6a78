"""`penchant device serve`, `connect`, `runs`, `accept-run`, `spent`, `pause`: taking part for the owner."""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from penchant.common.printable import one_line
from penchant.common.terminal import say, say_json
from penchant.deploy.cli.device.options import (
    HERE,
    SOCKET,
    AsJson,
    Ask,
    HomeOption,
    NodeOption,
    SocketOption,
    make_sure,
    node_folder,
    open_home,
)
from penchant.deploy.cli.errors import command, notice

__all__ = ["app"]

app = typer.Typer()


@command(app)
def serve(
    socket: SocketOption = None,
    group: Annotated[
        bool, typer.Option("--group", help="Let the socket's group connect as well: the relay's user.")
    ] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Run the agent: it answers the relay on its socket, and nobody else, until it is stopped."""
    from penchant.client.agent.socket import AgentServer, only_one
    from penchant.client.device.current_agent import CurrentAgent

    directory = home.expanduser()
    with suppress(ValueError, OSError):  # systemd's unit forbids the call, and sets the limit itself
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash writes no keys to a disk
    with only_one(directory):
        device = open_home(home, passphrase)
        most = device.policy().max_message_mb * 1024 * 1024
        path = socket or directory / SOCKET
        agent = CurrentAgent(device, lambda member: say(f"member {member} answers on {path}"))
        server = AgentServer(agent.answer, path, group=group, message_most=most)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server.start()
        say(f"member {device.member} answers on {server.socket}")
        try:
            server.wait()
        except (KeyboardInterrupt, SystemExit):
            server.stop()
            os._exit(0)  # all that lasts is on disk; training that nobody waits for is not waited for
        finally:
            server.stop()


@command(app)
def connect(
    node: NodeOption = None,
    socket: SocketOption = None,
    port: Annotated[
        int,
        typer.Option(
            "--port", help="Has no effect: no port is opened any more.", min=0, max=65535, hidden=True
        ),
    ] = 0,
    look: Annotated[
        float,
        typer.Option(
            "--look",
            help="Seconds between two looks for a message; more of them save power, and make rounds longer.",
            min=0.5,
            max=60.0,
        ),
    ] = 3.0,
    home: HomeOption = HERE,
) -> None:
    """Carry messages between the fleet's server and the agent. Nothing that the server sends is run."""
    from penchant.client.device.supernode_files import SuperNodeFiles
    from penchant.deploy.fleet.supernode import relay

    if port:
        notice("--port has no effect: `penchant device connect` opens no port any more")
    relay(SuperNodeFiles.read(node_folder(home, node)), socket, look)


@command(app)
def runs(home: HomeOption = HERE, passphrase: Ask = False, as_json: AsJson = False) -> None:
    """List the runs that asked for this device: what each may ask, as the authority signed it."""
    from penchant.deploy.cli.device.reports import AskedRun
    from penchant.deploy.json_tables import plain_value

    device = open_home(home, passphrase)
    each, known = device.policy().runs == "each", device.vault.ledger.runs()
    asked = [AskedRun.of(run, each) for run in known]
    if as_json:
        say_json(plain_value(asked))
        return
    if not asked:
        say("no run has asked for this device")
    for run in asked:
        say(f"{run.state}, {run.rounds} rounds in {run.attempts} attempts so far")
        for line in run.asks:
            say(f"  {one_line(line)}")


@command(app, "accept-run")
def accept_run(
    run: Annotated[str, typer.Argument(metavar="ID", help="The run's id, or its first 8 digits or more.")],
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Take part in a run, where policy.toml says runs = "each"."""
    accepted = open_home(home, passphrase).accept_run(run)
    say(f"this device takes part in run {accepted.hex()}")


@command(app)
def spent(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Count the whole budget of privacy as spent, after its ledger was lost, copied or set back."""
    make_sure(yes, "Count all of max_epsilon as spent, for good?")
    open_home(home, passphrase).give_up_budget()
    say("the whole budget counts as spent; a larger max_epsilon in policy.toml allows more")


@command(app)
def pause(
    off: Annotated[bool, typer.Option("--off", help="Take part again.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Take part in no round until `penchant device pause --off`."""
    device = open_home(home, passphrase)
    if off:
        device.resume()
    else:
        device.pause()
    say("this device takes part again" if off else "this device takes part in nothing now")
