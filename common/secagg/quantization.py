"""Real numbers to ring elements and back, so that no sum can overflow and every count stays exact.

A device's update u (|u| <= C elementwise) counts with an integer weight w <= W. Both sides choose from the
same public bounds a step s and a ring: w*u is rounded to a multiple of s, a signed integer of at most L =
W*C/s, and n*L < 2^(ring - 1), so the sum of any n devices is below half the ring and read back exactly
(centred). Rounding is stochastic and unbiased: x goes up with the probability of its fractional part.
Counters (weight, correct, total, a loss in fixed point, histogram bins) travel behind the update, exactly.

Errors: one device's rounding error is below s in each element and has mean 0, so the sum's is below n*s,
and its standard deviation at most sqrt(n)*s/2; divide by the total weight for the mean's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import derive
from penchant.common.crypto.masks import Ring, ring_type
from penchant.common.errors import QuantiserError

__all__ = ["FLOOR", "Counter", "Quantiser", "uniform_words"]

FLOOR: Final = 1 << 10  # least steps between 0 and C for a device of weight 1
MOST: Final = 1 << 40  # levels beyond which float32 inputs gain nothing and float64 would round
_CHUNK: Final = 1 << 18  # elements rounded at a time


@dataclass(frozen=True)
class Counter:
    """A number that each device adds exactly: an integer multiple of `unit` from 0 to `most`."""

    name: str
    most: float
    unit: float = 1.0

    @property
    def bound(self) -> int:
        """The largest integer that represents it."""
        return int(np.ceil(self.most / self.unit))

    def integer(self, value: float) -> int:
        """The nearest integer multiple; `QuantiserError` outside 0..most, and for NaN and infinities."""
        if not 0 <= value <= self.most:
            raise QuantiserError(f'counter "{self.name}" must lie in 0..{self.most:g}; clamp it first')
        return round(value / self.unit)


@dataclass(frozen=True)
class Quantiser:
    """The map between one device's numbers and ring elements, for sums of up to `members` devices.

    Attributes:
        size: the number of elements of an update.
        members: the most devices that one sum may hold.
        weight: the largest weight of a device, W in docs/protocol.md.
        clip: the largest absolute value of an element, C.
        counters: the counters that are summed beside the update.
        ring: the bits of a ring element.
        levels: the largest quantised |w*u|, L.
    """

    size: int
    members: int
    weight: int
    clip: float
    counters: tuple[Counter, ...]
    ring: int
    levels: int

    @classmethod
    def choose(
        cls,
        *,
        size: int,
        members: int,
        weight: int,
        clip: float,
        counters: tuple[Counter, ...] = (),
        ring: int | None = None,
    ) -> Quantiser:
        """The finest quantiser for these bounds; the 32-bit ring if it suffices and none is demanded.

        Raises `QuantiserError` if no ring rules out overflow with FLOOR steps between 0 and C at weight 1.
        """
        if size < 0 or members < 1 or weight < 1 or not 0 < clip < float("inf"):
            raise QuantiserError("a quantiser needs members, weight and clip above 0")
        if ring not in (None, 32, 64):
            raise QuantiserError(f"a ring of {ring} bits does not exist; 32 and 64 do")
        for bits in (32, 64) if ring is None else (ring,):
            levels = min(((1 << (bits - 1)) - 1) // members, MOST)
            counted = max((counter.bound for counter in counters), default=0)
            if levels >= FLOOR * weight and counted <= levels:
                return cls(size, members, weight, clip, counters, bits, levels)
        raise QuantiserError(
            f"no {'' if ring is None else f'{ring}-bit '}ring holds {members} devices of weight {weight} "
            f"with {FLOOR} steps each, and their counters: lower the group size or max_weight"
            + ("" if ring is None else ", or use 64 bits")
        )

    @property
    def step(self) -> float:
        """s: the distance between neighbouring values of w*u."""
        return self.weight * self.clip / self.levels

    @property
    def length(self) -> int:
        """Ring elements in a vector: the update's, then one for each counter in its order."""
        return self.size + len(self.counters)

    def quantise(
        self, update: NDArray[np.floating], weight: int, counts: Mapping[str, float], key: bytes
    ) -> Ring:
        """The vector that a device masks: uint32 or uint64 [length].

        Args:
            update: the finite numbers to sum, [size], none beyond the clip.
            weight: what the update counts for, 1..W, or 0 for counters alone.
            counts: a value for each counter.
            key: 32 secret bytes of the device, new for each round.

        Raises:
            QuantiserError: something is out of bounds; nothing is clipped silently.
        """
        if update.shape != (self.size,) or not 0 <= weight <= self.weight:
            raise QuantiserError(
                f"the update must have {self.size} elements, and a weight of at most {self.weight}"
            )
        if set(counts) != {counter.name for counter in self.counters}:
            raise QuantiserError(f"counters must be {', '.join(c.name for c in self.counters) or 'none'}")
        if self.size and not float(np.abs(update).max()) <= self.clip:  # so written, NaN is refused too
            raise QuantiserError(
                f"the update holds a NaN, an infinity or a value beyond {self.clip:g}: clip it"
            )
        vector = np.empty(self.length, np.dtype(f"<i{self.ring // 8}"))
        self._round(update, weight, key, vector)
        vector[self.size :] = [counter.integer(counts[counter.name]) for counter in self.counters]
        return vector.view(ring_type(self.ring))

    def _round(
        self, update: NDArray[np.floating], weight: int, key: bytes, out: NDArray[np.signedinteger]
    ) -> None:
        """floor(w*u/s + r), r uniform in [0, 1)."""
        stream = _stream(key)
        for at in range(0, self.size, _CHUNK):
            scaled = update[at : at + _CHUNK].astype(np.float64) * (weight / self.step)
            random = _drawn(stream, scaled.size)
            np.floor(scaled + random * 2.0**-32, out=scaled)
            out[at : at + scaled.size] = np.clip(scaled, -self.levels, self.levels)

    def dequantise(self, total: NDArray[np.int64]) -> tuple[NDArray[np.float64], dict[str, float]]:
        """The sum of w*u over the devices, float64 [size], and the counters' sums in their own units."""
        if total.shape != (self.length,):
            raise QuantiserError(f"got a sum of {total.size} elements, expected {self.length}")
        counts = {
            counter.name: float(value) * counter.unit
            for counter, value in zip(self.counters, total[self.size :].tolist(), strict=True)
        }
        return total[: self.size].astype(np.float64) * self.step, counts


def uniform_words(key: bytes, count: int) -> NDArray[np.uint32]:
    """`count` uniform 32-bit words for rounding: AES-256-CTR under a key derived from the 32 bytes `key`."""
    return _drawn(_stream(key), count)


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(derive(key, domain("rounding"))), modes.CTR(bytes(16))).encryptor()


def _drawn(stream: CipherContext, count: int) -> NDArray[np.uint32]:
    return np.frombuffer(stream.update(bytes(4 * count)), "<u4")
