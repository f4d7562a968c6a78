"""Which part of the model is shared, and which stays personal: one `ShareRule` for each method.

A rule says everything that the rest of penchant asks of a method: which tensors there are, what happens to
each, how they become the model, and how it is described to people. To add one, write it and register it, here
(`_OWN`) or in a package of one's own (docs/plugins.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from penchant.common.errors import ConfigError
from penchant.common.registry import Registry

if TYPE_CHECKING:  # configurations are checked without torch
    from torch import Tensor

__all__ = [
    "BASE",
    "EVERYONE_ALONE",
    "HEAD",
    "HEADS",
    "ONE_FOR_ALL",
    "SHARES",
    "Factor",
    "Fitting",
    "Head",
    "Part",
    "ShareRule",
    "Side",
    "Spread",
    "Start",
    "find_share",
    "register_share",
    "share_names",
    "share_rule",
]

HEAD = "head.weight"
COMMON_HEAD = "common.head"
HEADS = (HEAD, COMMON_HEAD)
"""Score heads that are tensors of their own."""
BASE = "base."  # before the path of a parameter of the backbone
_IN_MODULE = "lora_"  # before a role, behind the path of an adapted module


class Head(StrEnum):
    """Where the score head belongs."""

    SHARED = "shared"
    PERSONAL = "personal"
    NONE = "none"  # the objective scores without one; nothing that is asked for


class Part(StrEnum):
    """What happens to a tensor: sent and averaged, kept, or never trained."""

    SHARED = "shared"
    PERSONAL = "personal"
    FROZEN = "frozen"


class Fitting(StrEnum):
    """When a device trains its personal part."""

    ROUNDS = "rounds"  # in every round, from where its last one left it
    LAST = "last"  # after the last round alone: rounds train what is shared
    ANEW = (
        "anew"  # in every round from the common start, before what is shared is trained at where that leads
    )


class Side(StrEnum):
    """How long a side of a tensor is, where that depends on the model and the configuration."""

    RANK = "rank"
    IN = "in"  # features that the adapted module reads
    OUT = "out"  # features that it writes
    EMBEDDING = "embedding"  # width of the pooled embedding


class Start(StrEnum):
    """What a tensor is before any training, the same on every device."""

    ZEROS = "zeros"
    ONES = "ones"
    IDENTITY = "identity"
    UNIFORM = "uniform"  # in ±1/√n, n the length of the last side (as peft draws A)
    NORMAL = "normal"  # with deviation 1/√n


@dataclass(frozen=True)
class Factor:
    """One tensor of a rule.

    Args:
        role: a short name, unique within the rule; not "head" or "base".
        part: what happens to it.
        shape: its sides, as a `Side` or a fixed length.
        start: what it is before training.
        warmup: what happens to it in warm-up rounds: shared, or frozen at its start.
        tensor: the tensor's name where there is one for the whole model; empty where every adapted module
            has its own.
    """

    role: str
    part: Part
    shape: tuple[Side | int, ...]
    start: Start
    warmup: Part = Part.SHARED
    tensor: str = ""

    def sized(self, lengths: Mapping[Side, int]) -> tuple[int, ...]:
        """The shape in numbers."""
        return tuple(lengths[side] if isinstance(side, Side) else side for side in self.shape)

    def named(self, module: str) -> str:
        """The name of this factor's tensor in one adapted module, given by its path."""
        return self.tensor or f"{module}.{_IN_MODULE}{self.role}"

    def fits(self, shape: tuple[int, ...], rank: int) -> bool:
        """Whether a recorded shape can be this factor's: the rank and fixed lengths are in their places."""
        known = [rank if side is Side.RANK else side for side in self.shape]
        return len(shape) == len(known) and all(
            isinstance(side, Side) or side == length for side, length in zip(known, shape, strict=True)
        )


@dataclass(frozen=True)
class Spread:
    """How far people lie apart: the prior N(0, deviation²) of every number of some personal factors, with a
    deviation that the fleet learns as one shared number.

    Devices do not train that number by their training pairs, which any deviation from the population fits
    better: each moves it by what its held-out choices say (empirical Bayes by cross-validation).

    Args:
        role: of the shared factor of shape (1,) that holds log(deviation / start).
        of: the personal factors, by role, that are 0 in the population's own model.
        start: the deviation before any round.
    """

    role: str
    of: tuple[str, ...]
    start: float = 0.3

    def deviation(self, stored: float) -> float:
        """The standard deviation that a stored number stands for; between start / 20 and start · 20."""
        return self.start * math.exp(min(max(stored, -_FARTHEST), _FARTHEST))


