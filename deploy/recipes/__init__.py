"""Hyper-parameters per data set and share, each tuned on validation with equal care, then fixed.

A recipe is a TOML file ``<dataset>.toml`` here: ``share`` names the share of runs that ask for none,
``[all]`` holds for every share, ``[<share>]`` for one; data that have no file take ``other.toml``, whose
settings were chosen on several sets of people's choices together.
Precedence: defaults, recipe, --config, flags.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from penchant.common.config import RunConfig

__all__ = ["DEPTH", "GENERAL", "fitting", "has_recipe", "recipe", "usual_share"]

GENERAL = "other"
"""The recipe for data that nothing was tuned on."""
DEPTH = ("model.blocks", "model.beside")
"""Settings that say how deep a base model is read."""


def recipe(dataset: str, share: str) -> dict[str, Any]:
    """Dotted configuration keys to change for `share` on `dataset`, or on data that nothing was tuned on."""
    tables = _tables(dataset)
    changes: dict[str, Any] = {}
    for name in ("all", share):
        for section, values in tables.get(name, {}).items():
            changes.update({f"{section}.{key}": value for key, value in values.items()})
    return changes


def fitting(tuned: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's changes without those that do not go with what is asked for, by dotted keys: how deep one
    base model is read says nothing of the next, nor of how to read beside a depth that somebody names."""
    own = tuned.get("model.base_model", RunConfig().model.base_model)
    other = asked.get("model.base_model", own) != own or not asked.keys().isdisjoint(DEPTH)
    return {key: value for key, value in tuned.items() if not (other and key in DEPTH)}


def usual_share(dataset: str) -> str | None:
    """The share of runs on a data set that ask for none; None where its recipe names none."""
    share: str | None = _tables(dataset).get("share")
    return share


def _tables(dataset: str) -> dict[str, Any]:
    source = files(__name__) / f"{dataset if has_recipe(dataset) else GENERAL}.toml"
    return tomllib.loads(source.read_text(encoding="utf-8"))


def has_recipe(dataset: str) -> bool:
    """Whether settings were tuned for a data set of this name."""
    return dataset != GENERAL and "/" not in dataset and (files(__name__) / f"{dataset}.toml").is_file()
