"""Whether the sums that a round opened can be those of honest devices, and what they say if so.

One false vector makes the sum of its group false. What can't be the sum of devices that keep to the public
bounds (`UpdateLayout.fault`) is left out with its whole group, by number: whose vector it was can't be known.
The same holds for the factors that come of it: none is kept that devices would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from penchant.common.config import FederationConfig
from penchant.common.errors import AgreementError, SumRefused
from penchant.common.model import announced
from penchant.common.secagg.update_vector import RoundSums, UpdateLayout
from penchant.server.combination import GroupMeans, Update, combination
from penchant.server.optimizers import ServerState
from penchant.server.secagg.aggregation import Aggregate, GroupSum
from penchant.server.secagg.group import added

__all__ = ["REFUSED", "Opened", "moved", "read_sums"]

REFUSED = "sum"
"""What counts as the stage at which the devices of a refused group were lost."""

Names = Callable[[Sequence[int]], str]
"""Nodes in words."""


@dataclass(frozen=True)
class Opened:
    """What a round's sums say, without the groups that were refused; `aggregate` has them as failed."""

    aggregate: Aggregate
    sums: RoundSums


def read_sums(
    layout: UpdateLayout, aggregate: Aggregate, federation: FederationConfig, names: Names
) -> Opened:
    """The sums of the groups that stand, with their mean updates combined as `federation.combine` says.

    Raises SumRefused, with each group's fault, when too few people or too few groups are left.
    """
    faults = {number: layout.fault(one.total, len(one.survivors)) for number, one in aggregate.opened.items()}
    refused = {
        number: f"not the sum of honest devices: {fault}; one of {names(_nodes(aggregate, number))} lied"
        for number, fault in faults.items()
        if fault
    }
    standing = _without(aggregate, refused) if refused else aggregate
    _enough_people(standing, federation, refused)
    sums = layout.read(standing.total, len(standing.survivors))
    if sums.mean.size:
        sums = replace(sums, mean=_combined(layout, standing, sums, federation, refused))
    return Opened(standing, sums)


def moved(shared: ServerState, mean: Update, federation: FederationConfig) -> ServerState:
    """The state after the round. SumRefused when devices would take no announcement of its factors."""
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is checked
        after = shared.moved(mean, federation)
    try:
        announced.check(after.factors)
    except AgreementError as error:
        raise SumRefused(
            f"after this round {error}, so devices would refuse them; nothing of it is kept"
        ) from None
    if not (np.isfinite(after.first).all() and np.isfinite(after.second).all()):
        raise SumRefused("after this round the server optimiser's state is not finite; nothing of it is kept")
    return after


# --- inner parts ----------------------------------------------------------------------------------


def _nodes(aggregate: Aggregate, number: int) -> tuple[int, ...]:
    return aggregate.opened[number].survivors


def _without(aggregate: Aggregate, refused: Mapping[int, str]) -> Aggregate:
    kept = {number: one for number, one in aggregate.opened.items() if number not in refused}
    out = tuple(sorted(node for number in refused for node in _nodes(aggregate, number)))
    totals = [one.total for one in kept.values()]
    return replace(
        aggregate,
        total=added(totals) if totals else aggregate.total * 0,
        survivors=tuple(sorted(node for one in kept.values() for node in one.survivors)),
        dropped={**aggregate.dropped, REFUSED: out},
        failed={**aggregate.failed, **refused},
        sums=kept,
    )


def _enough_people(standing: Aggregate, federation: FederationConfig, refused: Mapping[int, str]) -> None:
    left, least = len(standing.survivors), max(federation.min_survivors, 1)
    if refused and left < least:
        raise SumRefused(f"{_told(refused)}; {left} people are left, at least {least} are needed")


def _combined(
    layout: UpdateLayout,
    standing: Aggregate,
    sums: RoundSums,
    federation: FederationConfig,
    refused: Mapping[int, str],
) -> Update:
    rule = combination(federation.combine)
    means = np.empty((len(standing.opened), sums.mean.size))
    weights: list[int] = []
    for one in _ordered(standing.opened):
        whole = len(standing.opened) == 1  # then the sum has been read already
        group = sums if whole else layout.read(one.total, len(one.survivors))
        if group.weight:
            means[len(weights)] = group.mean
            weights.append(group.weight)
    if len(weights) < rule.least and rule.least > 1:
        told = f"; {_told(refused)}" if refused else ""
        raise SumRefused(f"{rule.name} needs the sums of {rule.least} groups, {len(weights)} are left{told}")
    heard = GroupMeans(means[: len(weights)], np.array(weights, np.int64), sums.mean)
    return rule.combine(heard, federation.false_groups)


def _ordered(opened: Mapping[int, GroupSum]) -> list[GroupSum]:
    return [opened[number] for number in sorted(opened)]


def _told(refused: Mapping[int, str]) -> str:
    return "; ".join(f"group {number}: {why}" for number, why in sorted(refused.items()))
