"""What a server finds out about single people, with noise and without: `python tests/experiments/attacks.py`.

Senate, share A. The server knows plan, factors, everybody's start, and every text that anyone may have chosen
between. It computes what a made-up person would send who prefers a text to one that is always the same, for
each text, and solves for how often each text won, minus how often it lost (least squares; with noise, matched
filters). A pair's score is that of the chosen text minus that of the rejected one. Noise is that of epsilon 8
spent on this one look; nobody drops out, and the attacker knows no share of it.

- *inversion*: which of 100 candidates is among the choices of somebody in the sum; 99 are nobody's. From one
  vector in clear, from one under a mask, and from sums over 2, 5, 20 and 100 people (all of Senate's).
- *difference*: two sums over the same people, but one; how far the difference is from that one's update and
  number of choices, and the same question.
- *party*: to which party somebody belongs, by the updates of half of the Senate, which the server knows: from
  the others' vectors in clear, under a mask, and from sums of 20 in which everybody else's party is unknown
  too. The honest plan only.

The first two under two plans: an honest one, and a hostile one that an owner's policy lets pass (fishing.py).
Intervals are of 95 %, by resampling groups. --json FILE keeps the figures; --page FILE writes the tables
between its marks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/support

from penchant.client.learning.local_round import work
from penchant.client.learning.model_cache import ModelCache
from penchant.client.learning.outcome import contribution_of
from penchant.common.config import RunConfig
from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.masks import expand
from penchant.common.data.preferences import Person, Preference
from penchant.common.secagg.update_vector import WEIGHT, Contribution, UpdateLayout
from penchant.deploy import datasets
from penchant.deploy.recipes import recipe

from fishing import SHAPED, Shaped, auc, shape, sides  # isort: skip
from marked_page import write  # isort: skip
from noised_fleet import ring_sum, signed  # isort: skip

EPSILON, DELTA = 8.0, 1e-5
PLANS: dict[str, dict[str, Any]] = {
    "honest: the recipe of share A": {},
    "hostile: one step of AdamW, an untrained head of norm 1e-08": SHAPED
    | {
        "adapter.rank": 16,
        "adapter.alpha": 16.0,
        "training.optimizer": "adamw",
        "training.lr_shared": 0.1,
        "training.lr_head": 0.0,  # the head's own step would be as long whatever people chose
    },
}
SIZES = (1, 2, 5, 20, 100)
CANDIDATES, NOBODYS = 100, 600
GROUPS, TRIALS = 10, 20  # sums of each size, and candidates' sets tried on each
SPLITS = 5  # of people into those whose party is known and others
RIDGES = {False: 1e-6, True: 1.0}  # of the mean squared norm of a text's update, without noise and with it
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Guesser:
    """Says what texts won and lost in what was seen.

    texts: text -> its row. updates: what preferring each to the last of them makes a device send, [texts, d].
    values, vectors: eigenvalues and -vectors of the updates' inner products.
    """

    texts: dict[str, int]
    updates: Matrix
    values: Matrix
    vectors: Matrix

    @classmethod
    def of(cls, shaped: Shaped, pairs: Sequence[Preference]) -> Guesser:
        texts = sorted({pair.prompt + text for pair in pairs for text in (pair.chosen, pair.rejected)})
        single = [shaped.update((Preference("", text, texts[-1]),))[0] for text in texts[:-1]]
        return cls.with_updates(texts, np.stack(single).astype(np.float64))

    @classmethod
    def with_updates(cls, texts: Sequence[str], updates: Matrix) -> Guesser:
        values, vectors = np.linalg.eigh(updates @ updates.T)
        return cls({text: row for row, text in enumerate(texts)}, updates, values, vectors)

    def wins(self, seen: Matrix, *, noised: bool) -> Matrix:
        """How much each text seems to have won in `seen` [d], [texts]; the last one's is 0."""
        ridge = RIDGES[noised] * float(np.mean(np.square(self.updates).sum(axis=1)))
        matches = self.vectors.T @ (self.updates @ seen)
        return np.append(self.vectors @ (matches / (np.maximum(self.values, 0) + ridge)), 0.0)

    def first(self, wins: Matrix, candidates: Sequence[Preference]) -> int:
        """Which of the candidates is most likely somebody's; among equals the last, so never by luck the
        first."""
        scores = [wins[self.texts[pair.chosen]] - wins[self.texts[pair.rejected]] for pair in candidates]
        return len(scores) - 1 - int(np.argmax(scores[::-1]))


