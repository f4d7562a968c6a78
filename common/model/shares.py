"""Which part of the model is shared, and which stays personal, for each method."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from penchant.common.errors import ConfigError

HEAD = "head.weight"
BASE = "base."  # before the path of a parameter of the backbone
BASIS = "lore.basis"
WEIGHTS = "lore.weights"


class Share(StrEnum):
    """Which factors leave the device."""

    B = "B"  # the paper's default: one B for all, A_i personal
    A = "A"  # the paper's other strategy; FedSA-LoRA (Guo et al. 2024)
    KERNEL = "kernel"  # A and B shared, a personal r×r kernel between them
    SVD = "svd"  # A and B shared, a personal diagonal between them
    AB = "AB"  # federated LoRA: one global model
    NONE = "none"  # local only
    FFA = "ffa"  # FFA-LoRA (Sun et al. 2024): A frozen at its draw, B shared
    LORE = "lore"  # LoRe (Bose et al. 2025): shared basis on the frozen embedding, personal weights


class Head(StrEnum):
    """Where the score head belongs."""

    SHARED = "shared"
    PERSONAL = "personal"


class Part(StrEnum):
    """What happens to a tensor: sent and averaged, kept, or never trained."""

    SHARED = "shared"
    PERSONAL = "personal"
    FROZEN = "frozen"


_FACTORS: Mapping[Share, Mapping[str, Part]] = {
    Share.B: {"A": Part.PERSONAL, "B": Part.SHARED},
    Share.A: {"A": Part.SHARED, "B": Part.PERSONAL},
    Share.KERNEL: {"A": Part.SHARED, "B": Part.SHARED, "K": Part.PERSONAL},
    Share.SVD: {"A": Part.SHARED, "B": Part.SHARED, "s": Part.PERSONAL},
    Share.AB: {"A": Part.SHARED, "B": Part.SHARED},
    Share.NONE: {"A": Part.PERSONAL, "B": Part.PERSONAL},
    Share.FFA: {"A": Part.FROZEN, "B": Part.SHARED},
    Share.LORE: {"V": Part.SHARED, "w": Part.PERSONAL},
}
_WARMUP = {"A": Part.SHARED, "B": Part.SHARED, "K": Part.FROZEN, "s": Part.FROZEN}
_CAN_WARM_UP = frozenset({Share.B, Share.A, Share.KERNEL, Share.SVD})


def head_of(share: Share, head: str) -> Head:
    """Resolve "auto": personal when nothing is shared, shared otherwise. ConfigError for a contradiction."""
    if share is Share.NONE and head == Head.SHARED:
        raise ConfigError('head "shared" contradicts share "none", which shares nothing; drop one of them')
    if head == "auto":
        return Head.PERSONAL if share is Share.NONE else Head.SHARED
    try:
        return Head(head)
    except ValueError:
        raise ConfigError(f'head is "{head}"; it must be auto, shared or personal') from None


def parts_of(share: Share, head: Head, warmup: bool = False, *, base: bool = False) -> dict[str, Part]:
    """The rule table: role of a tensor (A, B, K, s; V, w; head; base) -> what happens to it.

    In warm-up rounds everything trained is shared ("AB", head included); each device then copies what
    is personal in the main phase (the paper's recipe). LoRe has no head of its own: it is w V. With
    `base`, parts of the base model are trained as well, and always shared.

    ConfigError where nothing of a base or of a split is shared.
    """
    if base and share in (Share.NONE, Share.LORE):
        raise ConfigError(f'share "{share}" shares nothing of the base; drop adapter.share_base')
    rules = _parts(share, head, warmup)
    return rules | {"base": Part.SHARED} if base else rules


def _parts(share: Share, head: Head, warmup: bool) -> dict[str, Part]:
    if not warmup:
        rules = dict(_FACTORS[share])
        if share is not Share.LORE:
            rules["head"] = Part(head.value)
        return rules
    if share not in _CAN_WARM_UP:
        raise ConfigError(f'share "{share}" has no split to warm up for; set warm-up rounds to 0')
    return {role: _WARMUP[role] for role in _FACTORS[share]} | {"head": Part.SHARED}
