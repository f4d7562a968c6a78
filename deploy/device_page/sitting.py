"""The questions of one sitting: what is asked next, what the model would have guessed, and what was said."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from penchant.client.device.device import Device
from penchant.client.device.labelling import Labelling, Question
from penchant.common.data.preferences import Preference
from penchant.common.errors import PenchantError
from penchant.common.printable import one_line

__all__ = ["Answer", "Asked", "Sitting", "Told"]

Answer = Literal["first", "second", "equal", "bad", "skip", "undo"]
PATIENCE = 1.0  # seconds for which a page waits for the model
LATELY = 12  # answers over which the model's guesses are counted


@dataclass(frozen=True)
class Told:
    """What became of the last answer. sure, right: how likely the model held its guess, and whether that was
    the owner's choice; None where there was no guess."""

    said: Answer
    sure: float | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Asked:
    """What a page shows of the sitting at one moment.

    Attributes:
        turn: names this moment: an answer to an earlier one is not taken.
        question: what to ask; None when all is answered or skipped.
        sure: how sure the model is which one will be chosen, from .5 on; None without a model.
        left: questions that are left, this one too.
        recorded: choices of this sitting.
        told: what became of the last answer; None before the first.
        right_lately: how many of the latest guesses were right, and of how many.
        without_model: why no model says which question tells most; empty where one does.
    """

    turn: int
    question: Question | None = field(repr=False)
    sure: float | None
    left: int
    recorded: int
    told: Told | None
    right_lately: tuple[int, int]
    without_model: str


class Sitting:
    """One owner before one list of comparisons. Thread-safe.

    `prepare` must be called once, and after `forget`; it takes a while.

    Args:
        device: the owner's.
        comparisons: what to ask about.
        model: held by whoever uses the device's model: one thread may at a time.
    """

    def __init__(self, device: Device, comparisons: Sequence[Preference], model: threading.RLock) -> None:
        self._device = device
        self._comparisons = list(comparisons)
        self._model = model
        self._lock = threading.Lock()
        self._labelling: Labelling | None = None
        self._without_model = ""
        self._turn = 0
        self._told: Told | None = None
        self._guessed: deque[bool | None] = deque(maxlen=LATELY)

    def prepare(self) -> None:
        """Load the model that says which question tells most; without one, questions come in their order."""
        with self._model:
            try:
                labelling = Labelling(self._device.store, self._comparisons, learner=self._device.learner)
            except PenchantError as error:
                self._without_model = one_line(str(error), 300)
                labelling = Labelling(self._device.store, self._comparisons)
            with self._lock:  # the model is held still: whoever forgets does so before, or after
                self._labelling = labelling

    def forget(self) -> None:
        """Know nothing of what was said any more: the choices are gone. To be prepared anew after that."""
        with self._lock:
            self._labelling, self._told = None, None
            self._guessed.clear()
            self._turn += 1

    def now(self) -> Asked | None:
        """What to show; None while it is being prepared, or while the model is at work for something else."""
        if not self._model.acquire(timeout=PATIENCE):
            return None
        try:
            return self._shown()
        finally:
            self._model.release()

    def _shown(self) -> Asked | None:
        with self._lock:
            labelling = self._labelling
            if labelling is None:
                return None
            guess = labelling.guess()
            known = [right for right in self._guessed if right is not None]
            return Asked(
                turn=self._turn,
                question=labelling.question,
                sure=None if guess is None else max(guess, 1 - guess),
                left=labelling.left,
                recorded=labelling.recorded,
                told=self._told,
                right_lately=(sum(known), len(known)),
                without_model=self._without_model,
            )

    def answer(self, turn: int, said: Answer) -> bool:
        """Take an answer to the question of `turn`; False where that is not the one that is asked now, or
        there is nothing to take back. DeviceError when the disk refuses; the question stays."""
        with self._model, self._lock:
            labelling = self._labelling
            if labelling is None or turn != self._turn:
                return False
            if said == "undo":
                if not labelling.undo():
                    return False
                if self._guessed:
                    self._guessed.pop()
                self._told = Told("undo")
            elif labelling.question is None:
                return False
            elif said == "skip":
                labelling.skip()
                self._guessed.append(None)
                self._told = Told("skip")
            elif said in ("equal", "bad"):
                recorded = labelling.tie("equal" if said == "equal" else "both bad")
                self._guessed.append(None)
                self._told = Told(said if recorded else "skip")
            else:
                self._choose(labelling, said)
            self._turn += 1
            return True

    def _choose(self, labelling: Labelling, said: Answer) -> None:
        guess = labelling.guess()
        labelling.choose(said == "first")
        right = None if guess is None else (guess > 0.5) == (said == "first")
        self._guessed.append(right)
        self._told = Told(said, None if guess is None else max(guess, 1 - guess), right)
