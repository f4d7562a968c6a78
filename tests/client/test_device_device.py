"""A device in its owner's hands: import, train, rank, status, export, pause, forget; all offline."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from support.command_line import device_command
from support.tiny_models import write_tiny_model

from penchant.client.agent.policy import OwnerPolicy
from penchant.client.device.device import Device, Standing
from penchant.client.device.home import OfflineConfig
from penchant.client.device.preference_store import held_out
from penchant.common.data.preferences import Preference
from penchant.common.errors import BaseModelError, ConfigError, DataError, DeviceError, UsageError
from penchant.common.settings import section_table

WORDS = ("bill", "vote", "judge", "budget", "tax", "cloture")


def choices(count: int = 30) -> list[Preference]:
    """Somebody who likes motions and not tables."""
    return [
        Preference(
            f"on {WORDS[n % 6]} {n}: ", f"the motion {WORDS[n // 6 % 6]}", f"the table {WORDS[n // 6 % 6]}"
        )
        for n in range(count)
    ]


@pytest.fixture
def folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A device's directory whose model is a tiny one."""
    device = tmp_path / "device"
    device.mkdir()
    settings = section_table(OfflineConfig())
    settings["model"] |= {"base_model": str(tiny_model("bert")), "max_tokens": 16}
    settings["training"] |= {"lr_personal": 3e-2, "lr_head": 3e-2, "local_epochs": 40, "prior_spread": 1.0}
    (device / "model.toml").write_text(tomli_w.dumps(settings))
    return device


def test_a_device_learns_its_owner_alone_and_keeps_it(folder: Path) -> None:
    home = Device(folder)
    assert home.record(choices()).new == 30
    before = home.report()
    after = home.train()
    assert before.quality is not None
    assert after.quality is not None
    assert after.quality.personal.correct > before.quality.personal.correct
    # the model without the person stays as it was
    assert after.quality.common == before.quality.common == before.quality.personal
    again = Device(folder).report()
    assert again.quality == after.quality
    assert (again.choices, again.rounds_joined, again.run, again.left) == (30, 0, "", ())
    ranked = Device(folder).rank("on bill 99: ", ["the table tax", "the motion tax"])
    assert [row.response for row in ranked] == ["the motion tax", "the table tax"]


def test_scores_come_with_errors_once_a_personal_part_is_fitted(folder: Path, monkeypatch: Any) -> None:
    home = Device(folder)
    home.record(choices())
    responses = ["the table tax", "the motion tax", "cloture"]
    assert all(row.error is None and row.over_next is None for row in home.rank("on bill 99: ", responses))
    home.train()
    ranked = home.rank("on bill 99: ", responses)
    assert all(row.error is not None and row.error > 0 for row in ranked)
    assert ranked[-1].over_next is None
    for row, below in itertools.pairwise(ranked):
        assert row.over_next is not None
        # Doubt leaves the side, and takes from the certainty.
        assert 0.5 < row.over_next < 1 / (1 + math.exp(below.personal - row.personal))
    assert home.standing() == Standing(newer=0, errors=True)
    monkeypatch.setattr("penchant.client.device.device.KEPT_MOST", 100)
    home.train()
    assert home.standing() == Standing(0, False, "the personal part is too large for errors to be computed")
    too_large = home.rank("on bill 99: ", responses)
    assert [row.error for row in too_large] == [None] * 3
    assert [row.personal for row in too_large] == [row.personal for row in ranked]


def test_what_is_liked_is_ranked_as_rank_does_and_compared_with_the_average(
    folder: Path, monkeypatch: Any
) -> None:
    home = Device(folder)
    assert home.liking([]) == []
    home.record(choices())
    texts = [("on bill 99: ", text) for text in ("the table tax", "the motion tax", "cloture")]
    assert [row.error for row in home.liking(texts)] == [None] * 3
    steps: list[str] = []
    home.train(steps.append)
    assert steps[0] == "loading the base model"
    assert steps[-1] == "judging by the choices that were held out"
    ranked = home.rank("on bill 99: ", [text for _, text in texts])
    liked = home.liking(texts)
    assert [row.response for row in liked] == [row.response for row in ranked]
    middle = sum(row.personal for row in ranked) / 3
    for one, other in zip(liked, ranked, strict=True):
        assert one.score == pytest.approx(other.personal - middle, abs=1e-5)
    # of two, each is half their difference from the middle: as sure as rank is of their order
    pair = home.rank("on bill 99: ", [text for _, text in texts[:2]])
    first, second = home.liking(texts[:2])
    assert first.error == pytest.approx(second.error)
    margin, error = first.score - second.score, 2 * first.error
    assert pair[0].over_next == pytest.approx(
        1 / (1 + math.exp(-margin / math.sqrt(1 + math.pi * error**2 / 8)))
    )
    (alone,) = home.liking(texts[:1])
    assert (alone.score, alone.error) == (0, 0)
    monkeypatch.setattr("penchant.client.device.device.POSTERIOR_MOST", 1)
    assert [row.error for row in home.liking(texts)] == [None] * 3
    assert home.report(judged=False).quality is None


