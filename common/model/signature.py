"""What server and devices must know of a model to agree on vectors, without its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from penchant.common.config import Plan
from penchant.common.errors import RunDirectoryError
from penchant.common.foreign_files import read_json
from penchant.common.model.factors import AdaptedModule, BaseTensor, Split

if TYPE_CHECKING:  # the server needs no backbone
    from penchant.common.model.reward import RewardModel

__all__ = ["ModelDescription", "ModelSignature"]

_FILE_MOST: Final = 16 * 1024 * 1024  # bytes: the names of some hundred thousand modules
_LENGTH_MOST: Final = 1 << 24  # of a side of a tensor: beyond any vocabulary


@dataclass(frozen=True)
class ModelSignature:
    """The adapted modules, the width of the embedding and the digest of a base model, and which of its
    parameters are trained and shared as well."""

    adapted_modules: tuple[AdaptedModule, ...]
    embedding: int
    digest: bytes  # 32 bytes
    base: tuple[BaseTensor, ...] = ()

    @classmethod
    def of(cls, model: RewardModel) -> ModelSignature:
        """The blueprint of a loaded model."""
        return cls(tuple(model.adapted_modules), model.embedding, bytes.fromhex(model.digest), model.base)

    @classmethod
    def read(cls, path: Path) -> ModelSignature:
        """The signature in a file of a `ModelDescription`. RunDirectoryError if it can't be read."""
        return _signature(path, _table(path))

    def split(self, plan: Plan) -> Split:
        """Which tensors are shared and which personal under `plan`."""
        warmup = plan.phase == "warmup"
        return Split.of(
            self.adapted_modules,
            self.embedding,
            plan.adapter,
            head=plan.head,
            base=self.base,
            warmup=warmup,
            seed=plan.seed,
        )


@dataclass(frozen=True)
class ModelDescription:
    """A model's signature, and what whoever uses an adapter of it must know: under which name the base model
    is published, how a text's embedding is made, and how many tokens of a text are read; `part`,
    `classifier`, `padding` and `writer` as in `Backbone`; templated: whether a policy's prompts were put into
    the base model's chat template."""

    signature: ModelSignature
    published: str
    pooling: str
    max_tokens: int
    part: str = ""
    classifier: str = ""
    padding: str = ""
    writer: str = ""
    templated: bool = False

    @classmethod
    def of(cls, model: RewardModel) -> ModelDescription:
        """The description of a loaded model."""
        return cls(
            ModelSignature.of(model),
            model.published,
            model.pooling,
            model.max_tokens,
            model.part,
            model.classifier,
            model.padding,
            model.writer,
            model.prompts.templated,
        )

    def encode(self) -> bytes:
        """The description as JSON, for a file in a run's directory."""
        signature = self.signature
        table = {
            "slots": [asdict(module) for module in signature.adapted_modules],
            "base": [asdict(tensor) for tensor in signature.base],
            "embedding": signature.embedding,
            "digest": signature.digest.hex(),
            "published": self.published,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "part": self.part,
            "classifier": self.classifier,
            "padding": self.padding,
            "writer": self.writer,
            "templated": self.templated,
        }
        return json.dumps(table, indent=2).encode()

    @classmethod
    def read(cls, path: Path) -> ModelDescription:
        """The description in a file. RunDirectoryError if it can't be read."""
        table = _table(path)
        published, pooling, tokens = (table.get(key) for key in ("published", "pooling", "max_tokens"))
        part, classifier = table.get("part", ""), table.get("classifier", "model")  # not in older files
        writer, templated = table.get("writer", ""), table.get("templated", False)
        if not (_is_name(published) and _is_name(pooling) and _is_length(tokens)):
            raise RunDirectoryError(f"{path} does not say what an export needs, or says it wrongly")
        padding = table.get("padding", "")  # without it there is no classifier
        if not (_is_name(part) and _is_name(classifier) and _is_name(padding) and _is_name(writer)):
            raise RunDirectoryError(f"{path} does not say what an export needs, or says it wrongly")
        return cls(
            _signature(path, table),
            published,
            pooling,
            tokens,
            part,
            classifier,
            padding,
            writer,
            templated is True,
        )


def _table(path: Path) -> dict[str, Any]:
    """The table in a file, which may be somebody else's."""
    try:
        table = read_json(path, RunDirectoryError, _FILE_MOST)
    except FileNotFoundError:
        raise RunDirectoryError(f"can't read {path}: there is no such file") from None
    if not isinstance(table, dict):
        raise RunDirectoryError(f"{path} is damaged: it must hold a JSON object")
    return table


def _signature(path: Path, table: dict[str, Any]) -> ModelSignature:
    try:
        adapted_modules = tuple(AdaptedModule(**module) for module in table["slots"])
        base = tuple(BaseTensor(tensor["name"], tuple(tensor["shape"])) for tensor in table["base"])
        signature = ModelSignature(adapted_modules, table["embedding"], bytes.fromhex(table["digest"]), base)
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"can't read {path}: {error}") from None
    if not _is_sound(signature):
        raise RunDirectoryError(f"{path} is damaged: no base model has such names, sizes or such a digest")
    return signature


def _is_sound(signature: ModelSignature) -> bool:
    modules, base = signature.adapted_modules, signature.base
    names = [module.name for module in modules] + [tensor.name for tensor in base]
    lengths = [signature.embedding, *(side for tensor in base for side in tensor.shape)]
    lengths += [side for module in modules for side in (module.in_features, module.out_features)]
    named = all(map(_is_name, names)) and len(set(names)) == len(names)
    return named and all(map(_is_length, lengths)) and len(signature.digest) == 32


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.isprintable()


def _is_length(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _LENGTH_MOST
