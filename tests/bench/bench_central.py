"""What federating costs: `python tests/bench/bench_central.py [--seeds 0,1,2,3,4] [--share A] [--json FILE]`.

For each seed a run of `penchant simulate --dataset senate` as it comes, and beside it joint training in one
process that may look at everybody's choices: the same people, pairs, model, start, learning rates, passes
over each person's pairs and optimiser steps. In each epoch everyone comes once, in groups of a cohort's size;
a step takes the mean loss over a group's pairs, moves the shared factors by one AdamW that lives as long as
the training, and each person's own part by one of theirs. Prints macro accuracy on test pairs, and the paired
difference with its standard error. `--evaluate validation` and `--scale-shared`, `--scale-personal` (of the
joint side's rates) are for tuning the joint side.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import tomllib
from pathlib import Path

import torch

from penchant.common.adapters import HEAD
from penchant.common.config import RunConfig
from penchant.common.preferences import Person
from penchant.common.reward import PreparedPairs, bradley_terry
from penchant.common.splits import seeded
from penchant.deploy import rundir
from penchant.deploy.cli import configure
from penchant.deploy.simulate import World, prepare, simulate

Tensors = dict[str, torch.Tensor]


class Joint:
    """Everybody's parts in one process."""

    def __init__(self, world: World, scale_shared: float, scale_personal: float) -> None:
        config = world.config
        bench = world.benches.of(config.plan("main", world.cohort))
        self.model, self.split, self.config = bench.model, bench.split, config
        self.people = world.federation.people
        self.cohort = world.cohort
        shared, personal = self.split.initial(config.seed)
        self.shared = self.split.shared.unflatten(shared)
        self.own = [self.split.personal.unflatten(personal) for _ in self.people]
        self.optimizer = self._adamw(self.shared, config.training.lr_shared, scale_shared)
        self.optimizers = [
            self._adamw(part, config.training.lr_personal, scale_personal) for part in self.own
        ]
        self.prepared: list[PreparedPairs] = [self.model.prepare(person.train) for person in self.people]

    def _adamw(self, tensors: Tensors, rate: float, scale: float) -> torch.optim.AdamW | None:
        """One optimiser for these tensors; None if none of them is trained."""
        groups = []
        for name, tensor in tensors.items():
            own = scale * (self.config.training.lr_head if name == HEAD else rate)
            if own > 0:
                groups.append({"params": [tensor.requires_grad_()], "lr": own})
        return torch.optim.AdamW(groups, weight_decay=self.config.training.weight_decay) if groups else None

    @property
    def epochs(self) -> int:
        """As many passes over a person's pairs as the federated run takes on average."""
        rounds, epochs = self.config.federation.rounds, self.config.training.local_epochs
        return round(rounds * epochs * self.cohort / len(self.people))

    def train(self) -> int:
        """All epochs; -> steps taken."""
        steps = 0
        for epoch in range(self.epochs):
            order = list(range(len(self.people)))
            seeded(self.config.seed, "joint", str(epoch)).shuffle(order)
            groups = max(1, round(len(order) / self.cohort))
            for group in range(groups):
                self._step(order[group::groups])
                steps += 1
        return steps

    def _step(self, group: list[int]) -> None:
        pairs = sum(len(self.prepared[person]) for person in group)
        optimizers = [o for o in (self.optimizer, *(self.optimizers[i] for i in group)) if o is not None]
        for optimizer in optimizers:
            optimizer.zero_grad()
        for person in group:
            effective = self.split.effective(self.shared, self.own[person])
            (bradley_terry(self.model.margins(self.prepared[person], effective)).sum() / pairs).backward()
        for optimizer in optimizers:
            optimizer.step()

    def accuracy(self) -> float:
        """Macro accuracy on the part that the configuration names."""
        return statistics.fmean(self._correct(i, person) for i, person in enumerate(self.people))

    def _correct(self, index: int, person: Person) -> float:
        pairs = person.test if self.config.data.evaluate == "test" else person.validation
        with torch.no_grad():
            effective = self.split.effective(self.shared, self.own[index])
            margins = self.model.margins(self.model.prepare(pairs), effective)
        return float((margins > 0).double().mean())


def federated(world: World) -> float:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        rundir.create(directory, world.config)
        return float(simulate(world, directory)["accuracy"]["personal"])


def configuration(share: str, seed: int, evaluate: str) -> RunConfig:
    flags = {"data.dataset": "senate", "adapter.share": share, "seed": seed, "data.evaluate": evaluate}
    return configure(flags, None)


def changed(config: RunConfig, settings: list[str]) -> RunConfig:
    """`config` with settings as in TOML, "training.lr_shared=0.1"."""
    pairs = (setting.split("=", 1) for setting in settings)
    return config.changed({key: tomllib.loads(f"value = {value}")["value"] for key, value in pairs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--share", default="A")
    parser.add_argument("--evaluate", choices=("test", "validation"), default="test")
    parser.add_argument("--scale-shared", type=float, default=1.0)
    parser.add_argument("--scale-personal", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for the federated side")
    parser.add_argument("--joint-only", action="store_true", help="leave the federated side out")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in map(int, chosen.seeds.split(",")):
        world = prepare(configuration(chosen.share, seed, chosen.evaluate))
        began = time.monotonic()
        joint = Joint(world, chosen.scale_shared, chosen.scale_personal)
        steps = joint.train()
        row = {"seed": seed, "joint": joint.accuracy(), "steps": steps, "epochs": joint.epochs}
        spent = time.monotonic() - began
        if not chosen.joint_only:
            other = prepare(changed(world.config, chosen.set), world.benches)
            row["federated"] = federated(other)
        rows.append(row)
        figures = "  ".join(f"{k} {row[k]:.4f}" for k in ("joint", "federated") if k in row)
        print(
            f"seed {seed}: {figures}  ({joint.epochs} epochs, {steps} steps, {spent:.0f} s joint)", flush=True
        )
    summary = report(rows, chosen.share, chosen.evaluate)
    if chosen.json:
        chosen.json.write_text(json.dumps({**summary, "seeds": rows}, indent=2) + "\n", encoding="utf-8")


def report(rows: list[dict[str, float]], share: str, part: str) -> dict[str, object]:
    summary: dict[str, object] = {"dataset": "senate", "share": share, "evaluated_on": part}
    for side in ("joint", "federated"):
        values = [row[side] for row in rows if side in row]
        if values:
            summary[side] = {"mean": statistics.fmean(values), "se": standard_error(values)}
            print(f"{side:10s} {statistics.fmean(values):.4f} ± {standard_error(values):.4f}")
    gaps = [row["federated"] - row["joint"] for row in rows if "federated" in row]
    if gaps:
        summary["difference"] = {"mean": statistics.fmean(gaps), "se": standard_error(gaps)}
        print(f"difference {statistics.fmean(gaps):+.4f} ± {standard_error(gaps):.4f} (federated - joint)")
    return summary


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
