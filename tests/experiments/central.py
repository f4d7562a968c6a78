"""What federating costs: `python tests/experiments/central.py [--seeds 0,1,2,3,4] [--share A] [--json FILE]`.

For each seed a run of `penchant simulate --dataset senate` as it comes, and beside it joint training in one
process that may look at everybody's choices: the same people, pairs, model, start, phases (warm-up, then
personal parts) and passes over each person's pairs. In each epoch everyone comes once, in groups of a
cohort's size; a step takes the mean loss over a group's pairs, moves the shared factors by one optimiser of
the recipe's kind that lives as long as the phase, and each person's own part by one of theirs. Plain steps
are as long as a device's and the server's together, AdamW's as a device's. Its rates are the recipe's times
`--scale-shared` and `--scale-personal`, and it may take `--scale-epochs` times as many passes: choose them
with `--evaluate validation --joint-only`, since a recipe's rates are tuned for devices and server together.
Prints macro accuracy on test pairs, and the paired difference with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from penchant.common.config import Phase, RunConfig
from penchant.common.data.preferences import Person
from penchant.common.data.splits import seeded
from penchant.common.model.davidson import bradley_terry
from penchant.common.model.factors import Split, Vector
from penchant.common.model.reward import PreparedPairs
from penchant.common.shares import HEAD
from penchant.deploy import run_directory
from penchant.deploy.configuration import configure
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import SimulationSetup, prepare

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scales:
    """What the joint side's rates and passes are, beside the recipe's."""

    shared: float = 1.0
    personal: float = 1.0
    epochs: float = 1.0


class Joint:
    """Everybody's parts in one process."""

    def __init__(self, world: SimulationSetup, scales: Scales) -> None:
        self.world, self.config, self.scales = world, world.config, scales
        self.people = world.federation.people
        self.model = world.model_cache.of(self.config.plan("main", world.cohort)).model
        self.prepared: list[PreparedPairs] = [self.model.prepare(person.train) for person in self.people]
        self.steps = self.epochs = 0
        self.shared: Tensors = {}
        self.own: list[Tensors] = []

    def train(self) -> None:
        """Warm-up, if there is one, then the main phase."""
        federation = self.config.federation
        warmup, main = (self._split(phase) for phase in ("warmup", "main"))
        shared, start = main.initial(self.config.seed)
        if federation.warmup_rounds:
            self.split, self.training = warmup, self.config.plan("warmup", self.world.cohort).training
            self._phase(federation.warmup_rounds, *warmup.initial(self.config.seed))
            warm = warmup.shared.flatten(self.shared)
            shared, start = main.start_from(warmup, warm, self.config.seed)
        self.split, self.training = main, self.config.training
        self._phase(federation.rounds - federation.warmup_rounds, shared, start)

    def _split(self, phase: Phase) -> Split:
        if phase == "warmup" and not self.config.federation.warmup_rounds:
            phase = "main"
        return self.world.model_cache.of(self.config.plan(phase, self.world.cohort)).split

    def _phase(self, rounds: int, shared: Vector, start: Vector) -> None:
        """As many passes over everybody's pairs as `rounds` of a federated run take on average."""
        self.shared = self.split.shared.unflatten(shared)
        self.start = self.split.personal.unflatten(start)
        self.own = [self.split.personal.unflatten(start) for _ in self.people]
        own, shared = self.training.optimizer, self.training.shared_optimizer
        kind = own if shared == "same" else shared
        federation = self.config.federation
        plain = kind == "sgd" and federation.server_optimizer == "fedavg"
        length = federation.server_lr if plain else 1.0
        rates = self.training.lr_shared, self.training.lr_personal
        self.optimizer = self._optimizer(kind, self.shared, rates[0], length * self.scales.shared)
        self.optimizers = [self._optimizer(own, part, rates[1], self.scales.personal) for part in self.own]
        visits = rounds * self.training.local_epochs * self.world.cohort / len(self.people)
        for _ in range(round(visits * self.scales.epochs)):
            self._epoch()

    def _optimizer(
        self, kind: str, tensors: Tensors, rate: float, scale: float
    ) -> torch.optim.Optimizer | None:
        """One optimiser for these tensors; None if none of them is trained."""
        groups = []
        for name, tensor in tensors.items():
            own = scale * (self.training.lr_head if name == HEAD else rate)
            if own > 0:
                groups.append({"params": [tensor.requires_grad_()], "lr": own})
        rule = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
        return rule(groups, weight_decay=self.training.weight_decay) if groups else None

    def _epoch(self) -> None:
        order = list(range(len(self.people)))
        seeded(self.config.seed, "joint", str(self.epochs)).shuffle(order)
        groups = max(1, round(len(order) / self.world.cohort))
        for group in range(groups):
            self._step(order[group::groups])
            self.steps += 1
        self.epochs += 1

    def _step(self, group: list[int]) -> None:
        pairs = sum(len(self.prepared[person]) for person in group)
        optimizers = [o for o in (self.optimizer, *(self.optimizers[i] for i in group)) if o is not None]
        for optimizer in optimizers:
            optimizer.zero_grad()
        for person in group:
            (self._loss(person) * len(self.prepared[person]) / pairs).backward()
        for optimizer in optimizers:
            optimizer.step()

    def _loss(self, person: int) -> torch.Tensor:
        """A person's mean loss, and the pull of their part to its start."""
        own = self.own[person]
        effective = self.split.effective(self.shared, own)
        loss = bradley_terry(self.model.margins(self.prepared[person], effective)).mean()
        for name, tensor in own.items():
            loss = loss + self.training.l2_to_start / 2 * (tensor - self.start[name]).square().sum()
        return loss

    def accuracy(self) -> float:
        """Macro accuracy on the part that the configuration names."""
        return statistics.fmean(self._correct(i, person) for i, person in enumerate(self.people))

    def _correct(self, index: int, person: Person) -> float:
        pairs = person.test if self.config.data.evaluate == "test" else person.validation
        with torch.no_grad():
            effective = self.split.effective(self.shared, self.own[index])
            margins = self.model.margins(self.model.prepare(pairs), effective)
        return float((margins > 0).double().mean())


