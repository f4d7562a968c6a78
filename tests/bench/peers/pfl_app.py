"""The algorithm in pfl-research (PyPI `pfl` 0.6): `python -m bench.peers.pfl_app TASK RESULT`.

An algorithm of one's own on pfl's backend, as its documentation shows for people with a state of their own:
the personal part lies in an in-memory storage of user states, pfl samples, sums and drives the rounds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.peers.plain import Batch, FedAdam, PlainModel, shared_names, some, start_of
from bench.peers.task import HEAD, B, Result, Task
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import FederatedNNAlgorithm, NNAlgorithmParams
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.exception import UserNotFoundError
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.stats import MappedVectorStatistics

PERSONAL = (B, HEAD)


class Trained(torch.nn.Module):
    """A plain model as pfl wants it: a module with a loss and metrics. It knows its trained parts alone, so
    that pfl copies those from round to round and not the base model."""

    def __init__(self, plain: PlainModel) -> None:
        super().__init__()
        self.plain = plain
        for name, parameter in plain.parameters.items():
            self.register_parameter(name, parameter)

    def loss(self, input_ids: Any, attention_mask: Any) -> torch.Tensor:
        """As `PlainModel.loss`."""
        return self.plain.loss({"input_ids": input_ids, "attention_mask": attention_mask})

    def metrics(self, *batch: Any) -> dict[str, float]:
        """None: accuracy is measured at the end."""
        return {}


@dataclass(frozen=True)
class People:
    """Everybody's batches, made once."""

    train: list[Batch]
    test: list[Batch]


class ShareA(FederatedNNAlgorithm):  # type: ignore[misc]
    """The shared factor is averaged, the rest stays with a user; all is shared in the warm-up."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task
        self._optimizer = FedAdam(task.server)
        self.personal = InMemoryUserStateStorage()

    def train_one_user(
        self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any
    ) -> tuple[Any, Metrics]:
        """One round's training of one user."""
        warm = self._task.warms(central_context.current_central_iteration + 1)
        plain: PlainModel = model.pytorch_model.plain
        if not warm:
            plain.load(self.own(user_dataset.user_id, initial_model_state))
        batch = dict(zip(("input_ids", "attention_mask"), user_dataset.raw_data, strict=True))
        plain.train(batch, warm)
        if not warm:
            self.personal.save_state(some(plain.parts(), PERSONAL), user_dataset.user_id)
        found = model.get_model_difference(initial_model_state, clone=True)
        pairs = len(batch["input_ids"]) // 2
        weighted = {name: found[name] * pairs for name in shared_names(warm)}
        return MappedVectorStatistics(weighted, weight=pairs), Metrics()

    def process_aggregated_statistics(
        self, central_context: Any, aggregate_metrics: Any, model: Any, statistics: Any
    ) -> tuple[Any, Metrics]:
        """The server's step."""
        statistics.average()
        mean = dict(statistics.items())
        plain: PlainModel = model.pytorch_model.plain
        plain.load(self._optimizer.step(some(plain.parts(), tuple(mean)), mean))
        return model, Metrics()

    def own(self, user: str, start: Any) -> dict[str, torch.Tensor]:
        """A user's own part; the common start where there is none yet."""
        try:
            found: dict[str, torch.Tensor] = self.personal.load_state(user)
            return found
        except UserNotFoundError:
            return {name: start[name] for name in PERSONAL}


def main() -> None:
    """Simulate in this process."""
    torch.set_num_threads(1)
    np.random.seed(0)
    task = Task.read(Path(sys.argv[1]))
    plain = PlainModel(task)
    plain.load(start_of(task))
    people = People(
        [plain.tokenised(someone.train) for someone in task.people],
        [plain.tokenised(someone.test) for someone in task.people],
    )
    algorithm = ShareA(task)
    algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds + 1,
            train_cohort_size=len(task.cohorts[0]),
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=federated(task, people), val_data=federated(task, people)),
        PyTorchModel(Trained(plain), local_optimizer_create=torch.optim.AdamW, central_optimizer=None),
        NNTrainHyperParams(local_num_epochs=task.epochs, local_learning_rate=0.0, local_batch_size=None),
        send_metrics_to_platform=False,
    )
    shared = plain.parts()
    accuracies = []
    for number, batch in enumerate(people.test):
        plain.load(algorithm.own(str(number), shared))
        accuracies.append(plain.accuracy(batch))
    Result.of(accuracies, some(shared, shared_names(task.warms(task.rounds)))).write(Path(sys.argv[2]))


def federated(task: Task, people: People) -> FederatedDataset:
    """Users in the order in which the task's cohorts name them."""
    order = iter([str(person) for cohort in task.cohorts for person in cohort])

    def dataset_of(user: str) -> Dataset:
        batch = people.train[int(user)]
        return Dataset([batch["input_ids"], batch["attention_mask"]], user_id=user)

    return FederatedDataset(dataset_of, lambda: next(order))


if __name__ == "__main__":
    main()
