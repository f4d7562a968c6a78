"""What the owner is shown of their model: how good it is, and which of their texts it likes most and least.

Looking takes a while, so what was seen is kept until anything that it was made of is another. Which model
ranks, and what is to be known of it, takes no look: it is read anew for each page.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from penchant.client.device.device import Device, Liked, Quality
from penchant.client.vault.budget import ALONE, RELEASED
from penchant.client.vault.fitted_store import FittedStore
from penchant.client.vault.vault import Personal
from penchant.common.errors import ConfigError, PenchantError
from penchant.common.printable import one_line
from penchant.common.wording import counted

__all__ = ["ModelPicture", "ModelSaid", "PictureBook", "why_no_training"]

PATIENCE = 1.0  # seconds for which a page waits for the model
CHOICES_LOOKED_AT = 100  # the latest
SHOWN = 5  # texts that are liked most, and least


@dataclass(frozen=True)
class ModelPicture:
    """The model at one moment.

    Attributes:
        personal: whether a personal part was fitted.
        quality: how it does on the held-out choices, beside the one for all; None where that isn't known.
        unknown: why it isn't.
        most, least: texts of the latest choices, the most telling first.
        looked_at: how many texts those are taken from.
        wrong: why there is no picture; empty where there is one.
    """

    personal: bool
    quality: Quality | None
    unknown: str
    most: tuple[Liked, ...] = field(repr=False, default=())
    least: tuple[Liked, ...] = field(repr=False, default=())
    looked_at: int = 0
    wrong: str = ""


@dataclass(frozen=True)
class ModelSaid:
    """What is true of the model just now.

    Attributes:
        used: which model ranks, and why that one, in a sentence; empty where it can't be read.
        notes: what the owner should know of it (`Standing.notes`), and where it promises more than it keeps.
    """

    used: str
    notes: tuple[str, ...] = ()


class PictureBook:
    """The latest picture of a device's model. Thread-safe."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._fitted = FittedStore(device.directory, device.storage)
        self._kept: tuple[_Mark, ModelPicture] | None = None

    def latest(self) -> ModelPicture | None:
        """What was last seen; None where anything that it was made of is another since."""
        kept = self._kept
        return kept[1] if kept is not None and kept[0] == self._mark() else None

    def forget(self) -> None:
        """Keep nothing."""
        self._kept = None

    def said(self, model: threading.RLock) -> ModelSaid:
        """What is true just now. model: held meanwhile, since whoever reads of errors destroys those of
        another model, and must not meet one that is being trained."""
        if not model.acquire(timeout=PATIENCE):
            return ModelSaid(
                "", ("The model is at work; once it is not, this page says what to know of it.",)
            )
        try:
            return self._read()
        except PenchantError as error:
            return ModelSaid("", (one_line(str(error), 500),))
        finally:
            model.release()

    def look(self, model: threading.RLock) -> ModelPicture:
        """Look now. model: held meanwhile."""
        with model:
            try:
                self._device.standing()  # destroys the errors of another model, which changes the mark
                mark = (
                    self._mark()
                )  # before choices are read: of those that come meanwhile nothing is claimed
                picture = self._seen()
            except PenchantError as error:  # without a base model, say: the page says so
                mark, picture = self._mark(), ModelPicture(False, None, "", wrong=str(error))
            except Exception as error:  # a fault of ours is one each time: nobody looks again and again
                wrong = f"a fault of ours ({type(error).__name__})"
                self._kept = self._mark(), ModelPicture(False, None, "", wrong=wrong)
                raise
        self._kept = mark, picture
        return picture

    def _seen(self) -> ModelPicture:
        report = self._device.report()
        pairs = [row.preference for row in self._device.store.recorded()[-CHOICES_LOOKED_AT:]]
        sides = ((p.prompt, side) for p in pairs for side in (p.chosen, p.rejected))
        texts = list(dict.fromkeys(sides))
        personal = self._device.model_in_use().personal
        liked = self._device.liking(texts) if personal else []
        shown = min(SHOWN, len(liked) // 2)
        return ModelPicture(
            personal,
            report.quality,
            report.unknown,
            tuple(liked[:shown]),
            tuple(reversed(liked[len(liked) - shown :])),
            len(liked),
        )

    def _read(self) -> ModelSaid:
        gap = self._device.proxy_gap()
        promises = [gap.warning("your model is", "you")] if gap is not None and gap.parts else []
        notes = (*self._device.standing().notes(), *promises)
        return ModelSaid(_used(self._device), tuple(note[:1].upper() + note[1:] for note in notes))

    def _mark(self) -> _Mark:
        """Another one as soon as anything of which a picture is made is another; no choice is opened."""
        try:
            settings = repr(self._device.offline())
        except ConfigError as error:
            settings = str(error)
        device = self._device
        return device.vault.version(), device.store.marks(), self._fitted.mark(), settings


_Mark = tuple[int, bytes, bytes, str]
"""The vault's version, the marks of choices and ties, that of what was fitted, and model.toml's settings."""


def why_no_training(device: Device) -> str:
    """Why nothing can be learned from what is recorded, in a sentence; empty where it can."""
    if device.choices().train:
        return ""
    choices, ties = len(device.store), device.store.count_ties()
    if choices:
        kept = counted(choices, "choice is", "choices are")
        return f"So far {kept} held out to judge the model by: there is nothing to learn from yet."
    if ties:
        return "From ties alone nothing can be learned: they say something beside choices only."
    return "There is nothing to learn from yet."


def _used(device: Device) -> str:
    """Which model ranks for the owner, and why that one."""
    latest = device.vault.latest()
    if latest is not None and not latest[1].context:
        latest = None  # what a version of long ago kept can't be used
    start = "the base model's own start" if latest is None else _start(device, *latest)
    if latest is None or not latest[1].vector.size:
        return f"What ranks for you is the model that knows nobody, {start}: nothing is trained yet."
    made = "trained on this device alone, from" if latest[0] == ALONE else "fitted to your choices on top of"
    return f"Programs on this device rank by your own model, {made} {start}: once there is one, it is used."


def _start(device: Device, run: bytes, kept: Personal) -> str:
    """What the model in use begins with, before anything of its owner."""
    if run == ALONE:
        return "the base model's own start"
    if run != RELEASED:
        return f"what run {run.hex()[:8]} had learned by round {kept.round}"
    release = device.release()
    if release is None:
        return "a release of the fleet"
    return f"the fleet's release {one_line(release.manifest.contents.name, 60)}"
