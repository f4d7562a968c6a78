"""`penchant device import` and `label`: the owner's choices are recorded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.errors import DataError, UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say
from penchant.common.wording import counted
from penchant.deploy.cli.device.options import (
    HERE,
    Ask,
    HomeOption,
    SkipBadRows,
    file_source,
    lines_of,
    open_device,
    open_home,
)
from penchant.deploy.cli.errors import command, notice
from penchant.deploy.configuration import names_of

if TYPE_CHECKING:
    from penchant.client.device.labelling import Labelling, Question

__all__ = ["app"]

app = typer.Typer()
SHOWN = 20  # people of a file whose names are shown
NAME_SHOWN = 60  # characters of a name
LONG = 160  # characters of a response, from which on a line separates it
RULE = f"  {'-' * 40}"
KEYS = (
    "1 or 2: the one you would rather have; =: equal; b: both bad; s: skip; u: undo the last answer; q: quit."
)


@command(app, "import")
def import_choices(
    file: Annotated[
        Path,
        typer.Argument(
            help="Preferences in TRL's format, ratings, or the export of a chat program, an arena or a "
            "labelling tool; docs/data.md lists them. A folder's files are all read."
        ),
    ],
    person: Annotated[
        str | None, typer.Option("--person", help="Who you are, where the file names several people.")
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--everybody", help="All people that the file names are you.")
    ] = False,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Other names of columns: prompt=question,chosen=better.")
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Record choices from a file: all of them, or none. Of a file of several people, those of the owner."""
    from penchant.common.data.importers.reading import read_choices
    from penchant.common.data.row_files import RowLog
    from penchant.common.data.trl_format import column_names

    if person is not None and everybody:
        raise UsageError("--person and --everybody exclude each other; give one")
    if not file.exists():
        raise DataError(f"there is no file {file}")
    log = RowLog("skip" if skip_bad_rows else "refuse")
    found = read_choices(file, log, columns=column_names(names_of(columns or "")))
    report = log.finish(str(file))
    people = found.people
    if person is not None and person not in people:
        raise DataError(f"{file} holds no choices of {person!r}; it names {len(people)} people")
    if person is None and not everybody and len(people) > 1:
        person = _owner_among(people, file)
    kept = found.of(person)
    added = open_home(home, passphrase).record(kept, file_source(file.name))
    tied = f" and {counted(added.ties, 'tie')}" if added.ties else ""
    whose = "" if person is None else f" of {one_line(person, NAME_SHOWN)}"
    say(f"{added.new - added.ties} new choices{tied}{whose} recorded, {added.repeated} were there already")
    for line in found.notes:
        notice(line)
    if report.bad:
        say(report.summary(), error=True)


@command(app)
def label(
    file: Annotated[
        Path,
        typer.Argument(
            help="What to compare: JSON lines or Parquet, with prompt and responses or in TRL's format; "
            "with --prompt: responses, one a line."
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The prompt that the lines of FILE respond to.")
    ] = None,
    most_telling: Annotated[
        bool, typer.Option("--most-telling", help="Ask the most informative question first.")
    ] = False,
    skip_bad_rows: SkipBadRows = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Say, of two responses at a time, which one you would rather have. Each answer is kept at once."""
    from penchant.client.device.labelling import Labelling, compared, read_comparisons
    from penchant.deploy.cli.drawing import working

    if prompt is None:
        comparisons, report = read_comparisons(file, "skip" if skip_bad_rows else "refuse")
        if report.bad:
            say(report.summary(), error=True)
    else:
        comparisons = compared(prompt, lines_of(str(file)))
    if most_telling:
        device = open_device(home, passphrase)
        with working("looking for what would tell the model most"):
            sitting = Labelling(device.store, comparisons, learner=device.learner)
    else:
        sitting = Labelling(open_home(home, passphrase).store, comparisons)
    try:
        if sitting.question:
            say(f"{sitting.left} to compare. {KEYS}")
        _ask(sitting)
    except (EOFError, KeyboardInterrupt):
        say()
    tied = f"{sitting.tied} ties, " if sitting.tied else ""
    say(f"{sitting.recorded} choices recorded, {tied}{sitting.skipped} skipped, {sitting.left} left to ask")
    if sitting.recorded or sitting.tied:
        say("`penchant device train` learns from them")


# --- inner parts --------------------------------------------------------------------------------------


def _owner_among(people: Sequence[str], file: Path) -> str:
    """Who of several people the owner is, as they say at a terminal.

    UsageError where nobody can be asked, or nobody of them is named.
    """
    names = [one_line(name, NAME_SHOWN) for name in people[:SHOWN]]
    more = f" and {len(people) - SHOWN} more" if len(people) > SHOWN else ""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{file} names {len(people)} people ({', '.join(names)}{more}); --person NAME says which of them "
            "is you, --everybody that all are"
        )
    say(f"the file names {len(people)} people:")
    for number, name in enumerate(names, start=1):
        say(f"  #{number}  {name}")
    if more:
        say(f"     {more}")
    said = input("which of them are you? A number or a name > ").strip()
    meant = _meant(said, people, len(names))
    if not meant:
        raise UsageError("the file names nobody of that name; nothing was recorded")
    if len(meant) > 1:
        raise UsageError(
            f"{one_line(said, NAME_SHOWN)} is one person's name and another one's number; --person NAME says "
            "which of them is you; nothing was recorded"
        )
    return meant.pop()


def _meant(said: str, people: Sequence[str], shown: int) -> set[str]:
    """Whom somebody may mean: the person of that name, and the one of that number (`#` or none)."""
    meant = {said} & set(people)
    number = said.removeprefix("#")
    if number.isdecimal() and len(number) < 10 and 1 <= int(number) <= shown:
        meant.add(people[int(number) - 1])
    return meant


def _ask(sitting: Labelling) -> None:
    """Question after question until all is answered, or the owner quits."""
    asked: Question | None = None
    total = sitting.left
    while (question := sitting.question) is not None:
        if question is not asked:
            _show(question, f"{total - sitting.left + 1} of {total}")
            asked = question
        said = _typed("1, 2, =, b, s, u, q > ")
        if said == "q":
            return
        if said in ("1", "2"):
            sitting.choose(said == "1")
        elif said in ("=", "b"):
            if not sitting.tie("equal" if said == "=" else "both bad"):
                say("skipped: one of the two was chosen meanwhile, and that stays")
        elif said == "s":
            sitting.skip()
        elif said != "u":
            say(KEYS)
        elif not sitting.undo():
            say("there is nothing to undo")
        if sitting.question is None and _typed("that was the last one; u: undo, Enter: done > ") == "u":
            sitting.undo()
            asked = None


def _show(question: Question, place: str) -> None:
    """A question, with a line between two responses that are long."""
    say()
    say(f"{place}  {question.prompt}", lines=True)
    both = question.first, question.second
    long = any("\n" in one or len(one) > LONG for one in both)
    for number, response in enumerate(both, start=1):
        if long:
            say(RULE)
        # Set in, so that no line of a response looks like the other response.
        say(f"  {number}  " + response.replace("\n", "\n     "), lines=True)
    if long:
        say(RULE)


def _typed(prompt: str) -> str:
    """What the owner says: a key at a terminal, without Enter; a line from anywhere else."""
    if not sys.stdin.isatty():
        return input(prompt).strip().lower()
    sys.stdout.write(prompt)
    sys.stdout.flush()
    key = typer.getchar()
    say(one_line(key.strip()))
    return key.strip().lower()
