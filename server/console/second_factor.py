"""Codes of a second factor: those of an app (TOTP, RFC 6238) and those for recovery.

What apps are told is what all of them know: SHA-1, six digits, thirty seconds. HMAC with SHA-1 is not broken
by what broke SHA-1; a guess is right three times in a million, and tries are limited as those of passwords.
"""

from __future__ import annotations

import hmac
import secrets

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

__all__ = ["ISSUER", "new_key", "plain", "recovery_codes", "step_of", "uri"]

ISSUER = "penchant"
KEY_BYTES = 20  # RFC 4226, section 4: as long as the hash
DIGITS, STEP_SECONDS = 6, 30
EARLIER_LATER = (0, -1, 1)  # steps that a clock may be off by
CODES, CODE_LETTERS = 10, 16  # of 5 bits each: 80 bits, so that a plain hash of one can't be guessed
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without those that are taken for others


def new_key() -> bytes:
    """A key that an app and the console share from now on."""
    return secrets.token_bytes(KEY_BYTES)


def uri(key: bytes, account: str) -> str:
    """What an app reads from a QR code: otpauth://totp/…"""
    return _totp(key).get_provisioning_uri(account, ISSUER)


def step_of(key: bytes, code: str, now: float) -> int | None:
    """The step of thirty seconds since 1970 whose code this is, if that is the present one or next to it.

    now: Unix seconds.
    """
    given = plain(code)
    if len(given) != DIGITS or not given.isdecimal():
        return None
    totp, present = _totp(key), max(int(now // STEP_SECONDS), 1)
    found = [
        present + off
        for off in EARLIER_LATER
        if hmac.compare_digest(totp.generate((present + off) * STEP_SECONDS), given.encode())
    ]
    return found[0] if found else None


def recovery_codes() -> list[str]:
    """Codes for whoever has lost the app, in groups of four."""
    return ["-".join(_group() for _ in range(CODE_LETTERS // 4)) for _ in range(CODES)]


def plain(code: str) -> str:
    """A code as it was typed, without what only helps reading."""
    return "".join(letter for letter in code.upper() if letter.isascii() and letter.isalnum())[:64]


def _group() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(4))


def _totp(key: bytes) -> TOTP:
    return TOTP(key, DIGITS, SHA1(), STEP_SECONDS)
