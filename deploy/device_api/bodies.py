"""What programs send: read within bounds, and checked field by field before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from penchant.common.data.preferences import check_text, kind_of
from penchant.common.errors import DataError
from penchant.common.foreign_files import finite_json
from penchant.deploy.device_api.dialects import ApiRefusal
from penchant.server.console.at_once import HTTPError
from penchant.server.console.request_body import BODY_SECONDS, read_body

__all__ = ["EXPORT_DEPTH_MOST", "ApiLimits", "Fields", "body_of", "check_depth", "table_of"]

JSON_KINDS = ("application/json",)
DEPTH_MOST = 64  # lists and objects within each other
EXPORT_DEPTH_MOST = 1000  # as deep as Python reads a file: a chat may hold each message in the one before


@dataclass(frozen=True)
class ApiLimits:
    """How much one request, and all together, may ask for.

    Attributes:
        body: bytes of a request's body.
        body_seconds: for all of it to come.
        documents: texts that one request may have scored.
        characters: of one text; the model reads fewer in any case.
        rows: that one body of feedback may have, bad ones too.
        choices: that one body of feedback may make.
        choice_characters: of all texts of these together; many choices may have one long prompt.
        waiting: requests that are being scored or wait for it.
        waiting_texts: their texts.
        chats: conversations that are with the upstream at the same time.
    """

    body: int = 4 << 20
    body_seconds: float = BODY_SECONDS
    documents: int = 1000
    characters: int = 200_000
    rows: int = 20_000
    choices: int = 10_000
    choice_characters: int = 32 << 20
    waiting: int = 128
    waiting_texts: int = 4000
    chats: int = 16


async def body_of(request: Request, limits: ApiLimits, kinds: Sequence[str] = JSON_KINDS) -> bytes:
    """The bytes of a body. ApiRefusal when it is too long, too slow, or is not said to be of these kinds."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        raise ApiRefusal(415, f"the header Content-Type must be {' or '.join(kinds)}")
    advice = "; send less at a time"
    try:
        return await read_body(request, limits.body, seconds=limits.body_seconds, advice=advice)
    except HTTPError as refused:
        raise ApiRefusal(refused.status, str(refused)) from None


async def table_of(request: Request, limits: ApiLimits) -> dict[str, Any]:
    """The JSON object of a body, every text in it valid. ApiRefusal as `body_of`, or when it is no such
    object."""
    data = await body_of(request, limits)
    try:
        value = finite_json(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ApiRefusal(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError):  # ValueError: also a number of more digits than Python reads
        raise ApiRefusal(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise ApiRefusal(422, f"the body must be a JSON object, not {kind_of(value)}")
    check_depth(value)
    return value


def check_depth(value: object, most: int = DEPTH_MOST) -> None:
    """ApiRefusal when lists and objects lie too deep in each other, or a text holds half a character."""
    level: list[object] = [value]
    for _ in range(most):
        deeper: list[object] = []
        for one in level:
            if isinstance(one, dict):
                deeper += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                deeper += one
            elif isinstance(one, str):
                _valid(one)
        if not deeper:
            return
        level = deeper
    raise ApiRefusal(422, f"the body has lists and objects more than {most} deep")


class Fields:
    """The fields of a request, each of the kind that is asked for. ApiRefusal names the field that isn't.

    A field that is null counts as not given.
    """

    def __init__(self, table: Mapping[str, Any], limits: ApiLimits) -> None:
        self._table = table
        self._limits = limits

    def __contains__(self, name: str) -> bool:
        return self._table.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise ApiRefusal(422, f"{name!r} is missing")
        return self._table[name]

    def text(self, name: str) -> str:
        """A text."""
        value = self[name]
        if not isinstance(value, str):
            raise ApiRefusal(422, f"{name!r} must be a string, not {kind_of(value)}")
        return self.bounded(name, value)

    def entries(self, name: str) -> list[Any]:
        """A list with at least one entry, and no more than may be scored at a time."""
        value = self[name]
        if not isinstance(value, list):
            raise ApiRefusal(422, f"{name!r} must be a list, not {kind_of(value)}")
        if not value:
            raise ApiRefusal(400, f"{name!r} is empty; give at least one text")
        if len(value) > self._limits.documents:
            raise ApiRefusal(
                413, f"{name!r} has {len(value)} entries; {self._limits.documents} are the most at a time"
            )
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts, as `entries`."""
        value = self.entries(name)
        for place, one in enumerate(value):
            if not isinstance(one, str):
                raise ApiRefusal(422, f"{name!r} has an entry {place} that is {kind_of(one)}, not a string")
        return [self.bounded(name, one) for one in value]

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._table.get(name)
        if value is not None and not isinstance(value, bool):
            raise ApiRefusal(422, f"{name!r} must be true or false, not {kind_of(value)}")
        return default if value is None else value

    def whole(self, name: str, default: int, *, least: int = 0) -> int:
        """A whole number."""
        value = self._table.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise ApiRefusal(422, f"{name!r} must be a whole number, not {_number_or(value)}")
        if value < least:
            raise ApiRefusal(422, f"{name!r} must be {least} or more")
        return value

    def bounded(self, name: str, text: str) -> str:
        """The same text, unless it is too long."""
        if len(text) > self._limits.characters:
            raise ApiRefusal(
                413, f"{name!r} has a text of {len(text)} characters; {self._limits.characters} are the most"
            )
        return text


# --- inner parts --------------------------------------------------------------------------------------


def _number_or(value: object) -> str:
    return "one with a fraction" if isinstance(value, float) else kind_of(value)


def _valid(text: str) -> None:
    try:
        check_text("a text", text)
    except DataError:
        raise ApiRefusal(422, "a text contains a lone surrogate, so it is not valid text") from None
