"""A malicious server learns sums over at least t - c honest devices, or nothing: searched, not argued.

The server of tests/support/adversary.py tells every honest device what it likes. Here its choices are
enumerated where they are few and drawn by hypothesis where they are many; what it learns is computed from
real messages. The same search does find an attack where one condition is weaker, so it would find one here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from support import adversary
from support.adversary import Attempt, Devices, View

from penchant.client import secagg
from penchant.client.secagg import Confirmed, Masking, Participant
from penchant.common.errors import AgreementError, PolicyRefusal, SecretSharingError
from penchant.common.secagg.transcript import confirmation_text, threshold
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Confirmation, Survivors

Plot = tuple[int, int, int, dict[int, View]]
"""(n, c, how many are bad, what each honest device is told)."""


def subsets(whole: Devices, least: int) -> Iterator[Devices]:
    for size in range(max(least, 0), len(whole) + 1):
        yield from combinations(whole, size)


def views(u: int, roster: Devices) -> list[View]:
    """All that device `u` can be told without refusing at once, under a roster."""
    t = secagg.threshold(len(roster))  # type: ignore[attr-defined]  # a test replaces it
    return [
        View(roster, sharers, survivors)
        for sharers in subsets(roster, t)
        for survivors in subsets(sharers, t)
        if u in survivors
    ]


def check(attempt: Attempt) -> None:
    """The promise. Besides: of whatever is learned, t - c honest devices unmasked and sit the round out."""
    for part in attempt.opened():
        least = threshold(len(attempt.views[part[0]].roster)) - attempt.colluders
        assert len(part) >= least, f"a sum over {part} alone"
        assert len(attempt.unmasked & set(part)) >= least


def told_alike(n: int, honest: int) -> dict[int, View]:
    everyone = tuple(range(n))
    return {u: View(everyone, everyone, everyone) for u in range(honest)}


# --- the promise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "colluders"), [(3, 0), (4, 1), (7, 2), (10, 3)])
def test_a_server_that_tells_all_the_same_learns_one_sum(n: int, colluders: int) -> None:
    attempt = Attempt(n, colluders, colluders, told_alike(n, n - colluders))
    assert attempt.opened() == [tuple(range(n - colluders))]
    assert not attempt.refused


def test_with_a_lost_device_it_learns_the_sum_of_the_others() -> None:
    """Device 0 is named lost after it has sent: its vector stays closed, though its key is known."""
    everyone, others = tuple(range(7)), tuple(range(1, 7))
    told = dict.fromkeys(range(5), View(everyone, everyone, others))
    attempt = Attempt(7, 2, 2, told)
    assert list(attempt.refused) == [0]
    assert attempt.opened() == [(1, 2, 3, 4)]
    check(attempt)


def test_four_devices_one_of_them_bad_whatever_the_server_tells_them() -> None:
    """Every combination of U2 and U3 for each of three honest devices."""
    everyone = (0, 1, 2, 3)
    choices = [views(u, everyone) for u in range(3)]
    learned = 0
    for told in product(*choices):
        attempt = Attempt(4, 1, 1, dict(enumerate(told)))
        check(attempt)
        learned += bool(attempt.opened())
    assert [len(choice) for choice in choices] == [7, 7, 7]
    assert learned > 1  # and not all is refused


def test_three_devices_that_trust_each_other_whatever_the_server_tells_them() -> None:
    everyone = (0, 1, 2)
    for told in product(*(views(u, everyone) for u in everyone)):
        check(Attempt(3, 0, 0, dict(enumerate(told))))


@st.composite
def plots(draw: st.DrawFn, sizes: st.SearchStrategy[int], *, more: int = 0, forks: bool = True) -> Plot:
    """Up to three stories, each told to some.

    more: how many devices are bad beyond what the owners allow for.
    """
    n = draw(sizes)
    colluders = draw(st.integers(0, (n - 1) // 3))
    bad = colluders + more
    everyone = tuple(range(n))
    stories = []
    for _ in range(draw(st.integers(1, 3))):
        roster = everyone
        if forks and draw(st.booleans()):
            roster = tuple(
                sorted(draw(st.sets(st.sampled_from(everyone), min_size=max(3 * colluders + 1, 3))))
            )
        sharers = without_some(draw, roster)
        stories.append(View(roster, sharers, without_some(draw, sharers, len(roster))))
    return n, colluders, bad, {u: fitted(u, draw(st.sampled_from(stories))) for u in range(n - bad)}


def without_some(draw: st.DrawFn, whole: Devices, n: int = 0) -> Devices:
    """`whole` without as many as can be, or fewer."""
    t = secagg.threshold(n or len(whole))  # type: ignore[attr-defined]
    spare = max(len(whole) - t, 0)
    left = draw(st.sets(st.sampled_from(whole), max_size=spare))
    return tuple(v for v in whole if v not in left)


def fitted(u: int, story: View) -> View:
    """The story with `u` in it, or it would refuse at once."""
    return View(*(tuple(sorted({*part, u})) for part in (story.roster, story.sharers, story.survivors)))


SEARCH = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@SEARCH
@given(plots(st.integers(5, 10)))
def test_many_devices_several_stories_and_rosters(plot: Plot) -> None:
    check(Attempt(*plot))


# --- told different things, one by one --------------------------------------------------------------------


def test_two_rosters_to_two_halves_open_nothing() -> None:
    """Shares are sealed under the roster: what somebody dealt for another roster does not open."""
    everyone, others = tuple(range(7)), tuple(range(1, 7))
    told = {
        u: View(everyone, everyone, everyone) if u < 3 else View(others, others, others) for u in range(5)
    }
    attempt = Attempt(7, 1, 2, told)
    assert attempt.opened() == []
    assert {type(error) for error in attempt.refused.values()} == {SecretSharingError}
    assert not attempt.masked  # it ends before a vector leaves


def test_two_rosters_without_a_common_honest_device_are_two_groups() -> None:
    """The same colluder sits in both; each sum keeps its own promise."""
    one, other = (0, 1, 2, 8), (3, 4, 5, 6, 7, 8)
    told = {u: View(*[one if u in one else other] * 3) for u in range(8)}
    attempt = Attempt(9, 1, 1, told)
    assert attempt.opened() == [(0, 1, 2), (3, 4, 5, 6, 7)]
    check(attempt)


def test_other_lists_to_one_device_open_nothing_of_it() -> None:
    """Device 0 masks with few peers, the others with all; it signs no list that another device signs."""
    everyone, few = tuple(range(7)), (0, 3, 4, 5, 6)
    told = {u: View(everyone, everyone, everyone) for u in range(5)} | {0: View(everyone, few, few)}
    attempt = Attempt(7, 2, 2, told)
    assert list(attempt.refused) == [0]
    assert isinstance(attempt.refused[0], PolicyRefusal)  # too few sign its lists
    assert 0 not in {u for part in attempt.opened() for u in part}


# --- U2 in the confirmation: not needed for the promise, and what it is good for --------------------------


@pytest.fixture
def without_u2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody signs U3 alone, as in the paper."""
    signed = confirmation_text
    for module in (secagg, adversary):
        monkeypatch.setattr(
            module,
            "confirmation_text",
            lambda context, roster, _, survivors: signed(context, roster, (), survivors),
        )


