"""A device joins a fleet with a token, and tells its server when it left.

Nothing is believed that the token does not vouch for.

1. The CA's certificate is fetched over a connection that proves nothing; its digest must be the token's.
2. Everything after that goes over TLS under this CA alone, to the address in the token.
3. The device makes its identity and its node's key here, and signs its request with the token's key.
4. The authority's answer counts if its key has the token's digest, and its list holds this device.

What the SuperNode needs lies in its own folder, without anything of the owner's, so that it can be given
to another user of the system: `node.toml`, `node.key`, `ca.pem`.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from penchant.client.device.home import DeviceHome
from penchant.client.device.supernode_files import CA, KEY, SETTINGS, SuperNodeFiles
from penchant.common.errors import (
    CodecError,
    DeviceError,
    EnrolmentError,
    EnrolmentPending,
    UsageError,
)
from penchant.common.membership.enrolment import JoinReply, LeaveNotice
from penchant.common.membership.join_token import JoinToken
from penchant.common.printable import one_line
from penchant.common.storage import write_private
from penchant.common.wire.codec import decode_record

__all__ = ["Connect", "KnownServer", "https", "join", "said_by", "tell_server", "wait"]

SECONDS = 30.0  # for one answer
REPLY_MOST = 5 * 1024 * 1024
CA_MOST = 16 * 1024
SAID_MOST = 4096  # bytes of a reply that holds nothing but a reason
SAID_SHOWN = 200  # characters of a server's reason

Connect = Callable[[str, ssl.SSLContext | None], httpx.Client]
"""(HOST:PORT, TLS settings or None for a connection that proves nothing) -> a client."""


@dataclass(frozen=True)
class KnownServer:
    """The server of a node: where it is, HOST:PORT, and the CA that it is believed under, PEM."""

    address: str
    ca: str

    @classmethod
    def of(cls, folder: Path) -> KnownServer:
        """That of the node in `folder`. ConfigError when none lies there, EnrolmentError without its CA."""
        node = SuperNodeFiles.read(folder)
        try:
            return cls(node.superlink, node.ca.read_text("ascii"))
        except (OSError, ValueError) as error:
            raise EnrolmentError(f"the CA in {node.ca} can't be read ({type(error).__name__})") from None


def https(address: str, context: ssl.SSLContext | None) -> httpx.Client:
    """A client for https://`address`; without a context nothing of the other side is checked."""
    verify: ssl.SSLContext | bool = False if context is None else context
    return httpx.Client(base_url=f"https://{address}", verify=verify, timeout=SECONDS, trust_env=False)


def join(home: DeviceHome, token: JoinToken, folder: Path, socket: Path, connect: Connect = https) -> int:
    """Ask to join, or ask again; -> the member number.

    Raises:
        EnrolmentPending: the authority has not answered yet. Call again later; nothing is lost.
        EnrolmentError: the server is not the token's, can't be reached, or refuses.
        CertificateError, MembershipError: the answer is not the authority's, or not for this device now.
        UsageError: this device is in a fleet already.
    """
    known = _node_of(folder, token)
    if home.member is not None:
        if known is None:
            raise UsageError("this device is in a fleet already; `penchant device leave` first")
        return home.member
    ca = _pinned_ca(token, connect)
    node_key = _prepare(folder, token, socket, ca, fresh=known is None)
    asked = home.request()
    body = token.sign(asked, node_key).encode()
    try:
        with connect(token.terms.address, _under(ca.decode("ascii"))) as client:
            reply = _asked(client, "POST", "/enrol/join", body, REPLY_MOST)
    except httpx.HTTPError as error:
        raise _unreachable(token.terms.address, error) from None
    try:
        answer = decode_record(reply, JoinReply).answer
    except CodecError as error:
        raise EnrolmentError(f"the server's reply can't be read: {error}") from None
    if not answer:
        raise EnrolmentPending(f"the authority has not answered yet (request {asked.fingerprint})")
    return home.join(answer, token.terms.authority)


def tell_server(notice: LeaveNotice, server: KnownServer, connect: Connect = https) -> None:
    """Tell the server that this member left. Nothing of the owner's is in that.

    EnrolmentError when it can't be reached or refuses.
    """
    said_by(server, "/enrol/leave", notice.encode(), SAID_MOST, connect)


