"""One response in the order of a device's owner. Importing this loads no model."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Ranked"]


@dataclass(frozen=True)
class Ranked:
    """One response with its scores; a higher one is liked more. `common`: by the model without the person.

    error: the standard error of `personal`. over_next: how likely the owner would rather have this response
    than the next one below, with the doubt about the model in it; None for the last. Both are None where no
    errors are known of the model in use (`penchant.client.device.device.Standing`).
    """

    response: str = field(repr=False)
    personal: float
    common: float
    error: float | None = None
    over_next: float | None = None
