"""A structure-aware fuzzer for whatever is decoded: `python tests/support/fuzz_messages.py --inputs 1000000`.

It builds a random or an honest message, knows where each field lies in its bytes, and changes one field (or
cuts, extends, splices the bytes) in ways that hurt: counts and lengths beyond their bounds or beyond the
message, unknown enums, boundary integers, flipped bits, repeated and missing items. Then

- the codec must refuse with its typed error, or decode to a value that encodes to exactly these bytes;
- a device in any stage must refuse with a typed error, or answer;
- the server must set the sender aside or fail by type, or give the exact sum.

Anything else is a finding, and printed with the seed that repeats it. tests/common/test_wire_codec.py runs
a short one.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

from support.scene import Scene, plain_sum

from penchant.client.secagg import Confirmed, Keyed, Masking, SharesDealt, decode_state, encode_state
from penchant.common.errors import CodecError, PenchantError, StageError
from penchant.common.membership.identity import MemberList
from penchant.common.wire import messages
from penchant.common.wire.codec import (
    AtMost,
    Exactly,
    Many,
    Unsigned,
    decode,
    decode_record,
    encode,
    encode_record,
)
from penchant.server.secagg.aggregation import MemoryRecords

MESSAGES: list[type[Any]] = [
    kind
    for name in messages.__all__
    if is_dataclass(kind := getattr(messages, name)) and kind.__name__ not in ("Certificate", "Finished")
]
RECORDS: list[type[Any]] = [MemberList, Keyed, SharesDealt, Masking, Confirmed]
HEADER = 5  # magic, version, tag


# --- building -------------------------------------------------------------------------------------


@cache
def hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def build(hint: Any, rng: random.Random) -> Any:
    """A random valid value of a wire type, small, and at its bounds more often than by chance."""
    inner, rule = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    if isinstance(rule, Unsigned):
        top = 256**rule.width - 1
        return rng.choice([0, 1, top, rng.randint(0, top)])
    if inner is bool:
        return rng.random() < 0.5
    if isinstance(rule, Exactly):
        return rng.randbytes(rule.length)
    if isinstance(rule, AtMost):
        return rng.randbytes(rng.choice([0, 1, min(rule.length, 40)]))
    if isinstance(rule, Many):
        return tuple(build(get_args(inner)[0], rng) for _ in range(rng.choice([0, 1, 2, 5])))
    if isinstance(inner, type) and issubclass(inner, IntEnum):
        return rng.choice(list(inner))
    return inner(*(build(hint, rng) for hint in hints(inner).values()))


# --- where the fields lie -------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A field's place in the bytes. what: "integer", "enum", "bool", "bytes", "length" or "item"."""

    path: str
    what: str
    start: int
    end: int
    limit: int = 0  # of a length


def spans(hint: Any, value: Any, at: int, path: str) -> Iterator[Span]:
    """The spans of a value encoded from offset `at` on; the last one's end is the encoding's end."""
    inner, rule = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    if isinstance(rule, Unsigned):
        yield Span(path, "integer", at, at + rule.width)
    elif inner is bool:
        yield Span(path, "bool", at, at + 1)
    elif isinstance(rule, Exactly):
        yield Span(path, "bytes", at, at + rule.length)
    elif isinstance(rule, AtMost):
        yield Span(path, "length", at, at + 4, rule.length)
        yield Span(path, "bytes", at + 4, at + 4 + len(value))
    elif isinstance(rule, Many):
        yield Span(path, "length", at, at + 4, rule.count)
        at += 4
        for item in value:
            inside = list(spans(get_args(inner)[0], item, at, path + "[]"))
            yield from inside
            yield Span(path, "item", at, inside[-1].end)
            at = inside[-1].end
        yield Span(path, "end", at, at)
    elif isinstance(inner, type) and issubclass(inner, IntEnum):
        yield Span(path, "enum", at, at + 1)
    else:
        for field in fields(inner):
            inside = list(
                spans(hints(inner)[field.name], getattr(value, field.name), at, f"{path}.{field.name}")
            )
            yield from inside
            at = inside[-1].end
        yield Span(path, "end", at, at)


def hurt(data: bytes, span: Span, rng: random.Random) -> bytes:
    """The bytes with one field changed."""
    here, size = data[span.start : span.end], span.end - span.start
    if span.what == "item":
        return data[: span.start] + rng.choice([b"", here * 2]) + data[span.end :]
    if span.what in ("integer", "length"):
        old, top = int.from_bytes(here, "big"), 256**size - 1
        chosen = [0, 1, top, old + 1, old - 1, span.limit + 1, rng.randint(0, top), 1 << (8 * size - 1)]
        new = min(max(rng.choice(chosen), 0), top).to_bytes(size, "big")
    elif span.what in ("enum", "bool"):
        new = bytes([rng.choice([0, 2, 12, 13, 255, rng.randrange(256)])])
    else:
        flipped = bytearray(here or b"\0")
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        new = rng.choice([bytes(flipped), bytes(size), b"\xff" * size, here[:-1], here + b"\0"])
    return data[: span.start] + new + data[span.end :]


