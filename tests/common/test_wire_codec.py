"""The codec: one encoding for each value, nothing else decodes, nothing is allocated without its bytes."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import fuzz_messages

from penchant.common import errors
from penchant.common.errors import CodecError, StageError
from penchant.common.wire import messages
from penchant.common.wire.codec import (
    MAGIC,
    PROTOCOL_VERSION,
    U8,
    U16,
    U64,
    AtMost,
    Exactly,
    Many,
    decode,
    decode_any,
    decode_record,
    encode,
    encode_record,
    message,
)
from penchant.common.wire.messages import Abort, AbortCode, Entry, Finished, Hello, Roster, Shares, Survivors

VECTORS = Path(__file__).parents[1] / "vectors"


class Colour(IntEnum):
    RED = 1
    BLUE = 7


@dataclass(frozen=True, slots=True)
class Inner:
    number: U16


@dataclass(frozen=True, slots=True)
class Everything:
    small: U8
    wide: U64
    flag: bool
    colour: Colour
    fixed: Annotated[bytes, Exactly(3)]
    bounded: Annotated[bytes, AtMost(4)]
    text: Annotated[str, AtMost(8)]
    items: Annotated[tuple[Inner, ...], Many(2)]
    nested: Inner


VALUE = Everything(255, 2**64 - 1, True, Colour.BLUE, b"abc", b"xy", "né", (Inner(1), Inner(258)), Inner(0))
WIRE = (
    "ff" "ffffffffffffffff" "01" "07" "616263"
    "00000002" "7879" "00000003" "6ec3a9"
    "00000002" "0001" "0102" "0000"
)  # fmt: skip


def test_what_each_type_looks_like() -> None:
    assert encode_record(VALUE).hex() == WIRE
    assert decode_record(bytes.fromhex(WIRE), Everything) == VALUE
    assert decode_record(memoryview(bytes.fromhex(WIRE)), Everything) == VALUE


@pytest.mark.parametrize("cut", range(len(WIRE) // 2))
def test_every_truncation_is_refused(cut: int) -> None:
    with pytest.raises(CodecError, match="too short"):
        decode_record(bytes.fromhex(WIRE)[:cut], Everything)


@pytest.mark.parametrize(
    ("at", "new", "why"),
    [
        (9, "02", "boolean"),
        (10, "02", "unknown Colour 2"),
        (14, "00000005", "at most 4 allowed"),
        (14, "ffffffff", "at most 4 allowed"),
        (20, "00000009", "at most 8 allowed"),
        (24, "ffffff", "not UTF-8"),
        (27, "00000003", "at most 2 allowed"),
    ],
)
def test_every_bound_holds(at: int, new: str, why: str) -> None:
    wire = bytearray(bytes.fromhex(WIRE))
    wire[at : at + len(new) // 2] = bytes.fromhex(new)
    with pytest.raises(CodecError, match=why):
        decode_record(bytes(wire), Everything)


def test_leftover_bytes_are_refused() -> None:
    with pytest.raises(CodecError, match="1 bytes left over"):
        decode_record(bytes.fromhex(WIRE) + b"\0", Everything)
    with pytest.raises(CodecError, match="left over"):
        decode(encode(Abort(AbortCode.STAGE)) + b"\0", Abort)


@pytest.mark.parametrize(
    "change",
    [
        {"small": 256},
        {"small": -1},
        {"small": True},
        {"wide": 1.5},
        {"flag": 1},
        {"colour": 7},
        {"fixed": b"ab"},
        {"fixed": bytearray(b"abc")},
        {"bounded": b"12345"},
        {"text": "123456789"},
        {"text": b"raw"},
        {"items": (Inner(1),) * 3},
        {"items": [Inner(1)]},
        {"nested": Finished(1, 1)},
    ],
)
def test_values_that_do_not_fit_are_not_encoded(change: dict[str, object]) -> None:
    values = {name: getattr(VALUE, name) for name in Everything.__dataclass_fields__}
    with pytest.raises(CodecError):
        encode_record(Everything(**{**values, **change}))  # type: ignore[arg-type]


def test_a_refused_count_allocates_nothing() -> None:
    """1,024 entries announced in a message of ten bytes: refused before the first is read."""
    head = encode(Roster(()))[:5]
    tracemalloc.start()
    for count in (1024, 2**32 - 1):
        with pytest.raises(CodecError):
            decode(head + count.to_bytes(4, "big") + b"\0", Roster)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000


def test_the_header() -> None:
    data = encode(Abort(AbortCode.POLICY))
    assert data == MAGIC + bytes([PROTOCOL_VERSION, 1, AbortCode.POLICY])
    with pytest.raises(CodecError, match="not a penchant message"):
        decode(b"XXX" + data[3:], Abort)
    with pytest.raises(CodecError, match="protocol version 9, here it is 3"):
        decode(data[:3] + b"\x09" + data[4:], Abort)
    with pytest.raises(CodecError, match="unknown message tag 250"):
        decode(data[:4] + b"\xfa" + data[5:], Abort)
    with pytest.raises(StageError, match="Abort where Roster or Survivors belongs"):
        decode_any(data, (Roster, Survivors))


def test_tags_are_unique_and_types_need_a_wire_type() -> None:
    with pytest.raises(TypeError, match="taken"):
        message(1)(Inner)
    with pytest.raises(TypeError, match="out of range"):
        message(0)(Inner)

    @dataclass(frozen=True)
    class Loose:
        number: int

    with pytest.raises(TypeError, match="no wire type"):
        encode_record(Loose(1))


@pytest.mark.parametrize("kind", fuzz_messages.MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_makes_the_round_trip(kind: type) -> None:
    rng = random.Random(kind.__name__)
    for _ in range(50):
        value = fuzz_messages.build(kind, rng)
        assert decode(encode(value), kind) == value


def test_no_vector_or_share_shows_in_a_repr() -> None:
    canary = b"canary-canary-canary-canary-canar"
    shown = [
        messages.Masked(bytes(64), canary),
        messages.Plain(canary),
        messages.Unmasking((canary,), (canary,)),
    ]
    assert all("canary" not in repr(value) for value in shown)


# --- vectors --------------------------------------------------------------------------------------


def cases(name: str) -> list[dict[str, str]]:
    loaded: list[dict[str, str]] = json.loads((VECTORS / name).read_text())["cases"]
    return loaded


@pytest.mark.parametrize("case", cases("messages.json"), ids=lambda case: case["name"])
def test_good_vectors(case: dict[str, str]) -> None:
    value = decode(bytes.fromhex(case["hex"]), getattr(messages, case["message"]))
    assert repr(value) == case["repr"]
    assert encode(value).hex() == case["hex"]


@pytest.mark.parametrize("case", cases("bad_messages.json"), ids=lambda case: case["name"])
def test_bad_vectors(case: dict[str, str]) -> None:
    with pytest.raises(getattr(errors, case["error"])) as caught:
        decode(bytes.fromhex(case["hex"]), getattr(messages, case["message"]))
    assert case["says"] in str(caught.value)


# --- fuzz -----------------------------------------------------------------------------------------


def test_a_short_fuzz_finds_nothing_and_reaches_every_field() -> None:
    """The same target, 10^6 inputs: docs/protocol.md."""
    _, hurt = fuzz_messages.fuzz(15_000, seed=2)
    assert {path for kind in fuzz_messages.MESSAGES for path in fuzz_messages.fields_of(kind)} <= set(hurt)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([target for target, _ in fuzz_messages.TARGETS]), st.randoms(use_true_random=False))
def test_the_same_targets_driven_by_hypothesis(target: Callable[..., str], rng: random.Random) -> None:
    """Which chooses every choice of theirs, and would shrink a finding to the smallest that shows it."""
    assert target(rng, Counter()) in ("refused", "accepted")


def test_the_fuzzer_would_notice_a_loose_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fuzz_messages, "decode", lambda data, kind: decode(data[:5] + data[5:].rstrip(b"\0"), kind)
    )
    with pytest.raises(AssertionError, match="input"):
        fuzz_messages.fuzz(15_000, seed=3)


def test_the_smallest_messages_are_as_small_as_they_say() -> None:
    assert len(encode(Hello(bytes(16), ()))) == 5 + 16 + 4 + 4
    assert len(encode(Shares(()))) == 9
    certificate, key = messages.Certificate(1, bytes(32), bytes(64)), bytes(32)
    assert len(encode(Entry(certificate, key, key, key, key, bytes(64)))) == 301
