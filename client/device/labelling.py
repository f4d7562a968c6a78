"""Labelling: the owner is shown two responses and says which one they would rather have.

Which response is shown first is drawn anew for each question, so that neither a place nor a file's order
teaches the model anything. A comparison that was answered before is not asked again: labelling the same file
goes on where it was left.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.client.device.preference_store import PreferenceStore, RecordedTie
from penchant.common.data.preferences import Preference, Tie, comparison_of
from penchant.common.data.row_files import BadRows, ReadReport, RowLog, read_rows
from penchant.common.data.trl_format import parse_preference
from penchant.common.errors import DataError

if TYPE_CHECKING:
    from penchant.client.learning.active import ActiveLearner

__all__ = ["SOURCE", "Labelling", "Question", "compared", "read_comparisons"]

SOURCE = "label"
RESPONSES_MOST = 100  # to one prompt: every pair of them is a question


@dataclass(frozen=True)
class Question:
    """Two different responses to one prompt, in the order in which they are shown."""

    prompt: str = field(repr=False)
    first: str = field(repr=False)
    second: str = field(repr=False)

    def answered(self, first_is_better: bool) -> Preference:
        """The owner's choice."""
        better, worse = (self.first, self.second) if first_is_better else (self.second, self.first)
        return Preference(self.prompt, better, worse)


def compared(prompt: str, responses: Sequence[str]) -> list[Preference]:
    """Every pair of different responses; which one is called chosen says nothing. DataError without any."""
    different = list(dict.fromkeys(responses))
    if not 2 <= len(different) <= RESPONSES_MOST:
        raise DataError(
            f"{len(different)} different responses to one prompt; 2 to {RESPONSES_MOST} can be compared"
        )
    return [Preference(prompt, one, other) for one, other in itertools.combinations(different, 2)]


def read_comparisons(path: Path, bad_rows: BadRows = "refuse") -> tuple[list[Preference], ReadReport]:
    """What to compare, from JSON lines or Parquet: rows with ``prompt`` and ``responses`` (two or more), or
    rows in TRL's format, whose choice is not looked at.

    Raises DataError as `read_preferences` does.
    """
    log = RowLog(bad_rows)
    found: list[Preference] = []
    for where, row in read_rows(path, log):
        try:
            found += _row(row)
        except DataError as error:
            log.reject(where, error)
    return found, log.finish(path)


def _row(row: Mapping[str, Any]) -> list[Preference]:
    if "responses" not in row:
        if "chosen" not in row and "rejected" not in row:
            raise DataError("'responses' is missing")
        return [
            replace(parse_preference(row), tie="", strength=None)
        ]  # what was said of it is not looked at either
    responses = row["responses"]
    if not isinstance(responses, list) or not all(isinstance(one, str) for one in responses):
        raise DataError("'responses' must be a list of texts")
    prompt = row.get("prompt")
    return compared("" if prompt is None else prompt, responses)


