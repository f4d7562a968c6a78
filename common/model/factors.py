"""Low-rank factors: which tensors are shared, which stay with a person, and how they become vectors.

Every adapted linear module computes ``h = W0 x + (α/r) B A x`` with ``A: (r, in)`` and
``B: (out, r)`` (LoRA, Hu et al. 2021). P-ShareLoRA (Liu et al., AISTATS 2025, PMLR 258:1405-1413)
shares one factor among all people and keeps the other personal. `ShareRule.parts` is the one rule table:
training, the wire and the audit all read it. `Split.effective` is the one place where shared and
personal tensors become the (A, B, head) that the model runs with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from penchant.common.config import AdapterConfig
from penchant.common.errors import CodecError, ConfigError
from penchant.common.shares import BASE, HEAD, Factor, Head, Part, ShareRule, Side, Start

if TYPE_CHECKING:  # a server, and a device that only answers it, count and cut vectors without torch
    from torch import Tensor

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """One adapted linear module of the backbone."""

    name: str  # path from the backbone's root, "encoder.layer.5.output.dense"
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseTensor:
    """One parameter of the base model that is trained and shared as well.

    What is trained and sent is its change, which starts at 0: a server needs no weights.
    """

    name: str  # path from the backbone's root, "encoder.layer.5.output.LayerNorm.weight"
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the split: its name, shape, part, and what it is before training."""

    name: str
    shape: tuple[int, ...]
    part: Part
    start: Start

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The tensors of one part in their order on the wire: modules in the backbone's order, within a module
    the rule's factors in its order; then those of the whole model; then the head; then changes of the base
    in the backbone's order. Each is row-major float32."""

    specs: tuple[TensorSpec, ...]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(spec.size for spec in self.specs)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Vector:
        """Tensors by name -> one float32 vector [size]. ConfigError when names or shapes differ."""
        if set(tensors) != set(self.names):
            raise ConfigError(f"tensors {sorted(tensors)} are not those of the split: {sorted(self.names)}")
        import torch

        vector = np.empty(self.size, dtype=np.float32)
        start = 0
        for spec in self.specs:
            tensor = tensors[spec.name]
            if tuple(tensor.shape) != spec.shape:
                raise ConfigError(f"{spec.name} has shape {tuple(tensor.shape)}; it must be {spec.shape}")
            flat = tensor.detach().to("cpu", torch.float32).reshape(-1).numpy()
            vector[start : start + spec.size] = flat
            start += spec.size
        return vector

    def named(self, vector: Vector) -> dict[str, Vector]:
        """One vector [size] -> arrays by name, as copies. CodecError when it is not such a vector."""
        self.check(vector)
        arrays: dict[str, Vector] = {}
        start = 0
        for spec in self.specs:
            arrays[spec.name] = vector[start : start + spec.size].reshape(spec.shape).copy()
            start += spec.size
        return arrays

    def unflatten(self, vector: Vector) -> dict[str, Tensor]:
        """One vector [size] -> CPU tensors by name that share no memory with it."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.named(vector).items()}

    def check(self, vector: Vector) -> None:
        """CodecError unless it is a float32 vector of this layout's length."""
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise CodecError(
                f"got a vector of {vector.dtype} {vector.shape}, expected float32 ({self.size},); "
                "both sides need the same configuration"
            )


@dataclass(frozen=True)
class MergedWeights:
    """What the model runs with: (A, B) by module name, the head (1, d) or nothing (0), and what is added to
    parameters of the base, by their path."""

    adapters: Mapping[str, tuple[Tensor, Tensor]]
    head: Tensor
    base: Mapping[str, Tensor] = field(default_factory=dict)


