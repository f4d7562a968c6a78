"""Files that a browser hands over: read in memory within bounds, and never written to a disk in clear."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request

from penchant.common.data.row_files import FileInMemory
from penchant.common.printable import one_line
from penchant.server.console.at_once import HTTPError
from penchant.server.console.request_body import read_body

__all__ = ["UPLOAD_MOST", "UploadForm", "read_upload"]

UPLOAD_MOST = 32 << 20  # bytes
UPLOAD_SECONDS = 120.0
PARTS_MOST = 10
FIELD_MOST = 4096  # bytes of a field that is no file
_KIND = re.compile(r'multipart/form-data;\s*boundary="?([\w\x27()+,./:=?-]{1,70})"?', re.ASCII)
_NAMED = re.compile(r'content-disposition:\s*form-data;\s*name="([^"]*)"(?:;\s*filename="([^"]*)")?', re.I)


@dataclass(frozen=True)
class UploadForm:
    """The fields of a form, and the file that came with it, if one did."""

    fields: Mapping[str, str] = field(repr=False)
    file: FileInMemory | None


async def read_upload(request: Request, most: int = UPLOAD_MOST) -> UploadForm:
    """A form with a file. HTTPError when it is none, is longer than `most` bytes, or comes too slowly."""
    kind = _KIND.fullmatch(request.headers.get("content-type", ""))
    if kind is None:
        raise HTTPError("only a form with a file is understood here", status=415)
    advice = "; `penchant device import` takes it"
    body = await read_body(request, most, seconds=UPLOAD_SECONDS, what="the file", advice=advice)
    return _form(body, kind[1].encode())


def _form(body: bytes, boundary: bytes) -> UploadForm:
    """The parts between lines of the boundary, as RFC 7578 has them."""
    line = b"\r\n--" + boundary
    pieces = (b"\r\n" + body).split(line, PARTS_MOST + 2)
    if len(pieces) < 3 or len(pieces) > PARTS_MOST + 2 or not pieces[-1].startswith(b"--"):
        raise HTTPError("the form can't be read", status=400)
    fields: dict[str, str] = {}
    file = None
    for piece in pieces[1:-1]:
        head, gap, content = piece.partition(b"\r\n\r\n")
        named = _NAMED.search(head.decode("utf-8", "replace"))
        if not gap or named is None:
            raise HTTPError("the form can't be read", status=400)
        if named[2] is not None:
            file = FileInMemory(_file_name(named[2]), content) if named[2] else file
        elif len(content) > FIELD_MOST:
            raise HTTPError(f"the field {one_line(named[1], 40)} is too long", status=413)
        else:
            fields[named[1]] = content.decode("utf-8", "replace")
    return UploadForm(fields, file)


def _file_name(given: str) -> str:
    """The last part of a name, whatever system wrote it, cut so that its ending stays."""
    return one_line(re.split(r"[/\\]", given)[-1][-100:], 100)
