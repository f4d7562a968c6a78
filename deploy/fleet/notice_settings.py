"""What server.toml says of notices: to whom they go, and how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from penchant.common.errors import ConfigError
from penchant.common.network import is_loopback
from penchant.common.settings import Section, setting

__all__ = ["NoticeSettings"]

_ADDRESS = re.compile(r"[^\s@<>,;:\"()]+@[A-Za-z0-9.-]+")


@dataclass(frozen=True)
class NoticeSettings(Section):
    """The table [notices] of server.toml."""

    after_seconds: int = setting(
        120, "How long something lasts before it is said, and is gone before that is.", low=0, high=86400
    )
    webhooks: tuple[str, ...] = setting((), "URLs that notices are posted to as JSON.")
    webhook_secret: str = setting("", "A file with the secret that webhooks are signed with.")
    smtp_host: str = setting("", "The mail server; empty for no mail.")
    smtp_port: int = setting(587, "The mail server's port.", low=1, high=65535)
    smtp_security: Literal["starttls", "tls", "none"] = setting(
        "starttls", "How the way to the mail server is secured; none for one on this machine."
    )
    smtp_user: str = setting("", "The account at the mail server; empty for none.")
    smtp_password: str = setting("", "A file with the account's password.")
    mail_from: str = setting("", "The sender of mail.")
    mail_to: tuple[str, ...] = setting((), "Who gets mail.")

    def _check(self) -> None:
        for url in self.webhooks:
            _check_url(url)
        if not self.smtp_host:
            return
        if not self.mail_from or not self.mail_to:
            raise ConfigError("server.notices: mail needs mail_from and mail_to")
        for address in (self.mail_from, *self.mail_to):
            if not _ADDRESS.fullmatch(address):
                raise ConfigError(f"server.notices: {address!r} is not a mail address")
        if bool(self.smtp_user) != bool(self.smtp_password):
            raise ConfigError("server.notices: smtp_user and smtp_password (a file) belong together")
        if self.smtp_security == "none" and not is_loopback(self.smtp_host):
            raise ConfigError(
                "server.notices: smtp_security is none beyond this machine; use starttls or tls"
            )

    @classmethod
    def _title(cls) -> str:
        return "server.notices"

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told."""
        return bool(self.webhooks or self.smtp_host)


def _check_url(url: str) -> None:
    """ConfigError, which repeats nothing that may be secret, unless it is https, or http on loopback."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ConfigError("server.notices.webhooks: one of them is not a URL") from None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        raise ConfigError(
            f"server.notices.webhooks: the one to {host or 'nowhere'} must begin with https:// "
            "(http:// on this machine alone)"
        )
