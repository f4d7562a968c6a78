"""What bounds a model of Senate: `python tests/experiments/ceiling.py [--seeds 0,1,2,3,4] [--json FILE]`.

Oracles that keep nothing private, judged on the very pairs on which `penchant simulate --dataset senate
--validation-pairs 0` judges everybody. Their settings (pooling, tokens, penalty, directions, when to stop,
which block) are chosen in the past of the test part, see `pasts.py`.

- *all votes*: sees how everybody voted on every roll call of the training part (some 300 votes a person
  instead of 20 pairs), in one place. The votes' first directions are read off the frozen embedding of the
  roll calls' texts by ridge regression. What is missing from here to 1 is what the texts, as the backbone
  reads them, don't say of roll calls that are yet to come.
- *all choices*: sees everybody's 20 pairs in one place, those that the federation learns from, and fits the
  low-rank model on the frozen embedding to the optimum of its penalised likelihood. *Last block* goes on from
  there and trains all weights of the backbone's last block as well. *Two depths* puts the states above an
  earlier block beside the last block's.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from penchant.common.config import ModelConfig
from penchant.common.data.preferences import Federation, Preference
from penchant.common.data.splits import Sizes
from penchant.common.model.backbone import load_backbone
from penchant.common.model.davidson import bradley_terry
from penchant.common.model.network import AdaptedNetwork
from penchant.deploy import datasets
from penchant.deploy.datasets import senate

from curves import standard_error  # isort: skip
from pasts import CASES  # isort: skip

Matrix = NDArray[np.float64]
Reading = tuple[str, int]  # pooling, tokens
Setting = tuple[Reading, float, int]  # reading, ridge, directions
T = TypeVar("T")

READINGS = tuple(itertools.product(("mean", "first"), (16, 24, 32)))
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DIRECTIONS = (1, 2, 4)
DEEPER = {"rate": 1e-4, "steps": 24, "look": 2}  # of the last block: AdamW, all choices at once


class Votes:
    """Votes on contested roll calls, by part: [roll calls, people], yea 1, nay -1, neither 0."""

    def __init__(self, until: float) -> None:
        data = senate.read()
        contested = data.contested()
        parts = Sizes(validation_pairs=0, until=until).split(contested)
        self.items = {
            part: [item for item in contested if parts.part_of[item] == part] for part in ("train", "test")
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


def read(texts: Sequence[str], reading: Reading) -> tuple[Any, AdaptedNetwork, Tensor, Sequence[Tensor]]:
    """(last block, what pools, mask [n, L], states [n, L, d] below the first block and above each)"""
    pooling, tokens = reading
    backbone = load_backbone(ModelConfig(max_tokens=tokens), device="cpu")
    backbone.tokenizer.truncation_side = "right"
    settings = {"truncation": True, "max_length": tokens, "padding": True, "return_tensors": "pt"}
    encoded = backbone.tokenizer(list(texts), **settings)
    with torch.no_grad():
        states = backbone.model(**encoded, output_hidden_states=True).hidden_states
    network = AdaptedNetwork(
        backbone.model,
        (),
        pooling,
        backbone.pad_id,
        backbone.device,
        backbone.causal,
        backbone.max_tokens,
    )
    return backbone.blocks[1][-1], network, encoded["attention_mask"], states


def accuracy(scores: Matrix, votes: Votes, federation: Federation) -> float:
    """Macro accuracy of scores [test roll calls, people] on everybody's pairs; a tie is wrong."""
    row = {text: scores[i] for i, text in enumerate(votes.texts_of("test"))}

    def correct(name: str, pairs: Sequence[Preference]) -> float:
        column = votes.people[name]
        return statistics.fmean(row[pair.chosen][column] > row[pair.rejected][column] for pair in pairs)

    return statistics.fmean(correct(person.name, person.test) for person in federation.people)


