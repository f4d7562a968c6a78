"""Secret sharing: any t rebuild, t - 1 know nothing, wrong shares are found as far as the code allows."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from penchant.common.crypto.entropy import SeededEntropy, SystemEntropy
from penchant.common.crypto.shamir import PRIME, SHARE, Combiner, correct, split
from penchant.common.errors import SecretSharingError

VECTORS = Path(__file__).parents[1] / "vectors"
SECRET = bytes(range(32))


class Scripted:
    """Entropy that says what it is told: for worked examples."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def draw(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken


def slow_combine(shares: dict[int, bytes]) -> int:
    """Lagrange's formula at 0, written down as it stands in the book."""
    total = 0
    for x, share in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = weight * other * pow(other - x, -1, PRIME) % PRIME
        total += weight * int.from_bytes(share, "big")
    return total % PRIME


def test_a_worked_example() -> None:
    """2 of 3, with the polynomial 7 + 5x: shares 12, 17, 22; 2*12 - 17 = 7."""
    coefficient = (5).to_bytes(48, "big")
    shares = split((7).to_bytes(32, "big"), 2, 3, Scripted(coefficient))
    assert [int.from_bytes(share, "big") for share in shares] == [12, 17, 22]
    assert Combiner((1, 2)).combine(shares[:2]) == (7).to_bytes(32, "big")
    assert Combiner((3, 1)).combine([shares[2], shares[0]]) == (7).to_bytes(32, "big")


def test_the_field_is_prime_and_holds_every_secret() -> None:
    assert PRIME > 2**256
    assert all(pow(a, PRIME - 1, PRIME) == 1 for a in (2, 3, 5, 7, 11, 13))
    for secret in (bytes(32), b"\xff" * 32):
        assert Combiner((1, 2, 3)).combine(split(secret, 3, 3, SystemEntropy())) == secret


def test_any_t_of_n_rebuild() -> None:
    shares = split(SECRET, 3, 6, SeededEntropy(b"s", ""))
    assert all(len(share) == SHARE for share in shares)
    for chosen in itertools.permutations(range(6), 3):
        assert Combiner(i + 1 for i in chosen).combine([shares[i] for i in chosen]) == SECRET


@pytest.mark.parametrize(("t", "n"), [(1, 1), (1, 5), (23, 34), (67, 100), (171, 256)])
def test_the_fast_path_is_the_slow_formula(t: int, n: int) -> None:
    shares = split(SECRET, t, n, SeededEntropy(b"s", f"{t} {n}"))
    chosen = random.Random(0).sample(range(1, n + 1), t)
    given = {x: shares[x - 1] for x in chosen}
    assert slow_combine(given).to_bytes(32, "big") == Combiner(chosen).combine(list(given.values())) == SECRET


def test_one_share_less_fits_every_secret() -> None:
    """For t - 1 shares and any guess of the secret there is exactly one polynomial: nothing is learned."""
    shares = split(SECRET, 3, 5, SeededEntropy(b"s", ""))
    for guess in (bytes(32), SECRET, b"\xff" * 32):
        points = {0: guess, 1: shares[0], 2: shares[1]}
        third = 0
        for x, share in points.items():  # Lagrange's formula at 3
            one, other = (o for o in points if o != x)
            weight = (3 - one) * (3 - other) * pow((x - one) * (x - other), -1, PRIME)
            third += int.from_bytes(share, "big") * weight
        completed = [shares[0], shares[1], (third % PRIME).to_bytes(SHARE, "big")]
        assert Combiner((1, 2, 3)).combine(completed) == guess


def test_shares_of_the_same_secret_differ_between_draws() -> None:
    entropy = SystemEntropy()
    assert split(SECRET, 2, 3, entropy) != split(SECRET, 2, 3, entropy)


@pytest.mark.parametrize(("t", "n"), [(0, 3), (4, 3), (-1, 3)])
def test_impossible_thresholds_are_refused(t: int, n: int) -> None:
    with pytest.raises(SecretSharingError):
        split(SECRET, t, n, SystemEntropy())


@pytest.mark.parametrize("points", [(1, 1), (0, 1), (PRIME, 1)])
def test_impossible_points_are_refused(points: tuple[int, int]) -> None:
    with pytest.raises(SecretSharingError):
        Combiner(points)


def test_shares_that_can_not_be_are_refused() -> None:
    shares = split(SECRET, 2, 3, SystemEntropy())
    with pytest.raises(SecretSharingError, match="3 shares for 2 points"):
        Combiner((1, 2)).combine(shares)
    with pytest.raises(SecretSharingError, match="not an element"):
        Combiner((1, 2)).combine([shares[0], PRIME.to_bytes(SHARE, "big")])
    with pytest.raises(SecretSharingError, match="do not rebuild a 32-byte secret"):
        Combiner((1,)).combine([(2**256).to_bytes(SHARE, "big")])


@pytest.mark.parametrize(("t", "n", "wrong"), [(3, 5, 1), (7, 10, 1), (5, 15, 5), (23, 34, 5), (67, 100, 16)])
def test_wrong_shares_are_found_up_to_half_the_surplus(t: int, n: int, wrong: int) -> None:
    rng = random.Random(t)
    shares = dict(enumerate(split(SECRET, t, n, SeededEntropy(b"s", "")), start=1))
    liars = sorted(rng.sample(range(1, n + 1), wrong))
    for liar in liars:
        shares[liar] = rng.randrange(PRIME).to_bytes(SHARE, "big")
    assert correct(shares, t) == (SECRET, tuple(liars))


def test_nothing_wrong_is_found_where_nothing_is() -> None:
    for secret in (SECRET, bytes(32)):
        shares = dict(enumerate(split(secret, 3, 6, SystemEntropy()), start=1))
        assert correct(shares, 3) == (secret, ())
    assert correct({x: bytes(SHARE) for x in range(1, 6)}, 3) == (bytes(32), ())


def test_more_wrong_shares_are_noticed_but_not_corrected() -> None:
    shares = dict(enumerate(split(SECRET, 7, 10, SeededEntropy(b"s", "")), start=1))
    shares[2] = shares[5] = bytes(SHARE)
    with pytest.raises(SecretSharingError, match="too many wrong shares"):
        correct(shares, 7)


def test_shares_outside_the_field_count_as_wrong() -> None:
    shares = dict(enumerate(split(SECRET, 3, 5, SystemEntropy()), start=1))
    shares[4] = b"\xff" * SHARE
    assert correct(shares, 3) == (SECRET, (4,))
    with pytest.raises(SecretSharingError, match="too many"):
        correct(dict.fromkeys(range(1, 6), b"\xff" * SHARE), 3)


def cases(name: str) -> list[dict[str, object]]:
    loaded: list[dict[str, object]] = json.loads((VECTORS / name).read_text())["cases"]
    return loaded


@pytest.mark.parametrize("case", cases("shamir.json"), ids=lambda case: str(case["name"]))
def test_good_vectors(case: dict[str, object]) -> None:
    secret, entropy = bytes.fromhex(str(case["secret"])), Scripted(bytes.fromhex(str(case["drawn"])))
    shares = split(secret, case["threshold"], case["count"], entropy)  # type: ignore[arg-type]
    assert [share.hex() for share in shares] == case["shares"]


@pytest.mark.parametrize("case", cases("bad_shamir.json"), ids=lambda case: str(case["name"]))
def test_bad_vectors(case: dict[str, object]) -> None:
    shares = {int(x): bytes.fromhex(share) for x, share in case["shares"].items()}  # type: ignore[attr-defined]
    with pytest.raises(SecretSharingError):
        correct(shares, case["threshold"])  # type: ignore[arg-type]
