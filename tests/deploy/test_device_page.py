"""The owner's page: choosing, what was chosen, the model, the fleet. Without scripts, as forms."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.device_api_scene import motions, new_device
from support.device_page_scene import OwnerAtPage, join_fleet, opened

from penchant.client.device.device import Device
from penchant.client.device.labelling import read_comparisons
from penchant.client.device.preference_store import held_out
from penchant.client.vault.budget import RELEASED
from penchant.common.data.preferences import Preference
from penchant.common.errors import EnrolmentError
from penchant.deploy.device_page.background import BackgroundWork
from penchant.deploy.device_page.entrance import Entrance
from penchant.deploy.device_page.picture import ModelPicture, PictureBook
from penchant.deploy.device_page.serving import page_server
from penchant.deploy.device_page.starter import starter_comparisons
from penchant.deploy.device_page.views.choices import named

QUESTIONS = motions(12)


@pytest.fixture
def device(tiny_model: Callable[[str], Path], tmp_path: Path) -> Device:
    """Without choices."""
    return new_device(tmp_path / "device", tiny_model("bert"), [])


@pytest.fixture
def owner(device: Device) -> Iterator[OwnerAtPage]:
    with opened(device, QUESTIONS) as found:
        yield found


def chosen(device: Device) -> list[Preference]:
    return [row.preference for row in device.store.recorded()]


def asked_about(page: str) -> str:
    """The mark of the file of which a page asks who its reader is."""
    (mark,) = re.findall(r'name="mark" value="([0-9a-f]+)"', page)
    return str(mark)


def responses(page: str) -> list[str]:
    """The two that are shown, in order."""
    return [
        re.sub("<[^>]+>", "", text).strip()
        for text in re.findall(r'class="response"[^>]*>(.*?)</div>', page, re.S)
    ]


# --- choose ---------------------------------------------------------------------------------------------


def test_an_answer_is_recorded_as_it_was_shown_and_the_next_question_comes(
    owner: OwnerAtPage, device: Device
) -> None:
    first, second = responses(owner.get().text)
    page = owner.say("second")
    (made,) = chosen(device)
    assert (made.chosen, made.rejected) == (second, first)
    assert "Response 2 recorded." in page
    assert "<b>1</b> now, 1 in all, 11 to ask" in page
    assert responses(page) != [first, second]


def test_skip_records_nothing_and_undo_takes_the_last_answer_back(owner: OwnerAtPage, device: Device) -> None:
    before = responses(owner.get().text)
    assert "nothing was recorded" in owner.say("skip")
    owner.say("first")
    assert len(chosen(device)) == 1
    assert "Taken back." in owner.say("undo")
    assert chosen(device) == []
    owner.say("undo")
    assert responses(owner.get().text) == before
    assert "Nothing to take back" in owner.say("undo")


def test_ties_are_recorded_listed_made_choices_of_exported_and_deleted(
    owner: OwnerAtPage, device: Device, tmp_path: Path
) -> None:
    shown = responses(owner.get().text)
    assert "Equal: recorded as a tie." in owner.say("equal")
    assert "Both bad: recorded as a tie." in owner.say("bad")
    assert "Taken back." in owner.say("undo")
    page = owner.say("bad")
    assert "<b>0</b> now, 0 in all, 10 to ask" in page
    equal, bad = device.store.ties()
    assert [equal.pair.chosen, equal.pair.rejected] == shown
    assert (equal.said, bad.said, chosen(device)) == ("equal", "both bad", [])

    page = owner.get("/choices").text
    assert (
        page.count('<span class="mark">equal</span>') == page.count('<span class="mark">both bad</span>') == 2
    )
    assert owner.get(f"/choices?q={equal.pair.prompt}").text.count("Rather the first") == 1
    rows = [json.loads(line) for line in owner.get("/ties.jsonl").text.splitlines()]
    assert [row["tie"] for row in rows] == ["equal", "both bad"]
    file = tmp_path / "ties.jsonl"
    file.write_text(owner.get("/ties.jsonl").text)
    assert read_comparisons(file)[0] == [equal.pair, bad.pair]

    assert owner.post("/choices/settle", {"choice": named(equal)}).status_code == 422
    assert "a choice now" in owner.follow("/choices/settle", {"choice": named(equal), "better": "second"})
    assert [p.chosen for p in chosen(device)] == [equal.pair.rejected]
    assert "Deleted." in owner.follow("/choices/untie", {"choice": named(bad)})
    for path in ("/choices/settle", "/choices/untie"):
        assert owner.post(path, {"choice": named(bad), "better": "first"}).status_code == 422
    assert device.store.ties() == []


def test_a_tie_that_was_settled_is_taken_back_and_one_on_a_choice_is_not_recorded(
    owner: OwnerAtPage, device: Device
) -> None:
    owner.say("equal")
    (tie,) = device.store.ties()
    owner.follow("/choices/settle", {"choice": named(tie), "better": "first"})
    assert "<b>0</b> now, 0 in all, 12 to ask" in owner.say("undo")
    assert (chosen(device), device.store.ties()) == ([], [])
    device.record([tie.pair])  # by an import, say
    page = owner.say("equal")
    assert "Skipped; nothing was recorded." in page
    assert "recorded as a tie" not in page
    assert (chosen(device), device.store.ties()) == ([tie.pair], [])


def test_an_answer_to_an_earlier_question_is_not_taken_for_the_next(
    owner: OwnerAtPage, device: Device
) -> None:
    turn = owner.turn()
    owner.follow("/choose", {"turn": turn, "say": "first"})
    page = owner.follow("/choose", {"turn": turn, "say": "first"})
    assert "answered already" in page
    assert len(chosen(device)) == 1
    for form in ({"turn": "x", "say": "first"}, {"say": "first"}):
        assert "answered already" in owner.follow("/choose", form)
    assert owner.post("/choose", {"turn": owner.turn(), "say": "both"}).status_code == 422
    assert len(chosen(device)) == 1


def test_the_model_says_how_sure_it_is_without_saying_of_which(owner: OwnerAtPage) -> None:
    for _ in range(3):
        page = owner.say("first" if "motion" in responses(owner.get().text)[0] else "second")
    assert re.search(r"The model is <strong>\d+%</strong> sure which one you will take", page)
    assert re.search(r"it guessed \d of the last 3 right", page)


def test_at_the_end_there_is_the_way_to_training_and_back(owner: OwnerAtPage, device: Device) -> None:
    for _ in QUESTIONS:
        page = owner.say("first")
    assert "That was the last question." in page
    assert "/model/train" in page
    owner.say("undo")
    assert len(chosen(device)) == 11


def test_without_a_base_model_there_are_questions_all_the_same(tmp_path: Path) -> None:
    device = new_device(tmp_path / "device", tmp_path / "nowhere", [])
    with opened(device, QUESTIONS) as owner:
        page = owner.get().text
        assert "Questions come in their order" in page
        owner.say("first")
        assert len(chosen(device)) == 1
        assert "There is no model to show" in owner.finished()


def test_the_starter_set_has_forty_subjects_with_two_different_answers_each() -> None:
    found = starter_comparisons()
    assert len(found) == len({pair.prompt for pair in found}) == 40
    ratios = [len(pair.chosen) / len(pair.rejected) for pair in found]
    assert sum(not 0.5 < ratio < 2 for ratio in ratios) > 15  # not all of them differ in length alone
    assert sum(0.6 < ratio < 1.6 for ratio in ratios) > 8


# --- my choices -----------------------------------------------------------------------------------------


def test_choices_are_listed_in_pages_and_found_by_a_text(device: Device) -> None:
    device.record(motions(24))
    with opened(device, QUESTIONS) as owner:
        first, second = owner.get("/choices").text, owner.get("/choices?page=2").text
        assert (first.count("Turn round"), second.count("Turn round")) == (20, 4)
        assert "page 1 of 2" in first
        assert " 23:</b>" in first
        assert "on bill 0:</b>" in second
        assert owner.get("/choices?q=BILL 0").text.count("Turn round") == 1
        assert "No choice with “nowhere”" in owner.get("/choices?q=nowhere").text
        for odd in ("?page=0", "?page=99", "?page=-1", "?page=x", "?page=" + "9" * 50):
            assert owner.get(f"/choices{odd}").status_code == 200


def test_a_choice_is_turned_round_and_stays_one(device: Device) -> None:
    device.record(motions(3))
    with opened(device, QUESTIONS) as owner:
        row = device.store.recorded()[1]
        page = owner.follow("/choices/turn", {"choice": named(row)})
        assert "the other way round now" in page
        now = device.store.recorded()
        assert [r.preference for r in now if r.preference.prompt == row.preference.prompt] == [
            Preference(row.preference.prompt, row.preference.rejected, row.preference.chosen)
        ]
        assert len(now) == 3
        assert owner.post("/choices/turn", {"choice": named(row)}).status_code == 422


def test_a_tab_that_lies_open_means_the_choice_that_it_shows(owner: OwnerAtPage, device: Device) -> None:
    """A choice that is recorded after the last one was taken back has the number of that one."""
    owner.say("first")
    (shown,) = device.store.recorded()
    owner.say("undo")
    device.record([Preference("another", "a", "b")])
    (other,) = device.store.recorded()
    assert other.number == shown.number
    for path in ("/choices/delete", "/choices/turn"):
        for said in (named(shown), str(other.number), ""):
            assert owner.post(path, {"choice": said}).status_code == 422
    assert chosen(device) == [Preference("another", "a", "b")]
    assert owner.get("/choices").text.count(f'name="choice" value="{named(other)}"') == 2


def test_deleting_a_choice_forgets_what_was_learned_from_it(device: Device) -> None:
    device.record(motions(12))
    device.train()
    version = device.vault.version()
    with opened(device, QUESTIONS) as owner:
        row = next(r for r in device.store.recorded() if r.preference in device.store.train())
        owner.post("/choices/delete", {"choice": named(row)})
        owner.finished()
        assert row.preference not in chosen(device)
        assert len(chosen(device)) == 11
        assert device.vault.version() != version
        assert device.model_in_use().personal


def test_what_is_exported_is_what_is_imported(device: Device, tmp_path: Path) -> None:
    device.record([*motions(3), Preference("Ünïcode?\n", "ja\n", "nein \U0001f600")])
    with opened(device, QUESTIONS) as owner:
        answer = owner.get("/choices.jsonl")
    assert "attachment" in answer.headers["content-disposition"]
    other = Device(tmp_path / "other")
    with opened(other, QUESTIONS) as owner:
        assert owner.upload("choices.jsonl", answer.content).status_code == 303
        assert "4 new choices recorded, 0 were there already" in owner.get("/choices").text
    assert chosen(other) == chosen(device)


@pytest.mark.parametrize(
    ("name", "data", "count"),
    [
        ("rows.json", b'[{"prompt": "p", "chosen": "a", "rejected": "b"}]', 1),
        ("rows.csv", b'prompt,chosen,rejected\np,a,b\nq,"c\r\nd",e\n', 2),
        (
            "arena.jsonl",
            json.dumps(
                {
                    "winner": "model_a",
                    "model_a": "x",
                    "model_b": "y",
                    "conversation_a": [
                        {"role": "user", "content": "q"},
                        {"role": "assistant", "content": "yes"},
                    ],
                    "conversation_b": [
                        {"role": "user", "content": "q"},
                        {"role": "assistant", "content": "no"},
                    ],
                    "judge": "me",
                    "tstamp": 1.0,
                }
            ).encode(),
            1,
        ),
    ],
)
def test_files_of_any_known_format_are_imported(
    owner: OwnerAtPage, device: Device, name: str, data: bytes, count: int
) -> None:
    assert owner.upload(name, data).status_code == 303
    assert len(chosen(device)) == count


def test_a_file_of_several_people_is_refused_until_its_owner_says_who_they_are(
    owner: OwnerAtPage, device: Device
) -> None:
    rows = [
        {"person": name, "prompt": f"p{n}", "chosen": "a", "rejected": "b"}
        for n, name in enumerate(["ann", "<b>bob</b>", "ann"])
    ]
    answer = owner.upload("rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert answer.status_code == 422
    assert "holds choices of 2 people" in answer.text
    assert '<option value="&lt;b&gt;bob&lt;/b&gt;">' in answer.text
    assert chosen(device) == []
    form = {"person": "ann", "mark": asked_about(answer.text)}
    assert "2 new choices recorded" in owner.follow("/choices/who", form)
    assert [p.prompt for p in chosen(device)] == ["p0", "p2"]
    assert owner.post("/choices/who", form).status_code == 409


def test_a_form_in_another_tab_means_the_file_that_it_asks_about(owner: OwnerAtPage, device: Device) -> None:
    def rows(prompt: str) -> bytes:
        people = [
            {"person": name, "prompt": prompt, "chosen": name, "rejected": "b"} for name in ("ann", "bob")
        ]
        return "\n".join(map(json.dumps, people)).encode()

    marks = [asked_about(owner.upload(f"{name}.jsonl", rows(name)).text) for name in ("one", "two")]
    for mark in (marks[0], ""):
        assert owner.post("/choices/who", {"person": "ann", "mark": mark}).status_code == 409
    assert chosen(device) == []
    owner.follow("/choices/who", {"person": "ann", "mark": marks[1]})
    assert chosen(device) == [Preference("two", "ann", "b")]


def test_bad_rows_are_named_and_left_out_only_if_that_is_asked_for(
    owner: OwnerAtPage, device: Device
) -> None:
    data = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p"}\n'
    refused = owner.upload("rows.jsonl", data)
    assert refused.status_code == 422
    assert "rows.jsonl:2" in refused.text
    assert chosen(device) == []
    assert owner.upload("rows.jsonl", data, skip="yes").status_code == 303
    assert len(chosen(device)) == 1


# --- my model -------------------------------------------------------------------------------------------


def test_training_on_the_page_gives_the_model_of_the_command(
    device: Device, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    device.record(motions(24))
    twin = new_device(tmp_path / "twin", tiny_model("bert"), motions(24))
    with opened(device, QUESTIONS) as owner:
        assert "nothing is trained yet" in owner.finished().lower()
        owner.follow("/model/train")
        page = owner.finished()
    assert "Trained on" in page
    quality = twin.report().quality
    assert quality is not None
    own = f"{100 * quality.personal.correct / quality.personal.total:.0f}%"
    assert re.search(rf"your model</small></dt><dd>{own}</dd>", page)
    assert re.search(r"one for all</small></dt><dd>\d+%</dd>", page)
    assert "Likes most" in page
    assert "Likes least" in page
    texts = [("on bill 99: ", "the motion tax"), ("on bill 99: ", "the table tax")]
    assert (device.model_in_use().scores(texts) == twin.model_in_use().scores(texts)).all()


def test_the_page_says_which_model_ranks_and_why_and_what_to_know_of_it(device: Device) -> None:
    device.record(p for p in motions(24) if not held_out(p))
    turned = (Preference(p.prompt, p.rejected, p.chosen) for p in motions(200))
    device.record(p for p in turned if held_out(p))
    with opened(device, QUESTIONS) as owner:
        assert "the base model&#39;s own start: nothing is trained yet" in owner.finished()
        owner.follow("/model/train")
        page = owner.finished()
        assert "by your own model, trained on this device alone, from the base model&#39;s own start" in page
        assert "the one for all did better; your own is used all the same" in page
        assert "Where your model is surest" in page
        assert "newer" not in page
        device.record([Preference("on it: ", "the motion", "the table"), *motions(25)])
        assert re.search(r"\d newer choices? (is|are) not in the model", owner.finished())
        settings = device.directory / "model.toml"
        settings.write_text(settings.read_text().replace("local_epochs = 20", "local_epochs = 19"))
        owner.follow("/model/train")
        assert "newer" not in owner.finished()


def test_what_came_of_training_is_said_though_it_ends_while_the_page_is_made(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.record(motions(24))
    asked, ended = threading.Event(), threading.Event()
    train, latest, end = Device.train, PictureBook.latest, BackgroundWork._end

    def train_once_asked(self: Device, *more: Any) -> Any:
        asked.wait(60)
        return train(self, *more)

    def latest_slowly(self: PictureBook) -> ModelPicture | None:
        found = latest(self)
        asked.set()
        ended.wait(60)
        return found

    def end_known(self: BackgroundWork, **more: str) -> None:
        end(self, **more)
        ended.set()

    with opened(device, QUESTIONS) as owner:
        owner.finished()
        device.record(motions(25))  # so that what was seen before is no picture any more
        monkeypatch.setattr(Device, "train", train_once_asked)
        monkeypatch.setattr(PictureBook, "latest", latest_slowly)
        monkeypatch.setattr(BackgroundWork, "_end", end_known)
        assert f"Trained on {len(device.store.train())} choices" in owner.follow("/model/train")


def test_the_page_names_the_run_that_the_model_comes_from(device: Device) -> None:
    device.record(motions(24))
    device.train()
    run, kept = device.vault.latest() or (b"", None)
    assert kept is not None
    run = bytes(range(16))
    device.vault.keep_personal(run, 3, kept.vector, kept.context, version=device.vault.version())
    with opened(device, QUESTIONS) as owner:
        page = owner.finished()
        assert (
            "by your own model, fitted to your choices on top of what run 00010203 had learned by round 3: "
            "once there is one, it is used" in page
        )
        assert "No errors are known of this model" in page
        owner.follow("/model/train")
        page = owner.finished()
        assert f"Trained on {len(device.store.train())} choices" in page
        assert "fitted to your choices on top of what run 00010203 had learned by round 3" in page
        assert "No errors are known" not in page
        device.vault.keep_personal(run, 4, kept.vector[:0], kept.context, version=device.vault.version())
        assert (
            "the model that knows nobody, what run 00010203 had learned by round 4: nothing is trained yet"
            in owner.finished()
        )


def test_without_choices_the_page_says_which_model_ranks_as_well(device: Device) -> None:
    with opened(device, QUESTIONS) as owner:
        page = owner.get("/model").text
        assert "the model that knows nobody, the base model&#39;s own start: nothing is trained yet" in page
        assert "There is nothing to learn from yet." in page
        assert "/model/train" not in page
        device.record(motions(24))
        device.train()
        for row in device.store.recorded():
            device.store.remove(row.preference)
        page = owner.get("/model").text
        assert "by your own model, trained on this device alone, from the base model&#39;s own start" in page
        assert "24 choices that the model knows were taken back or changed since" in page
        _, kept = device.vault.latest() or (b"", None)
        assert kept is not None
        device.vault.keep_personal(RELEASED, 2, kept.vector[:0], kept.context, version=device.vault.version())
        assert "the model that knows nobody, a release of the fleet" in owner.get("/model").text


def test_what_is_known_of_the_model_is_read_anew_for_each_page(device: Device) -> None:
    """Another program fits errors, or model.toml is changed, while the page is open."""
    device.record(motions(24))
    device.train()
    run, kept = device.vault.latest() or (b"", None)
    assert kept is not None
    with opened(device, QUESTIONS) as owner:
        assert "other settings" not in owner.finished()
        settings = device.directory / "model.toml"
        before = settings.read_text()
        settings.write_text(before.replace("local_epochs = 20", "local_epochs = 19"))
        assert "trained with other settings than model.toml has now" in owner.finished()
        settings.write_text(before)
        assert "other settings" not in owner.finished()

        run = bytes(range(16))
        device.vault.keep_personal(run, 3, kept.vector, kept.context, version=device.vault.version())
        page = owner.finished()
        assert "No errors are known of this model" in page
        assert "<small> ± " not in page
        Device(device.directory).fit_errors()
        page = owner.finished()
        assert "No errors are known" not in page
        assert "<small> ± " in page


def test_a_page_that_is_looked_at_again_keeps_what_is_being_typed(device: Device) -> None:
    """By a script, which asks for the part that changes alone, and without any, by a form."""
    device.record(motions(24))
    typed = {"prompt": "a <prompt>", "responses": "one\r\n<two>"}
    with opened(device, QUESTIONS) as owner:
        owner.finished()
        part = owner.get("/model/now")
        assert (part.headers["hx-retarget"], part.headers["hx-reswap"]) == ("#seen", "outerHTML")
        assert part.text.count('<div id="seen">') == 1
        assert "<textarea" not in part.text
        assert "http-equiv" not in owner.get("/model").text
        page = owner.post("/model/look", typed).text
        assert 'value="a &lt;prompt&gt;"' in page
        assert "one\r\n&lt;two&gt;</textarea>" in page
        refused = owner.post("/model/rank", {**typed, "responses": "\n".join(map(str, range(51)))})
        assert refused.status_code == 413
        assert "at most 50 responses" in refused.text
        assert 'value="a &lt;prompt&gt;"' in refused.text
        assert "\n50</textarea>" in refused.text
        trained = owner.post("/model/train", headers={"hx-request": "true"})
        assert trained.status_code == 303
        part = owner.get("/model", headers={"hx-request": "true"})
        assert part.text.lstrip().startswith('<div id="seen">')
        owner.finished()


def test_what_the_next_page_says_is_not_said_to_a_script_that_asks_how_far_the_work_is(
    owner: OwnerAtPage,
) -> None:
    owner.post("/fleet/pause")
    owner.get("/model/now")
    owner.get("/ask/now")
    assert "This device takes part in nothing now." in owner.get("/fleet").text


def test_training_is_offered_where_there_is_something_to_learn_from(device: Device) -> None:
    (aside, *_) = (p for p in motions(200) if held_out(p))
    with opened(device, QUESTIONS) as owner:
        for _ in QUESTIONS:
            last = owner.say("equal")
        assert "That was the last question." in last
        for page in (last, owner.finished()):
            assert "From ties alone nothing can be learned: they say something beside choices only." in page
            assert "/model/train" not in page
        device.record([aside])
        for page in (owner.get().text, owner.finished()):
            assert "So far 1 choice is held out to judge the model by: there is nothing to learn" in page
            assert "/model/train" not in page
        device.record(p for p in motions(40)[20:] if not held_out(p))
        for page in (owner.get().text, owner.finished()):
            assert "nothing to learn" not in page
            assert "nothing can be learned" not in page
            assert "/model/train" in page


def test_a_file_that_is_refused_is_followed_by_the_form_for_another(owner: OwnerAtPage) -> None:
    for name, data in (("rows.jsonl", b"{}"), ("x.parquet", b"PAR1"), ("", b"")):
        refused = owner.upload(name, data)
        assert refused.status_code == 422
        assert refused.text.count('<form class="stack" data-drop') == 1
    assert "data-drop" not in owner.post("/choices/turn", {"choice": "x"}).text


def test_ties_are_said_to_be_learned_from(owner: OwnerAtPage) -> None:
    page = owner.ready().get().text
    assert "is learned from beside choices: that you like the two alike" in page
    assert "From ties alone nothing can be learned." in page


def test_responses_are_ranked_on_the_page_as_by_the_command(device: Device) -> None:
    device.record(motions(24))
    device.train()
    with opened(device, QUESTIONS) as owner:
        page = owner.post(
            "/model/rank", {"prompt": "on bill 99: ", "responses": "the table tax\r\n\r\nthe motion tax\r\n"}
        ).text
        ranked = device.rank("on bill 99: ", ["the table tax", "the motion tax"])
        best = page.index(f'<p dir="auto">{ranked[0].response}</p>', page.index("Best for you first"))
        assert best < page.index(f'<p dir="auto">{ranked[1].response}</p>', best)
        assert ranked[0].response == "the motion tax"
        many = {"prompt": "p", "responses": "\n".join(map(str, range(51)))}
        assert owner.post("/model/rank", many).status_code == 413
        assert owner.post("/model/rank", {"prompt": "p", "responses": " \n"}).status_code == 422


def test_a_fault_of_training_is_told_in_one_line(owner: OwnerAtPage) -> None:
    owner.follow("/model/train")
    assert "Training failed: there are no choices to learn from" in owner.finished()


def test_a_fault_of_ours_is_told_once_and_not_looked_for_again_and_again(
    owner: OwnerAtPage, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []

    def broken(*_: object, **__: object) -> None:
        looks.append(None)
        raise RuntimeError("a secret")

    device.record(motions(3))
    monkeypatch.setattr(Device, "report", broken)
    for _ in range(3):
        page = owner.finished()
        assert "a fault of ours (RuntimeError)" in page
        assert "secret" not in page
    assert len(looks) == 1


def test_while_the_model_is_at_work_a_page_says_so_and_keeps_no_browser_waiting(
    owner: OwnerAtPage, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = threading.Event()
    turn = owner.turn()
    monkeypatch.setattr(Device, "train", lambda *_: end.wait(60))
    monkeypatch.setattr("penchant.deploy.device_page.page_requests.PATIENCE", 0.05)
    try:
        owner.post("/model/train")
        owner.post("/choose", {"turn": turn, "say": "first"})
        part = owner.get("/", headers={"hx-request": "true"})
        assert (part.headers["hx-refresh"], part.text) == ("true", "")
        page = owner.get("/").text
        assert "Not done: the model is at work" in page
        assert "comes in a moment" in page
        assert owner.post("/model/rank", {"prompt": "p", "responses": "a\nb"}).status_code == 503
        assert owner.post("/choices/delete", {"choice": "x"}).status_code == 422
        assert chosen(device) == []
    finally:
        end.set()
    owner.finished()
    assert owner.ready().turn() == turn


# --- fleet ----------------------------------------------------------------------------------------------


def test_the_fleet_page_says_what_status_says_and_pauses(owner: OwnerAtPage, device: Device) -> None:
    page = owner.get("/fleet").text
    assert "in no fleet" in page
    assert "Nothing ever left." in page
    assert "Nothing was contributed to any run" in page
    assert "Take part again" in owner.follow("/fleet/pause")
    assert device.policy().paused
    assert "Pause" in owner.follow("/fleet/resume")
    assert not device.policy().paused
    assert owner.post("/fleet/accept", {"run": "0123"}).status_code == 422


@pytest.fixture
def member(device: Device, tmp_path: Path) -> Device:
    """The device as member 1 of a fleet, whose node is in its directory."""
    join_fleet(device, tmp_path)
    return device


TELL = "penchant.client.device.joining.tell_server"


def test_leaving_takes_a_typed_word_tells_the_server_and_keeps_the_choices(
    member: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(TELL, lambda *args: told.append(args))
    member.record(motions(3))
    with opened(member, QUESTIONS) as owner:
        assert "Leave the fleet …" in owner.get("/fleet").text
        for word in ("", "yes", "forget everything"):
            assert owner.post("/fleet/leave", {"confirm": word}).status_code == 422
        assert (member.member, told) == (1, [])
        page = owner.follow("/fleet/leave", {"confirm": " Leave "})
        assert "This device has left. It was member 1; its server knows" in page
        assert "Leave the fleet …" not in page
        assert (member.member, len(told), len(member.store)) == (None, 1, 3)
        assert not (member.directory / "node").exists()
        assert owner.post("/fleet/leave", {"confirm": "leave"}).status_code == 422


def test_a_server_that_can_not_be_told_keeps_nobody(member: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise EnrolmentError("no route to it")

    monkeypatch.setattr(TELL, away)
    with opened(member, QUESTIONS) as owner:
        page = owner.follow("/fleet/leave", {"confirm": "leave"})
    assert "Tell the authority to revoke member 1: the server was not told (no route to it)" in page
    assert member.member is None


def test_forgetting_everything_leaves_nothing_on_disk_on_the_page_or_in_memory(
    member: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TELL, lambda *_: None)
    member.record(motions(12))
    member.train()
    with opened(member, [*QUESTIONS, *motions(24)[12:]]) as owner:
        owner.say("first")
        owner.say("equal")
        upload = b"\n".join(
            json.dumps({"person": name, "prompt": "p", "chosen": "a", "rejected": "b"}).encode()
            for name in ("ann", "bob")
        )
        mark = asked_about(owner.upload("two.jsonl", upload).text)
        assert owner.post("/fleet/forget", {"confirm": "forget"}).status_code == 422
        assert len(member.store) == 13
        page = owner.follow("/fleet/forget", {"confirm": "forget everything"})
        assert "13 choices and the personal model are deleted. It was member 1" in page
        assert (len(member.store), member.store.ties(), member.member) == (0, [], None)
        assert not member.model_in_use().personal
        assert owner.post("/choices/who", {"person": "ann", "mark": mark}).status_code == 409
        first = owner.ready().get().text
        assert "<b>0</b> now, 0 in all, 24 to ask" in first
        assert "Nothing to take back" in owner.say("undo")
        assert "No choices yet" in owner.get("/choices").text
        assert "motion" not in owner.finished()


def test_the_page_does_not_end_in_the_midst_of_a_parting(
    member: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server lets itself be waited for, the node is gone already."""
    asked, answered, told = threading.Event(), threading.Event(), threading.Event()

    def tell(*_: object) -> None:
        asked.set()
        if answered.wait(60):
            told.set()

    monkeypatch.setattr(TELL, tell)
    monkeypatch.setattr("penchant.deploy.device_page.views.fleet.PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        entrance = Entrance()
        server = page_server(member, QUESTIONS, entrance, frozenset({host}))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://{host}") as browser:
                browser.get(entrance.link)
                form = {"csrf": entrance.csrf, "confirm": "forget everything"}
                assert browser.post(f"{entrance.root}/fleet/forget", data=form).status_code == 303
                assert asked.wait(60)
                assert not (member.directory / "node").exists()
                refused = browser.post(f"{entrance.root}/close", data=form)
                assert refused.status_code == 409
                assert "is parting from its fleet" in refused.text
                assert not server.should_exit
            server.should_exit = True  # as Ctrl-C does
            thread.join(1)
            assert thread.is_alive()
        finally:
            answered.set()
            server.should_exit = True
            thread.join(60)
    assert told.is_set()
    assert (member.member, len(member.store)) == (None, 0)
