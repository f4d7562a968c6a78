"""What bounds a model of Senate: `python tests/bench/bench_ceiling.py [--seeds 0,1,2,3,4] [--json FILE]`.

Oracles that keep nothing private, judged on the very pairs on which `penchant simulate --dataset senate`
judges everybody:

- *all votes*: sees how everybody voted on every roll call of the training part (some 300 votes a person
  instead of 20 pairs), in one place. The votes' first directions are read off the frozen embedding of the
  roll calls' texts by ridge regression. How many directions, tokens and how much ridge: chosen on the
  validation roll calls. What is missing from here to 1 is what the texts, as the backbone reads them, don't
  say of roll calls that are yet to come.
- *all choices*: sees everybody's 20 pairs in one place, those that the federation learns from, and fits the
  low-rank model on the frozen embedding to the optimum of its penalised likelihood. *Last block* goes on from
  there and trains all weights of the backbone's last block as well. *Two depths* puts the states above an
  earlier block beside the last block's. Penalty, directions, tokens, when to stop and which block: by
  validation.
- *known positions*: sees the votes on the test roll calls themselves and keeps their first k directions: the
  most that any model of rank k could reach, had it understood the texts completely.

Prints macro accuracy on test pairs, mean and standard error over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penchant.common.adapters import Effective
from penchant.common.backbone import load_backbone
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.preferences import Federation, Preference
from penchant.common.reward import bradley_terry, load_reward_model
from penchant.common.splits import split_items
from penchant.deploy import datasets
from penchant.deploy.datasets import senate

Matrix = NDArray[np.float64]
Setting = tuple[int, float, int]  # tokens, ridge, directions
T = TypeVar("T")
Curve = list[tuple[float, float]]  # accuracy on validation and on test

TOKENS = (16, 24, 64)
RIDGES = (0.1, 0.3, 1.0, 3.0)
DIRECTIONS = (1, 2, 4)
DEEPER = {"rate": 1e-4, "steps": 24, "look": 2}  # of the last block: AdamW, all choices at once


class Votes:
    """Votes on contested roll calls, by part: [roll calls, people], yea 1, nay -1, neither 0."""

    def __init__(self) -> None:
        data = senate.read()
        contested = data.contested()
        parts = split_items(contested)
        self.items = {
            part: [item for item in contested if parts.part_of[item] == part]
            for part in ("train", "validation", "test")
        }
        self.texts = {item: senate.worded(data.roll_calls[item]) for item in contested}
        self.people = {name: column for column, name in enumerate(data.people)}
        signs = {"+": 1.0, "-": -1.0, ".": 0.0}
        self.of = {
            part: np.array([[signs[line[item]] for line in data.votes] for item in items])
            for part, items in self.items.items()
        }

    def texts_of(self, part: str) -> list[str]:
        return [self.texts[item] for item in self.items[part]]


def directions(votes: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """(roll calls' positions [n, k], people's weights [k, people]): the first singular vectors of the votes
    about each person's mean."""
    cast = votes != 0
    means = votes.sum(0) / np.maximum(cast.sum(0), 1)
    left, values, right = np.linalg.svd(np.where(cast, votes - means, 0.0), full_matrices=False)
    return left[:, :count] * values[:count], right[:count]


def ridge(x: Matrix, y: Matrix, strength: float) -> Callable[[Matrix], Matrix]:
    """The linear map x [n, d] -> y [n, k] with an L2 penalty, through the kernel [n, n]."""
    mean = x.mean(0)
    centred = x - mean
    dual = np.linalg.solve(centred @ centred.T + strength * np.eye(len(x)), y)
    return lambda z: (z - mean) @ (centred.T @ dual)


def embeddings(texts: Sequence[str], tokens: int) -> Matrix:
    """The frozen backbone's, pooled and of length 1: [n, d]."""
    model = load_reward_model(
        ModelConfig(max_tokens=tokens, truncation="right"), AdapterConfig(share="lore"), device="cpu"
    )
    prepared = model.prepare_texts([("", text) for text in texts])
    pooled = model.tail.embed(prepared.packed, Effective({}, torch.empty(0))).double()
    return np.asarray(torch.nn.functional.normalize(pooled, dim=1).numpy())


def accuracy(scores: Matrix, votes: Votes, part: str, federation: Federation) -> float:
    """Macro accuracy of scores [roll calls of the part, people] on everybody's pairs; a tie is wrong."""
    row = {text: scores[i] for i, text in enumerate(votes.texts_of(part))}

    def correct(name: str, pairs: Sequence[Preference]) -> float:
        column = votes.people[name]
        return statistics.fmean(row[pair.chosen][column] > row[pair.rejected][column] for pair in pairs)

    people = federation.people
    return statistics.fmean(correct(p.name, p.test if part == "test" else p.validation) for p in people)


