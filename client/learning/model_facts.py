"""What a device must know of a base model to answer an announcement, from a process that never trains.

The reply to `keys` waits for these facts. So nothing that training does or did may hold them up: they have
a process, a lock and a memory of their own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

from penchant.client.learning.child_process import Child, answer, end_with_parent, yield_memory
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.workplace import LoadedModel
from penchant.common.config import AdapterConfig, ModelConfig, Plan
from penchant.common.errors import DeviceError
from penchant.common.model.signature import ModelSignature

__all__ = ["LOAD_SECONDS", "Facts", "ModelFacts", "facts_from", "facts_of"]

KEPT = 8
"""Models of which the facts are kept: a signed run has three at most, one a phase."""
LOAD_SECONDS = 900.0  # for a base model to be loaded, from a slow disk say
GOES_SECOND = 500  # when memory runs out: after the training, before the agent
NAME = "penchant model facts"


@dataclass(frozen=True)
class Facts:
    """What a plan's phase does not change of a loaded model."""

    signature: ModelSignature
    norms: Mapping[str, float]


class ModelFacts:
    """Facts of models. Each model not yet known is loaded once, in a process that tells them and is gone
    before the facts are returned, so that the training can load it into the memory that is free again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[ModelConfig, AdapterConfig], Facts] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, plan: Plan, facts: Facts) -> None:
        """Keep what somebody else has found of the model that `plan` asks for."""
        with self._lock:
            self._known[plan.model, plan.adapter] = facts

    def of(self, plan: Plan) -> LoadedModel:
        """The facts of the model that `plan` asks for.

        Raises BaseModelError or ConfigError as loading and splitting do, DeviceError when the process was
        ended or took too long.
        """
        wanted = plan.model, plan.adapter
        with self._lock:
            facts = self._known.get(wanted)
            if facts is None:
                facts = self._known[wanted] = _told(plan)
            self._known.move_to_end(wanted)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return LoadedModel(facts.signature.digest, facts.signature.split(plan), facts.norms)


def _told(plan: Plan) -> Facts:
    child = Child(_tell, plan, name=NAME)
    try:
        return facts_from(child)
    finally:
        child.close()


def facts_from(child: Child) -> Facts:
    """The facts that a process tells of the model that it loads. Raises as `ModelFacts.of`."""
    try:
        if not child.ready(LOAD_SECONDS):
            raise DeviceError(f"the base model was not loaded within {LOAD_SECONDS:g} s")
        facts: Facts = child.reply()
        return facts
    except (EOFError, OSError):
        raise DeviceError("the process that loads the base model was ended; has memory run out?") from None


# --- in the process -----------------------------------------------------------------------------------


def _tell(connection: Connection, plan: Plan) -> None:
    yield_memory(GOES_SECOND)
    end_with_parent()
    answer(connection, lambda: facts_of(ModelCache(), plan))


def facts_of(models: ModelCache, plan: Plan) -> Facts:
    """The facts of a model, loaded if need be."""
    planned = models.of(plan)
    return Facts(planned.model_signature, planned.model.weight_norms)
