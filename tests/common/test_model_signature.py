"""The description of a base model in a run's directory: what was written is read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.common.errors import RunDirectoryError
from penchant.common.model.factors import AdaptedModule, BaseTensor
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
        "padding",
        "writer",
        "templated",
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


MODULE = {"name": "block.dense", "in_features": 3, "out_features": 4}
HOSTILE: dict[str, str | dict[str, object]] = {
    "deep": "[" * 100_000,
    "deep modules": '{"slots": ' + "[" * 100_000,
    "a size in words": {"slots": [MODULE | {"in_features": "3"}]},
    "a size with a point": {"slots": [MODULE | {"in_features": 3.0}]},
    "a size that is a truth": {"slots": [MODULE | {"in_features": True}]},
    "no size": {"slots": [MODULE | {"out_features": 0}]},
    "a huge size": {"slots": [MODULE | {"in_features": 10**12}]},
    "a name that is none": {"slots": [MODULE | {"name": 5}]},
    "a name that steers a terminal": {"slots": [MODULE | {"name": "\x1b[2J"}]},
    "a name twice": {"slots": [MODULE, MODULE]},
    "a huge embedding": {"embedding": 10**15},
    "a negative embedding": {"embedding": -1},
    "an embedding without end": '{"slots": [], "base": [], "embedding": 1e999, "digest": ""}',
    "a short digest": {"digest": "00"},
    "a shape of words": {"base": [{"name": "norm.weight", "shape": ["a"]}]},
    "a huge shape": {"base": [{"name": "norm.weight", "shape": [10**9, 10**9]}]},
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_somebody_elses_description_is_checked(tmp_path: Path, content: str | dict[str, object]) -> None:
    path = tmp_path / "blueprint.json"
    path.write_bytes(ModelDescription(SIGNATURE, "somebody/something", "mean", 256).encode())
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text(encoding="utf-8")) | content)
    path.write_text(content, encoding="utf-8")
    for kind in (ModelSignature, ModelDescription):
        with pytest.raises(RunDirectoryError, match=r"blueprint\.json") as refused:
            kind.read(path)
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize("changed", [{"published": "a\nb"}, {"pooling": 7}, {"max_tokens": -1}])
def test_what_goes_into_an_export_is_checked(tmp_path: Path, changed: dict[str, object]) -> None:
    path = tmp_path / "blueprint.json"
    described = json.loads(ModelDescription(SIGNATURE, "somebody/something", "mean", 256).encode())
    path.write_text(json.dumps(described | changed), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match="what an export needs"):
        ModelDescription.read(path)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(ModelDescription(SIGNATURE, "a/b", "mean", 256).encode())
    (tmp_path / "blueprint.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        ModelSignature.read(tmp_path / "blueprint.json")
