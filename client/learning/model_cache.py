"""Where a device trains: each base model loaded once, kept warm between messages."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penchant.client.learning.laplace import Laplace
from penchant.client.learning.trainer import LocalTrainer
from penchant.common.config import AdapterConfig, ModelConfig, Plan
from penchant.common.model import announced
from penchant.common.model.activation_cache import CACHE_BYTES
from penchant.common.model.factors import Split
from penchant.common.model.reward import PACK_BYTES, RewardModel, load_reward_model
from penchant.common.model.signature import ModelSignature
from penchant.common.model.state_store import DEVICE_DISK_BYTES, DISK_BYTES, StateStore, lasting_folder

__all__ = ["ModelCache", "PlannedModel", "device_models", "simulated_models"]

Vector = NDArray[np.float32]
Loader = Callable[[ModelConfig, AdapterConfig], RewardModel]

MB = 1024 * 1024
MODELS_MOST = 2
"""Models kept at a time: each announcement may ask for other settings, and must not fill the memory."""


@dataclass(frozen=True)
class PlannedModel:
    """A reward model with the split that a plan asks for. step_bytes: what a training step may hold;
    None for the fixed bound."""

    model: RewardModel
    model_signature: ModelSignature
    split: Split
    plan: Plan
    step_bytes: int | None = None

    def parts(self, factors: Vector) -> tuple[Vector, Vector]:
        """(shared, common start of the personal part) from announced factors."""
        return announced.parts(self.plan, self.split, factors, lambda: self.drawn_start)

    @cached_property
    def drawn_start(self) -> Vector:
        """The common start of the personal part, as `announced.drawn_start`: one array for all, which can't
        be written."""
        start = announced.drawn_start(self.plan, self.split)
        start.flags.writeable = False
        return start

    def trainer(self, start: Vector) -> LocalTrainer:
        """A trainer that pulls towards `start`, if the plan asks for it."""
        return LocalTrainer(self.model, self.split, self.plan.training, start, step_bytes=self.step_bytes)

    def laplace(self, shared: Vector) -> Laplace:
        """What fits the personal part on these shared factors, and says how sure it is. ConfigError where
        nothing is personal."""
        return Laplace(self.model, self.split, shared, step_bytes=self.step_bytes)


class ModelCache:
    """Loads each base model once, for all plans that differ only in what is shared or trained.

    The least recently used model goes when a new one would be one too many.

    step_bytes: what a training step may hold until its gradients are there; None for the fixed bound.
    """

    def __init__(self, load: Loader = load_reward_model, *, step_bytes: int | None = None) -> None:
        self._load = load
        self._step_bytes = step_bytes
        self._models: OrderedDict[tuple[ModelConfig, AdapterConfig, bool], RewardModel] = OrderedDict()
        self._latest: PlannedModel | None = None
        self._lock = threading.Lock()
        self.loads = 0

    def __len__(self) -> int:
        """Models in memory."""
        return len(self._models)

    def of(self, plan: Plan) -> PlannedModel:
        """The model of `plan`, made once while the same plan is asked for.

        Raises BaseModelError or ConfigError as loading and splitting do.
        """
        model = self.model(plan.model, plan.adapter)
        with self._lock:
            latest = self._latest
            if latest is None or latest.plan != plan or latest.model is not model:
                model_signature = ModelSignature.of(model)
                split = model_signature.split(plan)
                latest = self._latest = PlannedModel(model, model_signature, split, plan, self._step_bytes)
            return latest

    def model(self, model: ModelConfig, adapter: AdapterConfig) -> RewardModel:
        """The reward model for these settings, loaded unless it is kept."""
        placed = replace(
            adapter, share=AdapterConfig().share, head="auto"
        )  # what is shared changes no module
        key = (model, placed, adapter.rule.adapts_modules)
        with self._lock:
            if key not in self._models:
                self._models[key] = self._load(model, adapter)
                self.loads += 1
            self._models.move_to_end(key)
            while len(self._models) > MODELS_MOST:
                self._models.popitem(last=False)
            return self._models[key]


def simulated_models() -> ModelCache:
    """Models of a simulation: what memory has no place for of frozen states may lie where temporary files do,
    unless those are held in memory."""
    folder = lasting_folder()
    disk = None if folder is None else StateStore(folder, DISK_BYTES)
    return ModelCache(partial(load_reward_model, disk=disk))


def device_models(memory_mb: int | None, folder: Path | None, cache_bytes: int = CACHE_BYTES) -> ModelCache:
    """Models of a device. Of a job's memory frozen states fill a quarter, what lies in one piece an eighth,
    for there can be two such pieces, one that is being made, and a step holds another quarter.

    Args:
        memory_mb: what a job may take beside the models, in MB; None: there is no bound.
        folder: of the device, where frozen states may be written that memory has no place for; None: nothing
            is written.
        cache_bytes: of frozen states, how much memory they may take at most.
    """
    pack_bytes, step_bytes = PACK_BYTES, None
    if memory_mb is not None:
        cache_bytes = min(cache_bytes, memory_mb * MB // 4)
        pack_bytes = min(pack_bytes, memory_mb * MB // 8)
        step_bytes = memory_mb * MB // 4
    disk = None if folder is None else StateStore(folder, DEVICE_DISK_BYTES)
    load = partial(load_reward_model, cache_bytes=cache_bytes, pack_bytes=pack_bytes, disk=disk)
    return ModelCache(load, step_bytes=step_bytes)
