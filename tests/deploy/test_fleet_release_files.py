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
from penchant.common.privacy.accounting import rho_of
from penchant.deploy import run_directory
from penchant.deploy.fleet import release_files, served_run
from penchant.deploy.fleet.release_files import _told, write_release
from penchant.server.journal import Journal, RoundLog
from penchant.server.journal_reader import JournalReader
from penchant.server.measured import by_round
from penchant.server.optimizers import ServerState
from penchant.server.privacy_figures import FACT, PrivacyFigures


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


def test_the_card_says_what_a_release_has_cost_each_person(served: Path, tmp_path: Path) -> None:
    """One of four sums: a fourth of rho, whose epsilon is 3.58 where that of all is 8."""
    write_release(served, None, tmp_path / "exact")
    card = (tmp_path / "exact" / "README.md").read_text(encoding="utf-8")
    assert "Differential privacy: none. Sums were exact, and no epsilon bounds" in card
    journal = Journal(served)
    rho = rho_of(8.0, 1e-5) / 4
    journal.note(FACT, PrivacyFigures(8.0, 1e-5, 1.0, 4, 10, rho, 0.5).encode())
    journal.close()
    write_release(served, None, tmp_path / "noised")
    card = (tmp_path / "noised" / "README.md").read_text(encoding="utf-8")
    cost = "up to this round it has cost each person at most epsilon 3.58 of 8, delta 1e-05."
    assert f"\nDifferential privacy: {cost}\n" in card
    assert "comes on top" not in card
    journal = Journal(served)
    journal.note("from", "run:2 0123")
    journal.close()
    write_release(served, None, tmp_path / "continued")
    card = (tmp_path / "continued" / "README.md").read_text(encoding="utf-8")
    assert f"{cost} What the run that it began with (`begins_with`) has cost comes on top." in card


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
