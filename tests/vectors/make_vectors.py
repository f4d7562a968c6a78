"""Write the JSON vectors beside this file: `python tests/vectors/make_vectors.py`.

They pin the wire format and the protocol's derivations; a change here is a change of protocol version. Good
vectors are made from seeds, bad ones by hand from good ones.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support import fuzz_messages
from support.scene import NOW, SEED, Scene, identity

from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import AgreementKey
from penchant.common.crypto.masks import expand
from penchant.common.crypto.shamir import PRIME, split
from penchant.common.secagg import transcript as p
from penchant.common.secagg.quantization import Counter, Quantiser
from penchant.common.wire import messages as m
from penchant.common.wire.codec import decode, encode

STAGES = ("keys", "shares", "masked", "confirm", "unmask")


def write(name: str, about: str, cases: list[dict[str, Any]], **more: Any) -> None:
    text = json.dumps({"about": about, **more, "cases": cases}, indent=1, ensure_ascii=False)
    (HERE / name).write_text(text + "\n", encoding="utf-8")


def messages() -> None:
    cases = []
    for kind in fuzz_messages.MESSAGES:
        value = fuzz_messages.build(kind, random.Random(kind.__name__))
        cases.append(
            {"name": kind.__name__, "message": kind.__name__, "repr": repr(value), "hex": encode(value).hex()}
        )
    write("messages.json", "One message of each kind: bytes, and what they decode to.", cases)


def bad_messages() -> None:
    abort = encode(m.Abort(m.AbortCode.STAGE))
    survivors = encode(m.Survivors((0, 1), (0,)))
    masked = encode(m.Masked(bytes(64), b"abcd"))
    announce = encode(Scene(3).announce)
    status = encode(m.Status(True, 1, bytes(32)))
    roster = encode(m.Roster(()))
    rows = [
        ("empty", "Abort", b"", "CodecError", "too short"),
        ("header cut", "Abort", abort[:4], "CodecError", "too short"),
        ("other magic", "Abort", b"PEM" + abort[3:], "CodecError", "not a penchant message"),
        ("version 0", "Abort", abort[:3] + b"\0" + abort[4:], "CodecError", "protocol version 0"),
        ("version 1", "Abort", abort[:3] + b"\1" + abort[4:], "CodecError", "protocol version 1"),
        ("version 2", "Abort", abort[:3] + b"\2" + abort[4:], "CodecError", "protocol version 2"),
        ("version 4", "Abort", abort[:3] + b"\4" + abort[4:], "CodecError", "protocol version 4"),
        ("unknown tag", "Abort", abort[:4] + b"\xc8" + abort[5:], "CodecError", "unknown message tag 200"),
        ("another message", "Roster", survivors, "StageError", "Survivors where Roster belongs"),
        ("leftover", "Abort", abort + b"\0", "CodecError", "1 bytes left over"),
        ("code 0", "Abort", abort[:5] + b"\0", "CodecError", "unknown AbortCode 0"),
        ("code 99", "Abort", abort[:5] + b"\x63", "CodecError", "unknown AbortCode 99"),
        ("ready 2", "Status", status[:5] + b"\2" + status[6:], "CodecError", "neither 0 nor 1"),
        ("kind 3", "Announce", announce[:5] + b"\3" + announce[6:], "CodecError", "unknown Kind 3"),
        (
            "count beyond bound",
            "Roster",
            roster[:5] + (1025).to_bytes(4, "big"),
            "CodecError",
            "at most 1024",
        ),
        ("count beyond message", "Roster", roster[:5] + (1024).to_bytes(4, "big"), "CodecError", "too short"),
        ("count too small", "Survivors", survivors[:8] + b"\1" + survivors[9:], "CodecError", "at most 1024"),
        ("length beyond bound", "Masked", masked[:69] + b"\xff" * 4 + b"abcd", "CodecError", "at most"),
        ("length beyond message", "Masked", masked[:72] + b"\5abcd", "CodecError", "too short"),
        ("length too small", "Masked", masked[:72] + b"\3abcd", "CodecError", "left over"),
        ("signature cut", "Confirmation", encode(m.Confirmation(bytes(64)))[:-1], "CodecError", "too short"),
    ]
    cases = [
        {"name": name, "message": message, "hex": data.hex(), "error": error, "says": says}
        for name, message, data, error, says in rows
    ]
    write("bad_messages.json", "Bytes that must be refused, the error, and a part of what it says.", cases)


def shamir() -> None:
    cases = []
    for t, n in ((1, 3), (2, 3), (3, 4), (7, 10)):
        secret = SeededEntropy(SEED, f"vector secret {t}").draw(32)
        drawn = SeededEntropy(SEED, f"vector coefficients {t}").draw(48 * (t - 1))

        class Scripted:
            def draw(self, count: int, drawn: bytes = drawn) -> bytes:
                return drawn

        shares = split(secret, t, n, Scripted())
        cases.append(
            {
                "name": f"{t} of {n}",
                "threshold": t,
                "count": n,
                "secret": secret.hex(),
                "drawn": drawn.hex(),
                "shares": [share.hex() for share in shares],
            }
        )
    about = (
        "Shares at 1..n of a 32-byte secret over GF(2^256 + 297); coefficients, highest first, 48 bytes each."
    )
    write("shamir.json", about, cases)
    good = {str(x + 1): share for x, share in enumerate(cases[3]["shares"])}
    beyond = PRIME.to_bytes(33, "big").hex()
    bad = [
        ("two wrong of ten, three above the threshold", {**good, "1": "00" * 33, "2": "00" * 33}, 7),
        ("fewer than the threshold", {x: good[x] for x in "123456"}, 7),
        ("all outside the field", dict.fromkeys(good, beyond), 7),
        ("a secret of more than 32 bytes", {str(x): "01" + "00" * 32 for x in range(1, 6)}, 1),
    ]
    rows = [{"name": name, "threshold": t, "shares": shares} for name, shares, t in bad]
    write("bad_shamir.json", "Shares from which no secret may be rebuilt.", rows)


def rounds() -> None:
    """A whole round of five; device 2 is lost before its vector. Seeded as tests/support/scene.py says."""
    scene = Scene(5)
    asked: dict[tuple[str, int], bytes] = {}

    def note(stage: str, node: int, request: bytes) -> bytes:
        asked[stage, node] = request
        return request

    aggregate = scene.run({"masked": [2]}, twist=note)
    cases = [
        {
            "name": f"{stage} {node}",
            "stage": stage,
            "device": node,
            "request": asked[stage, node].hex(),
            "reply": scene.sent[stage][node].hex(),
        }
        for stage in STAGES
        for node in sorted(scene.sent[stage])
    ]
    write(
        "round.json",
        "Every message of a round of five devices, of which device 2 is lost in stage masked.",
        cases,
        now=NOW,
        entropy=[f"SeededEntropy({SEED!r}, 'entropy  {i}')" for i in range(5)],
        identities=[identity(i + 1).private.hex() for i in range(5)],
        vectors=[vector.tolist() for vector in scene.vectors],
        total=aggregate.total.tolist(),
    )


def bad_rounds() -> None:
    """One wrong request to device 1 in each way, with the state that an honest round brought it to."""
    five = Scene(5).play_to("shares")
    roster = decode(five.requests[1], m.Roster)
    masked = decode(Scene(5).play_to("masked").requests[1], m.Delivery)
    given = decode(Scene(5).play_to("unmask").requests[1], m.Confirmations)
    old = decode(Scene(5, changes={"attempt": 2}).play_to("shares").requests[1], m.Roster).entries[3]
    entries = roster.entries
    rows = [
        ("own entry missing", "shares", m.Roster(entries[:1] + entries[2:]), "AgreementError"),
        ("entry of another attempt", "shares", m.Roster((*entries[:3], old, entries[4])), "AgreementError"),
        ("out of order", "shares", m.Roster(entries[::-1]), "AgreementError"),
        ("a survivors message", "shares", m.Survivors((), ()), "StageError"),
        ("not in U2", "masked", m.Delivery((0, 2, 3, 4), masked.sealed[:3]), "AgreementError"),
        ("shares swapped", "masked", m.Delivery(masked.sharers, masked.sealed[::-1]), "SecretSharingError"),
        ("U2 below t", "masked", m.Delivery((0, 1, 2), masked.sealed[:2]), "PolicyRefusal"),
        ("another U2", "confirm", m.Survivors((0, 1, 2, 3), (0, 1, 2, 3)), "AgreementError"),
        ("not in U3", "confirm", m.Survivors((0, 1, 2, 3, 4), (0, 2, 3, 4)), "AgreementError"),
        ("U3 below t", "confirm", m.Survivors((0, 1, 2, 3, 4), (0, 1, 2)), "PolicyRefusal"),
        ("too few signatures", "unmask", m.Confirmations((0, 1, 2), given.signatures[:3]), "PolicyRefusal"),
        (
            "signatures in another order",
            "unmask",
            m.Confirmations(given.signers, given.signatures[::-1]),
            "SignatureError",
        ),
    ]
    cases = [
        {"name": name, "stage": stage, "device": 1, "request": encode(value).hex(), "error": error}
        for name, stage, value, error in rows
    ]
    write("bad_round.json", "Requests that device 1 must refuse in an honest round of five.", cases)


def derivations() -> None:
    """What both roles derive in the round of `rounds`, between devices 0 and 3."""
    scene = Scene(5).play_to("shares")
    roster = decode(scene.requests[0], m.Roster)
    zero, three = scene.states[0], scene.states[3]
    context, digest = p.context_digest(scene.announce), p.roster_digest(roster)
    masks = AgreementKey(zero.mask_private).agree(three.entry.mask_key)
    channel = AgreementKey(zero.channel_private).agree(three.entry.channel_key)
    self_key = p.self_mask_key(zero.seed, context, digest, 0)
    pair_key = p.pair_mask_key(masks, context, digest, 3, 0)
    values = [
        ("announcement", encode(scene.announce)),
        ("context", context),
        ("roster", encode(roster)),
        ("roster digest", digest),
        ("seed of 0", zero.seed),
        ("commitment of 0", p.commitment(zero.seed, context, 1)),
        ("entry text of 0", p.entry_text(roster.entries[0])),
        ("mask private key of 0", zero.mask_private),
        ("agreement of mask keys 0, 3", masks),
        ("self-mask key of 0", self_key),
        ("self mask of 0, 16 bytes", expand(self_key, 4).tobytes()),
        ("pair-mask key of 0, 3", pair_key),
        ("pair mask of 0, 3, 16 bytes", expand(pair_key, 4).tobytes()),
        ("channel private key of 0", zero.channel_private),
        ("agreement of channel keys 0, 3", channel),
        ("sealing key 0 to 3", p.seal_key(channel, context, digest, 0, 3)),
        ("associated data 0 to 3", p.sealed_for(context, digest, 0, 3)),
        ("masked text of an empty vector", p.masked_text(context, digest, b"")),
        (
            "confirmation text of U2 = 0..4, U3 = 0, 1, 3, 4",
            p.confirmation_text(context, digest, (0, 1, 2, 3, 4), (0, 1, 3, 4)),
        ),
    ]
    cases = [{"name": name, "hex": value.hex()} for name, value in values]
    write("derivations.json", "Digests, texts and keys of the round in round.json.", cases)


def quantised() -> None:
    cases = []
    for ring in (32, 64):
        quantiser = Quantiser.choose(
            size=5, members=100, weight=20, clip=0.5, counters=(Counter("loss", 64, 2.0**-10),), ring=ring
        )
        update, key = [0.5, -0.5, 0.125, 1e-9, 0.0], bytes(range(32))
        vector = quantiser.quantise(np.array(update), 7, {"loss": 3.25}, key)
        cases.append(
            {
                "name": f"ring {ring}",
                "ring": ring,
                "levels": quantiser.levels,
                "update": update,
                "key": key.hex(),
                "vector": vector.view(f"<i{ring // 8}").tolist(),
            }
        )
    about = "Five numbers of weight 7 (W = 20, C = 0.5, n = 100) and a loss of 3.25 in units of 1/1024."
    write("quantise.json", about, cases)


if __name__ == "__main__":
    messages()
    bad_messages()
    shamir()
    rounds()
    bad_rounds()
    derivations()
    quantised()
