"""What heads on the frozen embedding do elsewhere: `python tests/experiments/own_data.py --json FILE`.

One head for all, LoRe's basis, and both (share `common`) with several settings, on the earlier three
quarters of each set's items: the last quarter, on which anybody is tested, is not read. A round is computed
for a whole cohort at once, without devices, masks and messages, so that a run takes seconds; it follows
`penchant simulate` in everything else, but for the draws of cohorts.

--race does something else: it lets the heads among the candidates of `penchant simulate --auto` race by their
counts of held-out choices, by the server's own rule, and says how the winner and the others do in the end.

--depths asks how deep to read: the same heads on the states after each block of the base model, and on those
after two blocks side by side, with 20 training pairs a person at most, and with 200; and beside them
what somebody ranks right who learns nothing and takes the longer of two texts.

--sets: `senate`, `jester` and `arguments`; the last two need --data FOLDER, in which each has a folder of its
name. --depths has three more: `alike-10`, `alike-50` and `alike-90`, made-up people as those of
anyones_data.py, but others. The same command goes on where it stopped. --page FILE writes the table between
its marks. --only-show runs nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from penchant.client.learning.blend import BLENDS
from penchant.client.learning.chosen import CHANCE, chance_of
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Person, Preference
from penchant.deploy import datasets
from penchant.deploy.simulation.race import _heats
from penchant.server.journal import RoundLog
from penchant.server.standing import going_on, standing
from penchant.server.stopping import ends_with

from anyones_data import LONGER, MADE_UP, SIZES, agreement_of, longer  # isort: skip
from many_people import taught  # isort: skip

PAST = 0.75  # of all items; what follows is the test part of everybody
SETS = {"senate": (0, 101), "arguments": (0, 250), "jester": (400, 250)}  # people drawn, people used
LEAST = {"arguments": 3}  # training pairs
OTHERS = 100  # added to the seeds of made-up people
MARKS = re.compile(r"(<!-- own data -->\n).*?(<!-- end -->)", re.S)
Parts = tuple[Tensor, Tensor]  # differences of embeddings [people, pairs, d], and which pairs there are


@dataclass(frozen=True)
class Setting:
    """One rule with its settings.

    rank 0: no basis; common False: no head for all; spread: of the weights, inf for no prior; stop: as
    `federation.stop_after`.
    """

    common: bool = True
    rank: int = 0
    lr_head: float = 3e-3
    lr_basis: float = 3e-3
    spread: float = 0.1
    stop: int = 0


SETTINGS = {
    "LoRe's basis": Setting(common=False, rank=2, spread=math.inf),
    "LoRe's basis, rate .01": Setting(common=False, rank=2, spread=math.inf, lr_basis=1e-2),
    "one head for all": Setting(),
    "one head for all, rate .01": Setting(lr_head=1e-2),
    "both, rank 2, spread .3": Setting(rank=2, spread=0.3),
    "both, rank 4, spread .3": Setting(rank=4, spread=0.3),
    "both, rank 8, spread 1": Setting(rank=8, lr_head=1e-3, spread=1.0),
    "both, rank 4": Setting(rank=4),
    "both, rank 4, spread .03": Setting(rank=4, spread=0.03),
    "both, rank 4, rates .001 and .01": Setting(rank=4, lr_head=1e-3, lr_basis=1e-2),
    "both, rank 8": Setting(rank=8),
    "both, rank 8, rates .01": Setting(rank=8, lr_head=1e-2, lr_basis=1e-2),
}
SETTINGS |= {f"{name}, stops": replace(setting, stop=8) for name, setting in SETTINGS.items()}
RACE = {
    "common": SETTINGS["both, rank 4, stops"],
    "common-fast": Setting(rank=4, lr_head=1e-2, lr_basis=1e-2, stop=8),
    "lore": Setting(common=False, rank=4, spread=math.inf, lr_basis=1e-2, stop=8),
}
"""Those candidates of a race that are heads on the frozen embedding, the cheapest first."""
RACE_MARKS = re.compile(r"(<!-- own race -->\n).*?(<!-- end -->)", re.S)
BLOCKS = (
    (6,),
    (5,),
    (4,),
    (3,),
    (2,),
    (3, 6),
)  # of --depths: after which blocks of the base model states are read
PAIRS = (20, 200)  # and training pairs at most
DEEP = ("one head for all, stops", "LoRe's basis, rate .01, stops", "both, rank 4, stops")
DEEP_MARKS = re.compile(r"(<!-- own depths -->\n).*?(<!-- end -->)", re.S)
ROUNDS, EPOCHS, FINAL, LR_PERSONAL, LR_FINAL = 30, 6, 30, 1e-2, 1e-2  # the defaults


# --- data -------------------------------------------------------------------------------------------------


def people_of(name: str, folder: Path | None, seed: int, pairs: int = 20) -> tuple[Person, ...]:
    """The people of one set's past; of made-up ones, others than are tested on anywhere, with 20 pairs."""
    if (agreement := agreement_of(name)) is not None:
        return taught(MADE_UP, SIZES, OTHERS + seed, agreement).people
    source = name if name == "senate" else f"{name}:{folder / name}" if folder else ""
    if not source:
        raise SystemExit(f"{name} needs --data FOLDER, which holds a folder {name}")
    drawn, used = SETS[name]
    asked = {"data.dataset": source, "data.time_cutoff": PAST, "data.clients": drawn, "seed": seed}
    asked |= {"data.pairs": pairs}
    people = datasets.configured(RunConfig().changed(asked).data, seed).people
    return tuple(one for one in people if len(one.train) >= LEAST.get(name, 1))[:used]


