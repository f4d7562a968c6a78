"""One algorithm: agents as devices run them, on a served run, give to the bit what the simulation gives.

Without Flower's processes; tests/system/test_superlink.py holds the same for those.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.deployment import Deployment
from support.twin import SIMULATED, check_same, journal, simulate_twin

from penchant.client.agent.flower_app import build_app
from penchant.client.device.device import Device
from penchant.client.learning.model_cache import ModelCache
from penchant.deploy.fleet.served_run import open_served
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.round import federate

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
    check_same(fleet, world)
    with journal(tmp_path / SIMULATED) as simulated:  # and it is a run in which something was learned
        assert all(log.update_norm > 0 for log in simulated.logs()[:-1])
        found = simulated.load()
    assert found is not None
    assert np.abs(found[1].factors).max() > 0
