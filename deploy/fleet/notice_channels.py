"""Ways on which notices leave the machine: webhooks and mail. Neither tells secrets or names of people.

A webhook gets a POST of JSON. With a secret it is signed: `X-Penchant-Signature: sha256=HEX` is the
HMAC-SHA256 under the secret of the header `X-Penchant-Timestamp`, a full stop, and the body.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import smtplib
import ssl
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Literal, Protocol
from urllib.parse import urlsplit

from penchant.common.errors import ConfigError, DeliveryError
from penchant.common.foreign_files import read_bytes
from penchant.common.printable import one_line
from penchant.deploy.fleet.notice_settings import NoticeSettings
from penchant.deploy.fleet.server_directory import ServerDirectory

__all__ = ["NoticeChannel", "NoticeEvent", "channels_of"]

SEND_SECONDS = 10.0  # that a webhook may take in all, a mail server for each word
SECRET_LEAST = 16  # bytes
TEXT_MOST = 600  # characters


@dataclass(frozen=True)
class NoticeEvent:
    """What is told: that something begins, gets another kind, or is over.

    Attributes:
        id: the same for each try to deliver it.
        event: what happened to the notice; "test" of one that is sent by hand.
        topic: what it is about, the same from its beginning to its end.
        kind: "bad" or "warn".
        title: what it is.
        text: more of it, and what to do.
        server: the address at which devices reach the server.
        at: when it was noticed, Unix seconds.
    """

    id: str
    event: Literal["begins", "changes", "ends", "test"]
    topic: str
    kind: str
    title: str
    text: str
    server: str
    at: float

    @property
    def heading(self) -> str:
        """One line for people."""
        over = "over: " if self.event == "ends" else ""
        return one_line(f"{over}{self.title}")


class NoticeChannel(Protocol):
    """A way out."""

    @property
    def name(self) -> str:
        """What logs and people call it; it holds nothing secret."""

    def send(self, event: NoticeEvent) -> None:
        """Deliver it. DeliveryError when it was not taken."""


def channels_of(server_directory: ServerDirectory) -> list[NoticeChannel]:
    """The ways that server.toml names. ConfigError when a file with a secret can't be read."""
    settings = server_directory.settings.notices
    secret = _secret(server_directory, settings.webhook_secret, SECRET_LEAST)
    found: list[NoticeChannel] = [
        _Webhook(url, secret, number) for number, url in enumerate(settings.webhooks, 1)
    ]
    if settings.smtp_host:
        found.append(_Mail(settings, _secret(server_directory, settings.smtp_password, 1).decode()))
    return found


class _Webhook:
    def __init__(self, url: str, secret: bytes, number: int) -> None:
        self._url = url
        self._secret = secret
        self._number = number

    @property
    def name(self) -> str:
        return f"webhook {self._number} ({urlsplit(self._url).hostname})"

    def send(self, event: NoticeEvent) -> None:
        words = f"[penchant {event.server}] {event.heading}. {event.text}"  # what chats show
        body = json.dumps({"version": 1, **asdict(event), "text": words, "detail": event.text}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "penchant"}
        if self._secret:
            stamp = str(int(time.time()))
            signature = hmac.new(self._secret, f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
            headers |= {"X-Penchant-Timestamp": stamp, "X-Penchant-Signature": f"sha256={signature}"}
        status = self._posted(body, headers)
        if not 200 <= status < 300:
            raise DeliveryError(f"{self.name} answers HTTP {status}")

    def _posted(self, body: bytes, headers: Mapping[str, str]) -> int:
        """-> the status of the answer; nothing else of it is read."""
        import httpx

        async def post() -> int:
            # The environment says which CAs are trusted, as for mail, but names no proxy and no account.
            client = httpx.AsyncClient(
                trust_env=False, verify=httpx.create_ssl_context(), timeout=SEND_SECONDS
            )
            async with asyncio.timeout(SEND_SECONDS):  # for all of it: httpx's own is for each read
                async with client, client.stream("POST", self._url, content=body, headers=headers) as answer:
                    return answer.status_code

        try:
            return asyncio.run(post())
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # they may hold the URL
            raise DeliveryError(f"{self.name} can't be reached: {type(error).__name__}") from None


class _Mail:
    def __init__(self, settings: NoticeSettings, password: str) -> None:
        self._settings = settings
        self._password = password

    @property
    def name(self) -> str:
        return f"mail by {self._settings.smtp_host}"

    def send(self, event: NoticeEvent) -> None:
        try:
            self._send(self._message(event))
        except (smtplib.SMTPException, OSError, ValueError) as error:  # they may hold account or password
            code = f" {error.smtp_code}" if isinstance(error, smtplib.SMTPResponseException) else ""
            raise DeliveryError(f"{self.name} fails: {type(error).__name__}{code}") from None

    def _send(self, message: EmailMessage) -> None:
        settings, context = self._settings, ssl.create_default_context()
        where = settings.smtp_host, settings.smtp_port
        if settings.smtp_security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(*where, timeout=SEND_SECONDS, context=context)
        else:
            server = smtplib.SMTP(*where, timeout=SEND_SECONDS)
        with server:
            if settings.smtp_security == "starttls":
                server.starttls(context=context)
            if settings.smtp_user:
                server.login(settings.smtp_user, self._password)
            server.send_message(message)

    def _message(self, event: NoticeEvent) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._settings.mail_from
        message["To"] = ", ".join(self._settings.mail_to)
        message["Subject"] = one_line(f"[penchant {event.server}] {event.heading}", 200)
        message["Date"] = formatdate(event.at)
        message["Message-ID"] = make_msgid(event.id, "penchant.invalid")
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(f"{event.heading}.\n\n{event.text}\n\nServer {event.server}\n")
        return message


def _secret(server_directory: ServerDirectory, name: str, least: int) -> bytes:
    if not name:
        return b""
    path = server_directory.file(name)
    try:
        secret = read_bytes(path, ConfigError, 4096).strip()
        secret.decode()
    except (FileNotFoundError, UnicodeDecodeError):
        raise ConfigError(f"{path} holds no secret; write it there, for your eyes alone") from None
    if len(secret) < least:
        raise ConfigError(f"the secret in {path} has fewer than {least} characters")
    return secret