class Labelling:
    """One sitting: what is asked next, and what the owner answered. Each answer is durable at once.

    Args:
        store: where choices are recorded.
        comparisons: what to ask about, in this order.
        draw: which response comes first; a test injects a seeded one.
        learner: of the questions as they are shown, what it opens for them: the most telling one is asked
            first, and after each answer anew. Without it they keep their order.
    """

    def __init__(
        self,
        store: PreferenceStore,
        comparisons: Iterable[Preference],
        draw: random.Random | None = None,
        learner: Callable[[Sequence[Preference]], ActiveLearner] | None = None,
    ) -> None:
        self._store = store
        draw = random.SystemRandom() if draw is None else draw
        self._waiting = deque(_question(p, draw) for p in store.unanswered(_once(comparisons)))
        self._place = {id(question): place for place, question in enumerate(self._waiting)}
        asked = [question.answered(True) for question in self._waiting]
        self._learner = learner(asked) if learner and asked else None
        self._done: list[tuple[Question, Preference | RecordedTie | None]] = []  # None: skipped
        self._ours: set[Preference] = set()  # those that no one else recorded before
        self._most_telling_first()

    @property
    def question(self) -> Question | None:
        """What to ask now; None when all is answered or skipped."""
        return self._waiting[0] if self._waiting else None

    @property
    def left(self) -> int:
        """Questions that were not asked yet."""
        return len(self._waiting)

    @property
    def recorded(self) -> int:
        """Choices of this sitting."""
        return sum(isinstance(answer, Preference) for _, answer in self._done)

    @property
    def tied(self) -> int:
        """Questions of this sitting in which neither response was preferred."""
        return sum(isinstance(answer, RecordedTie) for _, answer in self._done)

    @property
    def skipped(self) -> int:
        """Questions that the owner did not want to answer; another sitting asks them again."""
        return len(self._done) - self.recorded - self.tied

    def guess(self) -> float | None:
        """How likely the owner would rather have the first response of the question, as far as their model
        knows; None without a learner, or without a question."""
        if self._learner is None or not self._waiting:
            return None
        return float(self._learner.beliefs().probability[self._place[id(self._waiting[0])]])

    def choose(self, first_is_better: bool) -> None:
        """Record the answer to the question. DeviceError when the disk refuses; the question stays."""
        choice = self._waiting[0].answered(first_is_better)
        if self._store.add([choice], SOURCE).new:
            self._ours.add(choice)
        if self._learner:
            self._learner.answer(self._place[id(self._waiting[0])], first_is_better)
        self._done.append((self._waiting.popleft(), choice))
        self._most_telling_first()

    def tie(self, said: Tie) -> bool:
        """Record that neither response is preferred; False, and the question is skipped, where one was chosen
        otherwise meanwhile. DeviceError when the disk refuses; the question stays.

        It is learned from as choices are, and no sitting asks again.
        """
        question = self._waiting[0]
        tie = self._store.add_tie(question.answered(True), said, SOURCE)
        if self._learner and tie is not None:
            self._learner.answer(self._place[id(question)], None)
        self._done.append((self._waiting.popleft(), tie))
        self._most_telling_first()
        return tie is not None

    def skip(self) -> None:
        """Leave the question unanswered."""
        self._done.append((self._waiting.popleft(), None))
        self._most_telling_first()

    def undo(self) -> bool:
        """Take back the last answer of this sitting and ask again, as before; False when there is none.

        What was recorded otherwise meanwhile, by an import say, stays; a choice of this sitting that was
        turned round since goes, and so does one that was made of a tie of it.
        """
        if not self._done:
            return False
        question, choice = self._done[-1]
        if isinstance(choice, RecordedTie):
            if not self._store.remove_tie(choice):
                self._remove_either(choice.pair)  # settled since
            if self._learner:
                self._learner.undo()
        elif choice is not None:
            self._take_back(choice)
            if self._learner:
                self._learner.undo()
        self._done.pop()
        self._waiting.appendleft(question)
        return True

    def _take_back(self, choice: Preference) -> None:
        if choice in self._ours:
            self._remove_either(choice)
            self._ours.remove(choice)

    def _remove_either(self, pair: Preference) -> None:
        """Take back what a sitting recorded of two responses, whichever is preferred."""
        rows = [row for row in self._store.recorded() if row.source == SOURCE]
        self._store.remove_these(row for row in rows if comparison_of(row.preference) == comparison_of(pair))

    def _most_telling_first(self) -> None:
        if self._learner and self._waiting:
            places = [self._place[id(question)] for question in self._waiting]
            chosen = self._learner.question(places)
            best = next(q for q in self._waiting if self._place[id(q)] == chosen)
            self._waiting.remove(best)
            self._waiting.appendleft(best)


def _once(comparisons: Iterable[Preference]) -> Iterator[Preference]:
    """Each comparison once, whichever side is called chosen."""
    seen = set()
    for pair in comparisons:
        key = comparison_of(pair)
        if key not in seen:
            seen.add(key)
            yield pair


def _question(pair: Preference, draw: random.Random) -> Question:
    first, second = draw.sample((pair.chosen, pair.rejected), 2)
    return Question(pair.prompt, first, second)
