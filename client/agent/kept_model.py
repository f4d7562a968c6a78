"""What a device keeps with a personal part: the shared factors it belongs to, and how it was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from penchant.client.learning.chosen import Blend
from penchant.common.errors import CodecError
from penchant.common.wire.codec import AtMost, decode_record, encode_record
from penchant.common.wire.messages import MAX_FACTORS, MAX_PLAN, Digest

__all__ = ["Model", "blend_of", "kept_with", "model_of"]


@dataclass(frozen=True, slots=True)
class Model:
    """The shared factors that a personal part belongs to, as they were announced, with their plan."""

    base: Digest
    plan: Annotated[bytes, AtMost(MAX_PLAN)]
    factors: Annotated[bytes, AtMost(MAX_FACTORS)]


@dataclass(frozen=True, slots=True)
class _PartContext:
    """A model's record, empty in simulations, and a blend."""

    model: Annotated[bytes, AtMost(MAX_PLAN + MAX_FACTORS + 64)]
    blend: Blend


def kept_with(model: Model | None, blend: Blend | None) -> bytes:
    """The context of a personal part (`Personal.context`); of the same size whatever was chosen.

    model: None where the factors are kept elsewhere. blend: None where there was nothing to choose between.
    """
    record = b"" if model is None else encode_record(model)
    return encode_record(_PartContext(record, Blend() if blend is None else blend))


def model_of(context: bytes) -> Model:
    """The model that is kept in a context, of this version or an earlier one. CodecError if there is none."""
    kept = _kept(context)
    return decode_record(context if kept is None else kept.model, Model)


def blend_of(context: bytes) -> Blend | None:
    """What was chosen for the person; None where nothing was, or an earlier version has kept it."""
    kept = _kept(context)
    return None if kept is None or not kept.blend.judged else kept.blend


def _kept(context: bytes) -> _PartContext | None:
    """None for the context of an earlier version, which is a model's record alone, or nothing."""
    try:
        return decode_record(context, _PartContext)
    except CodecError:
        return None
