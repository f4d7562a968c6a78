"""Nobody in without a session, nothing done without the right, no form from elsewhere."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.console_scene import CHEAP, HOST, PASSWORD, Browser, Console, make_run

from penchant.common.errors import UsageError
from penchant.deploy.cli.listening import reachable_as
from penchant.deploy.console.local import OperationsOnThisMachine
from penchant.server.console import accounts, passwords
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.app import ACTIONS, LIVE, PAGES, build_app
from penchant.server.console.requests import LOGINS

HOSTILE = "\"><img src=x onerror=alert(1)>{{7*7}}</script>'&"


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path)
    make_run(made.runs / "first")
    yield made
    made.close()
    made.store.close()


def filled(path: str, console: Console) -> str:
    return path.replace("{id}", console.id_of("first")).replace("{round}", "2").replace("{token}", "0a")


PAGE_PATHS = [path for path, _, _ in PAGES]
OPERATORS_PAGES = [path for path, _, role in PAGES if role == "operator"]
ACTION_PATHS = [path for path, *_ in ACTIONS]
OPERATORS_ACTIONS = [path for path, _, _, role in ACTIONS if role == "operator"]
NAMES = {path: name for path, _, name, _ in ACTIONS}


# --- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGE_PATHS)
def test_no_page_without_a_session(console: Console, path: str) -> None:
    answer = console.browser().get(filled(path, console))
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")
    assert "first" not in answer.text


@pytest.mark.parametrize("path", sorted(LIVE))
def test_no_page_is_sent_again_without_a_session(console: Console, path: str) -> None:
    answer = console.browser().get(filled(path, console), headers={"x-penchant-mark": ""})
    assert (answer.status_code, answer.text) == (401, "")


@pytest.mark.parametrize("path", [*ACTION_PATHS, "/runs/check", "/logout"])
def test_no_action_without_a_session(console: Console, path: str) -> None:
    before = fingerprint(console)
    browser = console.browser()
    answer = browser.client.post(filled(path, console), data={"csrf": browser.token("/login")})
    assert answer.status_code in (303, 401)
    assert fingerprint(console) == before


@pytest.mark.parametrize("path", OPERATORS_PAGES)
def test_a_viewer_is_not_shown_what_operators_do(console: Console, path: str) -> None:
    answer = console.browser("vera").get(filled(path, console))
    assert answer.status_code == 403
    assert "for operators" in answer.text


ELSEWHERE = (
    "zip",
    "csv",
    "jsonl",
    "/members/",
    "/charts/",
    "/account",
)  # downloads, one's own account, and a page that only fleets have: tests/deploy


@pytest.mark.parametrize(
    "path",
    [p for p in PAGE_PATHS if p not in OPERATORS_PAGES and not any(word in p for word in ELSEWHERE)],
)
def test_a_viewer_sees_pages_without_a_single_button_that_acts(console: Console, path: str) -> None:
    answer = console.browser("vera").get(filled(path, console))
    assert answer.status_code == 200
    forms = re.findall(r'<form[^>]*method="post"[^>]*action="([^"]+)"', answer.text)
    assert forms == ["/logout"]


@pytest.mark.parametrize("path", OPERATORS_ACTIONS)
def test_a_viewer_can_do_nothing_and_it_is_on_record(console: Console, path: str) -> None:
    before = fingerprint(console)
    answer = console.browser("vera").post(
        filled(path, console), {"name": "new", "config": "", "confirm": "first"}
    )
    assert answer.status_code == 403
    assert fingerprint(console) == before
    assert console.outcomes(NAMES[path])[0] == "refused: not an operator"


@pytest.mark.parametrize("forged", ["", "0" * 64, "é"])
@pytest.mark.parametrize("path", ACTION_PATHS)
def test_a_forged_form_does_nothing_and_it_is_on_record(console: Console, path: str, forged: str) -> None:
    before = fingerprint(console)
    form = {"csrf": forged, "confirm": "first", "round": "2", "name": "new", "config": ""}
    answer = console.browser("olga").client.post(filled(path, console), data=form)
    assert answer.status_code == 403
    assert fingerprint(console) == before
    assert console.outcomes(NAMES[path])[0].startswith("refused: the form was forged")


def test_a_form_of_another_session_is_forged(console: Console) -> None:
    other = console.browser("olga").token()
    answer = console.browser("olga").client.post(
        f"/runs/{console.id_of('first')}/delete", data={"csrf": other, "confirm": "first"}
    )
    assert answer.status_code == 403
    assert (console.runs / "first").is_dir()


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": f"https://{HOST}"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_form_from_another_site_is_refused_before_anything(
    console: Console, headers: dict[str, str]
) -> None:
    browser = console.browser("olga")
    answer = browser.post(f"/runs/{console.id_of('first')}/delete", {"confirm": "first"}, headers=headers)
    assert answer.status_code == 403
    assert (console.runs / "first").is_dir()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:80", "localhost:8900", ""])
def test_another_host_is_not_answered(console: Console, host: str) -> None:
    answer = console.browser("olga").get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "first" not in answer.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9000", 200),
        ("localhost:1", 200),
        ("[::1]:65535", 200),
        ("evil.example:9000", 421),
        ("127.0.0.1", 421),
        ("127.0.0.1:", 421),
        ("127.0.0.1:9000:9000", 421),
        ("127.0.0.1:*", 421),
        ("127.0.0.1.evil.example:9000", 421),
    ],
)
def test_a_tunnel_has_a_port_of_its_own(tmp_path: Path, host: str, status: int) -> None:
    hosts, https = reachable_as("the console", "127.0.0.1", 8900, (None, None), tunnels=True)
    store = ConsoleStore(tmp_path / "state", CHEAP)
    app = build_app(store, OperationsOnThisMachine([], store), hosts=hosts, https=https)
    assert Browser(app).get("/login", headers={"host": host}).status_code == status
    store.close()


def test_a_form_through_a_tunnel_is_of_the_tunnels_origin(tmp_path: Path) -> None:
    hosts, https = reachable_as("the console", "127.0.0.1", 8900, (None, None), tunnels=True)
    store = ConsoleStore(tmp_path / "state", CHEAP)
    store.add("olga", "operator", PASSWORD)
    app = build_app(store, OperationsOnThisMachine([], store), hosts=hosts, https=https)
    browser = Browser(app, "olga", base="http://localhost:9000")
    for origin, status in (("http://localhost:9001", 403), ("http://localhost:9000", 303)):
        assert browser.post("/logout", headers={"origin": origin}).status_code == status
    store.close()


def test_what_is_not_there_or_broke_is_said_on_a_page_that_tells_nothing_else(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.operations, "locations", lambda: 1 // 0)
    for browser in (console.browser(), console.browser("olga")):
        for path, method, status in (("/nowhere", "GET", 404), ("/runs", "DELETE", 405)):
            answer = browser.client.request(method, path)
            assert answer.status_code == status
            assert 'href="/"' in answer.text
    answer = browser.get("/runs")
    assert answer.status_code == 500
    assert "Something broke here" in answer.text
    assert "division" not in answer.text


def test_a_get_changes_nothing(console: Console) -> None:
    browser = console.browser("olga")
    before = fingerprint(console)
    for path in ACTION_PATHS:
        answer = browser.get(filled(path, console))
        assert answer.status_code in (200, 405), path
    assert fingerprint(console) == before


def fingerprint(console: Console) -> list[str]:
    """All files but what SQLite puts beside a journal that is being read."""
    found = (path.relative_to(console.runs).as_posix() for path in console.runs.rglob("*"))
    return sorted(path for path in found if not path.endswith(("-shm", "-wal")))


# --- sessions -------------------------------------------------------------------------------------


def test_cookies_are_for_the_browser_alone(console: Console, tmp_path: Path) -> None:
    answer = console.browser().login("olga")
    cookie = next(c for c in answer.headers.get_list("set-cookie") if c.startswith("penchant="))
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie  # loopback, in clear
    (tmp_path / "other").mkdir()
    browser = Browser(Console(tmp_path / "other", https=True).app, base=f"https://{HOST}")
    secure = [
        c for c in browser.login("olga").headers.get_list("set-cookie") if c.startswith("__Host-penchant=")
    ]
    assert "Secure" in secure[0]
    assert "HttpOnly" in secure[0]
    assert browser.get("/").headers["strict-transport-security"].startswith("max-age=")


def test_a_session_ends_at_logout_at_a_new_password_and_with_its_account(console: Console) -> None:
    for end in (
        lambda browser: browser.post("/logout"),
        lambda browser: console.store.passwd("olga", "another horse battery"),
        lambda browser: console.store.remove("olga"),
    ):
        console.store.passwd("olga", PASSWORD)
        browser = console.browser("olga")
        token = browser.client.cookies["penchant"]
        end(browser)
        browser.client.cookies.set("penchant", token)
        assert browser.get("/").status_code == 303


def test_a_session_ends_by_itself(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = console.browser("olga")
    assert browser.get("/").status_code == 200
    monkeypatch.setattr(accounts, "IDLE_SECONDS", 0.0)
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize("token", ["", "x", "../../etc", "a" * 5000, "é"])
def test_a_made_up_session_is_none(console: Console, token: str) -> None:
    browser = console.browser()
    answer = browser.get("/", headers={"cookie": f"penchant={token}".encode()})
    assert answer.status_code == 303


def test_login_needs_its_own_form(console: Console) -> None:
    browser = console.browser()
    form = {"name": "olga", "password": PASSWORD, "csrf": "0" * 64}
    assert browser.client.post("/login", data=form).status_code == 403
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize(
    "after", ["https://evil.example", "//evil.example", "/\\evil.example", "/x\nSet-Cookie: a=b"]
)
def test_login_leads_nowhere_else(console: Console, after: str) -> None:
    assert console.browser().login("olga", next=after).headers["location"] == "/"


def test_wrong_names_and_passwords_are_answered_alike(console: Console) -> None:
    answers = [console.browser().login(name, "wrong horse battery") for name in ("olga", "nobody", HOSTILE)]
    assert {answer.status_code for answer in answers} == {401}
    texts = {re.sub(r'value="[^"]*"', "", answer.text) for answer in answers}
    assert len(texts) == 1


def test_logging_in_is_slowed_down(console: Console) -> None:
    browser = console.browser()
    for _ in range(accounts.TRIES):
        assert browser.login("olga", "wrong horse battery").status_code == 401
    refused = browser.login("olga", PASSWORD)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= accounts.WINDOW_SECONDS + 1
    assert browser.login("vera").status_code == 303  # another account is not shut out
    assert console.outcomes("log in")[:2] == ["done", "refused: too many tries"]


def test_many_tries_at_once_are_no_more_than_one_after_another(console: Console) -> None:
    """None of them is looked at before all are counted."""
    place = console.store.place_of("olga", "10.0.0.1")
    waits = [console.store.admit("olga", place) for _ in range(2 * accounts.TRIES)]
    assert [wait > 0 for wait in waits] == [False] * accounts.TRIES + [True] * accounts.TRIES


def test_one_address_can_not_try_all_accounts(console: Console) -> None:
    browser = console.browser()
    for number in range(accounts.TRIES_NETWORK):
        browser.login(f"guess{number}", "wrong horse battery")
    assert browser.login("vera").status_code == 429


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


def test_each_try_too_many_doubles_the_wait(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(accounts, "time", clock)
    waits = []
    for _ in range(accounts.TRIES + 8):
        place = console.store.place_of("olga", "10.0.0.1")
        wait = console.store.admit("olga", place)
        if wait > 0:
            waits.append(round(wait))
            clock.now += wait
            assert console.store.admit("olga", place) == 0.0
    assert waits[:6] == [15, 30, 60, 120, 240, 480]
    assert set(waits[6:]) == {900}


def flood(console: Console, name: str, tries: int = 3 * accounts.TRIES_ACCOUNT) -> int:
    """Strangers all over the world guess at one account; -> how many of their tries were looked at."""
    places = [console.store.place_of(name, f"198.51.{n // 250}.{n % 250}") for n in range(tries)]
    return [console.store.admit(name, place) for place in places].count(0.0)


def test_strangers_elsewhere_can_not_shut_the_operator_out(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the address where they were let in before, without a cookie, in the first try."""
    monkeypatch.setattr("penchant.server.console.entrance.address_of", lambda request: "192.0.2.1")
    console.browser("olga")
    assert flood(console, "olga") == accounts.TRIES_ACCOUNT
    assert console.browser().login("olga").status_code == 303
    monkeypatch.setattr("penchant.server.console.entrance.address_of", lambda request: "203.0.113.9")
    stranger = console.browser().login("olga")
    assert (stranger.status_code, int(stranger.headers["retry-after"]) > 0) == (429, True)


