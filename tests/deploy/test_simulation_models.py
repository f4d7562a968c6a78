"""What comes out of a simulation: everybody's model as plain files, and as judges of new pairs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tastes import small_run, write_choices

import penchant
from penchant.common.config import RunConfig
from penchant.common.data.preferences import comparison_of
from penchant.common.data.trl_format import parse_preference
from penchant.common.errors import RunDirectoryError, UsageError
from penchant.common.wire.flower import message_type
from penchant.deploy import run_directory
from penchant.deploy.cli.main import main
from penchant.deploy.simulation.models import RunModels, export_models, folder_of
from penchant.deploy.simulation.runner import simulate
from penchant.deploy.simulation.world import prepare

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["penchant", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leave:
            main()
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_choices(folder / "choices.jsonl", [20] * 4)
    return folder


@pytest.fixture(scope="module")
def run(place: Path, tiny_model: Callable[[str], Path]) -> penchant.SimulationResult:
    return penchant.simulate(
        place / "choices.jsonl",
        base_model=str(tiny_model("bert")),
        person_column="user",
        pairs=6,
        validation_pairs=2,
        test_pairs=6,
        rounds=1,
        cohort=4,
        local_epochs=1,
        secagg=False,
        out=place / "run",
    )


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def test_every_model_that_is_written_scores_as_the_run_s_own(
    run: penchant.SimulationResult, tmp_path: Path
) -> None:
    run.export(tmp_path / "all")
    listed = rows_of(tmp_path / "all" / "people.csv")
    assert [row["person"] for row in listed] == list(run.per_person)
    assert [float(row["accuracy"]) for row in listed] == list(run.per_person.values())
    texts = ["one answer", "another answer", "a third"]
    for row in listed:
        loaded = penchant.PersonalModel.load(tmp_path / "all" / row["folder"])
        assert loaded.score("q ", texts) == pytest.approx(
            run.personal_model(row["person"]).score("q ", texts), abs=1e-5
        )
    shared = penchant.PersonalModel.load(tmp_path / "all" / "shared")
    assert shared.score("q ", texts) == pytest.approx(run.shared_model().score("q ", texts), abs=1e-5)
    card = (tmp_path / "all/shared/README.md").read_text(encoding="utf-8")
    assert "shared part" in card
    assert "release.json" not in card, "only a server's release has one"
    others = [path for path in (tmp_path / "all").rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert not others, "a personal model is for its owner alone"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_that_is_read_has_its_models(
    run: penchant.SimulationResult, kind: Callable[[Path], str | Path]
) -> None:
    found = penchant.SimulationResult.read(kind(run.directory))
    assert found is not None
    assert found.personal_model("p1").score("q ", ["a"]) == run.personal_model("p1").score("q ", ["a"])


def test_a_run_s_models_judge_the_pairs_of_a_file(run: penchant.SimulationResult, place: Path) -> None:
    """Everybody's test pairs, judged again from a file, give the result's own figures."""
    people = RunModels(run.directory).world.federation.people
    file = place / "test.jsonl"
    rows = [
        {"user": p.name, "prompt": t.prompt, "chosen": t.chosen, "rejected": t.rejected}
        for p in people
        for t in p.test
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = run.evaluate(file, by="user")
    assert {group.group: group.accuracy for group in found.groups} == pytest.approx(run.per_person)
    assert all(pair.own for pair in found.pairs)
    assert found.mean_over_groups == pytest.approx(run.accuracy)
    trained = place / "trained.jsonl"
    first = people[0]
    trained.write_text(
        "".join(
            json.dumps({"user": first.name, "prompt": t.prompt, "chosen": t.rejected, "rejected": t.chosen})
            + "\n"
            for t in first.train
        ),
        encoding="utf-8",
    )
    (note,) = run.evaluate(trained, by="user").notes[-1:]
    assert note == f"{len(first.train)} pairs compare what their person's model was trained on"


def test_the_commands_do_the_same(
    run: penchant.SimulationResult, place: Path, tmp_path: Path, command: Command
) -> None:
    name = next(iter(run.per_person))
    code, out, _ = command("export", run.directory, tmp_path / "some", "--person", name)
    assert code == 0
    assert "the shared model and 1 personal model are in" in out
    (row,) = rows_of(tmp_path / "some" / "people.csv")
    assert row["person"] == name
    exported = tmp_path / "some" / row["folder"]
    file = place / "choices.jsonl"
    for model in (run.directory, exported):
        code, out, _ = command("evaluate", model, file, "--by", "user", "--json")
        assert code == 0
        groups = {group["group"]: group for group in json.loads(out)["groups"]}
        assert groups[name]["own"] == (model == run.directory)
        assert len(groups) == 4
    code, out, err = command("evaluate", run.directory, file, "--by", "user", "--scores", tmp_path / "s.csv")
    assert code == 0
    assert "ranked right, mean over people" in out
    assert "was trained on" in err
    assert len(rows_of(tmp_path / "s.csv")) == 80
    code, out, err = command("evaluate", exported, file, "--by", "user")
    assert code == 0
    assert re.search(r"scored by this one model +│ +80 ", out)
    assert "shared" not in out
    assert "own model" not in out
    code, out, err = command("evaluate", run.directory, file, "--scores", tmp_path / "s.csv")
    assert (code, out) == (2, "")
    assert "s.csv is there already" in err


def test_a_run_knows_its_people_by_the_column_that_it_was_given(
    run: penchant.SimulationResult, place: Path
) -> None:
    """Grouped by kind or not, everybody's own model scores their pairs, and what it was trained on is said;
    of pairs that name nobody, what the shared model comes from is."""
    rows = [json.loads(line) for line in (place / "choices.jsonl").read_text(encoding="utf-8").splitlines()]
    file, unnamed = place / "kinds.jsonl", place / "unnamed.jsonl"
    kinds = [{**row, "subset": "ab"[at % 2]} for at, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in kinds), encoding="utf-8")
    found = run.evaluate(file, by="subset")
    assert {group.group for group in found.groups} == {"a", "b"}
    assert all(pair.own for pair in found.pairs)
    trained = [comparison_of(t) for p in RunModels(run.directory).world.federation.people for t in p.train]
    assert f"{len(trained)} pairs compare what their person's model was trained on" in found.notes
    for row in kinds:
        del row["user"]
    unnamed.write_text("".join(json.dumps(row) + "\n" for row in kinds), encoding="utf-8")
    found = run.evaluate(unnamed)
    assert not any(pair.own for pair in found.pairs)
    asked = [comparison_of(parse_preference(row)) for row in kinds]
    met = sum(one in set(trained) for one in asked)
    assert met >= len(trained)
    assert f"{met} pairs compare what the shared model was trained on" in found.notes


def test_texts_that_are_cut_are_said(run: penchant.SimulationResult, place: Path) -> None:
    file = place / "long.jsonl"
    file.write_text(json.dumps({"prompt": "a vote " * 400, "chosen": "yes", "rejected": "no"}) + "\n")
    assert any(re.match(r"2 of 2 texts are longer than the \d+ tokens", n) for n in run.evaluate(file).notes)


def test_wrong_paths_are_told_apart(
    run: penchant.SimulationResult, place: Path, tmp_path: Path, command: Command
) -> None:
    choices = place / "choices.jsonl"
    for words in (["evaluate", place, choices], ["export", place, tmp_path / "out"]):
        code, _, err = command(*words)
        assert code != 0
        assert "is not a run directory: it has no config.toml" in " ".join(err.split())
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run.directory / "config.toml", begun)
    _, _, err = command("evaluate", begun, choices)
    assert f"--resume {begun} finishes one" in " ".join(err.split())
    _, _, err = command("evaluate", tmp_path / "no_model", tmp_path / "absent.jsonl")
    assert "absent.jsonl" in err, "the path is looked at before any model"


def test_a_simulation_saves_its_models_when_it_is_asked_to(
    place: Path, tmp_path: Path, command: Command, tiny_model: Callable[[str], Path]
) -> None:
    words = ["--dataset", place / "choices.jsonl", "--person-column", "user", "--pairs", 6, "--rounds", 1]
    words += ["--validation-pairs", 2, "--test-pairs", 6, "--base-model", tiny_model("bert")]
    code, out, err = command("simulate", *words, "--out", tmp_path / "run", "--save-models")
    assert code == 0, err
    folders = {path.name for path in (tmp_path / "run" / "models").iterdir()}
    assert {"shared", "people.csv"} < folders
    assert len(folders) == 6
    assert "personal models are in" in out


def test_what_cannot_be_written_leaves_nothing(run: penchant.SimulationResult, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'zoe' took no part in this run"):
        run.export(tmp_path / "out", people=["zoe"])
    with pytest.raises(UsageError, match="give a list"):
        run.export(tmp_path / "out", people="zoe")
    assert not (tmp_path / "out").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="in use"):
        run.export(tmp_path / "used")
    with pytest.raises(RunDirectoryError):
        export_models(RunModels(tmp_path / "no-run"), tmp_path / "out")


# --- what the run was computed from is another now --------------------------------------------------


@pytest.fixture
def moved(place: Path, tmp_path: Path, tiny_model: Callable[[str], Path], command: Command) -> Path:
    """A finished run of four people, with data and base model of its own beside it."""
    shutil.copytree(tiny_model("bert"), tmp_path / "base")
    shutil.copy(place / "choices.jsonl", tmp_path)
    words = ["--dataset", tmp_path / "choices.jsonl", "--person-column", "user", "--pairs", 6, "--rounds", 1]
    words += ["--validation-pairs", 2, "--test-pairs", 6, "--base-model", tmp_path / "base", "--alpha", 16]
    code, _, err = command("simulate", *words, "--share", "A", "--no-secagg", "--out", tmp_path / "run")
    assert code == 0, err
    return tmp_path


def with_a_line_more(folder: Path) -> None:
    with (folder / "choices.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"user": "p0", "prompt": "new ", "chosen": "a", "rejected": "b"}) + "\n")


def with_other_weights(folder: Path) -> None:
    (folder / "base" / "vocab.txt").write_text("another tokenizer file\n", encoding="utf-8")


def with_a_setting(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = folder / "run" / "config.toml"
        text = config.read_text(encoding="utf-8")
        assert text.count(f"\n{old}\n") + text.startswith(f"{old}\n") == 1
        config.write_text(text.replace(f"{old}\n", f"{new}\n"), encoding="utf-8")

    return edit


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (with_a_line_more, "data set"),
        (with_other_weights, "base model"),
        (with_a_setting("alpha = 16.0", "alpha = 32.0"), "configuration"),
        (with_a_setting("seed = 0", "seed = 1"), "configuration"),
    ],
)
def test_a_run_whose_inputs_changed_gives_no_models(
    moved: Path, command: Command, change: Callable[[Path], None], what: str
) -> None:
    """Nobody's own part is kept under the changed run's id: everybody would get the shared model."""
    run, out, choices = moved / "run", moved / "models", moved / "choices.jsonl"
    pairs = shutil.copy(choices, moved / "pairs.jsonl")
    change(moved)
    said = f"{run} was begun with another {what}; put back what it was, or start a new run"
    for words in (["export", run, out], ["evaluate", run, pairs], ["evaluate", run, pairs, "--json"]):
        code, printed, err = command(*words)
        assert (code, printed) == (2, "")
        assert err.splitlines() == [f"penchant: {said}"]
    assert not out.exists()
    result = penchant.SimulationResult.open(run)
    for ask in (result.shared_model, lambda: result.personal_model("p0"), lambda: result.evaluate(pairs)):
        with pytest.raises(RunDirectoryError, match=f"another {what}"):
            ask()
    if what == "configuration":
        code, printed, err = command("simulate", "--resume", run)
        assert (code, printed, err.splitlines()) == (2, "", [f"penchant: {said}"])


def test_how_a_run_was_computed_may_change(moved: Path, command: Command) -> None:
    for change in (with_a_setting("workers = 0", "workers = 2"), with_a_setting("seed = 0", "seed = 0 # !")):
        change(moved)
    code, _, err = command("export", moved / "run", moved / "models")
    assert code == 0, err
    own = {path.read_bytes() for path in moved.glob("models/*/adapter_model.safetensors")}
    assert len(own) == 5, "the shared model and four others"


def test_a_personal_part_that_is_gone_is_told(moved: Path, command: Command) -> None:
    """Also of a run that an earlier version made, whose journal knows less."""
    home = moved / "run" / "agents" / "000001"
    home.rename(moved / "elsewhere")
    said = f"{home} holds no personal part of this run, and was in its rounds"
    code, _, err = command("export", moved / "run", moved / "models")
    assert (code, said in err) == (2, True)
    assert not (moved / "models").exists()
    with pytest.raises(RunDirectoryError, match=re.escape(said)):
        penchant.SimulationResult.open(moved / "run").personal_model("p1")
    (moved / "elsewhere").rename(home)
    with sqlite3.connect(moved / "run" / "journal.db") as db:
        db.execute("DELETE FROM meta WHERE key IN ('configuration', 'data set', 'base model')")
    with_a_setting("alpha = 16.0", "alpha = 32.0")(moved)
    _, _, err = command("export", moved / "run", moved / "models")
    assert "agents/000000 holds no personal part of this run" in err
    with_a_line_more(moved)  # result.json knows the data
    _, _, err = command("export", moved / "run", moved / "models")
    assert "run was begun with another data set" in err


def test_who_was_never_reached_has_no_model_of_their_own(
    tmp_path: Path, tiny_model: Callable[[str], Path], command: Command
) -> None:
    """The shared model ranks their pairs, and nothing calls that their own."""
    choices = tmp_path / "choices.jsonl"
    write_choices(choices, [16] * 5)
    config = RunConfig().changed(small_run(tiny_model("bert"), choices, 5, epochs=1) | {"adapter.share": "A"})
    config = config.changed({"federation.rounds": 1, "privacy.secagg": False, "federation.min_survivors": 3})
    run_directory.create(tmp_path / "run", config)
    silent = (1002, message_type("keys"))
    simulate(prepare(config), tmp_path / "run", fault=lambda node, kind: (node, kind) == silent)
    result = penchant.SimulationResult.open(tmp_path / "run")
    with pytest.raises(UsageError, match="no round of this run reached 'p2', who has no model of their own"):
        result.personal_model("p2")
    groups = {group.group: group for group in result.evaluate(choices).groups}
    assert {name: group.own for name, group in groups.items()} == {f"p{n}": n != 2 for n in range(5)}
    code, out, _ = command("export", tmp_path / "run", tmp_path / "models")
    assert code == 0
    assert "the shared model and 4 personal models are in" in out
    assert "the shared model ranks for 1 person whom no round reached: people.csv says shared" in out
    listed = {row["person"]: row["folder"] for row in rows_of(tmp_path / "models" / "people.csv")}
    assert listed["p2"] == "shared"
    assert {path.name for path in (tmp_path / "models").iterdir()} == {*listed.values(), "people.csv"}
    scored = result.shared_model().evaluate(choices, by="user").groups
    assert scored[2].accuracy == groups["p2"].accuracy


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Ann Lee", "000007-Ann_Lee"),
        ("../../etc", "000007-etc"),
        ("=1+1", "000007-1_1"),
        ("李", "000007"),
        ("x" * 300, "000007-" + "x" * 40),
        (".", "000007"),
    ],
)
def test_a_name_is_never_more_than_a_part_of_a_folder_s(name: str, folder: str) -> None:
    assert folder_of(6, name) == folder
