"""Who may take part: the enrolment authority, its certificates, and its numbered lists of members.

The authority is apart from the server and can be offline. A device knows the authority's public key from
its join token and accepts the server's word on nothing here. A list carries a number, a validity and the
revocations; a device refuses a list that is older than one it has seen, a second list of the same number,
and one that is past its date.

Files: `Authority.save`/`load` (sealed under a passphrase by scrypt and AES-256-GCM, or PKCS#8 PEM without
one); certificates, lists and identities are the bytes of `encode`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from penchant.common.crypto.domain import domain
from penchant.common.crypto.entropy import Entropy, SystemEntropy
from penchant.common.crypto.keys import Verifier, verify
from penchant.common.crypto.passphrase import RECOMMENDED, ScryptCost, is_sealed, open_key, seal_key
from penchant.common.errors import (
    CertificateError,
    CodecError,
    MembershipError,
    OlderList,
    SecretSharingError,
    UsageError,
)
from penchant.common.storage import replace_erasing, write_private
from penchant.common.wire.codec import U32, U64, Exactly, Many, decode_record, encode_record
from penchant.common.wire.messages import Certificate, PublicKey, Signature

__all__ = [
    "Authority",
    "Certificate",
    "Identity",
    "Member",
    "MemberList",
    "Membership",
    "authority_digest",
    "list_digest",
]

MAX_MEMBERS: Final = 100_000
_PURPOSE: Final = "authority"
_KEY_MOST: Final = 16 * 1024  # bytes of its file
CLOCK_SKEW: Final = 300  # seconds by which a device's clock may be behind the authority's


def authority_digest(public_key: bytes) -> bytes:
    """The 32-byte digest of an authority's public key, as join tokens hold it."""
    return hashlib.sha256(domain("authority", public_key)).digest()


@lru_cache(maxsize=4)
def list_digest(encoded: bytes) -> bytes:
    """The 32-byte digest of a published member list, signature included, or of none where it is empty."""
    return hashlib.sha256(domain("member list", encoded)).digest()


