"""Beside TRL: the same losses, gradients and trained policy where both do the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.tastes import choices_by_last_word
from support.tiny_models import write_tiny_chat_model
from support.trl_settings import as_penchant_trains

import penchant
from penchant.client.device.export import Export, export_peft
from penchant.client.learning.merged_model import MergedModel
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.trl_format import parse_preference

EPOCHS, RATE, BETA = 40, 3e-2, 0.3
TRL_LOSS = {"dpo": "sigmoid", "ipo": "ipo"}


@pytest.fixture(scope="module")
def base(tiny_writer: Callable[[str], Path]) -> Path:
    return tiny_writer("llama")


@pytest.fixture(scope="module")
def data() -> Any:
    return penchant.load_preferences(
        {"ann": choices_by_last_word(400)}, pairs=48, validation_pairs=0, test_pairs=80
    )


def settings(base: Path, objective: str) -> dict[str, Any]:
    """One person, everything shared, one round: what is left of a federation is a trainer."""
    return {
        "model.base_model": str(base),
        "model.objective": objective,
        "model.beta": BETA,
        "adapter.target_modules": ["q_proj", "v_proj"],
        "adapter.layers": [],
        "adapter.share": "AB",
        "federation.rounds": 1,
        "federation.cohort": 1,
        "federation.clip": 1000.0,
        "privacy.secagg": False,
        "training.final_fit_epochs": 0,
        "training.local_epochs": EPOCHS,
        "training.lr_shared": RATE,
    }


def exported(base: Path, objective: str, noise: float, out: Path) -> tuple[Any, np.ndarray[Any, Any]]:
    """(the model and its split, a vector of everything that is trained), and the same written to a folder."""
    planned = ModelCache().of(RunConfig().changed(settings(base, objective)).plan("main", 1))
    start, none = planned.split.initial(0)
    vector = start + noise * np.random.default_rng(0).normal(size=start.size).astype(np.float32)
    export_peft(Export.of(MergedModel.of(planned, vector, none)), out)
    return planned, vector


def dpo_trainer(start: Path, base: Path, rows: list[dict[str, Any]], objective: str, out: Path) -> Any:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return DPOTrainer(
        model=PeftModel.from_pretrained(model, start, is_trainable=True),
        args=DPOConfig(
            **as_penchant_trains(out, len(rows), EPOCHS, RATE),
            loss_type=TRL_LOSS[objective],
            beta=BETA,
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
    )


@pytest.mark.parametrize("objective", list(TRL_LOSS))
def test_loss_and_gradients_are_trl_s(data: Any, base: Path, tmp_path: Path, objective: str) -> None:
    """Away from the start, where neither factor is zero; the reference is the base model alone."""
    pairs = data.people[0].train
    check_loss_and_gradients(base, tmp_path, objective, pairs, plain(pairs))


@pytest.mark.parametrize("objective", list(TRL_LOSS))
def test_loss_and_gradients_of_conversations_in_a_chat_template_are_trl_s(
    tmp_path: Path, objective: str
) -> None:
    """Several turns, a system's message, an answer of several messages; each reads the rows by itself."""
    base = tmp_path / "base"
    write_tiny_chat_model(base)
    check_loss_and_gradients(base, tmp_path, objective, [parse_preference(r) for r in ROWS], ROWS)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS: list[dict[str, Any]] = [
    {
        "prompt": [message("user", "the vote")],
        "chosen": [message("assistant", "a bill to tax")],
        "rejected": [message("assistant", "the table")],
    },
    {
        "prompt": [message("system", "budget"), message("user", "judge"), message("assistant", "a motion"),
                   message("user", "on  cloture ")],
        "chosen": [message("assistant", "the bill"), message("user", "tax"), message("assistant", "vote")],
        "rejected": [message("assistant", "a a a table")],
    },
]  # fmt: skip


def plain(pairs: Any) -> list[dict[str, Any]]:
    return [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]


