"""`penchant device forget`: all that the device knows of its owner, or chosen choices and ties alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say, say_json
from penchant.common.wording import counted, ranges
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
    from penchant.client.device.preference_store import Recorded, RecordedTie
    from penchant.common.data.preferences import Preference

__all__ = ["app"]

app = typer.Typer()
SHOWN = 20  # rows before a question; --list has all
TEXT = 40  # characters of a text in a list


@command(app)
def forget(
    choice: Annotated[
        list[str] | None,
        typer.Option(
            "--choice", metavar="NUMBER", help="This choice, or tie (t3), by its number; may be repeated."
        ),
    ] = None,
    containing: Annotated[
        str,
        typer.Option(
            "--containing",
            metavar="TEXT",
            help="Choices and ties with this text in prompt or responses.",
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
        bool,
        typer.Option(
            "--list", help="Show the choices and ties that are meant, all by default; delete nothing."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    node: NodeOption = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
) -> None:
    """Delete all that this device knows of its owner: choices, ties, personal model, and its membership.

    With --choice, --containing or --file: those choices and ties alone (where several are given, what fits
    all of them), and what was learned from them; the personal model is fitted anew to the rest.
    """
    meant = _Meant.of(choice or (), containing, Path(file).name if file else "")
    if as_json and not listed:
        raise UsageError("--json is for --list")
    if listed:
        _show(meant.among(open_device(home, passphrase)), as_json)
    elif meant.all:
        _forget_all(yes, lambda: open_device(home, passphrase), home, node)
    else:
        _forget_chosen(meant, yes, open_device(home, passphrase), home)


# --- inner parts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A choice or a tie, whichever it is, as it is named and shown.

    said: of a tie's two responses; empty for a choice.
    """

    number: str
    pair: Preference
    source: str
    said: str = ""
    choice: Recorded | None = None
    tie: RecordedTie | None = None

    def table(self) -> dict[str, int | str]:
        """As it is listed."""
        p = self.pair
        return {
            "number": self.choice.number if self.choice else self.number,
            "source": self.source,
            "prompt": p.prompt,
            "chosen": p.chosen,
            "rejected": p.rejected,
            "tie": self.said,
        }


def _all(device: Device) -> list[_Row]:
    """All choices, and then all ties."""
    choices = [_Row(str(c.number), c.preference, c.source, choice=c) for c in device.store.recorded()]
    ties = [_Row(f"t{t.number}", t.pair, t.source, t.said, tie=t) for t in device.store.ties()]
    return [*choices, *ties]


@dataclass(frozen=True)
class _Meant:
    """Which choices and ties: by number, by a text in them, by the name of their file; empty: whichever."""

    numbers: tuple[str, ...]  # as those of `_Row`
    text: str
    file: str

    @classmethod
    def of(cls, numbers: Sequence[str], text: str, file: str) -> _Meant:
        """As the options have them. UsageError for what is no number."""
        for number in numbers:
            if not re.fullmatch("t?[0-9]+", number):
                raise UsageError(
                    f"--choice {one_line(number)!r} is no number of a choice (3) or of a tie (t3)"
                )
        return cls(tuple(re.sub("^(t?)0+(?=.)", r"\1", number) for number in numbers), text, file)

    @property
    def all(self) -> bool:
        return not (self.numbers or self.text or self.file)

    def among(self, device: Device) -> list[_Row]:
        """Those that are meant of all that are recorded. UsageError for a number that there is not."""
        rows = _all(device)
        unknown = set(self.numbers) - {row.number for row in rows}
        if unknown:
            choices = ranges(sorted(int(number) for number in unknown if number.isdecimal()))
            ties = ", ".join(sorted(number for number in unknown if not number.isdecimal()))
            what = " and no ".join([f"choice {choices}"] * bool(choices) + [f"tie {ties}"] * bool(ties))
            raise UsageError(f"there is no {what}; `penchant device forget --list` shows their numbers")
        return [row for row in rows if self._fits(row)]

    def _fits(self, row: _Row) -> bool:
        p, text = row.pair, self.text.casefold()
        return (
            (not self.numbers or row.number in self.numbers)
            and any(text in part.casefold() for part in (p.prompt, p.chosen, p.rejected))
            and (not self.file or row.source == file_source(self.file))
        )


def _forget_all(yes: bool, opened: Callable[[], Device], home: Path, node: Path | None) -> None:
    make_sure(yes, "Delete all choices and ties, the personal model and the membership?")
    device = opened()
    ties = device.store.count_ties()
    count = part(device, home, node, device.forget)
    gone = f"{count} choices, {counted(ties, 'tie')}" if ties else f"{count} choices"
    say(f"{gone} and the personal model are deleted; files that you imported or exported are yours")
    say(one_line(device.privacy().lasting))


def _forget_chosen(meant: _Meant, yes: bool, device: Device, home: Path) -> None:
    from penchant.client.agent.socket import at_work

    rows = meant.among(device)
    if not rows:
        raise UsageError("no choice is meant by that, and no tie; `penchant device forget --list` shows all")
    choices = [row.choice for row in rows if row.choice]
    ties = [row.tie for row in rows if row.tie]
    if not yes:
        _show(rows[:SHOWN], False)
        if len(rows) > SHOWN:
            say(f"and {len(rows) - SHOWN} more (--list shows all of them)")
    make_sure(yes, _question(device, len(choices), len(ties)))
    _forget_choices(device, choices, ties)
    if at_work(home.expanduser()):
        say("the agent that runs has read them into its memory: restart `penchant device serve`")


def _question(device: Device, choices: int, ties: int) -> str:
    every = len(device.store)
    if not ties:
        return f"Delete these {choices} of {every} choices, and what was learned from them?"
    if not choices:
        every_tie = device.store.count_ties()
        return f"Delete these {ties} of {every_tie} ties, and what was learned from them?"
    return (
        f"Delete these {choices} of {every} choices, {counted(ties, 'tie')}, and what was learned from them?"
    )


def _forget_choices(device: Device, choices: Sequence[Recorded], ties: Sequence[RecordedTie]) -> None:
    done = device.forget_choices(choices, ties)
    if ties:
        say(f"{counted(done.ties, 'tie')} {'is' if done.ties == 1 else 'are'} deleted")
    if choices:
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


def _show(rows: Sequence[_Row], as_json: bool) -> None:
    if as_json:
        say_json([row.table() for row in rows])
        return
    lines = [tuple(one_line(str(value), TEXT) for value in row.table().values()) for row in rows]
    print_table("", ("number", "from", "prompt", "chosen", "rejected", "tie"), lines)
