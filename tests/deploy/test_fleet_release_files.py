"""The plain files of a round, made from a run directory that somebody else may have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.deployment import Deployment

from penchant.common.errors import RunDirectoryError
from penchant.deploy import run_directory
from penchant.deploy.fleet import release_files, served_run
from penchant.deploy.fleet.release_files import write_release
from penchant.server.journal import RoundLog
from penchant.server.optimizers import ServerState


@pytest.fixture
def served(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """The directory of a served run with one finished round."""
    fleet, directory = Deployment(tmp_path, tiny_model("bert"), 3), tmp_path / "run-1"
    public = (tmp_path / "authority" / "authority.pub").read_bytes()
    served_run.create(directory, fleet.config, public, fleet.authority_store.latest())
    fleet.sign_run(directory)
    run = served_run.open_served(directory)
    factors = run.model_signature.split(fleet.config.plan("main", 3)).initial(0)[0]
    run.journal.begin(1, "main")
    log = RoundLog(1, 1, "main", 3, 3, {}, 0.0, 0, 0, 1, None, None, None, 1.0)
    run.journal.finish(log, ServerState.begin(factors, np.zeros(0, np.float32)))
    run.journal.close()
    return directory


def test_a_model_of_other_sizes_than_the_checkpoints_is_refused_before_it_is_made(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_files, "_PERSONAL_MOST", 10_000)
    assert write_release(served, None, tmp_path / "sound") == 1
    path = served / run_directory.MODEL_SIGNATURE
    sound = json.loads(path.read_text(encoding="utf-8"))
    for changed in ({"in_features": 20_000}, {"out_features": 20_000}):  # of A, shared; of B, personal
        modules = [module | changed for module in sound["slots"]]
        path.write_text(json.dumps(sound | {"slots": modules}), encoding="utf-8")
        with pytest.raises(RunDirectoryError, match="its checkpoint is of another model"):
            write_release(served, None, tmp_path / "out")
        assert not (tmp_path / "out").exists()
