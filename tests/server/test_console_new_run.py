"""Starting a run: by fields or by a file it is the same run, and what was written is never lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.console_scene import PASSWORD, Browser, Console, form_of, make_run, text_of

from penchant.common.config import RunConfig
from penchant.common.settings import settings_of
from penchant.deploy.console.local import OperationsOnThisMachine
from penchant.server.console.run_form import PREFIX

DECLARED = settings_of(RunConfig)
LIVE = {"hx-request": "true"}


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    """No run is carried out: its directory is made, and no process."""
    monkeypatch.setattr(OperationsOnThisMachine, "_spawn", lambda self, location: None)
    made = Console(tmp_path)
    yield made
    made.close()
    made.store.close()


def form(answer: httpx.Response) -> dict[str, str]:
    return form_of(answer.text, "/runs/new")


def opened(browser: Browser, path: str = "/runs/new") -> dict[str, str]:
    return form(browser.get(path))


def ended(console: Console, browser: Browser) -> None:
    """The session ends, and the browser does not know it."""
    session = console.store.session(browser.client.cookies["penchant"])
    assert session is not None
    console.store.logout(session)


def wrong_at(html: str) -> dict[str, str]:
    """Key of a setting (or "name") -> what is said beside its field."""
    found = re.findall(r'<p class="wrong" id="([^"]+)-wrong"[^>]*>([^<]+)</p>', html)
    ids = {(PREFIX + one.key).replace(".", "-"): one.key for one in DECLARED}
    return {ids.get(id, id): text_of(text) for id, text in found}


# --- the fields -----------------------------------------------------------------------------------


def test_every_setting_has_a_field_with_default_range_choices_and_meaning(console: Console) -> None:
    page = console.browser("olga").get("/runs/new").text
    for one in DECLARED:
        part = page.split(f'name="{PREFIX}{one.key}"', 1)[1].split("</div>")[0]
        assert text_of(f"<p>{part.rsplit('<p', 1)[1]}").split(">", 1)[1].strip().startswith(one.help)
        assert "efault " in part
        if one.kind in (int, float) and not one.choices:
            low, high = re.findall(r'min="([^"]+)" max="([^"]+)"', part)[0]
            assert [float(low), float(high)] == [
                float(end or 0) for end in (one.declared.low, one.declared.high)
            ]
            assert ('step="1"' in part) == (one.kind is int)
        for choice in one.choices if one.kind is not bool else ():
            assert re.search(rf"<option[^>]*>{choice}</option>", part)


def test_a_page_as_it_is_opened_can_run_and_starts_what_the_recipe_says(console: Console) -> None:
    browser = console.browser("olga")
    sent = opened(browser) | {"name": "first"}
    assert browser.post("/runs/new", sent).status_code == 303
    recipe = next(iter(console.operations.recipes().values()))
    assert (console.runs / "first" / "config.toml").read_text(encoding="utf-8") == recipe


def test_fields_and_file_give_the_same_run(console: Console) -> None:
    browser = console.browser("olga")
    sent = opened(browser) | {
        "name": "fields",
        "set.federation.rounds": "7",
        "set.federation.warmup_rounds": "0",
        "set.adapter.share": "B",
        "set.adapter.layers": "-2, -1",
        "set.training.lr_shared": "0.00025",
    }
    assert browser.post("/runs/new", sent).status_code == 303
    as_file = form(browser.post("/runs/check", sent | {"do": "file"}))
    assert [key for key in as_file if key.startswith(PREFIX)] == []
    assert '[adapter]\nshare = "B"' in as_file["config"]
    for line in ("rounds = 7", "lr_shared = 0.00025"):
        assert line in as_file["config"].splitlines()
    assert "deadline_seconds" not in as_file["config"]  # it has its default
    assert browser.post("/runs/new", as_file | {"name": "file"}).status_code == 303
    one, other = ((console.runs / name / "config.toml").read_bytes() for name in ("fields", "file"))
    assert one == other
    assert RunConfig.from_toml(one.decode()).adapter.layers == (-2, -1)
    back = form(browser.post("/runs/check", as_file | {"do": "fields"}))
    values = [{key: text for key, text in found.items() if key.startswith(PREFIX)} for found in (back, sent)]
    assert values[0] == values[1]


def test_a_file_alone_starts_a_run(console: Console) -> None:
    answer = console.browser("olga").post("/runs/new", {"name": "x", "config": "seed = 5\r\n"})
    assert answer.status_code == 303
    assert RunConfig.read(console.runs / "x" / "config.toml").seed == 5


def test_the_page_of_a_file_explains_every_setting(console: Console) -> None:
    browser = console.browser("olga")
    page = browser.post("/runs/check", opened(browser) | {"do": "file"}).text
    for one in DECLARED:
        row = page.split(f"<code>{one.key}</code>")[1].split("</tr>")[0]
        assert [text_of(cell) for cell in row.split("<td>")[1:]] == [one.default_text, one.allowed, one.help]
    assert page.index("<details") > page.index("</form>")


# --- what is wrong is said beside it --------------------------------------------------------------


def test_each_wrong_field_has_its_own_line_and_everything_stays(console: Console) -> None:
    browser = console.browser("olga")
    typed = {
        "name": "new",
        "set.federation.rounds": "many",
        "set.adapter.rank": "0",
        "set.training.lr_shared": "",
        "set.data.columns": '<b>"x"</b>',
        "set.privacy.min_honest": "3",
    }
    answer = browser.post("/runs/new", opened(browser) | typed)
    assert answer.status_code == 422
    assert wrong_at(answer.text) == {
        "federation.rounds": "federation.rounds is 'many'; it must be a whole number",
        "adapter.rank": "adapter.rank is 0; it must lie in 1 … 512",
        "training.lr_shared": "training.lr_shared is ''; it must be a number",
    }
    assert answer.text.count('aria-invalid="true"') == 3
    assert "3 settings can't be as they are" in text_of(answer.text)
    assert {key: form(answer)[key] for key in typed} == typed
    assert "<b>" not in answer.text.split("<main")[1]
    assert not (console.runs / "new").exists()
    assert console.outcomes("start a run") == ["refused: 3 settings can't be as they are"]


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        (
            {"set.federation.rounds": "0", "set.federation.warmup_rounds": "0"},
            "federation.rounds",
            "federation.rounds is 0",
        ),
        ({"set.federation.cohort": "500"}, "federation.cohort", "there are 101 people"),
        ({"set.data.clients": "2", "set.federation.cohort": "0"}, "federation.cohort", "at least 3"),
        (
            {"set.federation.warmup_rounds": "31", "set.federation.rounds": "30"},
            "federation.warmup_rounds",
            "only 30 rounds",
        ),
        ({"set.adapter.target_modules": " "}, "adapter.target_modules", "name at least one"),
        ({"set.privacy.secagg": "off", "set.privacy.dp_epsilon": "8"}, "privacy.dp_epsilon", "needs"),
        ({"set.grid": "ray"}, "grid", "on the local grid only"),
        ({"set.data.dataset": "/etc/passwd"}, "data.dataset", "may not read"),
        ({"set.model.base_model": "/etc"}, "model.base_model", "may not read"),
        ({"set.federation.combine": "median"}, "federation.combine", "needs at least 3 groups"),
        ({"name": "-x"}, "name", "a run's name is 1 to 64"),
        ({"name": "a" * 65}, "name", "longer than 64"),
        ({"name": "a\u200bb"}, "name", "invisible characters"),
        ({"name": "there"}, "name", "there is a run there already"),
    ],
)
def test_what_can_not_run_is_said_beside_the_field_that_it_is_about(
    console: Console, changes: dict[str, str], key: str, said: str
) -> None:
    make_run(console.runs / "there")
    browser = console.browser("olga")
    sent = opened(browser) | {"name": "new"} | changes
    answer = browser.post("/runs/new", sent)
    assert answer.status_code == 422
    assert list(wrong_at(answer.text)) == [key]
    assert said in wrong_at(answer.text)[key]
    assert {name: form(answer)[name] for name in changes} == changes
    if key != "name":
        again = browser.post("/runs/check", sent)  # without scripts: the button "Check"
        assert (again.status_code, wrong_at(again.text)) == (200, wrong_at(answer.text))
        assert said in browser.post("/runs/check", sent, headers=LIVE).text.split("</div></div>")[0]
    assert [path.name for path in console.runs.iterdir()] == ["there"]


def test_while_it_is_written_verdict_marks_and_file_follow(console: Console) -> None:
    browser = console.browser("olga")
    sent = opened(browser) | {"set.adapter.rank": "0", "set.training.batch_size": "3"}
    live = browser.post("/runs/check", sent, headers=LIVE).text
    assert "<html" not in live
    assert "It can’t run like this adapter.rank is 0" in text_of(live)
    assert wrong_at(live) == {"adapter.rank": "adapter.rank is 0; it must lie in 1 … 512"}
    assert live.count('hx-swap-oob="true">') > len(DECLARED)  # also of those that are right again
    assert "batch_size = 3" in live
    live = browser.post("/runs/check", sent | {"set.adapter.rank": "3"}, headers=LIVE).text
    assert "It can run senate" in text_of(live)
    assert wrong_at(live) == {}


# --- what was written stays -----------------------------------------------------------------------


def test_another_recipe_leaves_what_was_written(console: Console) -> None:
    browser = console.browser("olga")
    sent = opened(browser) | {
        "name": "mine",
        "set.federation.clip": "3",
        "set.adapter.rank": "none",
        "from": "Senate, a quick look",
        "do": "recipe",
    }
    answer = browser.post("/runs/check", sent)
    found = form(answer)
    assert "As you wrote it: adapter.rank, federation.clip." in text_of(answer.text)
    assert (found["name"], found["base"]) == ("mine", "Senate, a quick look")
    assert found["set.federation.rounds"] == "8"  # the recipe's
    assert (found["set.federation.clip"], found["set.adapter.rank"]) == ("3", "none")
    assert console.outcomes("start a run") == []
    answer = browser.post("/runs/check", sent | {"from": "nothing"})
    assert "There is no such run." in text_of(answer.text)
    assert form(answer)["set.federation.clip"] == "3"


def test_another_recipe_leaves_a_file_that_was_written(console: Console) -> None:
    browser = console.browser("olga")
    as_file = form(browser.post("/runs/check", opened(browser) | {"do": "file"}))
    other = {"from": "Senate, a quick look", "do": "recipe"}
    taken = form(browser.post("/runs/check", as_file | other))
    assert "rounds = 8" in taken["config"].splitlines()
    for text in ("# mine\nseed = 5", "not TOML [", '[data]\ndataset = "</textarea><b>"'):
        answer = browser.post("/runs/check", as_file | other | {"config": text})
        assert form(answer)["config"] == text
        assert "The file is as you wrote it." in text_of(answer.text)
        assert "<b>" not in answer.text.split("<main")[1]
    assert "rounds = 8" in form(browser.post("/runs/check", as_file | other | {"config": "\r\n"}))["config"]


@pytest.mark.parametrize("text", ["not TOML [", "[adapter]\nrang = 3", "[spoon]\nx = 1", "adapter = 3"])
def test_a_file_that_fields_can_not_show_stays_a_file(console: Console, text: str) -> None:
    answer = console.browser("olga").post("/runs/check", {"config": text, "do": "fields"})
    assert form(answer)["config"] == text
    assert "This file can’t be shown as fields yet:" in text_of(answer.text)


def test_wrong_values_of_a_file_are_marked_in_the_fields(console: Console) -> None:
    text = '[adapter]\nrank = "two"\nlayers = ["x"]\n[privacy]\nsecagg = "yes"'
    answer = console.browser("olga").post("/runs/check", {"config": text, "do": "fields"})
    found, wrong = form(answer), wrong_at(answer.text)
    assert (found["set.adapter.rank"], found["set.adapter.layers"]) == ("two", "x")
    assert found["set.privacy.secagg"] == "yes"
    assert list(wrong) == ["adapter.rank", "adapter.layers", "privacy.secagg"]


@pytest.mark.parametrize("path", ["/runs/new", "/runs/check"])
@pytest.mark.parametrize("way", ["fields", "file"])
def test_what_was_written_outlives_its_session(console: Console, path: str, way: str) -> None:
    browser = console.browser("olga")
    sent = opened(browser)
    if way == "file":
        sent = form(browser.post("/runs/check", sent | {"do": "file"})) | {"config": 'x = "<b>&"\n'}
    else:
        sent |= {"set.data.columns": '<b>="&', "set.adapter.rank": "three"}
    sent |= {"name": "mine"}
    ended(console, browser)
    asked = browser.client.post(path, data=sent)
    assert asked.status_code == 401
    assert "<b>" not in asked.text
    assert not (console.runs / "mine").exists()
    login = form_of(asked.text, "/login")
    assert PASSWORD not in asked.text
    wrong = browser.client.post("/login", data=login | {"name": "olga", "password": "wrong horse battery"})
    assert wrong.status_code == 401
    login = form_of(wrong.text, "/login")
    done = browser.client.post("/login", data=login | {"name": "olga", "password": PASSWORD})
    assert (done.status_code, done.headers["location"]) == (303, "/runs/new")
    found = opened(browser)
    assert {key: text for key, text in found.items() if key != "csrf"} == {
        key: text for key, text in sent.items() if key != "csrf"
    }
    assert "mine" not in str(opened(browser))  # once


def test_a_form_of_an_earlier_login_is_shown_again_and_does_nothing(console: Console) -> None:
    browser = console.browser("olga")
    sent = opened(browser) | {"name": "mine", "set.adapter.rank": "7"}
    ended(console, browser)
    assert browser.login("olga").status_code == 303
    for path in ("/runs/new", "/runs/check"):
        answer = browser.client.post(path, data=sent)
        assert answer.status_code == 403
        assert "This form is of an earlier login, or not ours." in text_of(answer.text)
        assert (form(answer)["name"], form(answer)["set.adapter.rank"]) == ("mine", "7")
        assert not (console.runs / "mine").exists()
    assert browser.client.post("/runs/new", data=form(answer)).status_code == 303
    assert RunConfig.read(console.runs / "mine" / "config.toml").adapter.rank == 7


def test_who_writes_on_after_the_session_is_not_taken_away(console: Console) -> None:
    browser = console.browser("olga")
    sent = opened(browser)
    ended(console, browser)
    answer = browser.client.post("/runs/check", data=sent, headers=LIVE)
    assert answer.status_code == 200
    assert "hx-redirect" not in answer.headers
    assert "You are logged out What you have written stays." in text_of(answer.text)
    assert "senate" not in answer.text


def test_a_viewer_sees_no_verdict(console: Console) -> None:
    for headers in ({}, LIVE):
        answer = console.browser("vera").post("/runs/check", {"config": ""}, headers=headers)
        assert answer.status_code == 403
        assert "It can run" not in answer.text


def test_the_address_of_a_form_that_was_read_again_leads_to_the_form(console: Console) -> None:
    answer = console.browser("olga").get("/runs/check")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/new")


# --- a copy of a run ------------------------------------------------------------------------------


def test_a_copy_of_a_run_is_the_form_filled_in(console: Console) -> None:
    make_run(console.runs / "first", **{"adapter.rank": 5, "model.max_tokens": 99})
    browser = console.browser("olga")
    page = browser.get(f"/runs/{console.id_of('first')}").text
    link = f"/runs/new?from={console.id_of('first')}"
    assert f'<a class="button" href="{link}">Copy and edit</a>' in page
    found = opened(browser, link)
    assert (found["set.adapter.rank"], found["set.model.max_tokens"], found["set.seed"]) == ("5", "99", "7")
    assert "Copy and edit" not in console.browser("vera").get(f"/runs/{console.id_of('first')}").text
    assert browser.post("/runs/new", found | {"name": "second"}).status_code == 303
    first, second = ((console.runs / name / "config.toml").read_bytes() for name in ("first", "second"))
    assert first == second


def test_a_copy_of_a_run_that_fields_can_not_show_is_a_file(console: Console) -> None:
    directory = make_run(console.runs / "old")
    with (directory / "config.toml").open("a", encoding="utf-8") as file:
        file.write("\n[kettle]\nlitres = 1\n")
    answer = console.browser("olga").get(f"/runs/new?from={console.id_of('old')}")
    assert "[kettle]" in form(answer)["config"]
    assert 'unknown configuration key "kettle"' in text_of(answer.text)


def test_a_run_that_is_gone_meanwhile_costs_nothing_that_was_written(console: Console) -> None:
    make_run(console.runs / "first", **{"adapter.rank": 5})
    browser = console.browser("olga")
    found = opened(browser, f"/runs/new?from={console.id_of('first')}")
    (console.runs / "first").rename(console.runs.parent / "elsewhere")
    sent = found | {"from": "Senate, a quick look", "do": "recipe"}
    assert form(browser.post("/runs/check", sent))["set.adapter.rank"] == "5"