def test_training_again_starts_from_the_same_place_and_ends_there(folder: Path) -> None:
    home = Device(folder)
    home.record(choices())
    home.train()
    first = home.vault.latest()
    home.train()
    second = home.vault.latest()
    assert first is not None
    assert second is not None
    assert np.array_equal(first[1].vector, second[1].vector)


def test_training_alone_goes_by_what_model_toml_says_now(folder: Path, tmp_path: Path) -> None:
    home = Device(folder)
    home.record(choices())
    home.train()
    assert not home.standing().other_settings
    write_tiny_model("llama", tmp_path / "writes", writes=True)
    settings = tomllib.loads((folder / "model.toml").read_text())
    settings["model"] |= {"base_model": str(tmp_path / "writes"), "objective": "dpo"}
    settings["adapter"]["target_modules"] = ["q_proj", "v_proj"]
    settings["training"] |= {"lr_head": OfflineConfig().training.lr_head, "local_epochs": 2}
    (folder / "model.toml").write_text(tomli_w.dumps(settings))

    before = Device(folder)  # what was trained ranks on, and says so
    assert before.standing() == Standing(newer=0, errors=True, other_settings=True)
    assert before.report().other_settings
    assert before.model_in_use().planned.plan.model.objective == "reward"
    ranked = command("rank", "-", home=folder, typed="the table\nthe motion\n")
    shown = command("status", home=folder)
    assert (ranked.returncode, shown.returncode) == (0, 0), ranked.stderr
    for said in (ranked.stderr, shown.stderr):
        assert "trained with other settings than model.toml has now" in said

    before.train()
    after = Device(folder)
    assert after.model_in_use().planned.plan.model == after.offline().model
    assert after.model_in_use().personal
    assert not after.standing().other_settings
    assert not after.report().other_settings


@pytest.mark.parametrize("name", ["lr_head", "prior_head"])
def test_alone_too_a_setting_that_the_objective_never_reads_is_refused(folder: Path, name: str) -> None:
    home = Device(folder)
    for training in ({}, {"local_epochs": 2}, {name: getattr(OfflineConfig().training, name)}):
        (folder / "model.toml").write_text(
            tomli_w.dumps({"model": {"objective": "dpo"}, "training": training})
        )
        assert home.offline().model.objective == "dpo"
    (folder / "model.toml").write_text(
        tomli_w.dumps({"model": {"objective": "dpo"}, "training": {name: 0.5}})
    )
    with pytest.raises(ConfigError, match=f'training.{name} is about a score head, and objective "dpo"'):
        home.offline()


def test_what_was_forgotten_alone_leaves_no_settings_either(folder: Path) -> None:
    home = Device(folder)
    home.record(choices())
    home.train()
    assert home.forget_choices(home.store.recorded()).learned
    settings = tomllib.loads((folder / "model.toml").read_text())
    settings["model"]["max_tokens"] = 32
    (folder / "model.toml").write_text(tomli_w.dumps(settings))
    assert Device(folder).model_in_use().planned.plan.model == home.offline().model
    assert not Device(folder).report().other_settings


def test_a_model_toml_that_can_not_be_read_stops_training_and_not_ranking(folder: Path) -> None:
    home = Device(folder)
    home.record(choices())
    home.train()
    before = home.rank("", ["the table", "the motion"])
    (folder / "model.toml").write_text("model = 3\n")
    assert home.rank("", ["the table", "the motion"]) == before
    assert home.report().other_settings
    with pytest.raises(ConfigError):
        home.train()
    assert home.rank("", ["the table", "the motion"]) == before


def test_nothing_on_the_disk_shows_the_personal_factor(folder: Path) -> None:
    home = Device(folder, "a passphrase")
    home.record(choices())
    home.train()
    latest = home.vault.latest()
    assert latest is not None
    piece = latest[1].vector[:4].tobytes()
    assert all(piece not in path.read_bytes() for path in folder.iterdir() if path.is_file())
    with pytest.raises(DeviceError, match="passphrase"):
        Device(folder)


