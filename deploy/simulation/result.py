"""What a simulation ends with: the figures of result.json."""

from __future__ import annotations

import resource
import shlex
import sys
import tomllib

import numpy as np

from penchant.common.config import config_digest
from penchant.deploy import run_directory
from penchant.deploy.simulation.devices import Score
from penchant.deploy.simulation.world import Row, SimulationSetup
from penchant.server.journal import Journal, RoundLog


def result_row(
    world: SimulationSetup,
    journal: Journal,
    scores: list[Score],
    curve: list[Row] | None,
    wall: float,
    command: str,
) -> Row:
    """What result.json holds (docs/runs.md), and what the report shows beside it."""
    config = world.config
    plan = config.plan("main", world.cohort)
    planned = world.model_cache.of(plan)
    logs = [log for log in journal.logs() if log.phase != "close"]
    return {
        "dataset": world.federation.name,
        "base_model": config.model.base_model,
        "share": config.adapter.share,
        "head": config.adapter.rule.head(config.adapter.head).value,
        "clients": len(world.federation.people),
        "pairs": config.data.pairs,
        "rounds": config.federation.rounds,
        "seed": config.seed,
        "secagg": config.privacy.secagg,
        "dp": None,
        "evaluated_on": config.data.evaluate,
        "accuracy": {
            "personal": float(np.mean([score.accuracy for score in scores])),
            "cold_start": curve[-1]["mean"] if curve else None,
        },
        "cold_start": curve,
        "per_client": [
            {"client": score.client, "n_test": score.n_test, "accuracy": score.accuracy} for score in scores
        ],
        "rounds_log": [_round_row(log) for log in logs],
        "wall_seconds": wall,
        "peak_rss_mb": _peak_rss_mb(),
        "command": command or shlex.join(["penchant", *sys.argv[1:]]),
        "config": tomllib.loads(config.to_toml()),
        "versions": run_directory.versions(),
        "digests": {
            "configuration": config_digest(config),
            "data": world.federation.digest,
            "base model": planned.model.digest,
        },
        "caveats": list(world.caveats()),
        "shared_tensors": [
            {"name": spec.name, "shape": list(spec.shape)} for spec in planned.split.shared.specs
        ],
    }


def _round_row(log: RoundLog) -> Row:
    return {
        "round": log.round,
        "attempt": log.attempt,
        "phase": log.phase,
        "cohort": log.cohort,
        "survivors": log.survivors,
        "seconds": log.seconds,
        "bytes_up": log.bytes_up,
        "bytes_down": log.bytes_down,
        "train_loss": log.train_loss,
        "val_accuracy": log.val_accuracy,
        "histogram": log.histogram,
    }


def _peak_rss_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