_FARTHEST = math.log(20)

Tensors = Mapping[str, "Tensor"]  # by role
HEAD_FACTOR = Factor("head", Part.SHARED, (1, Side.EMBEDDING), Start.NORMAL, tensor=HEAD)


def _plain(factors: Tensors) -> tuple[Tensor, Tensor]:
    return factors["A"], factors["B"]


@dataclass(frozen=True)
class ShareRule:
    """One way to divide the model into a shared and a personal part.

    Args:
        name: what configurations and flags call it.
        label: what tables call it: "A shared, B personal".
        shared: what is shared, in words; empty where nothing is.
        personal: what stays on the device, in words; empty where nothing but the head may.
        factors: the tensors in their order on the wire, the score head apart: first those of each adapted
            module, then those there is one of for the whole model.
        can_warm_up: whether rounds that share everything may come before the personal part splits off.
        compose: makes the low-rank pair (A, B) of one adapted module from its factors by role, with A of
            shape (rank, in) and B of shape (out, rank). It must be differentiable. The update is B A. Where
            it works under `torch.vmap` too, simulations can train several people at a time.
        compose_head: makes the score head (1, embedding) from the factors of the whole model; None where
            the head is a separate tensor.
        sharing: what is shared in a short phrase, for "Sharing … pays"; `shared` without "factor" if empty.
        spread: the prior of personal factors that stand beside a population's model; None without one.
        fitting: when the personal part is trained; anew is first-order meta-learning (`LocalTrainer.train`).

    Raises:
        ConfigError: the rule contradicts itself.
    """

    name: str
    label: str
    shared: str
    personal: str
    factors: tuple[Factor, ...]
    can_warm_up: bool = False
    compose: Callable[[Tensors], tuple[Tensor, Tensor]] = _plain
    compose_head: Callable[[Tensors], Tensor] | None = None
    sharing: str = ""
    spread: Spread | None = None
    fitting: Fitting = Fitting.ROUNDS

    def __post_init__(self) -> None:
        roles = [factor.role for factor in self.factors]
        if len(set(roles)) < len(roles) or {"head", "base"} & set(roles):
            raise ConfigError(f'share "{self.name}": roles must differ, and none may be "head" or "base"')
        if any(factor.warmup is Part.PERSONAL for factor in self.factors):
            raise ConfigError(f'share "{self.name}": in the warm-up a factor is shared or frozen')
        if self.spread is not None and not self._holds(self.spread):
            raise ConfigError(
                f'share "{self.name}": a spread needs a shared factor of shape (1,) for the whole model, '
                "frozen in the warm-up, and personal factors that start at zero"
            )
        if not self.sharing:
            short = self.shared.removeprefix("factors ").removeprefix("factor ")
            object.__setattr__(self, "sharing", short)

    def _holds(self, spread: Spread) -> bool:
        """Whether the factors that a spread names are such as it needs."""
        factors = {factor.role: factor for factor in self.factors}
        own = [factors.get(role) for role in spread.of]
        number = factors.get(spread.role)
        return (
            number is not None
            and bool(number.tensor)
            and (number.part, number.warmup, number.shape) == (Part.SHARED, Part.FROZEN, (1,))
            and bool(own)
            and all(f is not None and (f.part, f.start) == (Part.PERSONAL, Start.ZEROS) for f in own)
        )

    # --- what follows from the factors ------------------------------------------------------------

    @property
    def in_modules(self) -> tuple[Factor, ...]:
        """The factors that every adapted module has."""
        return tuple(factor for factor in self.factors if not factor.tensor)

    @property
    def in_model(self) -> tuple[Factor, ...]:
        """The factors that the model has once, the score head last if it is a separate tensor."""
        whole = tuple(factor for factor in self.factors if factor.tensor)
        return whole if self.compose_head else (*whole, HEAD_FACTOR)

    @property
    def adapts_modules(self) -> bool:
        """Whether it changes modules of the base model at all."""
        return bool(self.in_modules)

    @property
    def works_without_head(self) -> bool:
        """Whether it makes sense where nothing is scored by a head: all that it divides is in modules."""
        return self.adapts_modules and self.compose_head is None

    @property
    def shares_nothing(self) -> bool:
        """Whether no factor leaves the device: everyone alone."""
        return all(factor.part is not Part.SHARED for factor in self.factors)

    @property
    def shares_everything(self) -> bool:
        """Whether every factor is trained and shared: one model for all, but for a personal head."""
        return all(factor.part is Part.SHARED for factor in self.factors)

    @property
    def shares_base(self) -> bool:
        """Whether parts of the base model can be trained and shared beside the factors."""
        return self.adapts_modules and not self.shares_nothing

    # --- what a configuration asks ----------------------------------------------------------------

    def head(self, asked: str) -> Head:
        """Resolve "auto": personal when nothing is shared, shared otherwise.

        Raises:
            ConfigError: it contradicts the rule, or is not auto, shared or personal.
        """
        if self.shares_nothing and asked == Head.SHARED:
            raise ConfigError(
                f'head "shared" contradicts share "{self.name}", which shares nothing; drop one of them'
            )
        if asked == "auto":
            return Head.PERSONAL if self.shares_nothing else Head.SHARED
        if asked not in (Head.SHARED, Head.PERSONAL):
            raise ConfigError(f'head is "{asked}"; it must be auto, shared or personal')
        return Head(asked)

    def parts(self, head: Head, warmup: bool = False, *, base: bool = False) -> dict[str, Part]:
        """The rule table: role of a tensor (a factor's, "head" or "base") -> what happens to it.

        In warm-up rounds everything trained is shared, head included; each device then copies what is
        personal in the main phase (the paper's recipe). With `base`, parts of the base model are trained as
        well, and always shared.

        ConfigError where nothing of a base or of a split is shared.
        """
        if base and not self.shares_base:
            raise ConfigError(f'share "{self.name}" shares nothing of the base; drop adapter.share_base')
        if warmup and not self.can_warm_up:
            raise ConfigError(f'share "{self.name}" has no split to warm up for; set warm-up rounds to 0')
        found = {factor.role: factor.warmup if warmup else factor.part for factor in self.factors}
        if self.compose_head is None and head is not Head.NONE:
            found["head"] = Part.SHARED if warmup else Part(head.value)
        return found | {"base": Part.SHARED} if base else found

    def role_of(self, tensor: str) -> str:
        """The role of a tensor by its name; the name itself if this rule has no such tensor."""
        if tensor.startswith(BASE):
            return "base"
        whole = {factor.tensor: factor.role for factor in self.in_model}
        inner = {_IN_MODULE + factor.role: factor.role for factor in self.in_modules}
        return whole.get(tensor) or inner.get(tensor.rsplit(".", 1)[-1], tensor)

    def allows_shape(self, role: str, shape: tuple[int, ...], rank: int) -> bool:
        """Whether a tensor of this role may have this shape; parts of the base may have any."""
        factors = {factor.role: factor for factor in (*self.factors, HEAD_FACTOR)}
        return role == "base" or (role in factors and factors[role].fits(shape, rank))


