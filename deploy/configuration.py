"""From a configuration file, flags and recipes to one checked configuration."""

from __future__ import annotations

from collections.abc import Mapping
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
_BESIDE: Final = "model.beside"
FEW_ROUNDS: Final = 8
"""Runs of fewer are tries, of which nobody wants to hear that they could be better."""


def configure(flags: dict[str, Any], file: Path | None, tuned_in: RecipeFile | None = None) -> RunConfig:
    """Defaults, then the recipe of (data set, share), then the file, then the flags.

    Where no share is given, it is the recipe's, unless something is asked for that only adapters in the base
    model's blocks have: then it is the default of settings.

    tuned_in: a recipe in place of the data set's.
    """
    explicit = asked_for(flags, file, tuned_in)
    base = RunConfig()
    dataset = explicit.get("data.dataset", base.data.dataset)
    share = _share_of(explicit, tuned_in)
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


def _share_of(asked: Mapping[str, Any], tuned_in: RecipeFile | None = None) -> str:
    """The share of a run that asks for these settings: the one asked for, or the usual one."""
    base = RunConfig()
    if "adapter.share" in asked:
        return str(asked["adapter.share"])
    if tuned_in is not None:
        return tuned_in.share or base.adapter.share
    return _usual_share(str(asked.get("data.dataset", base.data.dataset)), asked) or base.adapter.share


def _usual_share(dataset: str, asked: Mapping[str, Any]) -> str | None:
    """The share that the recipe of a data set names; None where it does not suit what is asked for.

    ConfigError where no usual share suits two things that are asked for.
    """
    share = usual_share(dataset)
    usual = dotted_table(RunConfig())
    of_adapters = [key for key in _OF_ADAPTERS if _plain(asked.get(key, usual[key])) != _plain(usual[key])]
    if not share or not of_adapters or share_rule(share).adapts_modules:
        return share
    if asked.get(_BESIDE) and "model.objective" not in of_adapters:  # an objective says itself what it lacks
        raise ConfigError(
            f"{_BESIDE} is for shares that adapt no module, such as {share}, and {of_adapters[0]} for those "
            "that do; drop one of them",
            about=(_BESIDE, of_adapters[0]),
        )
    return None


def _plain(value: object) -> object:
    """A value of a setting as it is compared: lists of a file and of a flag are alike."""
    return tuple(value) if isinstance(value, list) else value


def asked_for(flags: dict[str, Any], file: Path | None, tuned_in: RecipeFile | None = None) -> dict[str, Any]:
    """The settings that a file and flags give, by dotted keys.

    tuned_in: as of `configure`: it can name the share that a file's settings are for.
    """
    given = current_keys(RunConfig, flags)
    return _file_changes(file, given, tuned_in) | given


def has_untuned_settings(config: RunConfig, asked: Mapping[str, Any]) -> bool:
    """Whether a run has settings that nobody chose for its data, and rounds enough to race between some.

    config: of the run. asked: what of it was given, by dotted keys.
    """
    own = not has_recipe(config.data.dataset) and "adapter.share" not in asked
    return own and config.federation.rounds >= FEW_ROUNDS and not config.privacy.dp_epsilon


def _file_changes(file: Path | None, flags: Mapping[str, Any], tuned_in: RecipeFile | None) -> dict[str, Any]:
    """The keys that a file sets, dotted; the whole file is validated first, with the share of its run."""
    if file is None:
        return {}
    found = RunConfig.keys_in_file(file)
    RunConfig().changed({"adapter.share": _share_of({**found, **flags}, tuned_in), **found})
    return found


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
