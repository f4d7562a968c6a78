"""Lists that sort, charts that leave, what is found by its name, what is asked before it is done."""

from __future__ import annotations

import csv
import io
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.console_scene import HOST, Console, form_of, log, make_run, shared

from penchant.server import charts
from penchant.server.console.app import ACTIONS, QUESTIONS
from penchant.server.console.views import runs as runs_view
from penchant.server.journal import Journal


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path)
    yield made
    made.close()
    made.store.close()


# --- lists ------------------------------------------------------------------------------------------------


def names_in(html: str) -> list[str]:
    """The names of runs in a table, in order."""
    return re.findall(r'<th scope="row"><a href="/runs/[^"]+">([^<]+)</a>', html)


def test_runs_are_filtered_and_sorted_and_their_pages_keep_both(console: Console) -> None:
    for name, rounds in (("alpha", 3), ("Beta", 1), ("gamma", 2)):
        make_run(console.runs / name, rounds)
    make_run(console.runs / "empty", 0)
    browser = console.browser("vera")
    assert names_in(browser.get("/runs?order=name").text) == ["alpha", "Beta", "empty", "gamma"]
    assert names_in(browser.get("/runs?order=-rounds").text) == ["alpha", "gamma", "Beta", "empty"]
    accurate = browser.get("/runs?order=accuracy").text
    assert names_in(accurate)[-1] == "empty"  # what is not measured comes last, either way
    assert names_in(browser.get("/runs?order=-accuracy").text)[-1] == "empty"
    assert 'aria-sort="ascending"><a href="?order=-accuracy">Accuracy' in accurate
    assert names_in(browser.get("/runs?q=BET").text) == ["Beta"]
    assert names_in(browser.get("/runs?state=new").text) == ["empty"]
    assert "No run is like this." in browser.get("/runs?q=nobody").text
    kept = browser.get("/runs?q=a&state=stopped&order=name").text
    assert 'href="?q=a&amp;state=stopped&amp;order=-name"' in kept
    for wrong in ("order=node", "state=happy", "order=-"):
        assert browser.get(f"/runs?{wrong}").status_code == 400


def test_the_pages_of_a_sorted_list_go_by_the_same_order(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_view, "RUNS_A_PAGE", 2)
    for name in ("a", "b", "c"):
        make_run(console.runs / name, 1)
    first = console.browser("vera").get("/runs?order=-name").text
    assert names_in(first) == ["c", "b"]
    assert 'href="?order=-name&amp;page=2"' in first
    assert names_in(console.browser("vera").get("/runs?order=-name&page=2").text) == ["a"]


def test_rounds_of_a_run_are_sorted_and_failed_ones_picked(console: Console) -> None:
    directory = make_run(console.runs / "first", 3)
    with closing(Journal(directory)) as journal:
        journal.begin(4, "main")
        journal.fail(4, 1, "3 said POLICY")
        journal.begin(4, "main")
        journal.finish(log(4, attempt=2, survivors=20), shared(4))
    page = f"/runs/{console.id_of('first')}"
    browser = console.browser("vera")

    def rounds(query: str) -> list[str]:
        table = browser.get(f"{page}?{query}").text.split('aria-label="Rounds"><table')[-1]
        return re.findall(r'data-label="Round">(\d+)', table)

    assert rounds("") == ["4", "4", "3", "2", "1"]
    assert rounds("order=sum") == ["4", "1", "2", "3", "4"]  # the failed attempt has no sum
    assert rounds("outcome=failed") == ["4"]
    assert rounds("outcome=final&order=round") == ["1", "2", "3", "4"]
    assert browser.get(f"{page}?outcome=lost").status_code == 400
    drawn = browser.get(page).text
    assert "<title>round 4\nattempt 1 failed: 3 said POLICY</title>" in drawn
    assert "<title>after round 4\nattempt 1 failed: 3 said POLICY</title>" in drawn


