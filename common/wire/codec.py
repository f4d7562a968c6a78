"""A strict binary codec, declared by the fields of frozen dataclasses.

One value has exactly one encoding and decoding accepts nothing else: integers have fixed widths (big
endian), every length is checked against its bound *and* against the bytes that are really there before
anything is allocated, booleans are 0 or 1, enums hold known values, text is UTF-8, and leftover bytes
are refused. A field says its wire type in its annotation::

    @dataclass(frozen=True, slots=True)
    class Finished:
        round: U32
        attempt: U16

A message (a dataclass that travels on its own) is registered with `message(tag)`; its encoding starts
with the magic number, the protocol version and that tag.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from typing import Annotated, Any, Final, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints

from penchant.common.errors import CodecError, StageError

__all__ = [
    "MAGIC",
    "PROTOCOL_VERSION",
    "U8",
    "U16",
    "U32",
    "U64",
    "AtMost",
    "Exactly",
    "Many",
    "Unsigned",
    "decode",
    "decode_any",
    "decode_record",
    "encode",
    "encode_record",
    "message",
]

MAGIC: Final = b"PEN"
PROTOCOL_VERSION: Final = 3
_HEADER: Final = struct.Struct(">3sBB")

Buffer = bytes | memoryview
T = TypeVar("T")


# --- what an annotation may say -------------------------------------------------------------------


@dataclass(frozen=True)
class Unsigned:
    """An unsigned integer of `width` bytes: 1, 2, 4 or 8."""

    width: int


@dataclass(frozen=True)
class Exactly:
    """Bytes of a fixed length; nothing but them is on the wire."""

    length: int


@dataclass(frozen=True)
class AtMost:
    """Bytes (or UTF-8 text) of up to `length` bytes, after a 4-byte length."""

    length: int


@dataclass(frozen=True)
class Many:
    """A tuple of up to `count` items, after a 4-byte count."""

    count: int


U8 = Annotated[int, Unsigned(1)]
U16 = Annotated[int, Unsigned(2)]
U32 = Annotated[int, Unsigned(4)]
U64 = Annotated[int, Unsigned(8)]


# --- one codec per wire type ----------------------------------------------------------------------


class _Codec(Protocol):
    """Writes one value to a list of chunks; reads one from a buffer at a position.

    `least` is the smallest encoding in bytes, so that a count can be refused before its items are read.
    """

    least: int

    def write(self, value: Any, out: list[bytes]) -> None: ...

    def read(self, data: Buffer, at: int) -> tuple[Any, int]: ...


_INTEGERS: Final = {
    1: struct.Struct(">B"),
    2: struct.Struct(">H"),
    4: struct.Struct(">I"),
    8: struct.Struct(">Q"),
}
_LENGTH: Final = _INTEGERS[4]


def _need(data: Buffer, at: int, length: int) -> int:
    """The position after `length` bytes from `at`, refused if they are not all there."""
    end = at + length
    if end > len(data):
        raise CodecError(f"message too short: {length} bytes expected at offset {at}, {len(data) - at} left")
    return end


class _Integer:
    def __init__(self, width: int) -> None:
        self.least = width
        self.struct = _INTEGERS[width]
        self.limit = 1 << (8 * width)

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not int or not 0 <= value < self.limit:
            raise CodecError(f"an unsigned integer of {self.least} bytes can't hold this value")
        out.append(self.struct.pack(value))

    def read(self, data: Buffer, at: int) -> tuple[int, int]:
        end = _need(data, at, self.least)
        return self.struct.unpack_from(data, at)[0], end


class _Boolean:
    least = 1

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not bool:
            raise CodecError("a boolean field holds something else")
        out.append(b"\x01" if value else b"\x00")

    def read(self, data: Buffer, at: int) -> tuple[bool, int]:
        end = _need(data, at, 1)
        if data[at] > 1:
            raise CodecError(f"a boolean at offset {at} is neither 0 nor 1")
        return data[at] == 1, end


class _Enumeration:
    least = 1

    def __init__(self, kind: type[IntEnum]) -> None:
        self.kind = kind
        self.values = {int(member): member for member in kind}

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not self.kind:
            raise CodecError(f"a {self.kind.__name__} field holds something else")
        out.append(bytes((value,)))

    def read(self, data: Buffer, at: int) -> tuple[IntEnum, int]:
        end = _need(data, at, 1)
        member = self.values.get(data[at])
        if member is None:
            raise CodecError(f"unknown {self.kind.__name__} {data[at]} at offset {at}")
        return member, end


class _Fixed:
    def __init__(self, length: int) -> None:
        self.least = length

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not bytes or len(value) != self.least:
            raise CodecError(f"a field of exactly {self.least} bytes holds something else")
        out.append(value)

    def read(self, data: Buffer, at: int) -> tuple[bytes, int]:
        end = _need(data, at, self.least)
        return bytes(data[at:end]), end


class _Bounded:
    least = 4

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not bytes or len(value) > self.limit:
            raise CodecError(f"a field of at most {self.limit} bytes holds something else")
        out += (_LENGTH.pack(len(value)), value)

    def read(self, data: Buffer, at: int) -> tuple[bytes, int]:
        start = _need(data, at, 4)
        (length,) = _LENGTH.unpack_from(data, at)
        if length > self.limit:
            raise CodecError(f"{length} bytes announced at offset {at}, at most {self.limit} allowed")
        end = _need(data, start, length)
        return bytes(data[start:end]), end


class _Text:
    least = 4

    def __init__(self, limit: int) -> None:
        self.raw = _Bounded(limit)

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not str:
            raise CodecError("a text field holds something else")
        self.raw.write(value.encode("utf-8"), out)

    def read(self, data: Buffer, at: int) -> tuple[str, int]:
        raw, end = self.raw.read(data, at)
        try:
            return raw.decode("utf-8"), end
        except UnicodeDecodeError:
            raise CodecError(f"text at offset {at} is not UTF-8") from None


class _Sequence:
    least = 4

    def __init__(self, item: _Codec, limit: int) -> None:
        self.item = item
        self.limit = limit

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not tuple or len(value) > self.limit:
            raise CodecError(f"a field of at most {self.limit} items holds something else")
        out.append(_LENGTH.pack(len(value)))
        for item in value:
            self.item.write(item, out)

    def read(self, data: Buffer, at: int) -> tuple[tuple[Any, ...], int]:
        start = _need(data, at, 4)
        (count,) = _LENGTH.unpack_from(data, at)
        if count > self.limit:
            raise CodecError(f"{count} items announced at offset {at}, at most {self.limit} allowed")
        _need(data, start, count * self.item.least)
        at, items = start, []
        for _ in range(count):
            item, at = self.item.read(data, at)
            items.append(item)
        return tuple(items), at


class _Record:
    """A dataclass: its fields one after another, in the order of their declaration."""

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        hints = get_type_hints(kind, include_extras=True)
        self.fields = [(field.name, _codec(hints[field.name])) for field in fields(kind)]
        self.readers = [codec.read for _, codec in self.fields]
        self.least = sum(codec.least for _, codec in self.fields)

    def write(self, value: Any, out: list[bytes]) -> None:
        if type(value) is not self.kind:
            raise CodecError(f"a {self.kind.__name__} field holds something else")
        for name, codec in self.fields:
            try:
                codec.write(getattr(value, name), out)
            except CodecError as error:
                raise CodecError(f"{self.kind.__name__}.{name}: {error}") from None

    def read(self, data: Buffer, at: int) -> tuple[Any, int]:
        values = []
        for read in self.readers:
            value, at = read(data, at)
            values.append(value)
        return self.kind(*values), at


def _codec(hint: Any) -> _Codec:
    """The codec that a field's annotation asks for; raises `TypeError` for what has no wire type."""
    rule: object = None
    if get_origin(hint) is Annotated:
        hint, rule = get_args(hint)
    if hint is int and isinstance(rule, Unsigned):
        return _Integer(rule.width)
    if hint is bool:
        return _Boolean()
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return _Enumeration(hint)
    if hint is bytes and isinstance(rule, Exactly):
        return _Fixed(rule.length)
    if hint is bytes and isinstance(rule, AtMost):
        return _Bounded(rule.length)
    if hint is str and isinstance(rule, AtMost):
        return _Text(rule.length)
    if get_origin(hint) is tuple and isinstance(rule, Many):
        return _Sequence(_codec(get_args(hint)[0]), rule.count)
    if is_dataclass(hint):
        return _record(cast("type[Any]", hint))
    raise TypeError(f"no wire type for {hint!r}")


