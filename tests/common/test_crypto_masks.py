"""Masks: AES-256-CTR as NIST has it, and sums in place that equal the plain ones."""

from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest

from penchant.common.crypto import masks
from penchant.common.crypto.entropy import Entropy, SeededEntropy, SystemEntropy
from penchant.common.crypto.masks import accumulate, expand, ring_type

KEYS = [bytes([i]) * 32 for i in range(1, 6)]


def test_the_keystream_is_aes_256_of_a_counter() -> None:
    """FIPS 197, appendix C.3: AES-256 of 00112233…ff; here the counter block is that plaintext."""
    key = bytes(range(32))
    block = int("00112233445566778899aabbccddeeff", 16)
    stream = masks._keystream(key, block).update(bytes(16))
    assert stream.hex() == "8ea2b7ca516745bfeafc49904b496089"


def test_a_mask_is_the_keystream_in_little_endian_words() -> None:
    """AES-256 under 32 zero bytes of the zero block: dc95c078a2408989ad48a21492842087 (NIST AESAVS, ECB)."""
    assert expand(bytes(32), 4).tolist() == [0x78C095DC, 0x898940A2, 0x14A248AD, 0x87208492]
    assert expand(bytes(32), 2, 64).tolist() == [0x898940A278C095DC, 0x8720849214A248AD]
    assert expand(KEYS[0], 5)[:4].tolist() == expand(KEYS[0], 4).tolist()


@pytest.mark.parametrize(
    ("bits", "words", "workers"),
    [*product((32, 64), (1, 2, 3, 5, 1000, 4097), (None, 1, 2, 3)), (32, 300_001, 2), (64, 150_000, 2)],
)
def test_accumulating_is_adding_expanded_masks(bits: int, words: int, workers: int | None) -> None:
    start = expand(b"\x99" * 32, words, bits)
    slow = start.copy()
    for key in KEYS[:3]:
        slow = slow + expand(key, words, bits)
    for key in KEYS[3:]:
        slow = slow - expand(key, words, bits)
    fast = start.copy()
    accumulate(fast, KEYS[:3], KEYS[3:], workers=workers)
    assert fast.dtype == ring_type(bits)
    assert (fast == slow).all()


def test_many_keys_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "KEYS", 2)
    fast, slow = expand(bytes(32), 10).copy(), expand(bytes(32), 10).copy()
    accumulate(fast, KEYS)
    for key in KEYS:
        slow += expand(key, 10)
    assert (fast == slow).all()


def test_masks_cancel() -> None:
    total = np.arange(1000, dtype="<u4")
    accumulate(total, KEYS, KEYS)
    assert (total == np.arange(1000)).all()


def test_nothing_as_long_as_the_vector_is_allocated() -> None:
    total = np.zeros(4_000_000, "<u4")
    tracemalloc.start()
    accumulate(total, KEYS, workers=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000


def test_seeded_entropy_repeats_itself_and_no_other() -> None:
    one = SeededEntropy(b"seed", "label")
    assert one.draw(10) + one.draw(22) == SeededEntropy(b"seed", "label").draw(32)
    others: list[Entropy] = [
        SeededEntropy(b"seed", "Label"),
        SeededEntropy(b"Seed", "label"),
        SystemEntropy(),
    ]
    drawn = {source.draw(32) for source in others} | {SeededEntropy(b"seed", "label").draw(32)}
    assert len(drawn) == 4
    assert "seed" not in repr(one)
