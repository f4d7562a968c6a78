"""A round's shared adapter as one ZIP file of plain files, for a simulation as for a served run.

    adapter_config.json, adapter_model.safetensors   a LoRA adapter in peft's format
    head.safetensors, README.md                      the score head, and how to use both
    shared.safetensors                               the shared tensors alone, by name
    release.json                                     which round of which run, digests and metrics

Personal factors are at their common start. What the shared ones hold of people who were in its rounds stays,
also of those who were revoked since: release.json counts them.
``python -m penchant.deploy.fleet.release_files DIR ROUND FILE`` does it in a separate process, so that
whoever asks need not load torch.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penchant.common.config import Plan, RunConfig
from penchant.common.errors import PenchantError, RunDirectoryError, UsageError
from penchant.common.model.signature import ModelDescription
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.deploy.error_report import ErrorReport
from penchant.deploy.fleet.revoked_members import revoked_behind
from penchant.server.journal import RoundLog
from penchant.server.journal_reader import JournalReader
from penchant.server.measured import Measurement, by_round

__all__ = ["export_round", "write_release"]

_PERSONAL_MOST = 1 << 26  # numbers, 256 MB of them, where a run's directory says how many there are
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content, the same bytes


def export_round(directory: Path, round: int, out: Path) -> None:
    """Write the ZIP file `out`: the same round and member list, the same bytes. UsageError as
    `write_release`, or when `out` exists."""
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
            f'this run shares nothing (share "{config.adapter.share}"); there is no shared adapter'
        )
    journal = JournalReader(directory)
    found = journal.load(round)
    if found is None:
        which = "no round" if round is None else f"not round {round}"
        raise UsageError(f"{which} of this run is finished yet; there is nothing to export")
    number, shared = found
    logs = journal.logs()
    log = next(log for log in logs if log.round == number)
    digest = journal.digest(number)
    plan = _plan(config, number)
    base = _described(directory, plan)
    split = base.signature.split(plan)
    if split.shared.size != shared.factors.size or split.personal.size > _PERSONAL_MOST:
        raise RunDirectoryError(f"{directory} is damaged: its checkpoint is of another model than it says")
    start = shared.start if shared.start.size else split.initial(config.seed)[1]
    export_peft(
        Export(
            effective=split.merged(shared.factors, start),
            model=plan.model,
            adapter=plan.adapter,
            base=base.published,
            digest=base.signature.digest.hex(),
            pooling=base.pooling,
            max_tokens=base.max_tokens,
            part=base.part,
            classifier=base.classifier,
            padding=base.padding,
            writer=base.writer,
            templated=base.templated,
            personal=False,
            release=True,
            cost=_cost(journal, number),
        ),
        out,
    )
    write_durably(out / "shared.safetensors", save_tensors(split.shared.named(shared.factors)))
    told = json.dumps(_told(directory, config, log, by_round(logs).get(number), digest), indent=2) + "\n"
    write_durably(out / "release.json", told.encode())
    return number


def _plan(config: RunConfig, round: int) -> Plan:
    warming = round <= config.federation.warmup_rounds
    return config.plan("warmup" if warming else "main", max(config.federation.cohort, 1))


def _described(directory: Path, plan: Plan) -> ModelDescription:
    """Of a served run from a file, since its server never loads the model; else from the model itself."""
    path = directory / run_directory.MODEL_SIGNATURE
    if path.is_file():
        return ModelDescription.read(path)
    from penchant.client.learning.model_cache import ModelCache

    return ModelDescription.of(ModelCache().of(plan).model)


def _told(
    directory: Path, config: RunConfig, log: RoundLog, measured: Measurement | None, digest: str | None
) -> dict[str, Any]:
    journal = JournalReader(directory)
    figures, revoked = journal.privacy(), revoked_behind(directory, log.round)
    return {
        "run": directory.absolute().name,
        "round": log.round,
        "phase": log.phase,
        "checkpoint_sha256": digest,
        "share": config.adapter.share,
        "people": log.survivors,
        "train_loss": None if measured is None else measured.train_loss,
        "val_accuracy": None if measured is None else measured.accuracy,
        "val_accuracy_error": None if measured is None else measured.error,
        "measured_in_round": None if measured is None else measured.log.round,  # with its devices
        "dp": None if figures is None else figures.to_dict(),  # of this run alone
        "begins_with": journal.fact("from"),  # whose own cost in privacy adds to that
        "revoked": None if revoked is None else asdict(revoked),
    }


def _cost(journal: JournalReader, round: int) -> str:
    """What the release of a round may tell of one person, for its card."""
    figures, before = journal.privacy(), journal.fact("from")
    if figures is None:
        return (
            "Differential privacy: none. Sums were exact, and no epsilon bounds what it tells of one person."
        )
    tries = sum(attempt.round <= round for attempt in journal.attempts())
    told = f"Differential privacy: up to this round it has cost each person at most {figures.words(tries)}."
    return (
        f"{told} What the run that it began with (`begins_with`) has cost comes on top." if before else told
    )


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
        ErrorReport.of(error).write()
        return error.exit_code if isinstance(error, PenchantError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