_RECORDS: dict[type[Any], _Record] = {}


def _record(kind: type[Any]) -> _Record:
    record = _RECORDS.get(kind)
    if record is None:
        record = _RECORDS[kind] = _Record(kind)
    return record


# --- records without a header: parts of messages, files, state ------------------------------------


def encode_record(value: object) -> bytes:
    """The canonical bytes of a dataclass, without header; `CodecError` if a field can't hold its value."""
    out: list[bytes] = []
    _record(type(value)).write(value, out)
    return b"".join(out)


def decode_record(data: Buffer, kind: type[T]) -> T:
    """The `kind` that `data` encodes without header, all of it. Raises `CodecError`."""
    value, end = _record(kind).read(data, 0)
    if end != len(data):
        raise CodecError(f"{len(data) - end} bytes left over after a {kind.__name__}")
    return cast("T", value)


# --- messages -------------------------------------------------------------------------------------

_BY_TAG: dict[int, type[Any]] = {}
_TAGS: dict[type[Any], int] = {}


def message(tag: int) -> Callable[[type[T]], type[T]]:
    """Class decorator: the dataclass travels on its own, under `tag` (1..255, unique)."""

    def register(kind: type[T]) -> type[T]:
        if not 0 < tag < 256 or tag in _BY_TAG:
            raise TypeError(f"message tag {tag} is out of range or taken")
        _BY_TAG[tag] = kind
        _TAGS[kind] = tag
        return kind

    return register


