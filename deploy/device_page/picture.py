"""What the owner is shown of their model: how good it is, and which of their texts it likes most and least.

Looking takes a while, so what was seen is kept until the model or the choices are others.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from penchant.client.device.device import Device, Liked, Quality, Report
from penchant.common.errors import PenchantError
from penchant.common.printable import one_line

__all__ = ["ModelPicture", "PictureBook"]

CHOICES_LOOKED_AT = 100  # the latest
SHOWN = 5  # texts that are liked most, and least


@dataclass(frozen=True)
class ModelPicture:
    """The model at one moment.

    Attributes:
        personal: whether a personal part was fitted.
        used: which model ranks, and why that one, in a sentence.
        notes: what the owner should know of it (`Standing.notes`), and where it promises more than it keeps.
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
    used: str = ""
    notes: tuple[str, ...] = ()


class PictureBook:
    """The latest picture of a device's model. Thread-safe."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: tuple[tuple[int, bytes], ModelPicture] | None = None

    def latest(self) -> ModelPicture | None:
        """What was last seen; None where the model or the choices are others since."""
        kept = self._kept
        return kept[1] if kept is not None and kept[0] == self._mark() else None

    def forget(self) -> None:
        """Keep nothing."""
        self._kept = None

    def look(self, model: threading.RLock) -> ModelPicture:
        """Look now. model: held meanwhile."""
        mark = self._mark()  # before the choices are read: of those that come meanwhile nothing is claimed
        with model:
            try:
                picture = self._seen()
            except PenchantError as error:  # without a base model, say: the page says so
                picture = ModelPicture(False, None, "", wrong=str(error))
            except Exception as error:  # a fault of ours is one each time: nobody looks again and again
                wrong = f"a fault of ours ({type(error).__name__})"
                self._kept = mark, ModelPicture(False, None, "", wrong=wrong)
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
        gap = self._device.proxy_gap()
        promises = [gap.warning("your model is", "you")] if gap is not None and gap.parts else []
        notes = (*self._device.standing().notes(), *promises)
        return ModelPicture(
            personal,
            report.quality,
            report.unknown,
            tuple(liked[:shown]),
            tuple(reversed(liked[len(liked) - shown :])),
            len(liked),
            used=_used(report, personal),
            notes=tuple(note[:1].upper() + note[1:] for note in notes),
        )

    def _mark(self) -> tuple[int, bytes]:
        """Another one as soon as the model or the choices are others. No choice is opened for it."""
        return self._device.vault.version(), self._device.store.marks()


def _used(report: Report, personal: bool) -> str:
    """Which model ranks for the owner, and why that one."""
    release = report.release if report.release is not None and report.release.in_use else None
    if release is not None:
        start = f"the fleet's release {one_line(release.manifest.contents.name, 60)}"
        made = "fitted to your choices on top of"
    elif report.run:
        start, made = f"run {report.run[:8]}, round {report.round}", "made in"
    else:
        start, made = "the base model's own start", "trained on this device alone, from"
    if personal:
        used = "once there is one, it is used"
        return f"Programs on this device rank by your own model, {made} {start}: {used}."
    return f"What ranks for you is the model that knows nobody, {start}: nothing is trained yet."