def test_strangers_at_the_same_address_can_not_shut_a_known_browser_out(console: Console) -> None:
    """As behind a proxy, where all the world has one address; sessions go on as well."""
    mine = console.browser("olga")
    open_elsewhere = console.browser("olga")
    mine.post("/logout")
    for _ in range(2 * accounts.TRIES_NETWORK):
        console.browser().login("olga", "wrong horse battery")
    assert console.browser().login("olga").status_code == 429
    assert open_elsewhere.get("/").status_code == 200
    assert mine.login("olga").status_code == 303


def test_a_known_browser_may_not_guess_any_more_than_others(console: Console) -> None:
    mine = console.browser("olga")
    mine.post("/logout")
    for _ in range(accounts.TRIES):
        assert mine.login("olga", "wrong horse battery").status_code == 401
    assert mine.login("olga").status_code == 429


def test_the_cookie_of_a_known_browser_lets_nobody_in_and_is_for_one_account(console: Console) -> None:
    mine = console.browser("olga")
    device = mine.client.cookies["penchant-device"]
    assert console.store.session(device) is None
    assert console.store.place_of("olga", "10.9.9.9", device).own
    assert not console.store.place_of("vera", "10.9.9.9", device).own
    assert not console.store.place_of("nobody", "10.9.9.9", device).own


