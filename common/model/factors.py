"""Low-rank factors: which tensors are shared, which stay with a person, and how they become vectors.

Every adapted linear module (a *slot*) computes ``h = W0 x + (α/r) B A x`` with ``A: (r, in)`` and
``B: (out, r)`` (LoRA, Hu et al. 2021). P-ShareLoRA (Liu et al., AISTATS 2025, PMLR 258:1405-1413)
shares one factor among all people and keeps the other personal. `parts_of` is the one rule table:
training, the wire and the audit all read it. `Split.effective` is the one place where shared and
personal tensors become the (A, B, head) that the model runs with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penchant.common.config import AdapterConfig
from penchant.common.errors import CodecError, ConfigError
from penchant.common.model.modules import AdaptedModule, BaseTensor
from penchant.common.model.shares import BASE, BASIS, HEAD, WEIGHTS, Head, Part, Share, head_of, parts_of

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the split: its name, shape and part."""

    name: str
    shape: tuple[int, ...]
    part: Part

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The tensors of one part in their order on the wire: slots in the backbone's order, within a slot
    A, B, K, s; then LoRe's basis and weights; then the head; then changes of the base in the backbone's
    order. Each is row-major float32."""

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
        return {name: torch.from_numpy(array) for name, array in self.named(vector).items()}

    def check(self, vector: Vector) -> None:
        """CodecError unless it is a float32 vector of this layout's length."""
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise CodecError(
                f"a vector of {vector.dtype} {vector.shape} came where float32 ({self.size},) belongs; "
                "both sides need the same configuration"
            )


@dataclass(frozen=True)
class MergedWeights:
    """What the model runs with: (A, B) by slot name, the head (1, d), and what is added to parameters of
    the base, by their path."""

    adapters: Mapping[str, tuple[Tensor, Tensor]]
    head: Tensor
    base: Mapping[str, Tensor] = field(default_factory=dict)