class Reader:
    """Texts -> embeddings [n, d] of length 1, with all weights of the last block in training."""

    def __init__(self, texts: Sequence[str], reading: Reading) -> None:
        self._block, self._network, self._mask, states = read(texts, reading)
        self._below = states[-2]  # [n, L, d]
        self.weights = [weight.requires_grad_() for weight in self._block.parameters()]

    def __call__(self) -> Tensor:
        hidden = (1.0 - self._mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        states = self._block(self._below, attention_mask=hidden)
        states = states[0] if isinstance(states, tuple) else states  # [n, L, d]
        return normalize(self._network.pool(states, self._mask), dim=1)


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


class Case:
    """What one seed's people are judged on, and what is learned from, up to a moment."""

    def __init__(self, until: float, seed: int) -> None:
        self.votes = Votes(until)
        self.federation = datasets.load("senate", seed=seed, validation_pairs=0, until=until)
        self.texts = [text for part in self.votes.items for text in self.votes.texts_of(part)]
        rows = {text: row for row, text in enumerate(self.texts)}
        self.choices = Choices.of(self.votes, self.federation, rows)
        self._depths: dict[Reading, list[Tensor]] = {}

    def depths(self, reading: Reading) -> list[Tensor]:
        """Pooled states of all texts below the first block and above each, [n, d]."""
        if reading not in self._depths:
            _, network, mask, states = read(self.texts, reading)
            self._depths[reading] = [network.pool(each, mask) for each in states]
        return self._depths[reading]

    def embedded(self, reading: Reading) -> Tensor:
        """The frozen backbone's embedding of all texts, of length 1: [n, d]."""
        return normalize(self.depths(reading)[-1], dim=1)

    def judged(self, scores: Tensor) -> float:
        """Accuracy of scores [texts, people]."""
        learned_from = len(self.votes.items["train"])
        return accuracy(scores[learned_from:].detach().double().numpy(), self.votes, self.federation)

    def model(self, width: int, directions: int, penalty: float) -> LowRank:
        return LowRank(width, len(self.votes.people), directions, penalty)


Oracle = Callable[[Case, T], float]


def chosen_in_the_past(oracle: Oracle[T], settings: Iterable[T], pasts: Sequence[Case]) -> T:
    """The setting with the best mean over the pasts."""
    return max(settings, key=lambda setting: statistics.fmean(oracle(past, setting) for past in pasts))


def all_votes(case: Case, setting: Setting) -> float:
    reading, strength, count = setting
    embedded = case.embedded(reading).double().numpy()
    learned_from = len(case.votes.items["train"])
    positions, weights = directions(case.votes.of["train"], count)
    predicted = ridge(embedded[:learned_from], positions, strength)(embedded[learned_from:])
    return accuracy(predicted @ weights, case.votes, case.federation)


def all_choices(case: Case, setting: Setting) -> float:
    reading, strength, count = setting
    return fitted(case, case.embedded(reading), strength, count)


def fitted(case: Case, embedded: Tensor, strength: float, count: int) -> float:
    """Accuracy of the low-rank model on an embedding as it is."""
    model = case.model(embedded.shape[1], count, strength)
    model.fit(embedded, case.choices)
    return case.judged(model.scores(embedded))


def last_block(case: Case, setting: Setting) -> list[float]:
    """The same while the last block is trained: before, and after every `look` steps."""
    reading, strength, count = setting
    reader = Reader(case.texts, reading)
    model = case.model(reader().shape[1], count, strength)
    optimizer = torch.optim.AdamW(reader.weights, lr=DEEPER["rate"], weight_decay=0.0)
    curve = []
    for step in range(int(DEEPER["steps"]) + 1):
        if step % int(DEEPER["look"]) == 0:
            with torch.no_grad():
                embedded = reader()
            model.fit(embedded, case.choices)
            curve.append(case.judged(model.scores(embedded)))
        optimizer.zero_grad()
        model.losses(reader(), case.choices).mean().backward()
        optimizer.step()
    return curve


def two_depths(case: Case, setting: tuple[Reading, int, float, int]) -> float:
    """On the frozen embedding with the pooled states above an earlier block beside it, each about its mean
    and of equal length."""
    reading, block, strength, count = setting
    depths = [case.depths(reading)[place] for place in (block, -1)]
    both = torch.cat([normalize(each - each.mean(0), dim=1) for each in depths], dim=1)  # [n, 2 d]
    both = both / math.sqrt(2)  # of length 1
    return fitted(case, both, strength, count)


def known_positions(case: Case, count: int) -> float:
    positions, weights = directions(case.votes.of["test"], count)
    return accuracy(positions @ weights, case.votes, case.federation)


def oracles(pasts: Sequence[Case], cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Each oracle with its settings and its accuracy on the test pairs of each case."""
    settings = list(itertools.product(READINGS, RIDGES, DIRECTIONS))
    for name, oracle in (("all votes", all_votes), ("all choices", all_choices)):
        best = chosen_in_the_past(oracle, settings, pasts)
        yield {"oracle": name, **named(*best), "test": [oracle(case, best) for case in cases]}
    reading, _, count = best
    means = [statistics.fmean(look) for look in zip(*(last_block(past, best) for past in pasts), strict=True)]
    stop = means.index(max(means))
    test = [last_block(case, best)[stop] for case in cases]
    yield {"oracle": "last block", **named(*best), "steps": stop * int(DEEPER["look"]), "test": test}
    blocks = range(1, len(pasts[0].depths(reading)) - 1)  # a first token below all blocks has read nothing
    deeper = [(reading, block, ridge, count) for block, ridge in itertools.product(blocks, RIDGES)]
    two = chosen_in_the_past(two_depths, deeper, pasts)
    test = [two_depths(case, two) for case in cases]
    yield {"oracle": "two depths", **named(reading, two[2], count), "above_block": two[1], "test": test}
    for count in DIRECTIONS:
        test = [known_positions(case, count) for case in cases]
        yield {"oracle": "known positions", "directions": count, "test": test}


def named(reading: Reading, strength: float, count: int) -> dict[str, Any]:
    return {"pooling": reading[0], "tokens": reading[1], "ridge": strength, "directions": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pasts = [Case(*case) for case in CASES]
    rows = []
    for row in oracles(pasts, [Case(1.0, int(seed)) for seed in chosen.seeds.split(",")]):
        settings = ", ".join(f"{key} {row[key]}" for key in row if key not in ("oracle", "test"))
        print(f"{row['oracle']:15s} {spoken(row['test'])}  ({settings})", flush=True)
        rows.append(row)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def spoken(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {standard_error(values) or math.nan:.3f}"


if __name__ == "__main__":
    main()
