"""Federated learning is joint learning: the trajectory of a run beside that of one process with all choices.

The federated side is a whole run, server, agents and messages, with two things taken out that a run never
goes without: clipping and rounding. The joint side is plain PyTorch on the whole network: one loss over
everybody's pairs, one optimiser.

Of gradient descent only: the mean of several AdamW steps is not the AdamW step of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from support.tastes import write_choices

from penchant.client.learning.model_cache import ModelCache
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.model.backbone import load_backbone
from penchant.common.model.reward import RewardModel
from penchant.common.secagg.update_vector import Contribution, RoundSums, UpdateLayout
from penchant.common.shares import HEAD
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Announce, Plain
from penchant.deploy import run_directory
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import SimulationSetup, prepare
from penchant.server.secagg.aggregation import Aggregate
from penchant.server.secagg.plain import PlainAggregation

ROUNDS = 5
TOLERANCE = 5e-7  # of single precision, over all rounds
COUNTS = (10, 13, 16)  # choices of each person: they weigh differently
RATES = {"shared": 0.2, "personal": 0.3, "head": 0.1}
BENCHES = ModelCache()

Vector = NDArray[np.float32]
Trajectory = list[Vector]  # the shared factors after each round


# --- taking out clipping and rounding -------------------------------------------------------------


class Unrounded(UpdateLayout):
    """A form whose words are float64: weighted update, weight, loss, counts; nothing clipped or rounded."""

    def quantise(self, contribution: Contribution, key: bytes) -> Any:
        update = contribution.update.astype(np.float64) * contribution.weight
        counts = np.zeros(self.words - len(update))
        counts[:2] = contribution.weight, contribution.loss
        return np.concatenate([update, counts]).view("<u8")

    def fault(self, total: NDArray[np.int64], people: int) -> str:
        return ""

    def read(self, total: NDArray[np.int64], people: int) -> RoundSums:
        numbers = total.view("<f8")
        update, weight = numbers[: self.quantiser.size], numbers[self.quantiser.size]
        return RoundSums(update / weight, int(weight), numbers[self.quantiser.size + 1] / weight, 0, 0, None)


class FloatSum(PlainAggregation):
    """Adds words up as float64."""

    def run(self, announce: Announce, nodes: Sequence[int], exchange: Any, journal: Any) -> Aggregate:
        vectors = []

        def listening(stage: str, payloads: Mapping[int, bytes], take: Any = None) -> Mapping[int, bytes]:
            def taken(node: int, reply: bytes) -> None:
                vectors.append(np.frombuffer(decode(reply, Plain).vector, "<f8"))
                take(node, reply)

            heard: Mapping[int, bytes] = exchange(stage, payloads, taken if stage == "masked" else take)
            return heard

        aggregate = super().run(announce, nodes, listening, journal)
        return replace(aggregate, total=np.sum(vectors, axis=0).view("<i8"))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither clipping nor rounding, and no plots."""
    of = UpdateLayout.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(UpdateLayout, "of", classmethod(lambda cls, plan, split: of(Unrounded, plan, split)))
    monkeypatch.setattr("penchant.deploy.simulation.world.PlainAggregation", FloatSum)
    monkeypatch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)


# --- the two sides --------------------------------------------------------------------------------


def settings(tiny_model: Any, tmp_path: Path, share: str, **changes: Any) -> RunConfig:
    """One local step of gradient descent over all of a person's pairs, and everybody in every round."""
    choices = tmp_path / "choices.jsonl"
    write_choices(choices, COUNTS)
    base = {
        "data.dataset": str(choices),
        "data.person_column": "user",
        "data.pairs": 100,
        "data.validation_pairs": 1,
        "data.test_pairs": 100,
        "model.base_model": str(tiny_model("bert")),
        "adapter.share": share,
        "adapter.alpha": 32.0,
        "training.optimizer": "sgd",
        "training.local_epochs": 1,
        "training.lr_shared": RATES["shared"],
        "training.lr_personal": RATES["personal"],
        "training.lr_head": RATES["head"],
        "training.final_fit_epochs": 0,
        "federation.rounds": ROUNDS,
        "federation.cohort": len(COUNTS),
        "privacy.secagg": False,
        "privacy.ring_bits": 64,
    }
    return RunConfig().changed(base | {key.replace("__", "."): value for key, value in changes.items()})


