"""A round's shared adapter as one ZIP file of plain files, for a simulation as for a served run.

    adapter_config.json, adapter_model.safetensors   a LoRA adapter in peft's format
    head.safetensors, README.md                      the score head, and how to use both
    shared.safetensors                               the shared tensors alone, by name
    release.json                                     which round of which run, digests and metrics

It knows nobody: personal factors stand at their common start.
``python -m penchant.deploy.fleet.release_files DIR ROUND FILE`` does it in a process of its own, so that
whoever asks need not load torch.
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

from penchant.common.config import Plan, RunConfig
from penchant.common.errors import PenchantError, RunDirectoryError, UsageError
from penchant.common.model.signature import ModelSignature
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.server.journal import Journal, RoundLog

__all__ = ["export_round", "write_release"]

MODEL_SIGNATURE = "blueprint.json"  # of a served run, whose server never loads the model
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same round, the same bytes


@dataclass(frozen=True)
class _Base:
    """What must be known of the base model. published: where whoever loads the adapter finds it."""

    model_signature: ModelSignature
    published: str
    pooling: str
    max_tokens: int


def export_round(directory: Path, round: int, out: Path) -> None:
    """Write the ZIP file `out`: the same round, the same bytes. UsageError as `write_release`, or when `out`
    exists."""
    if out.exists():
        raise UsageError(f"{out} is there already; choose another file")
    with tempfile.TemporaryDirectory(prefix="penchant-release-") as folder:
        files = Path(folder) / "adapter"
        write_release(directory, round, files)
        _pack(files, out)


def write_release(directory: Path, round: int | None, out: Path) -> int:
    """Write the plain files of a round (None: the last that is finished) into `out`; -> the round.

    UsageError when the run shares nothing, the round is not finished, or `out` is in use.
    """
    from safetensors.numpy import save as save_tensors

    from penchant.client.device.export import Export, export_peft

    config = run_directory.read_config(directory)
    if config.adapter.rule.shares_nothing:
        raise UsageError(
            f'this run shares nothing (share "{config.adapter.share}"); there is no adapter that all have'
        )
    with closing(Journal(directory)) as journal:
        found = journal.load(round)
        if found is None:
            which = "no round" if round is None else f"not round {round}"
            raise UsageError(f"{which} of this run is finished yet; there is nothing to export")
        number, shared = found
        log = next(log for log in journal.logs() if log.round == number)
        digest = journal.digest(number)
    plan = _plan(config, number)
    base = _base(directory, plan)
    split = base.model_signature.split(plan)
    start = shared.start if shared.start.size else split.initial(config.seed)[1]
    export_peft(
        Export(
            effective=split.merged(shared.factors, start),
            model=plan.model,
            adapter=plan.adapter,
            base=base.published,
            digest=base.model_signature.digest.hex(),
            pooling=base.pooling,
            max_tokens=base.max_tokens,
            personal=False,
        ),
        out,
    )
    write_durably(out / "shared.safetensors", save_tensors(split.shared.named(shared.factors)))
    told = json.dumps(_told(directory, config, log, digest), indent=2) + "\n"
    write_durably(out / "release.json", told.encode())
    return number


def _plan(config: RunConfig, round: int) -> Plan:
    warming = round <= config.federation.warmup_rounds
    return config.plan("warmup" if warming else "main", max(config.federation.cohort, 1))


def _base(directory: Path, plan: Plan) -> _Base:
    """Of a served run from its blueprint; of a simulation from the model itself."""
    path = directory / MODEL_SIGNATURE
    if not path.is_file():
        from penchant.client.learning.model_cache import ModelCache

        planned = ModelCache().of(plan)
        model = planned.model
        return _Base(planned.model_signature, model.published, model.pooling, model.max_tokens)
    from penchant.common.model.modules import AdaptedModule, BaseTensor

    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        slots = tuple(AdaptedModule(**slot) for slot in table["slots"])
        base = tuple(BaseTensor(tensor["name"], tuple(tensor["shape"])) for tensor in table["base"])
        model_signature = ModelSignature(slots, int(table["embedding"]), bytes.fromhex(table["digest"]), base)
        return _Base(
            model_signature, str(table["published"]), str(table["pooling"]), int(table["max_tokens"])
        )
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
