"""How a device is enrolled: it asks with a request, and is answered with a certificate. Both are files.

The device makes its own key pair; the private key never leaves it. Which authority to believe it knows from
the digest in its join token, not from the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from penchant.common.codec import AtMost, decode_record, encode_record
from penchant.common.errors import CertificateError, CodecError
from penchant.common.identity import Certificate, Identity, authority_digest
from penchant.common.keys import verify
from penchant.common.messages import MAX_MEMBERSHIP, PublicKey, Signature
from penchant.common.protocol import domain

__all__ = ["Answer", "Request", "request"]


@dataclass(frozen=True, slots=True)
class Request:
    """A device asks to be certified. The signature shows that it holds the private key."""

    public_key: PublicKey
    signature: Signature

    def encode(self) -> bytes:
        """The request as a file."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Undo `encode`; CertificateError unless the device signed it with this key."""
        try:
            asked = decode_record(data, cls)
        except CodecError as error:
            raise CertificateError(f"this is no request of a device: {error}") from None
        if not verify(asked.public_key, _request_text(asked.public_key), asked.signature):
            raise CertificateError("the request is not signed by the key that it names")
        return asked


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device gets back: its certificate, the authority's key, the latest member list."""

    authority: PublicKey
    certificate: Certificate
    members: Annotated[bytes, AtMost(MAX_MEMBERSHIP)]

    def encode(self) -> bytes:
        """The answer as a file."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes, authority: bytes) -> Answer:
        """Undo `encode`; CertificateError unless it is of the authority with this 32-byte digest."""
        try:
            answer = decode_record(data, cls)
        except CodecError as error:
            raise CertificateError(f"this is no answer of an authority: {error}") from None
        if authority_digest(answer.authority) != authority:
            raise CertificateError("the answer is of another authority than the one that was named")
        return answer


def request(private: bytes) -> Request:
    """A device's request for its private key (32 bytes)."""
    public = Identity.public_of(private)
    unsigned = Certificate(0, public, bytes(64))
    return Request(public, Identity(private, unsigned).sign(_request_text(public)))


def _request_text(public_key: bytes) -> bytes:
    return domain("request", public_key)
