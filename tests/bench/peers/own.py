"""penchant's own simulation: `python -m bench.peers.own TASK RESULT SECAGG BATCH_PEOPLE`.

All of `penchant.simulate`: agents with their vaults, the journal, the record of all messages, the result.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from bench.peers.task import Result, Task

import penchant
from penchant.common.config import RunConfig
from penchant.server.journal_reader import JournalReader


def main() -> None:
    """Simulate in this process, one person at a time."""
    torch.set_num_threads(1)
    task, secagg, batch_people = Task.read(Path(sys.argv[1])), int(sys.argv[3]), int(sys.argv[4])
    changes = {"privacy.secagg": bool(secagg), "batch_people": batch_people, "workers": 1}
    config = RunConfig.from_toml(task.own_settings).changed(changes)
    found = penchant.simulate(config.data.dataset, config)
    last = JournalReader(found.directory).load(task.rounds)
    if last is None or found.accuracy is None:
        raise RuntimeError("the run ended without a result")
    Result(found.accuracy, {"shared": last[1].factors.tolist()}).write(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
