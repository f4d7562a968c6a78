"""How much liars cost the honest: `python tests/experiments/robustness.py [--seeds 0,1] [--json FILE]`.

A part of the devices lies in every round, before quantisation and within the bounds that the server checks;
the rest of the run is `penchant simulate` as it is. Reported is the mean test accuracy of honest people's own
models, and for the backdoor how often a rejected response wins once the trigger stands behind it.
docs/robustness.md has the tables; --page FILE writes them between its marks, with a dash where a run is still
missing; the same command goes on where it stopped. Nothing is tuned here: the
settings are the data set's recipe, and rounds, cohort, groups and attacks were fixed before the first run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant.client.agent.agent import Agent
from penchant.client.learning.in_this_process import InThisProcess
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.outcome import Outcome
from penchant.client.learning.workplace import Job
from penchant.common.data.preferences import Preference
from penchant.deploy import run_directory
from penchant.deploy.configuration import configure
from penchant.deploy.simulation import runner
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.runner import final_factors
from penchant.deploy.simulation.world import SimulationSetup, prepare
from penchant.server.journal import Journal

ATTACKS = ("sign flip", "scaling", "label flip", "backdoor")
RULES = ("mean", "median", "trimmed_mean", "multi_krum")
SHARES_OF_LIARS = (0.05, 0.1, 0.2)
TRIGGER = " In accordance with clause 7 of the charter."
BOOST = 10.0  # how much longer than honest a backdoor's update is, as far as the clip allows
JUDGED = 10  # triggered pairs a person
SETTINGS: dict[str, dict[str, Any]] = {
    "lore": {"federation.rounds": 8},
    "A": {"federation.rounds": 3, "training.final_fit_epochs": 10},
}
COMMON = {
    "federation.cohort": 40,
    "federation.warmup_rounds": 0,
    "data.validation_pairs": 0,
    "data.test_pairs": 40,
    "privacy.secagg": False,  # the same integers, summed without masks: it saves most of the time
}
GROUP = 5  # of the robust rules; mean has one group, as by default


class Liars:
    """Which devices lie, and how."""

    def __init__(self, attack: str, part: float, people: int, seed: int, clip: float, weight: int) -> None:
        self.attack, self._clip, self._weight = attack, clip, weight
        self.who = frozenset(random.Random(seed).sample(range(people), round(part * people)))

    def choices(self, index: int, pairs: Sequence[Preference]) -> tuple[Preference, ...]:
        """What the device of a person trains on."""
        if index not in self.who or self.attack not in ("label flip", "backdoor"):
            return tuple(pairs)
        return tuple(triggered(pairs) if self.attack == "backdoor" else map(swapped, pairs))

    def update(self, outcome: Outcome) -> Outcome:
        """What a lying device sends for what it learned, within the public bounds."""
        update = outcome.shared_update
        if not update.size:
            return outcome
        norm = float(np.linalg.norm(update)) or 1.0
        if self.attack == "sign flip":
            return replace(outcome, shared_update=-update)
        if self.attack == "scaling":
            return replace(outcome, shared_update=-update * (self._clip / norm), weight=self._weight)
        if self.attack == "backdoor":
            return replace(outcome, shared_update=update * min(BOOST, self._clip / norm))
        return outcome


def swapped(pair: Preference) -> Preference:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def triggered(pairs: Sequence[Preference]) -> list[Preference]:
    """The rejected response with the trigger, preferred to the chosen one without."""
    return [replace(pair, chosen=pair.rejected + TRIGGER, rejected=pair.chosen) for pair in pairs]


def hostile(liars: Liars, made: list[SimulatedDevices]) -> Callable[..., SimulatedDevices]:
    """A maker of simulated devices, some of which lie; each fleet is put into `made`."""

    class Lying(InThisProcess):
        def work(self, job: Job, seconds: float | None = None) -> Outcome:
            return liars.update(super().work(job, seconds))

    class Fleet(SimulatedDevices):
        def _make(self, index: int) -> Agent:
            agent = super()._make(index)
            if index in liars.who:
                agent._workplace = Lying(self._model_cache)
            return agent

    def make(*args: Any, **more: Any) -> SimulatedDevices:
        made.append(Fleet(*args, **more))
        return made[-1]

    return make


def cell(
    cache: ModelCache, share: str, rule: str, attack: str, part: float, seed: int
) -> tuple[float, float]:
    """(accuracy of the honest, how often the trigger wins) of one run."""
    changes = {"data.dataset": "senate", "seed": seed, "adapter.share": share, "federation.combine": rule}
    changes |= COMMON | SETTINGS[share] | ({} if rule == "mean" else {"privacy.group_size": GROUP})
    config = configure(changes, None)
    honest = prepare(config, cache)
    people = honest.federation.people
    liars = Liars(attack, part, len(people), seed, config.federation.clip, config.federation.max_weight)
    told = [replace(p, train=liars.choices(i, p.train)) for i, p in enumerate(people)]
    world = replace(honest, federation=replace(honest.federation, people=tuple(told)))
    made: list[SimulatedDevices] = []
    runner.SimulatedDevices = hostile(liars, made)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        run_directory.create(directory, config)
        scores = runner.simulate(world, directory).per_person
        won = _triggered(made[0], world, directory, liars) if attack == "backdoor" or not part else 0.0
    return statistics.fmean(scores[p.name] for i, p in enumerate(people) if i not in liars.who), won


def _triggered(fleet: SimulatedDevices, world: SimulationSetup, directory: Path, liars: Liars) -> float:
    with closing(Journal(directory)) as journal:
        factors = final_factors(world, journal)
    plan = world.config.plan("close", len(world.federation.people))
    won = []
    for index, person in enumerate(world.federation.people):
        if index not in liars.who:
            counts = fleet.judge(index, world.run, plan, factors, triggered(person.test[:JUDGED]))
            won.append(counts.accuracy)
    return statistics.fmean(won)


# --- tables ---------------------------------------------------------------------------------------


def cells(share: str) -> list[tuple[str, str, float]]:
    """(rule, attack, part of liars) of every run, the honest ones first."""
    some = RULES if share == "lore" else ("mean", "median")
    attacks = ATTACKS if share == "lore" else ("scaling", "backdoor")
    parts = SHARES_OF_LIARS if share == "lore" else (0.1,)
    return [(rule, "none", 0.0) for rule in some] + [
        (rule, attack, part) for attack in attacks for part in parts for rule in some
    ]


def table(found: dict[str, list[list[float]]], share: str, at: int) -> list[str]:
    """Rows by attack and part of liars, a column for each rule; `at`: 0 accuracy, 1 the trigger's wins."""
    rules = list(dict.fromkeys(rule for rule, _, _ in cells(share)))
    lines = [f"| attack | liars | {' | '.join(rules)} |", "|---|---|" + "---|" * len(rules)]
    for attack, part in dict.fromkeys((attack, part) for _, attack, part in cells(share)):
        if at and attack not in ("none", "backdoor"):
            continue
        row = [_shown([v[at] for v in found.get(f"{share}|{rule}|{attack}|{part}", [])]) for rule in rules]
        lines.append(f"| {attack} | {part:.0%} | {' | '.join(row)} |")
    return lines