def said_by(server: KnownServer, path: str, body: bytes, most: int, connect: Connect = https) -> bytes:
    """What the server answers to a POST of `body`, `most` bytes at most.

    EnrolmentError when it can't be reached, refuses, or answers with more.
    """
    try:
        with connect(server.address, _under(server.ca)) as client:
            return _asked(client, "POST", path, body, most)
    except httpx.HTTPError as error:
        raise _unreachable(server.address, error) from None
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = f"the CA of the server at {server.address} can't be read ({type(error).__name__})"
        raise EnrolmentError(why) from None


def wait(attempt: Callable[[], int], seconds: float, told: Callable[[str], None], poll: float = 5.0) -> int:
    """Repeat `attempt` while it is pending, for at most `seconds`.

    `told` is called once, with the reason for the wait. EnrolmentPending when it is pending after that.
    """
    end, said = time.monotonic() + seconds, False
    while True:
        try:
            return attempt()
        except EnrolmentPending as error:
            if time.monotonic() + poll > end:
                raise EnrolmentPending(f"{error}; the same command, later, goes on") from None
            if not said:
                told(f"{error}; it is asked again until it has")
                said = True
        time.sleep(poll)


# --- inner parts --------------------------------------------------------------------------------------


def _under(ca: str) -> ssl.SSLContext:
    """TLS that believes this CA alone, PEM."""
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _pinned_ca(token: JoinToken, connect: Connect) -> bytes:
    """The CA's certificate, PEM. Whoever sent it: it is the one whose digest the token holds, or refused."""
    try:
        with connect(token.terms.address, None) as client:
            pem = _asked(client, "GET", "/enrol/ca", b"", CA_MOST)
        der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    except httpx.HTTPError as error:
        raise _unreachable(token.terms.address, error) from None
    except ValueError:
        raise EnrolmentError("what answers at the token's address is not the server") from None
    if hashlib.sha256(der).digest() != token.terms.ca:
        raise EnrolmentError(
            "the server at the token's address is not the one that the token names: do not go on"
        )
    return ssl.DER_cert_to_PEM_cert(der).encode()  # this one certificate, whatever else was sent


def _asked(client: httpx.Client, method: str, path: str, body: bytes, most: int) -> bytes:
    """The body of a good response of at most `most` bytes. EnrolmentError with the server's line if not."""
    with client.stream(method, path, content=body) as response:
        data = bytearray()  # which grows in place: a release's numbers may be many
        for chunk in response.iter_bytes(65536):
            data += chunk
            if len(data) > most:
                raise EnrolmentError("the server's reply is too long")
    if response.status_code in (httpx.codes.OK, httpx.codes.NO_CONTENT):
        return bytes(data)
    try:
        said = one_line(str(json.loads(data)["error"]), SAID_SHOWN)
    except (ValueError, KeyError, TypeError, RecursionError):
        said = f"HTTP {response.status_code}"
    raise EnrolmentError(f"the server refuses: {said}")


def _unreachable(address: str, error: httpx.HTTPError) -> EnrolmentError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        why = "its certificate is not good under its fleet's CA, or this device's clock is wrong"
        return EnrolmentError(f"the server at {address} is refused: {why}")
    return EnrolmentError(f"can't reach the server at {address} ({type(error).__name__}); try again later")


def _node_of(folder: Path, token: JoinToken) -> SuperNodeFiles | None:
    """The node in `folder` if it came by this token."""
    if not (folder / SETTINGS).exists():
        return None
    node = SuperNodeFiles.read(folder)
    return node if node.token == token.name and node.key.exists() else None


def _prepare(folder: Path, token: JoinToken, socket: Path, ca: bytes, *, fresh: bool) -> bytes:
    """Write what the SuperNode needs; -> its public key, PEM. A new token gets a new key."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if fresh:
            made = ec.generate_private_key(ec.SECP384R1())
            write_private(folder / KEY, made.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ))  # fmt: skip
        key = serialization.load_ssh_private_key((folder / KEY).read_bytes(), None)
    except OSError as error:
        raise DeviceError(f"can't use {folder}: {error.strerror}") from None
    except ValueError:
        raise DeviceError(f"{folder / KEY} is damaged; remove it, and ask for a new token") from None
    write_private(folder / CA, ca)
    SuperNodeFiles(folder, token.terms.address, socket.absolute(), token.name).write()
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
