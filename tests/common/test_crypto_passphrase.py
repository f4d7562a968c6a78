"""What people remember: weak ones are refused, and a guess costs what is recommended."""

from __future__ import annotations

import pytest

from penchant.common.crypto.passphrase import (
    LEAST,
    RECOMMENDED,
    ScryptCost,
    is_sealed,
    open_key,
    refuse_weak,
    seal_key,
    stretched,
)
from penchant.common.errors import SecretSharingError, UsageError

CHEAP = ScryptCost(2**10)
KEY = bytes(range(32))


def test_the_recommended_cost_is_owasps() -> None:
    """The password storage cheat sheet's first line for scrypt: N = 2^17, r = 8, p = 1, so 128 MB."""
    assert RECOMMENDED.n >= 2**17
    assert 128 * RECOMMENDED.n * RECOMMENDED.r >= 128 * 2**20


def test_scrypt_is_the_one_of_rfc_7914() -> None:
    """The second and the third vector of section 12, as far as 32 bytes go."""
    assert stretched(b"password", b"NaCl", ScryptCost(1024, 8, 16)).hex().startswith("fdbabe1c9d347200")
    assert (
        stretched(b"pleaseletmein", b"SodiumChloride", ScryptCost(16384)).hex().startswith("7023bdcb3afd7348")
    )


@pytest.mark.parametrize(
    "weak",
    ["", "short", "elevenchars", "a" * 40, "abababababababab", "passwordpassword", "abcdefghijklmnop",
     "123456789012345", "qwertyuiopasdfgh", "zyxwvutsrqponml", "letmein!letmein!", "x" * 2000],
)  # fmt: skip
def test_what_is_guessed_first_is_refused(weak: str) -> None:
    with pytest.raises(UsageError, match="passphrase"):
        refuse_weak(weak)


@pytest.mark.parametrize(
    "good", ["correct horse battery", "a passphrase", "kV8#mQ2zL!9w", "öffne dich, Sesam", "wol qua fet nib"]
)
def test_what_people_may_well_choose_is_taken(good: str) -> None:
    assert len(good) >= LEAST
    refuse_weak(good)


def test_a_sealed_key_opens_with_its_passphrase_and_for_its_purpose_only() -> None:
    sealed = seal_key(KEY, "correct horse", "vault", CHEAP)
    assert is_sealed(sealed)
    assert KEY.hex().encode() not in sealed
    assert open_key(sealed, "correct horse", "vault") == (KEY, CHEAP)
    assert sealed != seal_key(KEY, "correct horse", "vault", CHEAP)
    for data, passphrase, purpose in (
        (sealed, "battery staple", "vault"),
        (sealed, "correct horse", "authority"),
        (sealed.replace(b"$1024$", b"$2048$"), "correct horse", "vault"),
        (sealed[:-3] + b"00\n", "correct horse", "vault"),
        (sealed[:40], "correct horse", "vault"),
        (sealed.replace(b"$1024$", b"$1125899906842624$"), "correct horse", "vault"),
        (sealed.replace(b"$1024$", b"$1000$"), "correct horse", "vault"),
        (sealed.replace(b"$1024$", b"$-1024$"), "correct horse", "vault"),
        (b"\xff" + sealed, "correct horse", "vault"),
        (b"", "correct horse", "vault"),
    ):
        with pytest.raises(SecretSharingError):
            open_key(data, passphrase, purpose)