class Embeddings:
    """Differences of texts' embeddings; each text is embedded once, and kept in half precision.

    blocks: how many of the base model's are used; 0 for all. Of several numbers, the embeddings of each stand
    side by side, and all of them together have the usual length.
    """

    def __init__(self, *blocks: int) -> None:
        config = RunConfig().changed({"adapter.share": "lore"})
        deep = [replace(config.model, blocks=one) for one in blocks]
        self._models = [ModelCache().model(one, config.adapter) for one in deep]
        self._length = config.model.normalize / math.sqrt(len(blocks))
        self._known: dict[tuple[str, str], Tensor] = {}

    def part(self, pairs: Sequence[Sequence[Preference]]) -> Parts:
        """One part of everybody's pairs."""
        found = torch.zeros(len(pairs), max(map(len, pairs)), sum(one.embedding for one in self._models))
        there = torch.zeros(found.shape[:2])
        for row, own in enumerate(pairs):
            for place, one in enumerate(own):
                found[row, place] = self._of(one.prompt, one.chosen) - self._of(one.prompt, one.rejected)
                there[row, place] = 1
        return found, there

    def _of(self, prompt: str, response: str) -> Tensor:
        key = (prompt, response)
        if key not in self._known:
            each = [normalize(one.prepare_texts([key]).packed, dim=1)[0] for one in self._models]
            self._known[key] = (torch.cat(each) * self._length).half()
        return self._known[key].float()


# --- one run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """Head [d], basis [r, d], logarithm of spread / start, and everybody's weights [people, r]."""

    head: Tensor
    basis: Tensor
    log_spread: float
    weights: Tensor

    def of(self, people: Tensor) -> dict[str, Tensor]:
        """Each person's own copy, [people, …]."""
        count = len(people)
        return {
            "head": self.head.expand(count, -1),
            "basis": self.basis.expand(count, -1, -1),
            "weights": self.weights[people],
        }