@dataclass(frozen=True)
class Scene:
    """The people of one plan and what each would send, and candidates with what each alone would."""

    shaped: Shaped
    hostile: bool
    people: tuple[Person, ...]
    sent: list[Contribution]
    others: list[Preference]  # pairs that are nobody's
    guesser: Guesser

    @classmethod
    def of(cls, cache: ModelCache, plan: str, seed: int) -> Scene:
        """Everybody's first round under a plan, and candidates that are nobody's."""
        share = PLANS[plan].get("adapter.share", "A")
        config = RunConfig().changed(recipe("senate", share) | PLANS[plan])
        config = config.changed({"data.dataset": "senate", "seed": seed, "federation.warmup_rounds": 0})
        people = datasets.configured(config.data, seed).people
        shaped = shape(cache, config, plan, seed)
        draw = np.random.default_rng([seed, 1])
        guesser = Guesser.of(shaped, [pair for person in people for pair in person.train])
        sent = [contribution(shaped, person.train) for person in people]
        return cls(shaped, plan.startswith("hostile"), people, sent, decoys(people, NOBODYS, draw), guesser)

    def candidates(self, who: int, draw: np.random.Generator) -> list[Preference]:
        """One of somebody's choices, and others that are nobody's behind it."""
        own = self.people[who].train
        behind = draw.permutation(len(self.others))[: CANDIDATES - 1]
        return [own[int(draw.integers(len(own)))], *(self.others[at] for at in behind)]

    def layout(self, epsilon: float, looks: int, honest: int) -> UpdateLayout:
        """The form of vectors; with noise that spends `epsilon` on `looks` sums, of `honest` people each."""
        planned = self.shaped.planned
        plan = replace(planned.plan, cohort=max(honest, 2), group_size=1000)
        if epsilon or self.hostile:
            norms = [float(np.linalg.norm(item.update)) for item in self.sent]
            plan = replace(plan, clip=float(np.median(norms)))  # so that what people send fills their bound
        if epsilon:
            plan = replace(
                plan, dp_epsilon=epsilon, dp_delta=DELTA, dp_participations=looks, dp_honest=honest
            )
        return UpdateLayout.of(plan, planned.split)


def contribution(shaped: Shaped, pairs: Sequence[Preference]) -> Contribution:
    outcome = work(shaped.planned, shaped.shared, shaped.start, shaped.start, tuple(pairs), (), 0)
    return contribution_of(outcome, in_histogram=False)


def decoys(people: Sequence[Person], count: int, draw: np.random.Generator) -> list[Preference]:
    """Pairs of texts that people do choose between, but that nobody chose between in this pairing."""
    chosen = {sides(pair)[0] for person in people for pair in person.train}
    texts = sorted({text for key in chosen for text in key[1:]})
    found: dict[Any, Preference] = {}
    while len(found) < count:
        one, other = (texts[at] for at in draw.choice(len(texts), 2, replace=False))
        pair = Preference("", one, other)
        if sides(pair)[0] not in chosen:
            found.setdefault(sides(pair)[0], pair)
    return list(found.values())


def inversion(scene: Scene, size: int, epsilon: float, seed: int, *, masked: bool = False) -> list[float]:
    """For each of GROUPS sums, how often the first guess is the candidate that is somebody's there."""
    layout = scene.layout(epsilon, 1, size)
    rates = []
    for group in range(GROUPS):
        draw = np.random.default_rng([seed, size, group])
        entropy = SeededEntropy(seed.to_bytes(32, "big"), f"inversion {size} {group} {epsilon} {masked}")
        who = draw.permutation(len(scene.people))[:size]
        total = ring_sum(layout, [scene.sent[i] for i in who], entropy)
        if masked:
            hidden = total.astype(f"<i{layout.ring // 8}").view(f"<u{layout.ring // 8}")
            total = signed(hidden + expand(entropy.draw(32), layout.words, layout.ring), layout.ring)
        wins = scene.guesser.wins(layout.read(total, size).mean, noised=epsilon > 0)
        right = 0
        for _ in range(TRIALS):
            right += scene.guesser.first(wins, scene.candidates(int(draw.choice(who)), draw)) == 0
        rates.append(right / TRIALS)
    return rates


