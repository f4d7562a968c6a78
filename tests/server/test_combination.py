"""Rules over groups' mean updates: each beside a slow reference that follows the text of its paper."""

from __future__ import annotations

from itertools import combinations
from math import ceil

import numpy as np
import pytest
from numpy.typing import NDArray

from penchant.common.config import RunConfig, config_digest
from penchant.common.errors import ConfigError
from penchant.common.registry import COMBINATIONS
from penchant.server.combination import (
    GroupMeans,
    check_groups,
    combination,
    register_combination,
)

Rows = NDArray[np.float64]


def groups(means: Rows) -> GroupMeans:
    weights = np.arange(1, len(means) + 1)
    return GroupMeans(means, weights, (means * weights[:, None]).sum(axis=0) / weights.sum())


def drawn(count: int, size: int, seed: int) -> Rows:
    return np.random.default_rng(seed).normal(size=(count, size))


def slow_median(means: Rows, part: float) -> list[float]:
    middle = []
    for column in means.T.tolist():
        ranked = sorted(column)
        half = len(ranked) // 2
        middle.append(ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2)
    return middle


def slow_trimmed_mean(means: Rows, part: float) -> list[float]:
    cut = min(ceil(round(part * len(means), 9)), (len(means) - 1) // 2)
    kept = [sorted(column)[cut : len(means) - cut] for column in means.T.tolist()]
    return [sum(column) / len(column) for column in kept]


def slow_multi_krum(means: Rows, part: float) -> list[float]:
    n = len(means)
    f = min(ceil(round(part * n, 9)), (n - 3) // 2)
    away = {
        frozenset(pair): sum((means[pair[0]] - means[pair[1]]) ** 2) for pair in combinations(range(n), 2)
    }
    scores = []
    for one in range(n):
        near = sorted(away[frozenset((one, other))] for other in range(n) if other != one)
        scores.append((sum(near[: n - f - 2]), one))
    chosen = sorted(one for _, one in sorted(scores)[: n - f])
    return [sum(means[one, at] for one in chosen) / len(chosen) for at in range(means.shape[1])]


SLOW = {"median": slow_median, "trimmed_mean": slow_trimmed_mean, "multi_krum": slow_multi_krum}


@pytest.mark.parametrize("rule", SLOW)
@pytest.mark.parametrize("count", [3, 5, 6, 9, 16])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.25, 0.49])
def test_each_rule_is_its_slow_reference(rule: str, count: int, part: float) -> None:
    means = drawn(count, 7, seed=count)
    if count < combination(rule).least:
        return
    fast = combination(rule).combine(groups(means), part)
    assert fast == pytest.approx(SLOW[rule](means, part), abs=1e-12)


def test_the_mean_is_that_over_all_people() -> None:
    told = groups(drawn(4, 3, seed=2))
    assert combination("mean").combine(told, 0.25) is told.pooled


@pytest.mark.parametrize("rule", SLOW)
@pytest.mark.parametrize("lie", [1e9, -1e9, 0.3])
def test_a_quarter_of_false_groups_does_not_move_a_robust_rule_out_of_the_honest_range(
    rule: str, lie: float
) -> None:
    means = drawn(8, 5, seed=3) * 0.01 + 1.0
    means[:2] = lie
    after = combination(rule).combine(groups(means), 0.25)
    assert ((means[2:].min(axis=0) <= after) & (after <= means[2:].max(axis=0))).all()
    assert not np.allclose(combination("mean").combine(groups(means), 0.25), after, atol=0.01)


def test_too_few_groups_are_refused_before_a_run_begins() -> None:
    config = RunConfig().changed({"federation.combine": "median", "privacy.group_size": 17})
    with pytest.raises(ConfigError, match=r"median needs at least 3 groups, but a cohort of 34 .* makes 2"):
        check_groups(config, 34)
    check_groups(config, 51)
    check_groups(RunConfig(), 3)


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"federation\.combine .* choose one of mean, median"):
        RunConfig().changed({"federation.combine": "best"})


def test_a_program_can_add_a_rule_but_not_replace_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Least:
        name = "least"
        least = 1

        def combine(self, told: GroupMeans, false_groups: float) -> Rows:
            return told.means.min(axis=0)

    monkeypatch.setattr(COMBINATIONS, "_things", dict(COMBINATIONS._things))
    register_combination(Least())
    assert isinstance(combination("least"), Least)
    with pytest.raises(ConfigError, match="can't be replaced"):
        register_combination(combination("median"))
    with pytest.raises(ConfigError, match="a Combination"):
        register_combination(object())  # type: ignore[arg-type]


def test_default_settings_leave_the_digest_of_a_configuration_as_it_was() -> None:
    """It names runs: a run of an earlier version must stay resumable, and its figures repeatable."""
    assert config_digest(RunConfig()) == DIGEST
    changed = RunConfig().changed({"federation.combine": "median"})
    assert config_digest(changed) != DIGEST
    assert config_digest(RunConfig().changed({"federation.false_groups": 0.1})) != DIGEST


DIGEST = "7a65953a9670c64baf7a83fdf63c74b2044538a9d49cc38a8ba261fc71577f43"