# --- by name --------------------------------------------------------------------------------------

EVERYONE_ALONE, ONE_FOR_ALL = "none", "AB"
"""The names of penchant's own rules for the two ends: all is personal, and all is shared."""

SHARES = Registry("adapter.share", "penchant.shares")


def register_share(rule: ShareRule) -> None:
    """Make a rule known by its name, for this process. ConfigError when the name is taken or not valid.

    A package that is installed does the same for every process by an entry point in the group
    "penchant.shares".
    """
    SHARES.register(rule, ShareRule, "a ShareRule")


def share_rule(name: str) -> ShareRule:
    """The rule of a name. ConfigError that lists the choices when there is none."""
    return SHARES.find(name, ShareRule, "a ShareRule")


def find_share(name: str) -> ShareRule | None:
    """The rule of a name; None where it is not known here, as in a result from another machine."""
    try:
        return share_rule(name)
    except ConfigError:
        return None


def share_names() -> tuple[str, ...]:
    """All names of rules, penchant's own first."""
    return SHARES.names()


# --- penchant's own -------------------------------------------------------------------------------


def _a(part: Part) -> Factor:
    return Factor("A", part, (Side.RANK, Side.IN), Start.UNIFORM)


def _b(part: Part) -> Factor:
    return Factor("B", part, (Side.OUT, Side.RANK), Start.ZEROS)