# --- what the authority signs ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One enrolled device: its number and its Ed25519 public key."""

    number: U64
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class MemberList:
    """Members and revocations as of list `number`. Times are Unix seconds."""

    number: U32
    issued: U64
    expires: U64
    members: Annotated[tuple[Member, ...], Many(MAX_MEMBERS)]
    revoked: Annotated[tuple[U64, ...], Many(MAX_MEMBERS)]
    signature: Signature

    def encode(self) -> bytes:
        """The list as it is published."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes) -> MemberList:
        """Undo `encode`; raises `CodecError`. `Membership.accept` looks at the signature, not this."""
        return decode_record(data, cls)


def _certificate_text(member: int, public_key: bytes) -> bytes:
    return domain("certificate", member.to_bytes(8, "big"), public_key)


@dataclass(frozen=True, slots=True)
class _ListText:
    """A member list without its signature: what is signed."""

    number: U32
    issued: U64
    expires: U64
    members: Annotated[tuple[Member, ...], Many(MAX_MEMBERS)]
    revoked: Annotated[tuple[U64, ...], Many(MAX_MEMBERS)]


def _list_text(listed: MemberList | _ListText) -> bytes:
    text = _ListText(listed.number, listed.issued, listed.expires, listed.members, listed.revoked)
    return domain("members", encode_record(text))


class Authority:
    """The enrolment authority's signing key. `repr` shows nothing of it."""

    __slots__ = ("_key",)

    def __init__(self, private: bytes) -> None:
        """From 32 uniform bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(private)

    @classmethod
    def create(cls, entropy: Entropy | None = None) -> Authority:
        """A new authority; the operating system's generator unless `entropy` is given."""
        return cls((entropy or SystemEntropy()).draw(32))

    @property
    def public_key(self) -> bytes:
        """32 bytes; devices get its digest in their join token."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `text`, which is built by `domain` under its own label."""
        return self._key.sign(text)

    def issue(self, member: int, public_key: bytes) -> Certificate:
        """Certify `public_key` (Ed25519, 32 bytes) as member number `member`."""
        return Certificate(member, public_key, self._key.sign(_certificate_text(member, public_key)))

    def publish(
        self,
        number: int,
        members: Iterable[Certificate | Member],
        *,
        revoked: Iterable[int] = (),
        issued: int,
        expires: int,
    ) -> MemberList:
        """Sign list `number` (greater than the last), valid from `issued` to `expires` (Unix seconds)."""
        listed = (Member(m.member, m.public_key) if isinstance(m, Certificate) else m for m in members)
        text = _ListText(
            number,
            issued,
            expires,
            tuple(sorted(listed, key=lambda member: member.number)),
            tuple(sorted(set(revoked))),
        )
        signature = self._key.sign(_list_text(text))
        return MemberList(text.number, text.issued, text.expires, text.members, text.revoked, signature)

    def save(self, path: Path, passphrase: str | None = None, cost: ScryptCost = RECOMMENDED) -> None:
        """Write the key to a new file that only its owner can read; an existing file is never replaced.

        passphrase: what seals the file; without one, whoever reads the file is the authority.
        cost: of a guess at the passphrase.
        """
        if path.exists():
            raise UsageError(f"{path} exists already: an authority's key is not replaced")
        data = self._pem() if passphrase is None else self._sealed(passphrase, cost)
        write_private(path, data, replace=False, failure=UsageError)
        if path.read_bytes() != data:  # another process was first
            raise UsageError(f"{path} exists already: an authority's key is not replaced")

    def reseal(self, path: Path, passphrase: str, cost: ScryptCost = RECOMMENDED) -> None:
        """Replace a file that `load` has opened by one at today's cost, and overwrite the old one's bytes."""
        replace_erasing(path, self._sealed(passphrase, cost), failure=UsageError)

    @staticmethod
    def asks_passphrase(path: Path) -> bool:
        """Whether the file at `path` opens with a passphrase only. UsageError when it can't be read."""
        data = _key_file(path)
        return is_sealed(data) or b"ENCRYPTED" in data

    @staticmethod
    def is_old(path: Path, cost: ScryptCost = RECOMMENDED) -> bool:
        """Whether the file is sealed at another cost than today's: by OpenSSL's 2,048 rounds, say."""
        data = _key_file(path)
        return b"ENCRYPTED" in data or (is_sealed(data) and f"${cost}$".encode() not in data)

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> Authority:
        """Read what `save` wrote; raises `UsageError` for another kind of file or a wrong passphrase."""
        data = _key_file(path)
        wrong = UsageError(f"{path} is not an authority's key, or the passphrase is wrong or missing")
        try:
            if is_sealed(data):
                if passphrase is None:
                    raise wrong
                return cls(open_key(data, passphrase, _PURPOSE)[0])
            key = serialization.load_pem_private_key(data, passphrase.encode() if passphrase else None)
        except (TypeError, ValueError, SecretSharingError):
            raise wrong from None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{path} holds a key that is not an authority's")
        return cls(key.private_bytes_raw())

    def _sealed(self, passphrase: str, cost: ScryptCost) -> bytes:
        return seal_key(self._key.private_bytes_raw(), passphrase, _PURPOSE, cost)

    def _pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def _key_file(path: Path) -> bytes:
    """The bytes of an authority's key; one that anybody else could have read in clear is refused."""
    try:
        with path.open("rb") as file:
            mode, data = stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read(_KEY_MOST)
    except OSError as error:
        raise UsageError(f"can't read the authority's key {path}: {error.strerror}") from None
    if mode & 0o077 and not (is_sealed(data) or b"ENCRYPTED" in data):
        raise UsageError(
            f"{path} can be read by others and has no passphrase: chmod 600 it, "
            "and think about who has read it"
        )
    return data


# --- what a device holds --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _IdentityFile:
    private: Annotated[bytes, Exactly(32)] = field(repr=False)
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's long-lived signing key with its certificate. `repr` shows the member number only."""

    private: bytes = field(repr=False)
    certificate: Certificate = field(repr=False)
    _key: Ed25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", Ed25519PrivateKey.from_private_bytes(self.private))
        if self._key.public_key().public_bytes_raw() != self.certificate.public_key:
            raise CertificateError("the certificate belongs to another key: ask the authority for one")

    @property
    def member(self) -> int:
        """The member number in the certificate."""
        return self.certificate.member

    @staticmethod
    def public_of(private: bytes) -> bytes:
        """The public key (32 bytes) to have certified for a private key of 32 uniform bytes."""
        return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `text`, which is built by `protocol.domain`."""
        return self._key.sign(text)

    def encode(self) -> bytes:
        """Private key and certificate, for the device's encrypted vault and nowhere else."""
        return encode_record(_IdentityFile(self.private, self.certificate))

    @classmethod
    def decode(cls, data: bytes) -> Identity:
        """Undo `encode`; raises `CodecError` or `CertificateError`."""
        file = decode_record(data, _IdentityFile)
        return cls(file.private, file.certificate)


