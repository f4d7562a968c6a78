"""`penchant simulate` as a whole: every share, masked or not; clients that fail, are slow, or are too few."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tastes import small_run, write_choices

from penchant.client.learning.model_cache import ModelCache
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Person, Preference
from penchant.common.errors import DataError, PrivacyError, TooFewDevices, TooManyDropouts
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.wire.flower import message_type
from penchant.deploy import run_directory
from penchant.deploy.cli import show_simulation
from penchant.deploy.cli.main import main
from penchant.deploy.flower.in_process_grid import Fault
from penchant.deploy.report.run_page import write_report
from penchant.deploy.simulation import runner as simulation
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import Progress, prepare
from penchant.server import stopping
from penchant.server.journal import Journal, RoundLog
from penchant.server.privacy_figures import BEYOND

PEOPLE = 7  # t = 5: two may be lost
BENCHES = ModelCache()  # one model for all runs
SHARES = ["B", "A", "kernel", "svd", "AB", "none", "ffa", "lore", "mixed", "common"]
SHARES += ["finetune", "meta", "shrinkage"]
SPLIT = {"B", "A", "kernel", "svd", "mixed"}  # those that have a warm-up
FIRST_NODE = 1000
TIMES = ("seconds", "wall_seconds", "peak_rss_mb")


@pytest.fixture(scope="module", autouse=True)
def no_plots() -> Iterator[None]:
    """Reports are drawn elsewhere (tests/deploy/test_report.py); here they would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penchant.deploy.report.run_page.write_report", lambda result, path: None)
        yield


@pytest.fixture(scope="module")
def base(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings that all runs here have in common."""
    choices = tmp_path_factory.mktemp("data") / "choices.jsonl"
    write_choices(choices, [16] * PEOPLE)
    return small_run(tiny_model("bert"), choices, PEOPLE, epochs=2)


def run(
    directory: Path, base: dict[str, Any], *, fault: Fault | None = None, **changes: Any
) -> dict[str, Any]:
    """A whole run in `directory`; dots in keys are written as double underscores."""
    config = RunConfig().changed(base | {key.replace("__", "."): value for key, value in changes.items()})
    world = prepare(config, BENCHES)
    run_directory.create(directory, config)
    return simulate(world, directory, command="test", fault=fault).to_dict()


def resume(directory: Path, *, fault: Fault | None = None) -> dict[str, Any]:
    world = prepare(run_directory.read_config(directory), BENCHES)
    return simulate(world, directory, command="test", fault=fault).to_dict()


def left(directory: Path, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """All that a run leaves but times: result, checkpoints, everybody's personal factor."""
    result = json.loads((directory / "result.json").read_text())
    for row in result["rounds_log"]:
        row.pop("seconds")
    run_id = prepare(run_directory.read_config(directory), BENCHES).run
    own = [Vault(home).personal(run_id) for home in sorted((directory / "agents").iterdir())]
    return {
        "result": {key: value for key, value in result.items() if key not in (*TIMES, *without)},
        "checkpoints": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (directory / "checkpoints").glob("*.safetensors")
        },
        "own": [None if p is None else (p.round, p.vector.tolist()) for p in own],
    }


def dropped(directory: Path) -> list[dict[str, int]]:
    """For each finished round: stage -> clients lost there."""
    journal = Journal(directory)
    try:
        return [{stage: lost for stage, lost in log.dropped.items() if lost} for log in journal.logs()]
    finally:
        journal.close()


# --- every share -----------------------------------------------------------------------------------------


def test_noise_among_few_people_is_said_to_be_long(base: dict[str, Any], tmp_path: Path) -> None:
    noised = run(tmp_path / "noised", base, privacy__dp_epsilon=1.0, federation__rounds=1)
    (said,) = (caveat for caveat in noised["caveats"] if "ifferential privacy" in caveat)
    assert f"times as long as one person's update can be, {BEYOND}" in said
    write_report(RunResult.from_dict(noised), tmp_path / "report.html")
    assert BEYOND in (tmp_path / "report.html").read_text("utf-8")
    exact = run(tmp_path / "exact", base, federation__rounds=1)
    assert not any("ifferential privacy" in caveat for caveat in exact["caveats"])


