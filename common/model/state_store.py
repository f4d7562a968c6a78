"""What the frozen blocks gave of texts, on a disk: for what memory has no place for.

The file has no name, so that nothing is left of it however the process ends, and it is encrypted with a key
that is in memory alone: states say what texts say. Whatever goes wrong with it, a full disk or a damaged
block, makes a text one that is not kept, to be computed again, and no error.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from penchant.common.crypto.entropy import SystemEntropy
from penchant.common.model.tails import Activations, log

__all__ = [
    "DEVICE_DISK_BYTES",
    "DISK_BYTES",
    "StatePart",
    "StateStore",
    "TensorPlace",
    "bytes_of",
    "lasting_folder",
    "layout",
    "tensor_at",
]

DISK_BYTES = 32 << 30
"""What may be kept on a disk at most, where a simulation runs."""
DEVICE_DISK_BYTES = 8 << 30
"""And on somebody's own device."""

_PAGE = 32 << 10  # bytes: of a large file there are so few that the list of what lies where is small
_TAG = 16  # bytes: what AES-GCM adds
_NONCE = 12  # bytes
_ONCE = (1 << 31) - 1 - _TAG  # bytes: more are not encrypted at once
_ALIGNED = 64  # bytes: where a tensor may begin, as in memory that torch gives out
_IN_MEMORY = ("tmpfs", "ramfs")
_MARKS = itertools.count()  # of the parts of stores


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor of an entry begins, in bytes, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Stored:
    """One entry in the file: its tensors, its bytes with the tag, its pages in order, and its nonce."""

    places: tuple[TensorPlace, ...]
    size: int
    pages: tuple[range, ...]
    nonce: int