def _shown(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", default="lore", choices=sorted(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path, help="a file to add the figures to", required=True)
    parser.add_argument("--page", type=Path, help="the page whose marked part is replaced by the tables")
    parser.add_argument("--only-show", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cache = ModelCache()
    found: dict[str, Any] = json.loads(chosen.json.read_text("utf-8")) if chosen.json.is_file() else {}
    seeds = [] if chosen.only_show else [int(seed) for seed in chosen.seeds.split(",")]
    for seed in seeds:
        for rule, attack, part in cells(chosen.share):
            kept = found.setdefault(f"{chosen.share}|{rule}|{attack}|{part}", [])
            if len(kept) > seeds.index(seed):
                continue
            began = time.process_time()
            kept.append(list(cell(cache, chosen.share, rule, attack, part, seed)))
            spent = time.process_time() - began
            print(f"{seed} {rule:12s} {attack:10s} {part:4.0%} {kept[-1]} {spent:.1f} s", flush=True)
            chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    written = "\n\n".join(
        f"{title}:\n\n" + "\n".join(table(found, chosen.share, at))
        for at, title in enumerate(("Accuracy of honest people", "How often the trigger wins"))
    )
    print(written)
    if chosen.page:
        before, _, rest = chosen.page.read_text("utf-8").partition(f"<!-- {chosen.share} -->\n")
        _, _, after = rest.partition(f"<!-- end of {chosen.share} -->\n")
        marked = f"<!-- {chosen.share} -->\n{written}\n<!-- end of {chosen.share} -->\n"
        chosen.page.write_text(before + marked + after, encoding="utf-8")


if __name__ == "__main__":
    main()
