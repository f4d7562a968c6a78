"""What server and devices must know of a model to agree on vectors, without its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.common.config import Plan
from penchant.common.errors import RunDirectoryError
from penchant.common.model.factors import Split
from penchant.common.model.modules import AdaptedModule, BaseTensor

if TYPE_CHECKING:  # the server needs no backbone
    from penchant.common.model.reward import RewardModel

__all__ = ["ModelDescription", "ModelSignature"]


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
            self.adapted_modules, self.embedding, plan.adapter, base=self.base, warmup=warmup, seed=plan.seed
        )


@dataclass(frozen=True)
class ModelDescription:
    """A model's signature, and what whoever uses an adapter of it must know: under which name the base model
    is published, how a text's embedding is made, and how many tokens of a text are read; `part` and
    `classifier` as in `Backbone`."""

    signature: ModelSignature
    published: str
    pooling: str
    max_tokens: int
    part: str = ""
    classifier: str = ""

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
        }
        return json.dumps(table, indent=2).encode()

    @classmethod
    def read(cls, path: Path) -> ModelDescription:
        """The description in a file. RunDirectoryError if it can't be read."""
        table = _table(path)
        try:
            rest = str(table["published"]), str(table["pooling"]), int(table["max_tokens"])
            more = (
                str(table.get("part", "")),
                str(table.get("classifier", "model")),
            )  # not in earlier versions' files
        except (ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{path} does not say what an export needs: {error}") from None
        return cls(_signature(path, table), *rest, *more)


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"can't read {path}: {error}") from None
    if not isinstance(table, dict):
        raise RunDirectoryError(f"{path} is damaged: it must hold a JSON object")
    return table


def _signature(path: Path, table: dict[str, Any]) -> ModelSignature:
    try:
        adapted_modules = tuple(AdaptedModule(**module) for module in table["slots"])
        base = tuple(BaseTensor(tensor["name"], tuple(tensor["shape"])) for tensor in table["base"])
        return ModelSignature(adapted_modules, int(table["embedding"]), bytes.fromhex(table["digest"]), base)
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"can't read {path}: {error}") from None
