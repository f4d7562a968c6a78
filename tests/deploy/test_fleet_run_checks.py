"""What a fleet can run is said before it is started, with the number and the cure."""

from __future__ import annotations

import re
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
from support.console_scene import make_run
from support.fleet_directory import make_server

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.common.privacy.accounting import epsilon_of, rho_of
from penchant.deploy import run_directory
from penchant.deploy.cli.main import main
from penchant.deploy.fleet.run_checks import (
    annotated,
    fleet_defaults,
    needed_devices,
    objections,
    refuse_unfit,
)
from penchant.deploy.flower.superlink import DIRECTORY, write_app
from penchant.server.journal import Journal
from penchant.server.noise_terms import settle_noise
from penchant.server.privacy_figures import FACT, PrivacyFigures


@pytest.mark.parametrize(
    ("changes", "members", "said"),
    [
        ({"federation.cohort": 20}, 19, "this fleet has 19 members; ask at most 19"),
        ({"federation.cohort": 16}, 20, "that takes 17 devices a round"),
        ({"federation.cohort": 20, "federation.rounds": 0}, 20, "federation.rounds is 0"),
        ({"federation.cohort": 0}, 20, "federation.cohort is 0"),
        ({"federation.cohort": 20, "privacy.group_size": 10}, 20, "a sum over 10 devices is too small"),
        ({"federation.cohort": 2, "privacy.min_honest": 1, "privacy.max_colluders": 0}, 9, "needs 3 devices"),
    ],
)
def test_what_can_not_run_is_refused(changes: dict[str, int], members: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_unfit(RunConfig().changed(changes), members)


@pytest.mark.parametrize(("honest", "colluders", "devices"), [(10, 2, 17), (1, 0, 3), (3, 2, 7), (11, 2, 18)])
def test_how_many_devices_owners_need(honest: int, colluders: int, devices: int) -> None:
    assert needed_devices(honest, colluders) == devices


@pytest.mark.parametrize("members", [3, 5, 16, 17, 300])
def test_the_file_for_a_fleet_can_run_there_and_explains_every_setting(members: int) -> None:
    text = annotated(fleet_defaults(members), members)
    config = RunConfig.from_toml(text)
    refuse_unfit(config, members)
    assert objections(config) == []
    assert config.federation.cohort == members
    assert ("each owner sets in policy.toml" in text) == (members < 17)
    lines = [line.removeprefix("# ") for line in text.splitlines() if not line.startswith("#   ")]
    bare = "\n".join(line for line in lines if re.match(r"\[|[a-z0-9_]+ = ", line))
    assert RunConfig.from_toml(bare).federation == config.federation  # what is commented out is the default
    assert "data." not in text
    for key in ("max_tokens", "training_seconds", "clip", "group_size", "lr_shared"):
        assert f"{key} = " in text


@pytest.mark.parametrize("model", ["/m/\U0001f600", 'a"\\b', "tab\t and \x7f\x85\u2028", "Gerät"])
def test_the_file_for_a_fleet_keeps_every_character_of_a_model_s_name(model: str) -> None:
    config = fleet_defaults(5).changed(
        {"model.base_model": model, "adapter.target_modules": [model, "key"], "training.lr_shared": 1e-5}
    )
    assert RunConfig.from_toml(annotated(config, 5)) == config


def test_a_run_s_app_names_its_directory_whatever_it_is_called(tmp_path: Path) -> None:
    directory = tmp_path / 'a "run" \U0001f600'
    directory.mkdir()
    app = write_app(directory, "penchant.server", "penchant.client")
    table = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    assert table["tool"]["flwr"]["app"]["config"][DIRECTORY] == str(directory)


def test_what_owners_defaults_object_to_is_said() -> None:
    (why,) = objections(RunConfig().changed({"federation.cohort": 20}))
    assert "adds no noise" in why
    many = objections(RunConfig().changed({"federation.cohort": 20, "adapter.rank": 64}))
    assert len(many) > 1


def test_what_earlier_runs_have_spent_of_people_s_budget_is_said(tmp_path: Path) -> None:
    """Of a budget for good, the default file asks for all: a second run needs less, or more of its owners."""
    server, config = make_server(tmp_path), fleet_defaults(20)
    assert objections(config, server) == []
    half = PrivacyFigures(8.0, 1e-5, 1.0, 4, 9, rho_of(8.0, 1e-5) / 4, 0.5)
    with closing(Journal(make_run(server.run("one"), 0))) as journal:
        journal.note(FACT, half.encode())
        for _ in range(2):
            journal.fail(1, journal.begin(1, "main"), "nobody came")  # a vector may have left all the same
    left = epsilon_of(rho_of(8.0, 1e-5) / 2, 1e-5)
    (why,) = objections(config, server)
    assert f"earlier runs of this fleet have spent up to {left:.3g} of it" in why
    most = re.search(r"set privacy\.dp_epsilon to ([0-9.]+) at most", why)
    assert most is not None
    assert float(most[1]) == pytest.approx(left, abs=0.01)
    assert objections(config.changed({"privacy.dp_epsilon": float(most[1])}), server) == []
    with closing(Journal(server.run("one"))) as journal:
        for number in range(1, 9):
            journal.fail(2, journal.begin(2, "main"), f"nobody came for the {number}th time")
    (why,) = objections(config, server)  # nobody takes part in more than four
    assert "have spent up to 8 of it; a device takes part until its budget is spent; have owners allow" in why
    (server.run("one") / "journal.db").write_bytes(b"no journal at all")
    assert objections(config, server) == []  # its page says so


def test_a_run_beyond_the_default_budget_by_itself_is_said() -> None:
    (why,) = objections(RunConfig().changed({"federation.cohort": 20, "privacy.dp_epsilon": 9.0}))
    assert "may spend an epsilon of 9 of each person's budget, which is 8 for good" in why
    assert "set privacy.dp_epsilon to 8 at most" in why


def test_the_file_is_shown_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `penchant server config DIR > run.toml`."""
    server = make_server(tmp_path)
    written = tmp_path / "run.toml"
    for words in ((), ("--out", str(written))):
        monkeypatch.setattr("sys.argv", ["penchant", "server", "config", str(server.path), *words])
        with pytest.raises(SystemExit):
            main()
        shown = capsys.readouterr().out
        if not words:
            first = shown
    assert first == written.read_text()
    assert RunConfig.from_toml(first) == fleet_defaults(0)


def test_a_file_like_an_earlier_run_has_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(tmp_path)
    asked = fleet_defaults(3).changed({"federation.rounds": 2, "federation.clip": 0.05, "adapter.rank": 3})
    run_directory.create(server.run("one"), settle_noise(asked, 3, None))
    told = {}
    for like in ("one", "two"):
        words = ["penchant", "server", "config", str(server.path), "--like", like]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        told[like] = (ended.value.code or 0, *capsys.readouterr())
    code, out, _ = told["one"]
    assert code == 0
    assert RunConfig.from_toml(out) == asked
    code, _, err = told["two"]
    assert (code, "there is no run 'two'; there are: one" in err) == (2, True)
