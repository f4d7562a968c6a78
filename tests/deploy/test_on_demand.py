"""Commands that are imported when they are asked for: the tables agree with the commands."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from typer.testing import CliRunner

from penchant.deploy.cli.device import app as device_app
from penchant.deploy.cli.main import app
from penchant.deploy.cli.on_demand import GroupOnDemand, Place, places

NO_COMMANDS = {"main", "device"}  # that have an `app` of which no command is listed as such
MODULE = """\
import typer

app = typer.Typer()

@app.command("first")
def first(loud: bool = False) -> None:
    '''Do the first thing.

    It takes a while.
    '''
    print("FIRST" if loud else "first")

@app.command("second")
def second() -> None:
    '''Do the second thing.'''
"""


def tables() -> list[tuple[str, tuple[Place, ...]]]:
    """(package, its table) of each group whose commands are imported on demand."""
    found = []
    for package, group in (("penchant.deploy.cli", app), ("penchant.deploy.cli.device", device_app)):
        command = typer.main.get_command(group)
        assert isinstance(command, GroupOnDemand)
        found.append((package, command.places))
    return found


def line_of(command: click.Command) -> str:
    """The first paragraph of a command's help, in one line."""
    return " ".join((command.help or "").split("\n\n")[0].split())


@pytest.mark.parametrize("place", [one for _, table in tables() for one in table], ids=lambda one: one.name)
def test_a_table_says_what_the_command_says(place: Place) -> None:
    command = place.load()
    assert command.name == place.name
    assert not command.hidden
    assert place.help in ("", line_of(command))
    assert not getattr(command, "rich_help_panel", None)  # the table alone says where it stands


def test_the_help_of_all_commands_loads_none() -> None:
    (_, table), _ = tables()
    assert [place.name for place in table if not place.help] == []
    assert {place.panel for place in table} == {"Researcher", "Operator", "Device owner"}


@pytest.mark.parametrize(("package", "table"), tables(), ids=["penchant", "device"])
def test_every_command_has_a_place(package: str, table: tuple[Place, ...]) -> None:
    folder = import_module(package).__path__
    for name in sorted({one.name for one in pkgutil.iter_modules(folder)} - NO_COMMANDS):
        module = f"{package}.{name}"
        found: Any = getattr(import_module(module), "app", None)
        if found is None:
            continue
        group = found.info.name
        there = [group] if isinstance(group, str) else [one.name for one in found.registered_commands]
        assert [place.name for place in table if place.module == module] == there, module


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of two commands that nobody has imported."""
    (tmp_path / "late_commands.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "late_commands", raising=False)
    return "late_commands"


def group_of(*table: Place) -> typer.Typer:
    class Group(GroupOnDemand):
        places = table

    tool = typer.Typer(cls=Group, add_completion=False)

    @tool.callback()
    def nothing() -> None:
        pass

    return tool


def test_a_command_is_imported_when_it_is_asked_for(module: str) -> None:
    tool = group_of(Place("first", module, "Panel", "Do the first thing."), Place("away", "no.such.module"))
    group = typer.main.get_command(tool)
    assert isinstance(group, GroupOnDemand)
    assert list(group.commands) == ["first", "away"]
    assert module not in sys.modules
    assert CliRunner().invoke(tool, ["first", "--loud"]).output == "FIRST\n"
    assert group.commands["first"] is group.commands["first"]
    assert "neither" not in group.commands
    assert CliRunner().invoke(tool, ["firts"]).exit_code == 2  # and the other one is left alone


def test_help_takes_lines_from_the_table_or_else_from_the_command(module: str) -> None:
    listed = (
        Place("first", module, None, "Do the first thing."),
        Place("second", module, None, "Do the second thing."),
    )
    short = CliRunner().invoke(group_of(*listed), ["--help"]).output
    assert "Do the first thing." in short
    assert module not in sys.modules
    assert CliRunner().invoke(group_of(*places(module, "first", "second")), ["--help"]).output == short
    assert module in sys.modules


def test_a_place_without_its_command_is_an_error(module: str) -> None:
    with pytest.raises(KeyError, match="third"):
        Place("third", module).load()
