"""docs/settings.md: every setting with its flag, default, range and meaning.

``python -m penchant.deploy.cli.settings_page`` prints the page; a test holds docs/settings.md to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from penchant.common.config import RunConfig
from penchant.common.settings import Setting, settings_by_group

__all__ = ["page"]

_HEAD = """\
# Settings

Every setting of a run, as it is declared in `common/config.py`.
This page is generated: `python -m penchant.deploy.cli.settings_page > docs/settings.md`.

A setting has a key, as in a configuration file, and a flag of `penchant simulate`.
`penchant compare` takes the same flags but for five, of which it takes lists: see its help.
Where a setting is not given, the recipe of the data set and share decides, and then the default shown here.
A flag comes before a configuration file, and a file before a recipe.

A configuration file is TOML with a table for each section.
`training.lr_shared` is the key `lr_shared` in the table `[training]`; `seed` is written above all tables.
On the command line a list is one word with commas.
"""

_COLUMNS = ("setting", "flag", "default", "allowed", "meaning")


def page() -> str:
    """The whole page, in Markdown."""
    groups = settings_by_group(RunConfig)
    return "\n".join([_HEAD, *(_section(name, settings) for name, settings in groups.items()), _old(groups)])


def _section(name: str, settings: Sequence[Setting]) -> str:
    rows = [(f"`{one.key}`", _flag(one), f"`{one.default_text}`", one.allowed, one.help) for one in settings]
    return f"## {name}\n\n{_table(_COLUMNS, rows)}"


def _old(groups: dict[str, list[Setting]]) -> str:
    settings = [one for group in groups.values() for one in group]
    rows = [(f"`{old}`", f"`{one.key}`") for one in settings for old in one.old_keys]
    text = "Old names are read for one more version, from files and as flags, with a notice."
    return f"## Former names\n\n{text}\n\n{_table(('old', 'new'), rows)}"


def _flag(one: Setting) -> str:
    return " ".join(f"`{flag}`" for flag in one.flag.split("/"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
