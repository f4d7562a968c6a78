"""`penchant device rank` says what the model that it ranks with does not know."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from support.device_api_scene import motions, new_device

from penchant.client.device.device import Device, OfflineConfig
from penchant.common.data.preferences import Preference
from penchant.common.settings import section_table
from penchant.deploy.cli.main import main


@pytest.fixture
def home(tiny_model: Callable[[str], Path], tmp_path: Path) -> Device:
    folder = tmp_path / "device"
    folder.mkdir()
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": str(tiny_model("bert")), "max_tokens": 16}
    (folder / "model.toml").write_text(tomli_w.dumps(settings))
    (tmp_path / "answers.txt").write_text("the table\nthe motion\n")
    device = Device(folder)
    device.record([Preference(f"on bill {n}: ", "the motion", "the table") for n in range(12)])
    device.train()
    return device


def ranked(home: Device, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    words = ["device", "rank", str(home.directory.parent / "answers.txt"), "--home", str(home.directory)]
    monkeypatch.setattr(sys, "argv", ["penchant", *words, "--json", *flags])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code


def test_it_says_how_many_choices_are_newer_than_the_model(
    home: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked(home, monkeypatch)
    said = capsys.readouterr()
    assert all(row["error"] > 0 for row in json.loads(said.out))
    assert "not in the model" not in said.err
    home.record([Preference("on it: ", "the motion", "the table")])
    ranked(home, monkeypatch)
    assert "1 newer choice is not in the model: `penchant device train`" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [(), ("--explain",)])
def test_the_table_has_reasons_where_they_are_asked_for(
    home: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    words = ["device", "rank", str(home.directory.parent / "answers.txt"), "--home", str(home.directory)]
    monkeypatch.setattr(sys, "argv", ["penchant", *words, *flags])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().out
    assert not left.value.code
    assert "the motion" in said
    assert "the table" in said
    assert ("” before “" in said) is bool(flags)


def test_it_says_where_no_errors_are_known_and_fits_them_when_asked(
    home: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, kept = home.vault.latest() or (b"", None)
    assert kept is not None
    moved = kept.vector + np.float32(0.1)  # as after a round
    home.vault.keep_personal(run, 1, moved, kept.context, version=home.vault.version())
    ranked(home, monkeypatch)
    said = capsys.readouterr()
    assert [row["error"] for row in json.loads(said.out)] == [None, None]
    assert "no errors are known of this model" in said.err
    ranked(home, monkeypatch, "--fit-errors")
    said = capsys.readouterr()
    assert all(row["error"] > 0 for row in json.loads(said.out))
    assert "no errors" not in said.err


def test_it_says_which_choices_speak_for_a_response_before_the_next(
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = new_device(tmp_path / "device", tiny_model("bert"), motions(24))
    (tmp_path / "answers.txt").write_text("the table tax\nthe motion tax\n")
    newer = Preference("newer: ", "the motion", "the table")
    home.record([newer])
    ranked(home, monkeypatch, "--explain")
    first, last = json.loads(capsys.readouterr().out)
    assert "for" not in last
    assert first["response"] == "the motion tax"
    known = {p.prompt for p in home.store.train()} - {newer.prompt}
    assert len(first["for"]) == 3
    for one in first["for"]:
        assert one["prompt"] in known  # what the model learned from: nothing newer, nothing held out
        assert one["chosen"].startswith("the motion")
        assert one["rejected"].startswith("the table")
        assert one["change"] > 0 < one["error"]
    changes = [one["change"] for one in first["for"]]
    assert changes == sorted(changes, reverse=True)
    assert all(one["change"] < 0 for one in first["against"])

    words = ["device", "rank", str(home.directory.parent / "answers.txt"), "--home", str(home.directory)]
    monkeypatch.setattr(sys, "argv", ["penchant", *words, "--explain"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    count = len(known)
    assert f"“the motion tax” before “the table tax”, by {count} choices:" in said
    assert f"+{changes[0]:.3f} ± " in said


def test_it_says_why_where_no_choice_can_be_named(
    home: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.forget_choices(home.store.recorded())
    words = ["device", "rank", str(home.directory.parent / "answers.txt"), "--home", str(home.directory)]
    monkeypatch.setattr(sys, "argv", ["penchant", *words, "--explain"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "which choices speak for it is not known" in capsys.readouterr().err
