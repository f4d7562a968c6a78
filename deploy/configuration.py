"""From a configuration file, flags and recipes to one checked configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.common.settings import current_keys, dotted_table
from penchant.common.shares import share_rule
from penchant.deploy.recipes import fitting, has_recipe, recipe, usual_share
from penchant.deploy.recipes.recipe_file import RecipeFile

_OF_ADAPTERS: Final = (
    "model.objective",
    "adapter.head",
    "adapter.target_modules",
    "adapter.layers",
    "adapter.share_base",
    "federation.warmup_rounds",
)
"""Settings about adapters in blocks of the base model, and a score head beside them."""
FEW_ROUNDS: Final = 8
"""Runs of fewer are tries, of which nobody wants to hear that they could be better."""


def configure(flags: dict[str, Any], file: Path | None, tuned_in: RecipeFile | None = None) -> RunConfig:
    """Defaults, then the recipe of (data set, share), then the file, then the flags.

    Where no share is given, it is the recipe's, unless something is asked for that only adapters in the base
    model's blocks have: then it is the default of settings.

    tuned_in: a recipe in place of the data set's.
    """
    explicit = asked_for(flags, file)
    base = RunConfig()
    dataset = explicit.get("data.dataset", base.data.dataset)
    usual = tuned_in.share if tuned_in else _usual_share(str(dataset), explicit)
    share = str(explicit.get("adapter.share", usual or base.adapter.share))
    found = fitting(tuned_in.changes(share) if tuned_in else recipe(str(dataset), share), explicit)
    tuned = {"adapter.share": share, **current_keys(RunConfig, found)}
    if explicit.get("data.clients"):  # the recipe's cohort was tuned for everybody
        tuned.pop("federation.cohort", None)
    asked = explicit.get("federation.rounds")
    if isinstance(asked, int) and tuned.get("federation.warmup_rounds"):  # in proportion
        rounds = tuned.get("federation.rounds", base.federation.rounds)
        warmup = tuned["federation.warmup_rounds"] * asked // rounds
        tuned["federation.warmup_rounds"] = warmup
    return base.changed(tuned | explicit)


def _usual_share(dataset: str, asked: dict[str, Any]) -> str | None:
    """The share that the recipe of a data set names; None where it does not suit what is asked for."""
    share = usual_share(dataset)
    usual = dotted_table(RunConfig())
    needs_adapters = any(_plain(asked.get(key, usual[key])) != _plain(usual[key]) for key in _OF_ADAPTERS)
    return None if share and needs_adapters and not share_rule(share).adapts_modules else share


def _plain(value: object) -> object:
    """A value of a setting as it is compared: lists of a file and of a flag are alike."""
    return tuple(value) if isinstance(value, list) else value


def asked_for(flags: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The settings that a file and flags give, by dotted keys."""
    return file_changes(file) | current_keys(RunConfig, flags)


def has_untuned_settings(asked: dict[str, Any]) -> bool:
    """Whether a run has settings that nobody chose for its data, and rounds enough to race between some."""
    config = RunConfig().changed(asked)
    own = not has_recipe(config.data.dataset) and "adapter.share" not in asked
    return own and config.federation.rounds >= FEW_ROUNDS and not config.privacy.dp_epsilon


def file_changes(file: Path | None) -> dict[str, Any]:
    """The keys that a file sets, dotted; the whole file is validated first."""
    if file is None:
        return {}
    RunConfig.read(file)  # gives the notice about old names
    return RunConfig.keys_in(file.read_text(encoding="utf-8"))


def names_of(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def numbers_of(flag: str, text: str) -> tuple[int, ...]:
    """The whole numbers in a list with commas; none for "all". ConfigError names `flag` where that fails."""
    if text.strip() == "all":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; it must be whole numbers, separated by commas") from None
