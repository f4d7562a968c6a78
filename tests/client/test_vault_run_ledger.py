"""The ledger of runs: which were seen, and the owner's limits, over many runs, rounds and days."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.client.vault.run_ledger import MONTH, REMEMBERED, Attempt, RunLedger, RunLimits, enter
from penchant.client.vault.vault import Vault
from penchant.common.errors import PolicyRefusal, UsageError

ONE, OTHER, THIRD = (bytes([number]) * 16 for number in (1, 2, 3))
LAST = 20_010  # day of every run
TODAY = 20_000
LIMITS = RunLimits(rounds_a_day=2, runs_a_month=9, attempts_a_round=2, attempts_a_day=9)


@pytest.fixture
def ledger(tmp_path: Path) -> RunLedger:
    return Vault(tmp_path).ledger


def attempt(run: bytes = ONE, round: int = 1, number: int = 1, manifest: bytes = b"") -> Attempt:
    return Attempt(run, round, number, manifest or b"manifest of " + run, LAST)


def take(ledger: RunLedger, one: Attempt, day: int = TODAY, limits: RunLimits = LIMITS) -> None:
    with ledger._transaction() as db:
        enter(db, one, limits, day)


def attempts(ledger: RunLedger) -> dict[bytes, tuple[int, int]]:
    """run -> (rounds, attempts)."""
    return {known.run: (known.rounds, known.attempts) for known in ledger.runs()}


def test_each_run_is_accepted_by_itself(ledger: RunLedger) -> None:
    for run in (ONE, OTHER, THIRD):
        assert not ledger.offer(attempt(run), TODAY)
    ledger.accept(OTHER.hex()[:8])
    assert [ledger.offer(attempt(run), TODAY) for run in (ONE, OTHER, THIRD)] == [False, True, False]


def test_a_name_that_is_too_short_or_of_two_runs_accepts_none(ledger: RunLedger) -> None:
    """A server may choose a run's id to begin like another's."""
    twin = ONE[:8] + OTHER[8:]
    for run in (ONE, twin, OTHER):
        ledger.offer(attempt(run), TODAY)
    for named in (OTHER.hex()[:7], ONE.hex()[:16], THIRD.hex(), ""):
        with pytest.raises(UsageError, match="names no run"):
            ledger.accept(named)
    assert not any(known.accepted for known in ledger.runs())
    assert ledger.accept(twin.hex()[:18].upper()) == twin


def test_each_run_has_the_manifest_with_which_it_was_seen_first(ledger: RunLedger) -> None:
    for run in (ONE, OTHER):
        take(ledger, attempt(run))
    assert [known.manifest for known in ledger.runs()] == [b"manifest of " + run for run in (ONE, OTHER)]
    with pytest.raises(PolicyRefusal, match="another manifest"):
        take(ledger, attempt(OTHER, 1, 2, b"another"))
    with pytest.raises(PolicyRefusal, match="another manifest"):
        ledger.offer(attempt(OTHER, 1, 2, b"another"), TODAY)
    assert attempts(ledger) == {ONE: (1, 1), OTHER: (1, 1)}
    assert ledger.manifest(THIRD) is None


def test_attempts_are_counted_for_each_round_of_each_run(ledger: RunLedger) -> None:
    wide = RunLimits(9, 9, 2, 9)
    for one in (attempt(ONE, 1, 1), attempt(ONE, 1, 2), attempt(ONE, 2, 1), attempt(OTHER, 1, 1)):
        take(ledger, one, limits=wide)
    take(ledger, attempt(OTHER, 1, 2), limits=wide)
    with pytest.raises(PolicyRefusal, match="round 1 was tried 2 times"):
        take(ledger, attempt(OTHER, 1, 3), TODAY + 1, wide)  # another day gives no further ones
    assert attempts(ledger) == {ONE: (2, 3), OTHER: (1, 2)}


def test_a_round_that_counts_today_already_may_be_tried_again(ledger: RunLedger) -> None:
    take(ledger, attempt(ONE, 1))
    take(ledger, attempt(OTHER, 1))
    take(ledger, attempt(OTHER, 1, 2))
    with pytest.raises(PolicyRefusal, match="2 rounds today"):
        take(ledger, attempt(THIRD, 1))
    assert ledger.has_room(ONE, LIMITS, TODAY) is False


def test_each_day_has_its_own_rounds_and_attempts(ledger: RunLedger) -> None:
    few = RunLimits(2, 9, 9, 3)
    for day in (TODAY, TODAY + 1):
        for one in (attempt(ONE, day, 1), attempt(ONE, day, 2), attempt(ONE, day, 3)):
            take(ledger, one, day, few)
        with pytest.raises(PolicyRefusal, match="asked 3 times today"):
            take(ledger, attempt(ONE, day, 4), day, few)
        assert not ledger.has_room(ONE, few, day)
        assert ledger.has_room(ONE, few, day + 1)
    for day in (TODAY + 2, TODAY + 3):
        take(ledger, attempt(ONE, 3 * day), day, LIMITS)
        take(ledger, attempt(ONE, 3 * day + 1), day, LIMITS)
        with pytest.raises(PolicyRefusal, match="2 rounds today"):
            take(ledger, attempt(ONE, 3 * day + 2), day, LIMITS)


def test_a_run_that_the_device_is_in_goes_on_at_the_limit_of_runs(ledger: RunLedger) -> None:
    single = RunLimits(9, 1, 9, 9)
    take(ledger, attempt(ONE), limits=single)
    take(ledger, attempt(ONE, 2), limits=single)
    for day in (TODAY, TODAY + MONTH - 1):
        with pytest.raises(PolicyRefusal, match="has begun 1 runs in 30 days"):
            take(ledger, attempt(OTHER), day, single)
    take(ledger, attempt(OTHER), TODAY + MONTH, single)


def test_what_is_long_over_is_forgotten_and_nothing_else(ledger: RunLedger) -> None:
    """A run's rows go once its last day, and the day on which it was first seen, are long past."""
    take(ledger, attempt(ONE))
    late = Attempt(OTHER, 1, 1, b"open for years", LAST + 9 * REMEMBERED)
    take(ledger, late)
    take(ledger, attempt(THIRD), LAST + REMEMBERED)
    assert set(attempts(ledger)) == {ONE, OTHER, THIRD}
    take(ledger, attempt(THIRD, 2), LAST + REMEMBERED + 1)
    assert attempts(ledger) == {OTHER: (1, 1), THIRD: (2, 2)}
    with ledger._transaction() as db:
        assert {bytes(run) for (run,) in db.execute("SELECT run FROM taken")} == {OTHER, THIRD}
