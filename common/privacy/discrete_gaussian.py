"""Exact draws of the discrete Gaussian N_Z(0, sigma^2): integers x, P(x) ~ exp(-x^2 / (2 sigma^2)).

Algorithms 1 to 3 of Canonne, Kamath and Steinke (2020, "The discrete Gaussian for differential privacy"): a
discrete Laplace candidate is accepted with probability exp(-a/b), decided by integers alone. No number with a
point occurs here, so nothing is rounded and no probability is a little off: proofs.md has the argument.

Everything is an array of candidates at a time. A candidate that needs another coin stays in the array, one
that is decided leaves it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from penchant.common.crypto.domain import domain
from penchant.common.crypto.entropy import Entropy
from penchant.common.crypto.keys import derive
from penchant.common.errors import PrivacyError

__all__ = ["SIGMA_MOST", "discrete_gaussian"]

SIGMA_MOST: Final = 1 << 12
"""The largest sigma: beyond it, the numerators of `_exponents` would leave 64 bits too often."""

_BLOCK: Final = 1 << 13
"""Candidates that are drawn together: their arrays stay in the cache. Another number gives other draws."""

_CHUNK: Final = 1 << 16  # bytes of keystream made at a time; not a part of that definition
_PLAIN: Final = 254  # geometric counts up to which 64 bits hold a numerator: see `_exponents`

_Words = NDArray[np.uint64]
_Bits = NDArray[np.bool_]


def discrete_gaussian(count: int, sigma: int, entropy: Entropy) -> NDArray[np.int64]:
    """`count` independent draws of the discrete Gaussian of parameter `sigma`.

    One `entropy.draw(32)` seeds a stream of AES-256-CTR, and integers that are uniform on that stream decide
    everything: the draws are exactly distributed if the stream is uniform, so as far as AES is a good cipher.
    The same 32 bytes give the same draws, and fewer of them are the first of more.

    Args:
        count: how many draws.
        sigma: the parameter, an integer from 1 to SIGMA_MOST; the standard deviation is at most this.
        entropy: where the 32 bytes come from; on a device, its operating system.

    Raises:
        PrivacyError: count or sigma is out of range.
    """
    if count < 0:
        raise PrivacyError(f"{count} draws of noise can't be made; ask for 0 or more")
    if not 1 <= sigma <= SIGMA_MOST:
        raise PrivacyError(f"a sigma of {sigma} can't be drawn; it is an integer from 1 to {SIGMA_MOST}")
    stream = _Stream(entropy.draw(32))
    draws = np.empty(count, np.int64)
    done = 0
    while done < count:
        block = _accepted(stream, sigma)[: count - done]
        draws[done : done + block.size] = block
        done += block.size
    return draws


class _Stream:
    """Uniform 64-bit words: one keystream, read from its beginning to its end, however much at a time."""

    def __init__(self, seed: bytes) -> None:
        key = derive(seed, domain("discrete-gaussian"))
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._left = np.empty(0, np.uint64)

    def words(self, count: int) -> _Words:
        """The next `count` words."""
        if self._left.size < count:
            short = 8 * (count - self._left.size)
            fresh = self._cipher.update(bytes(-(-short // _CHUNK) * _CHUNK))
            self._left = np.concatenate(
                [self._left, np.frombuffer(fresh, "<u8").astype(np.uint64, copy=False)]
            )
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def below(self, bound: int, count: int) -> _Words:
        """`count` uniform integers 0 .. bound - 1, for a bound from 1 to 2^63.

        A word beyond the last whole multiple of the bound is drawn again: the rest are uniform modulo it.
        What can only be 0 takes no word.
        """
        if bound == 1:
            return np.zeros(count, np.uint64)
        last = np.uint64((1 << 64) // bound * bound - 1)  # at most 2^64 - 1
        words = self.words(count)
        again = np.flatnonzero(words > last)
        if again.size:
            words = words.copy()
            while again.size:
                words[again] = self.words(again.size)
                again = again[words[again] > last]
        return words - words // np.uint64(bound) * np.uint64(bound)

    def bits(self, count: int) -> _Bits:
        """`count` fair coins, 64 to a word."""
        raw = self.words(-(-count // 64)).astype("<u8", copy=False).view(np.uint8)
        return np.unpackbits(raw, count=count, bitorder="little").astype(np.bool_)


# --- algorithm 1: coins that show heads with probability exp(-a/b) --------------------------------


def _bernoulli_exp_below_one(stream: _Stream, tops: _Words, bottom: int) -> _Bits:
    """Coins of probability exp(-top / bottom), each top in 0 .. bottom.

    Coins of probability (top / bottom) / k for k = 1, 2, … until one fails; k is odd with the wanted
    probability. The coin of 1/k is tossed by itself: k times `bottom` never has to fit.
    """
    heads = np.zeros(tops.size, np.bool_)
    going = np.arange(tops.size)
    k = 1
    while going.size:
        holds = stream.below(bottom, going.size) < tops[going]
        if k > 1:
            holds &= stream.below(k, going.size) == 0
        heads[going[~holds]] = k % 2 == 1
        going = going[holds]
        k += 1
    return heads


def _bernoulli_exp_one(stream: _Stream, count: int) -> _Bits:
    """Coins of probability exp(-1)."""
    return _bernoulli_exp_below_one(stream, np.ones(count, np.uint64), 1)


def _bernoulli_exp(stream: _Stream, wholes: NDArray[np.int64], tops: _Words, bottom: int) -> _Bits:
    """Coins of probability exp(-(whole + top / bottom)): all of the coins for its parts show heads."""
    heads = _bernoulli_exp_below_one(stream, tops, bottom)
    left = wholes.copy()
    going = np.flatnonzero(heads & (left > 0))
    while going.size:
        holds = _bernoulli_exp_one(stream, going.size)
        heads[going[~holds]] = False
        going = going[holds]
        left[going] -= 1
        going = going[left[going] > 0]
    return heads


# --- algorithm 2: the discrete Laplace distribution -----------------------------------------------


def _laplace(stream: _Stream, scale: int) -> tuple[_Words, NDArray[np.int64], _Bits]:
    """Candidates y of P(y) ~ exp(-|y| / scale), as (rest, times, negative): |y| = rest + scale * times."""
    rest = stream.below(scale, _BLOCK)
    rest = rest[_bernoulli_exp_below_one(stream, rest, scale)]
    times = np.zeros(rest.size, np.int64)
    going = np.arange(rest.size)
    while going.size:
        going = going[_bernoulli_exp_one(stream, going.size)]
        times[going] += 1
    negative = stream.bits(rest.size)
    once = ~(negative & (rest == 0) & (times == 0))  # there is one zero, not two
    return rest[once], times[once], negative[once]


# --- algorithm 3: the discrete Gaussian -----------------------------------------------------------


def _accepted(stream: _Stream, sigma: int) -> NDArray[np.int64]:
    """The draws that a block of candidates gives."""
    scale = sigma + 1
    rest, times, negative = _laplace(stream, scale)
    wholes, tops = _exponents(rest, times, sigma)
    kept = _bernoulli_exp(stream, wholes, tops, 2 * sigma**2 * scale**2)
    size = rest[kept].astype(np.int64) + scale * times[kept]
    return np.where(negative[kept], -size, size)


def _exponents(rest: _Words, times: NDArray[np.int64], sigma: int) -> tuple[NDArray[np.int64], _Words]:
    """(|y| - sigma^2 / scale)^2 / (2 sigma^2) as whole + top / bottom, bottom = 2 sigma^2 scale^2.

    That is (|y| scale - sigma^2)^2 / bottom. With scale = sigma + 1 <= 4097 and times <= 254, |y| scale is
    below scale^2 * 255 <= 4097^2 * 255 = 4,280,279,295 < 2^32, so its square is below 2^64; and bottom is at
    most 2 * 4096^2 * 4097^2 < 2^50, so that `below` can draw from it. More than 254 coins of 1/e in a row
    are never seen (e^-255); to be exact all the same, such a candidate gets integers of any length.
    """
    scale = sigma + 1
    bottom = 2 * sigma**2 * scale**2
    plain = times <= _PLAIN
    shifted = (rest.astype(np.int64) + scale * np.where(plain, times, 0)) * scale - sigma**2
    distance = np.abs(shifted).astype(np.uint64)
    square = distance * distance
    wholes = square // np.uint64(bottom)
    tops = square - wholes * np.uint64(bottom)
    result = wholes.astype(np.int64)
    for at in np.flatnonzero(~plain):
        whole, top = divmod(((int(rest[at]) + scale * int(times[at])) * scale - sigma**2) ** 2, bottom)
        result[at], tops[at] = whole, top
    return result, tops
