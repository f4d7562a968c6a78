"""`penchant device …`: what a device's owner does. Each command opens the device's directory and calls it."""

from __future__ import annotations

import typer

from penchant.deploy.cli.device import agent, chat, choices, forgetting, membership, model, page, programs

__all__ = ["app"]

app = typer.Typer(
    name="device",
    help="The owner of a device: record choices, train, rank, look at what left, export, leave.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _task in (
    choices,
    page,
    model,
    chat,
    programs,
    forgetting,
    membership,
    agent,
):  # in the order in which `--help` lists them
    app.registered_commands += _task.app.registered_commands