def test_files_of_a_device_are_for_its_owner_alone(folder: Path) -> None:
    Device(folder).record(choices(3))
    modes = {path.name: path.stat().st_mode & 0o077 for path in folder.iterdir() if path.name != "model.toml"}
    assert set(modes.values()) == {0}


def test_pausing_is_the_owners_word_at_once(folder: Path) -> None:
    home = Device(folder)
    assert not home.policy().paused
    home.pause()
    assert Device(folder).policy().paused
    home.resume()
    assert not home.policy().paused
    (folder / "policy.toml").write_text("paused = true\n")
    with pytest.raises(UsageError, match=r"policy\.toml says paused = true; change it there"):
        home.resume()
    assert home.policy().paused


def test_the_policy_is_read_from_the_owners_file(folder: Path) -> None:
    home = Device(folder)
    (folder / "policy.toml").write_text('min_honest = 30\nhours = "22:00-06:30"\n')
    assert home.policy() == OwnerPolicy(min_honest=30, hours="22:00-06:30")
    (folder / "policy.toml").write_text("min_honset = 30\n")
    with pytest.raises(ConfigError, match='did you mean "min_honest"'):
        home.policy()


def test_forgetting_leaves_neither_choices_nor_a_model(folder: Path) -> None:
    home = Device(folder)
    home.record(choices())
    home.train()
    assert home.forget() == 30
    assert len(home.store) == 0
    assert home.vault.latest() is None
    assert b"the motion" not in (folder / "preferences.db").read_bytes()


def test_clear_refusals(folder: Path) -> None:
    home = Device(folder)
    with pytest.raises(DataError, match="no choices to learn from"):
        home.train()
    with pytest.raises(DataError, match="no responses"):
        home.rank("", [])
    (folder / "model.toml").write_text('[model]\nbase_model = "nowhere-at-all"\n')
    with pytest.raises(BaseModelError, match="nowhere-at-all"):
        home.rank("", ["a"])


def test_the_status_says_what_it_can_whatever_is_broken(folder: Path) -> None:
    home = Device(folder)
    home.record(choices())
    home.vault.note_sent([("status message", 9)])
    home.vault.tell_owner("keys", "POLICY", "paused by the owner")
    (folder / "model.toml").write_text('[model]\nbase_model = "nowhere-at-all"\n')
    report = home.report()
    assert (report.choices, report.left, len(report.refused)) == (30, (("status message", 1, 9),), 1)
    assert report.quality is None
    assert "nowhere-at-all" in report.unknown
    assert report.absent == "in no fleet"
    (folder / "model.toml").write_text("model = 3\n")
    assert "model" in home.report().unknown


@pytest.mark.parametrize("name", ["policy.toml", "model.toml"])
def test_what_others_could_have_written_is_not_the_owners_word(folder: Path, name: str) -> None:
    home = Device(folder)
    (folder / name).chmod(0o660)
    with pytest.raises(ConfigError, match=f"others can write .*{name}: chmod go-w"):
        _ = home.policy() if name == "policy.toml" else home.offline()
    (folder / name).chmod(0o640)  # a group may read it
    _ = home.policy(), home.offline()


def test_a_directory_that_others_can_write_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for mode in (0o770, 0o702, 0o1777):
        place = tmp_path / oct(mode)
        place.mkdir()
        place.chmod(mode)
        with pytest.raises(DeviceError, match="others can write in"):
            Device(place)
        assert list(place.iterdir()) == []


def test_files_of_another_user_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Device(folder)
    me = os.geteuid()
    monkeypatch.setattr("penchant.client.vault.ownership.os.geteuid", lambda: me + 1)
    if me != 0:  # root's word counts for everybody
        with pytest.raises(ConfigError, match="only its owner's word counts"):
            home.policy()
    with pytest.raises(DeviceError, match="work on it as that user"):
        Device(folder)


def test_an_export_is_the_model_that_ranks(folder: Path, tmp_path: Path) -> None:
    home = Device(folder)
    home.record(choices())
    home.train()
    home.export(tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0].replace("'.'", repr(str(tmp_path / "export")))
    code = code.replace("'./", f"'{tmp_path / 'export'}/")
    namespace: dict[str, object] = {}
    exec(code, namespace)
    responses = ["the motion tax", "the table tax", "a judge"]
    said = {r: namespace["score"]("on bill: ", r) for r in responses}  # type: ignore[operator]
    ranked = {row.response: row.personal for row in home.rank("on bill: ", responses)}
    assert said == pytest.approx(ranked, abs=1e-5)
    with pytest.raises(UsageError, match="in use"):
        home.export(tmp_path / "export")


