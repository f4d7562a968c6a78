"""One algorithm: agents as devices run them, on a served run, give to the bit what the simulation gives.

Without Flower's processes; tests/system/test_superlink.py holds the same for those.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import deployment
from support.deployment import Deployment, made_up_choices
from support.twin import SIMULATED, check_same, journal, simulate_twin

from penchant.client.agent.flower_app import build_app
from penchant.client.device.device import Device
from penchant.client.device.preference_store import held_out
from penchant.client.learning.model_cache import ModelCache
from penchant.common.data.preferences import Preference
from penchant.deploy.fleet.served_run import open_served
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.simulation.world import SimulationSetup
from penchant.server.round import federate
from penchant.server.stopping import ends_with

DEVICES = 4
CASES = {
    "plain start": {"federation.cohort": 3, "federation.rounds": 2},
    "warm-up": {"federation.cohort": 3, "federation.rounds": 2, "federation.warmup_rounds": 1},
    "personal A": {"federation.cohort": 4, "federation.rounds": 1, "adapter.share": "B"},
    "a policy": {
        "federation.cohort": 4,
        "federation.rounds": 1,
        "model.objective": "dpo",
        "adapter.target_modules": ["q_proj", "v_proj", "down_proj"],
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_deployed_run_is_the_simulated_one(
    tiny_model: Callable[[str], Path], tiny_writer: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    base = tiny_writer("llama") if case == "a policy" else tiny_model("bert")
    fleet = Deployment(tmp_path, base, DEVICES, CASES[case])
    world = play_both(fleet)
    check_same(fleet, world)
    with journal(tmp_path / SIMULATED) as simulated:  # and it is a run in which something was learned
        assert all(log.update_norm > 0 for log in simulated.logs()[:-1])
        found = simulated.load()
    assert found is not None
    assert np.abs(found[1].factors).max() > 0


def test_it_ends_training_after_the_same_round_with_the_same_best_factors(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out choices say the opposite of what is learned from: every round after the first does worse."""
    monkeypatch.setattr(deployment, "made_up_choices", turned_round_where_held_out)
    rates = {"training.lr_shared": 0.02, "training.lr_head": 0.02, "training.lr_personal": 0.01}
    settings = {"federation.rounds": 12, "federation.stop_after": 2, "training.local_epochs": 1, **rates}
    fleet = Deployment(tmp_path, tiny_model("bert"), DEVICES, settings, choices=60)
    world = play_both(fleet)
    check_same(fleet, world)
    for directory in (fleet.run, tmp_path / SIMULATED):
        with journal(directory) as kept:
            logs = kept.logs()
            assert [log.round for log in logs] == [*range(1, 10), 13], "9 of 12 rounds, and the closing one"
            assert ends_with(fleet.config, logs) == logs[-1].measured_on == 1
            first, last, closing = (kept.load(number) for number in (1, 9, 13))
            assert first is not None
            assert last is not None
            assert closing is not None
            assert np.array_equal(closing[1].factors, first[1].factors)
            assert not np.array_equal(closing[1].factors, last[1].factors)


def turned_round_where_held_out(person: int, count: int) -> list[Preference]:
    return [
        Preference(one.prompt, one.rejected, one.chosen) if held_out(one) else one
        for one in made_up_choices(person, count)
    ]


def play_both(fleet: Deployment) -> SimulationSetup:
    """Simulate the run, and play it with its devices and their server; -> the simulation's setup."""
    fleet.init_server()
    world = simulate_twin(fleet)
    model_cache = ModelCache()
    agents = [Device(folder, model_cache=model_cache).agent() for folder in fleet.homes]
    grid = InProcessGrid(
        build_app(lambda context: agents[int(context.node_config["partition-id"])].answer), DEVICES, workers=1
    )
    run = open_served(fleet.run)
    try:
        federate(run, grid)
    finally:
        grid.close()
        run.journal.close()
    return world
