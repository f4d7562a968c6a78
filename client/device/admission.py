"""Whether the fleet's server still takes anything from this device's node, asked with the node's own key."""

from __future__ import annotations

import datetime
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.errors import EnrolmentError

__all__ = ["Admission"]

SECONDS = 10.0  # for one answer
REFUSED_SECONDS = 60.0  # that a server turns a node away before it is believed: it may just be restored
BEHIND_SECONDS, AHEAD_SECONDS = (
    300.0,
    4.0,
)  # of this clock, within which a signature is not turned away for it
PATH = "/v1/fleet/get-run"  # of Flower's paths the one that changes nothing

Ask = Callable[[SuperNodeFiles], httpx.Response]


class Admission:
    """What a relay asks each time that its SuperNode has ended.

    ask: sends the server a request that the node's key signs.
    """

    def __init__(
        self,
        node: SuperNodeFiles,
        ask: Ask | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._ask = ask or _asked
        self._clock = clock
        self._since: float | None = None  # when it was first turned away, monotonic

    def over(self) -> EnrolmentError | None:
        """Why connecting again is of no use; None while it may be."""
        if not self._node.key.exists():
            return EnrolmentError("this device has left its fleet; join again with a token of its operator")
        try:
            answer = self._ask(self._node)
        except (httpx.HTTPError, OSError, ValueError):  # out of reach: that is no answer
            return None
        if answer.status_code != httpx.codes.UNAUTHORIZED or not _clock_is_right(answer):
            self._since = None
            return None
        self._since = self._clock() if self._since is None else self._since
        if self._clock() - self._since < REFUSED_SECONDS:
            return None
        return EnrolmentError(
            "the server admits this device no more: the authority has revoked it, or the server is a new "
            "one; ask its operator. To join again: `penchant device leave`, then a new token"
        )


def _asked(node: SuperNodeFiles) -> httpx.Response:
    """The server's answer to a request that the node's key signs as Flower's does."""
    key = load_ssh_private_key(node.key.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("no key of an elliptic curve")
    stamp = datetime.datetime.now(datetime.UTC).isoformat()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    headers = {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
        "content-type": "application/protobuf",
    }
    context = ssl.create_default_context(cafile=str(node.ca))
    with httpx.Client(verify=context, timeout=SECONDS, trust_env=False) as client:
        return client.post(f"https://{node.superlink}{PATH}", content=b"", headers=headers)


def _clock_is_right(answer: httpx.Response) -> bool:
    """Whether this machine's clock is near enough to the server's; a wrong one is turned away as well."""
    try:
        there = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return True
    ahead = time.time() - there
    return -BEHIND_SECONDS < ahead < AHEAD_SECONDS
