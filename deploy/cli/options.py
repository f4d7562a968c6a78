"""The options that several commands share, and a flag for every setting."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from penchant.common.config import RunConfig
from penchant.common.errors import PenchantError
from penchant.common.settings import Setting, current_keys, settings_of
from penchant.deploy.configuration import names_of, numbers_of

DATA = "Data"
MODEL = "Model and adapter"
RUN = "Run"

Flags = dict[str, Any]  # dotted keys of the settings that were given as flags

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML configuration.", rich_help_panel=RUN)]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory to make.", rich_help_panel=RUN)]
Resume = Annotated[
    Path | None, typer.Option("--resume", help="Go on in this run directory.", rich_help_panel=RUN)
]
BeginWith = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="DIR:ROUND",
        help="Begin with the shared factors of a finished round of the run in DIR, or of a release of it: "
        "DIR:release, DIR:release-NUMBER.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
SaveModels = Annotated[
    bool,
    typer.Option(
        "--save-models",
        help="Write everybody's model into the run's folder models, as `penchant export` does.",
        rich_help_panel=RUN,
    ),
]

Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="Settings in place of those tuned for the data set, as `penchant tune` writes them.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
Auto = Annotated[
    bool | None,
    typer.Option(
        "--auto/--no-auto",
        help="Choose share and rates by a race between a few, on held-out choices as masked sums tell them; "
        "see docs/runs.md.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]


def with_settings(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for every setting of a run, in the place of its parameter `flags`.

    The command receives what was given as one table with dotted keys; what was not given leaves the value of
    the configuration file, of the recipe, or the default.

    Args:
        without: keys of settings that have no flag here, because the command has its own option.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [option for one in _run_last() if one.key not in without for option in _options(one)]

        @functools.wraps(command)
        def with_flags(**values: Any) -> None:
            given = {option.key: values.pop(option.parameter) for option in options}
            flags = {o.key: o.read(given[o.key]) for o in options if given[o.key] is not None}
            try:
                command(flags=current_keys(RunConfig, flags), **values)
            except PenchantError as error:
                error.on_command_line = _as_given(error.on_command_line, options, given)
                raise

        _take(with_flags, inspect.signature(command, eval_str=True), options)
        return with_flags

    return decorate


def _as_given(text: str, options: Iterable[_Option], given: Mapping[str, Any]) -> str:
    """What is wrong, with flags in place of the keys of those settings that were given by a flag."""
    for option in options:
        if given[option.key] is not None:
            key = option.setting.key
            flag = option.setting.flag.partition("/")[0]  # of a switch, the one for yes
            before = r"(?<![\w.])" if "." in key else "^"  # elsewhere such a key may be any word
            text = re.sub(rf"{before}{re.escape(key)}(?!\.?\w)", flag, text)
    return text


def _run_last() -> list[Setting]:
    """Every setting; those of the run as a whole come last, with the options that say where it goes."""
    return sorted(settings_of(RunConfig), key=lambda one: one.group == RUN)


def _options(one: Setting) -> list[_Option]:
    """The flag of a setting, and a hidden one for each of its old names."""
    return [_Option(one, key) for key in (one.key, *one.old_keys)]


@dataclass(frozen=True)
class _Option:
    """One flag: of a setting by its key, or hidden by an old key."""

    setting: Setting
    key: str

    @property
    def parameter(self) -> str:
        return self.key.replace(".", "__")

    @property
    def kind(self) -> type:
        """What the words on the command line are read as first; lists are one word with commas."""
        if self.setting.kind is bool or self.setting.declared.switch:
            return bool
        return self.setting.kind if self.setting.kind in (int, float) else str

    @property
    def names(self) -> str:
        if self.key == self.setting.key:
            return self.setting.flag
        return f"--{self.key.rpartition('.')[2].replace('_', '-')}"

    @property
    def help(self) -> str:
        """The meaning, and how a value is written where that is not plain."""
        listed = get_origin(self.setting.kind) is tuple
        if listed:
            also = ", or all" if get_args(self.setting.kind)[0] is int else ""
            return f"{self.setting.help} A list with commas{also}."
        if self.kind is bool or callable(self.setting.declared.choices) or not self.setting.choices:
            return self.setting.help
        return f"{self.setting.help} One of: {', '.join(map(str, self.setting.choices))}."

    def declare(self) -> inspect.Parameter:
        """The parameter that Typer makes an option of."""
        option = typer.Option(
            self.names,
            help=self.help,
            rich_help_panel=self.setting.group,
            hidden=self.key != self.setting.key,
        )
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(
            self.parameter, keyword, default=None, annotation=Annotated[self.kind | None, option]
        )

    def read(self, value: Any) -> Any:
        """The setting's value for what was given. Raises ConfigError for a list that is not one."""
        if self.setting.declared.switch:
            yes, no = self.setting.declared.switch
            return yes if value else no
        if get_origin(self.setting.kind) is tuple:
            numbers = get_args(self.setting.kind)[0] is int
            return numbers_of(self.names, value) if numbers else names_of(value)
        return value


def _take(command: Any, signature: inspect.Signature, options: list[_Option]) -> None:
    """Tell Typer, which reads a command's signature, that `command` takes `options` instead of `flags`."""
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        own = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += [option.declare() for option in options] if parameter.name == "flags" else [own]
    command.__signature__ = signature.replace(parameters=parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
