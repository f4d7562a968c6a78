"""A race between settings: the right one wins, luck chooses nothing dear, and a kill repeats nothing."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import WORDS

import penchant
from penchant.client.vault.vault import Vault
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Federation, Person, Preference
from penchant.common.errors import (
    ConfigError,
    DataError,
    DeviceError,
    RoundFailed,
    RunDirectoryError,
    UsageError,
)
from penchant.common.privacy.accounting import rho_of
from penchant.common.secagg import update_vector
from penchant.deploy import run_directory
from penchant.deploy.cli.main import main
from penchant.deploy.json_tables import plain_value
from penchant.deploy.report import run_page
from penchant.deploy.simulation import candidates, race, runner
from penchant.deploy.simulation.candidates import CANDIDATES
from penchant.deploy.simulation.devices import SimulatedDevices
from penchant.deploy.simulation.race import SPARE, RacePlan, is_racing
from penchant.deploy.simulation.race_record import RACE, Entrant, Heat, Race, RaceRecord
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import Progress
from penchant.server.journal import RoundLog

PEOPLE = 6
TWO = {
    "AB": {"adapter.share": "AB", "training.lr_head": 0.03},
    "lore": {
        "adapter.share": "lore",
        "adapter.rank": 2,
        "training.lr_shared": 0.1,
        "training.lr_personal": 0.1,
    },
}


def people(apart: bool, seed: int = 0) -> Federation:
    """Everybody likes the same words; or every second person likes them the other way round."""
    made = []
    for number in range(PEOPLE):
        draw, turned = random.Random(f"{seed} {number}"), apart and number % 2
        pairs = []
        for asked in range(40):
            better, worse = sorted(draw.sample(WORDS, 2), key=WORDS.index, reverse=bool(turned))
            pairs.append(Preference(f"{number} {asked} ", better, worse))
        made.append(Person(f"p{number}", tuple(pairs[:24]), tuple(pairs[24:34]), tuple(pairs[34:])))
    return Federation("made up", tuple(made))


@pytest.fixture(scope="module")
def asked(tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """The settings of a small race, without masks, which change no sum."""
    return {
        "model.base_model": str(tiny_model("bert")),
        "data.pairs": 24,
        "data.validation_pairs": 10,
        "data.test_pairs": 6,
        "federation.rounds": 9,
        "federation.cohort": 5,
        "training.local_epochs": 8,
        "training.final_fit_epochs": 2,
        "privacy.secagg": False,
        "workers": 1,
    }


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "CANDIDATES", TWO)


def raced(
    directory: Path, asked: dict[str, Any], who: Federation, progress: Progress | None = None
) -> RunResult:
    plan = RacePlan.of(asked, who)
    plan.begin(directory)
    world = plan.run(directory, progress)
    return simulate(world, directory, command="test")


def told(directory: Path) -> dict[str, Any]:
    """The result without times."""
    table = json.loads((directory / "result.json").read_text())
    for log in table["rounds_log"]:
        log.pop("seconds")
    return {key: value for key, value in table.items() if key not in ("wall_seconds", "peak_rss_mb")}


# --- who wins --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two")
def test_where_people_differ_what_is_personal_wins_though_it_is_dearer(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    result = raced(tmp_path / "run", asked, people(apart=True))
    assert result.race is not None
    assert (result.race.chosen, result.share) == ("lore", "lore")
    one, other = result.race.entrants
    assert (one.name, other.name) == ("AB", "lore")
    assert one.rounds == other.rounds == result.race.rounds == 4
    assert one.judged == other.judged == 3 * 5 * 10  # the same people, the same number of choices
    assert (one.accuracy or 0) < 0.6 < (other.accuracy or 0)
    assert result.rounds == 9
    assert [log.round for log in result.rounds_log] == list(range(1, len(result.rounds_log) + 1))
    assert RunResult.read(tmp_path / "run") == RunResult.from_dict(result.to_dict())
    assert "chosen" in (tmp_path / "run" / "race.json").read_text()
    assert run_directory.read_config(tmp_path / "run").adapter.share == "lore"
    assert {path.name for path in (tmp_path / "run" / RACE).iterdir()} == {"AB"}


@pytest.mark.usefixtures("two")
def test_what_counts_do_not_tell_apart_goes_to_the_cheapest(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"first": TWO["lore"], "second": {**TWO["lore"], "training.weight_decay": 1e-9}}
    monkeypatch.setattr(candidates, "CANDIDATES", same)
    plan = RacePlan.of(asked, people(apart=True))
    plan.begin(tmp_path)
    plan.run(tmp_path)
    record = RaceRecord.read(tmp_path)
    assert record is not None
    assert record.chosen == "first"


@pytest.mark.usefixtures("two")
def test_the_test_part_is_not_read(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other test pairs, turned round and fewer, leave counts and choice as they are; nothing is scored."""

    def scored(*_: object) -> None:
        raise AssertionError("a race looked at somebody's test part")

    monkeypatch.setattr(SimulatedDevices, "scores", scored)
    who = people(apart=True)
    turned = tuple(
        replace(p, test=tuple(Preference(t.prompt, t.rejected, t.chosen) for t in p.test[:2]))
        for p in who.people
    )
    found = []
    for name, one in (("as it is", who), ("turned", replace(who, people=turned))):
        plan = RacePlan.of(asked, one)
        plan.begin(tmp_path / name)
        plan.run(tmp_path / name)
        record = RaceRecord.read(tmp_path / name)
        assert record is not None
        found.append((record.chosen, [(e.accuracy, e.judged, e.rounds) for e in record.entrants]))
    assert found[0] == found[1]


