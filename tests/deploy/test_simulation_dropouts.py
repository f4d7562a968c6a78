"""Simulated devices that fall silent: how many, when, and that all else goes on as with real ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tastes import small_run, write_choices

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, TooManyDropouts
from penchant.common.secagg.stages import EXCHANGES, PLAIN_EXCHANGES
from penchant.common.wire.flower import message_type
from penchant.deploy import run_directory
from penchant.deploy.cli.show_simulation import _told_of_dropouts
from penchant.deploy.simulation.dropouts import Dropouts
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare
from penchant.server.journal import Journal

PEOPLE = 12
MODELS = ModelCache()


def first_silence(dropouts: Dropouts, node: int, group: str) -> str | None:
    """The exchange from which on a device is silent; None where it answers to all."""
    stages = EXCHANGES if dropouts.masked else PLAIN_EXCHANGES
    silent = [stage for stage in stages if dropouts(node, message_type(stage), group)]
    assert silent == list(stages[len(stages) - len(silent) :]), "whoever falls silent stays so"
    return silent[0] if silent else None


@pytest.mark.parametrize("masked", [True, False])
def test_as_many_as_asked_for_and_in_every_exchange_alike(masked: bool) -> None:
    dropouts = Dropouts(0.3, seed=1, masked=masked)
    found = Counter(first_silence(dropouts, node, f"{round}.1") for node in range(200) for round in range(20))
    assert pytest.approx(4000 - found.pop(None), rel=0.1) == 0.3 * 4000
    stages = EXCHANGES if masked else PLAIN_EXCHANGES
    assert set(found) == set(stages)
    assert np.array(list(found.values())) == pytest.approx(1200 / len(stages), rel=0.25)


def test_each_attempt_is_drawn_anew_and_the_same_again() -> None:
    one, same, other = Dropouts(0.5, 1, True), Dropouts(0.5, 1, True), Dropouts(0.5, 2, True)
    nodes = range(50)

    def silent(dropouts: Dropouts, group: str) -> list[str | None]:
        return [first_silence(dropouts, node, group) for node in nodes]

    assert silent(one, "3.1") == silent(same, "3.1")
    assert silent(one, "3.1") != silent(one, "3.2")
    assert silent(one, "3.1") != silent(other, "3.1")


def test_a_run_that_ends_by_its_dropouts_says_what_to_do(tmp_path: Path) -> None:
    silenced = RunConfig().changed({"federation.dropout": 0.4})
    with pytest.raises(TooManyDropouts) as ended, _told_of_dropouts(silenced, tmp_path / "run"):
        raise TooManyDropouts("4 of 4 devices lost by stage shares")
    assert str(ended.value) == "4 of 4 devices lost by stage shares"
    assert f"--dropout 0.4 silences so many: go on with --resume {tmp_path / 'run'}" in (
        ended.value.on_command_line
    )
    assert "--attempts" in ended.value.on_command_line
    with pytest.raises(TooManyDropouts) as ended, _told_of_dropouts(RunConfig(), tmp_path / "run"):
        raise TooManyDropouts("4 of 4 devices lost by stage shares")
    assert ended.value.on_command_line == str(ended.value)


def test_readiness_is_always_told() -> None:
    assert not any(Dropouts(0.5, 0, True)(node, message_type("status"), "1.1") for node in range(100))


def test_ray_is_refused() -> None:
    with pytest.raises(ConfigError, match="dropout"):
        RunConfig().changed({"federation.dropout": 0.1, "grid": "ray"})


@pytest.mark.parametrize("secagg", [True, False], ids=["masked", "plain"])
def test_a_run_ends_with_those_who_are_left(
    tiny_model: Callable[[str], Path], tmp_path: Path, secagg: bool
) -> None:
    choices = tmp_path / "choices.jsonl"
    write_choices(choices, [8] * PEOPLE)
    base: dict[str, Any] = small_run(tiny_model("bert"), choices, PEOPLE, epochs=1)
    more = {"federation.dropout": 0.15, "federation.rounds": 3, "federation.attempts": 20}
    config = RunConfig().changed(base | more | {"privacy.secagg": secagg})
    results = []
    for name in ("one", "again"):
        run_directory.create(tmp_path / name, config)
        results.append(simulate(prepare(config, MODELS), tmp_path / name, command="test"))
    assert results[0].accuracy == results[1].accuracy
    rounds = [(log.attempt, log.survivors) for log in results[0].rounds_log]
    assert rounds == [(log.attempt, log.survivors) for log in results[1].rounds_log]
    journal = Journal(tmp_path / "one")
    try:
        expected = [expect(config, log.round, log.attempt, secagg) for log in journal.logs()]
        lost = [{stage: n for stage, n in log.dropped.items() if n} for log in journal.logs()]
    finally:
        journal.close()
    assert lost == expected
    assert any(expected)


def expect(config: RunConfig, round: int, attempt: int, masked: bool) -> dict[str, int]:
    """Exchange -> how many of all devices are drawn to fall silent in it."""
    dropouts = Dropouts(config.federation.dropout, config.seed, masked)
    drawn = Counter(first_silence(dropouts, 1000 + index, f"{round}.{attempt}") for index in range(PEOPLE))
    return {stage: drawn[stage] for stage in EXCHANGES if drawn[stage]}