def two_u2() -> dict[int, View]:
    """Device 0 masks with all but device 1, the others with all; all are told the same U3, without 1."""
    everyone, u3 = tuple(range(6)), (0, 2, 3, 4, 5)
    return {u: View(everyone, everyone if u else u3, u3) for u in range(5)}


def test_devices_that_masked_for_another_u2_do_not_confirm_one_another() -> None:
    """Four signatures on one pair of lists and one on the other, where five are needed."""
    attempt = Attempt(6, 0, 1, two_u2())
    assert attempt.opened() == []
    assert not attempt.unmasked


def test_without_u2_in_the_confirmation_they_do_and_the_sum_is_as_large_as_promised(without_u2: None) -> None:
    attempt = Attempt(6, 0, 1, two_u2())
    assert attempt.unmasked == {0, 2, 3, 4}
    check(attempt)


def test_without_u2_in_the_confirmation_the_promise_holds_for_four_devices(without_u2: None) -> None:
    """All of it is searched: U2 in the confirmation is belt and braces (docs/protocol.md)."""
    learned = 0
    for told in product(*(views(u, (0, 1, 2, 3)) for u in range(3))):
        attempt = Attempt(4, 1, 1, dict(enumerate(told)))
        check(attempt)
        learned += bool(attempt.opened())
    assert learned > 1


