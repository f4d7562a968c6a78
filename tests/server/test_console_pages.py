"""What the console's pages say, and how little they ask of the disk for it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.console_scene import Console, log, make_run, shared, text_of

from penchant.common import foreign_files, wording
from penchant.common.errors import ConsoleError, JournalError, UsageError
from penchant.common.foreign_files import ForeignDatabase
from penchant.common.privacy.accounting import rho_of
from penchant.deploy.console.releases import ReleasesOnThisMachine
from penchant.server import charts, releases
from penchant.server.charts import line_chart
from penchant.server.charts.chart import ticks as ticks_of
from penchant.server.console.watch import Watch
from penchant.server.journal import Journal
from penchant.server.monitoring.run_history import Activity, JournalReader, RunLocation, summary_of
from penchant.server.privacy_figures import FACT, PrivacyFigures


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path)
    yield made
    made.close()
    made.store.close()


def location(directory: Path) -> RunLocation:
    return RunLocation("id", directory.name, directory, "simulation")


# --- nothing there yet ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/", "No run yet"),
        ("/runs", "No run yet."),
        ("/runs/compare", "Tick at least two runs"),
        ("/devices", "Devices show up with the first run."),
        ("/privacy", "There is something to see with the first round."),
        ("/releases", "There is an adapter after the first finished round."),
        ("/runs/new", "It can run"),
    ],
)
def test_empty_pages_say_what_will_be_there(console: Console, path: str, sentence: str) -> None:
    answer = console.browser("olga").get(path)
    assert answer.status_code == 200
    assert sentence in text_of(answer.text)


def test_a_run_without_a_round(console: Console) -> None:
    make_run(console.runs / "fresh", 0)
    browser = console.browser("olga")
    for path in ("", "/delete"):
        assert browser.get(f"/runs/{console.id_of('fresh')}{path}").status_code == 200
    for path in ("/", "/runs", "/devices", "/privacy", "/releases"):
        assert browser.get(path).status_code == 200
    assert "Not a single round yet." in text_of(browser.get(f"/runs/{console.id_of('fresh')}").text)


def test_a_damaged_run_takes_no_page_with_it(console: Console) -> None:
    make_run(console.runs / "sound")
    make_run(console.runs / "broken")
    (console.runs / "broken" / "journal.db").write_bytes(b"nothing of SQLite's" * 100)
    make_run(console.runs / "odd")
    (console.runs / "odd" / "config.toml").write_text("rounds = ", encoding="utf-8")
    said = text_of(console.browser("olga").get("/").text)
    assert "broken can't be read" in said
    assert "odd can't be read" in said
    assert console.browser("olga").get(f"/runs/{console.id_of('broken')}").status_code == 200
    assert "unreadable" in text_of(console.browser("olga").get("/runs").text)


# --- what is there --------------------------------------------------------------------------------


def test_the_overview_tells_how_the_fleet_is(console: Console) -> None:
    make_run(console.runs / "first", 4)
    said = text_of(console.browser("olga").get("/").text)
    assert "first has stopped" in said
    assert "fleet accuracy on held-out choices, after round 3 58.9%" in said
    assert "2.9%" in said  # lost: 1 of 34
    assert "Nothing needs you now" in said


def test_the_page_of_a_run_tells_of_its_last_round(console: Console) -> None:
    make_run(console.runs / "first", 4)
    said = text_of(console.browser("vera").get(f"/runs/{console.id_of('first')}").text)
    for part in (
        "33 /34",
        "1 at masked sums",
        "566 kB",
        "1.3 MB",
        "2.5 s",
        "0.200",
        "4 of 9 rounds are finished",
    ):
        assert part in said, part
    assert "People by their accuracy, after round 3" in said


def test_all_rounds_are_a_click_away(console: Console) -> None:
    make_run(console.runs / "long", 40, of=60)
    path = f"/runs/{console.id_of('long')}"
    browser = console.browser("olga")
    assert "page 1 of 2, 40 attempts Next page" in text_of(browser.get(path).text)
    pages = [browser.get(f"{path}?page={number}").text.count("<td>final</td>") for number in (1, 2, 9)]
    assert pages == [25, 15, 15]  # there is no ninth: the last one
    assert browser.get(f"{path}?page=x").status_code == 422


def test_attempts_that_gave_nothing_are_shown_with_the_reason(console: Console) -> None:
    journal = Journal(make_run(console.runs / "first", 2))
    journal.begin(3, "main")
    journal.fail(3, 1, "12 of 34 devices lost by stage <masked>")
    journal.close()
    html = console.browser("olga").get(f"/runs/{console.id_of('first')}").text
    assert "12 of 34 devices lost by stage &lt;masked&gt;" in html


def test_curves_are_compared_and_configurations_told_apart(console: Console) -> None:
    make_run(console.runs / "one", 3)
    make_run(console.runs / "two", 3, **{"adapter.share": "B"})
    both = "&".join(f"run={console.id_of(name)}" for name in ("one", "two"))
    said = text_of(console.browser("olga").get(f"/runs/compare?{both}").text)
    assert "adapter.share A B" in said
    assert "seed" not in said.split("differ")[1]
    many = "&".join(f"run={i}" for i in range(7))
    assert console.browser("olga").get(f"/runs/compare?{many}").status_code == 400


def test_privacy_names_what_a_sum_holds_and_that_there_is_no_budget(console: Console) -> None:
    make_run(console.runs / "first", 3)
    said = text_of(console.browser("olga").get("/privacy").text)
    assert "layer.lora_A 2 × 4 updates of a shared tensor, added up" in said
    assert "There is none: this run adds no noise for differential privacy" in said
    assert "33 10 680" in said  # people, numbers, choices
    make_run(console.runs / "open", 1, **{"privacy.secagg": False})
    loud = text_of(console.browser("olga").get(f"/privacy?run={console.id_of('open')}").text)
    assert "Secure aggregation is OFF" in loud


def test_privacy_says_what_of_a_budget_is_spent(console: Console) -> None:
    make_run(console.runs / "noised", 3)
    figures = PrivacyFigures(8.0, 1e-5, 1.1, 6, 21, rho_of(8.0, 1e-5) / 6, 0.5)
    with closing(Journal(console.runs / "noised")) as journal:
        journal.note(FACT, figures.encode())
    said = text_of(console.browser("olga").get("/privacy").text)
    assert "of 8 for a person, δ 1e-05" in said
    assert f"{figures.spent(3):.3f}" in said
    assert "changes by no more than ε = 8, δ = 1e-05" in said
    assert "the noise of 21 honest people" in said
    assert "of 8 for a person" in text_of(console.browser("olga").get("/").text)


def test_privacy_of_a_run_with_noise_that_has_not_begun_is_not_called_exact(console: Console) -> None:
    make_run(console.runs / "waits", 0, **{"privacy.dp_epsilon": 4.0})
    for page in ("/privacy", "/"):
        said = text_of(console.browser("olga").get(page).text)
        assert "of 4 for a person; it has not begun" in said, page
        assert "sums are exact" not in said, page
    assert "for ε = 4, δ = 1e-05 over the whole run" in text_of(console.browser("olga").get("/privacy").text)


def test_devices_are_searched_sorted_and_turned_over(console: Console) -> None:
    make_run(console.runs / "first", 2, devices=120)
    browser = console.browser("olga")
    assert "page 1 of 3, 120 devices" in text_of(browser.get("/devices").text)
    last = text_of(browser.get("/devices?page=3").text)
    assert "node 1120" in last
    assert "node 1001" not in last
    found = text_of(browser.get("/devices?q=12").text)
    assert "node 1012" in found
    assert "node 1013" not in found
    assert "No member’s number begins with “999”" in text_of(browser.get("/devices?q=999").text)
    for wrong in ("page=x", "page=-1", "order=node", "page=" + "9" * 30):
        assert browser.get(f"/devices?{wrong}").status_code in (400, 422)
    assert browser.get("/devices?q=';DROP TABLE devices").status_code == 200


# --- what needs attention -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"survivors": 24}, "loses 29% of its devices"),
        ({"val_accuracy": None}, None),
    ],
)
def test_lost_devices_are_noticed(tmp_path: Path, changes: dict[str, Any], title: str | None) -> None:
    from penchant.server.monitoring import alerts

    journal = Journal(make_run(tmp_path / "first", 0))
    for number in (1, 2, 3):
        journal.begin(number, "main")
        journal.finish(log(number, **changes), shared(number))
    journal.close()
    run = summary_of(location(tmp_path / "first"), Activity(running=True))
    titles = [notice.title.replace("\u202f", " ") for notice in alerts.of_run(run, run.touched + 1)]
    assert titles == ([] if title is None else [f"first {title}"])


def test_a_run_that_stands_still_or_gets_worse_is_noticed(tmp_path: Path) -> None:
    from penchant.server.monitoring import alerts

    journal = Journal(make_run(tmp_path / "first", 0, of=20))
    for number in range(1, 10):
        journal.begin(number, "main")
        journal.finish(log(number, val_accuracy=0.7 if number < 4 else 0.6), shared(number))
    journal.begin(10, "main")
    journal.close()
    run = summary_of(location(tmp_path / "first"), Activity(running=True))
    titles = [notice.title for notice in alerts.of_run(run, run.touched + 4000)]
    assert titles == ["first does not move", "first learns no more"]


# --- reading the journal --------------------------------------------------------------------------


def test_a_journal_from_before_stages_still_opens(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "old", 2)
    with sqlite3.connect(directory / "journal.db") as db:
        for table in ("stages", "devices"):
            db.execute(f"DROP TABLE {table}")
        db.execute("DELETE FROM meta")
    ledger = JournalReader(directory)
    assert (ledger.stages(2, 1), ledger.devices(), ledger.count_devices(), ledger.sums()) == ([], [], 0, [])
    assert summary_of(location(directory), Activity()).settled == 2
    Journal(directory).close()  # and gains them when a server opens it
    assert JournalReader(directory).devices() == []


def test_reading_holds_up_no_writer_and_sees_what_it_writes(tmp_path: Path) -> None:
    journal = Journal(make_run(tmp_path / "first", 1))
    ledger = JournalReader(tmp_path / "first")
    before = ledger.mark
    journal.begin(2, "main")
    journal.stage(2, 1, "keys", 34)
    assert ledger.mark != before
    (stage,) = ledger.stages(2, 1)
    assert (stage.name, stage.asked, stage.answered, stage.ended) == ("keys", 34, 0, None)
    journal.answered(2, 1, "keys", 12)
    assert ledger.stages(2, 1)[0].answered == 12
    assert ledger.stages(2, 1)[0].ended is None
    journal.close()


def test_a_missing_journal_has_no_rounds_and_a_damaged_log_is_named(tmp_path: Path) -> None:
    assert JournalReader(tmp_path).attempts() == []
    directory = make_run(tmp_path / "first", 1)
    with sqlite3.connect(directory / "journal.db") as db:
        db.execute("UPDATE rounds SET log = '{}'")
    with pytest.raises(JournalError, match=r"journal\.db is damaged"):
        JournalReader(directory).attempts()


def test_the_facts_are_the_same_for_a_machine(tmp_path: Path) -> None:
    report = summary_of(location(make_run(tmp_path / "first", 3)), Activity()).report()
    assert (report.state, report.settled, report.rounds, report.devices) == ("stopped", 3, 8, 5)
    assert [attempt.survivors for attempt in report.attempts] == [33, 33, 33]


# --- few questions --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/runs", "/runs/ID", "/devices", "/privacy", "/releases"])
def test_the_number_of_questions_does_not_grow_with_the_fleet(
    console: Console, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = ForeignDatabase.each

    def counted(self: ForeignDatabase, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        asked.append(query)
        return real(self, query, *values)

    monkeypatch.setattr(ForeignDatabase, "each", counted)

    def count(name: str, rounds: int, devices: int) -> int:
        make_run(console.runs / name, rounds, of=60, devices=devices)
        browser = console.browser("olga")
        asked.clear()
        assert browser.get(path.replace("ID", console.id_of(name))).status_code == 200
        return len(asked)

    small = count("small", 20, 3)
    for directory in console.runs.iterdir():
        (directory / "config.toml").unlink()  # one run at a time
    large = count("large", 40, 400)
    assert small == large <= 16


@pytest.mark.parametrize("path", ["/", "/runs", "/runs/ID", "/devices", "/privacy", "/releases", "/runs/new"])
def test_what_a_page_reads_does_not_grow_with_the_runs(
    console: Console, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the runs that it is not about a page reads a bounded part once, and nothing the next time."""
    make_run(console.runs / "about", 3)
    browser = console.browser("olga")
    path = path.replace("ID", console.id_of("about"))
    for number in range(3):
        make_run(console.runs / f"other-{number}", 60, of=60, devices=100)
    os.utime(console.runs / "other-0" / "config.toml", (1, 1))
    browser.get(path)
    rows = bytes_read = 0
    real_each, real_open = ForeignDatabase.each, foreign_files.open_regular

    def counted(self: ForeignDatabase, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        nonlocal rows
        for row in real_each(self, query, *values):
            rows += 1
            yield row

    def opened(path: Path | str, **more: Any) -> Any:
        nonlocal bytes_read
        bytes_read += Path(path).stat().st_size
        return real_open(path, **more)

    monkeypatch.setattr(ForeignDatabase, "each", counted)
    monkeypatch.setattr(foreign_files, "open_regular", opened)
    assert browser.get(path).status_code == 200
    assert rows == 0
    assert bytes_read <= 32 * 1024  # of logs and small files of the one that it is about


def test_a_run_that_goes_on_is_read_from_near_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_run(tmp_path / "first", 80, of=100)
    reader = JournalReader(directory)
    assert len(reader.attempts()) == 80
    rows = 0
    real = ForeignDatabase.each

    def counted(self: ForeignDatabase, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        nonlocal rows
        for row in real(self, query, *values):
            rows += 1
            yield row

    monkeypatch.setattr(ForeignDatabase, "each", counted)
    journal = Journal(directory)
    journal.begin(81, "main")
    journal.fail(81, 1, "too few")
    journal.begin(81, "main")
    journal.finish(log(81, attempt=2), shared(81))
    journal.close()
    found = reader.attempts()
    assert [(a.round, a.attempt, a.state) for a in found[-3:]] == [
        (80, 1, "finished"),
        (81, 1, "failed"),
        (81, 2, "finished"),
    ]
    assert len(found) == 82
    assert rows < 100  # a dozen rounds with their stages, of 80
    assert next((s.name, s.answered) for s in reader.stages(3, 1)) == ("keys", 33)
    assert len(JournalReader(directory).contents().stages) == 80


def test_a_run_that_was_taken_back_is_read_anew(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "first", 40, of=60)
    assert len(JournalReader(directory).attempts()) == 40
    journal = Journal(directory)
    journal.rewind(5)
    for number in range(6, 9):
        journal.begin(number, "main")
        journal.finish(log(number), shared(number))
    journal.close()
    assert [a.round for a in JournalReader(directory).attempts()] == list(range(1, 9))
    glance = JournalReader(directory).glance()
    assert (glance.attempts, glance.settled, [one.round for one in glance.logs]) == (8, 8, list(range(1, 9)))


def test_a_glance_says_what_the_whole_journal_says(tmp_path: Path) -> None:
    journal = Journal(make_run(tmp_path / "first", 70, of=90))
    journal.begin(71, "main")
    journal.skip(71, 1, "nothing is left")
    journal.begin(72, "main")
    journal.stage(72, 1, "keys", 34)
    journal.close()
    run = summary_of(location(tmp_path / "first"), Activity(running=True))
    assert (run.tried, run.settled, run.began) == (72, 71, run.attempts[0].started)
    assert list(run.recent) == list(run.attempts[-12:])
    assert run.current == run.open == run.attempts[-1]
    assert list(run.glance.logs) == run.logs[-12:]
    assert run.last == run.logs[-1]
    assert (run.accuracy, run.accuracy_after) == (run.measured[-1].accuracy, run.measured[-1].after)
    assert run.accuracies[0] == run.logs[0].val_accuracy
    assert len(run.accuracies) in range(44, 49)
    assert [s.name for s in run.glance.stages[72, 1]] == ["keys"]


def test_of_many_runs_a_page_shows_fifty(console: Console) -> None:
    make_run(console.runs / "run-00", 1)
    for number in range(1, 60):
        shutil.copytree(console.runs / "run-00", console.runs / f"run-{number:02d}")
    browser = console.browser("olga")
    assert "page 1 of 2, 60 runs Next page" in text_of(browser.get("/runs").text)
    assert browser.get("/runs").text.count('class="pick"><input') == 50
    assert browser.get("/runs?page=2").text.count('class="pick"><input') == 10


# --- live -----------------------------------------------------------------------------------------


def mark_in(html: str) -> str:
    found = re.search(r'<body data-mark="([0-9a-f]{16})">', html)
    assert found is not None
    return found[1]


LIVE_PATHS = ["/", "/runs", "/runs/compare?run=ID", "/runs/ID", "/devices", "/privacy", "/releases", "/audit"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The watch's, by hand: a look takes no time, and is good for a second."""
    now = [0.0]
    monkeypatch.setattr(Watch.__init__, "__defaults__", (lambda: now[0],))
    return now


@pytest.mark.parametrize("path", LIVE_PATHS)
def test_a_page_that_lies_open_is_sent_again_once_it_is_another(
    clock: list[float], tmp_path: Path, path: str
) -> None:
    console = Console(tmp_path)
    directory = make_run(console.runs / "first", 1)
    browser = console.browser("olga")
    path = path.replace("ID", console.id_of("first"))
    mark = mark_in(browser.get(path).text)
    asked = {"x-penchant-mark": mark}
    assert browser.get(path, headers=asked).status_code == 204
    journal = Journal(directory)
    journal.begin(2, "main")
    journal.stage(2, 1, "keys", 34)
    journal.close()
    assert browser.get(path, headers=asked).status_code == 204  # a look is good for a second
    clock[0] += 1.5
    fresh = browser.get(path, headers=asked)
    assert fresh.status_code == 200
    assert mark_in(fresh.text) != mark
    assert browser.get(path, headers={"x-penchant-mark": mark_in(fresh.text)}).status_code == 204
    console.store.close()


def test_a_page_of_one_run_is_not_another_for_the_sake_of_others(clock: list[float], tmp_path: Path) -> None:
    console = Console(tmp_path)
    make_run(console.runs / "first", 1)
    browser = console.browser("olga")
    path = f"/runs/{console.id_of('first')}"
    asked = {"x-penchant-mark": mark_in(browser.get(path).text)}
    make_run(console.runs / "second", 1)
    console.store.note("vera", "", "log in", "")
    clock[0] += 1.5
    assert browser.get(path, headers=asked).status_code == 204
    console.store.close()


def test_looking_whether_a_page_is_another_reads_no_run(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many runs lie there: pages that lie open cost system calls."""
    for name in ("first", "second", "third"):
        make_run(console.runs / name, 3)
    browser = console.browser("olga")
    marks = {path: mark_in(browser.get(path).text) for path in ("/", "/runs", "/privacy")}
    monkeypatch.setattr(foreign_files, "open_foreign", None)  # whatever is read goes through it
    monkeypatch.setattr(foreign_files, "foreign_database", None)
    for path, mark in marks.items():
        assert browser.get(path, headers={"x-penchant-mark": mark}).status_code == 204


def test_looks_become_rarer_where_they_take_long(console: Console) -> None:
    now = [0.0]

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(console.operations, name)

        def locations(self) -> list[RunLocation]:
            now[0] += 0.1
            return console.operations.locations()

    watch = Watch(console.store, Slow(), clock=lambda: now[0])
    olga = next(one for one in console.store.accounts() if one.name == "olga")
    before = watch.mark(olga)
    make_run(console.runs / "first", 1)
    now[0] = 9.0  # a hundredth of the time goes into looking, at most
    assert watch.mark(olga) == before
    now[0] = 10.5
    assert watch.mark(olga) != before


def test_a_page_that_lies_open_does_not_keep_its_session(console: Console) -> None:
    make_run(console.runs / "first", 1)
    browser = console.browser("olga")
    asked = {"x-penchant-mark": mark_in(browser.get("/").text)}
    console.store._db.execute("UPDATE sessions SET used = used - 7000")  # 200 s are left of two idle hours
    assert browser.get("/", headers=asked).status_code == 204
    console.store._db.execute("UPDATE sessions SET used = used - 300")
    assert browser.get("/", headers=asked).status_code == 401
    assert browser.get("/").status_code == 303


def test_a_page_that_lies_open_takes_no_word_from_the_next_one(console: Console) -> None:
    make_run(console.runs / "first", 4)
    browser, one = console.browser("olga"), console.id_of("first")
    browser.post(f"/releases/{one}/promote", {"round": "2"})
    assert "Release 1 is the adapter" not in browser.get("/", headers={"x-penchant-mark": "old"}).text
    assert "Release 1 is the adapter of round 2." in browser.get("/releases").text


# --- releases -------------------------------------------------------------------------------------


def test_releases_are_promoted_and_rolled_back(console: Console) -> None:
    directory = make_run(console.runs / "first", 4)
    browser, one = console.browser("olga"), console.id_of("first")
    for number in ("2", "4"):
        assert browser.post(f"/releases/{one}/promote", {"round": number}).status_code == 303
    assert "Release 2 is in use" in text_of(browser.get("/releases").text)
    browser.post(f"/releases/{one}/rollback", {"number": "1"})
    said = text_of(browser.get("/releases").text)
    assert "Release 1 is in use" in said
    assert "; olga went back to it" in said
    assert [(r.number, r.round, r.current) for r in releases.releases(directory)] == [
        (2, 4, False),
        (1, 2, True),
    ]
    kept = releases.releases(directory)
    assert [r.again_by for r in kept] == ["", "olga"]
    for wrong in ({"number": "9"}, {"number": "1"}):
        browser.post(f"/releases/{one}/rollback", wrong)
    assert releases.releases(directory) == kept
    assert console.outcomes("roll a release back")[:2] == [
        "refused: release 1 is current already",
        "refused: there is no release 9",
    ]
    browser.post(f"/releases/{one}/promote", {"round": "3"})
    assert "went back" not in text_of(browser.get("/releases").text)
    table = json.loads((directory / "releases.json").read_text())
    del table["again"]  # a file of an earlier version
    (directory / "releases.json").write_text(json.dumps(table))
    assert [r.number for r in releases.releases(directory)] == [3, 2, 1]
    (directory / "releases.json").write_text(json.dumps(table | {"again": ["olga", -1]}))
    with pytest.raises(JournalError, match="who went back to a release is not valid"):
        releases.releases(directory)


def measuring(directory: Path, accuracies: list[float], judged: int | None) -> Path:
    """A run whose round n found that the factors of round n - 1 have the accuracy accuracies[n - 1]; the
    last one is the closing round."""
    journal = Journal(make_run(directory, 0, of=len(accuracies) - 1))
    for number, accuracy in enumerate(accuracies, 1):
        phase = "close" if number == len(accuracies) else "main"
        journal.begin(number, phase)
        more = {"phase": phase, "val_accuracy": accuracy, "train_loss": accuracy, "judged": judged}
        journal.finish(log(number, **more), shared(min(number, len(accuracies) - 1)))
    journal.close()
    return directory


def test_an_adapter_has_the_accuracy_that_the_next_round_measured(console: Console) -> None:
    measuring(console.runs / "first", [0.5, 0.61, 0.69, 0.64, 0.65, 0.71], judged=340)
    html = console.browser("olga").get("/releases").text
    rows = [text_of(row) for row in html.split("Versions</h2>")[1].split("<tr")[2:]]
    shown = {int(re.findall(r"> (\d+) ", row)[0]): row for row in rows}
    assert "69.0% ± 3.1%" in shown[2]  # measured in round 3, before its devices trained
    assert "64.0%" in shown[3]
    assert all("71.0%" in shown[number] and "after the final fit" in shown[number] for number in (5, 6))
    # Others may be as good: it is not called the best.
    assert "the highest so far; 3 others not known to be worse" in shown[2]
    assert [number for number, row in shown.items() if "the highest" in row] == [2]


def test_nobody_has_measured_the_latest_adapter_yet(console: Console) -> None:
    make_run(console.runs / "first", 2)
    browser = console.browser("olga")
    assert text_of(browser.get("/releases").text).count("not measured yet") == 1
    rounds = browser.get(f"/runs/{console.id_of('first')}").text.split("<td>final</td>")[1:]
    shown = [re.findall(r">(–|[0-9.]+%)</td>", row)[-1] for row in rounds]
    assert shown == ["–", f"{100 * (0.5 + 0.4 / 7):.1f}%"]  # of rounds 2 and 1


def test_a_checkpoint_that_was_changed_is_not_promoted(console: Console) -> None:
    directory = make_run(console.runs / "first", 2)
    (directory / "checkpoints" / "round-000002.safetensors").write_bytes(b"another")
    console.browser("olga").post(f"/releases/{console.id_of('first')}/promote", {"round": "2"})
    assert releases.releases(directory) == []
    assert "not what the journal wrote" in console.outcomes("promote a release")[0]


def test_a_damaged_file_of_releases_is_named(tmp_path: Path) -> None:
    (tmp_path / releases.RELEASES).write_text("{", encoding="utf-8")
    with pytest.raises(JournalError, match="is damaged"):
        releases.releases(tmp_path)
    with pytest.raises(UsageError, match="there is no release 1"):
        releases.roll_back(tmp_path / "empty", 1, "olga")


def test_a_download_is_on_record_and_is_what_was_exported(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(console.runs / "first", 2)
    pack = io.BytesIO()
    with zipfile.ZipFile(pack, "w") as archive:
        archive.writestr("README.md", "a card")
    monkeypatch.setattr(ReleasesOnThisMachine, "export", lambda self, round: pack.getvalue())
    answer = console.browser("vera").get(f"/releases/{console.id_of('first')}/2.zip")
    assert answer.content == pack.getvalue()
    assert answer.headers["content-disposition"].endswith('-round-2.zip"')
    assert console.outcomes("download an adapter") == ["done"]

    def fails(self: ReleasesOnThisMachine, round: int) -> bytes:
        raise ConsoleError("the model is gone")

    monkeypatch.setattr(ReleasesOnThisMachine, "export", fails)
    answer = console.browser("vera").get(f"/releases/{console.id_of('first')}/2.zip")
    assert answer.status_code == 500
    assert "the model is gone" in answer.text
    assert console.outcomes("download an adapter")[0] == "failed: the model is gone"


# --- charts and words -----------------------------------------------------------------------------


def test_a_chart_says_what_it_shows() -> None:
    drawn = charts.lines(
        [charts.Series("<b>", [(1, 0.5), (2, None), (3, 0.75)])], title="Fleet", text=lambda y: f"{y:.0%}"
    )
    assert 'aria-label="Fleet. &lt;b&gt;: 50% at 1, 75% at 3."' in drawn
    assert drawn.count("<svg") == 2  # at a desk and on a phone
    assert "style=" not in drawn
    assert "<b>" not in drawn


def test_a_long_line_is_thinned_and_keeps_its_end() -> None:
    points = [(float(i), float(i)) for i in range(1, 1001)]
    thinned = line_chart._thinned(points)
    assert len(thinned) <= charts.POINTS
    assert (thinned[-1].first, thinned[-1].x, thinned[-1].y) == (1000.0, 1000.0, 1000.0)
    assert [(point.x, point.y) for point in line_chart._thinned(points[:100])] == points[:100]


def test_a_point_that_stands_for_many_rounds_says_so_and_keeps_what_one_of_them_lost() -> None:
    lost = [(float(i), 300.0 if i == 1000 else 0.0) for i in range(1, 3901)]
    drawn = charts.lines([charts.Series("lost", lost)], title="Lost", text=lambda y: f"{y:g}", zero=True)
    (said,) = re.findall(
        r"<title>round ([0-9–]+)\nmean 12, least 0, most 300</title>", drawn.split("</svg>")[0]
    )
    first, last = map(int, said.split("–"))
    assert (first <= 1000 <= last, last - first) == (True, 24)
    assert '<polygon class="band b1"' in drawn
    assert ">300</text>" in drawn  # the axis reaches the peak
    few = charts.lines([charts.Series("lost", lost[:100])], title="Lost", text=lambda y: f"{y:g}")
    assert "<title>round 100\n0</title>" in few
    assert "polygon" not in few
    assert charts.spark([y for _, y in lost], "lost").count(",3.0") == 1  # at the top of it


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0.5, 0.5), (0.01, 0.99), (-3, 1e6), (7, 7.0001), (0, 4)])
def test_ticks_enclose_what_they_measure(low: float, high: float) -> None:
    ticks = ticks_of(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize(
    ("say", "value", "text"),
    [
        (wording.size, 0, "0 B"),
        (wording.size, 999_999, "1000 kB"),
        (wording.size, 1_300_000, "1.3 MB"),
        (wording.duration, 0.0213, "21 ms"),
        (wording.duration, 61, "1 min 1 s"),
        (wording.duration, 90_000, "1 d 1 h"),
        (wording.percent, 0.5, "50.0%"),
        (wording.whole, 1_234_567, "1 234 567"),
        (wording.percent, None, "–"),
    ],
)
def test_numbers_have_units(say: Callable[[Any], str], value: Any, text: str) -> None:
    assert say(value).replace("\u202f", " ") == text


# --- figures to take along ------------------------------------------------------------------------------


def test_the_rounds_of_a_run_are_had_as_csv(console: Console) -> None:
    make_run(console.runs / "first", 3)
    answer = console.browser("vera").get(f"/runs/{console.id_of('first')}/rounds.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["round"], row["phase"], row["asked"], row["in_sum"], row["lost"]) for row in rows] == [
        (str(number), "main", "34", "33", "1") for number in (1, 2, 3)
    ]
    # What round 2 measures is of the factors that it began with: those after round 1.
    expected = [str(log(2).val_accuracy), str(log(3).val_accuracy), ""]
    assert [row["val_accuracy_after"] for row in rows] == expected
    assert console.browser("vera").get("/runs/nobody/rounds.csv").status_code == 404


def test_a_stage_after_which_an_attempt_failed_is_not_shown_as_done(console: Console) -> None:
    """All three answered, and all three refused: three answers are no success."""
    directory = make_run(console.runs / "first", 0)
    with closing(Journal(directory)) as journal:
        journal.begin(1, "main")
        journal.stage(1, 1, "keys", 3)
        journal.answered(1, 1, "keys", 3, over=True)
        journal.fail(1, 1, "3 said POLICY")
    page = console.browser("vera").get(f"/runs/{console.id_of('first')}").text
    assert '<li class="halted"><span class="name">Keys' in page