def mutate(
    data: bytes, kind: type[Any], value: Any, head: int, rng: random.Random, seen: Counter[str]
) -> bytes:
    """Hurt one field, or now and then the bytes as a whole."""
    if rng.random() < 0.15:
        cut = rng.randrange(len(data) + 1)
        return rng.choice(
            [data[:cut], data + rng.randbytes(3), data[:cut] + rng.randbytes(2) + data[cut:], data[cut:], b""]
        )
    if head and rng.random() < 0.05:
        return bytes([*rng.randbytes(head)]) + data[head:]
    places = [span for span in spans(kind, value, head, kind.__name__) if span.what != "end"]
    if not places:
        return data + b"\0"
    span = rng.choice(places)
    seen[span.path] += 1
    return hurt(data, span, rng)


# --- targets --------------------------------------------------------------------------------------


def fuzz_codec(rng: random.Random, seen: Counter[str]) -> str:
    """A random message or record, hurt: refused, or the one encoding of what it decodes to."""
    kind = rng.choice(MESSAGES)
    value = build(kind, rng)
    data = mutate(encode(value), kind, value, HEADER, rng, seen)
    try:
        again = encode(decode(data, kind))
    except (CodecError, StageError):
        return "refused"
    if again != data:
        raise AssertionError(f"{kind.__name__}: two encodings of one value")
    return "accepted"


def fuzz_record(rng: random.Random, seen: Counter[str]) -> str:
    """Files and states: the same without header."""
    kind = rng.choice(RECORDS)
    value = build(kind, rng)
    data = mutate(encode_record(value), kind, value, 0, rng, seen)
    try:
        decoded = decode_record(data, kind)
    except CodecError:
        return "refused"
    if encode_record(decoded) != data:
        raise AssertionError(f"{kind.__name__}: two encodings of one value")
    return "accepted"


@cache
def played(stage: str) -> tuple[Scene, dict[int, bytes]]:
    """An honest round of four up to `stage`: states to start from, as bytes."""
    scene = Scene(4, group=6).play_to(stage, silent={"masked": [3]})
    return scene, {node: encode_state(state) for node, state in scene.states.items()}


ASKED = {
    "keys": messages.Announce,
    "shares": messages.Roster,
    "masked": messages.Delivery,
    "confirm": messages.Survivors,
    "unmask": messages.Confirmations,
}
ANSWERED = {
    "keys": messages.Entry,
    "shares": messages.Shares,
    "masked": messages.Masked,
    "confirm": messages.Confirmation,
    "unmask": messages.Unmasking,
}


def fuzz_device(rng: random.Random, seen: Counter[str]) -> str:
    """An honest request, hurt, to a device in its stage: a typed refusal or an answer."""
    stage = rng.choice(list(ASKED))
    scene, states = played(stage)
    if states:
        scene.states[1] = decode_state(states[1])
    data = scene.requests[1]
    data = mutate(data, ASKED[stage], decode(data, ASKED[stage]), HEADER, rng, seen)
    try:
        scene.tell(stage, 1, data)
    except PenchantError:
        return "refused"
    return "accepted"


def fuzz_server(rng: random.Random, seen: Counter[str]) -> str:
    """A reply of one device, hurt, in a whole round: the exact sum of the survivors, or a typed failure."""
    stage, liar = rng.choice(list(ANSWERED)), rng.randrange(4)

    def lie(now: str, node: int, reply: bytes) -> bytes:
        if (now, node) != (stage, liar):
            return reply
        return mutate(reply, ANSWERED[stage], decode(reply, ANSWERED[stage]), HEADER, rng, seen)

    scene = Scene(4)
    scene.journal = MemoryRecords()
    try:
        aggregate = scene.run(lie=lie)
    except PenchantError:
        return "refused"
    if (aggregate.total != plain_sum(scene.vectors[i] for i in aggregate.survivors)).any():
        raise AssertionError(f"a lie at stage {stage} gave a wrong sum")
    return "accepted"


TARGETS = ((fuzz_codec, 80), (fuzz_record, 10), (fuzz_device, 9), (fuzz_server, 1))


def fields_of(kind: type[Any]) -> set[str]:
    """The paths of all fields of a message, those of nested records and items among them."""
    rng = random.Random(1)
    found: set[str] = set()
    while len(found) < 200:
        value = build(kind, rng)
        found |= {span.path for span in spans(kind, value, 0, kind.__name__) if span.what != "end"}
        if all(
            len(getattr(value, f.name)) for f in fields(value) if isinstance(getattr(value, f.name), tuple)
        ):
            return found
    return found


def fuzz(inputs: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """So many inputs; how often each target refused and accepted, and how often each field was hurt."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    chosen = rng.choices([target for target, _ in TARGETS], [weight for _, weight in TARGETS], k=inputs)
    for number, target in enumerate(chosen):
        try:
            outcomes[f"{target.__name__} {target(rng, seen)}"] += 1
        except Exception as error:
            raise AssertionError(f"input {number} of seed {seed}, {target.__name__}: {error!r}") from error
    return outcomes, seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    outcomes, seen = fuzz(chosen.inputs, chosen.seed)
    print(f"{chosen.inputs} inputs, seed {chosen.seed}, {time.monotonic() - began:.0f} s, no finding")
    for outcome, count in sorted(outcomes.items()):
        print(f"  {outcome:24s} {count}")
    missed = {path for kind in MESSAGES for path in fields_of(kind)} - set(seen)
    print(f"fields reached: {len(seen)}, never reached: {sorted(missed) or 'none'}")


if __name__ == "__main__":
    main()
