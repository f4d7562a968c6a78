"""A round's shared adapter as one ZIP file of plain files, for a simulation as for a served run.

    adapter_config.json, adapter_model.safetensors   a LoRA adapter in peft's format
    head.safetensors, README.md                      the score head, and how to use both
    shared.safetensors                               the shared tensors alone, by name
    release.json                                     which round of which run, digests and metrics

It knows nobody: personal factors stand at their common start. ``python -m penchant.deploy.releasing DIR ROUND
FILE`` does it in a process of its own, so that whoever asks need not load torch.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.common.blueprint import Blueprint
from penchant.common.config import Plan, RunConfig
from penchant.common.errors import PenchantError, RunDirectoryError, UsageError
from penchant.deploy import rundir
from penchant.server.journal import Journal, RoundLog

__all__ = ["export_round"]

BLUEPRINT = "blueprint.json"  # of a served run, whose server never loads the model
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same round, the same bytes


@dataclass(frozen=True)
class _Base:
    """What must be known of the base model. published: where whoever loads the adapter finds it."""

    blueprint: Blueprint
    published: str
    pooling: str
    max_tokens: int


def export_round(directory: Path, round: int, out: Path) -> None:
    """Write the ZIP file `out`. UsageError when the round has no adapter to give, or `out` exists."""
    from safetensors.numpy import save as save_tensors

    from penchant.client.export import Export, export_peft

    config = rundir.read_config(directory)
    if config.adapter.share == "none":
        raise UsageError('this run shares nothing (share "none"); there is no adapter that all have')
    if out.exists():
        raise UsageError(f"{out} is there already; choose another file")
    with closing(Journal(directory)) as journal:
        found = journal.load(round)
        logs = {log.round: log for log in journal.logs()}
        digest = journal.digest(round)
    if found is None:
        raise UsageError(f"round {round} of this run is not finished; there is nothing to export")
    shared = found[1]
    plan = _plan(config, round)
    base = _base(directory, plan)
    split = base.blueprint.split(plan)
    start = shared.start if shared.start.size else split.initial(config.seed)[1]
    with tempfile.TemporaryDirectory(prefix="penchant-release-") as folder:
        files = Path(folder) / "adapter"
        export_peft(
            Export(
                effective=split.merged(shared.factors, start),
                model=plan.model,
                adapter=plan.adapter,
                base=base.published,
                digest=base.blueprint.digest.hex(),
                pooling=base.pooling,
                max_tokens=base.max_tokens,
                personal=False,
            ),
            files,
        )
        (files / "shared.safetensors").write_bytes(save_tensors(split.shared.named(shared.factors)))
        told = _told(directory, config, logs[round], digest)
        (files / "release.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        _pack(files, out)


def _plan(config: RunConfig, round: int) -> Plan:
    warming = round <= config.federation.warmup_rounds
    return config.plan("warmup" if warming else "main", max(config.federation.cohort, 1))


def _base(directory: Path, plan: Plan) -> _Base:
    """Of a served run from its blueprint; of a simulation from the model itself."""
    path = directory / BLUEPRINT
    if not path.is_file():
        from penchant.client.bench import Benches

        bench = Benches().of(plan)
        model = bench.model
        return _Base(bench.blueprint, model.published, model.pooling, model.max_tokens)
    from penchant.common.adapters import BaseTensor, Slot

    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        slots = tuple(Slot(**slot) for slot in table["slots"])
        base = tuple(BaseTensor(tensor["name"], tuple(tensor["shape"])) for tensor in table["base"])
        blueprint = Blueprint(slots, int(table["embedding"]), bytes.fromhex(table["digest"]), base)
        return _Base(blueprint, str(table["published"]), str(table["pooling"]), int(table["max_tokens"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path} does not tell what an export needs: {error}") from None


def _told(directory: Path, config: RunConfig, log: RoundLog, digest: str | None) -> dict[str, Any]:
    return {
        "run": directory.absolute().name,
        "round": log.round,
        "phase": log.phase,
        "checkpoint_sha256": digest,
        "share": config.adapter.share,
        "people": log.survivors,
        "train_loss": log.train_loss,
        "val_accuracy": log.val_accuracy,
    }


def _pack(folder: Path, out: Path) -> None:
    partial = out.with_name(f".{out.name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    partial.replace(out)


def main(words: list[str]) -> int:
    """DIR ROUND FILE; -> the exit code."""
    try:
        directory, round, out = words
        export_round(Path(directory), int(round), Path(out))
    except (PenchantError, OSError, ValueError) as error:
        print(f"penchant: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code if isinstance(error, PenchantError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