def _through_kernel(factors: Tensors) -> tuple[Tensor, Tensor]:
    return factors["K"] @ factors["A"], factors["B"]


def _through_scales(factors: Tensors) -> tuple[Tensor, Tensor]:
    return factors["s"].unsqueeze(1) * factors["A"], factors["B"]


def _with_deviation(factors: Tensors) -> tuple[Tensor, Tensor]:
    return factors["A"], factors["B"] + factors["D"]


def _weighted_basis(factors: Tensors) -> Tensor:
    return (factors["w"] @ factors["V"]).unsqueeze(0)  # (r) @ (r, d) -> (1, d)


def _common_and_basis(factors: Tensors) -> Tensor:
    return factors["h"] + _weighted_basis(factors)


def _fine_tuned(factors: Tensors) -> tuple[Tensor, Tensor]:
    return factors["A"] + factors["DA"], factors["B"] + factors["DB"]


def _fine_tuned_head(factors: Tensors) -> Tensor:
    return factors["h"] + factors["dh"]


def _weighted_from_start(factors: Tensors) -> Tensor:
    return ((factors["u"] + factors["w"]) @ factors["V"]).unsqueeze(0)  # (r) @ (r, d) -> (1, d)


def _with_own_head(factors: Tensors) -> Tensor:
    return factors["h"] + factors["d"]


