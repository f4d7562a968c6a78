"""Editing a choice on the owner's page, by forms as a browser without scripts sends them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.device_api_scene import motions, new_device
from support.device_page_scene import OwnerAtPage, opened

from penchant.client.device.device import Device
from penchant.client.device.preference_store import held_out
from penchant.common.data.preferences import Preference
from penchant.common.errors import DeviceError
from penchant.deploy.device_page.page_requests import TEXT_MOST

HOSTILE = '</textarea><script>alert(1)</script><img src=x onerror=alert(1)>"&lt;{{ 1 }}'
TYPO = Preference("\n Which one?\r\n", "teh one", "the other", strength=2.5)


@pytest.fixture
def device(tiny_model: Callable[[str], Path], tmp_path: Path) -> Device:
    found = new_device(tmp_path / "device", tiny_model("bert"), motions(4))
    found.record([TYPO], "file mine.jsonl")
    return found


@pytest.fixture
def owner(device: Device) -> Iterator[OwnerAtPage]:
    with opened(device, motions(12)) as found:
        yield found


def said(device: Device) -> list[Preference]:
    return [row.preference for _, row in device.store.all_marked()]


def link_to(owner: OwnerAtPage, text: str) -> str:
    """Where "Edit" leads that stands beside the choice with this text."""
    (found,) = re.findall(r'href="([^"]*/choices/edit[^"]*)"', owner.get(f"/choices?q={text}").text)
    return html.unescape(found).removeprefix(owner.entrance.root)


def form_in(page: str) -> dict[str, str]:
    """What a browser would send of the form as it is: a text's lines end in CR LF."""
    fields = dict(re.findall(r'<input[^>]*name="(\w+)" value="([^"]*)"', page))
    for name, text in re.findall(r'<textarea[^>]*name="(\w+)"[^>]*>(.*?)</textarea>', page, re.S):
        fields[name] = re.sub("\r\n|\r|\n", "\r\n", text.removeprefix("\n"))
    (fields["said"],) = re.findall(r'<option value="([^"]+)" selected', page)
    return {name: html.unescape(value) for name, value in fields.items() if name != "csrf"}


def open_form(owner: OwnerAtPage, text: str) -> dict[str, str]:
    return form_in(owner.get(link_to(owner, text)).text)


def refused(answer: httpx.Response, line: str, form: dict[str, str]) -> None:
    """The form once more, with one line and what was typed."""
    assert answer.status_code == 422
    (told,) = re.findall(r'role="alert">([^<]*)<', answer.text)
    assert line in html.unescape(told)
    assert "\n" not in told
    assert form_in(answer.text) == {**form, "q": "", "page": "1"}


# --- right values ---------------------------------------------------------------------------------------


def test_a_typo_is_corrected_and_where_and_when_stays(owner: OwnerAtPage, device: Device) -> None:
    (row,) = [row for row in device.store.recorded() if row.preference == TYPO]
    form = open_form(owner, "teh one")
    assert (form["first"], form["second"], form["said"], form["strength"]) == (
        "teh one",
        "the other",
        "first",
        "2.5",
    )
    page = owner.follow("/choices/edit", form | {"first": "the one"})
    assert "Changed; what it said before is erased." in page
    now = Preference(TYPO.prompt, "the one", "the other", strength=2.5)
    assert [p for p in said(device) if p.prompt == TYPO.prompt] == [now], (
        "a text that nobody touched is as it was"
    )
    (edited,) = [row for row in device.store.recorded() if row.preference == now]
    assert (edited.source, edited.recorded) == (row.source, row.recorded)
    assert len(said(device)) == 5
    assert "teh one" not in owner.get("/choices").text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"said": "second"}, Preference(TYPO.prompt, "the other", "teh one", strength=2.5)),
        ({"strength": " 4 "}, Preference(TYPO.prompt, "teh one", "the other", strength=4)),
        ({"strength": ""}, Preference(TYPO.prompt, "teh one", "the other")),
        ({"said": "equal"}, Preference(TYPO.prompt, "teh one", "the other", tie="equal")),
        ({"prompt": "a\r\nb\rc"}, Preference("a\nb\nc", "teh one", "the other", strength=2.5)),
        ({"prompt": ""}, Preference("", "teh one", "the other", strength=2.5)),
        (
            {"first": "x" * TEXT_MOST, "second": "\U0001f600" * TEXT_MOST, "prompt": "é" * TEXT_MOST},
            Preference("é" * TEXT_MOST, "x" * TEXT_MOST, "\U0001f600" * TEXT_MOST, strength=2.5),
        ),
    ],
)
def test_each_part_of_a_choice_can_be_edited(
    owner: OwnerAtPage, device: Device, change: dict[str, str], expected: Preference
) -> None:
    assert owner.post("/choices/edit", open_form(owner, "teh one") | change).status_code == 303
    assert set(said(device)) == {*motions(4), expected}


