"""The settings that a race chooses among (docs/runs.md#a-race-between-settings).

The cheapest first: what counts of held-out choices don't tell apart goes to whatever stands first. The heads
on the frozen embedding cost seconds where factors in a block cost minutes. Rates and ranks are those of
docs/anyones-data.md; whatever is not named is the default. Equal ranks let runs share what was computed of
the texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, UsageError
from penchant.deploy.recipes import GENERAL, fitting, recipe

__all__ = ["CANDIDATES", "Candidate", "candidates"]

_RANK_4: Final = {"adapter.rank": 4, "adapter.alpha": 4.0}
_RATES_01: Final = {"training.lr_shared": 0.01, "training.lr_head": 0.01}

CANDIDATES: Final[Mapping[str, Mapping[str, Any]]] = {
    "common": {"adapter.share": "common", **_RANK_4},
    "common-fast": {"adapter.share": "common", **_RANK_4, **_RATES_01},
    "lore": {"adapter.share": "lore", **_RANK_4, "training.lr_shared": 0.01},
    "AB": {"adapter.share": "AB"},
    "A": {"adapter.share": "A"},
}


@dataclass(frozen=True)
class Candidate:
    """One of the settings of a race: its name, and the configuration of its run."""

    name: str
    config: RunConfig


def candidates(asked: Mapping[str, Any]) -> list[Candidate]:
    """Those that can run with what was asked for, the cheapest first; each configuration once.

    asked: dotted keys of the settings that were given, which come before those of a candidate.

    Raises UsageError where a share was given, or fewer than two candidates are left; ConfigError where what
    was asked for suits none of them.
    """
    if "adapter.share" in asked:
        raise UsageError(
            f'a race chooses the share, and "{asked["adapter.share"]}" is asked for; drop one of them',
            on_command_line=f"--auto chooses the share, and {asked['adapter.share']} is asked for; drop one "
            "of them",
        )
    found: dict[RunConfig, str] = {}
    refused: ConfigError | None = None
    for name, changes in CANDIDATES.items():
        try:
            usual = fitting(recipe(GENERAL, changes["adapter.share"]), asked)
            config = RunConfig().changed({**usual, **changes, **asked})
        except ConfigError as error:
            refused = refused or error
        else:
            found.setdefault(config, name)
    if not found and refused is not None:
        raise refused
    if len(found) < 2:
        raise UsageError(
            "what is asked for leaves one candidate, so there is nothing to race; name its share "
            f"({next(iter(found)).adapter.share}) instead",
        )
    return [Candidate(name, config) for config, name in found.items()]
