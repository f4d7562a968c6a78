"""The public names of `import penchant`: which there are, and that importing it is cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import penchant
from penchant._api_page import page

PUBLIC = [
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


def test_the_public_names_are_these() -> None:
    assert sorted(penchant.__all__) == PUBLIC
    assert set(penchant._PLACES) == set(PUBLIC) - {"__version__"}
    for name in PUBLIC:
        assert getattr(penchant, name) is not None
        assert name in dir(penchant)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(penchant, "simulat")


def test_importing_it_loads_nothing_heavy() -> None:
    script = (
        "import sys, penchant\n"
        "assert penchant.__version__ and dir(penchant)\n"
        "heavy = {'torch', 'flwr', 'numpy', 'matplotlib', 'transformers', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'importing penchant loads {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_page_of_the_api_is_written_from_it() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "api.md"
    assert path.read_text(encoding="utf-8") == page(), "python -m penchant._api_page > docs/api.md writes it"