def test_an_ipv6_network_is_one_stranger(console: Console) -> None:
    places = [console.store.place_of("olga", f"2001:db8:1:2::{n:x}") for n in range(2 * accounts.TRIES)]
    assert [console.store.admit("olga", place) for place in places].count(0.0) == accounts.TRIES


def test_a_flood_of_logins_leaves_places_for_those_who_are_known(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at a password takes memory, time and a thread."""
    mine = console.browser("olga")
    mine.post("/logout")
    began, go = threading.Semaphore(0), threading.Event()
    original = passwords.check

    def slow(password: str, kept: str) -> bool:
        if password == "a stranger's":
            began.release()
            assert go.wait(60)
        return original(password, kept)

    monkeypatch.setattr(passwords, "check", slow)
    addresses = iter(f"198.51.100.{n}" for n in range(100))
    monkeypatch.setattr(
        "penchant.server.console.entrance.address_of",
        lambda request: "192.0.2.1" if "penchant-device" in request.cookies else next(addresses),
    )
    with ThreadPoolExecutor(LOGINS) as pool:
        answers = [pool.submit(console.browser().login, "vera", "a stranger's") for _ in range(LOGINS)]
        try:
            assert all(began.acquire(timeout=60) for _ in range(LOGINS))
            refused = console.browser().login("vera")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert mine.login("olga").status_code == 303
        finally:
            go.set()
        assert {answer.result().status_code for answer in answers} == {401}


def test_the_audit_is_not_flooded_by_those_who_are_slowed_down(console: Console) -> None:
    browser = console.browser()
    for _ in range(4 * accounts.TRIES):
        browser.login("olga", "wrong horse battery")
    assert console.outcomes("log in").count("refused: too many tries") == 1


# --- downloads ------------------------------------------------------------------------------------


def test_downloads_at_the_same_time_are_few(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each starts a process: one for each session, two for all, and the next is told when to come again."""
    began, go, running = threading.Semaphore(0), threading.Event(), []

    class Slow:
        def export(self, round: int) -> bytes:
            running.append(round)
            began.release()
            assert go.wait(60)
            return b"zip"

    monkeypatch.setattr(console.operations, "releases", lambda place: Slow())
    path = f"/releases/{console.id_of('first')}/2.zip"
    first, second, third = console.browser("olga"), console.browser("vera"), console.browser("vera")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.get, path)
        try:
            assert began.acquire(timeout=60)
            again = Browser(console.app)
            again.client.cookies.update(first.client.cookies)
            mine = again.get(path)
            assert (mine.status_code, mine.headers["retry-after"]) == (429, "10")
            two = pool.submit(second.get, path)
            assert began.acquire(timeout=60)
            others = third.get(path)
            assert (others.status_code, others.headers["retry-after"]) == (503, "10")
            assert len(running) == 2
        finally:
            go.set()
        assert [one.result().status_code, two.result().status_code] == [200, 200]
    assert third.get(path).content == b"zip"  # the places are free again


