"""Beside TRL itself: the same numbers where both do the same, and a personal model as its reward function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tastes import choices_by_last_word

import penchant
from penchant.common.errors import DataError

EPOCHS, RATE = 30, 1e-2


@pytest.fixture(scope="module")
def base(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def data() -> Any:
    return penchant.load_preferences(
        {"ann": choices_by_last_word(400)}, pairs=48, validation_pairs=0, test_pairs=80
    )


def simulated(data: Any, base: Path, **more: Any) -> penchant.SimulationResult:
    """One person, everything shared, one round: what is left of a federation is a trainer."""
    settings: dict[str, Any] = {
        "base_model": str(base),
        "target_modules": ("q_proj", "v_proj"),
        "normalize": 0.0,
        "share": "AB",
        "rounds": 1,
        "cohort": 1,
        "secagg": False,
        "clip": 1000.0,
        "server_optimizer": "fedavg",
        "final_fit_epochs": 0,
        "local_epochs": EPOCHS,
        "lr_shared": RATE,
        "lr_head": RATE,
    }
    return penchant.simulate(data, **settings | more)


def trained_by_trl(start: Path, base: Path, pairs: Any, out: Path) -> Any:
    """`RewardTrainer`'s model, from the same beginning, over the same tokens, for as many steps."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 0
    rows = [
        {
            "chosen_ids": tokenizer(pair.prompt + pair.chosen)["input_ids"],
            "rejected_ids": tokenizer(pair.prompt + pair.rejected)["input_ids"],
        }
        for pair in pairs
    ]
    trainer = RewardTrainer(
        model=PeftModel.from_pretrained(model, start / "sequence-classification", is_trainable=True),
        args=RewardConfig(
            output_dir=str(out),
            per_device_train_batch_size=len(rows),
            num_train_epochs=EPOCHS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1e9,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            max_length=None,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trained = trainer.model.eval()

    def score(text: str) -> float:
        with torch.no_grad():
            return float(trained(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits)

    return score


def test_one_person_who_shares_everything_ends_as_with_trl_s_reward_trainer(
    data: Any, base: Path, tmp_path: Path
) -> None:
    """Same pairs, same beginning, same budget: AdamW over all pairs at once, once an epoch."""
    simulated(data, base, lr_shared=0.0, lr_head=0.0, local_epochs=1).shared_model().export(
        tmp_path / "start"
    )
    ours = simulated(data, base)
    theirs = trained_by_trl(tmp_path / "start", base, data.people[0].train, tmp_path / "trl")
    model, right = ours.shared_model(), 0
    for pair in data.people[0].test:
        texts = [pair.prompt + pair.chosen, pair.prompt + pair.rejected]
        expected = [theirs(text) for text in texts]
        assert model.score("", texts) == pytest.approx(expected, abs=1e-2)
        right += expected[0] > expected[1]
    assert ours.accuracy == pytest.approx(right / len(data.people[0].test), abs=0.01)
    assert ours.accuracy > 0.7, "both have learned something"


def test_a_personal_model_is_a_reward_function_of_trl_s(data: Any, base: Path, tmp_path: Path) -> None:
    """One step of GRPO on a tiny policy: the rewards that TRL logs are the model's scores."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model = simulated(data, base, local_epochs=2).personal_model("ann")
    heard: list[tuple[list[str], list[str], list[float]]] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        rewards = model.reward(prompts, completions, **columns)
        heard.append((prompts, completions, rewards))
        return rewards

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token, tokenizer.eos_token = (tokenizer.convert_ids_to_tokens(i) for i in (0, 2))
    for function in (reward, model.reward):  # wrapped, and as it is
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            reward_funcs=function,
            args=GRPOConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=5,
                max_steps=1,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1,
            ),
            train_dataset=Dataset.from_list([{"prompt": "the motion ", "group": "x"}] * 4),
            processing_class=tokenizer,
        )
        trainer.train()
        assert any(key.startswith("rewards/reward") for key in trainer.state.log_history[0])
    ((prompts, completions, rewards),) = heard
    assert rewards == pytest.approx(
        [model.score(p, [c])[0] for p, c in zip(prompts, completions, strict=True)], abs=1e-5
    )


def test_conversations_are_scored_in_the_form_that_they_are_trained_in(data: Any, base: Path) -> None:
    model = simulated(data, base, local_epochs=1).personal_model("ann")
    asked = [{"role": "user", "content": "the motion"}]
    answered = [{"role": "assistant", "content": "a bill"}]
    assert model.reward([asked], [answered], trainer_state=None) == pytest.approx(
        model.score("user: the motion\n", ["assistant: a bill"])
    )
    with pytest.raises(DataError, match="a text and the other a conversation"):
        model.reward(["the motion"], [answered])
