"""What a simulation is computed from, and whether it is still what its journal says that it was begun with.

Everybody's personal part is kept under the run's id, which settings, data and start make. A finished run of
which one was changed since has no personal part under its id, and with another base model other scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from penchant.common.config import RunConfig, config_digest
from penchant.common.errors import ConfigError, RunDirectoryError
from penchant.common.wording import listed
from penchant.server.journal_reader import JournalReader
from penchant.server.noise_terms import settle_noise
from penchant.server.run import checked_cohort

__all__ = ["BASE_MODEL", "DATA", "SETTINGS", "START", "refuse_edited", "refuse_others", "settings_digest"]

SETTINGS: Final = "configuration"  # these four: facts of a journal, and what errors call them
START: Final = "start"
DATA: Final = "data set"
BASE_MODEL: Final = "base model"

_WHERE = {"grid": "local", "workers": 0, "batch_people": 0}
"""Settings that say where and how a run is computed, and not which run it is."""


def settings_digest(config: RunConfig) -> str:
    """SHA-256 (hex) of the settings that say which run it is, wherever and however it is computed."""
    return config_digest(config.changed(_WHERE))


def refuse_edited(directory: Path, config: RunConfig, people: int | None) -> None:
    """RunDirectoryError when the simulation in `directory` was begun with other settings than these.

    Neither data nor a base model are loaded, and runs without the journal of a simulation say nothing.

    Args:
        directory: the run's.
        config: what its `config.toml` says.
        people: how many take part; None where that is not known, and then settings with noise, which is made
            for so many, are taken for the same.
    """
    begun = JournalReader(directory).fact(SETTINGS)
    if begun is None or (config.privacy.dp_epsilon and people is None):
        return
    if _settled_digest(config, people) != begun:
        raise _begun_otherwise(directory, [SETTINGS])


def refuse_others(directory: Path, inputs: Mapping[str, str], recorded: Callable[[str], str | None]) -> None:
    """RunDirectoryError, which names them, when the run in `directory` was begun with other inputs.

    Args:
        directory: the run's.
        inputs: what it would be computed from now -> its digest.
        recorded: the digest of what it was begun with, where that is known.
    """
    others = [what for what, digest in inputs.items() if recorded(what) not in (None, digest)]
    if others:
        raise _begun_otherwise(directory, others)


def _settled_digest(config: RunConfig, people: int | None) -> str:
    """As `settings_digest`, of the settings that a run of so many people has; empty where they can have none
    of these."""
    if not config.privacy.dp_epsilon or people is None:
        return settings_digest(config)
    try:
        return settings_digest(settle_noise(config, checked_cohort(config, people), people))
    except ConfigError:
        return ""


def _begun_otherwise(directory: Path, others: Iterable[str]) -> RunDirectoryError:
    named = [f"another {what}" for what in others]
    were = "it was" if len(named) == 1 else "they were"
    return RunDirectoryError(
        f"{directory} was begun with {listed(named)}; put back what {were}, or start a new run"
    )
