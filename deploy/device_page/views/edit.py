"""One choice or tie in a form of its own: its texts, which response is preferred, and how strongly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from urllib.parse import urlencode

from starlette.responses import Response

from penchant.client.device.preference_store import Recorded, RecordedTie, held_out
from penchant.common.data.preferences import STRONGEST, TIES, Preference
from penchant.common.errors import DataError, PenchantError, UsageError
from penchant.common.printable import one_line
from penchant.deploy.device_page.page_requests import TEXT_MOST, PageRequest
from penchant.deploy.device_page.views.choices import pair_of
from penchant.server.console.forms import Form

__all__ = ["ChoiceForm", "edit", "save"]

NAMES = {"prompt": "the prompt", "first": "the first response", "second": "the second response"}
STRENGTH_MOST = 40  # characters of a number


@dataclass(frozen=True)
class ChoiceForm:
    """What a form holds of a choice or a tie.

    Attributes:
        prompt, first, second: the texts.
        said: which response is preferred ("first", "second"), or one of `TIES`.
        strength: as it was typed; None where the choice has none, and its form does not ask for it.
    """

    prompt: str = field(repr=False)
    first: str = field(repr=False)
    second: str = field(repr=False)
    said: str
    strength: str | None = None

    @classmethod
    def of(cls, row: Recorded | RecordedTie) -> ChoiceForm:
        """What is recorded. DataError where a text of it is longer than a form takes."""
        pair, said = pair_of(row), row.said if isinstance(row, RecordedTie) else "first"
        strength = None if pair.strength is None else f"{pair.strength:.15g}"
        found = cls(pair.prompt, pair.chosen, pair.rejected, said, strength)
        found.refuse_long()
        return found

    @classmethod
    def typed(cls, form: Form) -> ChoiceForm:
        """What was sent."""
        prompt, first, second = (_as_sent(form.get(name, "")) for name in NAMES)
        return cls(prompt, first, second, form.get("said", ""), form.get("strength"))

    def preference(self, row: Recorded | RecordedTie) -> Preference:
        """What it says now, of a choice or tie that is recorded. DataError, in the words of the form, where
        that is nothing that can be.

        A text that was left as it is stays so to the character, whatever a browser makes of its line ends.
        """
        self.refuse_long()
        before = pair_of(row)
        prompt, first, second = (
            old if typed == _as_sent(old) else typed
            for typed, old in (
                (self.prompt, before.prompt),
                (self.first, before.chosen),
                (self.second, before.rejected),
            )
        )
        for name, text in (("first", first), ("second", second)):
            if not text.strip():
                raise DataError(f"{NAMES[name]} is empty")
        if first == second:
            raise DataError("both responses are the same")
        for tie in TIES:
            if self.said == tie:
                return Preference(prompt, first, second, tie=tie)
        if self.said == "first":
            return Preference(prompt, first, second, strength=self._strength(before.strength))
        if self.said == "second":
            return Preference(prompt, second, first, strength=self._strength(before.strength))
        raise DataError("say which response you would rather have, or that it is a tie")

    def refuse_long(self) -> None:
        """DataError for a text that is longer than a form takes."""
        for name, what in NAMES.items():
            if len(getattr(self, name)) > TEXT_MOST:
                raise DataError(f"{what} is longer than {TEXT_MOST} characters, which a form takes at most")

    def _strength(self, before: float | None) -> float | None:
        typed = (self.strength or "").strip()
        if not typed:
            return None
        if before is not None and typed == f"{before:.15g}":
            return before
        try:
            number = float(typed) if len(typed) <= STRENGTH_MOST else math.nan
        except ValueError:
            number = math.nan
        if not 0 <= number <= STRONGEST:
            raise DataError(f"the strength must be a number from 0 to {STRONGEST}, or be left empty")
        return number


def edit(request: PageRequest) -> Response:
    """The form, as the choice is recorded."""
    mark = request.asked("choice")
    return _shown(request, mark, ChoiceForm.of(_row(request, mark)))


def save(request: PageRequest) -> Response:
    """Record what was typed in the place of what was there; where that can't be, the form once more."""
    mark, typed = request.form.get("choice", ""), ChoiceForm.typed(request.form)
    try:
        row = _row(request, mark)
        now = typed.preference(row)
        if now == row.preference:
            return request.go(_back(request), "Nothing was changed.")
        if not request.device.store.edit(row, now):
            raise _gone()
    except PenchantError as error:
        return _shown(request, mark, typed, one_line(str(error), 300))
    request.context.let_go_soon()  # which questions tell most, and reasons that named the former texts
    return request.go(_back(request), f"Changed; what it said before is erased. {_to_do(row, now)}")


# --- inner parts --------------------------------------------------------------------------------------


def _shown(request: PageRequest, mark: str, typed: ChoiceForm, wrong: str = "") -> Response:
    return request.render(
        "edit.html.j2",
        422 if wrong else 200,
        mark=mark,
        typed=typed,
        wrong=wrong,
        back=_back(request),
        page=_from(request, "page"),
        wanted=_from(request, "q"),
    )


def _row(request: PageRequest, mark: str) -> Recorded | RecordedTie:
    """The choice or tie with this mark: not that of its number, which goes to the next one that is recorded.
    The mark says nothing of the texts to whoever reads the browser's history."""
    for known, row in request.device.store.all_marked():
        if known.hex() == mark:
            return row
    raise _gone()


def _gone() -> UsageError:
    return UsageError("that choice is not there any more: it was changed or deleted meanwhile")


def _to_do(row: Recorded | RecordedTie, now: Preference) -> str:
    """What is left to do, by the sides that the choice was on before and is on now."""
    was, is_aside = held_out(pair_of(row)), held_out(now)
    if is_aside and not was:
        return (
            "By its new texts it is held out, to judge the model by: train first, since the model may have "
            "learned from the former ones."
        )
    if was and not is_aside:
        return "By its new texts it is not held out any more. Train, and the model learns it."
    return "Train, and the model is judged by it." if is_aside else "Train, and the model learns it."


def _from(request: PageRequest, key: str) -> str:
    """Where on the list the owner came from, as the address or the form has it."""
    return request.form.get(key, request.asked(key))[:200]


def _back(request: PageRequest) -> str:
    place = {"page": request.number(_from(request, "page"), 1), "q": _from(request, "q")}
    return f"/choices?{urlencode({key: value for key, value in place.items() if value})}"


def _as_sent(text: str) -> str:
    """A text as browsers have it in a form: lines end in one way only, and there is no character 0."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
