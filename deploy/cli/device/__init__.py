"""`penchant device …`: what a device's owner does. Each command opens the device's directory and calls it."""

from __future__ import annotations

import typer

from penchant.deploy.cli.on_demand import GroupOnDemand, places

__all__ = ["app"]


class _Device(GroupOnDemand):
    """What an owner does, in the order in which `--help` lists it."""

    places = (
        *places("penchant.deploy.cli.device.choices", "import", "label"),
        *places("penchant.deploy.cli.device.page", "open"),
        *places(
            "penchant.deploy.cli.device.model", "train", "rank", "best-of", "release", "status", "export"
        ),
        *places("penchant.deploy.cli.device.chat", "chat"),
        *places("penchant.deploy.cli.device.programs", "serve-api", "api-token"),
        *places("penchant.deploy.cli.device.forgetting", "forget"),
        *places("penchant.deploy.cli.device.membership", "request", "join", "accept", "leave"),
        *places(
            "penchant.deploy.cli.device.agent", "serve", "connect", "runs", "accept-run", "spent", "pause"
        ),
    )


app = typer.Typer(
    name="device",
    cls=_Device,
    help="The owner of a device: record choices, train, rank, look at what left, export, leave.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def owner() -> None:
    pass
