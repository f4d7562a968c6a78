"""What the frozen part of a network computes for a text, computed once and kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penchant.common.model.log_probability import ResponseTokens
from penchant.common.model.tails import Activations, Tail, log

CACHE_BYTES = 4 << 30
_WARM_TEXTS = 16
_IN_COMPANY = b"+"  # behind a key: what is kept was not computed alone, nor in a batch of `warm`
_BYTES_A_KEY = 4096  # of the limit: how many texts' keys are remembered, of some 300 bytes each
_ALIGNED = 64  # bytes: where a tensor may begin in a file, as in memory that torch gives out

Text = str | tuple[str, str]


class PrefixCache:
    """Activations by what is read of a text, least recently used first out, within a limit of bytes.

    Texts of which the same tokens are read, such as two that differ only where they are cut, are one: they
    have the same activations, to the bit. Threads may ask at once: each text is computed by one of them, the
    others wait for it.

    Args:
        tokens: text -> its token ids [L], or `ResponseTokens`: what the tail reads. A text is a string, or a
            prompt and a response.
        tail: knows what to keep of a text.
        limit: bytes kept; one request may exceed it while it is being answered.
    """

    def __init__(self, tokens: Callable[[Any], Any], tail: Tail, limit: int = CACHE_BYTES) -> None:
        self._tokens = tokens
        self._tail = tail
        self._limit = limit
        self._kept: OrderedDict[bytes, Activations] = OrderedDict()
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()  # by text, so that it is tokenized once
        self._running: set[bytes] = set()
        self._changed = threading.Condition()
        self.held = 0  # bytes
        self.forwards = 0  # texts computed so far

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget everything, so that the next `warm` gives the bits it would give in a new process."""
        with self._changed:
            self._kept.clear()
            self._keys.clear()
            self.held = 0

    def key(self, text: Text) -> bytes:
        """What texts of which the same is read have in common, and no others."""
        own = _digest(text)
        with self._changed:
            known = self._keys.get(own)
            if known is not None:
                self._keys.move_to_end(own)
                return known
        return self._named(own, self._tokens(text))

    def get(self, texts: Sequence[Text]) -> list[Activations]:
        """Activations of each text, computed alone where they are not kept."""
        return [self._one(self.key(text), text) for text in texts]

    def together(self, texts: Sequence[Text]) -> list[Activations]:
        """Activations of each text, for whoever bears other last bits than those of `get`: those that are not
        kept are computed at once, a few times as fast as one by one, and kept apart from what `get` gives."""
        keys = [self.key(text) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))  # of those of which the same is read, one
        found: dict[bytes, Activations] = {}
        while waiting := [key for key in wanted if key not in found]:
            known, missing = self._taken(waiting)
            found |= known
            if missing:
                found |= self._computed({key: wanted[key] for key in missing})
        return [found[key] for key in keys]

    def warm(self, texts: Iterable[Text], threads: int = 1) -> None:
        """Compute texts ahead, in batches that depend on the set of texts alone, and of it on what is read.

        `threads` batches run at a time (let torch use one thread itself then). When not all of the
        activations would fit, this does nothing and leaves the texts to `get`.
        """
        ordered = sorted((len(ids), text, ids) for text, ids in ((t, self._tokens(t)) for t in set(texts)))
        different = {self._named(_digest(text), ids): ids for _, text, ids in ordered}
        listed = list(different.items())
        chunks = [listed[i : i + _WARM_TEXTS] for i in range(0, len(listed), _WARM_TEXTS)]
        missing = [chunk for chunk in chunks if any(key not in self._kept for key, _ in chunk)]
        if not missing:
            return
        shortest, _, ids = ordered[0]
        expected = _size(self._tail.precompute([ids])[0]) // shortest * sum(map(len, different.values()))
        if expected > self._limit:
            log.info("the activations of %d texts would not fit; they are computed as needed", len(ordered))
            return
        with ThreadPoolExecutor(threads) as pool:
            for chunk, entries in zip(missing, pool.map(self._chunk, missing), strict=True):
                with self._changed:
                    for (key, _), entry in zip(chunk, entries, strict=True):
                        self._keep(key, entry)

    def write(self, path: Path) -> None:
        """Write all that is kept to a file, for `read` of a cache of the same model in any process.

        First the length of an index, in 8 bytes, then the index, then the numbers of each tensor.
        """
        with self._changed:
            kept = list(self._kept.items())
            texts = {own.hex(): key.hex() for own, key in self._keys.items()}
        entries: dict[str, list[tuple[str, list[int], int]]] = {}
        end = 0
        for key, entry in kept:
            entries[key.hex()] = places = []
            for tensor in entry:
                places.append((str(tensor.dtype).removeprefix("torch."), list(tensor.shape), end))
                end += _up(tensor.numel() * tensor.element_size())
        head = json.dumps({"entries": entries, "texts": texts}).encode()
        with path.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.write(bytes(_up(file.tell()) - file.tell()))
            for tensor in itertools.chain.from_iterable(entry for _, entry in kept):
                size = file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
                file.write(bytes(_up(size) - size))

    def read(self, path: Path) -> None:
        """Keep what `write` has written, in place of anything kept: as memory that is mapped from the file,
        which all processes that read it share, and which needs no place of its own."""
        mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        length = int.from_bytes(bytes(mapped[:8].tolist()), "little")
        index = json.loads(mapped[8 : 8 + length].numpy().tobytes())
        begin = _up(8 + length)
        with self._changed:
            self._kept = OrderedDict(
                (bytes.fromhex(key), tuple(_mapped(mapped[begin:], *place) for place in places))
                for key, places in index["entries"].items()
            )
            self._keys = OrderedDict(
                (bytes.fromhex(own), bytes.fromhex(key)) for own, key in index["texts"].items()
            )
            self.held = sum(map(_size, self._kept.values()))

    def _named(self, own: bytes, tokens: Any) -> bytes:
        """The key of a text with these tokens, which is remembered by the text's own digest."""
        key = _key(tokens)
        with self._changed:
            self._keys[own] = key
            while len(self._keys) > self._limit // _BYTES_A_KEY:
                self._keys.popitem(last=False)
        return key

    def _chunk(self, chunk: Sequence[tuple[bytes, Any]]) -> list[Activations]:
        return self._tail.precompute([ids for _, ids in chunk])

    def _one(self, key: bytes, text: Text) -> Activations:
        with self._changed:
            self._changed.wait_for(lambda: key not in self._running)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            self._running.add(key)
        try:
            entry = self._tail.precompute([self._tokens(text)])[0]
            with self._changed:
                self._keep(key, entry)
        finally:
            with self._changed:
                self._running.discard(key)
                self._changed.notify_all()
        return entry

    def _taken(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Activations], list[bytes]]:
        """Of some keys (what is kept, in company or not; which this thread is to compute), the others being
        computed by other threads; waits until there is any of the two."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running.issuperset(key + _IN_COMPANY for key in keys))
            free = [key for key in keys if key + _IN_COMPANY not in self._running]
            known: dict[bytes, Activations] = {}
            for key in free:
                kept = next((k for k in (key, key + _IN_COMPANY) if k in self._kept), None)
                if kept is not None:
                    self._kept.move_to_end(kept)
                    known[key] = self._kept[kept]
            missing = [key for key in free if key not in known]
            self._running.update(key + _IN_COMPANY for key in missing)
        return known, missing

    def _computed(self, missing: Mapping[bytes, Text]) -> dict[bytes, Activations]:
        """Compute texts that this thread has taken, by their keys, at once, and keep them."""
        try:
            entries = self._tail.precompute([self._tokens(text) for text in missing.values()])
            with self._changed:
                for key, entry in zip(missing, entries, strict=True):
                    self._keep(key + _IN_COMPANY, entry)
        finally:
            with self._changed:
                self._running.difference_update(key + _IN_COMPANY for key in missing)
                self._changed.notify_all()
        return dict(zip(missing, entries, strict=True))

    def _keep(self, key: bytes, entry: Activations) -> None:
        self.forwards += 1
        self.held += _size(entry) - _size(self._kept.pop(key, ()))
        self._kept[key] = entry
        self.held -= _size(self._kept.pop(key + _IN_COMPANY, ()))
        while self.held > self._limit and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self.held -= _size(dropped)


def _key(tokens: Tensor | ResponseTokens) -> bytes:
    if isinstance(tokens, ResponseTokens):
        numbers, start = tokens.ids.numpy().tobytes(), b"%d:" % tokens.start
        return hashlib.blake2b(start + numbers, digest_size=16, person=b"response").digest()
    return hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16).digest()


def _digest(text: Text) -> bytes:
    if isinstance(text, str):
        return hashlib.blake2b(text.encode(), digest_size=16).digest()
    first, second = (part.encode() for part in text)
    return hashlib.blake2b(b"%d:" % len(first) + first + second, digest_size=16, person=b"response").digest()


def _up(size: int) -> int:
    """The next place, from `size` bytes on, where a tensor may begin."""
    return -(-size // _ALIGNED) * _ALIGNED


def _mapped(numbers: torch.Tensor, dtype: str, shape: list[int], begin: int) -> torch.Tensor:
    """One tensor of a file: its bytes as numbers."""
    kind: torch.dtype = getattr(torch, dtype)
    size = math.prod(shape) * kind.itemsize
    return numbers[begin : begin + size].view(kind).view(shape)


def _size(entry: Activations) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in entry)
