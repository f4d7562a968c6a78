"""Where a process of the server listens: HOST:PORT."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from penchant.common.errors import ConfigError, GatewayError
from penchant.common.network import is_loopback

__all__ = ["ListenAddress"]

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


@dataclass(frozen=True)
class ListenAddress:
    """A host name or IP address, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, what: str) -> ListenAddress:
        """Read HOST:PORT; what: what the ConfigError for anything else calls it."""
        found = _ADDRESS.fullmatch(text)
        if found is None or not 1 <= int(found[2]) <= 65535:
            raise ConfigError(f"{what}: {text!r} is not HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464")
        return cls(found[1].strip("[]"), int(found[2]))

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    def bind(self) -> socket.socket:
        """A socket that listens there. GatewayError in one line when another program holds the port, or there
        is no such address."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((self.host, self.port))
            found.listen()  # only now is it known that nobody else does
        except OSError as error:
            found.close()
            raise GatewayError(f"can't listen at {self}: {error.strerror}; choose another address") from None
        return found

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