class Split:
    """The tensors of one method at one set of slots, divided into shared, personal and frozen ones.

    Args:
        slots: adapted modules in the backbone's order (none for LoRe).
        embedding: width d of the pooled embedding.
        rank: r, at most every slot's smaller side.
        base: parameters of the base that are trained and shared as well, in the backbone's order.
        warmup: the rules of the warm-up phase.
        seed: of tensors frozen at their draw (FFA's A), which must be the same on all devices.
    """

    def __init__(
        self,
        slots: Sequence[AdaptedModule],
        embedding: int,
        rank: int,
        share: Share,
        head: Head,
        *,
        base: Sequence[BaseTensor] = (),
        warmup: bool = False,
        seed: int = 0,
    ) -> None:
        self.base = tuple(base)
        self.slots = () if share is Share.LORE else tuple(slots)
        self.embedding = embedding
        self.rank = rank
        self.share = share
        self.head = head
        self.warmup = warmup
        self._check_rank()
        specs = self._specs(parts_of(share, head, warmup, base=bool(self.base)))
        self.specs = specs
        self.shared = Layout(tuple(spec for spec in specs if spec.part is Part.SHARED))
        self.personal = Layout(tuple(spec for spec in specs if spec.part is Part.PERSONAL))
        self._frozen = {spec.name: _draw(spec, seed) for spec in specs if spec.part is Part.FROZEN}

    @classmethod
    def of(
        cls,
        slots: Sequence[AdaptedModule],
        embedding: int,
        config: AdapterConfig,
        *,
        base: Sequence[BaseTensor] = (),
        warmup: bool = False,
        seed: int = 0,
    ) -> Split:
        """The split that a configuration asks for. ConfigError when it makes no sense."""
        try:
            share = Share(config.share)
        except ValueError:
            raise ConfigError(f'share is "{config.share}"; it must be one of {", ".join(Share)}') from None
        head = head_of(share, config.head)
        return cls(slots, embedding, config.rank, share, head, base=base, warmup=warmup, seed=seed)

    def initial(self, seed: int) -> tuple[Vector, Vector]:
        """The common start (shared, personal), the same for the same seed on every device.

        Each tensor's draw depends on the seed and its name alone, so that all methods start alike:
        A uniform in ±1/√in (kaiming with a=√5 and the true fan-in, as peft draws it), B zero, the head
        normal with deviation 1/√d, K the identity, s ones; LoRe's basis as A, its weights zero; changes of
        the base zero.
        """
        shared = {spec.name: _draw(spec, seed) for spec in self.shared.specs}
        personal = {spec.name: _draw(spec, seed) for spec in self.personal.specs}
        return self.shared.flatten(shared), self.personal.flatten(personal)

    def start_from(self, warm: Split, shared: Vector, seed: int) -> tuple[Vector, Vector]:
        """The start of this (main) phase from a warm-up's shared vector: every tensor the warm-up trained
        is copied, into the shared or the personal part; K and s start at their draw, the identity."""
        warmed = warm.shared.unflatten(shared)
        known = {spec.name for spec in self.specs}
        if not set(warmed) <= known:
            raise ConfigError("the warm-up trained other tensors than the main phase has; start afresh")

        def start(layout: Layout) -> Vector:
            return layout.flatten({s.name: warmed.get(s.name, _draw(s, seed)) for s in layout.specs})

        return start(self.shared), start(self.personal)

    def effective(self, shared: Mapping[str, Tensor], personal: Mapping[str, Tensor]) -> MergedWeights:
        """(shared, personal) -> (A, B by slot; head; changes of the base): pure and differentiable.

        With a kernel the update is B K A, with a diagonal B diag(s) A; both are folded into A.
        """
        tensors = {**self._frozen, **shared, **personal}
        if self.share is Share.LORE:
            head = (tensors[WEIGHTS] @ tensors[BASIS]).unsqueeze(0)  # (r) @ (r, d) -> (1, d)
            return MergedWeights({}, head)
        adapters = {slot.name: self._factors(slot.name, tensors) for slot in self.slots}
        base = {tensor.name: tensors[BASE + tensor.name] for tensor in self.base}
        return MergedWeights(adapters, tensors[HEAD], base)

    def merged(self, shared: Vector, personal: Vector) -> MergedWeights:
        """`effective` of two flat vectors, for evaluation and export (no gradient)."""
        return self.effective(self.shared.unflatten(shared), self.personal.unflatten(personal))

    def _factors(self, slot: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = tensors[f"{slot}.lora_A"], tensors[f"{slot}.lora_B"]
        if self.share is Share.KERNEL:
            a = tensors[f"{slot}.lora_K"] @ a
        elif self.share is Share.SVD:
            a = tensors[f"{slot}.lora_s"].unsqueeze(1) * a
        return a, b

    def _specs(self, parts: Mapping[str, Part]) -> tuple[TensorSpec, ...]:
        specs = []
        for slot in self.slots:
            shapes = {
                "A": (self.rank, slot.in_features),
                "B": (slot.out_features, self.rank),
                "K": (self.rank, self.rank),
                "s": (self.rank,),
            }
            for role, shape in shapes.items():
                if role in parts:
                    specs.append(TensorSpec(f"{slot.name}.lora_{role}", shape, parts[role]))
        for role, name, shape in (
            ("V", BASIS, (self.rank, self.embedding)),
            ("w", WEIGHTS, (self.rank,)),
            ("head", HEAD, (1, self.embedding)),
        ):
            if role in parts:
                specs.append(TensorSpec(name, shape, parts[role]))
        specs += [TensorSpec(BASE + tensor.name, tensor.shape, parts["base"]) for tensor in self.base]
        return tuple(specs)

    def _check_rank(self) -> None:
        if self.share is not Share.LORE and not self.slots:
            raise ConfigError("no module is adapted; name a linear module in adapter.target_modules")
        sides = [side for slot in self.slots for side in (slot.in_features, slot.out_features)]
        largest = min(sides) if sides else self.embedding
        if not 1 <= self.rank <= largest:
            raise ConfigError(f"adapter.rank is {self.rank}; for these modules it must lie in 1 … {largest}")


def _draw(spec: TensorSpec, seed: int) -> Tensor:
    """A tensor's start; see `Split.initial`."""
    role = spec.name.rsplit(".", 1)[1]
    if role in ("lora_B", "weights") or spec.name.startswith(BASE):
        return torch.zeros(spec.shape)
    if role == "lora_K":
        return torch.eye(spec.shape[0])
    if role == "lora_s":
        return torch.ones(spec.shape)
    key = hashlib.sha256(f"penchant draw|{seed}|{spec.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    fan_in = spec.shape[1]
    if role == "weight":  # the head
        return torch.randn(spec.shape, generator=generator) / math.sqrt(fan_in)
    return (2 * torch.rand(spec.shape, generator=generator) - 1) / math.sqrt(fan_in)