def test_a_tie_is_edited_and_becomes_a_choice(owner: OwnerAtPage, device: Device) -> None:
    pair = Preference("a tie?", "won", "two")
    device.store.add_tie(pair, "both bad", "label")
    form = open_form(owner, "a tie?")
    assert form["said"] == "both bad"
    assert "strength" not in form
    owner.follow("/choices/edit", form | {"first": "one"})
    assert said(device)[-1] == Preference("a tie?", "one", "two", tie="both bad")
    owner.follow("/choices/edit", open_form(owner, "a tie?") | {"said": "second"})
    assert said(device)[-1] == Preference("a tie?", "two", "one")
    assert (device.store.ties(), device.store.recorded()[-1].source) == ([], "label")


def test_a_form_that_is_sent_as_it_is_changes_nothing(owner: OwnerAtPage, device: Device) -> None:
    odd = Preference("odd\r\nlines\r\0", "\n\na\rb", "b\n", strength=1 / 3)
    device.record([odd])
    before = device.store.all_marked()
    form = open_form(owner, "odd")
    assert "Nothing was changed." in owner.follow(
        "/choices/edit", form | {"prompt": "odd\r\nlines\r\n\ufffd"}
    )
    assert device.store.all_marked() == before


def test_whoever_comes_from_a_search_goes_back_to_it(owner: OwnerAtPage) -> None:
    answer = owner.post("/choices/edit", open_form(owner, "teh one") | {"first": "the one"})
    assert answer.headers["location"] == f"{owner.entrance.root}/choices?page=1&q=teh+one"


# --- what is fitted, and which side it is on --------------------------------------------------------------


