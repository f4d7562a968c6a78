"""The command line: what is wrong ends in one line, exit 2, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from support.tastes import write_choices

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, DataError, UsageError
from penchant.common.model import packaged_models
from penchant.common.model.base_models import resolve
from penchant.common.settings import section_table
from penchant.deploy import run_directory
from penchant.deploy.cli.main import app, main
from penchant.deploy.configuration import configure
from penchant.deploy.recipes import recipe
from penchant.deploy.recipes.recipe_file import RecipeFile

# What is imported while a test has replaced `prepare` would keep the replacement for later tests.
for name in (
    "cli.show_simulation",
    "comparison.runner",
    "simulation.models",
    "simulation.race",
    "tuning.search",
):
    importlib.import_module(f"penchant.deploy.{name}")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Penchant = Callable[..., Ended]


@pytest.fixture
def penchant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Penchant:
    """penchant("simulate", "--rank", 0): the command in this process, in its own directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["penchant", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leave:
            main()
        out, err = capsys.readouterr()
        return Ended(int(leave.value.code or 0), out, err)

    return run


@pytest.fixture
def refused(penchant: Penchant, tmp_path: Path) -> Callable[..., str]:
    """refused("--rank", 0): the one line with which `penchant simulate --out run …` is refused.

    It must be wrong use (exit 2), print nothing else, and leave the working directory as it was.
    """

    def run(*words: object) -> str:
        before = tree(tmp_path)
        ended = penchant("simulate", *words)
        assert ended.code == 2, ended
        assert ended.out == ""
        assert ended.err.startswith("penchant: ")
        assert ended.err.endswith("\n")
        assert ended.err.count("\n") == 1, ended.err
        assert tree(tmp_path) == before
        return ended.err.removeprefix("penchant: ").rstrip("\n")

    return run


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder: directories end with a slash, files have their content."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        found[name if path.is_file() else f"{name}/"] = path.read_bytes() if path.is_file() else b""
    return found


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for four made-up people on a tiny model."""
    choices = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    write_choices(choices, [12] * 4)
    config = choices.with_name("tiny.toml")
    config.write_text(
        '[data]\nperson_column = "user"\npairs = 4\nvalidation_pairs = 1\ntest_pairs = 3\n'
        f'dataset = "{choices}"\n[model]\nbase_model = "{tiny_model("bert")}"\n'
        "[federation]\nrounds = 1\n[training]\nlocal_epochs = 1\nfinal_fit_epochs = 1\n",
        encoding="utf-8",
    )
    return ["--config", str(config)]


# --- data -----------------------------------------------------------------------------------------


def test_an_unknown_data_set(refused: Callable[..., str]) -> None:
    line = refused("--dataset", "sentae", "--out", "run")
    assert line.startswith("unknown data set 'sentae'; did you mean 'senate'? known are senate, ")
    assert refused("--dataset", "sentae").startswith("unknown data set 'sentae'")  # runs/… is not made either


def test_a_file_that_is_not_there(refused: Callable[..., str]) -> None:
    assert refused("--dataset", "absent.jsonl", "--out", "run") == "there is no file absent.jsonl"


def rows(*pairs: tuple[str, str, str, str]) -> str:
    names = ("person", "prompt", "chosen", "rejected")
    return "".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in pairs)


def several(person: str, count: int) -> list[tuple[str, str, str, str]]:
    return [(person, f"{number} ", "yes", "no") for number in range(count)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (rows(*several("ann", 12), *several("bob", 1)), "client 'bob' has no pairs to t"),
        (rows(*several("ann", 12), *[("bob", "0 ", "yes", "no")] * 8), "client 'bob' has one class"),
        (rows(*several("ann", 12)) + "{not json\n", "people.jsonl:13: "),
        (rows(*several("ann", 12), ("ann", "x", "same", "same")), "people.jsonl:13: 'chosen' and 'rejected'"),
        ("", "it has no rows"),
        (rows(*several("ann", 12)).replace("person", "whoever"), "doesn't say whose preferences they are"),
    ],
    ids=["no pairs", "one class", "no row", "bad row", "empty", "nobody named"],
)
def test_people_who_cannot_take_part(
    refused: Callable[..., str], tiny: list[str], tmp_path: Path, text: str, line: str
) -> None:
    (tmp_path / "people.jsonl").write_text(text, encoding="utf-8")
    plain = tmp_path / "plain.toml"
    plain.write_text(Path(tiny[1]).read_text(encoding="utf-8").replace('"user"', '""'), encoding="utf-8")
    found = refused("--config", "plain.toml", "--dataset", "people.jsonl", "--out", "run")
    assert line in found


def test_more_people_than_there_are(refused: Callable[..., str], tiny: list[str]) -> None:
    assert "5" in refused(*tiny, "--clients", 5, "--out", "run")


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--share", "C"],
            "--share is 'C'; choose one of B, A, kernel, svd, AB, none, ffa, lore, mixed, common",
        ),
        (["--rank", 0], "--rank is 0; it must lie in 1 … 512"),
        (["--rank", 513], "--rank is 513; it must lie in 1 … 512"),
        (["--rank", 17], "--rank is 17; for these modules it must lie in 1 … 16"),
        (["--alpha", "nan"], "--alpha is nan; it must be a finite number"),
        (["--rounds", -1], "--rounds is -1; it must lie in 0 … 4000"),
        (["--rounds", 4001], "--rounds is 4001; it must lie in 0 … 4000"),
        (["--rounds", 2, "--warmup-rounds", 3], "--warmup-rounds is 3 but there are only 2 rounds"),
        (["--cohort", -1], "--cohort is -1; it must lie in 0 … 1e+06"),
        (["--cohort", 5], "--cohort is 5 but there are 4 people; lower it"),
        (["--cohort", 2], "secure aggregation needs a cohort of at least 3, here it is 2; add people, or"),
        (["--clip", 0], "--clip is 0.0; it must lie in 1e-06 … 1e+06"),
        (["--dp-epsilon", 101], "--dp-epsilon is 101.0; it must lie in 0 … 100"),
        (["--dp-epsilon", "nan"], "--dp-epsilon is nan; it must be a finite number"),
        (
            ["--dp-epsilon", 1e-4],
            "--dp-epsilon is 0.0001; it must be 0, for no noise, or lie in 0.001 … 100",
        ),
        (["--dp-delta", 0.5], "--dp-delta is 0.5; it must lie in 1e-12 … 0.01"),
        (["--dp-delta", 0], "--dp-delta is 0.0; it must lie in 1e-12 … 0.01"),
        (["--dp-epsilon", 8, "--max-colluders", 3], "sums hold the noise of 0 honest ones for certain"),
        (["--dp-epsilon", 0.01], "1 honest people are too few for any use at epsilon 0.01"),
        (["--pairs", 0], "--pairs is 0; it must lie in 1 … 100000"),
        (["--seed", -1], "--seed is -1; it must lie in 0 …"),
        (["--lr-shared", 2], "--lr-shared is 2.0; it must lie in 0 … 1"),
        (["--local-epochs", 0], "--local-epochs is 0; it must lie in 1 … 1000"),
        (["--layers", 3], "--layers names block 3, but the base model has 3 blocks"),
        (["--layers", "x"], "--layers is 'x'; it must be whole numbers, separated by commas"),
        (["--layers", ""], "--layers is ''; it must be whole numbers, separated by commas"),
        (["--target-modules", "nope"], 'these blocks have no linear module "nope"; there are '),
        (["--target-modules", ","], "--target-modules is empty"),
        (["--evaluate", "train"], "--evaluate is 'train'; choose one of test, validation"),
        (
            ["--evaluate", "validation", "--validation-pairs", 0],
            "--evaluate is validation, but --validation-pairs is 0; ask for some, or score on test",
        ),
        (["--grid", "cloud"], "--grid is 'cloud'; choose one of local, processes, ray"),
        (["--server-optimizer", "adam"], "choose one of fedavg, fedadam"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_values_out_of_range(
    refused: Callable[..., str], tiny: list[str], words: list[Any], line: str
) -> None:
    assert line in refused(*tiny, *words, "--out", "run")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rnk", 2], "No such option"),
        (["--rank", "two"], "Invalid value for '--rank': 'two' is not a valid"),
        (["--rank"], "Option '--rank' requires an argument"),
        (["extra"], "Got unexpected extra argument (extra)"),
    ],
    ids=["unknown", "no number", "no value", "extra"],
)
def test_flags_that_are_none(refused: Callable[..., str], words: list[Any], line: str) -> None:
    found = refused("--out", "run", *words)
    assert line in found
    assert found.endswith("(see --help)")


def test_a_command_that_does_not_exist(penchant: Penchant) -> None:
    ended = penchant("simulat")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "No such command 'simulat'" in ended.err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[adapter]\nrnak = 2\n", 'unknown configuration key "adapter.rnak"; did you mean "rank"?'),
        ('"two\\nlines" = 2\n', 'unknown configuration key "two\\nlines"'),
        ("[adapter]\nrank = 0\n", "adapter.rank is 0; it must lie in 1 … 512"),
        ('[adapter]\nrank = "2"\n', "adapter.rank is '2'; it must be a whole number"),
        ("adapter = 3\n", "adapter must be a table"),
        ("rank = \n", "the configuration is not valid TOML"),
        ("[a]\n" + "x=[" + "[" * 3000, "the configuration is not valid TOML"),
    ],
    ids=["key", "lines in a key", "range", "type", "no table", "no value", "deep"],
)
def test_a_wrong_configuration_file(
    refused: Callable[..., str], tmp_path: Path, text: str, line: str
) -> None:
    (tmp_path / "wrong.toml").write_text(text, encoding="utf-8")
    assert line in refused("--config", "wrong.toml", "--out", "run")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], ""),
        (["--batch-people", 1, "--micro-batch-size", 2], ""),
        (["--batch-people", 3], ""),
        (
            ["--batch-people", 3, "--micro-batch-size", 2],
            "training.micro_batch_size holds each batch in parts",
        ),
        (["--batch-people", 3, "--grid", "processes"], "devices are served one at a time on grid processes"),
    ],
)
def test_people_asked_to_be_together_who_are_not(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch, tiny: list[str], words: list[Any], why: str
) -> None:
    """Said before the run begins, which is not simulated here."""

    def not_now(*_: Any) -> None:
        raise UsageError("not now")

    monkeypatch.setattr("penchant.deploy.cli.show_simulation.run_and_show", not_now)
    *notes, last = penchant("simulate", *tiny, *words, "--no-auto", "--out", "run").err.splitlines()
    assert last == "penchant: not now"
    said = f"note: people are trained one by one, and not 3 at a time: {why}"
    assert notes == ([said] if why else [])


def test_a_key_that_no_flag_gave_keeps_its_name(refused: Callable[..., str], tiny: list[str]) -> None:
    """What the default, or the file, says is changed there; a word that is a key too stays a word."""
    found = refused(*tiny, "--dp-epsilon", 8, "--no-secagg", "--seed", 3, "--out", "run")
    assert found.startswith("--dp-epsilon needs --secagg: ")
    Path("own.toml").write_text("[adapter]\nrank = 600\n", encoding="utf-8")
    assert refused("--config", "own.toml", "--alpha", 2, "--out", "run").startswith("adapter.rank is 600")


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_configuration_file_that_cannot_be_read(refused: Callable[..., str], name: str) -> None:
    assert refused("--config", name, "--out", "run").startswith(f"can't read configuration {name}: ")


# --- the base model -------------------------------------------------------------------------------


def test_a_base_model_that_is_missing(
    refused: Callable[..., str], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(*tiny, "--base-model", "no-such-model", "--out", "run")
    assert line.startswith('base model "no-such-model" is not a folder, a hub id (owner/name)')
    line = refused(*tiny, "--base-model", "./no/such/folder", "--out", "run")
    assert line.startswith('base model "./no/such/folder" is not a folder')
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    line = refused(*tiny, "--base-model", "somebody/something", "--out", "run")
    assert line == (
        'base model "somebody/something" is not here and can\'t be fetched (ConnectionError); '
        "check the id and the network, or give a folder"
    )
    (tmp_path / "empty").mkdir()
    line = refused(*tiny, "--base-model", "empty", "--out", "run")
    assert "holds no base model: it needs config.json and *.safetensors" in line


def unreachable(*_: object, **__: object) -> str:
    raise ConnectionError("of several\nlines")


def test_a_base_model_whose_digest_is_wrong(
    refused: Callable[..., str], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of MiniLM's package with one bit of its weights flipped."""
    package, _ = resolve(packaged_models.DEFAULT_MODEL)
    copy = tmp_path / "package" / "model"
    copy.mkdir(parents=True)
    for path in package.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            shutil.copy(path, copy)
    weights = bytearray((package / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(packaged_models, "package_folder", lambda name: copy.parent)
    line = refused(*tiny, "--base-model", packaged_models.DEFAULT_MODEL, "--out", "run")
    assert "model.safetensors has the wrong sha256; install its package again" in line
    (copy / "model.safetensors").unlink()
    line = refused(*tiny, "--base-model", packaged_models.DEFAULT_MODEL, "--out", "run")
    assert line.startswith('base model "all-MiniLM-L6-v2" has no file ')


def test_a_base_model_that_is_torn(
    refused: Callable[..., str], tiny: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    line = refused(*tiny, "--base-model", "torn", "--out", "run")
    assert line.startswith('base model "torn" can\'t be loaded: ')


# --- directories ----------------------------------------------------------------------------------


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are drawn elsewhere; here they would take most of the time."""
    monkeypatch.setattr(
        "penchant.deploy.report.run_page.write_report", lambda result, path: path.write_text("report")
    )


def test_a_run_from_beginning_to_end_then_again(
    penchant: Penchant, refused: Callable[..., str], tiny: list[str], tmp_path: Path, no_plots: None
) -> None:
    done = penchant("simulate", *tiny, "--out", "run", "--rank", 1, "--seed", 3)
    assert done.code == 0, done.err
    assert "personal accuracy" in done.out
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert (result["seed"], result["clients"], result["rounds"]) == (3, 4, 1)
    assert run_directory.read_config(tmp_path / "run").adapter.rank == 1

    line = refused(*tiny, "--out", "run")
    assert line == "run is in use; choose another --out, or go on there with --resume run"
    line = refused("--resume", "run", "--rank", 2)
    assert line == "run is a run of another configuration; drop the flags or start a new run"
    (tmp_path / "other.toml").write_text("[adapter]\nrank = 2\n", encoding="utf-8")
    line = refused("--resume", "run", "--config", "other.toml")
    assert line == "run is a run of another configuration; drop the flags or start a new run"
    assert refused("--resume", "run", "--out", "new") == "--resume goes on in its own directory; drop --out"

    before = tree(tmp_path)
    for more in ([], ["--rank", 1, "--seed", 3]):  # the same configuration may be said again
        shown = penchant("simulate", "--resume", "run", *more)
        assert shown.code == 0
        assert f"{result['accuracy']['personal']:.3f}" in shown.out
    assert tree(tmp_path) == before


def test_an_output_directory_in_use(refused: Callable[..., str], tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".hidden").write_text("mine")
    for name in ("file", "folder"):
        line = refused(*tiny, "--out", name)
        assert line == f"{name} is in use; choose another --out, or go on there with --resume {name}"
    line = refused(*tiny, "--out", "file/below")
    assert line.startswith("can't write into file/below: ")


def test_a_directory_that_is_no_run(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder", "absent"):
        assert refused("--resume", name) == f"{name} is not a run directory: it has no config.toml"
    (tmp_path / "folder" / "config.toml").write_text("[adapter]\nrnak = 1\n")
    assert refused("--resume", "folder").startswith('unknown configuration key "adapter.rnak"')


def test_a_run_that_another_process_works_on(penchant: Penchant, tiny: list[str], tmp_path: Path) -> None:
    run_directory.create(tmp_path / "run", configure({}, Path(tiny[1])))
    with run_directory.claim(tmp_path / "run"):
        ended = penchant("simulate", "--resume", "run")
    assert ended.code == 2
    assert "another process works in run; wait for it to end\n" in ended.err


def test_a_run_whose_data_or_base_model_changed_meanwhile(
    penchant: Penchant,
    tiny: list[str],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    no_plots: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "base")
    config = configure({"model.base_model": "base"}, Path(tiny[1]))
    choices = tmp_path / "choices.jsonl"
    shutil.copy(config.data.dataset, choices)
    begun = config.changed({"data.dataset": "choices.jsonl"})
    run_directory.create(tmp_path / "run", begun)
    monkeypatch.setattr("penchant.deploy.simulation.runner._federate", interrupted)
    assert penchant("simulate", "--resume", "run").code == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    text = choices.read_text(encoding="utf-8")
    choices.write_text("".join(text.splitlines(keepends=True)[:-1]), encoding="utf-8")
    ended = penchant("simulate", "--resume", "run")
    assert ended.code == 2
    assert "run was begun with another data set; put back what it was" in ended.err
    choices.write_text(text, encoding="utf-8")

    (tmp_path / "base" / "vocab.txt").write_text("another tokenizer file\n", encoding="utf-8")
    ended = penchant("simulate", "--resume", "run")
    assert ended.code == 2
    assert "run was begun with another base model" in ended.err


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def in_old_names(config: RunConfig) -> str:
    """The configuration as 0.1.0 wrote it."""
    return tomli_w.dumps(section_table(config, stored=True))


def test_a_run_that_an_older_version_began_goes_on(
    penchant: Penchant, tiny: list[str], tmp_path: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_directory.create(tmp_path / "run", configure({}, Path(tiny[1])))
    monkeypatch.setattr("penchant.deploy.simulation.runner._federate", interrupted)
    assert penchant("simulate", "--resume", "run").code == 130  # the journal has the run's id now
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    config = run_directory.read_config(tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text(in_old_names(config), encoding="utf-8")
    ended = penchant("simulate", "--resume", "run")
    assert ended.code == 0, ended.err
    notices = [line for line in ended.err.splitlines() if "settings have new names" in line]
    assert notices[0].startswith("note: settings have new names: ")
    assert "training.refit_epochs is now training.final_fit_epochs" in notices[0]
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["config"]["training"]["final_fit_epochs"] == 1
    assert result["digests"]["configuration"] == hashlib.sha256(in_old_names(config).encode()).hexdigest()


def test_an_old_flag_is_answered_by_one_line_and_works(penchant: Penchant) -> None:
    ended = penchant("simulate", "--refit-lr", 7)
    notice, refusal = ended.err.splitlines()
    assert ended.code == 2
    assert notice == (
        "note: settings have new names: training.refit_lr is now training.final_fit_lr; "
        "the old ones are read for one more version"
    )
    assert refusal == "penchant: --final-fit-lr is 7.0; it must lie in 0 … 1"


# --- how errors are shown -------------------------------------------------------------------------


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, kind in (
        (["--dataset", "sentae", "--out", "run", "--debug"], DataError),
        (["--layers", "x", "--out", "run", "--debug"], ConfigError),
    ):
        monkeypatch.setattr("sys.argv", ["penchant", "simulate", *words])
        with pytest.raises(kind):
            main()
    assert tree(tmp_path) == {}


def test_an_interrupted_run_says_how_to_go_on(
    penchant: Penchant, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the directory that there is; before there is one, nothing can be gone on with."""
    with monkeypatch.context() as patch:
        patch.setattr("penchant.deploy.simulation.runner._federate", interrupted)
        ended = penchant("simulate", *tiny, "--out", "run")
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "penchant: interrupted; go on with --resume run"
    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", interrupted)
    ended = penchant("simulate", "--out", "new")
    assert (ended.code, ended.err) == (130, "penchant: interrupted\n")


def test_an_interrupted_comparison_goes_on_by_the_same_command(
    penchant: Penchant, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.deploy.cli.show_comparison.compare", interrupted)
    ended = penchant("compare", *tiny, "--shares", "A", "--seeds", "0")
    assert (ended.code, ended.err) == (130, "penchant: interrupted; the same command goes on\n")


def test_an_interrupted_quickstart_says_that_the_fleet_is_down(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.deploy.fleet.quickstart.quickstart", interrupted)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    ended = penchant("quickstart", "fleet")
    assert (ended.code, ended.err.count("\n")) == (130, 1)
    assert "the fleet is taken down" in ended.err
    assert "--resume" not in ended.err


def test_an_interrupted_authority_goes_on_by_the_same_command(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert penchant("authority", "init", "keys", "--no-passphrase").code == 0
    monkeypatch.setattr("penchant.deploy.fleet.authority_inbox.attend", interrupted)
    ended = penchant("authority", "attend", "keys", "--requests", ".", "--answers", ".", "--watch", 1)
    assert ended.code == 130
    assert ended.err == (
        "penchant: interrupted; what was decided is kept, and the same command asks about the rest\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--dataset", "sentae"], 2, "data"),
        (["--rank", 0], 2, "config"),
        (["--resume", "absent"], 2, "run-directory"),
        (["--rnk", 2], 2, "usage"),
    ],
)
def test_programs_read_errors_as_json(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch, words: list[Any], code: int, error: str
) -> None:
    text = penchant("simulate", *words)
    monkeypatch.setenv("PENCHANT_ERRORS", "json")
    ended = penchant("simulate", *words)
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert json.loads(ended.err) == {"error": error, "message": text.err.removeprefix("penchant: ").rstrip()}


def test_programs_read_of_a_full_disk_and_of_ctrl_c(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "run/result.json")

    monkeypatch.setenv("PENCHANT_ERRORS", "json")
    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", full)
    told = json.loads(penchant("simulate").err)
    assert told == {"error": "system", "message": "No space left on device: run/result.json"}
    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", interrupted)
    assert json.loads(penchant("simulate").err) == {"error": "interrupted", "message": "interrupted"}


def test_texts_of_others_do_not_steer_the_terminal(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(*_: object, **__: object) -> None:
        raise DataError("a server says \x1b[2J\x07\u202egone\r\npenchant: all is well\ud800")

    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", hostile)
    assert penchant("simulate").err == "penchant: a server says ?[2J??gone penchant: all is well?\n"


def test_a_command_that_was_renamed_goes_on_under_its_old_name(penchant: Penchant) -> None:
    new, old = penchant("server", "invite", "absent"), penchant("server", "enroll", "absent")
    assert (old.code, old.out) == (new.code, new.out) == (2, "")
    notice, line = old.err.splitlines()
    assert notice == "note: `penchant server enroll` is called `penchant server invite` now; use that name"
    assert line + "\n" == new.err
    assert "enroll" not in penchant("server", "--help").out


def test_every_command_shows_tracebacks_on_request() -> None:
    import typer.main

    def leaves(group: Any) -> list[Any]:
        inner = getattr(group, "commands", {})
        return [leaf for one in inner.values() for leaf in leaves(one)] if inner else [group]

    found = leaves(typer.main.get_command(app))
    assert len(found) > 30
    assert [one.name for one in found if "--debug" not in {o for p in one.params for o in p.opts}] == []


def test_a_disk_that_fails_is_one_line_and_no_wrong_use(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "run/result.json")

    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", full)
    ended = penchant("simulate", "--out", "run")
    assert (ended.code, ended.err) == (1, "penchant: No space left on device: run/result.json\n")


def test_an_error_of_several_lines_becomes_one(penchant: Penchant, monkeypatch: pytest.MonkeyPatch) -> None:
    def wordy(*_: object, **__: object) -> None:
        raise DataError("first line\n\n  second line")

    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", wordy)
    assert penchant("simulate", "--out", "run").err == "penchant: first line second line\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("penchant.deploy.simulation.world.prepare", bug)
    monkeypatch.setattr("sys.argv", ["penchant", "simulate", "--out", "run"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_version_and_help(penchant: Penchant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 1.2.3")
    assert penchant("--version") == Ended(0, "penchant 1.2.3\n", "")
    for words in (["--help"], ["-h"]):
        ended = penchant(*words)
        assert (ended.code, ended.err) == (0, "")
        assert "simulate" in ended.out
    assert "--warmup-rounds" in penchant("simulate", "--help").out


def test_no_command_at_all_shows_the_help_and_nothing_else(penchant: Penchant) -> None:
    ended = penchant()
    assert "simulate" in ended.out + ended.err
    assert "penchant:" not in ended.err


# --- precedence -----------------------------------------------------------------------------------


def test_defaults_then_recipe_then_file_then_flags(tmp_path: Path) -> None:
    tuned = recipe("senate", "A")
    default = RunConfig()
    key, value = "model.max_tokens", tuned["model.max_tokens"]
    assert value != default.model.max_tokens
    assert configure({}, None).model.max_tokens == value
    assert configure({"data.dataset": "other.jsonl"}, None).model.max_tokens == default.model.max_tokens
    file = tmp_path / "mine.toml"
    file.write_text("[model]\nmax_tokens = 99\n", encoding="utf-8")
    assert configure({}, file).model.max_tokens == 99
    assert configure({key: 77}, file).model.max_tokens == 77
    file.write_text(f"[model]\nmax_tokens = {default.model.max_tokens}\n", encoding="utf-8")
    assert configure({}, file).model.max_tokens == default.model.max_tokens  # said aloud, a default counts


def test_the_recipe_is_that_of_the_data_set_and_share_that_file_and_flags_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[adapter]\nshare = "none"\n', encoding="utf-8")
    assert configure({}, file).federation.rounds == recipe("senate", "none")["federation.rounds"]
    of_b = configure({"adapter.share": "B"}, file)
    assert of_b.federation.rounds == recipe("senate", "B")["federation.rounds"]
    assert of_b.adapter.share == "B"


@pytest.mark.parametrize("name", ["senate", "senate-masked"])
@pytest.mark.parametrize("share", ["B", "A", "kernel", "svd", "AB", "none", "ffa", "lore", "mixed", "common"])
def test_every_recipe_is_a_valid_configuration(name: str, share: str) -> None:
    config = configure({"data.dataset": name, "adapter.share": share}, None)
    assert (config.data.dataset, config.adapter.share) == (name, share)


@pytest.mark.parametrize("name", ["../../evil", "senate/../senate", "", ".", "SENATE", "senate.toml"])
def test_a_recipe_is_found_by_its_plain_name_only(name: str) -> None:
    assert recipe(name, "A") == recipe("FILE.jsonl", "A") == {"data.pairs": 200, "federation.stop_after": 8}


def test_data_without_a_recipe_get_the_share_that_was_chosen_for_such_data(tmp_path: Path) -> None:
    """It is a head on the frozen embedding, so whoever asks for adapters in blocks gets those."""
    for name in ("mine.jsonl", "jester:FOLDER", "senate.jsonl"):
        config = configure({"data.dataset": name}, None)
        assert (config.adapter.share, config.adapter.rank, config.adapter.alpha) == ("common", 4, 4.0)
        assert (config.model.blocks, config.model.beside, config.data.pairs) == (0, 3, 200)
    assert configure({"data.dataset": "senate"}, None).adapter.share == "A"
    for name in ("senate-masked", "movielens"):  # whose recipes say so, and read all blocks
        config = configure({"data.dataset": name}, None)
        assert (config.adapter.share, config.model.blocks, config.model.beside) == ("common", 0, 0)
    mine = {"data.dataset": "mine.jsonl"}
    for base in ("all-mpnet-base-v2", "folder"):  # how deep to read was chosen for one base model
        assert configure(mine | {"model.base_model": base}, None).model.beside == 0
    for asked in (
        {"model.blocks": 3},
        {"model.blocks": 6},
        {"model.beside": 2},
    ):  # whoever names a depth means it
        model = configure(mine | asked, None).model
        assert {"model.blocks": model.blocks, "model.beside": model.beside} == {
            "model.blocks": 0,
            "model.beside": 0,
        } | asked
    assert configure(mine | {"adapter.rank": 2}, None).adapter == replace(
        configure(mine, None).adapter, rank=2
    )
    assert configure(mine | {"adapter.share": "AB"}, None).adapter.share == "AB"
    for key, value in {
        "model.objective": "dpo",
        "adapter.head": "personal",
        "adapter.target_modules": ["q_proj"],
        "adapter.layers": [0],
        "adapter.share_base": ["head"],
        "federation.warmup_rounds": 3,
    }.items():
        config = configure(mine | {key: value}, None)
        assert (config.adapter.share, config.adapter.rank) == ("A", 2), key
    said_aloud = {
        "model.objective": "reward",
        "adapter.head": "auto",
        "adapter.layers": [-1],
        "adapter.target_modules": ["output.dense"],
        "federation.warmup_rounds": 0,
        "model.base_model": "all-MiniLM-L6-v2",
    }
    for key, value in said_aloud.items():
        assert configure(mine | {key: value}, None) == configure(mine, None), key
    file = tmp_path / "mine.toml"
    file.write_text('[data]\ndataset = "mine.jsonl"\n[adapter]\nlayers = [0]\n', encoding="utf-8")
    assert configure({}, file).adapter.share == "A"


def test_a_depth_beside_the_last_is_refused_for_the_share_that_a_run_has_and_for_no_other(
    refused: Callable[..., str], penchant: Penchant, tiny: list[str], tmp_path: Path
) -> None:
    """Data without a recipe have share common, which `--beside` is for; the default is share A."""
    ended = penchant("simulate", *tiny, "--beside", 1, "--out", "run")
    assert ended.code == 0, ended.err
    config = run_directory.read_config(tmp_path / "run")
    assert (config.model.beside, config.adapter.share) == (1, "common")
    for asked, other in ((("--head", "personal"), "adapter.head"), (("--layers", "0"), "adapter.layers")):
        said = refused(*tiny, "--beside", 1, *asked, "--out", "x")
        assert "such as common" in said
        assert other in said or asked[0] in said
        assert "drop one of them" in said
        assert '"A"' not in said
    said = refused(*tiny, "--beside", 1, "--share", "B", "--out", "x")
    assert 'share "B" does; name one of those, or drop' in said
    said = refused(*tiny, "--beside", 1, "--objective", "dpo", "--out", "x")
    assert "is about the embedding under a score head" in said


def test_a_file_is_checked_with_the_share_that_its_run_has(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\nbeside = 1\n", encoding="utf-8")
    assert configure({"data.dataset": "mine.jsonl"}, file).adapter.share == "common"
    assert configure({"adapter.share": "lore"}, file).model.beside == 1
    with pytest.raises(ConfigError, match='share "A" does; name one of those'):
        configure({"data.dataset": "senate"}, file)  # whose share it is
    made = tmp_path / "made.toml"
    made.write_text("[all.model]\nbeside = 2\n[common.adapter]\nrank = 3\n", encoding="utf-8")
    tuned = RecipeFile.read(made)
    assert configure({"data.dataset": "senate"}, None, tuned).model.beside == 2
    assert configure({"data.dataset": "senate"}, file, tuned).model.beside == 1


def test_a_recipes_cohort_is_for_everybody() -> None:
    """With fewer clients it would be too many."""
    assert configure({}, None).federation.cohort > 0
    assert configure({"data.clients": 20}, None).federation.cohort == 0
    assert configure({"data.clients": 20, "federation.cohort": 9}, None).federation.cohort == 9


# --- how a device becomes a member ----------------------------------------------------------------


def test_a_device_accepts_the_authoritys_answer(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`join` took the answer as well, and does so for one version more."""
    monkeypatch.setenv("PENCHANT_HOME", str(tmp_path / "home"))
    digest = penchant("authority", "init", "keys", "--no-passphrase").out.split()[1]
    assert penchant("device", "request", "--out", "my.request").code == 0
    assert penchant("authority", "issue", "keys", "my.request", "--out", "my.answer").code == 0
    for wrong in ("", digest[:-2], digest[:-1] + "x"):
        ended = penchant("device", "accept", "my.answer", "--authority", wrong)
        line = "penchant: --authority must be a digest of 64 hexadecimal digits\n"
        assert (ended.code, ended.err) == (2, line)
    assert penchant("device", "accept", "absent", "--authority", digest).code == 2
    done = penchant("device", "accept", "my.answer", "--authority", digest)
    assert (done.code, done.out, done.err) == (0, "this device is member 1\n", "")

    monkeypatch.setenv("PENCHANT_HOME", str(tmp_path / "second"))
    penchant("device", "request", "--out", "second.request")
    penchant("authority", "issue", "keys", "second.request", "--out", "second.answer")
    done = penchant("device", "join", "second.answer", "--authority", digest)
    assert (done.code, done.out) == (0, "this device is member 2\n")
    assert "`penchant device accept ANSWER --authority DIGEST`" in done.err


def test_waiting_for_the_authority_may_be_interrupted(
    penchant: Penchant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from penchant.common.membership.join_token import JoinToken, Terms

    monkeypatch.setenv("PENCHANT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("penchant.client.device.joining.wait", interrupted)
    text = JoinToken.create(Terms("fleet.example:8443", bytes(32), bytes(32), int(time.time()) + 600)).text()
    (tmp_path / "token").write_text(f"{text}\n")
    ended = penchant("device", "join", tmp_path / "token", "--wait")
    assert (ended.code, ended.err) == (130, "penchant: interrupted; the same command goes on\n")
    foreign = penchant("device", "join", text, "--authority", "11" * 32)
    assert (foreign.code, "a different authority" in foreign.err) == (2, True)
    assert foreign.err.startswith("note: a token on the command line can be read by every user")
    assert text not in foreign.err
