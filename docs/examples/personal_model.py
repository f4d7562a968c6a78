"""One person's model: score and rank responses, fit a newcomer, write plain peft files and load them again.

python docs/examples/personal_model.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import penchant

QUESTION = "On the amendment: "
WAGE, TAX = "to raise the minimum wage", "to repeal the estate tax"


def main() -> penchant.PersonalModel:
    """Simulate a small federation of senators and use the models it ends with."""
    data = penchant.load_preferences("senate", people=12, pairs=8)
    result = penchant.simulate(data, share="A", rounds=2, cohort=10)
    name = next(iter(result.per_person))

    model = result.personal_model(name)
    for ranked in model.rank(QUESTION, [WAGE, TAX]):
        print(f"{name}: {ranked.score:+.2f} {ranked.response}")
    print(f"how likely {name} would rather raise the wage: {model.preference(QUESTION, WAGE, TAX):.2f}")

    newcomer = result.fit_newcomer([(QUESTION, TAX, WAGE)])
    print(f"after one choice of somebody new: {newcomer.preference(QUESTION, WAGE, TAX):.2f}")

    with tempfile.TemporaryDirectory() as folder:
        model.export(Path(folder) / "mine")  # also loads with peft alone: see the README.md in it
        return penchant.PersonalModel.load(Path(folder) / "mine")


if __name__ == "__main__":
    main()