def all_votes(votes: Votes, federations: Sequence[Federation]) -> dict[str, Any]:
    """The first oracle: its settings from validation, then its accuracy of each seed on test pairs."""
    x = {
        tokens: {part: embeddings(votes.texts_of(part), tokens) for part in votes.items} for tokens in TOKENS
    }

    def scores(tokens: int, strength: float, count: int, part: str) -> Matrix:
        positions, weights = directions(votes.of["train"], count)
        return ridge(x[tokens]["train"], positions, strength)(x[tokens][part]) @ weights

    def on(part: str, setting: tuple[int, float, int]) -> list[float]:
        return [accuracy(scores(*setting, part), votes, part, federation) for federation in federations]

    best = max(
        itertools.product(TOKENS, RIDGES, DIRECTIONS), key=lambda s: statistics.fmean(on("validation", s))
    )
    chosen = dict(zip(("tokens", "ridge", "directions"), best, strict=True))
    return {"oracle": "all votes", **chosen, "validation": on("validation", best), "test": on("test", best)}


def read(texts: Sequence[str], tokens: int) -> tuple[Any, Tensor, Sequence[Tensor]]:
    """(last block, mask [n, L], states [n, L, d] below the first block and above each)"""
    backbone = load_backbone(ModelConfig(max_tokens=tokens), device="cpu")
    backbone.tokenizer.truncation_side = "right"
    settings = {"truncation": True, "max_length": tokens, "padding": True, "return_tensors": "pt"}
    encoded = backbone.tokenizer(list(texts), **settings)
    with torch.no_grad():
        states = backbone.model(**encoded, output_hidden_states=True).hidden_states
    return backbone.blocks[1][-1], encoded["attention_mask"], states


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """[n, L, d] -> [n, d]"""
    weights = mask[:, :, None].float()
    return (states * weights).sum(1) / weights.sum(1)


