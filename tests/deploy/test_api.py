"""`import penchant`: data from memory, settings by name, results that know their models, comparisons."""

from __future__ import annotations

import gc
import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import penchant
from penchant.common.data.preferences import Person, Preference
from penchant.common.errors import BaseModelError, ConfigError, DataError, RunDirectoryError, UsageError
from penchant.common.settings import RenamedSetting
from penchant.deploy import run_directory
from penchant.deploy.datasets.loader import DatasetLoader
from penchant.deploy.error_report import ErrorReport
from penchant.deploy.simulation.result import RunResult
from penchant.deploy.simulation.runner import simulate as simulate_in
from penchant.deploy.simulation.world import prepare

WORDS = ["motion", "bill", "vote", "table", "cloture", "judge", "budget", "tax"]
NAMES = ("ann", "bob", "cy", "dee", "eve")
SIZES: dict[str, Any] = {"pairs": 6, "validation_pairs": 3, "test_pairs": 12}


def rows() -> list[dict[str, str]]:
    """Rows of five people, 60 prompts each; which response wins is theirs alone."""
    draw = random.Random(0)
    made = []
    for name in NAMES:
        taste = draw.sample(WORDS, len(WORDS))
        for number in range(60):
            better, worse = sorted(draw.sample(WORDS, 2), key=taste.index)
            asked = " ".join([name, *draw.choices(WORDS, k=draw.randrange(20)), f"{number} "])
            made.append({"person": name, "prompt": asked, "chosen": better, "rejected": worse})
    return made


def by_person(form: Callable[[dict[str, str]], Any]) -> dict[str, list[Any]]:
    return {name: [form(row) for row in rows() if row["person"] == name] for name in NAMES}


def as_preference(row: dict[str, str]) -> Preference:
    return Preference(row["prompt"], row["chosen"], row["rejected"])


def as_tuple(row: dict[str, str]) -> tuple[str, str, str]:
    return row["prompt"], row["chosen"], row["rejected"]


def as_row(row: dict[str, str]) -> dict[str, str]:
    return {name: row[name] for name in ("prompt", "chosen", "rejected")}


