"""`penchant device rank` says what the model that it ranks with does not know."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomli_w

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
