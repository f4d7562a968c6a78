"""Each page and each act, for accounts that have one role here and another, or none, there."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.console_scene import CHEAP, HOST, PASSWORD, Browser, Console, form_of, make_run
from support.fleet_directory import make_served_run, make_server

from penchant.common.errors import UsageError
from penchant.deploy.console.fleet import FleetOnThisMachine
from penchant.deploy.console.local import OperationsOnThisMachine, fleet_id
from penchant.deploy.console.releases import ReleasesOnThisMachine
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.app import ACTIONS, LIVE, PAGES, build_app
from penchant.server.console.rights import ROLES, Rights, Role
from penchant.server.console.views.overview import PUT_AWAY
from penchant.server.console.watch import Watch
from penchant.server.journal import Journal
from penchant.server.monitoring.fleet import FleetStatus

ROUTES = [("GET", path, role) for path, _, role in PAGES]
ROUTES += [("POST", path, role) for path, _, _, role in ACTIONS]
NAMED = [route for route in ROUTES if "{id}" in route[1]]
OF_FLEETS = ("/devices/", "/queue/", "/hold", "/all", "/sign")
PLACES = ("here", "north", "south")
HAVE: dict[str, dict[str, Role]] = {
    "nora": {"here": "none", "north": "operator", "south": "none"},
    "vic": {"here": "viewer", "north": "operator", "south": "none"},
    "oz": {"here": "operator", "north": "operator", "south": "viewer"},
    "olga": {"here": "operator", "north": "operator", "south": "operator"},
    "vera": {"here": "viewer", "north": "viewer", "south": "viewer"},
}
UNNAMED = {"nora": "none", "vic": "viewer", "oz": "operator"}


class Fleets(Console):
    """A run on this machine, and two fleets with one each; accounts as `HAVE` says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_run(self.runs / "run-here")
        self.servers = {}
        for name in ("north", "south"):
            (folder / "made" / name).mkdir(parents=True)
            server = make_server(folder / "made" / name)
            server.path.rename(self.runs / name)
            self.servers[name] = type(server)(self.runs / name)
            make_served_run(self.servers[name], f"run-{name}")
        for name, elsewhere in UNNAMED.items():
            there = {
                place: role for place, role in HAVE[name].items() if place != "here" and role != elsewhere
            }
            roles = {fleet_id(self.runs / place): role for place, role in there.items()}
            self.store.add(name, elsewhere, PASSWORD, roles)
        self.browsers = {name: self.browser(name) for name in HAVE}

    def path(self, path: str, place: str) -> str:
        """The route's path, about the run or the fleet of a place."""
        fleet = any(part in path for part in OF_FLEETS)
        wanted = fleet_id(self.runs / place) if fleet else self.id_of(f"run-{place}")
        return (
            path.replace("{id}", wanted)
            .replace("{round}", "2")
            .replace("{file}", "accuracy.csv")
            .replace("{token}", "0a")
            .replace("{member}", "1")
        )


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleets]:
    made = Fleets(tmp_path_factory.mktemp("fleets"))
    yield made
    made.store.close()


def asked(browser: Browser, method: str, path: str) -> tuple[int, str]:
    answer = browser.get(path) if method == "GET" else browser.post(path, {"number": "1"})
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    "path", [path for _, path, _ in ROUTES[: len(PAGES)] if "{" not in path and "." not in path]
)
def test_a_page_about_everything_shows_what_one_may_see(fleets: Fleets, path: str) -> None:
    for name, have in HAVE.items():
        answer = fleets.browsers[name].get(path)
        assert answer.status_code in (200, 403)
        for place in PLACES:
            if have[place] == "none":
                assert f"run-{place}" not in answer.text, (name, place)
                assert fleet_id(fleets.runs / "south") not in answer.text or place != "south", (name, place)


@pytest.mark.parametrize(("method", "path", "role"), NAMED, ids=lambda value: str(value))
def test_a_route_about_a_place_is_held_to_the_role_there(
    fleets: Fleets, monkeypatch: pytest.MonkeyPatch, method: str, path: str, role: Role
) -> None:
    for act in ("stop", "resume", "delete"):
        monkeypatch.setattr(OperationsOnThisMachine, act, lambda self, location: None)
    monkeypatch.setattr(ReleasesOnThisMachine, "export", lambda self, round: b"zip")  # each is a process
    fleet = any(part in path for part in OF_FLEETS)
    for name, have in HAVE.items():
        for place in PLACES[1:] if fleet else PLACES:
            status, text = asked(fleets.browsers[name], method, fleets.path(path, place))
            case = (name, place, status, text[-400:])
            if ROLES.index(have[place]) >= ROLES.index(role):
                assert status != 403, case
                assert "There is no such" not in text, case
            elif have[place] == "none":
                assert status == 404, case
                assert f"run-{place}" not in text, case
            else:
                assert (status, "for operators" in text) == (403, True), case