class StateStore:
    """Activations by key in one file, the least recently used out when there are more than fit. Thread-safe.

    Args:
        folder: in which the file lies, without a name.
        limit: bytes of the file at most. It never grows beyond half of what it leaves free on its disk, and
            is given up, with all that is in it, once others have left less free there than it takes.
    """

    def __init__(self, folder: Path, limit: int = DISK_BYTES) -> None:
        self._folder = folder
        self._most = limit // _PAGE
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._begin()

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, key: bytes) -> bool:
        return key in self._stored

    @property
    def held(self) -> int:
        """Bytes of the file that entries take."""
        return (self._end - len(self._free)) * _PAGE

    def room(self) -> int:
        """How many bytes the file may come to hold, as the disk is now."""
        with self._lock:
            return (self._end + self._growth()) * _PAGE if self._ready() else 0

    def part(self) -> StatePart:
        """A part of it for one model."""
        return StatePart(self)

    def size(self, key: bytes) -> int | None:
        """How many bytes the tensors of an entry have; None where there is no such entry."""
        with self._lock:
            stored = self._stored.get(key)
            return None if stored is None else _numbers(stored.places)

    def keys(self) -> list[bytes]:
        """Of all entries, the least recently used first."""
        with self._lock:
            return list(self._stored)

    def put(self, key: bytes, entry: Activations) -> bool:
        """Keep an entry; -> whether it is kept. One that is there already stays as it is."""
        with self._lock:
            if not self._ready():
                return False
            if self._crowds():
                self._tell(f"are given up in {self._folder}: its disk is nearly full")
                self._begin()
                return False
            if key in self._stored:
                self._stored.move_to_end(key)
                return True
            places, size = layout(entry)
            if size > _ONCE or (pages := self._taken(-(-(size + _TAG) // _PAGE))) is None:
                return False
            self._nonce += 1
            sealed = self._cipher.encrypt(_nonce(self._nonce), _together(entry, places, size), key)
            try:
                self._write(sealed, pages)
            except OSError as error:
                self._give_back(pages)
                self._tell(f"can't be kept on the disk ({error.strerror})")
                return False
            self._stored[key] = _Stored(places, len(sealed), pages, self._nonce)
            return True

    def get(self, key: bytes) -> Activations | None:
        """The tensors of an entry, of the same bits, in memory of their own; None where there is no such
        entry, or it can't be read, in which case it is forgotten."""
        with self._lock:
            self._own()
            if (stored := self._stored.get(key)) is None:
                return None
            self._stored.move_to_end(key)
            cipher, sealed = self._cipher, self._read(stored)
        numbers = torch.empty(stored.size - _TAG, dtype=torch.uint8)
        try:
            if sealed is None:
                raise InvalidTag
            cipher.decrypt_into(_nonce(stored.nonce), sealed, key, numbers.numpy().data)
        except InvalidTag:
            self.discard(key)
            self._tell("can't be read from the disk")
            return None
        return tuple(tensor_at(numbers, place).to(place.device) for place in stored.places)

    def discard(self, key: bytes) -> None:
        """Forget an entry, if there is one."""
        with self._lock:
            if (stored := self._stored.pop(key, None)) is not None:
                self._give_back(stored.pages)

    def clear(self) -> None:
        """Forget everything; the disk has its bytes back."""
        with self._lock:
            self._begin()

    # --- inner parts ------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Nothing is kept; the file and its key are made when they are needed."""
        if (close := getattr(self, "_close", None)) is not None:
            close()
        self._process = os.getpid()
        self._file: int | None = None
        self._close: weakref.finalize[[int], StateStore] | None = None
        self._stored: OrderedDict[bytes, _Stored] = OrderedDict()
        self._free: list[int] = []  # pages, the first of which comes first
        self._end = 0  # pages of the file that were ever used
        self._nonce = 0

    def _own(self) -> None:
        """A process that was forked begins with nothing, with a file and a key of its own: what two of them
        write under one key would give both away."""
        if self._process != os.getpid():
            self._begin()

    def _ready(self) -> bool:
        """Whether there is a file."""
        self._own()
        if self._file is None:
            try:
                with tempfile.TemporaryFile(dir=self._folder, prefix="penchant-states-", buffering=0) as file:
                    self._file = os.dup(file.fileno())
            except OSError as error:
                self._tell(f"can't be kept in {self._folder} ({error.strerror})")
                return False
            self._close = weakref.finalize(self, os.close, self._file)
            self._cipher = AESGCM(SystemEntropy().draw(32))
        return True

    def _crowds(self) -> bool:
        """Whether the file takes more than is left free beside it."""
        if self._file is None:
            return False
        disk = os.fstatvfs(self._file)
        return self._end * _PAGE > disk.f_bavail * disk.f_frsize

    def _growth(self) -> int:
        """By how many pages the file may still grow."""
        disk = os.fstatvfs(self._file) if self._file is not None else os.statvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize // _PAGE
        return max(min(self._most - self._end, (free - 2 * self._end) // 3), 0)

    def _taken(self, count: int) -> tuple[range, ...] | None:
        """So many pages, for which other entries go if need be; None where there will never be as many."""
        growth = self._growth() if count > len(self._free) else 0
        if count > self._end + growth:
            return None
        while count > len(self._free) + growth and self._stored:
            _, oldest = self._stored.popitem(last=False)
            self._give_back(oldest.pages)
        taken = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        taken += range(self._end, self._end + count - len(taken))
        self._end = max(self._end, taken[-1] + 1)
        return tuple(_runs(taken))

    def _give_back(self, pages: Sequence[range]) -> None:
        for page in itertools.chain.from_iterable(pages):
            heapq.heappush(self._free, page)

    def _write(self, data: bytes, pages: Sequence[range]) -> None:
        if self._file is None:
            raise OSError("there is no file")
        left = memoryview(data)
        for run in pages:
            part, left = left[: len(run) * _PAGE], left[len(run) * _PAGE :]
            place = run.start * _PAGE
            while part:
                written = os.pwrite(self._file, part, place)
                part, place = part[written:], place + written

    def _read(self, stored: _Stored) -> bytearray | None:
        """An entry's bytes as they are in the file; None where they are not all there."""
        if self._file is None:
            return None
        data = bytearray(stored.size)
        left = memoryview(data)
        for run in stored.pages:
            part, left = left[: len(run) * _PAGE], left[len(run) * _PAGE :]
            place = run.start * _PAGE
            while part:
                try:
                    count = os.preadv(self._file, [part], place)
                except OSError:
                    return None
                if not count:
                    return None
                part, place = part[count:], place + count
        return data

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("frozen states %s; they are computed again when they are needed", what)


class StatePart:
    """What one model keeps in a store, beside what others keep there: keys are its own."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._mark = next(_MARKS).to_bytes(8, "big")

    def __contains__(self, key: bytes) -> bool:
        return self._mark + key in self._store

    def room(self) -> int:
        """As of the store."""
        return self._store.room()

    def size(self, key: bytes) -> int | None:
        """As of the store."""
        return self._store.size(self._mark + key)

    def put(self, key: bytes, entry: Activations) -> bool:
        """As of the store."""
        return self._store.put(self._mark + key, entry)

    def get(self, key: bytes) -> Activations | None:
        """As of the store."""
        return self._store.get(self._mark + key)

    def keys(self) -> list[bytes]:
        """Of its own entries, the least recently used first."""
        every = self._store.keys()
        return [key[len(self._mark) :] for key in every if key.startswith(self._mark)]

    def discard(self, key: bytes) -> None:
        """As of the store."""
        self._store.discard(self._mark + key)

    def clear(self) -> None:
        """Forget all of its own. The disk has the bytes back once nobody has any there."""
        for key in self.keys():
            self.discard(key)
        if not len(self._store):
            self._store.clear()


def lasting_folder() -> Path | None:
    """Where temporary files lie on a disk; None where they all are in memory."""
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp")):
        with suppress(OSError):
            if not _in_memory(folder):
                return folder
    return None


def layout(entry: Activations) -> tuple[tuple[TensorPlace, ...], int]:
    """Where each tensor of an entry begins when they are written one behind the other, and where they end."""
    places, end = [], 0
    for tensor in entry:
        places.append(TensorPlace(tensor.dtype, tuple(tensor.shape), end, tensor.device))
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    return tuple(places), end


def bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's numbers as bytes [n], on the CPU."""
    return tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)


def tensor_at(numbers: Tensor, place: TensorPlace) -> Tensor:
    """One tensor out of bytes that are in memory."""
    size = math.prod(place.shape) * place.dtype.itemsize
    return numbers[place.begin : place.begin + size].view(place.dtype).view(place.shape)


def _together(entry: Activations, places: Sequence[TensorPlace], size: int) -> memoryview:
    numbers = torch.zeros(size, dtype=torch.uint8)
    for tensor, place in zip(entry, places, strict=True):
        raw = bytes_of(tensor)
        numbers[place.begin : place.begin + len(raw)] = raw
    return numbers.numpy().data


def _numbers(places: Sequence[TensorPlace]) -> int:
    return sum(math.prod(place.shape) * place.dtype.itemsize for place in places)


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE, "big")


def _runs(pages: Sequence[int]) -> Iterator[range]:
    """Neighbouring pages, which are ascending, in one."""
    begin = 0
    for place in range(1, len(pages) + 1):
        if place == len(pages) or pages[place] != pages[place - 1] + 1:
            yield range(pages[begin], pages[place - 1] + 1)
            begin = place


def _in_memory(folder: Path) -> bool:
    """Whether a folder's files are held in memory, as Linux says it."""
    device = folder.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    kinds = [one.partition(" - ")[2].split()[0] for one in mounts if one.split()[2] == numbers]
    return any(kind in _IN_MEMORY for kind in kinds)
