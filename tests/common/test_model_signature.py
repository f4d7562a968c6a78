"""The description of a base model in a run's directory: what was written is read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.common.errors import RunDirectoryError
from penchant.common.model.modules import AdaptedModule, BaseTensor
from penchant.common.model.signature import ModelDescription, ModelSignature

SIGNATURE = ModelSignature(
    (AdaptedModule("block.dense", 3, 4),), 3, bytes(range(32)), (BaseTensor("norm.weight", (3,)),)
)


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    described = ModelDescription(SIGNATURE, "somebody/something", "mean", 256)
    path = tmp_path / "blueprint.json"
    path.write_bytes(described.encode())
    assert ModelDescription.read(path) == described
    assert ModelSignature.read(path) == SIGNATURE
    table = json.loads(path.read_text(encoding="utf-8"))
    assert list(table) == [
        "slots",
        "base",
        "embedding",
        "digest",
        "published",
        "pooling",
        "max_tokens",
        "part",
        "classifier",
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"slots": 1}', '{"slots": [{}], "base": []}'])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "blueprint.json"
    path.write_text(text, encoding="utf-8")
    for kind in (ModelSignature, ModelDescription):
        with pytest.raises(RunDirectoryError, match=r"blueprint\.json"):
            kind.read(path)
    with pytest.raises(RunDirectoryError, match="can't read"):
        ModelSignature.read(tmp_path / "absent")
