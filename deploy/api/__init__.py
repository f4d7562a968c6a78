"""Personal reward models, learned together, without anyone's preferences leaving their device.

>>> import penchant
>>> result = penchant.simulate("senate", share="A", rounds=20, seed=0)
>>> result.accuracy

Importing this loads nothing heavy: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penchant._data import load_preferences as load_preferences
    from penchant._personal_model import PersonalModel as PersonalModel
    from penchant._results import ComparisonResult as ComparisonResult
    from penchant._results import SimulationResult as SimulationResult
    from penchant._runs import Callback as Callback
    from penchant._runs import compare as compare
    from penchant._runs import simulate as simulate
    from penchant._tracking import Tracker as Tracker
    from penchant.common.config import RunConfig as RunConfig
    from penchant.common.data.preferences import Federation as Federation
    from penchant.common.data.preferences import Person as Person
    from penchant.common.data.preferences import Preference as Preference
    from penchant.common.data.splits import people_from_pairs as people_from_pairs
    from penchant.common.errors import ConfigError as ConfigError
    from penchant.common.errors import DataError as DataError
    from penchant.common.errors import PenchantError as PenchantError
    from penchant.common.errors import RoundFailed as RoundFailed
    from penchant.common.errors import RunDirectoryError as RunDirectoryError
    from penchant.common.errors import UsageError as UsageError
    from penchant.common.objectives import LogProbabilities as LogProbabilities
    from penchant.common.objectives import Objective as Objective
    from penchant.common.objectives import register_objective as register_objective
    from penchant.common.shares import Factor as Factor
    from penchant.common.shares import Part as Part
    from penchant.common.shares import ShareRule as ShareRule
    from penchant.common.shares import Side as Side
    from penchant.common.shares import Start as Start
    from penchant.common.shares import register_share as register_share
    from penchant.deploy.datasets.loader import DataRequest as DataRequest
    from penchant.deploy.datasets.loader import DatasetLoader as DatasetLoader
    from penchant.deploy.datasets.loader import register_dataset as register_dataset
    from penchant.deploy.datasets.prepared import Prepared as Prepared
    from penchant.deploy.evaluation import Evaluation as Evaluation
    from penchant.deploy.simulation.result import RoundSummary as RoundSummary
    from penchant.server.optimizers import ServerOptimizer as ServerOptimizer
    from penchant.server.optimizers import ServerState as ServerState
    from penchant.server.optimizers import register_server_optimizer as register_server_optimizer

    __version__: str

# Public name -> the module that has it. `__all__`, `dir(penchant)` and docs/api.md follow from this table; a
# type checker reads the imports above, so a new name goes into both.
_PLACES = {
    "load_preferences": "penchant._data",
    "simulate": "penchant._runs",
    "compare": "penchant._runs",
    "Preference": "penchant.common.data.preferences",
    "Person": "penchant.common.data.preferences",
    "Federation": "penchant.common.data.preferences",
    "RunConfig": "penchant.common.config",
    "SimulationResult": "penchant._results",
    "ComparisonResult": "penchant._results",
    "PersonalModel": "penchant._personal_model",
    "Evaluation": "penchant.deploy.evaluation",
    "PenchantError": "penchant.common.errors",
    "ConfigError": "penchant.common.errors",
    "DataError": "penchant.common.errors",
    "UsageError": "penchant.common.errors",
    "RunDirectoryError": "penchant.common.errors",
    "RoundFailed": "penchant.common.errors",
    # Extension points (docs/plugins.md)
    "Callback": "penchant._runs",
    "Tracker": "penchant._tracking",
    "RoundSummary": "penchant.deploy.simulation.result",
    "Objective": "penchant.common.objectives",
    "LogProbabilities": "penchant.common.objectives",
    "register_objective": "penchant.common.objectives",
    "ShareRule": "penchant.common.shares",
    "Factor": "penchant.common.shares",
    "Part": "penchant.common.shares",
    "Side": "penchant.common.shares",
    "Start": "penchant.common.shares",
    "register_share": "penchant.common.shares",
    "ServerOptimizer": "penchant.server.optimizers",
    "ServerState": "penchant.server.optimizers",
    "register_server_optimizer": "penchant.server.optimizers",
    "DatasetLoader": "penchant.deploy.datasets.loader",
    "DataRequest": "penchant.deploy.datasets.loader",
    "Prepared": "penchant.deploy.datasets.prepared",
    "people_from_pairs": "penchant.common.data.splits",
    "register_dataset": "penchant.deploy.datasets.loader",
}

__all__ = [
    "Callback",
    "ComparisonResult",
    "ConfigError",
    "DataError",
    "DataRequest",
    "DatasetLoader",
    "Evaluation",
    "Factor",
    "Federation",
    "LogProbabilities",
    "Objective",
    "Part",
    "PenchantError",
    "Person",
    "PersonalModel",
    "Preference",
    "Prepared",
    "RoundFailed",
    "RoundSummary",
    "RunConfig",
    "RunDirectoryError",
    "ServerOptimizer",
    "ServerState",
    "ShareRule",
    "Side",
    "SimulationResult",
    "Start",
    "Tracker",
    "UsageError",
    "__version__",
    "compare",
    "load_preferences",
    "people_from_pairs",
    "register_dataset",
    "register_objective",
    "register_server_optimizer",
    "register_share",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("penchant")
    elif name in _PLACES:
        found = getattr(import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found  # looked up once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