def check_loss_and_gradients(
    base: Path, tmp_path: Path, objective: str, pairs: Any, rows: list[dict[str, Any]]
) -> None:
    """Of penchant over `pairs` and of TRL over the same in its own format."""
    exported(base, objective, 0.0, tmp_path / "start")
    planned, vector = exported(base, objective, 0.3, tmp_path / "away")
    trainer = dpo_trainer(tmp_path / "start", base, rows, objective, tmp_path / "trl")
    away = load_file(tmp_path / "away" / "adapter_model.safetensors")
    theirs = {
        name.replace(".default.weight", ".weight"): parameter
        for name, parameter in trainer.model.named_parameters()
        if ".lora_" in name and ".default." in name
    }
    assert theirs.keys() == away.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(away[name])
    loss = trainer.compute_loss(trainer.model.eval(), next(iter(trainer.get_train_dataloader())))
    loss.backward()

    model, split = planned.model, planned.split
    leaves = {name: t.requires_grad_() for name, t in split.shared.unflatten(vector).items()}
    ours = model.losses(model.margins(model.prepare(pairs), split.effective(leaves, {}))).mean()
    assert float(ours.detach()) == pytest.approx(float(loss), rel=1e-4)
    largest = max(float(p.grad.abs().max()) for p in theirs.values())
    assert largest > 1e-4
    for name, gradient in zip(leaves, torch.autograd.grad(ours, list(leaves.values())), strict=True):
        expected = theirs[f"base_model.model.model.{name}.weight"].grad
        assert torch.allclose(gradient, expected, atol=1e-3 * largest, rtol=1e-3), name


@pytest.mark.parametrize("objective", list(TRL_LOSS))
def test_one_person_who_shares_everything_ends_as_with_trl_s_dpo_trainer(
    data: Any, base: Path, tmp_path: Path, objective: str
) -> None:
    """Same pairs, same beginning, same budget; what is ranked by is the implicit reward."""
    person = data.people[0]
    exported(base, objective, 0.0, tmp_path / "start")
    changed = RunConfig().changed(settings(base, objective))
    ours = penchant.simulate(data, config=changed)
    trainer = dpo_trainer(tmp_path / "start", base, plain(person.train), objective, tmp_path / "trl")
    trainer.train()
    policy, tokenizer = trainer.model.eval(), trainer.processing_class

    def log_probability(prompt: str, response: str) -> float:
        begun = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]])
        with torch.no_grad():
            logs = policy(input_ids=ids).logits[0, :-1].log_softmax(1)
        return float(logs.gather(1, ids[0, 1:, None])[begun - 1 :].sum())

    model, right = ours.shared_model(), 0
    for pair in person.test:
        chosen, rejected = model.score(pair.prompt, [pair.chosen, pair.rejected])
        expected = {}
        for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            with policy.disable_adapter():
                reference = log_probability(pair.prompt, response)
            length = len(response.split()) + 1 if objective == "ipo" else 1
            expected[name] = BETA * (log_probability(pair.prompt, response) - reference) / length
        assert (chosen, rejected) == pytest.approx((expected["chosen"], expected["rejected"]), abs=5e-3)
        right += expected["chosen"] > expected["rejected"]
    assert ours.accuracy == pytest.approx(right / len(person.test), abs=0.02)
    assert ours.accuracy > 0.6, "both have learned something"
    first = trainer.state.log_history[0]["loss"]
    assert first == pytest.approx(float(np.log(2)) if objective == "dpo" else (1 / (2 * BETA)) ** 2, rel=1e-3)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_simpo_is_the_loss_of_trl_s_cpo_trainer(data: Any, base: Path, tmp_path: Path, beta: float) -> None:
    """Over log-probabilities that transformers computes, response by response, with gamma = beta / 2."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    pairs = data.people[0].train
    changes = settings(base, "simpo") | {"model.beta": beta}
    planned = ModelCache().of(RunConfig().changed(changes).plan("main", 1))
    start, none = planned.split.initial(0)
    vector = start + 0.3 * np.random.default_rng(0).normal(size=start.size).astype(np.float32)
    export_peft(Export.of(MergedModel.of(planned, vector, none)), tmp_path / "away")
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    policy = PeftModel.from_pretrained(causal, tmp_path / "away").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)

    def per_token(prompt: str, response: str) -> torch.Tensor:
        begun = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]])
        logs = policy(input_ids=ids).logits[0, :-1].log_softmax(1)
        return logs.gather(1, ids[0, 1:, None])[begun - 1 :].mean()

    with torch.no_grad():
        chosen = torch.stack([per_token(p.prompt, p.chosen) for p in pairs])
        rejected = torch.stack([per_token(p.prompt, p.rejected) for p in pairs])
    theirs = SimpleNamespace(
        loss_type="simpo",
        beta=beta,
        simpo_gamma=beta / 2,
        label_smoothing=0.0,
        alpha=0.0,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    expected, *_ = CPOTrainer.cpo_loss(theirs, chosen, rejected)
    model = planned.model
    weights = planned.split.merged(vector, none)
    with torch.no_grad():
        margins = model.margins(model.prepare(pairs), weights)
    assert margins.tolist() == pytest.approx((beta * (chosen - rejected)).tolist(), abs=1e-4)
    assert model.losses(margins).tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert float(model.losses(torch.tensor(-1e4))) == pytest.approx(1e4 + beta / 2), "no overflow"