class Trusting(Participant):
    """A device whose check of U2 is gone: it confirms the U3 that it is told, whatever it masked for."""

    def confirm(self, state: secagg.State, payload: bytes) -> tuple[Confirmed, bytes]:
        assert isinstance(state, Masking)
        survivors = decode(payload, Survivors).survivors
        made = secagg.confirmation_text  # type: ignore[attr-defined]  # as a test may have replaced it
        text = made(state.info.context, state.roster, state.sharers, survivors)
        confirmed = Confirmed(
            state.info,
            state.me,
            state.roster,
            state.identities,
            state.sharers,
            survivors,
            state.seed_shares,
            state.key_shares,
        )
        return confirmed, encode(Confirmation(self.identity.sign(text)))


def isolate_a_trusting_device() -> Attempt:
    """Device 0 masks with 3 and 4, who are then lost for all, and confirms a U3 that it never masked for."""
    everyone, few, u3 = tuple(range(7)), (0, 3, 4, 5, 6), (0, 1, 2, 5, 6)
    told = {u: View(everyone, everyone, u3) for u in range(5)} | {0: View(everyone, few, u3)}
    return Attempt(7, 2, 2, told, participants={0: Trusting})


def test_without_both_u2_in_the_confirmation_and_its_check_one_device_is_isolated(without_u2: None) -> None:
    assert (0,) in isolate_a_trusting_device().opened()


def test_u2_in_the_confirmation_stands_in_for_a_device_that_does_not_check_it() -> None:
    attempt = isolate_a_trusting_device()
    assert attempt.opened() == []
    assert not attempt.unmasked


def test_a_device_confirms_no_u3_that_it_did_not_mask_for(without_u2: None) -> None:
    """The check itself: with it, device 0 refuses, though no signature would hold it back."""
    everyone, few, u3 = tuple(range(7)), (0, 3, 4, 5, 6), (0, 1, 2, 5, 6)
    told = {u: View(everyone, everyone, u3) for u in range(5)} | {0: View(everyone, few, u3)}
    attempt = Attempt(7, 2, 2, told)
    assert isinstance(attempt.refused[0], AgreementError)
    assert attempt.opened() == []


# --- three lists, and none signed -------------------------------------------------------------------------


def test_three_lists_would_isolate_two_devices_if_it_were_not_for_the_signatures() -> None:
    """Of five honest devices and two bad ones: every honest device hears of two lost ones, so that each of
    2, 3 and 4 is lost for three of them. Their keys are rebuilt, 0 and 1 are opened by their seeds, and what
    is left of those is a sum over two people, where three were promised."""
    everyone = tuple(range(7))
    lost = {0: (2, 3), 4: (2, 3), 1: (2, 4), 3: (2, 4), 2: (3, 4)}
    lists = {u: tuple(v for v in everyone if v not in gone or v == u) for u, gone in lost.items()}
    told = {u: View(everyone, everyone, survivors) for u, survivors in lists.items()}
    assert Attempt(7, 2, 2, told, verify=lambda *_: True).opened() == [(0, 1)]
    honest = Attempt(7, 2, 2, told)
    assert honest.opened() == []
    assert not honest.unmasked
    assert {type(error) for error in honest.refused.values()} == {PolicyRefusal}


# --- the search has teeth ---------------------------------------------------------------------------------


def isolated(plot: Plot) -> bool:
    """Whether the server learns of fewer people than promised."""
    n, colluders, _, _ = plot
    attempt = Attempt(*plot)
    return any(len(part) < threshold(n) - colluders for part in attempt.opened())


def attack(condition: Callable[[Plot], bool], n: int, **how: Any) -> Plot:
    """A plot that the condition holds for; NoSuchExample where the search finds none."""
    return find(
        plots(st.just(n), forks=False, **how), condition, settings=settings(SEARCH, max_examples=4000)
    )


def test_it_finds_the_attack_on_a_threshold_of_a_mere_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    """With t = 3 of 5 two lists get their signatures: somebody is alive on one and dead on the other."""
    monkeypatch.setattr(secagg, "threshold", lambda n: n // 2 + 1)
    plot = attack(isolated, 5)
    assert len({view.survivors for view in plot[3].values()}) > 1


def test_it_finds_the_attack_of_more_colluders_than_owners_allow_for() -> None:
    """Four devices that allow for one bad one, and there are two."""
    attack(lambda plot: plot[1] == 1 and isolated(plot), 4, more=1)
