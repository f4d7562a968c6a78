"""Which texts are read together, because they begin alike."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from penchant.common.model.beginnings import AlikeTexts, group


def read(groups: Sequence[AlikeTexts], texts: Sequence[Sequence[int]]) -> int:
    """Tokens that are read."""
    return sum(
        sum(len(texts[m]) for m in one.members) - one.shared * (len(one.members) - 1) for one in groups
    )


def test_the_responses_to_each_prompt_come_together() -> None:
    """A beginning that all texts have (a template, say) does not keep prompts from being told apart."""
    template, one, other = [1, 2], [3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]
    texts = [[*template, *prompt, response, 30] for response in (20, 21) for prompt in (one, other)]
    assert group(texts, most=100) == [AlikeTexts((0, 2), 8), AlikeTexts((1, 3), 8)]


def test_each_text_keeps_a_token_of_its_own() -> None:
    texts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]]
    assert group(texts, most=100) == [AlikeTexts((0, 1, 2), 5)]


def test_a_group_has_no_more_tokens_than_it_may() -> None:
    texts = [[*range(10), number] for number in range(10, 16)]
    assert [len(one.members) for one in group(texts, most=13)] == [3, 3]
    assert [one.members for one in group(texts[:2], most=5)] == [(0,), (1,)]  # longer texts go alone


def test_no_way_to_cut_the_order_spares_more() -> None:
    draw = random.Random(0)
    for _ in range(30):
        prompts = [[draw.randint(1, 2) for _ in range(draw.randint(3, 9))] for _ in range(3)]
        texts = [[*draw.choice(prompts), draw.randint(3, 9), 1] for _ in range(7)]
        found = group(texts, most=30)
        assert sorted(m for one in found for m in one.members) == list(range(7))
        for one in found:
            beginnings = {tuple(texts[m][: one.shared]) for m in one.members}
            assert len(beginnings) == 1
        assert read(found, texts) <= min(read(cut, texts) for cut in cuts(texts))


def cuts(texts: Sequence[Sequence[int]]) -> list[list[AlikeTexts]]:
    """Every way to cut the texts' order into groups that spare enough to be made."""
    order = sorted(range(len(texts)), key=lambda place: (tuple(texts[place]), place))
    found = []
    for ends in itertools.product((False, True), repeat=len(order) - 1):
        edges = [0, *(place + 1 for place, end in enumerate(ends) if end), len(order)]
        groups = [cut(order[a:b], texts) for a, b in itertools.pairwise(edges)]
        if all(len(one.members) == 1 or one.shared * (len(one.members) - 1) >= 4 for one in groups):
            found.append(groups)
    return found


def cut(members: Sequence[int], texts: Sequence[Sequence[int]]) -> AlikeTexts:
    if len(members) == 1:
        return AlikeTexts(tuple(members), 0)
    columns = zip(*(texts[m] for m in members), strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return AlikeTexts(tuple(members), min(alike, *(len(texts[m]) - 1 for m in members)))
