"""A run that begins where an earlier one stood: the shared factors of a finished round, or of a release.

The way on from what people use, and the way back where a run went wrong, after a lying device say. Only the
shared factors are taken over: a new run has its own id, its server optimiser starts afresh, and personal
parts start at the common start.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from penchant.common.config import RunConfig
from penchant.common.errors import AgreementError, ConfigError, RunDirectoryError, UsageError
from penchant.common.foreign_files import BAD_TENSORS
from penchant.common.model import announced
from penchant.common.model.factors import Split
from penchant.common.printable import is_printable
from penchant.deploy import run_directory
from penchant.deploy.run_inputs import refuse_edited
from penchant.server.journal_reader import JournalReader
from penchant.server.releases import named_round, released

__all__ = ["EarlierRound", "begin_from", "begun_with", "earlier_round"]


@dataclass(frozen=True)
class EarlierRound:
    """The shared factors of a finished round. `name` is RUN:ROUND; `digest`, in hex, is its checkpoint's."""

    name: str
    digest: str
    factors: NDArray[np.float32] = field(repr=False)

    def encode(self) -> bytes:
        """For the file in the directory of the run that begins with it."""
        return save({"factors": self.factors}, metadata={"name": self.name, "digest": self.digest})

    def check(self, split: Split) -> None:
        """UsageError unless a first round of `split` can begin with these factors."""
        if self.factors.size != split.shared.size:
            raise UsageError(
                f"{self.name} has {self.factors.size} shared numbers and the new run begins with "
                f"{split.shared.size}; take a round of the same phase, or set federation.warmup_rounds to 0"
            )


def begin_from(text: str, place: Callable[[str], Path], config: RunConfig) -> EarlierRound:
    """The round that `--from` names, for a new run of `config`.

    place: the directory of the run of a name. Raises as `named_round` and `earlier_round` do, and UsageError
    when there is no such release, or its round is not what it was.
    """
    run, which = named_round(text)
    directory = place(run)
    if which.isdigit():
        return earlier_round(directory, int(which), config)
    release = released(directory, which)
    found = earlier_round(directory, release.round, config)
    if found.digest != release.digest:
        raise UsageError(
            f"round {release.round} of {directory} now has a different checkpoint than release "
            f"{release.number} had; begin with a round that you know"
        )
    return found


def earlier_round(directory: Path, number: int, config: RunConfig) -> EarlierRound:
    """The finished round `number` of the run in `directory`, for a new run of `config`.

    The directory may be somebody else's: nothing is written into it, and what it says is checked. Raises
    UsageError when that round is not finished, is of another model or adapter, or has factors that devices
    refuse; RunDirectoryError when the settings there are not those of its run any more; JournalError when
    the journal is damaged.
    """
    name = f"{directory.absolute().name}:{number}"
    earlier = run_directory.read_config(directory)
    people = (run_directory.read_result(directory) or {}).get("clients")
    refuse_edited(directory, earlier, people if isinstance(people, int) else None)
    for what, old, new in (
        ("model", earlier.model, config.model),
        ("adapter", earlier.adapter, config.adapter),
    ):
        if old != new:
            raise ConfigError(
                f"{name} is of another {what} than the new run; give both the same table [{what}]"
            )
    journal = JournalReader(directory)
    last = max((log.round for log in journal.logs()), default=0)
    if not last:
        raise UsageError(f"no round of {directory} is finished; begin without --from")
    found, digest = journal.load(number), journal.digest(number)
    if found is None or digest is None:
        raise UsageError(f"round {number} of {directory} is not finished; its last finished one is {last}")
    factors = found[1].factors
    try:
        announced.check(factors)
    except AgreementError as error:
        raise UsageError(f"at {name} {error}; take an earlier round") from None
    return EarlierRound(name, digest, factors)


def begun_with(directory: Path) -> EarlierRound | None:
    """The earlier round that the run in `directory` began with, or None."""
    path = directory / run_directory.START
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            told, factors = file.metadata() or {}, file.get_tensor("factors")
        if not (is_printable(told["name"]) and re.fullmatch("[0-9a-f]{64}", told["digest"])):
            raise ValueError("it names no round")
        if factors.dtype != np.float32 or factors.ndim != 1:
            raise ValueError("its factors are no row of float32")
        announced.check(factors)
        return EarlierRound(told["name"], told["digest"], factors)
    except (OSError, AgreementError, *BAD_TENSORS) as error:
        raise RunDirectoryError(f"{path} is damaged; restore it from a back-up: {error}") from None
