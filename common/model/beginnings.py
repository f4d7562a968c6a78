"""Texts that begin alike: which of them a causal model reads together, so that the beginning is read once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["AlikeTexts", "group"]

_MEMBERS_MOST = 64
_WORTH = 4  # tokens spared by a group, at least


@dataclass(frozen=True)
class AlikeTexts:
    """Texts (their places) whose first `shared` tokens are the same; each has at least one token more."""

    members: tuple[int, ...]
    shared: int


def group(texts: Sequence[Sequence[int]], most: int) -> list[AlikeTexts]:
    """Put n texts (token ids) into groups so that as few tokens as possible are read.

    In order of their tokens, neighbours share most: of all ways to cut that order into groups, the one that
    spares most tokens. A group of more than one text has at most `most` tokens. Depends on the texts alone.
    """
    order = sorted(range(len(texts)), key=lambda place: (tuple(texts[place]), place))
    alike = [_alike(texts[a], texts[b]) for a, b in itertools.pairwise(order)]
    spared = [0] * (len(order) + 1)  # by how many of the first texts in order
    begins = list(range(-1, len(order)))  # of the last group among them
    for end in range(1, len(order) + 1):
        spared[end], begins[end] = spared[end - 1], end - 1
        shared, own = len(texts[order[end - 1]]) - 1, len(texts[order[end - 1]])
        for begin in range(end - 2, max(end - 1 - _MEMBERS_MOST, -1), -1):
            shared = min(shared, alike[begin], len(texts[order[begin]]) - 1)
            own += len(texts[order[begin]])
            saved = shared * (end - begin - 1)
            if shared == 0:
                break
            if saved >= _WORTH and own - saved <= most and spared[begin] + saved > spared[end]:
                spared[end], begins[end] = spared[begin] + saved, begin
    return _cut(order, begins, alike, texts)


def _cut(
    order: Sequence[int], begins: Sequence[int], alike: Sequence[int], texts: Sequence[Sequence[int]]
) -> list[AlikeTexts]:
    """The groups from where each of them begins, in order."""
    groups = []
    end = len(order)
    while end:
        begin = begins[end]
        members = tuple(order[begin:end])
        shared = min([*alike[begin : end - 1], *(len(texts[m]) - 1 for m in members)])
        groups.append(AlikeTexts(members, shared if len(members) > 1 else 0))
        end = begin
    return groups[::-1]


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
