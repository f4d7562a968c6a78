"""`penchant device forget`: all that the device knows of its owner, or chosen choices alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say, say_json
from penchant.common.wording import ranges
from penchant.deploy.cli.device.model import print_quality
from penchant.deploy.cli.device.options import (
    HERE,
    AsJson,
    Ask,
    HomeOption,
    NodeOption,
    file_source,
    make_sure,
    open_device,
    part,
    print_table,
)
from penchant.deploy.cli.errors import command

if TYPE_CHECKING:
    from penchant.client.device.device import Device
    from penchant.client.device.preference_store import Recorded

__all__ = ["app"]

app = typer.Typer()
SHOWN = 20  # choices before a question; --list has all
TEXT = 40  # characters of a text in a list


@command(app)
def forget(
    choice: Annotated[
        list[int] | None,
        typer.Option("--choice", metavar="NUMBER", help="This choice, by its number; may be repeated."),
    ] = None,
    containing: Annotated[
        str,
        typer.Option(
            "--containing",
            metavar="TEXT",
            help="Choices with this text in prompt or responses.",
            show_default=False,
        ),
    ] = "",
    file: Annotated[
        str,
        typer.Option(
            "--file", metavar="NAME", help="Choices imported from a file of this name.", show_default=False
        ),
    ] = "",
    listed: Annotated[
        bool, typer.Option("--list", help="Show the choices that are meant, all by default; delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    node: NodeOption = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
) -> None:
    """Delete all that this device knows of its owner: choices, personal model, and its membership.

    With --choice, --containing or --file: those choices alone (where several are given, what fits all of
    them), and what was learned from them; the personal model is fitted anew to the rest.
    """
    meant = _Meant(tuple(choice or ()), containing, Path(file).name if file else "")
    if as_json and not listed:
        raise UsageError("--json is for --list")
    if listed:
        _show(meant.among(open_device(home, passphrase).store.recorded()), as_json)
    elif meant.all:
        _forget_all(yes, lambda: open_device(home, passphrase), home, node)
    else:
        _forget_chosen(meant, yes, open_device(home, passphrase), home)


# --- inner parts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Meant:
    """Which choices: by number, by a text in them, by the name of their file; empty: whichever."""

    numbers: tuple[int, ...]
    text: str
    file: str

    @property
    def all(self) -> bool:
        return not (self.numbers or self.text or self.file)

    def among(self, recorded: Sequence[Recorded]) -> list[Recorded]:
        """Those that are meant. UsageError for a number that there is not."""
        unknown = sorted(set(self.numbers) - {choice.number for choice in recorded})
        if unknown:
            raise UsageError(
                f"there is no choice {ranges(unknown)}; `penchant device forget --list` shows their numbers"
            )
        return [choice for choice in recorded if self._fits(choice)]

    def _fits(self, choice: Recorded) -> bool:
        p, text = choice.preference, self.text.casefold()
        return (
            (not self.numbers or choice.number in self.numbers)
            and any(text in part.casefold() for part in (p.prompt, p.chosen, p.rejected))
            and (not self.file or choice.source == file_source(self.file))
        )


def _forget_all(yes: bool, opened: Callable[[], Device], home: Path, node: Path | None) -> None:
    make_sure(yes, "Delete all choices, the personal model and the membership?")
    device = opened()
    count = part(device, home, node, device.forget)
    say(f"{count} choices and the personal model are deleted; files that you imported or exported are yours")
    say(one_line(device.privacy().lasting))


def _forget_chosen(meant: _Meant, yes: bool, device: Device, home: Path) -> None:
    from penchant.client.agent.socket import at_work

    recorded = device.store.recorded()
    chosen = meant.among(recorded)
    if not chosen:
        raise UsageError("no choice is meant by that; `penchant device forget --list` shows all")
    if not yes:
        _show(chosen[:SHOWN], False)
        if len(chosen) > SHOWN:
            say(f"and {len(chosen) - SHOWN} more (--list shows all of them)")
    make_sure(yes, f"Delete these {len(chosen)} of {len(recorded)} choices, and what was learned from them?")
    done = device.forget_choices(chosen)
    say(f"{done.removed} choices are deleted, {done.left} are left; files that you imported are yours")
    if not done.learned:
        say("all of them were held out: the personal model never learned from them, and stays")
    elif done.fitted:
        say("the personal model was fitted anew to those that are left")
        print_quality(device.report())
    elif done.why_not:
        why = one_line(done.why_not)
        say(f"the personal model is deleted too, and was not fitted anew: {why}", error=True)
    else:
        say("there is no personal model now")
    say(one_line(device.privacy().lasting))
    if at_work(home.expanduser()):
        say("the agent that runs has read them into its memory: restart `penchant device serve`")


def _show(choices: Sequence[Recorded], as_json: bool) -> None:
    if as_json:
        say_json([_row(choice) for choice in choices])
        return
    rows = [tuple(one_line(str(value), TEXT) for value in _row(choice).values()) for choice in choices]
    print_table("", ("number", "from", "prompt", "chosen", "rejected"), rows)


def _row(choice: Recorded) -> dict[str, int | str]:
    p = choice.preference
    return {
        "number": choice.number,
        "source": choice.source,
        "prompt": p.prompt,
        "chosen": p.chosen,
        "rejected": p.rejected,
    }
