"""Settings of TRL's trainers for tests: small runs on a processor, quiet, and with penchant's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_a_processor(out: Path | str) -> dict[str, Any]:
    """Those of any trainer: on a CPU in float32, and nothing written, reported or drawn."""
    return {
        "output_dir": str(out),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def as_penchant_trains(out: Path | str, pairs: int, epochs: int, rate: float) -> dict[str, Any]:
    """Those of a trainer of pairs that ends where penchant's own does: AdamW over all pairs at once, once an
    epoch, without decay, a schedule of rates, clipping, or texts that are cut."""
    return on_a_processor(out) | {
        "per_device_train_batch_size": pairs,
        "num_train_epochs": epochs,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1e9,
        "max_length": None,
    }
