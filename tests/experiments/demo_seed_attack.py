"""What a server can do with masks from short seeds, and with clients that hand out both shares; and not here.

    python tests/experiments/demo_seed_attack.py [--bits 28]

Setting: of a group, everyone but Alice and Bob has dropped out or works with the server. The server may learn
Alice's and Bob's sum; it is after Alice's own update. All that still hides it is one pairwise mask.

1. *Short seeds.* The scheme attacked is a small reimplementation of what Flower 1.41 ships: the agreed key,
   in base64, is XOR-folded into 32 bits (28 vary: base64 has no high bits) that seed a Mersenne twister. The
   server tries seeds until what is left looks like an update: quantised values are below 2^22, and a wrong
   seed leaves numbers all over 2^32. All 28 bits take a minute or so; with fewer, the upper ones are taken as
   known. The same search on penchant's masks (AES-256-CTR under a 256-bit
   HKDF output) finds nothing.
2. *Both shares.* A client that answers by lists the server gives it, named alive and dead at once, hands out
   its shares of a peer's self mask *and* of its mask key: with t of each the peer's update lies open. In
   penchant the request can't even be written down, and signing two survivor lists never gets t signatures.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.scene import Scene

from penchant.common.crypto.entropy import Entropy, SystemEntropy
from penchant.common.crypto.keys import AgreementKey, derive
from penchant.common.crypto.masks import expand
from penchant.common.crypto.shamir import Combiner, split
from penchant.common.errors import ProtocolError
from penchant.common.secagg.transcript import pair_mask_key, threshold
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Confirmation, Confirmations, Survivors

MODULUS = 2**32
TARGET = 2**22  # quantised values lie below
WORDS = 64
LOOK = 6  # words that are enough to tell: a wrong key passes with probability 2^-60
BATCH = 1 << 14  # seeds tried at once


# --- 1. short seeds -------------------------------------------------------------------------------


def folded(agreed: bytes) -> int:
    """32 bytes, in base64, XORed together word by word: 28 bits vary."""
    text = base64.urlsafe_b64encode(agreed)
    return int(np.bitwise_xor.reduce(np.frombuffer(text, "<u4")))


def twister(seed: int, words: int = WORDS) -> NDArray[np.int64]:
    """The mask that such a seed gives."""
    return np.random.RandomState(seed).randint(0, MODULUS - 1, words, dtype=np.int64)


def first_words(seeds: NDArray[np.uint32], count: int) -> list[NDArray[np.uint32]]:
    """The first words of the twisters of many seeds at once (Matsumoto and Nishimura 1998).

    Only the state words that these outputs need are computed: 397 + count steps of the seeding.
    """
    state, needed = seeds.copy(), {}
    for place in range(397 + count):
        if place <= count or place >= 397:
            needed[place] = state.copy()
        state = np.uint32(1812433253) * (state ^ (state >> np.uint32(30))) + np.uint32(place + 1)
    words = []
    for place in range(count):
        y = (needed[place] & np.uint32(0x80000000)) | (needed[place + 1] & np.uint32(0x7FFFFFFF))
        y = needed[place + 397] ^ (y >> np.uint32(1)) ^ (y & np.uint32(1)) * np.uint32(0x9908B0DF)
        y ^= y >> np.uint32(11)
        y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
        y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
        words.append(y ^ (y >> np.uint32(18)))
    return words


def fits(residue: NDArray[np.int64]) -> bool:
    """Whether numbers look like a quantised update."""
    return bool((residue % MODULUS < TARGET).all())


def attack_short_seeds(masked: NDArray[np.int64], known: int, bits: int) -> tuple[int | None, int]:
    """Try all seeds whose bits above `bits` are those of `known`: (the seed or None, how many were tried).

    masked: Alice's vector after all masks but Bob's are off: update + mask(seed).
    """
    free = [place for place in range(32) if place % 8 != 7][:bits]  # the high bit of each byte never varies
    base = known & ~sum(1 << place for place in free)
    start = masked[:2].astype(np.uint32)
    for first in range(0, 1 << bits, BATCH):
        tried = np.arange(first, min(first + BATCH, 1 << bits), dtype=np.uint32)
        seeds = np.full(tried.size, base, np.uint32)
        for bit, place in enumerate(free):
            seeds |= (tried >> np.uint32(bit) & np.uint32(1)) << np.uint32(place)
        words = first_words(seeds, 2)
        hits = seeds[(start[0] - words[0] < TARGET) & (start[1] - words[1] < TARGET)]
        for seed in map(int, hits):
            if fits(masked - twister(seed)):
                return seed, first + tried.size
    return None, 1 << bits


def attack_penchant(masked: NDArray[np.int64], bits: int) -> int | None:
    """The same search on penchant's masks: keys that a folded seed of `bits` bits could stand for."""
    start = masked[:LOOK]
    for tried in range(1 << bits):
        seed = tried.to_bytes(4, "little")
        for key in (seed.ljust(32, b"\0"), derive(seed, b"")):
            if fits(start - expand(key, LOOK).astype(np.int64)):
                return tried
    return None


