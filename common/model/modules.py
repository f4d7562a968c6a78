"""Modules of a backbone by name: its blocks, the linear modules to adapt, parts of the base to share."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from penchant.common.config import AdapterConfig
from penchant.common.errors import BaseModelError
from penchant.common.model.factors import AdaptedModule, BaseTensor

AUTO = "auto"
CONV1D = "Conv1D"  # of transformers, which the server does without


def structural_copy(module: nn.Module) -> Any:
    """A copy that can be changed, but for parameters and buffers, which are the module's own: it takes
    milliseconds and no memory to speak of."""
    memo = {id(t): t for t in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, memo)


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes W x + b: a Linear, or GPT-2's Conv1D, which keeps W the other way round."""
    return isinstance(module, nn.Linear) or type(module).__name__ == CONV1D


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = module.get_parameter("weight").shape
    return int(rows), int(columns)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks: the outermost ModuleList with one module a hidden layer."""
    settings: Any = model.config
    layers = int(getattr(settings, "num_hidden_layers", 0))
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not lists:
        raise BaseModelError(f"{type(model).__name__} has no list of {layers} blocks; it can't be adapted")
    return min(lists, key=lambda item: item[0].count("."))


def find_adapted(model: nn.Module, config: AdapterConfig) -> tuple[AdaptedModule, ...]:
    """The linear modules that a configuration names, in the backbone's order.

    A name with a dot must equal the module's path within its block ("output.dense" in encoder.layer.5,
    which is not attention.output.dense); one without a dot its last segment ("q_proj"). `layers` are
    block indices, negative from the end; () takes all. The one name "auto" stands for `usual_targets`.

    Raises:
        BaseModelError: no linear module has such a name, or there is no such block.
    """
    path, blocks = find_blocks(model)
    targets = targets_of(model, config)
    adapted, found = [], set()
    for index in _adapted_blocks(blocks, config):
        for inner, module in blocks[index].named_modules():
            target = _matches(inner, targets)
            if target is None or not is_linear(module):
                continue
            found.add(target)
            adapted.append(AdaptedModule(f"{path}.{index}.{inner}", *features(module)))
    missing = [target for target in targets if target not in found]
    if missing:
        linear = sorted({n for block in blocks for n, m in block.named_modules() if is_linear(m)})
        there = (
            f"there are {', '.join(linear)}; {AUTO} takes the usual one"
            if linear
            else "there are none at all"
        )
        raise BaseModelError(
            f'adapter.target_modules: these blocks have no linear module "{missing[0]}"; {there}'
        )
    return tuple(adapted)


def targets_of(model: nn.Module, config: AdapterConfig) -> tuple[str, ...]:
    """The names in `adapter.target_modules`, or what auto stands for in this model."""
    return usual_targets(model) if config.target_modules == (AUTO,) else config.target_modules


def usual_targets(model: nn.Module) -> tuple[str, ...]:
    """What `adapter.target_modules` = auto stands for: the module in which a block's feed-forward part comes
    back to the width of the states, "output.dense" in BERT; where no linear module does that, as with experts
    that are kept in one tensor, the last one of a block that gives states.

    Raises:
        BaseModelError: no block has a linear module that gives states.
    """
    settings: Any = model.config
    width = int(settings.hidden_size)
    _, blocks = find_blocks(model)
    back: dict[str, None] = {}
    for block in blocks:
        giving = [
            (n, features(m)[0]) for n, m in block.named_modules() if is_linear(m) and features(m)[1] == width
        ]
        narrowing = [name for name, wide in giving if wide > width and not _of_an_expert(name)]
        back |= dict.fromkeys(narrowing or [name for name, _ in giving if not _of_an_expert(name)][-1:])
    if not back:
        raise BaseModelError(
            f"{type(model).__name__} has no linear module that gives its states; it can't be adapted"
        )
    return tuple(dict.fromkeys(_shortest(name, blocks) for name in back))


def _shortest(name: str, blocks: nn.ModuleList) -> str:
    """The last segment of a module's path in its block where no other linear module has it, else the path."""
    last = name.rpartition(".")[2]
    same = {
        n
        for block in blocks
        for n, m in block.named_modules()
        if is_linear(m) and n.rpartition(".")[2] == last
    }
    return last if same == {name} else name


def _of_an_expert(name: str) -> bool:
    return any("expert" in part for part in name.split("."))


def find_base(model: nn.Module, config: AdapterConfig) -> tuple[BaseTensor, ...]:
    """The parameters that `adapter.share_base` names (but for the head), in the backbone's order.

    Call it before LoRA is put in place: names are those of the plain backbone.

    Raises:
        BaseModelError: the backbone has no such module, or its weights are quantised.
    """
    chosen: set[str] = set()
    for pattern in config.share_base:
        if pattern == "head":
            continue
        found = [f"{m}.{p}" for m in _modules_of(model, config, pattern) for p in _parameters(model, m)]
        if not found:
            raise BaseModelError(
                f'adapter.share_base: no module "{pattern}" with weights is in this base model; name head, '
                "norm, or a module's path from the backbone's root"
            )
        chosen.update(found)
    parameters = [(name, p) for name, p in model.named_parameters() if name in chosen]
    for name, parameter in parameters:
        if not parameter.is_floating_point():
            raise BaseModelError(f"adapter.share_base: {name} is quantised and can't be trained")
    return tuple(BaseTensor(name, tuple(parameter.shape)) for name, parameter in parameters)


def weight_norms(
    model: nn.Module, adapted_modules: Sequence[AdaptedModule], base: Sequence[BaseTensor]
) -> dict[str, float]:
    """The L2 norm of the weight of each adapted module and of each parameter that is trained as well, by its
    name. Call it before LoRA is put in place.

    A weight that is held in 4 bits counts as uniform in ±1/√n, n its inputs, which is how such weights begin.
    """
    norms = {}
    for module in adapted_modules:
        weight = model.get_submodule(module.name).get_parameter("weight")
        usual = math.sqrt(module.out_features / 3)
        norms[module.name] = _norm(weight) if weight.is_floating_point() else usual
    return norms | {tensor.name: _norm(model.get_parameter(tensor.name)) for tensor in base}


def _norm(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32))


def _modules_of(model: nn.Module, config: AdapterConfig, pattern: str) -> list[str]:
    """Paths of the modules that one entry of `adapter.share_base` names."""
    if pattern != "norm":
        return [name for name, _ in model.named_modules() if name and fnmatchcase(name, pattern)]
    path, blocks = find_blocks(model)
    return [
        f"{path}.{index}.{inner}"
        for index in _adapted_blocks(blocks, config)
        for inner, module in blocks[index].named_modules()
        if "norm" in type(module).__name__.lower()
    ]


def _parameters(model: nn.Module, module: str) -> list[str]:
    return [name for name, _ in model.get_submodule(module).named_parameters()]


def _adapted_blocks(blocks: nn.ModuleList, config: AdapterConfig) -> list[int]:
    """Indices of the blocks in `adapter.layers`, ascending. BaseModelError when there is no such block."""
    for index in config.layers:
        if not -len(blocks) <= index < len(blocks):
            raise BaseModelError(
                f"adapter.layers names block {index}, but the base model has {len(blocks)} blocks"
            )
    return sorted({index % len(blocks) for index in config.layers} or range(len(blocks)))


def _matches(inner: str, targets: tuple[str, ...]) -> str | None:
    last = inner.rsplit(".", 1)[-1]
    return next((t for t in targets if t == inner or ("." not in t and t == last)), None)