def encode(value: object) -> bytes:
    """The bytes of a message: magic, version, tag, fields; `CodecError` if a field can't hold its value."""
    out = [_HEADER.pack(MAGIC, PROTOCOL_VERSION, _TAGS[type(value)])]
    _record(type(value)).write(value, out)
    return b"".join(out)


def decode_any(data: Buffer, kinds: Sequence[type[Any]]) -> Any:
    """The one message in `data`, of one of `kinds`.

    Raises:
        CodecError: not a message, of another protocol version, malformed, or with bytes left over.
        StageError: a message that exists, but is not one of `kinds`.
    """
    _need(data, 0, _HEADER.size)
    magic, version, tag = _HEADER.unpack_from(data, 0)
    if magic != MAGIC:
        raise CodecError("not a penchant message")
    if version != PROTOCOL_VERSION:
        raise CodecError(f"protocol version {version}, here it is {PROTOCOL_VERSION}: update the older side")
    kind = _BY_TAG.get(tag)
    if kind is None:
        raise CodecError(f"unknown message tag {tag}")
    if kind not in kinds:
        expected = " or ".join(k.__name__ for k in kinds)
        raise StageError(f"{kind.__name__} where {expected} belongs: a stage was skipped or repeated")
    value, end = _record(kind).read(data, _HEADER.size)
    if end != len(data):
        raise CodecError(f"{len(data) - end} bytes left over after a {kind.__name__}")
    return value


def decode(data: Buffer, kind: type[T]) -> T:
    """The message of type `kind` in `data`; errors as `decode_any`."""
    return cast("T", decode_any(data, (kind,)))
