"""One person's model: score and rank responses, fit a newcomer, write plain peft files and load them again.

python docs/examples/personal_model.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import penchant

QUESTION = "On the amendment to reduce the tax on small businesses, the senator votes"


def main() -> penchant.PersonalModel:
    """Simulate a small federation of senators and use the models it ends with."""
    data = penchant.load_preferences("senate", people=12, pairs=8)
    result = penchant.simulate(data, share="A", rounds=2, cohort=10)
    name = next(iter(result.per_person))

    model = result.personal_model(name)
    for ranked in model.rank(QUESTION, [" Yea.", " Nay."]):
        print(f"{name}: {ranked.score:+.2f} {ranked.response}")
    print(f"probability of a Yea: {model.preference(QUESTION, ' Yea.', ' Nay.'):.2f}")

    newcomer = result.fit_newcomer([(QUESTION, " Nay.", " Yea.")])
    print(f"after one choice of somebody new: {newcomer.preference(QUESTION, ' Yea.', ' Nay.'):.2f}")

    with tempfile.TemporaryDirectory() as folder:
        model.export(Path(folder) / "mine")  # also loads with peft alone: see the README.md in it
        return penchant.PersonalModel.load(Path(folder) / "mine")


if __name__ == "__main__":
    main()