def margins(pairs: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    scored = own["head"] + torch.einsum("cr,cre->ce", own["weights"], own["basis"])
    return torch.einsum("cne,ce->cn", pairs, scored)


def right(part: Parts, own: Mapping[str, Tensor]) -> Tensor:
    """Which pairs are ranked right, [people, pairs]."""
    with torch.no_grad():
        return (margins(part[0], own) > 0) * part[1]


@dataclass
class Adam:
    """AdamW without decay, fresh in every round, for many people at once."""

    rates: Mapping[str, float]
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def step(self, own: dict[str, Tensor], part: Parts, spread: float) -> None:
        """One step on everybody's mean loss and the prior of the weights; what has a rate moves, in place."""
        trained = {name: own[name].detach().requires_grad_() for name in self.rates}
        count = part[1].sum(1)
        loss = -(logsigmoid(margins(part[0], own | trained)) * part[1]).sum(1) / count
        if "weights" in trained and math.isfinite(spread):
            loss = loss + trained["weights"].square().sum(1) / (2 * spread**2) / count
        gradients = torch.autograd.grad(loss.sum(), list(trained.values()))
        self.steps += 1
        for (name, tensor), gradient in zip(trained.items(), gradients, strict=True):
            first = self.first.get(name, torch.zeros_like(tensor)) * 0.9 + 0.1 * gradient
            second = self.second.get(name, torch.zeros_like(tensor)) * 0.999 + 0.001 * gradient.square()
            self.first[name], self.second[name] = first, second
            scale = (second / (1 - 0.999**self.steps)).sqrt() + 1e-8
            own[name] = tensor.detach() - self.rates[name] * first / (1 - 0.9**self.steps) / scale


def vote(model: Model, people: Tensor, held_out: Parts, weight: Tensor) -> float:
    """How far a cohort moves the logarithm of the spread."""
    own = model.of(people)
    scale = torch.zeros(len(people), requires_grad=True)
    scaled = own | {"weights": own["weights"] * scale.exp()[:, None]}
    gain = torch.autograd.grad((logsigmoid(margins(held_out[0], scaled)) * held_out[1]).sum(), scale)[0]
    return float((0.5 * gain.clamp(-1, 1) * weight).sum())


def ended(setting: Setting, counts: Sequence[tuple[float, float]]) -> int | None:
    """The round that a run ends with, which the server decides by the same rule."""
    config = RunConfig().changed({"federation.stop_after": setting.stop, "adapter.share": "common"})
    return ends_with(config, [measured(at, *both) for at, both in enumerate(counts, 1)])


def measured(number: int, right: float, judged: float, people: int = 0) -> RoundLog:
    """What a round measured; nothing else of it is known here."""
    return RoundLog(number, 1, "main", people, people, {}, 0.0, 0, 0, 0, None, right / judged, None, 0.0,
                    judged=int(judged))  # fmt: skip


def spread_of(setting: Setting, model: Model) -> float:
    return setting.spread * math.exp(min(max(model.log_spread, -math.log(20)), math.log(20)))


def run(
    setting: Setting,
    train: Parts,
    held_out: Parts,
    test: Parts,
    seed: int,
    seen_counts: list[tuple[float, float]] | None = None,
) -> dict[str, float]:
    """Accuracies, mean over people: own models, after blending, and the model for all.

    seen_counts: takes each round's counts of held-out choices, those ranked right and those judged.
    """
    draws = torch.Generator().manual_seed(seed)
    people, width = len(train[0]), train[0].shape[2]
    basis = (torch.rand(setting.rank, width, generator=draws) * 2 - 1) / math.sqrt(width)
    model = Model(torch.zeros(width), basis, 0.0, torch.zeros(people, setting.rank))
    rates = {"head": setting.lr_head} if setting.common else {}
    rates |= {"basis": setting.lr_basis, "weights": LR_PERSONAL} if setting.rank else {}
    states: list[Model] = []
    counts: list[tuple[float, float]] = []
    for number in range(ROUNDS + 1):
        cohort = torch.randperm(people, generator=draws)[: max(-(-people // 3), min(people, 10))]
        seen = held_out[0][cohort], held_out[1][cohort]
        counts.append((float(right(seen, model.of(cohort)).sum()), float(seen[1].sum())))
        states.append(model)
        if ended(setting, counts) is not None:
            break
        if number < ROUNDS:
            model = trained(setting, model, cohort, (train[0][cohort], train[1][cohort]), seen, rates)
    if seen_counts is not None:
        seen_counts += counts
    best = ended(setting, counts)
    if best is not None:
        model = replace(states[best], weights=model.weights)
    own = model.of(torch.arange(people))
    if setting.rank:
        adam = Adam({"weights": LR_FINAL})
        for _ in range(FINAL):
            adam.step(own, train, spread_of(setting, model))
    kept = own | {"weights": own["weights"] * blends(own, held_out)[:, None]}
    nobody = own | {"weights": own["weights"] * 0}
    scores = {"own": own, "blended": kept, "population": nobody}
    found = {name: float((right(test, one).sum(1) / test[1].sum(1)).mean()) for name, one in scores.items()}
    return found | {"rounds": len(states) - 1}


def trained(
    setting: Setting, model: Model, cohort: Tensor, part: Parts, seen: Parts, rates: Mapping[str, float]
) -> Model:
    """The model after one round."""
    weight = part[1].sum(1) / part[1].sum()
    moved = model.log_spread
    if setting.rank and math.isfinite(setting.spread):
        moved = min(max(moved + vote(model, cohort, seen, weight), -math.log(20)), math.log(20))
    own, adam = model.of(cohort), Adam(rates)
    for _ in range(EPOCHS):
        adam.step(own, part, spread_of(setting, model))
    weights = model.weights.clone()
    weights[cohort] = own["weights"]
    head = model.head + torch.einsum("c,ce->e", weight, own["head"] - model.head)
    basis = model.basis + torch.einsum("c,cre->re", weight, own["basis"] - model.basis)
    return Model(head, basis, moved, weights)


def blends(own: Mapping[str, Tensor], held_out: Parts) -> Tensor:
    """The part of everybody's weights that held-out choices leave, [people]."""
    tried = [right(held_out, {**own, "weights": own["weights"] * part}).bool() for part in BLENDS]
    kept = torch.ones(len(own["weights"]))
    for person in range(len(kept)):
        rows = [one[person] for one in tried]
        best = max(range(len(BLENDS)), key=lambda at: (int(rows[at].sum()), -at))
        ahead, behind = int((rows[best] & ~rows[0]).sum()), int((rows[0] & ~rows[best]).sum())
        if chance_of(ahead, behind) <= CHANCE:
            kept[person] = BLENDS[best]
    return kept


# --- a race -----------------------------------------------------------------------------------------------


def raced(counts: Mapping[str, Sequence[tuple[float, float]]], people: int, cohort: int) -> str:
    """Who wins by these counts, as in deploy/simulation/race.py."""
    config = RunConfig().changed({"federation.stop_after": 8, "adapter.share": "common"})
    left = list(counts)
    for heat in _heats(len(left), ROUNDS, cohort, people):
        standings = []
        for name in left:
            seen = enumerate(counts[name][: heat.rounds], 1)
            logs = [measured(at, *both, cohort) for at, both in seen]
            standings.append(standing(config, logs, people))
        left = [left[place] for place in going_on(standings, heat.stay)]
    return left[0]


def race(train: Parts, held_out: Parts, test: Parts, seed: int) -> dict[str, Any]:
    """Every candidate's accuracy in the end, and which of them a race would have chosen."""
    counts: dict[str, list[tuple[float, float]]] = {name: [] for name in RACE}
    found: dict[str, Any] = {}
    for name, setting in RACE.items():
        found[name] = round(run(setting, train, held_out, test, seed, counts[name])["blended"], 4)
    people = len(train[0])
    return found | {"chosen": raced(counts, people, max(-(-people // 3), min(people, 10)))}


def race_table(done: Mapping[str, Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]) -> str:
    """In Markdown: accuracies, mean over seeds; how often each was chosen."""
    lines = [f"| past of | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    rows = {name: [done[key] for seed in seeds if (key := f"{name} {seed} race") in done] for name in names}

    def line(label: str, cell: Callable[[Sequence[Mapping[str, Any]]], str]) -> None:
        lines.append(f"| {label} | {' | '.join(cell(rows[name]) if rows[name] else '–' for name in names)} |")

    def wins(found: Sequence[Mapping[str, Any]], candidate: str) -> int:
        return sum(one["chosen"] == candidate for one in found)

    def said(candidate: str, found: Sequence[Mapping[str, Any]]) -> str:
        mean = statistics.fmean(one[candidate] for one in found)
        return f"{mean:.3f}, {wins(found, candidate)} of {len(found)}"

    for candidate in RACE:
        line(f"`{candidate}`, times chosen", functools.partial(said, candidate))
    line("the race's choice", lambda found: f"{statistics.fmean(one[one['chosen']] for one in found):.3f}")
    line(
        "the best of each seed",
        lambda found: f"{statistics.fmean(max(one[c] for c in RACE) for one in found):.3f}",
    )
    return "\n".join(lines) + "\n"


# --- depths -----------------------------------------------------------------------------------------------


def parts_of(people: Sequence[Person], embeddings: Embeddings) -> tuple[Parts, Parts, Parts]:
    """Training, held-out and test pairs of everybody."""
    kinds = ("train", "validation", "test")
    train, held_out, test = (embeddings.part([getattr(one, kind) for one in people]) for kind in kinds)
    return train, held_out, test


def depths(
    done: dict[str, Any], names: Sequence[str], seeds: Sequence[int], given: argparse.Namespace
) -> None:
    """Run what is missing of every depth, and add it to `done`."""
    for blocks, name, seed, pairs in itertools.product(BLOCKS, names, seeds, PAIRS):
        if pairs > SIZES.pairs and agreement_of(name) is not None:
            continue
        wanted = {f"{name} {seed} {_said(blocks)} {pairs} {label}": SETTINGS[label] for label in DEEP}
        if not wanted.keys() <= done.keys():
            parts = parts_of(people_of(name, given.data, seed, pairs), embedded_after(*blocks))
            for key, setting in wanted.items():
                done[key] = {k: round(v, 4) for k, v in run(setting, *parts, seed).items()}
                print(key, done[key], flush=True)
            keep(done, given.json)
    for name, seed in itertools.product(names, seeds):
        if (key := f"{name} {seed} {LONGER}") not in done:
            done[key] = {"accuracy": round(longer(people_of(name, given.data, seed)), 4)}
            keep(done, given.json)


@functools.lru_cache(1)
def embedded_after(*blocks: int) -> Embeddings:
    """The embeddings of one depth, or of several side by side."""
    return Embeddings(*blocks)


def _said(blocks: Sequence[int]) -> str:
    return " and ".join(map(str, blocks))


def depth_table(done: Mapping[str, Mapping[str, float]], names: Sequence[str], seeds: Sequence[int]) -> str:
    """In Markdown: after blending, mean over seeds, with 20 pairs and with 200; and who learns nothing."""
    lines = [f"| blocks, rule | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, blocks in itertools.product(DEEP, BLOCKS):
        cells = []
        for name in names:
            found = [
                [
                    one["blended"]
                    for seed in seeds
                    if (one := done.get(f"{name} {seed} {_said(blocks)} {pairs} {label}"))
                ]
                for pairs in PAIRS
            ]
            means = [f"{statistics.fmean(own):.3f}" for own in found if own]
            cells.append(", ".join(means) or "–")
        lines.append(f"| {_said(blocks)}, {label.removesuffix(', stops')} | {' | '.join(cells)} |")
    cells = []
    for name in names:
        seen = [one["accuracy"] for seed in seeds if (one := done.get(f"{name} {seed} {LONGER}"))]
        cells.append(f"{statistics.fmean(seen):.3f}" if seen else "–")
    lines.append(f"| {LONGER} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# --- all of them ------------------------------------------------------------------------------------------


def table(done: Mapping[str, Mapping[str, float]], names: Sequence[str], seeds: Sequence[int]) -> str:
    """In Markdown: after blending, mean over seeds; in brackets the model for all."""
    lines = [f"| past of | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, setting in SETTINGS.items():
        cells = []
        for name in names:
            found = [one for seed in seeds if (one := done.get(f"{name} {seed} {label}"))]
            own = f"{statistics.fmean(one['blended'] for one in found):.3f}" if found else "–"
            both = found and setting.common and setting.rank
            cells.append(own + (f" ({statistics.fmean(o['population'] for o in found):.3f})" if both else ""))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def keep(done: Mapping[str, Any], path: Path) -> None:
    """Write the runs that are done."""
    path.write_text(json.dumps(done, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--data", type=Path, help="the folder that holds arguments and jester")
    parser.add_argument("--json", type=Path, required=True, help="a file to add the runs to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--race", action="store_true")
    parser.add_argument("--depths", action="store_true")
    parser.add_argument("--only-show", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names, seeds = given.sets.split(","), [int(seed) for seed in given.seeds.split(",")]
    done: dict[str, Any] = json.loads(given.json.read_text("utf-8")) if given.json.exists() else {}
    if given.depths and not given.only_show:
        depths(done, names, seeds, given)
    for name in names if not (given.only_show or given.depths) else ():
        for seed in seeds:
            wanted = {f"{name} {seed} {label}": setting for label, setting in SETTINGS.items()}
            if given.race:
                wanted = {f"{name} {seed} race": Setting()}
            if wanted.keys() <= done.keys():
                continue
            train, held_out, test = parts_of(people_of(name, given.data, seed), embedded_after(0))
            for key, setting in wanted.items():
                if key not in done:
                    done[key] = (
                        race(train, held_out, test, seed)
                        if given.race
                        else {k: round(v, 4) for k, v in run(setting, train, held_out, test, seed).items()}
                    )
                    keep(done, given.json)
                    print(key, done[key], flush=True)
    text = (race_table if given.race else depth_table if given.depths else table)(done, names, seeds)
    print(text)
    if given.page:
        before = given.page.read_text(encoding="utf-8")
        marks = RACE_MARKS if given.race else DEEP_MARKS if given.depths else MARKS
        given.page.write_text(marks.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")


if __name__ == "__main__":
    main()
