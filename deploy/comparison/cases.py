"""Which cases a comparison is asked for: comma-separated lists become one set of changes a case."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from penchant.common.config import RunConfig
from penchant.common.errors import UsageError
from penchant.common.shares import Head, find_share

__all__ = ["Case", "combinations"]


def combinations(
    *,
    shares: str,
    seeds: str,
    heads: str | None = None,
    pairs: str | None = None,
    clients: str | None = None,
) -> list[dict[str, Any]]:
    """Every combination as dotted configuration keys, in the order in which they are to run: what is
    compared lies together, so that an interrupted comparison has whole seeds. None leaves a key alone.

    A share that shares nothing has no shared head: with several heads that combination is left out.

    Raises:
        UsageError: a list is empty, has duplicates, or has an item that is not a number.
    """
    wanted_heads = _listed("--heads", heads)
    axes: list[tuple[str, list[Any]]] = [
        ("seed", _numbers("--seeds", seeds)),
        ("data.clients", _numbers("--clients", clients)),
        ("data.pairs", _numbers("--pairs", pairs)),
        ("adapter.share", _listed("--shares", shares)),
        ("adapter.head", wanted_heads),
    ]
    made = []
    for values in itertools.product(*(values for _, values in axes)):
        changes = {key: value for (key, _), value in zip(axes, values, strict=True) if value is not None}
        rule = find_share(changes["adapter.share"])
        contradicts = rule is not None and rule.shares_nothing and changes.get("adapter.head") == "shared"
        if not (contradicts and len(wanted_heads) > 1):
            made.append(changes)
    return made


def _listed(flag: str, text: str | None) -> list[Any]:
    """The parts of a comma-separated list; [None] for no list."""
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{flag} is {text!r}; give a list without gaps, separated by commas")
    _refuse_twice(flag, parts)
    return parts


def _numbers(flag: str, text: str | None) -> list[Any]:
    if text is None:
        return [None]
    try:
        numbers = [int(part) for part in _listed(flag, text)]
    except ValueError:
        raise UsageError(f"{flag} is {text!r}; it must be whole numbers, separated by commas") from None
    _refuse_twice(flag, numbers)  # 1 and 01
    return numbers


def _refuse_twice(flag: str, values: list[Any]) -> None:
    repeated = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if repeated is not None:
        raise UsageError(f"{flag} names {repeated} twice; name it once")


@dataclass(frozen=True)
class Case:
    """One run of a comparison. Make it with `of`, which spells out whose the score head is."""

    config: RunConfig

    @classmethod
    def of(cls, config: RunConfig) -> Case:
        """The case of a configuration; ConfigError for a head that contradicts the share."""
        head = config.head
        return cls(config if head is Head.NONE else config.changed({"adapter.head": head.value}))

    @property
    def name(self) -> str:
        """What its directory is called."""
        adapter, data = self.config.adapter, self.config.data
        people = data.clients or "all"
        head = self.config.head.value
        return f"{adapter.share}-{head}-{data.pairs}pairs-{people}-seed{self.config.seed}"

    @property
    def method(self) -> RunConfig:
        """The case without its seed: cases of one row of the table have it in common."""
        return self.config.changed({"seed": 0})


CASES, TABLE, PAGE = "cases", "compare.json", "compare.html"
