"""Whole simulations of policies: every share, masked as plain, interrupted as not; and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tastes import small_run, write_choices

from penchant.client.device.exported_model import load_exported
from penchant.client.learning.model_cache import ModelCache
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.errors import BaseModelError, ConfigError
from penchant.common.objectives import OBJECTIVES, objective
from penchant.common.shares import SHARES, share_rule
from penchant.deploy import run_directory
from penchant.deploy.cli.main import main
from penchant.deploy.report.run_page import write_report
from penchant.deploy.simulation.models import RunModels, export_models
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import Progress, prepare
from penchant.server.journal import RoundLog

PEOPLE = 5
BETA = 1.0
MODELS = ModelCache()  # one model for all runs
WITHOUT_HEAD = [name for name in SHARES.names() if share_rule(name).works_without_head]
POLICIES = [name for name in OBJECTIVES.names() if name != "reward"]


@pytest.fixture(scope="module", autouse=True)
def no_plots() -> Iterator[None]:
    """Reports are drawn elsewhere (tests/deploy/test_report.py); here they would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)
        yield


@pytest.fixture(scope="module")
def base(tiny_writer: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings that all runs here have in common."""
    choices = tmp_path_factory.mktemp("data") / "choices.jsonl"
    write_choices(choices, [16] * PEOPLE)
    return small_run(tiny_writer("llama"), choices, PEOPLE, epochs=5) | {
        "model.objective": "dpo",
        "model.beta": BETA,
        "adapter.target_modules": ["q_proj", "v_proj", "down_proj"],
        "adapter.layers": [-2, -1],
        "training.lr_shared": 0.05,
        "training.lr_personal": 0.05,
    }


def run(directory: Path, base: dict[str, Any], **changes: Any) -> RunResult:
    """A whole run in `directory`; dots in keys are written as double underscores."""
    config = RunConfig().changed(base | {key.replace("__", "."): value for key, value in changes.items()})
    world = prepare(config, MODELS)
    run_directory.create(directory, config)
    return simulate(world, directory, command="test")


def left(directory: Path) -> tuple[Any, ...]:
    """What a run leaves of everybody: shared factors of every round, personal parts, accuracies."""
    id_ = prepare(run_directory.read_config(directory), MODELS).run
    own = [Vault(home).personal(id_) for home in sorted((directory / "agents").iterdir())]
    result = RunResult.read(directory)
    assert result is not None
    shared = [path.read_bytes() for path in sorted((directory / "checkpoints").glob("*.safetensors"))]
    return shared, [None if p is None else p.vector.tolist() for p in own], result.per_person


@pytest.mark.parametrize("secagg", [True, False], ids=["masked", "plain"])
@pytest.mark.parametrize("share", WITHOUT_HEAD)
def test_every_share_that_needs_no_head(
    base: dict[str, Any], tmp_path: Path, share: str, secagg: bool
) -> None:
    """With a warm-up where there is a split; nothing that is shared or kept is a head."""
    warmup = 1 if share_rule(share).can_warm_up else 0
    changes = {"adapter__share": share, "privacy__secagg": secagg, "federation__warmup_rounds": warmup}
    result = run(tmp_path / "run", base, **changes)
    log = result.rounds_log
    assert [row.phase for row in log] == ["warmup" if warmup else "main", "main", "main"]
    assert log[0].train_loss == pytest.approx(np.log(2), abs=0.01), "at the start π is π_ref: log 2"
    assert log[-1].train_loss is not None
    assert log[0].train_loss is not None
    if share == "mixed":  # deviations are held back over so few pairs
        assert any(np.any(own) for own in left(tmp_path / "run")[1])
    else:
        assert log[-1].train_loss < log[0].train_loss
    assert (result.head, result.objective) == ("none", "dpo")
    assert not any("head" in tensor.name for tensor in result.shared_tensors)
    assert bool(result.shared_tensors) is not share_rule(share).shares_nothing


class Stops(Progress):
    """Ends a run after its second round."""

    def round(self, log: RoundLog, last: int) -> None:
        if log.round == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("objective", POLICIES)
def test_masked_is_plain_and_resumed_is_uninterrupted(
    base: dict[str, Any], tmp_path: Path, objective: str
) -> None:
    run(tmp_path / "whole", base, model__objective=objective)
    run(tmp_path / "plain", base, model__objective=objective, privacy__secagg=False)
    whole, plain = left(tmp_path / "whole"), left(tmp_path / "plain")
    for one, other in zip(whole[1], plain[1], strict=True):
        assert one == pytest.approx(other, abs=2e-2)  # sums are rounded, and training goes on from them
    config = run_directory.read_config(tmp_path / "whole")
    run_directory.create(tmp_path / "cut", config)
    with pytest.raises(KeyboardInterrupt):
        simulate(prepare(config, MODELS), tmp_path / "cut", Stops(), command="test")
    simulate(prepare(run_directory.read_config(tmp_path / "cut"), MODELS), tmp_path / "cut", command="test")
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_what_the_report_shows_is_how_implicit_rewards_rank_held_out_pairs(
    base: dict[str, Any], tmp_path: Path
) -> None:
    result = run(
        tmp_path / "run", base, data__holdout_clients=1, federation__cohort=4, privacy__dp_epsilon=8.0
    )
    models = RunModels(tmp_path / "run")
    for name, accuracy in result.per_person.items():
        person = models.world.federation.people[models.place(name)]
        scores = list(models.of_person(name).both_scores(person.test))
        assert accuracy == sum(chosen > rejected for chosen, rejected in scores) / len(scores)
    assert result.cold_start_accuracy is not None, "newcomers fit a policy of their own"
    assert result.dp is not None
    write_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "the personal policies (DPO) rank" in page
    assert "implicit rewards" in page


def test_a_personal_policy_is_a_plain_adapter_of_a_causal_model(
    base: dict[str, Any], tmp_path: Path, tiny_writer: Callable[[str], Path]
) -> None:
    """transformers and peft load it, and its log-probabilities are ours; penchant reads it back as well."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(tmp_path / "run", base)
    models = RunModels(tmp_path / "run")
    export_models(models, tmp_path / "out", ["p0"])
    folder = next(path for path in (tmp_path / "out").iterdir() if path.name.endswith("p0"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "penchant.json",
    ]  # fmt: skip
    card = (folder / "README.md").read_text("utf-8")
    assert "AutoModelForCausalLM" in card
    said = "A response's score is its log-probability with the adapter, less that without it, times"
    assert said in card
    assert "less that without" not in objective("simpo").said, "it has no reference"
    tokenizer = AutoTokenizer.from_pretrained(tiny_writer("llama"))
    causal = AutoModelForCausalLM.from_pretrained(tiny_writer("llama"), dtype=torch.float32)
    policy = PeftModel.from_pretrained(causal, str(folder)).eval()
    own = models.of_person("p0")
    again = load_exported(folder)
    for prompt, response in [("the vote on ", "a bill to tax"), ("judge ", "the table")]:
        ids = torch.tensor([[*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]])
        begun = len(tokenizer(prompt)["input_ids"])

        def log_probability(ids: torch.Tensor = ids, begun: int = begun) -> float:
            with torch.no_grad():
                logs = policy(input_ids=ids).logits[0, :-1].log_softmax(1)
            return float(logs.gather(1, ids[0, 1:, None])[begun - 1 :].sum())

        with policy.disable_adapter():
            reference = log_probability()
        (score,) = own.scores([(prompt, response)])
        packed = own.model.prepare_texts([(prompt, response)]).packed
        with torch.no_grad():
            ((ours, base_model, tokens),) = own.model.tail.forward(packed, own.weights).tolist()
        assert ours == pytest.approx(log_probability(), abs=1e-4)
        assert base_model == pytest.approx(reference, abs=1e-4)
        assert tokens == ids.shape[1] - begun
        assert score == pytest.approx(BETA * (log_probability() - reference), abs=1e-4)
        assert again.scores([(prompt, response)]) == pytest.approx([score], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"adapter.share": "lore"}, 'share "lore" is about a score head, and objective "dpo" has none'),
        ({"adapter.share": "common"}, 'share "common" is about a score head, and objective "dpo" has none'),
        ({"adapter.head": "personal"}, 'adapter.head "personal" is about a score head'),
        ({"adapter.share_base": ["head"]}, "adapter.share_base names a score head"),
        ({"model.pooling": "last"}, "model.pooling is about the embedding under a score head"),
        ({"model.normalize": 1.0}, "model.normalize is about the embedding under a score head"),
        ({"training.lr_head": 0.5}, 'training.lr_head is about a score head, and objective "dpo" has none'),
        ({"training.prior_head": 0.5}, "training.prior_head is about a score head"),
        ({"model.objective": "ipo", "training.lr_head": 0.01}, 'and objective "ipo" has none; drop one'),
        (
            {"model.objective": "reward"},
            'model.beta is the scale of log-probabilities, and objective "reward"',
        ),
        ({"model.objective": "ppo"}, "model.objective is 'ppo'; choose one of reward, dpo, ipo"),
        ({"model.beta": 0.0}, "model.beta is 0.0; it must lie in 0.001 … 100"),
    ],
)
def test_what_an_objective_never_reads_is_refused(
    base: dict[str, Any], changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        RunConfig().changed(base | changes)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("bert", "is no causal language model, and a policy must write"),
        ("t5", "is no causal language model, and a policy must write"),
        ("llama", "cannot write text: it has no weights for that"),  # saved without its words
    ],
)
def test_a_base_model_that_can_not_write_is_refused_in_one_line(
    base: dict[str, Any],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    line: str,
) -> None:
    config = RunConfig().changed(base | {"model.base_model": str(tiny_model(kind))})
    with pytest.raises(BaseModelError, match=line):
        prepare(config, ModelCache())
    (tmp_path / "run.toml").write_text(config.to_toml(), encoding="utf-8")
    asked = ["simulate", "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["penchant", *asked])
    with pytest.raises(SystemExit):
        main()
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().err.strip()
    assert line in said
    assert "Traceback" not in said