def test_the_model_learns_of_it_as_of_any_correction_and_the_owner_is_told_of_its_side(
    device: Device,
) -> None:
    device.record(motions(24))
    device.train()
    trained = device.vault.version()
    row = next(
        r for r in device.store.recorded() if not held_out(r.preference) and "bill" in r.preference.prompt
    )
    ways = [Preference(f"{row.preference.prompt}{n}", "yes", "no") for n in range(200)]
    aside, learned = next(p for p in ways if held_out(p)), next(p for p in ways if not held_out(p))
    with opened(device, motions(30)) as owner:
        form = form_in(owner.get(link_to(owner, row.preference.prompt)).text)
        texts = {"first": "yes", "second": "no"}
        page = owner.follow("/choices/edit", form | texts | {"prompt": aside.prompt})
        assert "By its new texts it is held out, to judge the model by: train first" in page
        assert aside in device.store.validation()
        assert device.vault.version() == trained, "nothing learned goes before the owner trains"
        standing = device.standing()
        assert (standing.newer, standing.gone) == (1, 1)
        assert device.proxy_gap() is None
        page = owner.follow("/choices/edit", open_form(owner, aside.prompt) | {"prompt": learned.prompt})
        assert "it is not held out any more. Train, and the model learns it." in page
        assert learned in device.store.train()
        owner.finished()
        owner.post("/model/train")
        assert "newer" not in owner.finished()
        assert (device.standing().newer, device.standing().gone) == (0, 0)


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"first": " \r\n"}, "the first response is empty"),
        ({"second": ""}, "the second response is empty"),
        ({"second": "teh one"}, "both responses are the same"),
        ({"prompt": "x" * (TEXT_MOST + 1)}, "the prompt is longer than 20000 characters"),
        ({"second": "é" * (TEXT_MOST + 1)}, "the second response is longer than 20000 characters"),
        ({"strength": "-1"}, "the strength must be a number from 0 to 1000000"),
        ({"strength": "nan"}, "the strength must be a number"),
        ({"strength": "rather"}, "the strength must be a number"),
        ({"strength": "9" * 5000}, "the strength must be a number"),
        (
            {"prompt": "on bill 0: ", "first": "MORE", "second": "LESS"},
            "compares these two responses already",
        ),
        ({"first": HOSTILE, "second": HOSTILE}, "both responses are the same"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_what_was_typed_stays(
    owner: OwnerAtPage, device: Device, change: dict[str, str], line: str
) -> None:
    other = next(p for p in motions(4) if p.prompt == "on bill 0: ")
    names = {"MORE": other.rejected, "LESS": other.chosen}  # the other way round: it is the same comparison
    form = open_form(owner, "teh one") | {key: names.get(text, text) for key, text in change.items()}
    before = device.store.all_marked()
    refused(owner.post("/choices/edit", form | {"q": ""}), line, form)
    assert device.store.all_marked() == before


@pytest.mark.parametrize("word", ["", "third", "both-bad", "FIRST"])
def test_a_word_that_no_form_sends_is_refused(owner: OwnerAtPage, device: Device, word: str) -> None:
    before = device.store.all_marked()
    answer = owner.post("/choices/edit", open_form(owner, "teh one") | {"said": word})
    assert (answer.status_code, device.store.all_marked()) == (422, before)
    assert "say which response you would rather have" in answer.text


def test_a_choice_that_went_meanwhile_is_not_made_anew(owner: OwnerAtPage, device: Device) -> None:
    link, form = link_to(owner, "teh one"), open_form(owner, "teh one") | {"first": "mine"}
    device.store.remove(TYPO)
    device.record([Preference("another", "a", "b")])  # which has the number of that one
    before = device.store.all_marked()
    refused(owner.post("/choices/edit", form | {"q": ""}), "not there any more", form)
    for path in (link, "/choices/edit", "/choices/edit?choice=1", "/choices/edit?choice=" + "0" * 500):
        answer = owner.get(path)
        assert (answer.status_code, "not there any more" in answer.text) == (422, True)
    assert device.store.all_marked() == before


def test_of_two_tabs_the_later_one_changes_nothing(owner: OwnerAtPage, device: Device) -> None:
    form = open_form(owner, "teh one")
    owner.follow("/choices/edit", form | {"first": "the one"})
    late = form | {"first": "late"}
    refused(owner.post("/choices/edit", late | {"q": ""}), "not there any more", late)
    assert "late" not in str([p.chosen for p in said(device)])


def test_a_choice_that_is_too_long_for_a_form_says_so(owner: OwnerAtPage, device: Device) -> None:
    device.record([Preference("long", "x" * (TEXT_MOST + 1), "short")])
    answer = owner.get(link_to(owner, "long"))
    assert (answer.status_code, "longer than 20000 characters" in answer.text) == (422, True)


def test_a_disk_that_refuses_is_told_on_the_form(
    owner: OwnerAtPage, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise DeviceError("preferences.db: database or disk is full; nothing was changed")

    form = open_form(owner, "teh one") | {"first": "the one"}
    monkeypatch.setattr(device.store, "edit", full)
    refused(owner.post("/choices/edit", form | {"q": ""}), "disk is full", form)


def test_a_form_without_its_token_edits_nothing(owner: OwnerAtPage, device: Device) -> None:
    before = device.store.all_marked()
    form = open_form(owner, "teh one") | {"first": "the one"}
    assert owner.post("/choices/edit", form | {"csrf": "x"}).status_code == 403
    assert device.store.all_marked() == before


# --- hostile texts, and what is left of the old ones ------------------------------------------------------


def test_markup_in_a_choice_is_text_in_its_form(owner: OwnerAtPage, device: Device) -> None:
    device.record([Preference(f"hostile {HOSTILE}", HOSTILE, f"b {HOSTILE}")])
    answer = owner.get(link_to(owner, "hostile"))
    page = answer.text
    assert "<img" not in page
    assert "alert(1)</script>" not in page
    assert page.count("</textarea>") == 3
    assert form_in(page)["first"] == HOSTILE
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"\son\w+=\"|style=", page) == []
    said_before = len(said(device))
    owner.follow("/choices/edit", form_in(page) | {"first": "tame"})
    assert (len(said(device)), said(device)[-1].chosen) == (said_before, "tame")


def test_nothing_of_the_former_texts_is_left_on_any_page_or_in_any_file(
    owner: OwnerAtPage, device: Device
) -> None:
    """That their sealed bytes and their key are gone too, the tests of the store hold."""
    owner.finished()
    sealed = next(mark for mark, row in device.store.all_marked() if row.preference == TYPO)
    owner.follow("/choices/edit", open_form(owner, "teh one") | {"first": "the one", "prompt": "Which?"})
    owner.ready()
    for path in ("/", "/choices", "/choices.jsonl", "/ask"):
        assert "teh one" not in owner.get(path).text
    assert "teh one" not in owner.finished()
    assert sealed not in [mark for mark, _ in device.store.all_marked()]
    for file in device.directory.rglob("*"):
        if file.is_file():
            assert b"teh one" not in file.read_bytes(), file