def difference(scene: Scene, epsilon: float, seed: int, size: int = 34) -> dict[str, list[float]]:
    """Two sums over `size` people and over all of these but one: how far off what they say of that one is."""
    layout = scene.layout(epsilon, 2, size - 1)
    found: dict[str, list[float]] = {"update": [], "direction": [], "choices": [], "identified": []}
    for group in range(GROUPS):
        draw = np.random.default_rng([seed, group])
        entropy = SeededEntropy(seed.to_bytes(32, "big"), f"difference {group} {epsilon}")
        who = [int(i) for i in draw.permutation(len(scene.people))[:size]]
        sums = [ring_sum(layout, [scene.sent[i] for i in kept], entropy) for kept in (who, who[1:])]
        update, counts = layout.quantiser.dequantise(sums[0] - sums[1])
        truth = scene.sent[who[0]]
        alone = signed(layout.quantise(truth, entropy.draw(32)), layout.ring)
        right, right_counts = layout.quantiser.dequantise(alone)
        found["update"].append(float(np.linalg.norm(update - right) / np.linalg.norm(right)))
        found["direction"].append(float(update @ right / np.linalg.norm(update) / np.linalg.norm(right)))
        found["choices"].append(abs(counts[WEIGHT] - right_counts[WEIGHT]))
        wins = scene.guesser.wins(update, noised=epsilon > 0)
        hits = sum(scene.guesser.first(wins, scene.candidates(who[0], draw)) == 0 for _ in range(TRIALS))
        found["identified"].append(hits / TRIALS)
    return found