@pytest.mark.parametrize("rounds", [1, 16])
def test_noise_longer_than_all_that_people_can_move_is_refused(base: dict[str, Any], rounds: int) -> None:
    """The noise on an element of the mean, over all rounds, against everybody's longest updates in a line."""
    passed: list[float] = []
    refused: dict[float, str] = {}
    for epsilon in (8.0, 2.0, 1.0, 0.5, 0.25, 0.12, 0.06):
        asked = base | {"privacy.dp_epsilon": epsilon, "federation.rounds": rounds}
        try:
            world = prepare(RunConfig().changed(asked), BENCHES)
        except PrivacyError as error:
            refused[epsilon] = str(error)
            continue
        figures, plan = world.privacy_figures(), world.config.plan("main", world.cohort)
        noise = UpdateLayout.of(plan, world.model_cache.of(plan).split).noise
        assert figures is not None
        assert noise is not None
        assert figures.noise_norm / math.sqrt(noise.size) <= math.sqrt(rounds)
        passed.append(epsilon)
    assert min(passed) > max(refused)
    assert refused[max(refused)].startswith(
        "nothing can be learned in this run: if everybody wanted the same"
    )


def test_models_that_promise_more_than_they_keep_are_said_to(base: dict[str, Any], tmp_path: Path) -> None:
    """People are tested on what they were asked, with other prompts, and everybody has changed their mind."""

    def turned(person: Person) -> Person:
        return replace(person, test=tuple(Preference("", row.rejected, row.chosen) for row in person.train))

    config = RunConfig().changed(base | {"federation.rounds": 1, "training.final_fit_epochs": 40})
    world = prepare(config, BENCHES)
    people = tuple(turned(person) for person in world.federation.people)
    world = replace(world, federation=replace(world.federation, people=people))
    run_directory.create(tmp_path / "run", config)
    found = simulate(world, tmp_path / "run", command="test")
    (said,) = (caveat for caveat in found.caveats if "surest" in caveat)
    assert said.startswith("Where the models are surest (the 18 held-out choices with the largest margins)")
    write_report(found, tmp_path / "report.html")
    assert "Where the models are surest" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("secagg", [True, False], ids=["masked", "plain"])
@pytest.mark.parametrize("share", SHARES)
def test_every_share_with_everything_on(
    base: dict[str, Any], tmp_path: Path, share: str, secagg: bool
) -> None:
    """Warm-up where there is a split, the personal part first, batches, epochs, FedAdam, a cohort of some."""
    result = run(
        tmp_path / "run",
        base,
        adapter__share=share,
        privacy__secagg=secagg,
        federation__rounds=4,
        federation__warmup_rounds=1 if share in SPLIT else 0,
        federation__cohort=5,
        federation__server_optimizer="fedadam",
        federation__server_lr=0.01,
        training__update_order="personal-first",
        training__batch_size=2,
        training__local_epochs=3,
    )
    log = result["rounds_log"]
    assert [row["round"] for row in log] == [1, 2, 3, 4]
    assert [row["phase"] for row in log] == ["warmup" if share in SPLIT else "main", *["main"] * 3]
    assert all(row["cohort"] == row["survivors"] == 5 and row["attempt"] == 1 for row in log)
    assert all(row["train_loss"] > 0 and 0 <= row["val_accuracy"] <= 1 for row in log)
    assert all(row["bytes_up"] > 0 and row["bytes_down"] > 0 for row in log)
    if share != "meta":  # a start to adapt from need not be better itself
        assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert result["secagg"] is secagg
    assert any("the server saw every single update" in line for line in result["caveats"]) is not secagg
    scores = [row["accuracy"] for row in result["per_client"]]
    assert [row["n_test"] for row in result["per_client"]] == [3] * PEOPLE
    assert result["accuracy"]["personal"] == pytest.approx(sum(scores) / PEOPLE)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


