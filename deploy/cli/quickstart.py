"""`penchant quickstart`: a whole fleet on this machine, for a look."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from penchant.common.terminal import say
from penchant.deploy.cli.errors import command, on_interrupt

__all__ = ["app"]

app = typer.Typer()


@command(app)
def quickstart(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory for the whole fleet.")],
    devices: Annotated[
        int, typer.Option("--devices", help="How many devices, each with one senator's votes.")
    ] = 7,
    rounds: Annotated[int, typer.Option("--rounds", help="How many rounds.")] = 5,
    again: Annotated[
        bool, typer.Option("--again", help="Bring the fleet in DIR up once more, until it is stopped.")
    ] = False,
) -> None:
    """A whole fleet on this machine: authority, server behind its gateway, devices; it learns, and ends."""
    from penchant.deploy.fleet.quickstart import Quickstart, live_again, next_steps
    from penchant.deploy.fleet.quickstart import quickstart as begin

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    if again:
        with on_interrupt("the fleet is down; the same command brings it up"), live_again(directory, say):
            say("the fleet is up until you stop it (Ctrl-C)")
            for line in next_steps(directory):
                say(line)
            threading.Event().wait()
        return
    with on_interrupt("the fleet is taken down; start again with another directory, or delete this one"):
        begin(Quickstart(directory, devices, rounds), say)
    for line in next_steps(directory):
        say(line)
