"""TRL's RewardTrainer, one person after the other: `python -m bench.peers.trl_loop TASK RESULT`.

Nobody shares anything: everybody trains A, B and head alone, from the common start, for as many epochs as a
person trains on average in all rounds of the others.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench.peers.plain import PlainModel, start_of
from bench.peers.task import Result, Task
from datasets import Dataset, disable_progress_bars
from support.trl_settings import on_a_processor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer


class MeanPooledReward(PreTrainedModel):
    """A plain model as TRL wants it: something that gives one logit a text."""

    config_class = PretrainedConfig

    def __init__(self, plain: PlainModel) -> None:
        super().__init__(PretrainedConfig(num_labels=1))  # type: ignore[call-arg]
        self.plain = plain
        self.inner = plain.module

    def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> SequenceClassifierOutput:
        """Rewards [texts, 1]."""
        rewards = self.plain.rewards({"input_ids": input_ids, "attention_mask": attention_mask})
        return SequenceClassifierOutput(logits=rewards.unsqueeze(1))


def epochs_of(task: Task) -> int:
    """Epochs that a person trains in all rounds, on average."""
    turns = sum(len(cohort) for cohort in task.cohorts)
    return max(round(turns * task.epochs / len(task.people)), 1)


def main() -> None:
    """Train and judge everybody."""
    torch.set_num_threads(1)
    disable_progress_bars()
    task = Task.read(Path(sys.argv[1]))
    plain = PlainModel(task)
    model = MeanPooledReward(plain)
    tokenizer = AutoTokenizer.from_pretrained(task.base)
    start, accuracies = start_of(task), []
    with tempfile.TemporaryDirectory() as folder:
        for someone in task.people:
            plain.load(start)
            ids = plain.token_ids(someone.train)
            settings = RewardConfig(
                **on_a_processor(folder),
                per_device_train_batch_size=len(ids),
                num_train_epochs=epochs_of(task),
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                max_length=None,
                logging_strategy="no",
            )
            trainer = RewardTrainer(
                model,
                args=settings,
                train_dataset=Dataset.from_list([{"chosen_ids": c, "rejected_ids": r} for c, r in ids]),
                processing_class=tokenizer,
                optimizers=(plain.optimizer(), None),
            )
            trainer.train()
            accuracies.append(plain.accuracy(plain.tokenised(someone.test)))
    Result.of(accuracies, {}).write(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
