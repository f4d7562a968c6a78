"""What a device must know of a base model to answer an announcement, from a process that never trains.

The reply to `keys` waits for these facts. So nothing that training does or did may hold them up: they have
a process, a lock and a memory of their own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penchant.client.learning.child_process import Child, answer, end_with_parent, yield_memory
from penchant.client.learning.workplace import LoadedModel
from penchant.common.config import AdapterConfig, ModelConfig, Plan
from penchant.common.errors import DeviceError
from penchant.common.model import announced
from penchant.common.model.factors import Vector
from penchant.common.model.signature import ModelSignature

if TYPE_CHECKING:  # the agent needs no torch: the processes that load a model do
    from penchant.client.learning.model_cache import ModelCache

__all__ = ["LOAD_SECONDS", "Facts", "ModelFacts", "ModelTold", "facts_of", "new_models", "told_by"]

KEPT = 8
"""Models of which the facts are kept: a signed run has three at most, one a phase."""
STARTS_MOST = 1 << 22  # numbers of starts that are kept, and of one that is told before anybody asks for it
LOAD_SECONDS = 900.0  # for a base model to be loaded, from a slow disk say
GOES_SECOND = 500  # when memory runs out: after the training, before the agent
NAME = "penchant model facts"


@dataclass(frozen=True)
class Facts:
    """What a plan's phase does not change of a loaded model."""

    signature: ModelSignature
    norms: Mapping[str, float]


@dataclass(frozen=True)
class ModelTold:
    """What a process that has loaded a model tells of it, for a plan: facts, and the start that it draws.

    start: None where the plan sends one, and where it is so large that the owner's bounds are asked first.
    """

    facts: Facts
    start: Vector | None = field(repr=False)


class ModelFacts:
    """Facts of models. Each model not yet known is loaded once, in a process that tells them and is gone
    before the facts are returned, so that the training can load it into the memory that is free again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[ModelConfig, AdapterConfig], Facts] = OrderedDict()
        self._starts: OrderedDict[tuple[object, ...], Vector] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, plan: Plan, told: ModelTold) -> None:
        """Keep what somebody else has found of the model that `plan` asks for."""
        with self._lock:
            self._keep(plan, told)

    def of(self, plan: Plan) -> LoadedModel:
        """The facts of the model that `plan` asks for.

        Raises BaseModelError or ConfigError as loading and splitting do, DeviceError when the process was
        ended or took too long.
        """
        with self._lock:
            if (plan.model, plan.adapter) not in self._known:
                self._keep(plan, _asked(_tell, plan))
            self._known.move_to_end((plan.model, plan.adapter))
            facts = self._known[plan.model, plan.adapter]
        start = partial(self._start, plan, facts.signature)
        return LoadedModel(facts.signature.digest, facts.signature.split(plan), facts.norms, start)

    def _keep(self, plan: Plan, told: ModelTold) -> None:
        self._known[plan.model, plan.adapter] = told.facts
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        if told.start is not None:
            self._keep_start(plan, told.start)

    def _start(self, plan: Plan, signature: ModelSignature) -> Vector:
        """What the plan's seed draws; by a process without a model, where none has told it."""
        if plan.start_sent:
            return np.empty(0, np.float32)
        with self._lock:
            start = self._starts.get(_of_start(plan))
            if start is None:
                start = self._keep_start(plan, _asked(_draw, plan, signature))
            return start

    def _keep_start(self, plan: Plan, start: Vector) -> Vector:
        """Keep it among the latest: the last one, and as many before it as are not too large together."""
        self._starts[_of_start(plan)] = start
        self._starts.move_to_end(_of_start(plan))
        while len(self._starts) > 1 and sum(map(np.size, self._starts.values())) > STARTS_MOST:
            self._starts.popitem(last=False)
        return start


def _of_start(plan: Plan) -> tuple[object, ...]:
    """What the start of a plan's personal part depends on."""
    return plan.model, plan.adapter, plan.head, plan.phase == "warmup", plan.seed


def _asked(main: Callable[..., None], *arguments: Any) -> Any:
    """What a process of its own tells, which is gone then. Raises as `ModelFacts.of`."""
    child = Child(main, *arguments, name=NAME)
    try:
        return told_by(child)
    finally:
        child.close()


def told_by(child: Child) -> Any:
    """What a process tells once it has loaded a model. Raises as `ModelFacts.of`."""
    try:
        if not child.ready(LOAD_SECONDS):
            raise DeviceError(f"the base model was not loaded within {LOAD_SECONDS:g} s")
        return child.reply()
    except (EOFError, OSError):
        raise DeviceError("the process that loads the base model was ended; has memory run out?") from None


# --- in the process -----------------------------------------------------------------------------------


def _tell(connection: Connection, plan: Plan) -> None:
    yield_memory(GOES_SECOND)
    end_with_parent()
    answer(connection, lambda: facts_of(new_models(), plan))


def new_models(memory_mb: int | None = None, folder: Path | None = None) -> ModelCache:
    """Models for this process. Here, where an installation that is broken is told as other faults are.

    Args:
        memory_mb: what a job may take beside them, in MB, if there is a bound.
        folder: where what it has no place for may be written; by default nothing is.
    """
    from penchant.client.learning.model_cache import device_models

    return device_models(memory_mb, folder)


def _draw(connection: Connection, plan: Plan, signature: ModelSignature) -> None:
    yield_memory(GOES_SECOND)
    end_with_parent()
    answer(connection, lambda: announced.drawn_start(plan, signature.split(plan)))


def facts_of(models: ModelCache, plan: Plan) -> ModelTold:
    """What is told of a model, loaded if need be."""
    planned = models.of(plan)
    facts = Facts(planned.model_signature, planned.model.weight_norms)
    told = not plan.start_sent and planned.split.personal.size <= STARTS_MOST
    return ModelTold(facts, announced.drawn_start(plan, planned.split) if told else None)
