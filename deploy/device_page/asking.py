"""A prompt of the owner's, responses to it ranked by the owner's model, and the one that the owner took."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace

from penchant.client.device.conversation_form import prompt_of, response_of
from penchant.client.device.device import Device, Ranked
from penchant.client.device.explaining import Explanation
from penchant.client.device.preference_store import Recorded
from penchant.common.data.preferences import Preference
from penchant.common.errors import DataError
from penchant.deploy.device_page.writers import ResponseWriter

__all__ = ["ASK_SOURCE", "AskDesk", "AskedPrompt", "AskedRow"]

ASK_SOURCE = "ask"
HEARD_MOST = 1000  # choices: to hear more of them, nobody waits before a page


@dataclass(frozen=True)
class AskedRow:
    """One response as it was written, what the model says of it in the form that it was trained in, and why
    it comes before the next one: None for the last, and where that isn't known."""

    text: str = field(repr=False)
    ranked: Ranked
    why: Explanation | None = None


@dataclass(frozen=True)
class AskedPrompt:
    """What came of one prompt.

    Attributes:
        mark: names this one: a form of an earlier one is not taken for it.
        prompt: as the owner wrote it.
        spoken: the prompt in the form in which the model was trained.
        rows: the best first.
        picked: the place of the response that the owner took; None before.
        is_new: whether that choice was not recorded before.
    """

    mark: str
    prompt: str = field(repr=False)
    spoken: str = field(repr=False)
    rows: tuple[AskedRow, ...]
    picked: int | None = None
    is_new: bool = False

    def preference(self, place: int) -> Preference:
        """What taking the response at a place says: rather it than the first, or rather the first than the
        second.

        Taking the first counts as well: choices that only ever contradict the model hold all that was picked
        by mistake, and little of what the model has learned.
        """
        other = self.rows[1 if place == 0 else 0]
        return Preference(self.spoken, self.rows[place].ranked.response, other.ranked.response)


class AskDesk:
    """One prompt at a time, in memory only. Thread-safe.

    writer: who writes responses; None where the owner named nobody.
    """

    def __init__(self, device: Device, writer: ResponseWriter | None) -> None:
        self.writer = writer
        self._device = device
        self._lock = threading.Lock()
        self._latest: AskedPrompt | None = None
        self.prompt, self.count = "", 4

    @property
    def latest(self) -> AskedPrompt | None:
        """What came of the last prompt; None before, and while its responses are being written.

        A reason that names a choice which is not recorded any more, or is the other way round now, is kept no
        longer.
        """
        with self._lock:
            asked = self._latest
            if asked is not None and any(row.why for row in asked.rows):
                known = set(self._device.store.recorded())
                self._latest = replace(asked, rows=tuple(_reasoned(row, known) for row in asked.rows))
            return self._latest

    def begin(self, prompt: str, count: int) -> None:
        """Keep what is asked, and nothing of what was asked before."""
        with self._lock:
            self._latest, self.prompt, self.count = None, prompt, count

    def forget(self) -> None:
        """Keep nothing."""
        self.begin("", self.count)

    def rank(self, prompt: str, texts: Sequence[str]) -> AskedPrompt:
        """Rank responses to a prompt and keep them; whoever calls holds the model. Errors as `Device.rank`.

        The model is shown both in the form that it was trained in: of conversations it knows who speaks.
        """
        conversation = self._device.knows_conversations()
        spoken = prompt_of([{"role": "user", "content": prompt}], conversation=conversation)
        by_form = {
            response_of({"role": "assistant", "content": text}, conversation=conversation): text
            for text in texts
        }
        ranked = self._device.rank(spoken, list(by_form))
        why = self._explained(spoken, [row.response for row in ranked])
        rows = tuple(
            AskedRow(by_form[row.response], row, reason)
            for row, reason in itertools.zip_longest(ranked, why[: len(ranked) - 1])
        )
        with self._lock:
            self._latest = AskedPrompt(secrets.token_hex(8), prompt, spoken, rows)
            return self._latest

    def pick(self, mark: str, place: int) -> bool:
        """Record what it says that the owner takes the response at a place, see `AskedPrompt.preference`;
        False where that is not to be had any more, or one was taken already. DeviceError when the disk
        refuses."""

        def picked(asked: AskedPrompt) -> AskedPrompt | None:
            if asked.picked is not None or len(asked.rows) < 2 or not 0 <= place < len(asked.rows):
                return None
            added = self._device.record([asked.preference(place)], ASK_SOURCE)
            return replace(asked, picked=place, is_new=added.new == 1)

        return self._change(mark, picked)

    def take_back(self, mark: str) -> bool:
        """Forget what was taken, unless it had been recorded before; False where nothing was."""

        def taken_back(asked: AskedPrompt) -> AskedPrompt | None:
            if asked.picked is None:
                return None
            if asked.is_new:
                self._device.store.remove(asked.preference(asked.picked))
            return replace(asked, picked=None, is_new=False)

        return self._change(mark, taken_back)

    def _explained(self, prompt: str, responses: Sequence[str]) -> list[Explanation]:
        """Why each comes before the next one; nothing where that isn't known, or takes too long."""
        if len(self._device.store) > HEARD_MOST:
            return []
        try:
            return self._device.explain(prompt, responses)
        except DataError:  # nothing is trained here: the page says that no errors are known
            return []

    def _change(self, mark: str, change: Callable[[AskedPrompt], AskedPrompt | None]) -> bool:
        with self._lock:
            asked = self._latest
            changed = change(asked) if asked is not None and asked.mark == mark else None
            if changed is None:
                return False
            self._latest = changed
            return True


def _reasoned(row: AskedRow, known: Set[Recorded]) -> AskedRow:
    """The row, without a reason that names a choice which is not among those."""
    why = row.why
    if why is None or all(one.choice in known for one in (*why.speak_for, *why.against)):
        return row
    return replace(row, why=None)