def federated(world: SimulationSetup) -> float:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        run_directory.create(directory, world.config)
        return simulate(world, directory).accuracy


def known(file: Path, share: str) -> dict[int, float]:
    """Accuracies by seed of the recipe's runs, from a comparison that results_page.py kept.

    The same runs as `federated` would make: `penchant compare` runs `penchant simulate`.
    """
    made = json.loads(file.read_text(encoding="utf-8"))
    (row,) = (row for row in made["rows"] if (row["dataset"], row["share"]) == ("senate", share))
    return dict(zip(row["seeds"], row["accuracies"], strict=True))


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
    parser.add_argument("--scale-epochs", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for the federated side")
    parser.add_argument("--federated", type=Path, help="a kept comparison with these runs on test pairs")
    parser.add_argument("--joint-only", action="store_true", help="leave the federated side out")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.federated and (chosen.set or chosen.evaluate != "test"):
        parser.error("a kept comparison has the recipes' runs on test pairs; drop --federated")
    torch.set_num_threads(1)
    made = known(chosen.federated, chosen.share) if chosen.federated else {}
    rows = []
    for seed in map(int, chosen.seeds.split(",")):
        world = prepare(configuration(chosen.share, seed, chosen.evaluate))
        began = time.monotonic()
        joint = Joint(world, Scales(chosen.scale_shared, chosen.scale_personal, chosen.scale_epochs))
        joint.train()
        row = {"seed": seed, "joint": joint.accuracy(), "steps": joint.steps, "epochs": joint.epochs}
        spent = time.monotonic() - began
        if seed in made:
            row["federated"] = made[seed]
        elif not chosen.joint_only:
            other = prepare(changed(world.config, chosen.set), world.model_cache)
            row["federated"] = federated(other)
        rows.append(row)
        figures = "  ".join(f"{k} {row[k]:.4f}" for k in ("joint", "federated") if k in row)
        print(
            f"seed {seed}: {figures}  ({joint.epochs} epochs, {joint.steps} steps, {spent:.0f} s joint)",
            flush=True,
        )
    summary = report(rows, chosen.share, chosen.evaluate)
    summary["joint_scales"] = asdict(Scales(chosen.scale_shared, chosen.scale_personal, chosen.scale_epochs))
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