def test_a_download_that_fails_gives_its_place_back(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, path = console.browser("vera"), f"/releases/{console.id_of('first')}/2.zip"
    monkeypatch.setattr(console.operations, "releases", lambda place: 1 // 0)
    assert [browser.get(path).status_code for _ in range(3)] == [500] * 3


def test_tries_are_forgotten(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = console.browser()
    for _ in range(accounts.TRIES):
        browser.login("olga", "wrong horse battery")
    monkeypatch.setattr(accounts, "WINDOW_SECONDS", 0.0)
    assert browser.login("olga").status_code == 303


# --- what comes out -------------------------------------------------------------------------------


def test_every_answer_carries_the_strict_policy(console: Console) -> None:
    browser = console.browser("olga")
    for path in ["/", "/login", "/nothing", "/static/console.css", "/static/../app.py", "/healthz"]:
        policy = browser.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
    assert browser.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", [path for path in PAGE_PATHS if "zip" not in path])
def test_pages_hold_no_inline_script_or_style(console: Console, path: str) -> None:
    text = console.browser("olga").get(filled(path, console)).text
    assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
    assert re.findall(r"<style", text) == []
    assert re.findall(r"<[^>]+\s(?:style|on\w+)=", text) == []
    assert re.findall(r"""(?:src|href)=["'](?:https?:)?//""", text) == []


def test_hostile_names_are_text(console: Console, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "∕")
    make_run(console.runs / name, 2)
    for path in PAGE_PATHS:
        if "zip" in path:
            continue
        wanted = path.replace("{id}", console.id_of(name))
        text = console.browser("olga").get(wanted + "?run=" + console.id_of(name)).text
        assert "<img src=x" not in text, path
        assert "49" not in re.findall(r"alert\(1\)&gt;(.{2})", text), path


@pytest.mark.parametrize("field", ["name", "confirm", "member", "round", "number", "label", "why", "days"])
def test_hostile_fields_are_text(console: Console, field: str) -> None:
    browser = console.browser("olga")
    for path in ACTION_PATHS:
        answer = browser.post(filled(path, console), {field: HOSTILE, "config": HOSTILE})
        assert answer.status_code in (303, 403, 404, 409, 410, 422), (path, answer.status_code)
        assert "<img src=x" not in answer.text
    assert "<img src=x" not in browser.get("/audit").text
    assert "&lt;img src=x" in browser.get("/audit").text


@pytest.mark.parametrize(
    "wanted", ["%2e%2e", "../../etc/passwd", "..%2f..%2fetc", "first", "%00", "a" * 3000, HOSTILE]
)
def test_an_id_is_looked_up_and_never_a_path(console: Console, wanted: str) -> None:
    browser = console.browser("olga")
    for path in (f"/runs/{wanted}", f"/devices?run={wanted}", f"/releases/{wanted}/1.zip"):
        answer = browser.get(path)
        assert answer.status_code == 404, path
        assert "root:" not in answer.text


@pytest.mark.parametrize("name", ["../out", "/tmp/out", ".hidden", "a/b", "", "a" * 65, "a\nb/", HOSTILE])
def test_a_new_run_lands_in_its_folder_or_nowhere(console: Console, name: str, tmp_path: Path) -> None:
    before, beside = fingerprint(console), sorted(tmp_path.iterdir())
    answer = console.browser("olga").post("/runs/new", {"name": name, "config": "seed = 1"})
    assert answer.status_code in (400, 422)
    assert fingerprint(console) == before
    assert sorted(tmp_path.iterdir()) == beside


@pytest.mark.parametrize(
    "config",
    [
        '[data]\ndataset = "/etc/passwd"',
        '[data]\ndataset = "movielens:/etc"',
        '[data]\ndataset = "owner/name"',
        '[model]\nbase_model = "/etc"',
        'grid = "ray"',
    ],
)
def test_a_new_run_reads_no_file_of_the_server(console: Console, config: str) -> None:
    answer = console.browser("olga").post("/runs/new", {"name": "new", "config": config})
    assert answer.status_code == 422
    assert not (console.runs / "new").exists()


def test_a_form_can_not_be_endless_or_another_thing(console: Console) -> None:
    browser = console.browser("olga")
    long = browser.post("/runs/check", {"config": "x" * 200_000})
    other = browser.client.post("/runs/new", json={"name": "x"})
    assert (long.status_code, other.status_code) == (413, 415)


def test_nothing_secret_is_shown_logged_or_kept(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    browser = console.browser()
    browser.login("olga", "wrong but secret horse")
    browser.login("olga")
    token = browser.client.cookies["penchant"]
    shown = "".join(browser.get(path).text for path in ("/", "/audit", "/runs"))
    kept = b"".join(path.read_bytes() for path in console.store.directory.iterdir() if path.is_file())
    for secret in (PASSWORD, "wrong but secret horse", token):
        assert secret not in shown + caplog.text
        assert secret.encode() not in kept


# --- accounts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["short", "a" * 30, "ababababababab", "x" * 2000])
def test_weak_passwords_are_refused(tmp_path: Path, password: str) -> None:
    with pytest.raises(UsageError, match="a password has"):
        ConsoleStore(tmp_path).add("olga", "operator", password)
    assert ConsoleStore(tmp_path).accounts() == []


@pytest.mark.parametrize("name", ["", "Olga", "a b", "a/b", "-a", "a" * 33, "ö"])
def test_unfit_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="an account's name"):
        ConsoleStore(tmp_path).add(name, "operator", PASSWORD)


def test_a_password_is_kept_as_a_salted_hash() -> None:
    one, other = passwords.hashed(PASSWORD), passwords.hashed(PASSWORD)
    assert one != other
    assert passwords.check(PASSWORD, one)
    assert not passwords.check(PASSWORD + "x", one)
    assert not passwords.check(PASSWORD, "scrypt$nonsense")


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    ConsoleStore(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / "console.db").stat().st_mode & 0o077 == 0


# --- the audit ------------------------------------------------------------------------------------


def test_what_is_done_is_on_record_before_and_after(console: Console) -> None:
    console.browser("olga").post(f"/releases/{console.id_of('first')}/promote", {"round": "2"})
    (entry,) = [entry for entry in console.store.audit_entries() if entry.action == "promote a release"]
    assert (entry.account, entry.outcome, entry.detail) == ("olga", "done", "round: 2")
    lines = console.store._all("SELECT outcome, begun FROM deeds WHERE action = 'promote a release'")
    assert [outcome for outcome, _ in lines] == ["begun", "done"]


@pytest.mark.parametrize(
    ("path", "form", "why"),
    [
        ("/runs/new", {"name": "-x", "config": ""}, "a run's name is"),
        ("/runs/new", {"name": "<script>", "config": ""}, "a run's name is"),
        ("/runs/new", {"name": "first", "config": ""}, "there is a run first already"),
        ("/runs/{id}/delete", {"confirm": "wrong"}, "another name was typed"),
        ("/releases/{id}/promote", {"round": "two"}, "round must be a whole number"),
        ("/devices/{id}/tokens", {"days": "400"}, "There is no such fleet"),
    ],
)
def test_what_was_not_done_is_on_record_as_refused_and_never_as_done(
    console: Console, path: str, form: dict[str, str], why: str
) -> None:
    answer = console.browser("olga").post(filled(path, console), form)
    assert 400 <= answer.status_code < 500
    lines = console.store._all("SELECT outcome FROM deeds WHERE action = ? ORDER BY number", NAMES[path])
    assert [outcome.split(":")[0] for (outcome,) in lines] == ["begun", "refused"]
    assert why in lines[-1][0]
    assert (console.runs / "first").is_dir()
    assert "refused" in console.browser("olga").get("/").text  # under “Lately” as well


def test_the_audit_names_the_run_that_was_to_be_started(console: Console) -> None:
    console.browser("olga").post("/runs/new", {"name": "-x", "config": ""})
    (entry,) = [entry for entry in console.store.audit_entries() if entry.action == "start a run"]
    assert entry.target == "-x"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE deeds SET account = 'vera' WHERE number = 2",
        "DELETE FROM deeds WHERE number = 2",
        "UPDATE deeds SET at = at - 1 WHERE number = 2",
    ],
)
def test_a_changed_audit_shows(console: Console, change: str) -> None:
    for number in range(4):
        console.store.note("olga", "127.0.0.1", "try", str(number))
    assert console.store.broken() is None
    console.store._db.execute(change)
    assert console.store.broken() in (2, 3)
    assert "is not what was written" in console.browser("olga").get("/audit").text