def test_a_device_killed_while_it_trains_has_the_old_model_or_the_new_one(folder: Path) -> None:
    """A process trains again and again on more and more choices and is killed at random instants."""
    home = Device(folder)
    home.record(choices(12))
    home.train()
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom penchant.client.device.device import Device\n"
        "from penchant.common.data.preferences import Preference\ntorch.set_num_threads(1)\n"
        "home = Device(Path(sys.argv[1]))\nprint('ready', flush=True)\nn = len(home.store)\n"
        "while True:\n    n += 1\n    home.record([Preference(f'{n} ', 'the motion', 'the table')])\n"
        "    home.train()\n    print(n, flush=True)\n"
    )
    recorded = 12
    for turn in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.15 + 0.07 * turn)
            os.kill(process.pid, signal.SIGKILL)
            recorded = max([recorded, *(int(line) for line in process.stdout if line.endswith("\n"))])
        after = Device(folder)
        assert len(after.store) >= recorded
        latest = after.vault.latest()
        assert latest is not None
        assert np.isfinite(latest[1].vector).all()
        assert after.report().quality is not None


# --- the command line -----------------------------------------------------------------------------


def command(*words: str, home: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    return device_command(*words, home=home, typed=typed)


def test_the_owners_first_day_at_the_command_line(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": c.prompt, "chosen": c.chosen, "rejected": c.rejected} for c in choices()]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "answers.txt").write_text("the table tax\nthe motion tax\n")
    done = command("import", str(tmp_path / "mine.jsonl"), home=folder)
    assert (done.returncode, done.stdout) == (0, "30 new choices recorded, 0 were there already\n"), (
        done.stderr
    )
    assert command("train", home=folder).returncode == 0
    ranked = command(
        "rank", "-", "--prompt", "on bill 99: ", "--json", home=folder, typed="the table\nthe motion\n"
    )
    rows = json.loads(ranked.stdout)
    assert [row["response"] for row in rows] == ["the motion", "the table"]
    assert rows[0]["error"] > 0
    assert 0.5 < rows[0]["over_next"] < 1
    status = json.loads(command("status", "--json", home=folder).stdout)
    assert status["choices"] == 30
    assert status["left"] == []
    assert status["held_out_right"]["personal"]["of"] == status["held_out"]


def test_the_best_of_n_at_the_command_line(folder: Path, tmp_path: Path) -> None:
    writer = tmp_path / "writer"
    write_tiny_model("llama", writer, tie_word_embeddings=True)
    Device(folder).record(choices())
    Device(folder).train()
    words = ("best-of", "on bill 99: ", "-n", "4", "--tokens", "5", "--generator", str(writer), "--json")
    done = command(*words, home=folder)
    rows = json.loads(done.stdout)
    assert len(rows) == 4
    assert [row["personal"] for row in rows] == sorted((row["personal"] for row in rows), reverse=True)
    ranked = Device(folder).rank("on bill 99: ", [row["response"] for row in rows])
    assert [row.response for row in ranked] == [row["response"] for row in rows]


def test_best_of_n_says_where_the_model_is_surest_and_wrong(folder: Path, tmp_path: Path) -> None:
    """Choices that were held out are the other way round than those that the model learned from."""
    writer = tmp_path / "writer"
    write_tiny_model("llama", writer, tie_word_embeddings=True)
    device = Device(folder)
    assert device.proxy_gap() is None
    device.record(row for row in choices() if not held_out(row))
    other = (Preference(row.prompt, row.rejected, row.chosen) for row in choices(120))
    device.record(row for row in other if held_out(row))
    assert device.proxy_gap() is None  # nothing is fitted yet
    device.train()
    gap = device.proxy_gap()
    assert gap is not None
    assert gap.observed == 0.0
    words = ("best-of", "on bill 99: ", "-n", "2", "--tokens", "3", "--generator", str(writer), "--json")
    (said,) = (line for line in command(*words, home=folder).stderr.splitlines() if "surest" in line)
    assert f"Where your model is surest (the {gap.choices} held-out choices" in said
    assert "you agreed in 0.0%" in said


def test_the_most_telling_question_comes_first_at_the_command_line(folder: Path, tmp_path: Path) -> None:
    """What the terminal asks, question by question, is what the posterior over this home's model wants to
    know, and not the order of the file."""
    Device(folder).record(choices(12))
    Device(folder).train()
    candidates = [
        Preference("on bill 99: ", *both)
        for both in itertools.combinations(["the motion", "cloture", "a budget", "a judge on tax", "vote"], 2)
    ]
    learner = Device(folder).learner(candidates)
    wanted: list[int] = []
    for _ in candidates:
        index = learner.question()
        assert index is not None
        wanted.append(index)
        learner.answer(index, True)
    assert wanted != list(range(len(candidates)))

    rows = [{"prompt": c.prompt, "chosen": c.chosen, "rejected": c.rejected} for c in candidates]
    (tmp_path / "ask.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = _answered(folder, tmp_path / "ask.jsonl", [candidates[index] for index in wanted[:5]])
    assert asked == [{candidates[i].chosen, candidates[i].rejected} for i in wanted[:6]]
    recorded = {(p.chosen, p.rejected) for p in Device(folder).store._all()}
    assert {(candidates[i].chosen, candidates[i].rejected) for i in wanted[:5]} <= recorded


def _answered(folder: Path, file: Path, wanted: list[Preference]) -> list[set[str]]:
    """Sit at a terminal and answer that the `chosen` of these is better, in this order; what was asked."""
    program = "from penchant.deploy.cli.main import main; main()"
    words = [sys.executable, "-u", "-c", program, "device", "label", str(file), "--most-telling"]
    environment = os.environ | {"PENCHANT_HOME": str(folder)}
    asked: list[set[str]] = []
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        shown: list[str] = []
        for line in process.stdout:
            if line.startswith(("  1  ", "  2  ")):
                shown.append(line[5:-1])
            if len(shown) == 2:
                asked.append(set(shown))
                last = len(asked) > len(wanted)
                key = "q" if last else str(shown.index(wanted[len(asked) - 1].chosen) + 1)
                process.stdin.write(f"{key}\n")
                process.stdin.flush()
                shown = []
    assert process.returncode == 0
    return asked


def test_bad_rows_are_named_and_nothing_is_recorded(folder: Path, tmp_path: Path) -> None:
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    (tmp_path / "mine.jsonl").write_text(f'{good}\n{{"chosen": "b"}}\n')
    refused = command("import", str(tmp_path / "mine.jsonl"), home=folder)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "mine.jsonl:2" in refused.stderr
    assert len(Device(folder).store) == 0
    skipped = command("import", str(tmp_path / "mine.jsonl"), "--skip-bad-rows", home=folder)
    assert skipped.returncode == 0
    assert "1 of 2 rows" in skipped.stderr
    assert len(Device(folder).store) == 1


def test_import_takes_what_other_programs_export_and_says_whose_it_is(tmp_path: Path) -> None:
    folder, file = tmp_path / "home", tmp_path / "answers.csv"
    rows = [f"{who},{who} asks {n},yes {n},no {n}" for who in ("ann", "bob") for n in range(3)]
    file.write_text("\n".join(["who,question,better,worse", *rows]), encoding="utf-8")
    names = "person=who,prompt=question,chosen=better,rejected=worse"
    refused = command("import", str(file), "--columns", names, "--person", "cy", home=folder)
    assert refused.returncode == 2
    assert "holds no choices of 'cy'; it names 2 people" in refused.stderr
    ann = command("import", str(file), "--columns", names, "--person", "ann", home=folder)
    assert ann.stdout == "3 new choices of ann recorded, 0 were there already\n"
    nobody = command("import", str(file), "--columns", names, home=folder)
    assert nobody.returncode == 2
    assert "names 2 people (ann, bob); --person NAME says which of them is you" in nobody.stderr
    everybody = command("import", str(file), "--columns", names, "--everybody", home=folder)
    assert everybody.stdout == "3 new choices recorded, 3 were there already\n"
    ratings = tmp_path / "ratings.json"
    rated = [{"prompt": "p", "completion": text, "label": text == "good"} for text in ("good", "bad")]
    ratings.write_text(json.dumps([*rated, {"prompt": "alone", "completion": "x", "label": True}]))
    found = command("import", str(ratings), home=folder)
    assert found.stdout == "1 new choices recorded, 0 were there already\n"
    assert "note: read as ratings of single responses" in found.stderr
    assert "note: 1 ratings without another response" in found.stderr
