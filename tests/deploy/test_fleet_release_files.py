"""The plain files of a round, made from a run directory that somebody else may have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.console_scene import log, make_run
from support.deployment import Deployment

from penchant.common.errors import RunDirectoryError
from penchant.deploy import run_directory
from penchant.deploy.fleet import release_files, served_run
from penchant.deploy.fleet.release_files import _told, write_release
from penchant.server.journal import RoundLog
from penchant.server.journal_reader import JournalReader
from penchant.server.measured import by_round
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


@pytest.mark.parametrize(("round", "measured_in"), [(1, 2), (2, 3), (3, None)])
def test_a_release_carries_the_accuracy_of_its_own_factors_or_none_yet(
    tmp_path: Path, round: int, measured_in: int | None
) -> None:
    directory = make_run(tmp_path / "run", 3)
    journal, config = JournalReader(directory), run_directory.read_config(directory)
    rounds = {one.round: one for one in journal.logs()}
    digest = journal.digest(round)
    told = _told(directory, config, rounds[round], by_round(journal.logs()).get(round), digest)
    next_round = None if measured_in is None else log(measured_in)
    assert (told["round"], told["checkpoint_sha256"], told["measured_in_round"]) == (
        round,
        digest,
        measured_in,
    )
    assert told["val_accuracy"] == (next_round.val_accuracy if next_round else None)
    assert told["train_loss"] == (next_round.train_loss if next_round else None)
    assert told["people"] == rounds[round].survivors