def show_short_seeds(bits: int, entropy: Entropy) -> bool:
    alice, bob = (AgreementKey(entropy.draw(32)) for _ in range(2))
    agreed = alice.agree(bob.public())
    update = np.frombuffer(entropy.draw(4 * WORDS), "<u4").astype(np.int64) % TARGET

    seed = folded(derive(agreed, b""))
    masked = (update + twister(seed)) % MODULUS
    began = time.perf_counter()
    found, tried = attack_short_seeds(masked, seed, bits)
    rate = tried / (time.perf_counter() - began)
    recovered = found is not None and bool(((masked - twister(found)) % MODULUS == update).all())
    print(f"short seeds: {tried} of 2^{bits} seeds tried at {rate:,.0f}/s; update recovered: {recovered}")
    print(f"             all 2^28 take {2**28 / rate:.0f} seconds of one core at most, half on average")

    key = pair_mask_key(agreed, bytes(32), bytes(32), 0, 1)
    masked = (update + expand(key, WORDS).astype(np.int64)) % MODULUS
    few = min(bits, 16)  # one key at a time: slower to try, and as hopeless
    hit = attack_penchant(masked, few)
    years = 2**255 / rate / 3.15e7
    print(f"penchant:    same search over 2^{few + 1} keys: found {hit}; over its 2^256: {years:.0e} years")
    return recovered and hit is None


# --- 2. both shares -------------------------------------------------------------------------------


def naive_answer(
    seed_shares: list[bytes], key_shares: list[bytes], alive: list[int], dead: list[int]
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """A client that believes the server's lists, whatever is on both."""
    return {peer: seed_shares[peer] for peer in alive}, {peer: key_shares[peer] for peer in dead}


def show_both_shares_naive(entropy: Entropy) -> bool:
    """Alice is named alive and dead to five naive clients: the server rebuilds both of her secrets."""
    n, t, alice = 5, 4, 0
    secrets = [(entropy.draw(32), entropy.draw(32)) for _ in range(n)]
    cut = [(split(seed, t, n, entropy), split(key, t, n, entropy)) for seed, key in secrets]
    everyone = list(range(n))
    answers = [
        naive_answer([c[0][me] for c in cut], [c[1][me] for c in cut], everyone, [alice]) for me in range(t)
    ]
    combiner = Combiner(range(1, t + 1))
    seed = combiner.combine([alive[alice] for alive, _ in answers])
    key = combiner.combine([dead[alice] for _, dead in answers])
    print(f"both shares: naive clients give both of Alice's secrets: {(seed, key) == secrets[alice]}")
    return (seed, key) == secrets[alice]


def show_both_shares_here() -> bool:
    """Two survivor lists to real devices: Alice alive to some, dead to others. Nobody unmasks."""
    n = 7
    scene = Scene(n).play_to("confirm")
    everyone, without = tuple(range(n)), tuple(range(1, n))  # Alice is device 0
    lists = {node: everyone if node < 4 else without for node in range(n)}
    signed = {
        node: decode(scene.tell("confirm", node, encode(Survivors(everyone, named))), Confirmation).signature
        for node, named in lists.items()
    }
    given = []
    for node, named in lists.items():
        same = [peer for peer in named if lists[peer] == named]
        anyone = [*same, *(peer for peer in named if peer not in same)][: threshold(n)]
        for signers in (sorted(same), sorted(anyone)):
            request = encode(Confirmations(tuple(signers), tuple(signed[peer] for peer in signers)))
            try:
                scene.tell("unmask", node, request)
                given.append(node)
            except ProtocolError as error:
                reason = f"{type(error).__name__}: {error}"
    print(f"penchant:    devices that gave shares to a server with two lists: {given or 'none'} ({reason})")
    return not given


def main(bits: int = 28) -> bool:
    """Whether each attack works where it should and fails here."""
    entropy = SystemEntropy()
    return all([show_short_seeds(bits, entropy), show_both_shares_naive(entropy), show_both_shares_here()])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=28, help="seed bits that are searched (28: all)")
    sys.exit(0 if main(parser.parse_args().bits) else 1)
