"""The command line. It reads flags and files into a configuration, calls one function, prints its result.

Errors are one line; exit 2 for wrong use, 1 for a failure; a traceback only with ``--debug``. A command is
imported when it is asked for, and what is heavy when the command needs it, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from typing import Annotated

import click
import typer

from penchant.common.errors import PenchantError
from penchant.common.printable import one_line
from penchant.common.terminal import say, tracebacks_in_print
from penchant.deploy.cli.errors import report_error, report_interrupt
from penchant.deploy.cli.notices import notices_in_one_line
from penchant.deploy.cli.on_demand import GroupOnDemand, Place
from penchant.deploy.error_report import USAGE, ErrorReport

__all__ = ["main"]

RESEARCHER, OPERATOR, OWNER = "Researcher", "Operator", "Device owner"
_HERE = "penchant.deploy.cli"
_PLACES = (
    Place(
        "simulate",
        f"{_HERE}.researcher",
        RESEARCHER,
        "Simulate a federation on this machine and report how well each person's model does.",
    ),
    Place(
        "compare",
        f"{_HERE}.researcher",
        RESEARCHER,
        "Compare what is shared: same people, choices and seeds; one table with standard errors.",
    ),
    Place(
        "tune",
        f"{_HERE}.researcher",
        RESEARCHER,
        "Search for good settings on your data, judged on validation pairs, and write them as a recipe.",
    ),
    Place(
        "export",
        f"{_HERE}.researcher",
        RESEARCHER,
        "Write the models of a simulation as plain peft files: the shared one, and everybody's own.",
    ),
    Place(
        "evaluate",
        f"{_HERE}.researcher",
        RESEARCHER,
        "Judge models on pairs of your own: all together, and person by person or kind by kind.",
    ),
    Place(
        "quickstart",
        f"{_HERE}.quickstart",
        OPERATOR,
        "A whole fleet on this machine: authority, server behind its gateway, devices; it learns, and ends.",
    ),
    Place(
        "audit",
        f"{_HERE}.researcher",
        RESEARCHER,
        "List what left each client in a recorded run: by name, shape, type and bytes.",
    ),
    Place(
        "device",
        f"{_HERE}.device",
        OWNER,
        "The owner of a device: record choices, train, rank, look at what left, export, leave.",
    ),
    Place(
        "authority",
        f"{_HERE}.authority",
        OPERATOR,
        "The enrolment authority, apart from the server: certifies devices, revokes, publishes the list.",
    ),
    Place(
        "server",
        f"{_HERE}.server",
        OPERATOR,
        "The operator of a fleet: bring a server up, invite devices, start and watch runs.",
    ),
    Place(
        "console",
        f"{_HERE}.console",
        OPERATOR,
        "The operator's console: a web application over the runs of a fleet.",
    ),
)


class _Penchant(GroupOnDemand):
    """All commands, as the help lists them."""

    places = _PLACES


app = typer.Typer(
    name="penchant",
    cls=_Penchant,
    help="Personal reward models, learned together, without anyone's preferences leaving their device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        from importlib.metadata import version

        say(version("penchant"))
        raise typer.Exit()


# --- errors as one line ---------------------------------------------------------------------------


def main() -> None:
    """Entry point of the ``penchant`` command."""
    try:
        with notices_in_one_line():
            code = app(standalone_mode=False)
    except PenchantError as error:  # from reading the flags themselves, or after --debug
        if "--debug" in sys.argv:
            raise
        code = report_error(error)
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.exceptions.Abort as interrupt:
        code = report_interrupt(interrupt)
    except click.ClickException as error:
        code = 2
        if error.format_message():  # without any argument the help was shown instead
            ErrorReport(USAGE, one_line(f"{error.format_message()} (see --help)")).write()
    finally:
        tracebacks_in_print()  # typer has put its own hook in place
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
