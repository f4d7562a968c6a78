"""Preferences of your own, from memory: four people with simple tastes, and a model for each of them.

python docs/examples/own_data.py
"""

from __future__ import annotations

import itertools

import penchant

TASTES = {
    "Ann": ["tea", "coffee", "juice", "water", "milk"],  # the best first
    "Bea": ["water", "juice", "milk", "coffee", "tea"],
    "Cem": ["coffee", "tea", "milk", "water", "juice"],
    "Dag": ["milk", "juice", "coffee", "water", "tea"],
}
OCCASIONS = ["breakfast", "a break", "lunch", "a party", "dinner", "a walk", "the train", "late evening"]


def choices(taste: list[str]) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) for every two drinks, on every occasion."""
    made = []
    for occasion, (better, worse) in itertools.product(OCCASIONS, itertools.combinations(taste, 2)):
        made.append((f"For {occasion} I would like", f" {better}.", f" {worse}."))
    return made


def main() -> penchant.SimulationResult:
    """Hand over the preferences, simulate a small federation, and print how well each model does."""
    preferences = {person: choices(taste) for person, taste in TASTES.items()}
    data = penchant.load_preferences(preferences, pairs=20, validation_pairs=5, test_pairs=10, name="drinks")
    result = penchant.simulate(data, share="A", rounds=3, cohort=4, min_honest=1, max_colluders=0)
    for person, accuracy in result.per_person.items():
        print(f"{person}: {accuracy:.0%} of the choices that were held out")
    return result


if __name__ == "__main__":
    main()
