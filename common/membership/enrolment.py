"""How a device is enrolled: it asks with a request, and is answered with a certificate. Both are files.

The device makes its own key pair; the private key never leaves it. Which authority to believe it knows from
the digest in its join token, not from the answer. With a token the same request and answer travel through
the server's enrolment service, as `JoinRequest` and `JoinReply`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import verify
from penchant.common.errors import CertificateError, CodecError
from penchant.common.membership.identity import Certificate, Identity, authority_digest
from penchant.common.printable import is_printable
from penchant.common.wire.codec import AtMost, decode_record, encode_record
from penchant.common.wire.messages import MAX_MEMBERSHIP, PublicKey, Signature

__all__ = [
    "MAX_JOIN_REQUEST",
    "MAX_LEAVE_NOTICE",
    "Answer",
    "JoinReply",
    "JoinRequest",
    "LeaveNotice",
    "NamedRequest",
    "Request",
    "fingerprint",
    "request",
]

MAX_NODE_KEY: Final = 512  # bytes; a P-384 key in PEM has 215
MAX_NAME: Final = 100
MAX_LEAVE_NOTICE: Final = 32 + 64
MAX_JOIN_REQUEST: Final = 32 + 96 + 4 + MAX_NODE_KEY + 64
_REQUEST: Final = 96  # bytes of an encoded Request


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
            raise CertificateError(f"this is not a device's request: {error}") from None
        if not verify(asked.public_key, _request_text(asked.public_key), asked.signature):
            raise CertificateError("the request is not signed by the key that it names")
        return asked

    @property
    def fingerprint(self) -> str:
        """What owner and authority can compare over the phone: 5 groups of 4 hexadecimal digits."""
        return fingerprint(self.public_key)


@dataclass(frozen=True, slots=True)
class NamedRequest:
    """A request as the server passes it on to the authority, with the name that the operator gave it."""

    name: Annotated[str, AtMost(MAX_NAME)]
    request: Request

    def encode(self) -> bytes:
        """The file for the authority."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes) -> NamedRequest:
        """Undo `encode`; a device's own request is taken as well, without a name. CertificateError if bad.

        Names are refused unless all of them can be seen: who decides must not be shown something else."""
        if len(data) == _REQUEST:
            return cls("", Request.decode(data))
        try:
            asked = decode_record(data, cls)
        except CodecError as error:
            raise CertificateError(f"this is not a device's request: {error}") from None
        if not is_printable(asked.name):
            raise CertificateError("the name beside the request contains invisible characters")
        Request.decode(asked.request.encode())
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
            raise CertificateError(f"this is not an authority's answer: {error}") from None
        if authority_digest(answer.authority) != authority:
            raise CertificateError("the answer comes from a different authority than the one that was named")
        return answer


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A device asks the server's enrolment service to join (`tokens.JoinToken.sign`).

    Attributes:
        token: the public half of its token's key.
        asked: the request for the authority.
        node_key: the public key of its SuperNode, in PEM.
        signature: by the token's key, over the token's terms, the request and the node key.
    """

    token: PublicKey
    asked: Request
    node_key: Annotated[bytes, AtMost(MAX_NODE_KEY)]
    signature: Signature

    def encode(self) -> bytes:
        """The body of the request."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes) -> JoinRequest:
        """Undo `encode`; CodecError for anything else."""
        return decode_record(data, cls)


@dataclass(frozen=True, slots=True)
class JoinReply:
    """What the enrolment service says. answer: the encoded `Answer`, empty while the authority is awaited."""

    answer: Annotated[bytes, AtMost(MAX_MEMBERSHIP + 1024)]

    def encode(self) -> bytes:
        """The body of the reply."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes) -> JoinReply:
        """Undo `encode`; CodecError for anything else."""
        return decode_record(data, cls)


@dataclass(frozen=True, slots=True)
class LeaveNotice:
    """A device tells its server that its owner gave up membership; the member's own key signs that.

    Another member can't say it, and it says nothing about a device that joins again: that one has a new key.
    """

    public_key: PublicKey
    signature: Signature

    @classmethod
    def of(cls, identity: Identity, authority: bytes) -> LeaveNotice:
        """The notice of a member of the fleet whose authority's key has this 32-byte digest."""
        public = identity.certificate.public_key
        return cls(public, identity.sign(_leave_text(authority, public)))

    def encode(self) -> bytes:
        """The body of the request."""
        return encode_record(self)

    @classmethod
    def decode(cls, data: bytes, authority: bytes) -> LeaveNotice:
        """Undo `encode`. CodecError for anything else; CertificateError unless the member signed it, for the
        fleet of this authority."""
        notice = decode_record(data, cls)
        if not verify(notice.public_key, _leave_text(authority, notice.public_key), notice.signature):
            raise CertificateError("the notice is not signed by the member that it names")
        return notice


def fingerprint(public_key: bytes) -> str:
    """Of the request that names this key: `Request.fingerprint`."""
    digest = hashlib.sha256(domain("request fingerprint", public_key)).hexdigest()
    return "-".join(digest[at : at + 4] for at in range(0, 20, 4))


def request(private: bytes) -> Request:
    """A device's request for its private key (32 bytes)."""
    public = Identity.public_of(private)
    unsigned = Certificate(0, public, bytes(64))
    return Request(public, Identity(private, unsigned).sign(_request_text(public)))


def _leave_text(authority: bytes, public_key: bytes) -> bytes:
    return domain("leave", authority, public_key)


def _request_text(public_key: bytes) -> bytes:
    return domain("request", public_key)