def federated(world: SimulationSetup, directory: Path) -> tuple[Trajectory, list[Vector]]:
    """A run: (shared factors after each round, everybody's personal part at the end)."""
    run_directory.create(directory, world.config)
    simulate(world, directory, command="test")
    shared = [
        load_file(directory / "checkpoints" / f"round-{number:06d}.safetensors")["factors"]
        for number in range(1, ROUNDS + 1)
    ]
    personal = []
    for person in range(len(COUNTS)):
        kept = Vault(directory / "agents" / f"{person:06d}").personal(world.run)
        personal.append(kept.vector if kept else np.zeros(0, np.float32))
    return shared, personal


def joint(world: SimulationSetup) -> tuple[Trajectory, list[Vector]]:
    """The same by one optimiser on one loss: the mean over everybody's pairs, on the whole network.

    A person's part is moved by the gradient of their own mean loss; in the joint loss that is scaled by
    their share of all pairs, so its rate is divided by that.
    """
    config = world.config
    people = world.federation.people
    model = RewardModel(load_backbone(config.model, device="cpu"), config.model, config.adapter, full=True)
    split = model.split(seed=config.seed)
    first, own = split.initial(config.seed)
    shared = {n: t.requires_grad_() for n, t in split.shared.unflatten(first).items()}
    parts = [{n: t.requires_grad_() for n, t in split.personal.unflatten(own).items()} for _ in people]
    pairs = sum(len(person.train) for person in people)
    shares = [len(person.train) / pairs for person in people]

    def rate(name: str, part: str) -> float:
        return RATES["head"] if name == HEAD else RATES[part]

    groups = [{"params": [t], "lr": rate(n, "shared")} for n, t in shared.items()]
    for part, share in zip(parts, shares, strict=True):
        groups += [{"params": [t], "lr": rate(n, "personal") / share} for n, t in part.items()]
    optimizer = torch.optim.SGD(groups)
    trajectory = []
    for _ in range(config.federation.rounds):
        optimizer.zero_grad()
        loss = torch.zeros(())
        for person, part in zip(people, parts, strict=True):
            effective = split.effective(shared, part)
            for pair in person.train:
                texts = model.prepare_texts([(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)])
                chosen, rejected = model.scores(texts, effective)
                loss = loss - torch.log(torch.sigmoid(chosen - rejected)) / pairs
        loss.backward()
        optimizer.step()
        trajectory.append(split.shared.flatten(shared))
    return trajectory, [split.personal.flatten(part) for part in parts]


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "head"),
    [
        ("B", "shared"),
        ("A", "shared"),
        ("AB", "shared"),
        ("kernel", "shared"),
        ("svd", "shared"),
        ("ffa", "shared"),
        ("lore", "auto"),
        ("A", "personal"),
        ("none", "personal"),
    ],
)
def test_one_local_step_of_everybody_is_a_step_of_joint_training(
    tiny_model: Any, tmp_path: Path, share: str, head: str
) -> None:
    world = prepare(settings(tiny_model, tmp_path, share, adapter__head=head), BENCHES)
    assert len({len(person.train) for person in world.federation.people}) == len(COUNTS)
    trajectory, parts = federated(world, tmp_path / "run")
    expected, expected_parts = joint(world)
    for found, wanted in zip(trajectory, expected, strict=True):
        assert np.allclose(found, wanted, rtol=0, atol=TOLERANCE)
    for found, wanted in zip(parts, expected_parts, strict=True):
        assert np.allclose(found, wanted, rtol=0, atol=TOLERANCE)
    start = BENCHES.of(world.config.plan("main", 3)).split.initial(0)
    for end, begin in ((trajectory[-1], start[0]), (parts[0], start[1])):
        assert end.size == 0 or np.abs(end - begin).max() > 1000 * TOLERANCE  # there was something to follow


def test_the_comparison_can_fail(tiny_model: Any, tmp_path: Path) -> None:
    """Two local steps are something else than one: the mean of the second steps was taken elsewhere."""
    world = prepare(settings(tiny_model, tmp_path, "A", training__local_epochs=2), BENCHES)
    trajectory, _ = federated(world, tmp_path / "run")
    expected, _ = joint(world)
    assert not np.allclose(trajectory[-1], expected[-1], rtol=0, atol=100 * TOLERANCE)