def test_a_notice_of_a_fleet_is_put_away_by_nobody_elsewhere(tmp_path: Path) -> None:
    """Two fleets with a run of the same name, which failed at the same moment: each notice is its own."""
    scene = Fleets(tmp_path)
    for server in scene.servers.values():
        directory = make_served_run(server, "spring", 0, **{"federation.attempts": 1})
        with closing(Journal(directory)) as journal:
            journal.begin(1, "main")
            journal.fail(1, 1, "3 said POLICY")
        with closing(sqlite3.connect(directory / "journal.db")) as db, db:
            db.execute("UPDATE rounds SET started = ?", (int(time.time()) - 60,))
    found = scene.operations.locations()
    ids = {
        place: next(one.id for one in found if one.directory == server.run("spring"))
        for place, server in scene.servers.items()
    }
    puts = {place: f"/runs/{id}/notice" for place, id in ids.items()}
    nora, olga = scene.browsers["nora"], scene.browsers["olga"]
    page = olga.get("/").text
    keys = {place: form_of(page, put)["notice"] for place, put in puts.items()}
    assert nora.post(puts["south"], {"notice": keys["south"]}).status_code == 404
    assert nora.post(puts["north"], {"notice": keys["south"]}).status_code == 409
    assert nora.post(puts["north"], {"notice": keys["north"]}).status_code == 303
    page = olga.get("/").text
    assert puts["south"] in page
    assert puts["north"] not in page
    # a line of before, or of somebody's own making, that names the notice under another run
    scene.store.note("nora", "", PUT_AWAY, ids["north"], "done", f"notice: {keys['south']}")
    assert puts["south"] in olga.get("/").text
    scene.store.close()


@pytest.mark.parametrize("path", ["/devices", "/privacy", "/releases", "/runs/compare"])
def test_a_query_names_nothing_that_one_may_not_see(fleets: Fleets, path: str) -> None:
    for name, have in HAVE.items():
        for place in PLACES:
            status, text = asked(fleets.browsers[name], "GET", f"{path}?run={fleets.id_of(f'run-{place}')}")
            assert status == (404 if have[place] == "none" else 200), (name, place, text[-300:])