class Split:
    """The tensors of one method at one set of modules, divided into shared, personal and frozen ones.

    Args:
        adapted_modules: in the backbone's order (left out where the rule adapts none).
        embedding: width d of the pooled embedding.
        rank: r, at most every module's smaller side.
        rule: which factors there are, and which of them are shared.
        head: where the score head belongs; NONE where there is none.
        base: parameters of the base that are trained and shared as well, in the backbone's order.
        warmup: the rules of the warm-up phase.
        seed: of tensors frozen at their draw (FFA's A), which must be the same on all devices.
    """

    def __init__(
        self,
        adapted_modules: Sequence[AdaptedModule],
        embedding: int,
        rank: int,
        rule: ShareRule,
        head: Head,
        *,
        base: Sequence[BaseTensor] = (),
        warmup: bool = False,
        seed: int = 0,
    ) -> None:
        self.base = tuple(base)
        self.adapted_modules = tuple(adapted_modules) if rule.adapts_modules else ()
        self.embedding = embedding
        self.rank = rank
        self.rule = rule
        self.head = head
        self.warmup = warmup
        self._check_rank()
        specs = self._specs(rule.parts(head, warmup, base=bool(self.base)))
        self.specs = specs
        self.shared = Layout(tuple(spec for spec in specs if spec.part is Part.SHARED))
        self.personal = Layout(tuple(spec for spec in specs if spec.part is Part.PERSONAL))
        self._seed = seed
        self._frozen: Mapping[str, Tensor] | None = None

    @classmethod
    def of(
        cls,
        adapted_modules: Sequence[AdaptedModule],
        embedding: int,
        config: AdapterConfig,
        *,
        head: Head | None = None,
        base: Sequence[BaseTensor] = (),
        warmup: bool = False,
        seed: int = 0,
    ) -> Split:
        """The split that a configuration asks for. ConfigError when it makes no sense.

        head: where the score head belongs (`head_of`); None stands for what the adapter's settings say.
        """
        rule = config.rule
        head = rule.head(config.head) if head is None else head
        return cls(adapted_modules, embedding, config.rank, rule, head, base=base, warmup=warmup, seed=seed)

    def initial(self, seed: int) -> tuple[Vector, Vector]:
        """The common start (shared, personal), the same for the same seed on every device.

        Each tensor's draw depends on the seed and its name alone, so that all methods start alike:
        A uniform in ±1/√in (kaiming with a=√5 and the true fan-in, as peft draws it), B zero, the head
        normal with deviation 1/√d, other factors as their rule says, changes of the base zero.
        """
        shared = {spec.name: _draw(spec, seed) for spec in self.shared.specs}
        personal = {spec.name: _draw(spec, seed) for spec in self.personal.specs}
        return self.shared.flatten(shared), self.personal.flatten(personal)

    def start_from(self, warm: Split, shared: Vector, seed: int) -> tuple[Vector, Vector]:
        """The start of this (main) phase from a warm-up's shared vector: every tensor the warm-up trained
        is copied, into the shared or the personal part; what it left frozen starts at its draw."""
        warmed = warm.shared.unflatten(shared)
        known = {spec.name for spec in self.specs}
        if not set(warmed) <= known:
            raise ConfigError(
                "the warm-up trained different tensors than the main phase has; start a new run"
            )

        def start(layout: Layout) -> Vector:
            return layout.flatten({s.name: warmed.get(s.name, _draw(s, seed)) for s in layout.specs})

        return start(self.shared), start(self.personal)

    def draw_frozen(self) -> Mapping[str, Tensor]:
        """The tensors that stay as they were drawn, by name. The first call draws them, and needs torch;
        it must not be within `torch.vmap`, which lets nothing be drawn."""
        if self._frozen is None:
            frozen = [spec for spec in self.specs if spec.part is Part.FROZEN]
            self._frozen = {spec.name: _draw(spec, self._seed) for spec in frozen}
        return self._frozen

    def effective(self, shared: Mapping[str, Tensor], personal: Mapping[str, Tensor]) -> MergedWeights:
        """(shared, personal) -> (A, B by module; head; changes of the base): pure and differentiable.

        ConfigError when a rule of another package composes factors of the wrong shape.
        """
        import torch

        trained = {**shared, **personal}
        place = next((tensor.device for tensor in trained.values()), torch.device("cpu"))
        tensors = {name: tensor.to(place) for name, tensor in self.draw_frozen().items()} | trained
        adapters = {module.name: self._composed(module, tensors) for module in self.adapted_modules}
        base = {tensor.name: tensors[BASE + tensor.name] for tensor in self.base}
        return MergedWeights(adapters, self._head(tensors), base)

    def merged(self, shared: Vector, personal: Vector) -> MergedWeights:
        """`effective` of two flat vectors, for evaluation and export (no gradient)."""
        return self.effective(self.shared.unflatten(shared), self.personal.unflatten(personal))

    @property
    def spread_tensor(self) -> str:
        """The name of the shared number that says how far people lie apart; empty where none is shared."""
        spread = self.rule.spread
        if spread is None or self.warmup:
            return ""
        return next(factor.tensor for factor in self.rule.in_model if factor.role == spread.role)

    def deviations(self, shared: Mapping[str, Tensor]) -> dict[str, float]:
        """Personal tensor by name -> the standard deviation of its numbers in the population, whose model has
        them at 0; empty where the rule has no such prior, and in a warm-up."""
        spread = self.rule.spread
        if spread is None or not self.spread_tensor:
            return {}
        deviation = spread.deviation(float(shared[self.spread_tensor]))
        return {s.name: deviation for s in self.personal.specs if self.rule.role_of(s.name) in spread.of}

    def _composed(self, module: AdaptedModule, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        by_role = {factor.role: tensors[factor.named(module.name)] for factor in self.rule.in_modules}
        a, b = self.rule.compose(by_role)
        wanted = (self.rank, module.in_features), (module.out_features, self.rank)
        if (a.shape, b.shape) != wanted:
            raise ConfigError(
                f'share "{self.rule.name}" composes factors of shape {tuple(a.shape)} and {tuple(b.shape)} '
                f"for {module.name}; they must be {wanted[0]} and {wanted[1]}"
            )
        return a, b

    def _head(self, tensors: Mapping[str, Tensor]) -> Tensor:
        rule = self.rule
        if self.head is Head.NONE:
            import torch

            return torch.empty(0)
        if rule.compose_head is None:
            return tensors[HEAD]
        return rule.compose_head({factor.role: tensors[factor.tensor] for factor in rule.in_model})

    def _specs(self, parts: Mapping[str, Part]) -> tuple[TensorSpec, ...]:
        whole = {Side.RANK: self.rank, Side.EMBEDDING: self.embedding}

        def spec(factor: Factor, name: str, lengths: Mapping[Side, int]) -> TensorSpec:
            return TensorSpec(name, factor.sized(lengths), parts[factor.role], factor.start)

        specs = []
        for module in self.adapted_modules:
            lengths = whole | {Side.IN: module.in_features, Side.OUT: module.out_features}
            specs += [spec(factor, factor.named(module.name), lengths) for factor in self.rule.in_modules]
        specs += [spec(f, f.tensor, whole) for f in self.rule.in_model if f.role in parts]
        specs += [TensorSpec(BASE + t.name, t.shape, parts["base"], Start.ZEROS) for t in self.base]
        return tuple(specs)

    def _check_rank(self) -> None:
        if self.rule.adapts_modules and not self.adapted_modules:
            raise ConfigError("no module is adapted; name a linear module in adapter.target_modules")
        sides = [
            side for module in self.adapted_modules for side in (module.in_features, module.out_features)
        ]
        largest = min(sides) if sides else self.embedding
        if not 1 <= self.rank <= largest:
            raise ConfigError(f"adapter.rank is {self.rank}; for these modules it must lie in 1 … {largest}")


def _draw(spec: TensorSpec, seed: int) -> Tensor:
    """A tensor's start; see `Split.initial`."""
    import torch

    match spec.start:
        case Start.ZEROS:
            return torch.zeros(spec.shape)
        case Start.ONES:
            return torch.ones(spec.shape)
        case Start.IDENTITY:
            return torch.eye(spec.shape[0])
    key = hashlib.sha256(f"penchant draw|{seed}|{spec.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    fan_in = spec.shape[-1]
    if spec.start is Start.NORMAL:
        return torch.randn(spec.shape, generator=generator) / math.sqrt(fan_in)
    return (2 * torch.rand(spec.shape, generator=generator) - 1) / math.sqrt(fan_in)
