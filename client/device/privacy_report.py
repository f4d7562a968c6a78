"""What taking part has cost a device's owner, and what of it can't be taken back."""

from __future__ import annotations

from dataclasses import dataclass

from penchant.client.vault.vault import Contributed, Vault
from penchant.common.errors import LedgerError
from penchant.common.privacy.accounting import epsilon_of
from penchant.common.wording import counted, listed

__all__ = ["PrivacyReport", "RunShare", "privacy_report"]

RUNS_TOLD = 5  # by name, the latest; the report holds all


@dataclass(frozen=True)
class RunShare:
    """What one run may have had of the choices that were recorded by then.

    Attributes:
        run: its id, hexadecimal.
        rounds: for how many rounds a vector left.
        epsilon: what those in noised sums cost, at the owner's delta.
        exact: how many were for sums without noise, which no epsilon bounds.
    """

    run: str
    rounds: int
    epsilon: float
    exact: int

    @classmethod
    def of(cls, had: Contributed, delta: float) -> RunShare:
        """What the vault knows of it."""
        return cls(had.run.hex(), had.rounds, epsilon_of(had.rho, delta), had.exact)

    @property
    def words(self) -> str:
        """Such as `run 0123abcd, 3 rounds (epsilon 1.2)`."""
        noised = f"epsilon {self.epsilon:.3g}" if self.epsilon else ""
        exact = f"{counted(self.exact, 'vector')} without noise" if self.exact else ""
        return f"run {self.run[:8]}, {counted(self.rounds, 'round')} ({listed([noised, exact])})"


@dataclass(frozen=True)
class PrivacyReport:
    """What taking part has cost, and what is left.

    Attributes:
        spent: epsilon of all vectors that left for noised sums, over all runs and fleets.
        most: the owner's budget; None when policy.toml can't be read.
        delta: the delta that belongs to both.
        noised: how many vectors left for noised sums.
        exact: how many left for sums without noise, which no epsilon bounds.
        unknown: why nothing of this can be said; empty otherwise.
        runs: what each run may have had, the latest last.
        lost: whether the ledger was lost once, so that more may have left than it knows.
    """

    spent: float
    most: float | None
    delta: float
    noised: int
    exact: int
    unknown: str = ""
    runs: tuple[RunShare, ...] = ()
    lost: bool = False

    @property
    def lasting(self) -> str:
        """What can't be taken back, whatever is forgotten here, in one sentence.

        The vault does not keep which choices were in which round: each may have been in all since it was
        recorded.
        """
        if self.unknown:
            return f"what was contributed to runs can't be said: {self.unknown}"
        if not self.runs and not self.lost:
            return "nothing was contributed to any run"
        before = max(len(self.runs) - RUNS_TOLD, 0)
        earlier = f"{before} earlier runs" if before else ""
        runs = "; ".join(filter(None, [earlier, *(run.words for run in self.runs[before:])]))
        return (
            "what was contributed to runs with choices recorded by then can't be taken back"
            f"{': ' if runs else ''}{runs}; {self._bound()}"
        )

    def _bound(self) -> str:
        if self.lost:
            return "its ledger was lost once, so more may have left, and no epsilon is known to bound it"
        if any(run.exact for run in self.runs):
            return "no epsilon bounds what sums without noise say"
        return f"epsilon {self.spent:.3g} (delta {self.delta:g}) bounds what all of it says"


def privacy_report(vault: Vault, most: float | None, delta: float) -> PrivacyReport:
    """What the vault's ledger says. most, delta: the owner's budget, as `PrivacyReport` has them."""
    try:
        spent, contributed, lost = vault.privacy.spent(), vault.contributed(), vault.privacy.lost()
    except LedgerError as error:
        return PrivacyReport(0.0, most, delta, 0, 0, str(error))
    return PrivacyReport(
        spent=epsilon_of(spent.rho, delta),
        most=most,
        delta=delta,
        noised=spent.noised,
        exact=spent.exact,
        runs=tuple(RunShare.of(had, delta) for had in contributed),
        lost=lost,
    )