def test_small_curves_of_a_list_have_one_scale(console: Console) -> None:
    """Of two runs the better one lies above the other, however little each of them moves."""
    for name, low in (("low", 0.5), ("high", 0.9)):
        directory = make_run(console.runs / name, 0)
        with closing(Journal(directory)) as journal:
            for number in (1, 2):
                journal.begin(number, "main")
                journal.finish(log(number, val_accuracy=low + 0.01 * number), shared(number))
    page = console.browser("vera").get("/runs").text
    drawn = dict(
        re.findall(r'aria-label="accuracy of (\w+) by [^"]*"><polyline class="l1" points="([^"]+)"', page)
    )
    assert [point.split(",")[1] for point in drawn["high"].split()] == ["3.4", "3.0"]
    assert [point.split(",")[1] for point in drawn["low"].split()] == ["21.0", "20.6"]


# --- charts leave, and say how sure they are ------------------------------------------------------------


def test_a_chart_leaves_as_numbers_and_as_a_drawing_that_needs_nothing_else(console: Console) -> None:
    directory = make_run(console.runs / "first", 0)
    with closing(Journal(directory)) as journal:
        journal.begin(1, "main")
        journal.fail(1, 1, "=HYPERLINK(1)")
        for number in (1, 2):
            journal.begin(number, "main")
            attempt = 2 if number == 1 else 1
            journal.finish(log(number, attempt=attempt, val_accuracy=0.64, judged=400), shared(number))
    place = f"/runs/{console.id_of('first')}/charts"
    browser = console.browser("vera")
    page = browser.get(f"/runs/{console.id_of('first')}").text
    assert "64% ± 2.8%" in page  # as the tenths of 33 people say
    assert "<small>± one standard error</small>" in page
    names = ("accuracy", "loss", "people", "lost", "seconds", "traffic")
    for name in names:
        for ending in ("csv", "svg"):
            assert f'href="{place}/{name}.{ending}"' in page
            answer = browser.get(f"{place}/{name}.{ending}")
            assert answer.headers["content-disposition"].endswith(f'-{name}.{ending}"')
            assert answer.headers["content-disposition"].startswith("attachment")
    rows = list(csv.reader(io.StringIO(browser.get(f"{place}/accuracy.csv").text)))
    assert rows[0] == ["after round", "Fleet accuracy", "Fleet accuracy: standard error", "failed"]
    assert [row[:2] for row in rows[1:]] == [["0", "0.64"], ["1", "0.64"]]
    assert [float(row[2]) for row in rows[1:]] == [pytest.approx(0.0277, abs=5e-5)] * 2
    assert rows[1][3] == ""
    assert rows[2][3] == "attempt 1 failed: =HYPERLINK(1)"  # no cell begins with a formula
    drawing = browser.get(f"{place}/accuracy.svg")
    assert drawing.headers["content-type"].startswith("image/svg+xml")
    root = ElementTree.fromstring(drawing.text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "href" not in drawing.text
    for wrong in ("accuracy.png", "accuracy", "journal.csv", ".csv"):
        assert browser.get(f"{place}/{wrong}").status_code == 404


def test_the_rounds_that_curves_show_are_chosen_in_the_address(console: Console) -> None:
    """With a form, so without scripts as well; the files are of the same rounds."""
    for name, rounds in (("first", 4), ("second", 3)):
        with closing(Journal(make_run(console.runs / name, 0))) as journal:
            for number in range(1, rounds + 1):
                journal.begin(number, "main")
                journal.finish(log(number), shared(number))
    browser = console.browser("vera")
    place = f"/runs/{console.id_of('first')}"
    whole = browser.get(place).text
    assert 'id="zoom"' in whole
    assert "All rounds" not in whole
    page = browser.get(f"{place}?first=2&last=3&order=took").text
    assert f"{place}/charts/lost.csv?first=2&amp;last=3" in page
    assert '<input type="hidden" name="order" value="took">' in page
    assert f'id="whole" href="{place}?order=took#curves"' in page
    rows = list(csv.reader(io.StringIO(browser.get(f"{place}/charts/lost.csv?first=2&last=3").text)))
    assert [row[0] for row in rows[1:]] == ["2", "3"]
    assert browser.get(f"{place}?first=3&last=2").text.count('data-first="2"') == page.count('data-first="2"')
    assert "nothing to show" in browser.get(f"{place}?first=900").text
    assert browser.get(f"{place}?first=two").status_code == 422
    query = "&".join(f"run={console.id_of(name)}" for name in ("first", "second"))
    compared = browser.get(f"/runs/compare?{query}&last=2").text
    assert f"/runs/compare/charts/loss.csv?{query}&last=2".replace("&", "&amp;") in compared
    rows = list(csv.reader(io.StringIO(browser.get(f"/runs/compare/charts/loss.csv?{query}&last=2").text)))
    assert max(float(row[0]) for row in rows[1:]) <= 2


def test_the_charts_of_a_comparison_leave_as_well(console: Console) -> None:
    for name in ("one", "=two"):
        make_run(console.runs / name, 2)
    query = f"run={console.id_of('one')}&run={console.id_of('=two')}"
    browser = console.browser("vera")
    page = browser.get(f"/runs/compare?{query}").text
    assert f"/runs/compare/charts/accuracy.csv?{query}".replace("&", "&amp;") in page
    rows = list(csv.reader(io.StringIO(browser.get(f"/runs/compare/charts/accuracy.csv?{query}").text)))
    assert rows[0] == ["after round", "one", "one: standard error", "'=two", "'=two: standard error"]
    drawing = browser.get(f"/runs/compare/charts/loss.svg?{query}").text
    assert ">=two</text>" in drawing
    assert browser.get("/runs/compare/charts/loss.svg?run=nobody").status_code == 404


def test_what_changes_by_itself_on_a_comparison_leaves_the_form_alone(console: Console) -> None:
    for name in ("first", "second"):
        make_run(console.runs / name, 2)
    query = "&".join(f"run={console.id_of(name)}" for name in ("first", "second"))
    page = console.browser("vera").get(f"/runs/compare?{query}").text
    before, _, after = page.partition('<div data-part="compared">')
    assert 'id="zoom"' in before
    assert after.count("data-zoom=") == 2
    assert "How they compare" in after


def test_a_band_and_its_axis_hold_what_may_be_off() -> None:
    drawn = charts.lines(
        [charts.Series("a", [(1, 0.5), (2, 0.6)], errors=[0.1, None])], title="A", text=lambda y: f"{y:.2f}"
    )
    assert "<title>round 1\n0.50 ± 0.10</title>" in drawn
    assert "<title>round 2\n0.60</title>" in drawn
    assert '<polygon class="band b1"' in drawn
    assert ">0.40</text>" in drawn  # the axis reaches below the least value


def test_many_failures_are_marked_together() -> None:
    marks = [(float(number), "gone") for number in range(1, 3201)]
    chart = charts.LineChart("A", str, series=[charts.Series("a", [(1, 1.0), (3200, 2.0)])], marks=marks)
    drawn = chart.__html__()
    assert drawn.count('class="mark"') <= 2 * (charts.POINTS + 1)
    assert re.search(r"<title>round \d+–\d+\ngone\ngone\ngone\nand 17 more</title>", drawn)


# --- what is found by its name, and what is asked before it is done ---------------------------------------


def test_everything_is_found_by_its_name(console: Console) -> None:
    make_run(console.runs / "spring", 1)
    browser = console.browser("olga")
    page = browser.get("/find?q=spr").text
    assert f'href="/runs/{console.id_of("spring")}"' in page
    assert "data-press" not in page  # what needs a script is offered to scripts alone
    every = browser.get("/find", headers={"hx-request": "true"}).text
    assert 'href="/releases"' in every
    assert 'data-press="density"' in every
    assert 'href="/runs/new"' in every
    assert 'href="/runs/new"' not in console.browser("vera").get("/find?q=start").text.split("<main")[1]
    assert "Nothing is called “&lt;b&gt;”." in browser.get("/find?q=<b>").text


def test_what_hurts_is_asked_first_and_nothing_is_done_before_the_answer(console: Console) -> None:
    make_run(console.runs / "first", 2)
    browser = console.browser("olga")
    promote = f"/releases/{console.id_of('first')}/promote"
    form = {"csrf": browser.token(), "round": "2", "canary": ""}
    asked = browser.client.post(promote, data=form)
    assert asked.status_code == 200
    assert "Promote the adapter of round 2 of first?" in asked.text
    assert console.outcomes("promote a release") == []
    assert browser.get(f"/releases?run={console.id_of('first')}").text.count("Nothing was promoted yet") == 1
    answer = form_of(asked.text, promote)
    assert answer["sure"] == "yes"
    assert browser.client.post(promote, data=answer).status_code == 303
    assert console.outcomes("promote a release") == ["done"]


def answered_no_more(console: Console, **changes: str) -> str:
    """Where a browser is led that says yes to a question when the act is not possible any more."""
    browser, here = console.browser("olga"), f"/releases?run={console.id_of('first')}"
    promote = f"/releases/{console.id_of('first')}/promote"
    form = {"csrf": browser.token(), "round": "2", "canary": ""}
    asked = browser.client.post(promote, data=form, headers={"referer": f"http://{HOST}{here}"})
    answer = form_of(asked.text, promote) | {"round": "9"} | changes
    said = browser.client.post(promote, data=answer, headers={"referer": f"http://{HOST}{promote}"})
    assert said.status_code == 303
    assert said.headers["location"] != promote  # there is nothing to look at
    assert "Not done: round 9 has no checkpoint" in browser.get(said.headers["location"]).text
    return said.headers["location"]


def test_a_refusal_after_a_question_is_said_on_the_page_that_one_came_from(console: Console) -> None:
    make_run(console.runs / "first", 2)
    assert answered_no_more(console) == f"/releases?run={console.id_of('first')}"


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example/", "/\\evil.example", ""])
def test_after_a_question_one_is_led_to_a_page_of_ours_alone(console: Console, back: str) -> None:
    make_run(console.runs / "first", 2)
    assert answered_no_more(console, back=back) == "/"


def test_a_question_shows_what_was_sent_as_text(console: Console) -> None:
    make_run(console.runs / "first", 2)
    browser = console.browser("olga")
    form = {"csrf": browser.token(), "token": "<b>{what.__class__}"}
    asked = browser.client.post(f"/devices/{console.id_of('first')}/withdrawals", data=form).text
    assert "Take token &lt;b&gt;{what.__class__} back?" in asked


@pytest.mark.parametrize(
    ("act", "form", "why"),
    [
        ("promote", {"round": "two"}, "round must be a whole number"),
        ("promote", {"round": "<b>"}, "round must be a whole number"),
        ("promote", {"round": "9"}, "first has no adapter of round 9."),
        ("promote", {"round": "2", "canary": "0"}, "1 to 99 percent"),
        ("promote", {"round": "2", "canary": "100"}, "1 to 99 percent"),
        ("promote", {"round": "2", "canary": "5%"}, "canary must be a whole number"),
        ("promote", {"round": "2", "canary": "5"}, "A simulation has no devices that could try"),
        ("rollback", {"number": "1"}, "first has no release 1."),
        ("rollback", {"number": "x"}, "number must be a whole number"),
    ],
)
def test_what_can_not_be_done_is_refused_before_it_is_asked(
    console: Console, act: str, form: dict[str, str], why: str
) -> None:
    make_run(console.runs / "first", 2)
    browser = console.browser("olga")
    path = f"/releases/{console.id_of('first')}/{act}"
    said = browser.client.post(path, data={"csrf": browser.token(), **form})
    assert said.status_code == 422
    assert why in said.text
    assert 'name="sure"' not in said.text


def test_the_question_about_a_simulation_says_that_nothing_is_fetched(console: Console) -> None:
    make_run(console.runs / "first", 2)
    browser = console.browser("olga")
    form = {"csrf": browser.token(), "round": "2"}
    asked = browser.client.post(f"/releases/{console.id_of('first')}/promote", data=form).text
    assert "Promote the adapter of round 2 of first?" in asked
    assert "whose devices are simulated: none fetches it." in asked


@pytest.mark.parametrize("path", sorted(QUESTIONS))
def test_each_question_is_about_an_action_there_is(path: str) -> None:
    assert path in {action[0] for action in ACTIONS}
    question = QUESTIONS[path].about("spring", {"round": "3", "number": "3", "token": "ab"})
    assert question.title.endswith("?")
    assert "{" not in question.title + question.text


# --- what needs attention -------------------------------------------------------------------------------


def test_a_notice_is_put_away_until_it_happens_again(console: Console) -> None:
    directory = make_run(console.runs / "first", 0, **{"federation.attempts": 1})

    def fails(attempt: int) -> None:
        with closing(Journal(directory)) as journal:
            journal.begin(1, "main")
            journal.fail(1, attempt, "3 said POLICY")

    fails(1)
    olga, vera = console.browser("olga"), console.browser("vera")
    put = f"/runs/{console.id_of('first')}/notice"
    page = olga.get("/").text
    assert "first failed" in page
    assert f'action="{put}"' not in vera.get("/").text
    form = form_of(page, put)
    assert form["notice"].startswith(f"run {console.id_of('first')} failed ")
    assert vera.post(put, {"notice": form["notice"]}).status_code == 403
    assert olga.post(put, form).status_code == 303
    for browser in (olga, vera):  # for everybody
        page = browser.get("/").text
        assert "<strong>first failed" not in page
        assert "1 notice put away" in page.replace("\u202f", " ")
    assert "<strong>first failed" in vera.get("/?notices=all").text
    assert console.outcomes("put a notice away") == ["done", "refused: not an operator"]
    with closing(sqlite3.connect(directory / "journal.db")) as db, db:  # it fails once more, later
        db.execute("UPDATE rounds SET started = started + 60")
    assert "<strong>first failed" in vera.get("/").text


def test_only_a_notice_that_is_shown_is_put_away_and_only_once(console: Console) -> None:
    """Made-up lines, and the same one again, would push out what others put away: only so many count."""
    for name in ("first", "other"):
        directory = make_run(console.runs / name, 0, **{"federation.attempts": 1})
        with closing(Journal(directory)) as journal:
            journal.begin(1, "main")
            journal.fail(1, 1, "3 said POLICY")
    browser = console.browser("olga")
    put, there = (f"/runs/{console.id_of(name)}/notice" for name in ("first", "other"))
    page = browser.get("/").text
    notice, theirs = (form_of(page, path)["notice"] for path in (put, there))
    for made_up in (theirs, f"run {console.id_of('first')} failed 1", f"{notice} ", notice.upper(), ""):
        assert browser.post(put, {"notice": made_up}).status_code == 409, made_up
    assert browser.post(put, {"notice": notice, "name": "1"}).status_code == 422
    assert browser.post("/runs/nobody/notice", {"notice": notice}).status_code == 404
    assert "<strong>first failed" in browser.get("/").text
    assert browser.post(put, {"notice": notice}).status_code == 303
    assert browser.post(put, {"notice": notice}).status_code == 409
    assert "<strong>first failed" not in browser.get("/").text
    assert "<strong>other failed" in browser.get("/").text
    assert console.outcomes("put a notice away").count("done") == 1


def test_what_was_done_lately_says_to_which_run(console: Console) -> None:
    browser = console.browser("olga")
    make_run(console.runs / "spring", 1)
    browser.post("/runs/new", {"name": "spring", "where": "", "toml": "seed = 1"})
    assert "start a run <code>spring</code>" in browser.get("/").text