class Stops(Progress):
    """Ends the process' work after a round, as a key would."""

    def round(self, log: RoundLog, last: int) -> None:
        if log.round == 2:
            raise KeyboardInterrupt


def test_a_fleet_that_finds_its_spread_ends_the_same_when_interrupted_and_without_masks(
    base: dict[str, Any], tmp_path: Path
) -> None:
    """Share mixed: the shared number moves by votes on held-out choices, and by no other way."""
    changes = {"adapter.share": "mixed", "federation.rounds": 4, "data.validation_pairs": 2}
    changes |= {"training.lr_personal": 0.3, "training.local_epochs": 6}  # deviations that have a say
    config = RunConfig().changed(base | changes)
    run_directory.create(tmp_path / "stopped", config)
    with pytest.raises(KeyboardInterrupt):
        simulate(prepare(config, BENCHES), tmp_path / "stopped", Stops(), command="test")
    resume(tmp_path / "stopped")
    masked = {key.replace(".", "__"): value for key, value in changes.items()}
    run(tmp_path / "whole", base, **masked)
    assert left(tmp_path / "stopped") == left(tmp_path / "whole")
    run(tmp_path / "plain", base, **masked, privacy__secagg=False)
    run(tmp_path / "unheld", base, **masked | {"data__validation_pairs": 0})
    one, other, unheld = (spread_and_rest(tmp_path / name) for name in ("whole", "plain", "unheld"))
    assert one[1] == pytest.approx(other[1], abs=2e-3)  # sums are rounded, and training goes on from them
    assert one[0] == pytest.approx(other[0], abs=2e-3)
    assert abs(one[0]) > 0
    assert unheld[0] == 0
    chosen, none = (
        run_directory.read_result(tmp_path / name)["models_in_use"] for name in ("whole", "unheld")
    )
    assert sum(chosen.values()) == PEOPLE
    assert none is None, "without held-out choices there is nothing to choose by"


