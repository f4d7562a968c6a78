"""The cache of frozen activations with a disk behind it: each text is computed once, with the same bits."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penchant.common.model.activation_cache import PrefixCache
from penchant.common.model.state_store import StateStore
from penchant.common.model.tails import Activations


class Letters:
    """A tail that keeps a text's own token ids, and knows what it computed."""

    name = "letters"

    def __init__(self) -> None:
        self.computed: list[int] = []
        self.batches: list[int] = []

    def precompute(self, texts: Sequence[Tensor]) -> list[Activations]:
        self.computed += [int(ids[0]) for ids in texts]
        self.batches.append(len(texts))
        return [(ids.float(), ids[:1].clone()) for ids in texts]


def tokens(text: str) -> Tensor:
    return torch.tensor([int(text)] * 10)


def cache(folder: Path, limit: int, disk: int = 1 << 30) -> tuple[PrefixCache, Letters]:
    """One with room for so many texts in memory, 48 bytes each."""
    tail = Letters()
    return PrefixCache(tokens, tail, 48 * limit, StateStore(folder, disk)), tail  # type: ignore[arg-type]


TEXTS = [str(number) for number in range(40)]


def right(found: Sequence[Activations], texts: Sequence[str] = TEXTS) -> bool:
    return [int(ids[0]) for _, ids in found] == [int(text) for text in texts] and all(
        torch.equal(numbers, tokens(text).float()) for (numbers, _), text in zip(found, texts, strict=True)
    )


def test_a_text_for_which_memory_has_no_place_is_computed_once(tmp_path: Path) -> None:
    kept, tail = cache(tmp_path, 5)
    order = random.Random(0)
    for _ in range(3):
        asked = order.sample(TEXTS, 40)
        assert right(kept.get(asked), asked)
        assert len(kept) == 5
        assert kept.held == 5 * 48
    assert sorted(tail.computed) == list(range(40))
    assert kept.forwards == 40


def test_warming_fills_the_disk_where_memory_is_short(tmp_path: Path) -> None:
    """Each text is computed alone then, so that no bit depends on what the disk has place for."""
    kept, tail = cache(tmp_path, 5)
    kept.warm(TEXTS, threads=2)
    assert (kept.forwards, len(kept)) == (40, 5)
    assert set(tail.batches) == {1}
    plenty, batched = cache(tmp_path, 40)
    plenty.warm(TEXTS)
    assert batched.batches == [1, 16, 16, 8]  # the first a measurement
    tail.computed.clear()
    kept.warm(TEXTS)
    assert right(kept.get(TEXTS))
    assert right(kept.together(TEXTS))
    assert tail.computed == []


def test_warming_leaves_what_neither_memory_nor_disk_has_place_for(tmp_path: Path) -> None:
    kept, _ = cache(tmp_path, 5, disk=0)
    kept.warm(TEXTS)
    assert (len(kept), kept.forwards) == (0, 0)


def test_what_was_computed_in_company_comes_back_from_the_disk_but_not_for_training(tmp_path: Path) -> None:
    kept, tail = cache(tmp_path, 5)
    kept.together(TEXTS)
    assert right(kept.together(TEXTS))
    assert kept.forwards == 40
    assert right(kept.get(TEXTS))
    assert kept.forwards == 80
    tail.computed.clear()
    assert right(kept.together(TEXTS))
    assert tail.computed == []


def test_the_size_of_what_is_on_the_disk_is_known_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = cache(tmp_path, 5)
    kept.get(TEXTS)
    monkeypatch.setattr(StateStore, "get", lambda *_: pytest.fail("read"))
    assert kept.measured(kept.key("0"), "0") == (48, None)
    size, entry = kept.measured(kept.key("39"), "39")
    assert size == 48
    assert entry is not None


def test_a_full_disk_costs_time_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refused)
    kept, _ = cache(tmp_path, 5)
    for _ in range(2):
        assert right(kept.get(TEXTS))
    assert kept.forwards == 80


def test_a_damaged_disk_costs_what_is_damaged(tmp_path: Path) -> None:
    kept, _ = cache(tmp_path, 5)
    kept.get(TEXTS)
    assert kept._disk is not None
    file = kept._disk._store._file
    assert file is not None
    os.ftruncate(file, 0)
    assert right(kept.get(TEXTS))
    assert kept.forwards == 75  # five were in memory


def test_all_is_written_for_other_processes_and_the_disk_is_free_again(tmp_path: Path) -> None:
    kept, _ = cache(tmp_path, 5)
    kept.get(TEXTS)
    kept.write(tmp_path / "states")
    kept.read(tmp_path / "states")
    other, tail = cache(tmp_path, 5)
    other.read(tmp_path / "states")
    (tmp_path / "states").unlink()
    assert kept._disk is not None
    assert kept._disk._store._file is None
    for one in (kept, other):
        assert right(one.get(TEXTS))
        assert len(one) == 40
        one.get(["100", "101", "102", "103", "104", "105"])  # what is mapped takes no memory of theirs
        assert right(one.get(TEXTS))
        assert len(one) == 45
    assert sorted(tail.computed) == list(range(100, 106))
    kept.clear()
    assert (len(kept), kept.held) == (0, 0)


def test_threads_compute_each_text_once_with_a_disk(tmp_path: Path) -> None:
    kept, tail = cache(tmp_path, 5)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(5):
            asked = order.sample(TEXTS, 40)
            if not right(kept.get(asked), asked):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(tail.computed) == list(range(40))
