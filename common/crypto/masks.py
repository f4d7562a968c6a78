"""Masks: AES-256 in counter mode (NIST SP 800-38A), expanded into ring elements and added in place.

A mask is the keystream under a key that is used for this alone, read as little-endian 32- or 64-bit words.
Nothing as long as the vector is allocated: a worker walks its part of the vector in chunks that stay in
its cache, and adds the keystreams of all keys to a chunk before it goes on. `cryptography` releases the
interpreter's lock while it encrypts, and numpy while it adds, so threads use all cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

__all__ = ["Ring", "accumulate", "expand", "ring_type"]

Ring = NDArray[np.uint32] | NDArray[np.uint64]
"""Elements of Z_2^32 or Z_2^64."""

CHUNK: Final = 1 << 17  # bytes: zeros, keystream and sum of one worker stay in its cache
KEYS: Final = 512  # cipher contexts alive at a time in one worker
THREADED: Final = 1 << 22  # bytes of keystream from which a second thread pays


def ring_type(bits: int) -> np.dtype[Any]:
    """The little-endian numpy type of a ring of 32 or 64 bits."""
    return np.dtype("<u4") if bits == 32 else np.dtype("<u8")


def _keystream(key: bytes, block: int) -> CipherContext:
    """The keystream of `key` from its 16-byte block number `block` on."""
    return Cipher(algorithms.AES256(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()


def expand(key: bytes, words: int, bits: int = 32) -> Ring:
    """The mask of `key`: `words` ring elements of `bits` bits. The slow, plain form of `accumulate`."""
    dtype = ring_type(bits)
    stream = _keystream(key, 0).update(bytes(words * dtype.itemsize))
    return np.frombuffer(stream, dtype)


def accumulate(
    total: Ring, add: Sequence[bytes], subtract: Sequence[bytes] = (), *, workers: int | None = None
) -> None:
    """total += sum of the masks of `add` - sum of the masks of `subtract`, in place, modulo the ring.

    total: contiguous uint32 or uint64 [words]. Keys: 32 bytes each.
    workers: threads; by default one per core, and one alone where the work is too small to share.
    """
    if workers is None:
        work = total.nbytes * (len(add) + len(subtract))
        workers = 1 if work < THREADED else (os.cpu_count() or 1)
    align = 16 // total.itemsize
    part = -(-total.size // (workers * align)) * align or align
    starts = range(0, total.size, part)
    if len(starts) <= 1:
        _accumulate_part(total, 0, add, subtract)
        return
    with ThreadPoolExecutor(len(starts)) as pool:
        parts = [pool.submit(_accumulate_part, total[at : at + part], at, add, subtract) for at in starts]
        for done in parts:
            done.result()


def _accumulate_part(part: Ring, offset: int, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
    """`accumulate` for the elements from `offset` (a multiple of 16 bytes) on."""
    step = min(CHUNK // part.itemsize, part.size)
    zeros = memoryview(bytes(step * part.itemsize))
    buffer = np.empty(step, part.dtype)
    raw = buffer.view(np.uint8).data
    block = offset * part.itemsize // 16
    signed = [(key, np.add) for key in add] + [(key, np.subtract) for key in subtract]
    for first in range(0, len(signed), KEYS):
        streams = [(_keystream(key, block), apply) for key, apply in signed[first : first + KEYS]]
        for at in range(0, part.size, step):
            chunk = part[at : at + step]
            size = chunk.nbytes
            words = buffer[: chunk.size]
            for stream, apply in streams:
                stream.update_into(zeros[:size], raw[:size])
                apply(chunk, words, out=chunk)
