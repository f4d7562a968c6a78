"""Is a run's result one that could be true? Used by CI after `make demo` and after the wheel's trial.

Usage: check_result.py DIR [--tiny]
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any


def check(directory: Path, *, tiny: bool) -> list[str]:
    """What is wrong with the run in `directory`: one line each."""
    result: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    report = (directory / "report.html").read_text(encoding="utf-8")
    clients, log = result["per_client"], result["rounds_log"]
    accuracy = result["accuracy"]["personal"]
    macro = sum(row["accuracy"] for row in clients) / len(clients)
    complaints = [
        ("per_client has another length than clients", len(clients) != result["clients"]),
        ("rounds_log has another length than rounds", len(log) != result["rounds"]),
        ("accuracy is not the mean over clients", not math.isclose(accuracy, macro, abs_tol=1e-6)),
        ("secure aggregation was off", result["secagg"] is not True),
        ("a round lost clients", any(row["survivors"] > row["cohort"] for row in log)),
        ("a round sent nothing", any(row["bytes_up"] <= 0 or row["bytes_down"] <= 0 for row in log)),
        ("the report does not name the data set", result["dataset"] not in report.lower()),
    ]
    if not tiny:
        complaints += [
            (f"accuracy {accuracy:.3f} is below .67", accuracy < 0.67),
            (f"accuracy {accuracy:.3f} is too good to be true", accuracy > 0.85),
            (f"fewer than 100 clients: {len(clients)}", len(clients) < 100),
            (f"it took {result['wall_seconds']:.0f} s; 180 are allowed", result["wall_seconds"] > 180),
        ]
    return [text for text, wrong in complaints if wrong]


def main() -> int:
    """Print what is wrong, or one line with the numbers; 1 when something is wrong."""
    directory = Path(sys.argv[1])
    wrong = check(directory, tiny="--tiny" in sys.argv[2:])
    for line in wrong:
        print(f"{directory}: {line}", file=sys.stderr)
    if not wrong:
        result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        print(f"{directory}: accuracy {result['accuracy']['personal']:.3f} in {result['wall_seconds']:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