def test_a_run_begins_only_where_one_may_act(fleets: Fleets, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(
        OperationsOnThisMachine, "start", lambda self, name, toml, fleet, turn: begun.append(fleet)
    )
    for name, have in HAVE.items():
        for place in PLACES:
            where = "" if place == "here" else fleet_id(fleets.runs / place)
            before = len(begun)
            answer = fleets.browsers[name].post(
                "/runs/new", {"name": "new", "where": where, "config": "seed = 1"}
            )
            if have[place] == "operator":
                continue  # it may be refused for another reason: a fleet of nobody can't run anything
            assert answer.status_code in (403, 404, 422), (name, place)
            assert len(begun) == before, (name, place)
    form = fleets.browsers["oz"].get("/runs/new").text
    assert fleet_id(fleets.runs / "north") in form
    assert fleet_id(fleets.runs / "south") not in form, "a viewer there can start nothing there"


@pytest.mark.parametrize(
    "served",
    [
        ["all"],
        ["all/north"],
        ["all/current"],
        ["above/north"],
        ["all/north/runs"],
        ["all/north/runs/run-north"],
        ["all/current/runs/run-north"],
        ["runs-of-north"],
        ["elsewhere", "all"],
    ],
    ids=str,
)
@pytest.mark.parametrize("runs_are", ["in the server", "behind a link"])
def test_a_fleet_is_the_same_however_its_path_is_written(
    tmp_path: Path, served: list[str], runs_are: str
) -> None:
    """A role that was taken away on a fleet is away by each way to it."""
    (tmp_path / "all").mkdir()
    server = make_server(tmp_path / "all")
    north = server.path.rename(tmp_path / "all" / "north")
    (tmp_path / "all" / "authority").rename(tmp_path / "authority")
    make_served_run(type(server)(north), "run-north")
    if runs_are == "behind a link":
        (north / "runs").rename(tmp_path / "disk")
        (north / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "elsewhere").mkdir()
    for link, target in (
        ("all/current", "north"),
        ("all/again", "north/runs/run-north"),
        ("above", "all"),
        ("runs-of-north", "all/north/runs"),
        ("elsewhere/run", "../all/north/runs/run-north"),
    ):
        (tmp_path / link).symlink_to(target)
    spelled = ("all/north", "all/current", "above/north", "all/north/../current", "all/north/runs/..")
    assert {fleet_id(tmp_path / one) for one in spelled[: 4 if runs_are == "behind a link" else 5]} == {
        fleet_id(north)
    }
    store = ConsoleStore(tmp_path / "state", CHEAP)
    store.add("nora", "operator", PASSWORD, {fleet_id(north): "none"})
    store.add("olga", "operator", PASSWORD)
    operations = OperationsOnThisMachine([tmp_path / one for one in served], store)
    app = build_app(store, operations, hosts=frozenset({HOST}))
    (run,) = operations.locations()
    if not (runs_are == "behind a link" and served == ["runs-of-north"]):  # it names no fleet at all
        assert Browser(app, "nora").get(f"/runs/{run.id}").status_code == 404
        fleet = operations.fleet_of(run)
        assert fleet is not None
        assert fleet.id == fleet_id(north)
    assert Browser(app, "olga").get(f"/runs/{run.id}").status_code == 200
    store.close()


def test_a_form_is_checked_only_for_a_place_where_one_may_act(fleets: Fleets) -> None:
    said = fleets.browsers["nora"].post("/runs/check", {"name": "new", "where": "", "config": "seed = 1"})
    assert "for operators" in said.text


def test_the_audit_tells_of_fleets_that_one_may_see_and_of_oneself(fleets: Fleets) -> None:
    for place in ("north", "south"):
        fleets.browsers["olga"].post(
            fleets.path("/devices/{id}/tokens", place), {"label": place, "days": "1"}
        )
    fleets.browsers["nora"].post(fleets.path("/devices/{id}/tokens", "south"), {"label": "mine", "days": "1"})
    seen = {}
    for name in ("nora", "vic", "olga"):
        lines = fleets.browsers[name].get("/audit.jsonl?action=hand+out+a+token").text
        seen[name] = ("label: north" in lines, "label: south" in lines)
        assert seen[name][0] == ("label: north" in fleets.browsers[name].get("/audit").text)
    assert seen == {"nora": (True, False), "vic": (True, False), "olga": (True, True)}
    own = fleets.browsers["nora"].get("/audit?account=nora").text
    assert "refused" in own


@pytest.mark.parametrize("what", ["a round", "a line of the audit", "who belongs to the fleet", "a new run"])
def test_what_one_may_not_see_makes_no_page_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A page that lies open says by its mark whether something has happened: only of what it may show."""
    now = [0.0]
    monkeypatch.setattr(Watch.__init__, "__defaults__", (lambda: now[0],))
    monkeypatch.setattr(FleetOnThisMachine, "link", lambda self: FleetStatus("silent"))  # asks in a thread
    console = Fleets(tmp_path)
    south = console.servers["south"]
    marks = {}
    paths = sorted(path for path in LIVE if "{" not in path)
    for _ in range(2):  # the first visits make files of the fleets' own
        now[0] += 5
        for name in ("nora", "vic", "olga"):
            for path in paths:
                found = re.search(r'data-mark="(\w+)"', console.browsers[name].get(path).text)
                assert found is not None
                marks[name, path] = found[1]
    if what == "a round":
        journal = Journal(south.run("run-south"))
        journal.begin(4, "main")
        journal.close()
    if what == "a line of the audit":
        console.store.note("olga", "", "stop a run", "run-south", fleet=fleet_id(south.path))
    if what == "who belongs to the fleet":
        os.utime(south.path / "members.list", (1, 1))
    if what == "a new run":
        make_served_run(south, "another")
    now[0] += 5
    other = {
        key: console.browsers[key[0]].get(key[1], headers={"x-penchant-mark": mark}).status_code == 200
        for key, mark in marks.items()
    }
    assert {key for key, is_other in other.items() if is_other} == {key for key in marks if key[0] == "olga"}
    console.store.close()


def test_a_role_changes_with_the_next_click(tmp_path: Path) -> None:
    console = Console(tmp_path)
    browser = console.browser("vera")
    assert browser.get("/runs/new").status_code == 403
    console.store.give_role("vera", "operator", {})
    assert browser.get("/runs/new").status_code == 200
    console.store.give_role("vera", "none", {})
    answer = browser.get("/runs")
    assert (answer.status_code, "no role here" in answer.text) == (403, True)
    assert browser.get("/account").status_code == 200
    console.store.close()


def test_roles_that_there_are_not_are_refused_and_change_nothing(tmp_path: Path) -> None:
    store = ConsoleStore(tmp_path, CHEAP)
    store.add("vera", "viewer", PASSWORD, {"north-1": "operator"})
    for role, fleets in (("admin", {}), ("viewer", {"north-1": "root"})):
        with pytest.raises(UsageError, match="a role is one of none, viewer, operator"):
            store.give_role("vera", role, fleets)
        with pytest.raises(UsageError, match="a role is one of"):
            store.add("other", role, PASSWORD, fleets)
    with pytest.raises(UsageError, match="there is no account 'nobody'"):
        store.give_role("nobody", "viewer", {})
    store.give_role("vera", None, {"south-1": "none"})
    (account,) = store.accounts()
    assert account.rights == Rights("viewer", {"north-1": "operator", "south-1": "none"})


@pytest.mark.parametrize("elsewhere", ROLES)
@pytest.mark.parametrize("there", ROLES)
def test_who_may_what(elsewhere: Role, there: Role) -> None:
    rights = Rights(elsewhere, {"north": there})
    for role in ROLES:
        assert rights.may(role, "north") == (ROLES.index(there) >= ROLES.index(role))
        assert rights.may(role) == rights.may(role, "south") == (ROLES.index(elsewhere) >= ROLES.index(role))
        assert rights.may_anywhere(role) == (rights.may(role) or rights.may(role, "north"))