class Membership:
    """What a device (or the server) takes for true about members: the authority's key and the latest list.

    Immutable: `accept` returns a new one. Keep `encoded` durably, or an old list would be new again.
    """

    __slots__ = ("_keys", "_revoked", "_verify", "authority", "current", "encoded")

    def __init__(self, authority: bytes, *, verify: Verifier = verify) -> None:
        """`authority`: its public key, 32 bytes, checked against the join token's digest by the caller."""
        self.authority = authority
        self.current: MemberList | None = None
        self.encoded = b""
        self._verify = verify
        self._keys: dict[int, bytes] = {}
        self._revoked: frozenset[int] = frozenset()

    @property
    def number(self) -> int:
        """The number of the latest list, 0 before the first."""
        return self.current.number if self.current else 0

    @property
    def digest(self) -> bytes:
        """As `list_digest`, of the latest list."""
        return list_digest(self.encoded)

    def accept(self, encoded: bytes, now: int) -> Membership:
        """Take over a published list.

        Raises:
            MembershipError: malformed, not signed by the authority, older than the latest seen, another
                list of the same number, not yet valid, or stale at `now` (Unix seconds).
        """
        if encoded == self.encoded and self.current is not None:
            self.refuse_stale(now)
            return self
        accepted = self.know(encoded)
        accepted.refuse_stale(now)
        return accepted

    def know(self, encoded: bytes) -> Membership:
        """As `accept`, whatever the date: to compare a newer list with the one that was kept."""
        try:
            listed = MemberList.decode(encoded)
        except CodecError as error:
            raise MembershipError(f"the member list can't be read: {error}") from None
        if not self._verify(self.authority, _list_text(listed), listed.signature):
            raise MembershipError("the member list is not signed by this fleet's authority")
        if listed.number <= self.number:
            raise OlderList(
                f"member list {listed.number} is offered, list {self.number} is known: the server is behind"
            )
        accepted = Membership(self.authority, verify=self._verify)
        accepted.current = listed
        accepted.encoded = bytes(encoded)
        accepted._keys = {member.number: member.public_key for member in listed.members}
        accepted._revoked = frozenset(listed.revoked)
        return accepted

    def refuse_stale(self, now: int) -> None:
        """Raise `MembershipError` unless there is a list and it is valid at `now` (Unix seconds)."""
        if self.current is None:
            raise MembershipError("no member list is known: fetch the authority's latest")
        if now + CLOCK_SKEW < self.current.issued:
            raise MembershipError(f"member list {self.number} is not valid yet: check the clock")
        if now >= self.current.expires:
            raise MembershipError(f"member list {self.number} is past its date: fetch the authority's latest")

    def holds(self, member: int) -> bool:
        """Whether `member` is on the latest list and not revoked by it."""
        return member in self._keys and member not in self._revoked

    @property
    def count(self) -> int:
        """How many members the latest list holds."""
        return sum(self.holds(member) for member in self._keys)

    def check(self, certificate: Certificate) -> None:
        """Refuse an identity that does not belong to the fleet now.

        Raises:
            CertificateError: the certificate is not the authority's.
            MembershipError: the member is revoked, or not on the latest list with this key.
        """
        member, key = certificate.member, certificate.public_key
        if not self._verify(self.authority, _certificate_text(member, key), certificate.signature):
            raise CertificateError(
                f"member {member}'s certificate is not signed by this fleet's authority; leave it out"
            )
        if member in self._revoked:
            raise MembershipError(f"member {member} is revoked by list {self.number}; it has to be left out")
        if self._keys.get(member) != key:
            raise MembershipError(
                f"member {member} is not on member list {self.number} with this key; publish a newer "
                "list, or leave it out"
            )
