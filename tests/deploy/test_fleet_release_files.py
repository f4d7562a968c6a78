"""What a release says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.console_scene import log, make_run

from penchant.deploy import run_directory
from penchant.deploy.fleet.release_files import _told
from penchant.server.journal_reader import JournalReader
from penchant.server.measured import by_round


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
