"""`penchant device …`: what a device's owner does. Each command opens the device's directory and calls it."""

from __future__ import annotations

import typer

from penchant.deploy.cli.on_demand import GroupOnDemand, places

__all__ = ["app"]


_HERE = "penchant.deploy.cli.device"


class _Device(GroupOnDemand):
    """What an owner does, in the order in which `--help` lists it."""

    places = (
        *places(f"{_HERE}.choices", "import", "label"),
        *places(f"{_HERE}.page", "open"),
        *places(f"{_HERE}.model", "train", "rank", "best-of", "release", "status", "export"),
        *places(f"{_HERE}.chat", "chat"),
        *places(f"{_HERE}.programs", "serve-api", "api-token"),
        *places(f"{_HERE}.forgetting", "forget"),
        *places(f"{_HERE}.membership", "request", "join", "accept", "leave"),
        *places(f"{_HERE}.agent", "serve", "connect", "runs", "accept-run", "spent", "pause"),
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