_OWN = (
    ShareRule(  # the paper's first strategy: one B for all, A_i personal
        name="B",
        label="B shared, A personal",
        shared="factor B",
        personal="factor A",
        factors=(_a(Part.PERSONAL), _b(Part.SHARED)),
        can_warm_up=True,
    ),
    ShareRule(  # the paper's other strategy; FedSA-LoRA (Guo et al. 2024)
        name="A",
        label="A shared, B personal",
        shared="factor A",
        personal="factor B",
        factors=(_a(Part.SHARED), _b(Part.PERSONAL)),
        can_warm_up=True,
    ),
    ShareRule(
        name="kernel",
        label="A, B shared, K personal",
        shared="factors A and B",
        personal="the kernel K between them",
        factors=(
            _a(Part.SHARED),
            _b(Part.SHARED),
            Factor("K", Part.PERSONAL, (Side.RANK, Side.RANK), Start.IDENTITY, warmup=Part.FROZEN),
        ),
        can_warm_up=True,
        compose=_through_kernel,
    ),
    ShareRule(
        name="svd",
        label="A, B shared, s personal",
        shared="factors A and B",
        personal="the scales s between them",
        factors=(
            _a(Part.SHARED),
            _b(Part.SHARED),
            Factor("s", Part.PERSONAL, (Side.RANK,), Start.ONES, warmup=Part.FROZEN),
        ),
        can_warm_up=True,
        compose=_through_scales,
    ),
    ShareRule(  # federated LoRA
        name=ONE_FOR_ALL,
        label="one model for all",
        shared="factors A and B",
        personal="",
        factors=(_a(Part.SHARED), _b(Part.SHARED)),
    ),
    ShareRule(
        name=EVERYONE_ALONE,
        label="everyone alone",
        shared="",
        personal="factors A and B",
        factors=(_a(Part.PERSONAL), _b(Part.PERSONAL)),
    ),
    ShareRule(  # FFA-LoRA (Sun et al. 2024): A frozen at its draw
        name="ffa",
        label="one model, A frozen",
        shared="factor B",
        personal="",
        factors=(_a(Part.FROZEN), _b(Part.SHARED)),
    ),
    ShareRule(  # LoRe (Bose et al. 2025): shared basis on the frozen embedding, personal weights
        name="lore",
        label="LoRe basis shared",
        shared="the low-rank basis",
        personal="the weights over the basis",
        factors=(
            Factor("V", Part.SHARED, (Side.RANK, Side.EMBEDDING), Start.UNIFORM, tensor="lore.basis"),
            Factor("w", Part.PERSONAL, (Side.RANK,), Start.ZEROS, tensor="lore.weights"),
        ),
        compose_head=_weighted_basis,
        sharing="a low-rank basis",
    ),
    ShareRule(  # mixed effects: one model for all, and a deviation from it that is shrunk as the data say
        name="mixed",
        label="A, B shared, deviation D personal",
        shared="factors A and B",
        personal="the deviation D from B",
        factors=(
            _a(Part.SHARED),
            _b(Part.SHARED),
            Factor("D", Part.PERSONAL, (Side.OUT, Side.RANK), Start.ZEROS, warmup=Part.FROZEN),
            Factor("t", Part.SHARED, (1,), Start.ZEROS, warmup=Part.FROZEN, tensor="mixed.spread"),
        ),
        can_warm_up=True,
        compose=_with_deviation,
        spread=Spread("t", of=("D",)),
    ),
    ShareRule(  # mixed effects on the frozen embedding: one head for all, and LoRe's basis for what differs
        name="common",
        label="common head and basis shared, weights w personal",
        shared="a common head and a low-rank basis",
        personal="the weights over the basis",
        factors=(
            Factor("h", Part.SHARED, (1, Side.EMBEDDING), Start.ZEROS, tensor=COMMON_HEAD),
            Factor("V", Part.SHARED, (Side.RANK, Side.EMBEDDING), Start.UNIFORM, tensor="common.basis"),
            Factor("w", Part.PERSONAL, (Side.RANK,), Start.ZEROS, tensor="common.weights"),
            Factor("t", Part.SHARED, (1,), Start.ZEROS, warmup=Part.FROZEN, tensor="common.spread"),
        ),
        compose_head=_common_and_basis,
        spread=Spread("t", of=("w",), start=0.1),
    ),
    ShareRule(  # federated averaging, then fine-tuning on each device (Cheng, Chadha and Duchi 2021)
        name="finetune",
        label="one model for all, then fine-tuned",
        shared="factors A and B and the head",
        personal="what fine-tuning changes of them",
        factors=(
            _a(Part.SHARED),
            _b(Part.SHARED),
            Factor("DA", Part.PERSONAL, (Side.RANK, Side.IN), Start.ZEROS),
            Factor("DB", Part.PERSONAL, (Side.OUT, Side.RANK), Start.ZEROS),
            Factor("h", Part.SHARED, (1, Side.EMBEDDING), Start.NORMAL, tensor=COMMON_HEAD),
            Factor("dh", Part.PERSONAL, (1, Side.EMBEDDING), Start.ZEROS, tensor="finetune.head"),
        ),
        compose=_fine_tuned,
        compose_head=_fine_tuned_head,
        sharing="one model for all as a start",
        fitting=Fitting.LAST,
    ),
    ShareRule(  # MRM's shape: a basis of rewards, and a start from which few steps fit a person's weights
        name="meta",
        label="basis and start shared, weights meta-learned",
        shared="the low-rank basis and the start of the weights",
        personal="the weights' way from their start",
        factors=(
            Factor("V", Part.SHARED, (Side.RANK, Side.EMBEDDING), Start.UNIFORM, tensor="meta.basis"),
            Factor("u", Part.SHARED, (Side.RANK,), Start.ZEROS, tensor="meta.start"),
            Factor("w", Part.PERSONAL, (Side.RANK,), Start.ZEROS, tensor="meta.weights"),
        ),
        compose_head=_weighted_from_start,
        sharing="a low-rank basis and a start",
        fitting=Fitting.ANEW,
    ),
    ShareRule(  # per-rater shrinkage: a head for all, and each one's own drawn to it as the data say
        name="shrinkage",
        label="common head shared, own head shrunk to it",
        shared="a common head",
        personal="the own head's deviation from it",
        factors=(
            Factor("h", Part.SHARED, (1, Side.EMBEDDING), Start.ZEROS, tensor=COMMON_HEAD),
            Factor("d", Part.PERSONAL, (1, Side.EMBEDDING), Start.ZEROS, tensor="shrinkage.head"),
            Factor("t", Part.SHARED, (1,), Start.ZEROS, warmup=Part.FROZEN, tensor="shrinkage.spread"),
        ),
        compose_head=_with_own_head,
        spread=Spread("t", of=("d",), start=0.05),
    ),
)
for _rule in _OWN:
    SHARES.add(_rule.name, _rule, own=True)
