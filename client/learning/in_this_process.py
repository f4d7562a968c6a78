"""Local work in the calling process, with models that others may use as well."""

from __future__ import annotations

from collections.abc import Callable

from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.workplace import Job, LoadedModel
from penchant.common.config import Plan
from penchant.common.errors import BaseModelError

__all__ = ["InThisProcess"]


class InThisProcess:
    """Works in the calling thread, with models that others may use as well. Nothing ends it early: only for
    devices whose server is trusted, which are those of simulations and tests."""

    def __init__(self, model_cache: ModelCache) -> None:
        self._model_cache = model_cache

    def load(self, plan: Plan) -> LoadedModel:
        """As `Workplace.load`."""
        planned = self._model_cache.of(plan)
        signature, norms = planned.model_signature, planned.model.weight_norms
        return LoadedModel(signature.digest, planned.split, norms, lambda: planned.drawn_start)

    def expect(self, job: Callable[[], Job]) -> None:
        """As `Workplace.expect`: each job is done when it is asked for."""

    def work(self, job: Job, seconds: float | None = None) -> Outcome:
        """As `Workplace.work`, however long it takes."""
        planned = self._model_cache.of(job.plan)
        if planned.model_signature.digest != job.base:
            raise BaseModelError("the base model is not the one that was announced; it changed on the disk")
        return work(planned, job.shared, job.start, job.personal, job.train, job.held_out, job.seed)

    def cancel(self) -> None:
        """As `Workplace.cancel`: what is under way goes on, and its outcome is not used."""
