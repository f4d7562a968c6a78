"""`penchant device rank` says what the model that it ranks with does not know."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from support.device_api_scene import chats, motions, new_device
from typer.testing import CliRunner

from penchant.client.device.device import Device
from penchant.client.device.home import OfflineConfig
from penchant.common.data.preferences import Preference
from penchant.common.errors import DataError, UsageError
from penchant.common.settings import section_table
from penchant.deploy.cli.device import app as device_app
from penchant.deploy.cli.device import model, warm_rank
from penchant.deploy.cli.device.model import _over_next
from penchant.deploy.cli.device.question_file import question_in
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


def test_responses_of_several_lines_are_one_each_and_conversations_are_asked_as_they_were_learned(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """From JSON: the scores are those of the same texts in the form that the model was trained in."""
    answers = ["the motion\n\non tax", "the table tax"]
    messages = [{"role": "user", "content": "on bill 99:"}]
    cases = (
        ("plain", motions(), answers, ("--prompt", "on bill 99: "), "on bill 99: ", answers),
        ("asks", motions(), {"prompt": messages, "responses": answers}, (), "on bill 99:", answers),
        (
            "chats",
            chats(),
            {"prompt": messages, "responses": answers},
            (),
            "user: on bill 99:\n",
            [f"assistant: {one}" for one in answers],
        ),
    )
    for name, choices, held, more, prompt, responses in cases:
        device = new_device(tmp_path / name, tiny_model("bert"), choices)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(held), encoding="utf-8")
        said = CliRunner().invoke(
            device_app, ["rank", str(file), "--home", str(tmp_path / name), "--json", *more]
        )
        assert said.exit_code == 0, said.output
        expected = {row.response: row.personal for row in device.rank(prompt, responses)}
        assert {row["response"]: row["personal"] for row in json.loads(said.stdout)} == pytest.approx(
            expected
        )


def test_the_table_says_where_it_is_hardly_sure() -> None:
    assert [_over_next(part) for part in (0.5, 0.6, 0.97, None)] == [
        "50%, hardly sure",
        "60%",
        "97%",
        "",
    ]


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ("{", "asked.json is damaged"),
        ("3", "a list of responses, or an object with prompt and responses"),
        ('{"prompt": "a"}', "a list of responses, or an object with prompt and responses"),
        ('["a", 3]', "the responses must be a list of texts"),
        ('["a", "\\ud800"]', "not valid text"),
        (
            '{"prompt": 3, "responses": ["a", "b"]}',
            "'prompt' must be a text or a list of messages, not a number",
        ),
        ('{"prompt": [], "responses": ["a", "b"]}', "or a list of messages, not an empty list"),
        ('{"prompt": ["a"], "responses": ["a", "b"]}', "or a list of messages, not a list of other things"),
        ('{"prompt": "a", "responses": ["a", "b"]}', "leave --prompt out"),
    ],
)
def test_odd_files_of_responses_are_refused_in_one_line(held: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "asked.json").write_text(held, encoding="utf-8")
    with pytest.raises((DataError, UsageError), match=re.escape(why)) as refused:
        question_in(str(tmp_path / "asked.json"), "given" if "--prompt" in why else "")
    assert "\n" not in str(refused.value)


def test_it_asks_the_process_that_has_the_model_in_memory(
    home: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.record([Preference("on it: ", "the motion", "the table")])
    ranked(home, monkeypatch)
    alone = capsys.readouterr()
    socket = home.directory / warm_rank.SOCKET
    with warm_rank.answering(home) as answers, monkeypatch.context() as patch:
        assert answers
        assert socket.stat().st_mode & 0o077 == 0
        with warm_rank.answering(home) as second:
            assert not second  # and the first one's socket stays
        patch.setattr(model, "open_device", lambda *_: pytest.fail("the device was opened"))
        ranked(home, monkeypatch)
        asked = capsys.readouterr()
    assert json.loads(asked.out) == json.loads(alone.out)
    assert asked.err == alone.err
    assert "1 newer choice is not in the model" in asked.err
    assert not socket.exists()


def test_what_nobody_answers_or_is_refused_is_done_here(
    home: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = home.directory.parent / "none.json"
    empty.write_text("[]")
    with warm_rank.answering(home):
        assert warm_rank.ranked_elsewhere(home.directory, question_in(str(empty), "")) is None
        with Client(str(home.directory / warm_rank.SOCKET), family="AF_UNIX") as stranger:
            stranger.send_bytes(b"[1")
        ranked(home, monkeypatch)  # it answers on
    with Listener(str(home.directory / warm_rank.SOCKET), family="AF_UNIX") as left:
        (home.directory / "kept").hardlink_to(home.directory / warm_rank.SOCKET)
        assert left.address
    (home.directory / "kept").rename(home.directory / warm_rank.SOCKET)  # of a process that was killed
    capsys.readouterr()
    ranked(home, monkeypatch)
    assert json.loads(capsys.readouterr().out)
    with warm_rank.answering(home) as answers:
        assert answers
