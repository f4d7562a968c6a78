"""How a command is registered, and how it ends when something is wrong: in one line, with an exit code.

Exit 2 is for wrong use, 1 for a failure, 130 for Ctrl-C. Only ``--debug``, which every command has, shows a
traceback.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import click
import typer

from penchant.common.errors import PenchantError
from penchant.common.terminal import say
from penchant.deploy.error_report import INTERRUPTED, ErrorReport

__all__ = ["command", "ending_in_one_line", "notice", "on_interrupt", "report_error", "report_interrupt"]

Body = Callable[..., None]

_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show tracebacks for errors.")],
)


def command(
    app: typer.Typer, name: str | None = None, *, formerly: str = "", **options: Any
) -> Callable[[Body], Body]:
    """Make a function a command of `app` that ends in one line when something is wrong.

    `formerly` is the name that the command had before: it still works, unlisted, and says what it is called
    now. `options` go to `typer.Typer.command`.
    """

    def register(body: Body) -> Body:
        shown = ending_in_one_line(body)
        now = name or body.__name__.replace("_", "-")
        app.command(now, **options)(shown)
        if formerly:
            group = f"penchant {app.info.name or ''}".rstrip()
            app.command(formerly, **options | {"hidden": True})(
                _after_notice(shown, f"`{group} {formerly}` is called `{group} {now}` now; use that name")
            )
        return body

    return register


def ending_in_one_line(body: Body) -> Body:
    """The same function with an option ``--debug``, whose errors become one line and an exit code."""
    signature = inspect.signature(body, eval_str=True)

    @functools.wraps(body)
    def shown(*arguments: Any, debug: bool = False, **options: Any) -> None:
        try:
            body(*arguments, **options)
        except (PenchantError, OSError) as error:  # OSError: a full disk, say
            if debug:
                raise
            raise typer.Exit(report_error(error)) from None
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(report_interrupt(interrupt)) from None

    parameters = [*signature.parameters.values(), _DEBUG]
    shown.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return shown


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C, at a moment when there is something to say about going on."""


@contextmanager
def on_interrupt(hint: str) -> Iterator[None]:
    """Inside this block, Ctrl-C prints `hint`: what is true now, and how to go on."""
    try:
        yield
    except _Interrupted:  # a block inside this one knows better
        raise
    except (KeyboardInterrupt, click.Abort):  # Abort: at a question of click's
        raise _Interrupted(hint) from None


def report_error(error: PenchantError | OSError) -> int:
    """Print an error in one line; -> the exit code."""
    ErrorReport.of(error).write()
    return error.exit_code if isinstance(error, PenchantError) else 1


def report_interrupt(interrupt: BaseException) -> int:
    """Report that Ctrl-C was pressed, with the hint of `on_interrupt` if there is one; -> the exit code."""
    hint = f"; {interrupt}" if isinstance(interrupt, _Interrupted) else ""
    ErrorReport(INTERRUPTED, f"interrupted{hint}").write()
    return 130


def notice(text: str) -> None:
    """Say on standard error what is worth knowing beside the result."""
    say(f"note: {text}", error=True)


def _after_notice(body: Body, text: str) -> Body:
    @functools.wraps(body)
    def noticed(*arguments: Any, **options: Any) -> None:
        notice(text)
        body(*arguments, **options)

    return noticed
