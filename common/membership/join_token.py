"""Join tokens: what a device needs to find its fleet without trusting anything that it hears on the way.

A token is one line of text. It holds the server's address, the digests of the certificate authority of the
server's TLS and of the enrolment authority's public key, a date, and an Ed25519 key for this one enrolment.
The server keeps the public half of that key only, so what is stolen there enrols nobody. All of the token is
under the signature of the request that is made with it: a token that was changed on its way is refused by
the server as well.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass, field
from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from penchant.common.crypto.domain import domain
from penchant.common.crypto.keys import verify
from penchant.common.errors import CodecError, TokenError
from penchant.common.membership.enrolment import MAX_NODE_KEY, JoinRequest, Request
from penchant.common.printable import is_printable
from penchant.common.wire.codec import U64, AtMost, Exactly, decode_record, encode_record

__all__ = ["JoinToken", "Terms", "check_signature", "token_name"]

PREFIX: Final = "penchant1_"
MAX_TOKEN: Final = 1024  # characters
_CHECK: Final = 6  # bytes of a digest that tell a slip of the pen from a token


@dataclass(frozen=True, slots=True)
class Terms:
    """What a token says, without its key.

    Attributes:
        address: HOST:PORT of the gateway.
        ca: the SHA-256 of the CA's certificate in DER.
        authority: the digest of the enrolment authority's public key.
        expires: when the token expires, in Unix seconds.
    """

    address: Annotated[str, AtMost(260)]
    ca: Annotated[bytes, Exactly(32)]
    authority: Annotated[bytes, Exactly(32)]
    expires: U64


@dataclass(frozen=True, slots=True)
class _TokenText:
    terms: Terms
    private: Annotated[bytes, Exactly(32)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token. `repr` shows nothing of its key."""

    terms: Terms
    private: bytes = field(repr=False)

    @classmethod
    def create(cls, terms: Terms) -> JoinToken:
        """A new token with a fresh key."""
        return cls(terms, os.urandom(32))

    @property
    def public_key(self) -> bytes:
        """The half of its key that the server keeps, 32 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw()

    @property
    def name(self) -> str:
        """What both sides call this token in files and messages; no secret."""
        return token_name(self.public_key)

    def text(self) -> str:
        """The one line that is handed out."""
        data = encode_record(_TokenText(self.terms, self.private))
        return PREFIX + base64.urlsafe_b64encode(data + _check(data)).decode().rstrip("=")

    @staticmethod
    def looks_like(text: str) -> bool:
        """Whether `text` is meant as a token."""
        return text.strip().startswith(PREFIX)

    @classmethod
    def read(cls, text: str, now: float) -> JoinToken:
        """Undo `text`; TokenError when it is damaged, or past its date at `now` (Unix seconds)."""
        line = "".join(text.split())
        if len(line) > MAX_TOKEN or not line.startswith(PREFIX):
            raise TokenError("this is not a join token; one begins with " + PREFIX)
        body = line.removeprefix(PREFIX)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            inner, check = data[:-_CHECK], data[-_CHECK:]
            if check != _check(inner):
                raise TokenError("the join token is damaged: copy all of it, or ask for a new one")
            found = decode_record(inner, _TokenText)
        except (ValueError, CodecError):
            raise TokenError("the join token is damaged: copy all of it, or ask for a new one") from None
        if not is_printable(found.terms.address):
            raise TokenError("the join token holds an address that can't be shown; get a new one")
        token = cls(found.terms, found.private)
        if now >= found.terms.expires:
            raise TokenError(
                "the join token is past its date, or this device's clock is wrong; get a new one"
            )
        if token.text() != line:
            raise TokenError("the join token is damaged: copy all of it, or ask for a new one")
        return token

    def sign(self, asked: Request, node_key: bytes) -> JoinRequest:
        """The request to join with this token, for the SuperNode whose public key (PEM) is `node_key`."""
        if len(node_key) > MAX_NODE_KEY:
            raise TokenError("the node's public key is too long")
        key = Ed25519PrivateKey.from_private_bytes(self.private)
        signature = key.sign(_request_text(self.terms, asked, node_key))
        return JoinRequest(self.public_key, asked, node_key, signature)


def check_signature(terms: Terms, request: JoinRequest) -> None:
    """TokenError unless `request` was signed with its token's key, over these terms."""
    text = _request_text(terms, request.asked, request.node_key)
    if not verify(request.token, text, request.signature):
        raise TokenError("the request is not signed with the token that it names, or the token was changed")


def token_name(public_key: bytes) -> str:
    """16 hexadecimal digits that name a token, from its public key."""
    return hashlib.sha256(domain("join token", public_key)).hexdigest()[:16]


def _request_text(terms: Terms, asked: Request, node_key: bytes) -> bytes:
    return domain("join", encode_record(terms), asked.encode(), node_key)


def _check(data: bytes) -> bytes:
    return hashlib.sha256(domain("join token check", data)).digest()[:_CHECK]
