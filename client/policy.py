"""The owner's policy: what this device accepts, whatever a server says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penchant.client.secagg import SecAggPolicy
from penchant.common.config import Plan
from penchant.common.errors import AgreementError, PolicyRefusal
from penchant.common.messages import Announce, Kind
from penchant.common.protocol import threshold

__all__ = ["OwnerPolicy", "checked_factors"]


@dataclass(frozen=True)
class OwnerPolicy:
    """Set by the device's owner, never by a message.

    min_honest: honest people that every sum must hold; max_colluders: devices of the whole fleet that
    may work with the server; allow_unmasked: whether anything may leave without secure aggregation;
    base_models: the only base models this device loads; max_epochs: passes over the owner's pairs that
    one round may cost; max_factor: largest size of any received number.
    """

    base_models: tuple[str, ...]
    min_honest: int = 10
    max_colluders: int = 2
    allow_unmasked: bool = False
    paused: bool = False
    max_epochs: int = 1000
    max_factor: float = 1e3

    def secagg(self) -> SecAggPolicy:
        """The part of the policy that the role in secure aggregation enforces."""
        return SecAggPolicy(self.min_honest, self.max_colluders, self.allow_unmasked)

    def honest_among(self, n: int) -> int:
        """Honest people that a sum over a group of `n` holds for sure, by this owner's word on colluders."""
        return threshold(n) - self.max_colluders

    def check(self, announce: Announce, plan: Plan) -> None:
        """PolicyRefusal when the owner does not allow what is announced."""
        if self.paused:
            raise PolicyRefusal("paused by the owner")
        if announce.kind is not Kind.SECAGG and not self.allow_unmasked:
            raise PolicyRefusal("the server asks to send unmasked; only the owner's policy may allow that")
        if plan.model.base_model not in self.base_models:
            raise PolicyRefusal(f"base model {plan.model.base_model!r} is not among those the owner allows")
        training = plan.training
        epochs = max(training.local_epochs + training.personal_epochs, training.refit_epochs)
        if epochs > self.max_epochs:
            raise PolicyRefusal(f"{epochs} epochs in one round; the owner allows {self.max_epochs}")


def checked_factors(data: bytes, size: int, largest: float) -> NDArray[np.float32]:
    """The announced factors, float32 [size]; AgreementError unless they are that many, finite and bounded.

    Checked before anything else is done with them (DESIGN section 5).
    """
    if len(data) != 4 * size:
        raise AgreementError(f"factors of {len(data)} bytes came where {size} numbers belong")
    factors = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(factors).all():
        raise AgreementError("the received factors hold values that are not finite")
    if size and float(np.abs(factors).max()) > largest:
        raise AgreementError(f"the received factors exceed {largest:g}; they can't be of a sound run")
    return factors
