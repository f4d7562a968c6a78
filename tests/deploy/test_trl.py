"""Beside TRL itself: the same numbers where both do the same, and a personal model as its reward function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.device_api_scene import chats, motions, new_device
from support.tastes import choices_by_last_word
from support.trl_settings import as_penchant_trains, on_a_processor

import penchant
from penchant.client.device.device import Device
from penchant.client.device.warm_model import WarmModel
from penchant.common.data.preferences import Preference
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
        args=RewardConfig(**as_penchant_trains(out, len(rows), EPOCHS, RATE)),
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


def one_step_of_grpo(
    base: Path, reward: Callable[..., list[float]], prompt: Any, out: Path
) -> dict[str, Any]:
    """A tiny policy takes one step of GRPO by a reward function -> what TRL logs of it."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(
            **on_a_processor(out),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=5,
            max_steps=1,
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt, "group": "x"}] * 4),
        processing_class=writing_tokenizer(base),
    )
    trainer.train()
    logged: dict[str, Any] = trainer.state.log_history[0]
    return logged


def writing_tokenizer(base: Path) -> Any:
    """The tokenizer of a tiny model as one that writes needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token, tokenizer.eos_token = (tokenizer.convert_ids_to_tokens(i) for i in (0, 2))
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return tokenizer


def test_a_personal_model_is_a_reward_function_of_trl_s(data: Any, base: Path, tmp_path: Path) -> None:
    """One step of GRPO on a tiny policy: the rewards that TRL logs are the model's scores."""
    model = simulated(data, base, local_epochs=2).personal_model("ann")
    heard: list[tuple[list[str], list[str], list[float]]] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        rewards = model.reward(prompts, completions, **columns)
        heard.append((prompts, completions, rewards))
        return rewards

    for function in (reward, model.reward):  # wrapped, and as it is
        logged = one_step_of_grpo(base, function, "the motion ", tmp_path)
        assert any(key.startswith("rewards/reward") for key in logged)
    ((prompts, completions, rewards),) = heard
    assert rewards == pytest.approx(
        [model.score(p, [c])[0] for p, c in zip(prompts, completions, strict=True)], abs=1e-5
    )


ASKED = [{"role": "system", "content": "cloture"}, {"role": "user", "content": "on bill 3: "}]
ANSWERS = ["the motion tax", "the table tax"]


def said(answers: list[str]) -> list[list[dict[str, Any]]]:
    """Answers as TRL has them in conversations."""
    return [[{"role": "assistant", "content": answer}] for answer in answers]


@pytest.fixture(scope="module", params=["chats", "plain"])
def device(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Device:
    """One whose choices are between answers in conversations, or between plain texts."""
    choices = chats() if request.param == "chats" else motions()
    return new_device(tmp_path_factory.mktemp("device") / "home", tiny_model("bert"), choices)


def own_scores(device: Device, answers: list[str]) -> list[float]:
    """What the device itself says of answers to `ASKED`."""
    if device.conversational():
        texts = [("system: cloture\nuser: on bill 3: \n", f"assistant: {answer}") for answer in answers]
    else:
        texts = [("on bill 3: ", answer) for answer in answers]
    return [score.raw for score in WarmModel(device).scores(texts)]


def test_an_export_is_asked_about_conversations_as_the_device_that_wrote_it(
    device: Device, tmp_path: Path
) -> None:
    device.export(tmp_path / "mine")
    mine = penchant.PersonalModel.load(tmp_path / "mine")
    rewards = mine.reward([ASKED] * 2, said(ANSWERS), trainer_state=None)
    assert rewards == pytest.approx(own_scores(device, ANSWERS), abs=1e-5)
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert ("`role: content`" in card, "without roles" in card) == (
        device.conversational(),
        not device.conversational(),
    )
    mine.export(tmp_path / "again")  # and keeps it
    again = penchant.PersonalModel.load(tmp_path / "again")
    assert again.reward([ASKED] * 2, said(ANSWERS)) == pytest.approx(rewards, abs=1e-5)


def test_a_device_s_export_is_a_reward_function_of_trl_s(device: Device, base: Path, tmp_path: Path) -> None:
    device.export(tmp_path / "mine")
    mine = penchant.PersonalModel.load(tmp_path / "mine")
    heard: list[tuple[Any, list[float]]] = []

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        rewards = mine.reward(prompts, completions, **columns)
        heard.append((completions, rewards))
        return rewards

    logged = one_step_of_grpo(base, reward, ASKED, tmp_path / "trl")
    ((completions, rewards),) = heard
    answers = [completion[-1]["content"] for completion in completions]
    assert rewards == pytest.approx(own_scores(device, answers), abs=1e-5)
    assert logged["rewards/reward/mean"] == pytest.approx(sum(rewards) / 4, abs=1e-4)


def test_the_best_of_n_that_transformers_writes(device: Device, base: Path, tmp_path: Path) -> None:
    """As docs/device.md has it."""
    from transformers import AutoModelForCausalLM

    device.export(tmp_path / "mine")
    mine = penchant.PersonalModel.load(tmp_path / "mine")
    tokenizer, writer = writing_tokenizer(base), AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    inputs = tokenizer.apply_chat_template(
        ASKED, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    drawn = writer.generate(**inputs, do_sample=True, num_return_sequences=8, max_new_tokens=6)  # [8, L]
    answers = tokenizer.batch_decode(drawn[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rewards = mine.reward([ASKED] * len(answers), said(answers))
    best = answers[rewards.index(max(rewards))]
    own = own_scores(device, answers)
    assert len(set(answers)) > 1, "there was something to choose from"
    assert rewards == pytest.approx(own, abs=1e-5)
    assert best == answers[own.index(max(own))]


def test_simulated_people_are_asked_in_the_form_of_their_own_choices(base: Path) -> None:
    people: dict[str, list[Preference]] = {"ann": motions(40), "bob": chats(40), "cy": chats(40)}
    data = penchant.load_preferences(people, pairs=20, validation_pairs=0, test_pairs=10)
    done = simulated(data, base, share="A", cohort=3, local_epochs=1)
    conversation, plain = ("system: cloture\nuser: on bill 3: \n", "assistant: "), ("on bill 3: ", "")
    forms = [
        (done.personal_model("ann"), plain),
        (done.personal_model("bob"), conversation),
        (done.shared_model(), conversation),  # that of most choices
        (done.fit_newcomer(motions(10)), plain),
        (done.fit_newcomer(chats(10)), conversation),
    ]
    for model, (prompt, begins) in forms:
        expected = model.score(prompt, [f"{begins}{answer}" for answer in ANSWERS])
        assert model.reward([ASKED] * 2, said(ANSWERS)) == pytest.approx(expected, abs=1e-5)


def test_what_is_no_prompt_with_its_completion_is_refused(data: Any, base: Path) -> None:
    model = simulated(data, base, local_epochs=1).personal_model("ann")
    with pytest.raises(DataError, match="a text and the other a conversation"):
        model.reward(["the motion"], said(["a bill"]))
    with pytest.raises(DataError, match="'messages' is empty"):
        model.reward([[]], said(["a bill"]))
    with pytest.raises(DataError, match="a completion has no message"):
        model.reward([ASKED], [[]])
