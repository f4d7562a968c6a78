"""Hear what a simulation does while it works: a line for each round.

python docs/examples/callbacks.py
"""

from __future__ import annotations

import penchant


class Lines(penchant.Callback):
    """Prints every round, and keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float | None] = []

    def on_stage(self, stage: str) -> None:
        """Print what comes next."""
        print(f"{stage} …")

    def on_round(self, summary: penchant.RoundSummary, last: int) -> None:
        """Print the round's figures."""
        self.losses.append(summary.train_loss)
        loss = "–" if summary.train_loss is None else f"{summary.train_loss:.3f}"
        print(f"round {summary.round} of {last}: {summary.survivors} devices, training loss {loss}")


def main() -> Lines:
    """Simulate a small federation of senators with a callback."""
    lines = Lines()
    data = penchant.load_preferences("senate", people=12, pairs=8)
    penchant.simulate(data, share="A", rounds=2, cohort=10, callbacks=[lines])
    return lines


if __name__ == "__main__":
    main()