class Table:
    """As a `datasets.Dataset`: columns, and rows when it is iterated."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.column_names = list(rows[0])
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self._rows)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture(scope="module")
def small(tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """Settings of a small and quick run, by their short names."""
    return {
        "base_model": str(tiny_model("bert")),
        "local_epochs": 2,
        "rounds": 2,
        "cohort": 4,
        "secagg": False,
    }


@pytest.fixture(scope="module")
def result(small: dict[str, Any]) -> penchant.SimulationResult:
    return penchant.simulate(penchant.load_preferences(by_person(as_preference), **SIZES), **small)


# --- data -----------------------------------------------------------------------------------------


def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(rows())


def test_strengths_come_with_preferences_rows_and_tables() -> None:
    pandas = pytest.importorskip("pandas")
    strong = [{**row, "strength": float(1 + n % 3) if n % 2 else None} for n, row in enumerate(rows())]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in strong:
        by_name.setdefault(row["person"], []).append(row)
    preferences = {
        name: [Preference(r["prompt"], r["chosen"], r["rejected"], "", r["strength"]) for r in own]
        for name, own in by_name.items()
    }
    table = pandas.DataFrame(strong)
    assert table["strength"].isna().any()  # an empty cell among numbers
    loaded = [penchant.load_preferences(source, **SIZES) for source in (strong, by_name, preferences, table)]
    assert len({one.digest for one in loaded}) == 1
    assert {pair.strength for person in loaded[0].people for pair in person.train} == {None, 1.0, 2.0, 3.0}
    with pytest.raises(DataError, match="'strength' must be a number"):
        penchant.load_preferences([{**row, "strength": -1} for row in rows()], **SIZES)


@pytest.mark.parametrize(
    "form", [dict, lambda row: penchant.Preference(row["prompt"], row["chosen"], row["rejected"], row["tie"])]
)
def test_ties_come_with_preferences_and_rows_in_every_form(form: Callable[..., Any]) -> None:
    """Of every prompt a tie beside the choice; choices are as without them."""
    plain = penchant.load_preferences(by_person(as_row), **SIZES)
    given = {
        name: [*own, *(form({**row, "rejected": f"{row['rejected']} so so", "tie": "equal"}) for row in own)]
        for name, own in by_person(as_row).items()
    }
    loaded = penchant.load_preferences(given, **SIZES)
    for person, before in zip(loaded.people, plain.people, strict=True):
        for part in ("train", "test"):
            pairs = getattr(person, part)
            assert tuple(pair for pair in pairs if not pair.tie) == getattr(before, part)
            assert sum(pair.tie == "equal" for pair in pairs) == len(getattr(before, part))
    assert any("ties, in which neither response was preferred: kept" in caveat for caveat in loaded.caveats)


@pytest.mark.parametrize(
    "source",
    [
        lambda: by_person(as_preference),
        lambda: by_person(as_tuple),
        lambda: by_person(as_row),
        lambda: Table(rows()),
        lambda: (row for row in rows()),
        frame,
    ],
    ids=["preferences", "tuples", "rows", "dataset", "iterator", "pandas"],
)
def test_every_form_gives_the_same_people_as_a_file(source: Callable[[], Any], rows_file: Path) -> None:
    loaded = penchant.load_preferences(source(), **SIZES)
    of_file = penchant.load_preferences(rows_file, **SIZES)
    assert loaded.people == of_file.people
    assert loaded.name == "in memory"
    other = loaded.split_by(1)
    assert other.people != loaded.people
    assert other.people == of_file.split_by(1).people


def test_a_known_name_is_loaded_as_a_run_loads_it() -> None:
    loaded = penchant.load_preferences("senate", people=5, pairs=4)
    assert isinstance(loaded, penchant.Federation)
    assert (loaded.name, len(loaded.people), len(loaded.people[0].train)) == ("senate", 5, 4)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"ann": [("a", "b")]}, r"ann: preference 1: a preference must be a Preference, a row"),
        ({"ann": "text"}, "the preferences of 'ann' must be a list, not a text"),
        ({"train": Table(rows())}, "dictionary of data sets; choose one of its splits"),
        ({"ann": [{"chosen": "x", "rejected": "x"}]}, "are the same"),
        (7, "preferences must be a mapping of people, a table or rows, not a number"),
        ([{"chosen": "x", "rejected": "y"}], "doesn't say whose preferences they are"),
        ({}, "in memory: nothing to use, it has no rows"),
    ],
)
def test_data_that_can_not_be_used_are_refused_in_one_line(source: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        penchant.load_preferences(source)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seed": "x"}, "seed is 'x'; give a whole number from 0 to 9223372036854775807"),
        ({"seed": -1}, "seed is -1; give a whole number"),
        ({"people": True}, "people is True; give a whole number from 0 to 1000000"),
        ({"people": []}, r"people is \[\]; give a whole number"),
        ({"name": None}, 'name is None; give a text, such as "diary"'),
        ({"person_column": 3}, "data.person_column is 3; it must be a text"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_by_its_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        penchant.load_preferences(by_person(as_tuple), **SIZES | given)


ODD_CALLS: dict[str, tuple[Callable[[penchant.SimulationResult], Any], str]] = {
    "load nothing": (lambda _: penchant.load_preferences(None), "a table or rows, not None;"),
    "load bytes": (lambda _: penchant.load_preferences(b"rows"), "a table or rows, not bytes;"),
    "load an empty name": (lambda _: penchant.load_preferences(""), "source is an empty text"),
    "load a number": (lambda _: penchant.PersonalModel.load(3), "directory is 3; give a path"),
    "open None": (lambda _: penchant.SimulationResult.open(None), "directory is None; give a path"),
    "open bytes": (lambda _: penchant.SimulationResult.open(b"run"), "directory is b'run'; give a path"),
    "read None": (lambda _: penchant.SimulationResult.read(None), "directory is None; give a path"),
    "read a number": (lambda _: penchant.RunConfig.read(3), "path is 3; give a path, as a text or a path"),
    "read bytes": (lambda _: penchant.RunConfig.keys_in_file(b"run"), "path is b'run'; give a path"),
    "read a blank": (lambda _: penchant.RunConfig.read(""), "path is ''; give a path"),
    "read a zero": (lambda _: penchant.RunConfig.read("a\0b"), "can't read configuration"),
    "open nothing": (lambda _: penchant.SimulationResult.open("/nope"), "/nope holds no finished run"),
    "report to None": (lambda run: run.write_report(None), "path is None; give a path"),
    "export to None": (lambda run: run.personal_model("ann").export(None), "directory is None; give a path"),
    "newcomer": (lambda run: run.fit_newcomer(None), "choices must be a list of preferences"),
    "score": (lambda run: run.personal_model("ann").score("q", 3), "responses must be a list with"),
    "pickled model": (
        lambda run: pickle.dumps(run.personal_model("ann")),
        "use export, and PersonalModel.load",
    ),
    "tables": (lambda _: penchant.RunConfig(data={"dataset": "x"}), "data is .*; it must be a DataConfig"),
    "changes": (lambda _: penchant.RunConfig().changed(None), "changes must be a mapping of names"),
    "a share": (
        lambda _: penchant.register_share("x"),
        "'x' can't be registered as adapter.share: it must be a ShareRule",
    ),
    "a class": (lambda _: penchant.register_dataset(DatasetLoader), "it must be a DatasetLoader"),
    "rounds": (
        lambda _: penchant.simulate("senate", rounds="many"),
        "federation.rounds is 'many'; it must be",
    ),
}


@pytest.mark.parametrize(("call", "says"), ODD_CALLS.values(), ids=ODD_CALLS)
def test_odd_input_is_refused_in_one_line_without_the_command_line(
    result: penchant.SimulationResult, call: Callable[[penchant.SimulationResult], Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        call(result)
    assert "\n" not in str(refusal.value)
    assert "--" not in str(refusal.value)


def test_a_remedy_is_a_flag_on_the_command_line_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError) as bad_rows:
        penchant.load_preferences([("prompt", "better", "worse"), ("only", "two")])
    assert str(bad_rows.value).endswith('correct them, or skip them (bad_rows="skip")')
    assert ErrorReport.of(bad_rows.value).message.endswith("skip them (--skip-bad-rows)")
    (tmp_path / "own").write_text("")
    with pytest.raises(RunDirectoryError) as used:
        penchant.simulate("senate", out=tmp_path)
    assert str(used.value).endswith("choose another directory, or go on with the run that is there")
    assert ErrorReport.of(used.value).message.endswith(f"or go on there with --resume {tmp_path}")
    assert str(pickle.loads(pickle.dumps(used.value))) == str(used.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_directory_is_read_by_its_name_or_its_path(
    result: penchant.SimulationResult, tmp_path: Path, kind: Callable[[Path], Any]
) -> None:
    found = penchant.SimulationResult.read(kind(result.directory))
    assert isinstance(found, penchant.SimulationResult)
    assert (found.directory, found.per_client) == (result.directory, result.per_client)
    assert penchant.SimulationResult.read(kind(tmp_path)) is None
    config = result.directory / "config.toml"
    assert penchant.RunConfig.read(kind(config)) == penchant.RunConfig.read(config)
    assert penchant.RunConfig.keys_in_file(kind(config))["seed"] == 0


def test_callbacks_are_looked_at_before_a_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="callbacks must be a list"):
        penchant.simulate("senate", out=tmp_path / "run", callbacks=3)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_results_and_loaded_preferences_can_be_pickled(result: penchant.SimulationResult) -> None:
    data = penchant.load_preferences(by_person(as_tuple), **SIZES)
    again = pickle.loads(pickle.dumps(data))
    assert again.people == data.people
    assert again.split_by(3).people == data.split_by(3).people
    packed = pickle.dumps(result)
    assert b"chosen" not in packed  # nobody's preferences travel with a result
    copied = pickle.loads(packed)
    assert copied == result
    assert copied.to_dict() == result.to_dict()
    assert result.directory.is_dir()
    with pytest.raises(DataError, match="models come from the result of the call itself"):
        copied.personal_model("ann")


def test_a_renamed_setting_is_told_where_it_was_given() -> None:
    with pytest.warns(RenamedSetting) as heard:
        penchant.RunConfig().changed({"data.until": 0.5})
    with pytest.warns(RenamedSetting) as also, pytest.raises(ConfigError):
        penchant.simulate("senate", until=0.5, rank=0)
    assert {notice.filename for notice in (*heard, *also)} == {__file__}


def test_bad_rows_can_be_skipped() -> None:
    people = by_person(as_preference)
    people["ann"].insert(0, ("only", "two"))
    loaded = penchant.load_preferences(people, bad_rows="skip", **SIZES)
    assert any("skipped bad rows: 1 of 301" in caveat for caveat in loaded.caveats)


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_from_memory_is_a_run_from_a_file(
    result: penchant.SimulationResult, rows_file: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    """The same people and settings, the same figures, as `penchant simulate` makes them."""
    config = penchant.RunConfig().changed(
        {f"data.{name}": value for name, value in SIZES.items()}
        | {
            "data.dataset": str(rows_file),
            "model.base_model": small["base_model"],
            "training.local_epochs": 2,
            "federation.rounds": 2,
            "federation.cohort": 4,
            "privacy.secagg": False,
        }
    )
    run_directory.create(tmp_path / "run", config)
    by_file = simulate_in(prepare(config), tmp_path / "run")
    by_name = penchant.simulate(rows_file, config)
    assert by_name.per_client == by_file.per_client
    assert by_name.to_dict()["shared_tensors"] == by_file.to_dict()["shared_tensors"]
    assert len(result.per_person) == len(by_file.per_person) == 5
    assert result.accuracy == pytest.approx(sum(result.per_person.values()) / 5)
    assert result.command.startswith("penchant.simulate(data, base_model=")


def test_what_is_written_is_read_back(result: penchant.SimulationResult) -> None:
    table = json.loads((result.directory / "result.json").read_text())
    assert result.to_dict() == table
    assert RunResult.from_dict(table).to_dict() == table
    opened = penchant.SimulationResult.open(result.directory)
    assert opened.per_client == result.per_client


def test_settings_have_short_and_full_names(small: dict[str, Any]) -> None:
    data = penchant.load_preferences(by_person(as_tuple), **SIZES)
    given = small | {"rounds": 1, "training.lr_personal": 0.02, "evaluate": "validation"}
    found = penchant.simulate(data, **given)
    assert found.config["training"]["lr_personal"] == 0.02
    assert found.evaluated_on == "validation"
    assert [summary.round for summary in found.rounds_log] == [1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cohrt": 3}, "there is no setting cohrt; did you mean cohort"),
        ({"pairs": 3}, "data.pairs is settled when the data are loaded; give it to load_preferences"),
        ({"rank": 0}, "adapter.rank is 0"),
        ({"training.lr": 1}, "lr"),
        ({"share": "X"}, "'X'"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], says: str) -> None:
    data = penchant.load_preferences(by_person(as_tuple), **SIZES)
    with pytest.raises(ConfigError, match=says):
        penchant.simulate(data, **settings)


def test_data_may_be_given_as_they_are(small: dict[str, Any]) -> None:
    found = penchant.simulate(by_person(as_tuple), **small, **SIZES, share="none")
    assert (found.pairs, found.share, found.dataset) == (6, "none", "in memory")


def test_people_made_by_hand_are_taken_as_they_are(small: dict[str, Any]) -> None:
    people = []
    for name, own in by_person(as_preference).items():
        people.append(Person(name, tuple(own[:4]), tuple(own[4:6]), tuple(own[6:10])))
    found = penchant.simulate(penchant.Federation("by hand", tuple(people)), **small)
    assert (found.dataset, found.pairs, found.config["data"]["test_pairs"]) == ("by hand", 4, 4)


def test_people_in_memory_can_not_go_to_other_processes(small: dict[str, Any]) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="grid is ray, whose processes load the people by name"):
        penchant.simulate(by_person(as_tuple), **small, **SIZES, grid="ray")


def test_the_same_call_goes_on_and_another_one_is_refused(small: dict[str, Any], tmp_path: Path) -> None:
    data = penchant.load_preferences(by_person(as_tuple), **SIZES)
    first = penchant.simulate(data, **small, out=tmp_path / "run")
    before = (tmp_path / "run/result.json").read_bytes()
    assert penchant.simulate(data, **small, out=tmp_path / "run").per_client == first.per_client
    assert (tmp_path / "run/result.json").read_bytes() == before
    assert (tmp_path / "run/report.html").exists()
    with pytest.raises(RunDirectoryError, match="a run of another configuration"):
        penchant.simulate(data, **small, share="B", out=tmp_path / "run")


def test_a_finished_run_is_not_the_result_of_a_call_with_other_inputs(
    small: dict[str, Any], tmp_path: Path
) -> None:
    data = penchant.load_preferences(by_person(as_tuple), **SIZES)
    penchant.simulate(data, **small, out=tmp_path / "run")
    fewer = penchant.load_preferences({k: v[:-1] for k, v in by_person(as_tuple).items()}, **SIZES)
    with pytest.raises(RunDirectoryError, match="run was begun with another data set; put back what it was"):
        penchant.simulate(fewer, **small, out=tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    other = penchant.RunConfig.read(config).changed({"adapter.alpha": 3.0})
    config.write_text(other.to_toml(), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match="run was begun with another configuration"):
        penchant.simulate(data, **small, alpha=3.0, out=tmp_path / "run")


def test_a_temporary_directory_lives_as_long_as_its_result(small: dict[str, Any]) -> None:
    found = penchant.simulate(by_person(as_tuple), **small | {"rounds": 1}, **SIZES)
    directory = found.directory
    assert (directory / "result.json").exists()
    del found
    gc.collect()
    assert not directory.exists()


def test_callbacks_hear_every_stage_and_round(small: dict[str, Any]) -> None:
    heard: list[Any] = []

    class Heard(penchant.Callback):
        def on_stage(self, stage: str) -> None:
            heard.append(stage)

        def on_round(self, summary: Any, last: int) -> None:
            heard.append((summary.round, summary.survivors, last))

    penchant.simulate(by_person(as_tuple), **small, **SIZES, callbacks=[Heard(), penchant.Callback()])
    assert heard == ["encoding texts", "federating", (1, 4, 3), (2, 4, 3), (3, 5, 3), "evaluating"]


def test_an_exception_in_a_callback_ends_the_call_and_the_same_call_goes_on(
    small: dict[str, Any], tmp_path: Path
) -> None:
    class Enough(penchant.Callback):
        def on_round(self, summary: Any, last: int) -> None:
            raise KeyError("enough")

    data = penchant.load_preferences(by_person(as_tuple), **SIZES)
    with pytest.raises(KeyError, match="enough"):
        penchant.simulate(data, **small, out=tmp_path / "run", callbacks=[Enough()])
    assert not (tmp_path / "run/result.json").exists()
    resumed = penchant.simulate(data, **small, out=tmp_path / "run")
    assert resumed.per_client == penchant.simulate(data, **small).per_client


# --- models ---------------------------------------------------------------------------------------


def test_a_personal_model_ranks_as_the_run_was_scored(result: penchant.SimulationResult) -> None:
    people = penchant.load_preferences(by_person(as_preference), **SIZES).people
    for person in people:
        model = result.personal_model(person.name)
        right = [model.preference(p.prompt, p.chosen, p.rejected) > 0.5 for p in person.test]
        assert sum(right) / len(right) == pytest.approx(result.per_person[person.name])
    ranked = result.personal_model("ann").rank("ann motion ", ["tax", "bill", "vote"])
    assert [row.score for row in ranked] == sorted((row.score for row in ranked), reverse=True)
    assert ranked[0].over_next == pytest.approx(
        result.personal_model("ann").preference("ann motion ", ranked[0].response, ranked[1].response)
    )
    assert ranked[-1].over_next is None


def test_people_have_models_of_their_own(result: penchant.SimulationResult) -> None:
    scores = {tuple(result.personal_model(name).score("motion ", ["tax", "bill"])) for name in NAMES}
    assert len(scores) == len(NAMES)
    with pytest.raises(UsageError, match="'fay' took no part in this run"):
        result.personal_model("fay")
    with pytest.raises(DataError, match="responses must be a list"):
        result.personal_model("ann").rank("motion ", [])


@pytest.mark.parametrize("share", ["A", "kernel", "lore", "none"])
def test_an_exported_model_scores_the_same_when_it_is_loaded(
    share: str, small: dict[str, Any], tmp_path: Path
) -> None:
    found = penchant.simulate(by_person(as_tuple), **small | {"rounds": 1}, **SIZES, share=share)
    model = found.personal_model("bob")
    model.export(tmp_path / "bob")
    loaded = penchant.PersonalModel.load(tmp_path / "bob")
    texts = ["tax", "bill", "vote"]
    assert loaded.score("motion ", texts) == pytest.approx(model.score("motion ", texts), abs=1e-5)
    with pytest.raises(UsageError, match="in use"):
        model.export(tmp_path / "bob")


def test_what_is_no_export_is_refused(
    result: penchant.SimulationResult, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    with pytest.raises(DataError, match="does not hold a model that penchant exported"):
        penchant.PersonalModel.load(tmp_path)
    result.personal_model("ann").export(tmp_path / "ann")
    path = tmp_path / "ann" / "penchant.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"digest": "0" * 64}))
    with pytest.raises(BaseModelError, match="is not the base model that"):
        penchant.PersonalModel.load(tmp_path / "ann")
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is damaged: it is nested too deep"):
        penchant.PersonalModel.load(tmp_path / "ann")


def test_a_newcomer_is_fitted_to_their_choices_alone(result: penchant.SimulationResult) -> None:
    choices = [("motion ", "tax", "bill"), {"prompt": "vote ", "chosen": "tax", "rejected": "bill"}]
    nobody, fitted = result.fit_newcomer([]), result.fit_newcomer(choices)
    assert fitted.preference("motion ", "tax", "bill") > nobody.preference("motion ", "tax", "bill")


def test_the_record_can_be_audited_and_drawn(result: penchant.SimulationResult, tmp_path: Path) -> None:
    assert result.audit().violations == ()
    result.write_report(tmp_path / "report.html")
    assert "in memory" in (tmp_path / "report.html").read_text()


def test_a_notebook_shows_a_table_with_everything_escaped(result: penchant.SimulationResult) -> None:
    shown = result._repr_html_()
    assert "<td>ann</td><td>12</td>" in shown
    assert "<script" not in RunResult.from_dict(result.to_dict() | {"dataset": "<script>"})._repr_html_()
    assert "per_client" in repr(result)


# --- comparisons ----------------------------------------------------------------------------------


def test_a_comparison_splits_anew_for_each_seed_and_says_what_it_found(
    small: dict[str, Any], tmp_path: Path
) -> None:
    data = penchant.load_preferences(by_person(as_tuple), **SIZES)
    found = penchant.compare(data, shares=["A", "none"], seeds=[0, 1], out=tmp_path / "all", **small)
    assert found.to_dict() == json.loads((tmp_path / "all/compare.json").read_text())
    assert [row.share for row in found.rows] == ["A", "none"]
    assert all(row.seeds == (0, 1) for row in found.rows)
    (difference,) = found.differences
    assert "everyone alone" in difference.label
    assert found.conclusions[0].endswith(".")
    assert "<th>method</th>" in found._repr_html_()
    assert (tmp_path / "all/compare.html").exists()
    results = [RunResult.read(tmp_path / "all" / run.directory) for run in found.rows[0].runs]
    assert len({one.digests["data"] for one in results if one is not None}) == 2
    alone = penchant.simulate(data, seed=1, share="A", **small)
    assert results[1] is not None
    assert alone.per_client == results[1].per_client