def party(scene: Scene, epsilon: float, seed: int, size: int, *, masked: bool = False) -> list[float]:
    """The area under the curve for a person's party, for each of SPLITS splits into known and unknown."""
    layout = scene.layout(epsilon, 1, size)
    democrat = np.array([" (D " in f" {person.name}" for person in scene.people])
    updates = np.stack([item.update for item in scene.sent]).astype(np.float64)
    rates = []
    for group in range(SPLITS):
        draw = np.random.default_rng([seed, size, group])
        entropy = SeededEntropy(seed.to_bytes(32, "big"), f"party {size} {group} {epsilon} {masked}")
        order = draw.permutation(len(scene.people))
        known, unknown = order[: len(order) // 2], order[len(order) // 2 :]
        axis = discriminant(updates[known], democrat[known])
        scores = []
        for who in unknown:
            others = draw.permutation(unknown[unknown != who])[: size - 1]
            total = ring_sum(layout, [scene.sent[i] for i in (who, *others)], entropy)
            if masked:
                hidden = total.astype(f"<i{layout.ring // 8}").view(f"<u{layout.ring // 8}")
                total = signed(hidden + expand(entropy.draw(32), layout.words, layout.ring), layout.ring)
            scores.append(float(layout.read(total, size).mean @ axis))
        rates.append(auc(np.array(scores), democrat[unknown]))
    return rates


def discriminant(updates: Matrix, positive: NDArray[np.bool_]) -> Matrix:
    """The direction [d] of a ridge regression of the class on updates [n, d]."""
    centred = updates - updates.mean(axis=0)
    products = centred @ centred.T
    ridge = 0.1 * float(np.trace(products)) / len(products)
    target = np.where(positive, 1.0, -1.0)
    return np.asarray(centred.T @ np.linalg.solve(products + ridge * np.eye(len(products)), target))


# --- figures --------------------------------------------------------------------------------------

Figure = dict[str, list[float]]


def jobs(scene: Callable[[], Scene], plan: str) -> dict[str, Callable[[], Figure]]:
    """What is to be measured under a plan, by name."""
    made: dict[str, Callable[[], Figure]] = {}
    for epsilon in (0.0, EPSILON):
        end = f"|{epsilon:g}|{plan}"
        for size in SIZES:
            made[f"inversion|{size}{end}"] = lambda s=size, e=epsilon: {"top": inversion(scene(), s, e, 0)}
        made[f"difference|34{end}"] = lambda e=epsilon: difference(scene(), e, 0)
        for size in (1, 20) if plan.startswith("honest") else ():
            made[f"party|{size}{end}"] = lambda s=size, e=epsilon: {"auc": party(scene(), e, 0, s)}
    made[f"inversion|mask|0|{plan}"] = lambda: {"top": inversion(scene(), 1, 0.0, 0, masked=True)}
    if plan.startswith("honest"):
        made[f"party|mask|0|{plan}"] = lambda: {"auc": party(scene(), 0.0, 0, 1, masked=True)}
    return made


def measured(path: Path, only_show: bool) -> dict[str, Figure]:
    """All figures; those that `path` holds are not computed again."""
    found: dict[str, Figure] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    cache = ModelCache()
    for plan in PLANS:
        scenes: list[Scene] = []

        def scene(plan: str = plan, scenes: list[Scene] = scenes) -> Scene:
            if not scenes:
                scenes.append(Scene.of(cache, plan, 0))
            return scenes[0]

        for name, job in jobs(scene, plan).items():
            if name not in found and not only_show:
                found[name] = {key: [round(v, 6) for v in values] for key, values in job().items()}
                print(name, {key: shown(values) for key, values in found[name].items()}, flush=True)
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def shown(values: Sequence[float]) -> str:
    """The mean with its 95 % interval, by resampling."""
    if not values:
        return "–"
    draw = np.random.default_rng(0)
    means = np.array(values)[draw.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    digits = 3 if max(map(abs, values)) < 10 else 1
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def tables(found: dict[str, Figure]) -> list[str]:
    """All tables, in Markdown."""

    def cell(name: str, key: str) -> str:
        return shown(found.get(name, {}).get(key, []))

    plans = list(PLANS)
    ways = [(plan, epsilon) for plan in plans for epsilon in ("0", f"{EPSILON:g}")]
    head = " | ".join(
        f"{plan.partition(':')[0]}, {'no noise' if epsilon == '0' else f'ε = {epsilon}'}"
        for plan, epsilon in ways
    )
    lines = [f"| what the server sees | {head} |", "|---|" + "---|" * len(ways)]
    titles = {1: "one person's vector, in clear"} | {size: f"a sum of {size}" for size in SIZES[1:]}
    for size, title in titles.items():
        cells = [cell(f"inversion|{size}|{epsilon}|{plan}", "top") for plan, epsilon in ways]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    masks = [cell(f"inversion|mask|0|{plan}", "top") if e == "0" else "–" for plan, e in ways]
    lines.insert(3, f"| one person's vector, masked | {' | '.join(masks)} |")
    lines += ["", f"| two sums over 34 and 33 people | {head} |", "|---|" + "---|" * len(ways)]
    for key, title in {
        "update": "error of the one person's update, as a part of its norm",
        "direction": "cosine with it",
        "choices": "error of the number of choices (with noise: of whether there are any)",
        "identified": "first guess right",
    }.items():
        cells = [cell(f"difference|34|{epsilon}|{plan}", key) for plan, epsilon in ways]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    honest = plans[0]
    lines += ["", "| party, area under the curve, honest plan | no noise | ε = 8 |", "|---|---|---|"]
    for size, title in {1: titles[1], 20: titles[20]}.items():
        cells = [cell(f"party|{size}|{epsilon}|{honest}", "auc") for epsilon in ("0", f"{EPSILON:g}")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines.append(f"| one person's vector, masked | {cell(f'party|mask|0|{honest}', 'auc')} | – |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="a file to add the figures to")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-show", action="store_true", help="compute nothing")
    given = parser.parse_args()
    lines = tables(measured(given.json, given.only_show))
    print("\n".join(lines))
    if given.page:
        write(given.page, "attacks", lines)


if __name__ == "__main__":
    main()