def test_training_that_says_nothing_better_ends_early_with_the_best_rounds_factors(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps too small to change any order: round 1 is as good as any after it, which ends training where no
    fall is taken for one."""
    monkeypatch.setattr(stopping, "_is_worse", lambda counts, best, rounds: True)
    changes: dict[str, Any] = {"federation.stop_after": 2, "federation.rounds": 9, "data.validation_pairs": 2}
    changes |= {"training.lr_shared": 1e-6, "training.lr_personal": 0.0, "training.lr_head": 1e-6}
    changes |= {"federation.cohort": PEOPLE}
    masked = {key.replace(".", "__"): value for key, value in changes.items()}
    result = run(tmp_path / "whole", base, **masked)
    assert [row["round"] for row in result["rounds_log"]] == [1, 2, 3, 4, 5, 6]
    assert result["best_round"] == 1
    assert any("after round 1" in line and "6 of 9 rounds" in line for line in result["caveats"])
    config = run_directory.read_config(tmp_path / "whole")
    journal = Journal(tmp_path / "whole")
    try:
        kept = {number: journal.load(number)[1].factors.tobytes() for number in (1, 6, 10)}
        closing = journal.logs()[-1]
    finally:
        journal.close()
    assert (closing.round, closing.phase, closing.measured_on) == (10, "close", 1)
    assert kept[10] == kept[1] != kept[6]
    run_directory.create(tmp_path / "stopped", config)
    with pytest.raises(KeyboardInterrupt):
        simulate(prepare(config, BENCHES), tmp_path / "stopped", Stops(), command="test")
    resume(tmp_path / "stopped")
    assert left(tmp_path / "stopped") == left(tmp_path / "whole")


def spread_and_rest(directory: Path) -> tuple[float, list[float]]:
    """The shared number that says how far people lie apart, at the end of a run; and the other factors."""
    world = prepare(run_directory.read_config(directory), BENCHES)
    split = world.model_cache.of(world.config.plan("main", world.cohort)).split
    journal = Journal(directory)
    try:
        named = split.shared.named(journal.load()[1].factors)
    finally:
        journal.close()
    spread = named.pop(split.spread_tensor)
    return float(spread[0]), np.concatenate([one.ravel() for one in named.values()]).tolist()


def test_a_run_of_no_rounds_only_fits_everybody_to_the_common_start(
    base: dict[str, Any], tmp_path: Path
) -> None:
    result = run(tmp_path / "run", base, federation__rounds=0)
    assert result["rounds_log"] == []
    assert len(left(tmp_path / "run")["checkpoints"]) == 1  # of the closing round
    assert all(kept is not None and kept[0] == 1 for kept in left(tmp_path / "run")["own"])


# --- the same, and not the same ---------------------------------------------------------------------------


def test_without_validation_pairs_a_run_learns_and_has_no_validation_accuracy(
    base: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", base, data__validation_pairs=0)
    assert {row["val_accuracy"] for row in whole["rounds_log"]} == {None}
    assert 0 < whole["accuracy"]["personal"] <= 1
    losses = [row["train_loss"] for row in whole["rounds_log"]]
    assert losses[-1] < losses[0]


def test_people_without_validation_pairs_can_not_be_scored_on_them(base: dict[str, Any]) -> None:
    changes = {"data.dataset": "senate", "data.person_column": "", "data.time_cutoff": 0.05}
    config = RunConfig().changed(base | changes | {"data.evaluate": "validation"})
    with pytest.raises(DataError, match="of 100 people have no validation pairs, among them"):
        prepare(config, BENCHES)


def test_how_many_clients_are_served_at_a_time_changes_nothing(base: dict[str, Any], tmp_path: Path) -> None:
    own_settings = ("config", "digests")
    for workers in (1, 2, 5):
        run(tmp_path / str(workers), base, workers=workers, training__batch_size=2, federation__cohort=5)
    one, two, five = (left(tmp_path / n, without=own_settings) for n in ("1", "2", "5"))
    assert one == two == five


def test_another_seed_gives_another_result(base: dict[str, Any], tmp_path: Path) -> None:
    results = [run(tmp_path / str(seed), base, seed=seed)["rounds_log"] for seed in (0, 1)]
    losses = [[row["train_loss"] for row in log] for log in results]
    assert losses[0] != losses[1]
    checkpoints = [left(tmp_path / str(seed))["checkpoints"] for seed in (0, 1)]
    assert set(checkpoints[0].values()).isdisjoint(checkpoints[1].values())


# --- clients that fail --------------------------------------------------------------------------------------


def unreachable(*clients: int, stage: str = "", until: int = 10**9) -> Fault:
    """These clients can't be reached in a stage (or in any of a round), for their first `until` messages."""
    seen: Counter[int] = Counter()

    def fault(node: int, kind: str) -> bool:
        if node - FIRST_NODE not in clients or kind == message_type("status"):
            return False
        if stage and kind != message_type(stage):
            return False
        seen[node] += 1
        return seen[node] <= until

    return fault


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "confirm", "unmask"])
def test_two_of_seven_may_be_lost_in_any_stage_of_every_round(
    base: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    result = run(tmp_path / "run", base, fault=unreachable(2, 5, stage=stage))
    lost_late = stage in ("confirm", "unmask")  # their vectors were there already
    assert [row["survivors"] for row in result["rounds_log"]] == [7 if lost_late else 5] * 3
    assert dropped(tmp_path / "run") == [{stage: 2}] * 4
    assert len(result["per_client"]) == PEOPLE


def test_who_never_takes_part_is_ranked_with_the_common_start(base: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path / "run", base, fault=unreachable(2, 5))
    own = left(tmp_path / "run")["own"]
    assert [i for i, kept in enumerate(own) if kept is None] == [2, 5]
    assert len(result["per_client"]) == PEOPLE


def test_the_same_failures_give_the_same_result(base: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "other"):
        run(tmp_path / name, base, fault=unreachable(0, 6, stage="masked"))
    assert left(tmp_path / "one") == left(tmp_path / "other")


def test_a_client_that_answers_after_the_deadline_is_not_waited_for(
    base: dict[str, Any], tmp_path: Path
) -> None:
    """Its vector comes when the round is over: the sum is that of the others; the next round has it again."""
    over = threading.Event()
    slow = Counter[str]()

    def fault(node: int, kind: str) -> bool:
        if node == FIRST_NODE + 3 and kind == message_type("masked"):
            slow[kind] += 1
            if slow[kind] == 1:
                over.wait(60)
        elif kind == message_type("unmask"):
            over.set()
        return False

    result = run(
        tmp_path / "run", base, fault=fault, workers=3, federation__rounds=2, federation__deadline_seconds=4.0
    )
    assert over.is_set()
    assert [row["survivors"] for row in result["rounds_log"]] == [6, 7]
    assert dropped(tmp_path / "run")[0] == {"masked": 1}


def test_an_attempt_that_lost_too_many_is_tried_again(base: dict[str, Any], tmp_path: Path) -> None:
    """Three of seven are gone once: the round fails without a sum, and its second attempt has them all."""
    result = run(tmp_path / "run", base, fault=unreachable(0, 1, 2, stage="shares", until=1))
    assert [(row["attempt"], row["survivors"]) for row in result["rounds_log"]] == [(2, 7), (1, 7), (1, 7)]
    undisturbed = tmp_path / "undisturbed"
    run(undisturbed, base)
    one, other = left(tmp_path / "run"), left(undisturbed)
    assert one["checkpoints"] == other["checkpoints"]
    assert [vector for _, vector in one["own"]] == [vector for _, vector in other["own"]]


# --- too few ----------------------------------------------------------------------------------------------


def test_too_few_clients_end_the_run_and_it_goes_on_when_they_are_back(
    base: dict[str, Any], tmp_path: Path
) -> None:
    rounds = Counter[int]()

    def fault(node: int, kind: str) -> bool:
        """From round 2 on three clients are gone once they are on the roster."""
        rounds[node] += kind == message_type("keys")
        return node < FIRST_NODE + 3 and rounds[node] >= 2 and kind == message_type("shares")

    with pytest.raises(TooManyDropouts):
        run(tmp_path / "run", base, fault=fault)
    assert rounds[FIRST_NODE + 6] == 1 + 3  # round 1, and three attempts of round 2
    assert not (tmp_path / "run" / "result.json").exists()
    journal = Journal(tmp_path / "run")
    assert [(row.round, row.attempt, row.state) for row in journal.rows()] == [
        (1, 1, "finished"), (2, 1, "failed"), (2, 2, "failed"), (2, 3, "failed"),
    ]  # fmt: skip
    journal.close()

    resume(tmp_path / "run")
    run(tmp_path / "undisturbed", base)
    assert left(tmp_path / "run") == left(tmp_path / "undisturbed")


def test_the_operator_may_ask_for_more_than_the_protocol_needs(base: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TooFewDevices, match=r"6 clients sent their part, federation\.min_survivors is 7"):
        run(
            tmp_path / "run",
            base,
            fault=unreachable(4, stage="masked"),
            federation__min_survivors=7,
            federation__attempts=1,
        )
    assert resume(tmp_path / "run")["rounds_log"][0]["survivors"] == 7


def test_too_few_clients_are_one_line_and_exit_1(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same command with --resume ends with exit 0 and what it would have been."""
    settings = RunConfig().changed(base | {"federation.rounds": 1, "federation.attempts": 2})
    (tmp_path / "settings.toml").write_text(settings.to_toml())
    out = tmp_path / "run"
    words = ["penchant", "simulate", "--config", str(tmp_path / "settings.toml"), "--out", str(out)]

    def with_fault(*args: Any, **more: Any) -> Any:
        return simulation.simulate(*args, **more, fault=unreachable(0, 1, 2, stage="shares"))

    monkeypatch.setattr("sys.argv", words)
    with monkeypatch.context() as patch:
        patch.setattr(show_simulation, "simulate", with_fault)
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        "penchant: 3 of 7 devices lost by stage shares, at most 2 may be: nothing was revealed; "
        "try again with more devices"
    )
    assert not any("Traceback" in line for line in said)

    monkeypatch.setattr("sys.argv", ["penchant", "simulate", "--resume", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    run(tmp_path / "undisturbed", base, federation__rounds=1, federation__attempts=2)
    without = ("command",)
    assert left(tmp_path / "run", without=without) == left(tmp_path / "undisturbed", without=without)


def test_strengths_of_a_file_are_learned_from_in_simulation_one_by_one_or_together(
    base: dict[str, Any], tmp_path: Path
) -> None:
    """The same pairs are tested on and counted as without them; alike strengths give the same bits."""
    rows = [json.loads(row) for row in Path(base["data.dataset"]).read_text(encoding="utf-8").splitlines()]

    def told(name: str, strengths: Callable[[int], float], **changes: Any) -> dict[str, Any]:
        file = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({**row, "margin": strengths(n)}) for n, row in enumerate(rows)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return run(tmp_path / name, base, data__dataset=str(file), **changes)

    plain = run(tmp_path / "plain", base)
    alike = told("alike", lambda n: 2.5)
    strong = told("strong", lambda n: 1.0 + n % 4)
    together = told("together", lambda n: 1.0 + n % 4, batch_people=4)
    assert [r["train_loss"] for r in alike["rounds_log"]] == [r["train_loss"] for r in plain["rounds_log"]]
    assert alike["per_client"] == plain["per_client"]
    losses = [[r["train_loss"] for r in found["rounds_log"]] for found in (plain, strong, together)]
    assert losses[1] != losses[0]
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    for key in ("n_train", "n_test"):
        assert [c[key] for c in strong["per_client"]] == [c[key] for c in plain["per_client"]]
    assert "choices say how strong they are" in " ".join(strong["caveats"])


def test_ties_of_a_file_are_learned_from_judged_apart_and_in_no_count(
    base: dict[str, Any], tmp_path: Path
) -> None:
    """People have as many choices to learn from and to be judged by as without them."""
    rows = Path(base["data.dataset"]).read_text(encoding="utf-8").splitlines()
    people: dict[str, int] = {}
    for row in map(json.loads, list(rows)):
        people[row["user"]] = people.get(row["user"], 0) + 1
        if people[row["user"]] % 3 == 0:
            rows.append(json.dumps(row | {"rejected": f"{row['rejected']} so so", "tie": "equal"}))
    file = tmp_path / "choices.jsonl"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    plain = run(tmp_path / "plain", base)
    tied = run(tmp_path / "tied", base, data__dataset=str(file))
    open_sums = run(tmp_path / "open", base, data__dataset=str(file), privacy__secagg=False)
    assert [c["n_test"] for c in tied["per_client"]] == [c["n_test"] for c in plain["per_client"]]
    assert [c["n_train"] for c in tied["per_client"]] == [c["n_train"] for c in plain["per_client"]]
    assert tied["digests"]["data"] != plain["digests"]["data"]
    assert [r["train_loss"] for r in tied["rounds_log"]] != [r["train_loss"] for r in plain["rounds_log"]]
    assert tied["per_client"] == open_sums["per_client"]
    said = " ".join(tied["caveats"])
    assert "ties, in which neither response was preferred: kept as ties" in said
    assert "held-out pairs in which people preferred neither response are left out of the accuracy" in said
    assert "preferred neither" not in " ".join(plain["caveats"])
