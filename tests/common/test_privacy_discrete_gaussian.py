"""The discrete Gaussian's draws: their distribution, their stream, and that integers alone make them."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from penchant.common.crypto.domain import domain
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import derive
from penchant.common.errors import PrivacyError
from penchant.common.privacy import discrete_gaussian as module
from penchant.common.privacy.discrete_gaussian import SIGMA_MOST, discrete_gaussian
from penchant.common.privacy.noise import SIGMA


def entropy(number: int = 1) -> SeededEntropy:
    return SeededEntropy(number.to_bytes(32, "big"), "test")


def probabilities(sigma: int, reach: int) -> NDArray[np.float64]:
    """P(x) for x = -reach .. reach, over all of the integers that have any probability to speak of."""
    far = np.arange(-40 * sigma - 40, 40 * sigma + 41)
    weights = np.exp(-(far.astype(float) ** 2) / (2 * sigma**2))
    middle = far.size // 2
    return weights[middle - reach : middle + reach + 1] / weights.sum()


def chi_squared(draws: NDArray[np.int64], sigma: int, cells: int = 120) -> float:
    """The statistic in standard deviations above what it should be (Wilson and Hilferty 1931)."""
    reach = 6 * sigma + 6
    expected = probabilities(sigma, reach)
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    # neighbouring integers make one cell, so that each cell expects enough
    cell = np.minimum((np.cumsum(expected) * cells).astype(int), cells - 1)
    wanted = np.bincount(cell, expected, cells) * draws.size
    seen = np.bincount(cell, counts, cells)
    used = wanted > 0
    assert wanted[used].min() > 50
    statistic = float((((seen - wanted)[used]) ** 2 / wanted[used]).sum())
    freedom = int(used.sum()) - 1
    return float(((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom)))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("sigma", [1, 2, 7, 100, SIGMA, SIGMA_MOST])
def test_the_distribution_is_the_discrete_gaussian(sigma: int, seed: int) -> None:
    assert chi_squared(discrete_gaussian(100_000, sigma, entropy(seed)), sigma) < 3.5


def test_chi_squared_sees_a_slightly_wrong_sigma_and_a_rounded_gaussian() -> None:
    draws = discrete_gaussian(100_000, 100, entropy())
    assert chi_squared(draws, 103) > 3.5
    assert chi_squared(discrete_gaussian(100_000, 20, entropy()) + 1, 20) > 3.5
    continuous = np.rint(np.random.default_rng(1).normal(0, 1, 100_000)).astype(np.int64)
    assert chi_squared(continuous, 1) > 3.5  # its variance is 1/12 too large


def test_moments_at_the_sigma_of_devices() -> None:
    draws = discrete_gaussian(400_000, SIGMA, entropy()).astype(float) / SIGMA
    error = 1 / math.sqrt(draws.size)
    assert abs(draws.mean()) < 4 * error
    assert abs((draws**2).mean() - 1) < 4 * math.sqrt(2) * error
    assert abs((draws**3).mean()) < 4 * math.sqrt(15) * error
    assert abs((draws**4).mean() - 3) < 4 * math.sqrt(96) * error


def test_neighbouring_draws_are_not_correlated() -> None:
    draws = discrete_gaussian(200_000, SIGMA, entropy()).astype(float) / SIGMA
    for lag in (1, 2, 64):
        assert abs((draws[lag:] * draws[:-lag]).mean()) < 4 / math.sqrt(draws.size)


# --- the same, by a sampler that takes fractions and looks at one candidate at a time -------------


class SlowStream:
    """The words of `_Stream`, from the same bytes, by other means."""

    def __init__(self, seed: bytes) -> None:
        key = derive(seed, domain("discrete-gaussian"))
        self.cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def word(self) -> int:
        return int.from_bytes(self.cipher.update(bytes(8)), "little")

    def below_each(self, bound: int, count: int) -> list[int]:
        """All first tries, then the second ones of those that failed, and so on."""
        if bound == 1:
            return [0] * count
        words = [self.word() for _ in range(count)]
        limit = 2**64 - 2**64 % bound
        while again := [at for at, word in enumerate(words) if word >= limit]:
            for at in again:
                words[at] = self.word()
        return [word % bound for word in words]


def slow_coins(stream: SlowStream, exponents: list[Fraction], bottom: int) -> list[bool]:
    """Coins of exp(-exponent), 0 <= exponent <= 1 and a multiple of 1/bottom."""
    heads = [False] * len(exponents)
    going, k = list(range(len(exponents))), 1
    while going:
        holds = [
            Fraction(u, bottom) < exponents[at]
            for u, at in zip(stream.below_each(bottom, len(going)), going, strict=True)
        ]
        if k > 1:
            holds = [a and u == 0 for a, u in zip(holds, stream.below_each(k, len(going)), strict=True)]
        for at, hold in zip(going, holds, strict=True):
            if not hold:
                heads[at] = k % 2 == 1
        going = [at for at, hold in zip(going, holds, strict=True) if hold]
        k += 1
    return heads


def slow_block(stream: SlowStream, sigma: int, block: int) -> Iterator[int]:
    """A block of candidates, as the algorithms of the paper say."""
    t = sigma + 1
    rests = stream.below_each(t, block)
    kept = slow_coins(stream, [Fraction(rest, t) for rest in rests], t)
    sizes = [rest for rest, keep in zip(rests, kept, strict=True) if keep]
    going = list(range(len(sizes)))
    while going:
        heads = slow_coins(stream, [Fraction(1)] * len(going), 1)
        going = [at for at, head in zip(going, heads, strict=True) if head]
        for at in going:
            sizes[at] += t
    words = [stream.word() for _ in range(-(-len(sizes) // 64))]
    signs = [bool(words[at // 64] >> (at % 64) & 1) for at in range(len(sizes))]
    candidates = [-y if sign else y for y, sign in zip(sizes, signs, strict=True) if y or not sign]
    exponents = [(abs(y) - Fraction(sigma**2, t)) ** 2 / (2 * sigma**2) for y in candidates]
    wholes = [int(exponent) for exponent in exponents]
    heads = slow_coins(stream, [e - w for e, w in zip(exponents, wholes, strict=True)], 2 * sigma**2 * t**2)
    going = [at for at, head in enumerate(heads) if head and wholes[at]]
    while going:
        coins = slow_coins(stream, [Fraction(1)] * len(going), 1)
        for at, coin in zip(going, coins, strict=True):
            heads[at] = coin
            wholes[at] -= 1
        going = [at for at in going if heads[at] and wholes[at]]
    return (y for y, head in zip(candidates, heads, strict=True) if head)


@pytest.mark.parametrize("sigma", [1, 7, SIGMA, SIGMA_MOST])
def test_a_slow_sampler_with_fractions_draws_the_same(sigma: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 512)
    fast = discrete_gaussian(400, sigma, entropy(7))
    stream = SlowStream(entropy(7).draw(32))
    slow: list[int] = []
    while len(slow) < 400:
        slow += slow_block(stream, sigma, 512)
    assert fast.tolist() == slow[:400]


# --- the stream -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_draws_however_the_keystream_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = discrete_gaussian(20_000, 5, entropy())
    monkeypatch.setattr(module, "_CHUNK", 24)
    np.testing.assert_array_equal(discrete_gaussian(20_000, 5, entropy()), draws)
    assert (discrete_gaussian(20_000, 5, entropy(2)) != draws).any()


def test_fewer_draws_are_the_first_of_more() -> None:
    more = discrete_gaussian(20_000, 5, entropy())
    for count in (0, 1, 3_500, 8_192):
        np.testing.assert_array_equal(discrete_gaussian(count, 5, entropy()), more[:count])


def test_one_draw_of_32_bytes_seeds_a_call_and_the_next_call_draws_anew() -> None:
    class Counting(SeededEntropy):
        asked: tuple[int, ...] = ()

        def draw(self, count: int) -> bytes:
            self.asked += (count,)
            return super().draw(count)

    source = Counting(bytes(32), "test")
    first, second = (discrete_gaussian(1_000, 50, source) for _ in range(2))
    assert source.asked == (32, 32)
    assert (first != second).any()


PINNED = [406, 1198, 153, -2711, -1040, 456, 643, -1529]


def test_these_draws_stay_what_they_are() -> None:
    """Simulations repeat: a change of the stream is a change of every result with noise."""
    assert discrete_gaussian(8, SIGMA, entropy()).tolist() == PINNED
    assert discrete_gaussian(8, SIGMA, entropy()).dtype == np.int64


# --- integers alone -------------------------------------------------------------------------------


def test_no_number_with_a_point_is_anywhere_in_the_sampler() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), ast.dump(node)
        assert not isinstance(node, ast.Div), "a quotient of integers is a float: use //"
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            assert not name.startswith(("float", "double", "exp", "log", "sqrt", "random")), name


@pytest.mark.parametrize("sigma", [1, 2, 1000, SIGMA_MOST])
def test_exponents_are_exact_up_to_the_last_candidate_of_64_bits_and_beyond(sigma: int) -> None:
    scale, bottom = sigma + 1, 2 * sigma**2 * (sigma + 1) ** 2
    rest = np.array([0, scale - 1] * 6, np.uint64)
    times = np.repeat(np.array([0, 1, 253, 254, 255, 100_000]), 2)
    wholes, tops = module._exponents(rest, times, sigma)
    for r, v, whole, top in zip(rest.tolist(), times.tolist(), wholes.tolist(), tops.tolist(), strict=True):
        y = r + scale * v
        assert whole + Fraction(top, bottom) == (y - Fraction(sigma**2, scale)) ** 2 / (2 * sigma**2)
        assert 0 <= top < bottom


@pytest.mark.parametrize("bound", [1, 2, 3, 4097, 2**49 + 1, 2**63])
def test_integers_below_a_bound_are_below_it_and_even(bound: int) -> None:
    found = module._Stream(bytes(32)).below(bound, 50_000)
    assert found.dtype == np.uint64
    assert int(found.max()) < bound
    share = (found < np.uint64(-(-bound // 2))).mean()
    assert abs(share - -(-bound // 2) / bound) < 4 * 0.5 / math.sqrt(found.size)


def test_words_that_would_favour_small_integers_are_drawn_again() -> None:
    """3 * 2^61 leaves a quarter of all words beyond its last multiple; they favour two of three parts."""
    found = module._Stream(bytes(32)).below(3 << 61, 60_000)
    thirds = np.bincount((found // np.uint64(1 << 61)).astype(np.int64), minlength=3) / found.size
    assert np.abs(thirds - 1 / 3).max() < 0.01


@pytest.mark.parametrize(
    ("count", "sigma", "said"),
    [(-1, 5, "-1 draws"), (5, 0, "sigma of 0"), (5, -3, "sigma of -3"), (5, SIGMA_MOST + 1, "sigma of 4097")],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_drawn(count: int, sigma: int, said: str) -> None:
    class Nothing:
        def draw(self, count: int) -> bytes:
            raise AssertionError("drawn")

    with pytest.raises(PrivacyError, match=said) as refused:
        discrete_gaussian(count, sigma, Nothing())
    assert "\n" not in str(refused.value)
