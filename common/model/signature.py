"""What server and devices must know of a model to agree on vectors, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.common.config import Plan
from penchant.common.model.factors import Split
from penchant.common.model.modules import AdaptedModule, BaseTensor

if TYPE_CHECKING:  # the server needs no backbone
    from penchant.common.model.reward import RewardModel

__all__ = ["ModelSignature"]


@dataclass(frozen=True)
class ModelSignature:
    """The adapted modules, the width of the embedding and the digest of a base model, and which of its
    parameters are trained and shared as well."""

    slots: tuple[AdaptedModule, ...]
    embedding: int
    digest: bytes  # 32 bytes
    base: tuple[BaseTensor, ...] = ()

    @classmethod
    def of(cls, model: RewardModel) -> ModelSignature:
        """The blueprint of a loaded model."""
        return cls(tuple(model.slots), model.embedding, bytes.fromhex(model.digest), model.base)

    def split(self, plan: Plan) -> Split:
        """Which tensors are shared and which personal under `plan`."""
        warmup = plan.phase == "warmup"
        return Split.of(
            self.slots, self.embedding, plan.adapter, base=self.base, warmup=warmup, seed=plan.seed
        )

    def announced(self, plan: Plan) -> int:
        """How many numbers an announcement of `plan` carries: the shared factors, and the common start
        of the personal part where that comes from a warm-up."""
        split = self.split(plan)
        return split.shared.size + (split.personal.size if plan.start_sent else 0)
