"""A search for settings at a terminal: a line a trial, and what it came to."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say

__all__ = ["tune_and_show"]


def tune_and_show(
    asked: Mapping[str, Any], shares: Sequence[str], seeds: Sequence[int], budget: int, out: Path
) -> None:
    """Search, and print each trial, the best of each share, and where the recipe is.

    Raises UsageError where Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError('penchant tune needs Optuna, which is not installed: pip install "penchant[tune]"')
    from penchant.deploy.tuning.tune import Tuning, tune

    tuning = Tuning(asked, shares, seeds, budget, out)
    made = tune(tuning, shlex.join(["penchant", *sys.argv[1:]]), lambda text: say(one_line(text)))
    if made.tuned is None:
        return
    for share, accuracy in made.tuned.accuracies.items():
        best = ", the best" if share == made.tuned.share else ""
        say(f"{one_line(share)}: {accuracy:.3f} on {made.tuned.judged_on} pairs{best}")
    say(f"{one_line(str(out))}  use it with penchant simulate --recipe {one_line(str(out))}")
