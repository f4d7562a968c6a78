"""The owner's policy: what this device accepts, whatever a server says."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray

from penchant.client.secagg import SecAggPolicy
from penchant.client.vault.ownership import read_owned
from penchant.common.config import Plan
from penchant.common.errors import AgreementError, ConfigError, PolicyRefusal
from penchant.common.secagg.transcript import threshold
from penchant.common.settings import Section, build_section, section_table
from penchant.common.wire.messages import Announce, Kind

__all__ = ["OwnerPolicy", "checked_factors"]


@dataclass(frozen=True)
class OwnerPolicy(Section):
    """Set by the device's owner, never by a message.

    Attributes:
        base_models: the only base models that this device loads.
        min_honest: how many honest people every sum must hold.
        max_colluders: how many devices of the whole fleet may work with the server.
        allow_unmasked: whether anything may leave without secure aggregation.
        paused: whether the device takes part in nothing for now.
        hours: the local times of day between which it takes part, such as "22:00-06:30"; empty for always.
        max_epochs: how many passes over the owner's pairs one round may cost.
        max_factor: the largest absolute value of any received number.
        max_message_mb: the largest size of one message, in MB.
    """

    base_models: tuple[str, ...] = ("all-MiniLM-L6-v2",)
    min_honest: int = 10
    max_colluders: int = 2
    allow_unmasked: bool = False
    paused: bool = False
    hours: str = ""
    max_epochs: int = 1000
    max_factor: float = 1e3
    max_message_mb: int = 64

    def _check(self) -> None:
        self._range("min_honest", 1, 100_000)
        self._range("max_colluders", 0, 100_000)
        self._range("max_epochs", 1, 1_000_000)
        self._range("max_factor", 1e-3, 1e9)
        self._range("max_message_mb", 1, 512)
        if self.hours:
            _span(self.hours)

    @classmethod
    def _title(cls) -> str:
        return "policy"

    @classmethod
    def read(cls, path: Path) -> OwnerPolicy:
        """The policy in a TOML file; ConfigError for an unknown key, a bad value, an unreadable file, or one
        that others can write."""
        try:
            table = tomllib.loads(read_owned(path))
        except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no TOML
            raise ConfigError(f"can't read the owner's policy {path}: {error}") from None
        return build_section(cls, table, "")

    def to_toml(self) -> str:
        """The whole policy, defaults included."""
        return tomli_w.dumps(section_table(self))

    def ready(self, now: datetime) -> bool:
        """Whether the device takes part at `now` (local time)."""
        return not self.paused and self._within(now.time())

    def _within(self, now: time) -> bool:
        if not self.hours:
            return True
        start, end = _span(self.hours)
        return start <= now < end if start <= end else now >= start or now < end

    def secagg(self) -> SecAggPolicy:
        """The part of the policy that the role in secure aggregation enforces."""
        return SecAggPolicy(self.min_honest, self.max_colluders, self.allow_unmasked)

    def honest_among(self, n: int) -> int:
        """Honest people that a sum over a group of `n` holds for sure, by this owner's word on colluders."""
        return threshold(n) - self.max_colluders

    def check(self, announce: Announce, plan: Plan) -> None:
        """PolicyRefusal when the owner does not allow what is announced."""
        self.check_time()
        if announce.kind is not Kind.SECAGG and not self.allow_unmasked:
            raise PolicyRefusal("the server asks to send unmasked; only the owner's policy may allow that")
        if plan.model.base_model not in self.base_models:
            raise PolicyRefusal(f"base model {plan.model.base_model!r} is not among those the owner allows")
        if plan.training.epochs > self.max_epochs:
            raise PolicyRefusal(
                f"{plan.training.epochs} epochs in one round; the owner allows {self.max_epochs}"
            )

    def check_time(self, *, sent: bool = False) -> None:
        """PolicyRefusal while paused, or outside the hours. A round whose vector was `sent` already may be
        finished outside the hours; a pause holds at once."""
        if self.paused:
            raise PolicyRefusal("paused by the owner")
        if not sent and not self._within(datetime.now().time()):
            raise PolicyRefusal(f"outside the hours that the owner allows, {self.hours}")


def _span(hours: str) -> tuple[time, time]:
    """("HH:MM-HH:MM") -> start and end; ConfigError for anything else."""
    try:
        start, end = (time.fromisoformat(part.strip()) for part in hours.split("-"))
        if start.tzinfo or end.tzinfo:
            raise ValueError("hours are local times")
    except ValueError:
        raise ConfigError(f'policy.hours is "{hours}"; write it like "22:00-06:30"') from None
    return start, end


def checked_factors(data: bytes, size: int, largest: float) -> NDArray[np.float32]:
    """The announced factors, float32 [size]; AgreementError unless they are that many, finite and bounded.

    Checked before anything else is done with them (docs/threat-model.md#attack-defence-test).
    """
    if len(data) != 4 * size:
        raise AgreementError(f"factors of {len(data)} bytes came where {size} numbers belong")
    factors = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(factors).all():
        raise AgreementError("the received factors hold values that are not finite")
    if size and float(np.abs(factors).max()) > largest:
        raise AgreementError(f"the received factors exceed {largest:g}; they can't be of a sound run")
    return factors
