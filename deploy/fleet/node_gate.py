"""Who may send the SuperLink anything at all: devices that are enrolled here, by a signature made just now.

Flower reads and parses a whole request before it asks who sends it. So the gateway asks first, here, with
nothing but the headers in which a SuperNode signs: its public key, the time, and a signature of that time.
No body is read before the answer. The SuperLink asks again, by itself; this only keeps strangers out of its
memory.
"""

from __future__ import annotations

import binascii
import datetime
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

__all__ = ["KEY_HEADER", "SIGNATURE_HEADER", "TIME_HEADER", "NodeProof", "admits"]

KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER = "flwr-public-key", "flwr-timestamp", "flwr-signature"
BEHIND_SECONDS, AHEAD_SECONDS = 305.0, 5.0  # as the SuperLink's own
_MOST = 1024  # characters of a header


class NodeProof(NamedTuple):
    """The headers in which a SuperNode says who it is, each as often as it was sent."""

    key: Sequence[str]
    time: Sequence[str]
    signature: Sequence[str]


def admits(proof: NodeProof, known: Callable[[bytes], bool], now: Callable[[], float] = time.time) -> bool:
    """Whether a request may go on to the SuperLink.

    Args:
        proof: the headers of the request.
        known: whether a public key, in PEM, is that of an enrolled device.
        now: the clock, in Unix seconds.
    """
    if any(len(sent) != 1 or len(sent[0]) > _MOST for sent in proof):
        return False  # twice is refused too: the SuperLink might read the other one
    stamp = proof.time[0]
    try:
        key = b64decode(proof.key[0], validate=True)
        signature = b64decode(proof.signature[0], validate=True)
        signed = stamp.encode("ascii")
        moment = datetime.datetime.fromisoformat(stamp)
        age = now() - moment.timestamp()
    except (binascii.Error, ValueError, OverflowError):
        return False
    if moment.tzinfo is None:
        return False
    # The key first: it costs a look into an index, and what no device's key has signed is not verified.
    return -AHEAD_SECONDS < age < BEHIND_SECONDS and known(key) and _signed(key, signed, signature)


def _signed(key: bytes, text: bytes, signature: bytes) -> bool:
    public = load_pem_public_key(key)
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return False
    try:
        public.verify(signature, text, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
