"""What the frozen part of a network computes for a text, computed once and kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penchant.common.model.log_probability import ResponseTokens
from penchant.common.model.state_store import StateStore, TensorPlace, bytes_of, layout, tensor_at
from penchant.common.model.tails import Activations, Tail, log

CACHE_BYTES = 4 << 30
_WARM_TEXTS = 16
_IN_COMPANY = b"+"  # behind a key: what is kept was not computed alone, nor in a batch of `warm`
_BYTES_A_KEY = 4096  # of the limit: how many texts' keys are remembered, of some 300 bytes each
_ALIGNED = 64  # bytes: where a tensor may begin in a file, as in memory that torch gives out

Text = str | tuple[str, str]
Named = tuple[bytes, Text]  # a text and its key


class PrefixCache:
    """Activations by what is read of a text, within a limit of bytes. What is least recently used goes first:
    to a disk where there is one, from which it is read when it is wanted.

    Texts of which the same tokens are read, such as two that differ only where they are cut, are one: they
    have the same activations, to the bit. Threads may ask at once: each text is computed by one of them, the
    others wait for it.

    Args:
        tokens: text -> its token ids [L], or `ResponseTokens`: what the tail reads. A text is a string, or a
            prompt and a response.
        tail: knows what to keep of a text.
        limit: bytes kept in memory; one request may exceed it while it is being answered.
        disk: for what has no place in memory. What is read from it takes no place of anything else there:
            training reads the same texts in the same order again and again, and would else find each gone.
    """

    def __init__(
        self,
        tokens: Callable[[Any], Any],
        tail: Tail,
        limit: int = CACHE_BYTES,
        disk: StateStore | None = None,
    ) -> None:
        self._tokens = tokens
        self._tail = tail
        self._limit = limit
        self._disk = None if disk is None else disk.part()
        self._kept: OrderedDict[bytes, Activations] = OrderedDict()
        self._mapped: dict[bytes, Activations] = {}  # from a file, which takes no memory
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()  # by text, so that it is tokenized once
        self._running: set[bytes] = set()
        self._changed = threading.Condition()
        self._own = 0  # bytes of what is kept and not mapped
        self.held = 0  # bytes
        self.forwards = 0  # texts computed so far

    def __len__(self) -> int:
        """Texts whose activations are in memory."""
        return len(self._kept) + len(self._mapped)

    def clear(self) -> None:
        """Forget everything, so that the next `warm` gives the bits it would give in a new process."""
        with self._changed:
            self._kept.clear()
            self._mapped.clear()
            self._keys.clear()
            self._own = self.held = 0
            if self._disk is not None:
                self._disk.clear()

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

    def of(self, named: Iterable[Named]) -> list[Activations]:
        """As `get`, of texts whose keys are known."""
        return [self._one(key, text) for key, text in named]

    def measured(self, key: bytes, text: Text) -> tuple[int, Activations | None]:
        """How many bytes a text's activations have, computed where they are not kept; and they themselves,
        where they need not be read from a disk."""
        with self._changed:
            known = self._in_memory(key)
        size = None if known is not None or self._disk is None else self._disk.size(key)
        if size is not None:
            return size, None
        entry = self._one(key, text) if known is None else known
        return _size(entry), entry

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

    def bytes_a_token(self, text: Text) -> float:
        """How many bytes are kept for each token of a text, which is computed for it, but not kept."""
        tokens = self._tokens(text)
        return _size(self._tail.precompute([tokens])[0]) / len(tokens)

    def warm(self, texts: Iterable[Text], threads: int = 1) -> None:
        """Compute texts ahead, in batches that depend on the set of texts alone, and of it on what is read.

        `threads` batches run at a time (let torch use one thread itself then). When memory has no place for
        the activations of all, each text is computed alone, as `get` does: so no bit of theirs depends on
        what a disk has place for. When it has none either, this does nothing and leaves the texts to `get`.
        """
        ordered = sorted((len(ids), text, ids) for text, ids in ((t, self._tokens(t)) for t in set(texts)))
        different = {self._named(_digest(text), ids): ids for _, text, ids in ordered}
        if all(map(self._there, different)):
            return
        shortest, _, ids = ordered[0]
        expected = _size(self._tail.precompute([ids])[0]) // shortest * sum(map(len, different.values()))
        if expected > self._limit + (0 if self._disk is None else self._disk.room()):
            log.info("the activations of %d texts would not fit; they are computed as needed", len(ordered))
            return
        listed, count = list(different.items()), _WARM_TEXTS if expected <= self._limit else 1
        chunks = [listed[i : i + count] for i in range(0, len(listed), count)]
        missing = [chunk for chunk in chunks if not all(self._there(key) for key, _ in chunk)]
        for chunk, entries in self._ahead(missing, threads):
            with self._changed:
                for (key, _), entry in zip(chunk, entries, strict=True):
                    self._keep(key, entry)

    def write(self, path: Path) -> None:
        """Write all that is kept, wherever that is, to a file, for `read` of a cache of the same model in any
        process.

        First where the index begins, in 8 bytes, then the numbers of each tensor, then the index.
        """
        with self._changed:
            texts = {own.hex(): key.hex() for own, key in self._keys.items()}
            keys = [*([] if self._disk is None else self._disk.keys()), *self._mapped, *self._kept]
        entries: dict[str, list[tuple[str, list[int], int]]] = {}
        with path.open("wb") as file:
            file.write(bytes(_ALIGNED))
            for key in dict.fromkeys(keys):
                if (entry := self._found(key)) is None:
                    continue
                begin = file.tell()
                places, size = layout(entry)
                for tensor, place in zip(entry, places, strict=True):
                    file.write(bytes(begin + place.begin - file.tell()))
                    file.write(bytes_of(tensor).numpy().data)
                file.write(bytes(begin + size - file.tell()))
                entries[key.hex()] = [
                    (str(place.dtype).removeprefix("torch."), list(place.shape), begin + place.begin)
                    for place in places
                ]
            end = file.tell()
            file.write(json.dumps({"entries": entries, "texts": texts}).encode())
            file.seek(0)
            file.write(end.to_bytes(8, "little"))

    def read(self, path: Path) -> None:
        """Keep what `write` has written, in place of anything kept: as memory that is mapped from the file,
        which all processes that read it share, and which needs no place of its own."""
        mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        end = int.from_bytes(bytes(mapped[:8].tolist()), "little")
        index = json.loads(mapped[end:].numpy().tobytes())
        self.clear()
        with self._changed:
            self._mapped = {
                bytes.fromhex(key): tuple(tensor_at(mapped, _placed(*place)) for place in places)
                for key, places in index["entries"].items()
            }
            self._keys = OrderedDict(
                (bytes.fromhex(own), bytes.fromhex(key)) for own, key in index["texts"].items()
            )
            self.held = sum(map(_size, self._mapped.values()))

    # --- inner parts ------------------------------------------------------------------------------

    def _named(self, own: bytes, tokens: Any) -> bytes:
        """The key of a text with these tokens, which is remembered by the text's own digest."""
        key = _key(tokens)
        with self._changed:
            self._keys[own] = key
            while len(self._keys) > self._limit // _BYTES_A_KEY:
                self._keys.popitem(last=False)
        return key

    def _ahead(
        self, chunks: Sequence[Sequence[tuple[bytes, Any]]], threads: int
    ) -> Iterator[tuple[Sequence[tuple[bytes, Any]], list[Activations]]]:
        """Chunks and what is computed of them, in order; of what is not yet taken there is but a little."""
        waiting: deque[tuple[Sequence[tuple[bytes, Any]], Future[list[Activations]]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(self._tail.precompute, [ids for _, ids in chunk])))
                if len(waiting) > 2 * threads:
                    first, computed = waiting.popleft()
                    yield first, computed.result()
            while waiting:
                first, computed = waiting.popleft()
                yield first, computed.result()

    def _there(self, key: bytes) -> bool:
        """Whether a text need not be computed."""
        return key in self._mapped or key in self._kept or (self._disk is not None and key in self._disk)

    def _in_memory(self, key: bytes) -> Activations | None:
        """What is in memory of a text; the lock is held."""
        if key in self._mapped:
            return self._mapped[key]
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _found(self, key: bytes) -> Activations | None:
        """What is kept of a text, wherever that is."""
        with self._changed:
            entry = self._in_memory(key)
        return self._from_disk(key) if entry is None else entry

    def _from_disk(self, key: bytes) -> Activations | None:
        """What is on the disk of a text, which has a place in memory as well if there is one left."""
        if self._disk is None or (entry := self._disk.get(key)) is None:
            return None
        with self._changed:
            if key not in self._kept and self._own + _size(entry) <= self._limit:
                self._insert(key, entry)
        return entry

    def _one(self, key: bytes, text: Text) -> Activations:
        with self._changed:
            self._changed.wait_for(lambda: key not in self._running)
            if (known := self._in_memory(key)) is not None:
                return known
            self._running.add(key)
        try:
            entry = self._from_disk(key)
            if entry is None:
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
                found = (self._in_memory(one) for one in (key, key + _IN_COMPANY))
                kept = next((one for one in found if one is not None), None)
                if kept is not None:
                    known[key] = kept
            missing = [key for key in free if key not in known]
            self._running.update(key + _IN_COMPANY for key in missing)
        return known, missing

    def _computed(self, missing: Mapping[bytes, Text]) -> dict[bytes, Activations]:
        """Activations of texts that this thread has taken, by their keys: read from the disk, and the others
        computed at once, and kept."""
        try:
            stored = {key: self._from_disk(key) or self._from_disk(key + _IN_COMPANY) for key in missing}
            found = {key: entry for key, entry in stored.items() if entry is not None}
            left = [key for key in missing if key not in found]
            if left:
                entries = self._tail.precompute([self._tokens(missing[key]) for key in left])
                with self._changed:
                    for key, entry in zip(left, entries, strict=True):
                        self._keep(key + _IN_COMPANY, entry)
                found |= zip(left, entries, strict=True)
        finally:
            with self._changed:
                self._running.difference_update(key + _IN_COMPANY for key in missing)
                self._changed.notify_all()
        return found

    def _keep(self, key: bytes, entry: Activations) -> None:
        """Keep what was computed of a text, in place of what was kept of it; the lock is held."""
        self.forwards += 1
        self._drop(key)
        self._insert(key, entry)
        self._drop(key + _IN_COMPANY)
        while self._own > self._limit and len(self._kept) > 1:
            oldest, dropped = self._kept.popitem(last=False)
            self._count(-_size(dropped))
            if self._disk is not None:
                self._disk.put(oldest, dropped)

    def _insert(self, key: bytes, entry: Activations) -> None:
        self._kept[key] = entry
        self._count(_size(entry))

    def _drop(self, key: bytes) -> None:
        self._count(-_size(self._kept.pop(key, ())))
        self.held -= _size(self._mapped.pop(key, ()))
        if self._disk is not None:
            self._disk.discard(key)

    def _count(self, more: int) -> None:
        self._own += more
        self.held += more


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


def _placed(dtype: str, shape: list[int], begin: int) -> TensorPlace:
    """A tensor's place as the index of a file has it."""
    kind: torch.dtype = getattr(torch, dtype)
    return TensorPlace(kind, tuple(shape), begin, torch.device("cpu"))


def _size(entry: Activations) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in entry)