class Reader:
    """Texts -> embeddings [n, d] of length 1, with all weights of the last block in training."""

    def __init__(self, texts: Sequence[str], tokens: int) -> None:
        self._block, self._mask, states = read(texts, tokens)
        self._below = states[-2]  # [n, L, d]
        self.weights = [weight.requires_grad_() for weight in self._block.parameters()]

    def __call__(self) -> Tensor:
        hidden = (1.0 - self._mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        states = self._block(self._below, attention_mask=hidden)
        states = states[0] if isinstance(states, tuple) else states  # [n, L, d]
        return torch.nn.functional.normalize(pooled(states, self._mask), dim=1)


@dataclass(frozen=True)
class Choices:
    """Whom (`person`) what pleased more: text `better` to text `worse`; [m] each, rows of texts."""

    person: Tensor
    better: Tensor
    worse: Tensor

    @classmethod
    def of(cls, votes: Votes, federation: Federation, rows: dict[str, int]) -> Choices:
        found = [
            (votes.people[person.name], rows[pair.chosen], rows[pair.rejected])
            for person in federation.people
            for pair in person.train
        ]
        return cls(*torch.tensor(found).T)


class LowRank:
    """Reward of text x for person i: ⟨e(x) U, w_i⟩; U [d, k] and w [people, k] at the optimum of the
    likelihood with Gaussian priors."""

    def __init__(self, width: int, people: int, directions: int, penalty: float) -> None:
        draw = torch.Generator().manual_seed(0)
        self.basis = (0.05 * torch.randn(width, directions, generator=draw)).requires_grad_()
        self.weights = (0.3 * torch.randn(people, directions, generator=draw)).requires_grad_()
        self._penalty = penalty

    def scores(self, embedded: Tensor) -> Tensor:
        """[texts, people]"""
        return embedded @ self.basis @ self.weights.T

    def losses(self, embedded: Tensor, choices: Choices) -> Tensor:
        """Negative log-likelihood [m] of the choices."""
        places = embedded @ self.basis  # [texts, k]
        apart = places[choices.better] - places[choices.worse]
        return bradley_terry((apart * self.weights[choices.person]).sum(1))

    def fit(self, embedded: Tensor, choices: Choices) -> None:
        """To the optimum, by L-BFGS, the embedding left as it is."""
        parts = [self.basis, self.weights]
        optimizer = torch.optim.LBFGS(parts, max_iter=150, line_search_fn="strong_wolfe")

        def closure() -> float:
            optimizer.zero_grad()
            penalty = self._penalty * self.basis.square().sum() + self.weights.square().sum()
            loss = self.losses(embedded, choices).sum() + penalty / 2
            loss.backward()
            return loss.item()

        optimizer.step(closure)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Case:
    """What one seed's people are judged on, and what is learned from."""

    votes: Votes
    federation: Federation

    @property
    def texts(self) -> list[str]:
        return [text for part in self.votes.items for text in self.votes.texts_of(part)]

    @property
    def choices(self) -> Choices:
        return Choices.of(self.votes, self.federation, {text: row for row, text in enumerate(self.texts)})

    def judged(self, model: LowRank, embedded: Tensor) -> tuple[float, float]:
        """Accuracy on (validation, test)."""
        sizes = [len(items) for items in self.votes.items.values()]
        scores = np.split(model.scores(embedded).detach().double().numpy(), np.cumsum(sizes)[:-1])
        parts = dict(zip(self.votes.items, scores, strict=True))
        validation, test = (
            accuracy(parts[part], self.votes, part, self.federation) for part in ("validation", "test")
        )
        return validation, test


def frozen(case: Case, embedded: Tensor, ridge: float, count: int) -> tuple[float, float]:
    """Accuracy on (validation, test) of the low-rank model on an embedding as it is."""
    model = LowRank(embedded.shape[1], len(case.votes.people), count, ridge)
    model.fit(embedded, case.choices)
    return case.judged(model, embedded)


def deeper(case: Case, setting: Setting) -> Curve:
    """The same while the last block is trained: before, and after every `look` steps."""
    tokens, ridge, count = setting
    reader, choices = Reader(case.texts, tokens), case.choices
    model = LowRank(reader().shape[1], len(case.votes.people), count, ridge)
    optimizer = torch.optim.AdamW(reader.weights, lr=DEEPER["rate"], weight_decay=0.0)
    curve = []
    for step in range(int(DEEPER["steps"]) + 1):
        if step % int(DEEPER["look"]) == 0:
            with torch.no_grad():
                embedded = reader()
            model.fit(embedded, choices)
            curve.append(case.judged(model, embedded))
        optimizer.zero_grad()
        model.losses(reader(), choices).mean().backward()
        optimizer.step()
    return curve


def in_one_place(votes: Votes, federations: Sequence[Federation]) -> list[dict[str, Any]]:
    """The oracles that are fitted by gradients: on the frozen embedding, then with the last block."""
    cases = [Case(votes, federation) for federation in federations]
    embedded = {tokens: torch.from_numpy(embeddings(cases[0].texts, tokens)).float() for tokens in TOKENS}

    def reached(setting: Setting) -> Curve:
        return [frozen(case, embedded[setting[0]], *setting[1:]) for case in cases]

    tried = {setting: reached(setting) for setting in itertools.product(TOKENS, RIDGES, DIRECTIONS)}
    best = by_validation(tried)
    chosen = dict(zip(("tokens", "ridge", "directions"), best, strict=True))
    rows = [{"oracle": "all choices", **chosen, **by_part(tried[best])}]
    curves = [deeper(case, best) for case in cases]
    means = [statistics.fmean(seen[0] for seen in look) for look in zip(*curves, strict=True)]
    stop = means.index(max(means))
    steps = {"steps": stop * int(DEEPER["look"])}
    rows.append({"oracle": "last block", **chosen, **steps, **by_part([curve[stop] for curve in curves])})
    return [*rows, two_depths(cases, best)]


def by_validation(tried: dict[T, Curve]) -> T:
    """The setting with the best mean over seeds."""
    return max(tried, key=lambda setting: statistics.fmean(part[0] for part in tried[setting]))


def two_depths(cases: Sequence[Case], best: Setting) -> dict[str, Any]:
    """The oracle on the frozen embedding with the pooled states above an earlier block beside it, each about
    its mean and of equal length."""
    tokens, _, count = best
    _, mask, states = read(cases[0].texts, tokens)
    depths = [pooled(each, mask) for each in states]
    depths = [torch.nn.functional.normalize(each - each.mean(0), dim=1) for each in depths]

    def reached(block: int, ridge: float) -> Curve:
        both = torch.cat([depths[block], depths[-1]], dim=1) / math.sqrt(2)  # [n, 2 d], of length 1
        return [frozen(case, both, ridge, count) for case in cases]

    tried = {setting: reached(*setting) for setting in itertools.product(range(len(depths) - 1), RIDGES)}
    block, ridge = by_validation(tried)
    settings = {"tokens": tokens, "ridge": ridge, "directions": count, "above_block": block}
    return {"oracle": "two depths", **settings, **by_part(tried[block, ridge])}


def by_part(seeds: Curve) -> dict[str, list[float]]:
    return {"validation": [seen[0] for seen in seeds], "test": [seen[1] for seen in seeds]}


def known_positions(votes: Votes, federations: Sequence[Federation], count: int) -> dict[str, Any]:
    """The second oracle, of rank `count`."""
    positions, weights = directions(votes.of["test"], count)
    reached = [accuracy(positions @ weights, votes, "test", federation) for federation in federations]
    return {"oracle": "known positions", "directions": count, "test": reached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    federations = [datasets.load("senate", seed=int(seed)) for seed in chosen.seeds.split(",")]
    votes = Votes()
    rows = [all_votes(votes, federations), *in_one_place(votes, federations)]
    rows += [known_positions(votes, federations, count) for count in DIRECTIONS]
    for row in rows:
        settings = ", ".join(
            f"{key} {row[key]}"
            for key in ("tokens", "ridge", "directions", "steps", "above_block")
            if key in row
        )
        figures = "  ".join(f"{part} {spoken(row[part])}" for part in ("validation", "test") if part in row)
        print(f"{row['oracle']:19s} ({settings}): {figures}")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def spoken(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