@pytest.mark.usefixtures("two")
def test_a_candidate_whose_training_fails_is_out_and_all_failing_is_an_error(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.train_until
    failing = {"lore"}

    def train(world: Any, home: Path, *rest: Any, **more: Any) -> Any:
        if home.name in failing:
            raise DeviceError("its training diverged")
        return real(world, home, *rest, **more)

    monkeypatch.setattr(race, "train_until", train)
    plan = RacePlan.of(asked, people(apart=True))
    plan.begin(tmp_path / "one")
    plan.run(tmp_path / "one")
    record = RaceRecord.read(tmp_path / "one")
    assert record is not None
    assert record.chosen == "AB"
    assert record.entrants[1].told == "its training diverged"
    failing.add("AB")
    plan.begin(tmp_path / "all")
    with pytest.raises(DeviceError, match="diverged"):
        plan.run(tmp_path / "all")


# --- a kill ----------------------------------------------------------------------------------------------


class Stops(Progress):
    """Ends everything after so many rounds."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.seen: list[int] = []

    def round(self, log: RoundLog, last: int) -> None:
        self.seen.append(log.round)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("two")
def test_resumed_it_ends_as_if_nothing_had_been(asked: dict[str, Any], tmp_path: Path) -> None:
    who = people(apart=True)
    whole = raced(tmp_path / "whole", asked, who)
    for cut in (2, 6):  # in either candidate
        directory = tmp_path / f"cut {cut}"
        with pytest.raises(KeyboardInterrupt):
            raced(directory, asked, who, Stops(cut))
        assert is_racing(directory)
        heard = Stops(-1)
        plan = RacePlan.resumed(directory, who)
        world = plan.run(directory, heard)
        assert len(heard.seen) == 8 - cut  # two candidates of four rounds; none is trained twice
        assert not is_racing(directory)
        resumed = simulate(world, directory, command="test")
        assert resumed.race == whole.race
        assert told(directory) == told(tmp_path / "whole")


@pytest.mark.usefixtures("two")
def test_a_kill_while_the_winner_moves_up_loses_nothing(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = people(apart=True)
    raced(tmp_path / "whole", asked, who)
    moved = 0
    real = os.replace

    def replaced(*paths: Path) -> None:
        nonlocal moved
        if Path(paths[0]).parent.parent.name == RACE:
            moved += 1
            if moved == 3:
                raise KeyboardInterrupt
        real(*paths)

    monkeypatch.setattr(os, "replace", replaced)
    directory = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        raced(directory, asked, who)
    world = RacePlan.resumed(directory, who).run(directory)
    simulate(world, directory, command="test")
    assert told(directory) == told(tmp_path / "whole")


# --- noise -----------------------------------------------------------------------------------------------


def spent_in(directory: Path) -> dict[str, float]:
    """What every person's device has paid, by its ledgers in all the runs of a race."""
    total: dict[str, float] = {}
    for home in sorted(directory.rglob("agents/*")):
        total[home.name] = total.get(home.name, 0.0) + Vault(home).privacy.spent().rho
    return total


@pytest.fixture
def noised(two: None, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a small race with noise."""
    monkeypatch.setattr(update_vector, "COUNT_ERROR", 10.0)  # so few people's counts are hidden elsewhere
    return asked | {
        "privacy.secagg": True,
        "privacy.dp_epsilon": 8.0,
        "privacy.min_honest": 1,
        "privacy.max_colluders": 0,
        "federation.rounds": 4,
        "training.local_epochs": 1,
    }


class Fails:
    """Has all devices silent in one exchange of the attempts that are named, counted from 1."""

    def __init__(self, stage: str, failing: Callable[[int], bool]) -> None:
        self._stage, self._failing = stage, failing
        self.tries, self._was = 0, ""

    def __call__(self, node: int, kind: str) -> bool:
        stage = kind.rpartition(".")[2]
        if stage == "keys" != self._was:
            self.tries += 1
        self._was = stage
        return stage == self._stage and self._failing(self.tries)


def test_race_and_run_together_keep_the_epsilon(noised: dict[str, Any], tmp_path: Path) -> None:
    result = raced(tmp_path / "run", noised, people(apart=True))
    assert result.dp is not None
    assert result.race is not None
    race_turns = 4  # of 4 rounds with 5 of 6 people each
    assert result.race.participations == race_turns
    assert result.dp.participations == 4 + 1 + race_turns + SPARE
    assert result.dp.epsilon == 8.0
    spent = spent_in(tmp_path / "run")
    assert len(spent) == PEOPLE
    assert max(spent.values()) <= rho_of(8.0, 1e-5)
    used = (
        4 + 1 + race_turns
    ) / result.dp.participations  # all of it but the spare turn, and but for rounding
    assert max(spent.values()) > 0.95 * used * rho_of(8.0, 1e-5)
    assert result.race.epsilon is not None
    assert result.race.epsilon_left is not None
    assert (
        result.race.epsilon < result.race.epsilon_left < 8.0 < result.race.epsilon + result.race.epsilon_left
    )


@pytest.mark.parametrize("rounds", [4, 8])
def test_attempts_that_fail_after_the_race_spend_no_more_than_is_left(
    noised: dict[str, Any], rounds: int, tmp_path: Path
) -> None:
    """Two of three attempts fail with all vectors sent: devices leave the run before epsilon is spent."""
    plan = RacePlan.of(noised | {"federation.rounds": rounds}, people(apart=True))
    plan.begin(tmp_path)
    world = plan.run(tmp_path)
    with suppress(RoundFailed):
        simulate(world, tmp_path, command="test", fault=Fails("confirm", lambda number: bool(number % 3)))
    spent = spent_in(tmp_path)
    assert max(spent.values()) <= rho_of(8.0, 1e-5)
    over = Race.read(tmp_path)
    figures = world.privacy_figures()
    assert over is not None
    assert over.epsilon_left is not None
    assert figures is not None
    own = max(Vault(home).privacy.spent().rho for home in (tmp_path / "agents").iterdir())
    assert own <= rho_of(over.epsilon_left, figures.delta) * (1 + 1e-9)
    with suppress(RoundFailed):  # nor when it goes on
        simulate(world, tmp_path, command="test", fault=Fails("confirm", lambda number: True))
    assert max(spent_in(tmp_path).values()) <= rho_of(8.0, 1e-5)


@pytest.mark.parametrize(
    ("stage", "paid"),
    [
        ("keys", 0),  # nothing has left
        ("shares", 0),
        ("confirm", 1),
        ("unmask", 0),  # a round that is skipped is not tried again
    ],
)
def test_a_race_outlives_an_attempt_of_a_loser_that_fails(
    noised: dict[str, Any], stage: str, paid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fails(stage, lambda number: number == 2)  # in the first candidate
    monkeypatch.setattr(runner, "simulate", partial(simulate, fault=fault))
    monkeypatch.setattr(race, "going_on", lambda standings, stay: [1])
    plan = RacePlan.of(noised, people(apart=True))
    plan.begin(tmp_path)
    result = simulate(plan.run(tmp_path), tmp_path, command="test")
    assert result.race is not None
    loser = result.race.entrants[0]
    assert not loser.why
    assert loser.tried == (4 if stage == "unmask" else 5)
    assert loser.paid == 4 + paid
    assert result.race.participations == 4 + paid
    assert max(spent_in(tmp_path).values()) <= rho_of(8.0, 1e-5)


def test_a_candidate_that_would_take_more_than_is_set_aside_is_out(
    noised: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fails("confirm", lambda number: number in (2, 4))  # two failures, and one spare turn
    monkeypatch.setattr(runner, "simulate", partial(simulate, fault=fault))
    plan = RacePlan.of(noised, people(apart=True))
    plan.begin(tmp_path)
    result = simulate(plan.run(tmp_path), tmp_path, command="test")
    assert result.race is not None
    assert result.race.chosen == "lore"
    assert result.race.entrants[0].why
    assert result.race.participations == 4 + SPARE
    assert [log.round for log in result.rounds_log] == [1, 2, 3, 4]
    assert max(spent_in(tmp_path).values()) <= rho_of(8.0, 1e-5)


@pytest.mark.usefixtures("two")
def test_too_little_epsilon_for_a_race_is_refused_in_one_line(asked: dict[str, Any], tmp_path: Path) -> None:
    more = {"privacy.secagg": True, "privacy.dp_epsilon": 1.0, "privacy.max_colluders": 0}
    with pytest.raises(ConfigError) as refused:
        RacePlan.of(asked | more, people(apart=True))
    assert str(refused.value) == (
        "epsilon 1 is too little for a race: shared among 14 sums of 5 people, its noise hides the counts "
        "that a race goes by; raise it, ask more people a round, or name a share"
    )


# --- how far heats go ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entrants", "rounds", "cohort", "people", "heats"),
    [
        (5, 30, 10, 30, [Heat(6, 2), Heat(12, 1)]),  # twice everybody's turn first
        (5, 30, 30, 30, [Heat(4, 2), Heat(8, 1)]),
        (5, 30, 10, 3000, [Heat(7, 2), Heat(14, 1)]),  # half of the run at most
        (2, 30, 10, 30, [Heat(6, 1)]),
        (8, 60, 20, 60, [Heat(6, 4), Heat(12, 2), Heat(24, 1)]),
        (5, 8, 10, 30, [Heat(4, 2), Heat(8, 1)]),
    ],
)
def test_the_heats_of_a_race(entrants: int, rounds: int, cohort: int, people: int, heats: list[Heat]) -> None:
    assert race._heats(entrants, rounds, cohort, people) == heats


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "error", "line"),
    [
        ({"adapter.share": "A"}, UsageError, 'a race chooses the share, and "A" is asked for'),
        ({"federation.rounds": 7}, UsageError, "a race among 5 needs 8 rounds or more, and the run has 7"),
        ({"data.validation_pairs": 0}, ConfigError, "a race goes by held-out choices"),
        ({"grid": "ray"}, ConfigError, "a race runs on the local grid"),
        ({"adapter.rank": 0}, ConfigError, r"adapter\.rank is 0"),
    ],
)
def test_what_cannot_be_raced(
    asked: dict[str, Any], more: dict[str, Any], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        RacePlan.of(asked | more, people(apart=False))


def test_people_without_held_out_choices_cannot_race(asked: dict[str, Any]) -> None:
    who = people(apart=False)
    bare = replace(who, people=tuple(replace(p, validation=()) for p in who.people))
    with pytest.raises(DataError, match="nobody has choices to hold out"):
        RacePlan.of(asked, bare)


def test_what_is_asked_for_comes_before_a_candidate_and_each_configuration_races_once() -> None:
    found = candidates.candidates({"training.lr_shared": 0.02, "training.lr_head": 0.02})
    assert [one.name for one in found] == ["common", "lore", "AB", "A"]  # common-fast would be common
    assert {one.config.training.lr_shared for one in found} == {0.02}
    assert [one.name for one in candidates.candidates({})] == list(CANDIDATES)
    assert {one.config.federation.stop_after for one in candidates.candidates({})} == {8}


def test_a_depth_beside_the_last_is_raced_by_the_shares_it_is_for(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    """Where the default share suits what is asked for, the record says that one, as it always did."""
    beside = asked | {"model.beside": 1}
    plan = RacePlan.of(beside, people(apart=False))
    assert list(plan.worlds) == ["common", "common-fast", "lore"]
    assert (plan.asked.adapter.share, plan.asked.model.beside) == ("common", 1)
    usual = RacePlan.of(asked | {"federation.rounds": 24}, people(apart=False))
    assert usual.asked.adapter.share == RunConfig().adapter.share == "A"
    plan.begin(tmp_path / "race")
    again = RacePlan.resumed(tmp_path / "race", people(apart=False))
    assert again.record == plan.record
    assert again.asked.changed(beside) == again.asked
    assert again.asked.changed({"model.beside": 0}) != again.asked


def test_an_objective_without_a_head_leaves_those_that_need_none() -> None:
    found = candidates.candidates({"model.objective": "dpo"})
    assert [one.name for one in found] == ["AB", "A"]


def test_a_directory_that_is_in_use(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(RunDirectoryError, match="is in use"):
        RacePlan.of(asked, people(apart=False)).begin(tmp_path)
    with pytest.raises(RunDirectoryError, match="holds no race"):
        RacePlan.resumed(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"entrants": [3], "heats": []}', '{"entrants": [], "heats": [{"rounds": "x"}]}', "{"],
)
def test_a_damaged_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "race.json").write_text(text)
    with pytest.raises(RunDirectoryError):
        RaceRecord.read(tmp_path)


def test_a_race_in_words() -> None:
    entrants = (
        Entrant("AB", "AB", rounds=6, tried=6, accuracy=0.5, error=0.02, judged=300),
        Entrant("lore", "lore", heats=1, rounds=6, tried=6, accuracy=0.625, error=0.02),
        Entrant("A", "A", why="its training diverged"),
    )
    exact = Race("lore", entrants, rounds=6)
    assert exact.words() == "lore, by a race against 2 others that cost 6 rounds more"
    assert [one.told for one in entrants] == [
        "50.0 ± 2.0% after 6 rounds",
        "62.5 ± 2.0% after 6 rounds",
        "its training diverged",
    ]
    noised = replace(exact, participations=4, epsilon=3.21, epsilon_left=6.54)
    assert noised.words().endswith("and epsilon 3.21; the run itself costs 6.54 at most")
    assert Race.from_table(plain_value(noised)) == noised
    assert "epsilon 3.21 at most; the run itself costs 6.54 at most" in run_page._race_text(noised)
    assert run_page._race(noised)[0] == {
        "name": "AB",
        "share": "AB",
        "accuracy": "50.0 ± 2.0%",
        "judged": "300",
        "rounds": "6",
    }
    assert (run_page._race(None), run_page._race_text(None)) == ([], "")


# --- the faces -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two")
def test_the_command_and_the_same_from_python(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("penchant.deploy.cli.show_simulation.write_report", lambda result, path: None)
    rows = [
        {"person": person.name, "prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected}
        for person in people(apart=True).people
        for one in (*person.train, *person.validation, *person.test)
    ]
    choices = tmp_path / "choices.jsonl"
    choices.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = asked | {"data.pairs": 4, "data.validation_pairs": 3, "data.test_pairs": 3}
    config = tmp_path / "asked.toml"
    sections: dict[str, list[str]] = {}
    for key, value in few.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    order = sorted(sections)
    config.write_text("\n".join(f"[{s}]\n" * bool(s) + "\n".join(sections[s]) for s in order) + "\n")

    def penchant_says(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["penchant", *map(str, words)])
        with pytest.raises(SystemExit) as leave:
            main()
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    words = ("simulate", "--config", config, "--dataset", choices, "--auto")
    code, out, err = penchant_says(*words, "--out", tmp_path / "run")
    assert code == 0, err
    assert "A race chooses the settings first, among AB, lore: 4 rounds beside the 9 of the run" in " ".join(
        err.split()
    )
    assert "chosen by a race, held-out choices" in out
    code, again, _ = penchant_says("simulate", "--resume", tmp_path / "run")
    assert code == 0
    assert "chosen by a race" in again
    short = {key.rpartition(".")[2]: value for key, value in few.items()}
    found = penchant.simulate(choices, auto=True, out=tmp_path / "api", **short)
    assert found.race is not None
    shown = RunResult.read(tmp_path / "run")
    assert shown is not None
    assert found.race == shown.race
    assert penchant.simulate(choices, auto=True, out=tmp_path / "api", **short).race == found.race
    with pytest.raises(RunDirectoryError, match="a race of another configuration"):
        penchant.simulate(choices, auto=True, out=tmp_path / "api", **short | {"rounds": 8})
    with pytest.raises(UsageError, match="auto chooses settings that config or recipe have"):
        penchant.simulate(choices, RunConfig(), auto=True)
    assert penchant_says(*words, "--share", "A", "--out", tmp_path / "x")[0] == 2
    assert penchant_says(*words, "--resume", tmp_path / "run")[0] == 2
    assert not (tmp_path / "x").exists()
