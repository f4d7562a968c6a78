"""Groups of commands that import a command when it is asked for, so that none waits for the others.

click's own way: https://click.palletsprojects.com/en/stable/complex/#lazily-loading-subcommands. A group says
in a table what its commands are called and where they are; the help lists them from the table too.
"""

from __future__ import annotations

import copy
from collections import UserDict
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import click
import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

__all__ = ["GroupOnDemand", "Place", "places"]


@dataclass(frozen=True)
class Place:
    """Where a command or group is, and how the group above lists it.

    module: has it in its `app`, or is the group of that name.
    panel: of the help, that it stands in; none without.
    help: its line there; without one, the help loads the command and takes the command's own.
    """

    name: str
    module: str
    panel: str | None = None
    help: str = ""

    def load(self) -> click.Command:
        """The command itself. KeyError when its module has none of that name."""
        app: typer.Typer = import_module(self.module).app
        if app.info.name != self.name:
            app = _with_one(app, self.name)
        return typer.main.get_command(app)

    def listed(self) -> click.Command:
        """What the help of the group above shows of it."""
        if not self.help:
            return self.load()
        return TyperCommand(self.name, help=self.help, rich_help_panel=self.panel)


def places(module: str, *names: str) -> tuple[Place, ...]:
    """The places of several commands of one module, whose lines the help takes from them."""
    return tuple(Place(name, module) for name in names)


class GroupOnDemand(TyperGroup):
    """A group with the commands of `places`, in their order, each imported when it is taken out."""

    places: ClassVar[tuple[Place, ...]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _CommandsOnDemand({place.name: place for place in self.places})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names. Typer's own looks at the commands as well."""
        return list(self.commands)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help, for which the table will do."""
        shown = copy.copy(self)
        shown.commands = {place.name: place.listed() for place in self.places}
        super(GroupOnDemand, shown).format_help(ctx, formatter)


# --- inner parts ----------------------------------------------------------------------------------


class _CommandsOnDemand(UserDict[str, Any]):
    """Commands by name: their places, until they are looked up."""

    def __getitem__(self, name: str) -> click.Command:
        found: Place | click.Command = self.data[name]
        if isinstance(found, Place):
            found = self.data[name] = found.load()
        return found


def _with_one(app: typer.Typer, name: str) -> typer.Typer:
    """Only one command of `app`, so that the flags of the others need not be made. KeyError without it."""
    found = [command for command in app.registered_commands if command.name == name]
    if not found:
        raise KeyError(name)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.registered_commands = found
    return alone
