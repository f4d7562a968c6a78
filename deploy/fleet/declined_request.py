"""What the authority leaves about a request that it declined or could not read: why, and which request.

A server that may only read the folder can't remove the file, and somebody may ask once more by the same name
before the authority looks again. So the file names the bytes that it is about, and says nothing of others:

    the authority declined
    request 5e88…42d8          the SHA-256 of the request's file

Earlier versions wrote the first line alone, and so is written of what could not be read at all.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from penchant.common.printable import one_line

__all__ = ["SAID_MOST", "DeclinedRequest", "digest_of"]

SAID_MOST = 1024  # bytes of the file
WHY_MOST = 200  # characters of a reason: fewer bytes than the file may have
_NAMED = re.compile(r"(.*)\nrequest ([0-9a-f]{64})\n?", re.DOTALL)


@dataclass(frozen=True)
class DeclinedRequest:
    """why: in a line; request: `digest_of` the request, empty where the file names none."""

    why: str
    request: str

    @classmethod
    def of(cls, why: str, request: bytes | None) -> DeclinedRequest:
        """About these bytes; None for a file that can't be read."""
        return cls(one_line(why, WHY_MOST), "" if request is None else digest_of(request))

    def encode(self) -> bytes:
        """The file."""
        return f"{self.why}\nrequest {self.request}\n".encode() if self.request else self.why.encode()

    @classmethod
    def decode(cls, data: bytes) -> DeclinedRequest:
        """Undo `encode`. Whatever else it is, is a reason that names no request."""
        text = data.decode("utf-8", "replace")
        found = _NAMED.fullmatch(text)
        why, request = found.groups() if found else (text, "")
        return cls(one_line(why), request)

    def is_about(self, request: bytes, *, once: bool) -> bool:
        """Whether it is about these bytes.

        once: whether nothing else was ever asked for by the name of this request, so that a file that names
            none can be about nothing else.
        """
        return self.request == digest_of(request) if self.request else once


def digest_of(request: bytes) -> str:
    """The SHA-256 of a request's file, in hexadecimal."""
    return hashlib.sha256(request).hexdigest()
