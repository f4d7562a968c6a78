"""Logging in to the console by a real identity provider, oidc-provider from npm, on loopback.

The browser is played over HTTP, step by step, so that each step can be tampered with; once it is Chromium,
for which the provider (localhost) is another site than the console (127.0.0.1).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit, urlunsplit

import httpx
import pytest
from playwright.sync_api import expect
from support.console_scene import HOST, Browser, Console, make_run
from support.fleet_directory import make_server
from support.processes import PROGRAM, free_port, listens, running, wait_for
from system.console_browser import Operator, Served, chromium

from penchant.deploy.console.local import fleet_id
from penchant.server.console.app import build_app
from penchant.server.console.provider_login import ProviderLogin
from penchant.server.console.provider_settings import trusted_provider

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
SECRET = "a secret that the provider gave the console"
BACK = f"http://{HOST}/login/provider/back"


@dataclass(frozen=True)
class Provider:
    """It listens. issuer: http://localhost:PORT; console: the port from which Chromium comes back."""

    issuer: str
    console: int


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    home = tmp_path_factory.mktemp("provider")
    shutil.copy(HERE / "oidc_provider.json", home / "package.json")
    shutil.copy(HERE / "oidc_provider.mjs", home)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=home, check=True, timeout=600)
    port, console = free_port(), free_port()
    backs = [BACK, f"http://127.0.0.1:{console}/login/provider/back"]
    node = ["node", f"{home}/oidc_provider.mjs", str(port), SECRET, *backs]
    with running(node, home / "provider.log"):
        wait_for("the provider", lambda: listens(port), 180)
        yield Provider(f"http://localhost:{port}", console)


def written(state: Path, issuer: str, fleet: Path, **changes: str) -> None:
    """console.toml in a console's directory, and the client's secret beside it."""
    state.mkdir(exist_ok=True)
    (state / "secret").write_text(SECRET + "\n")
    (state / "secret").chmod(0o600)
    table = {
        "issuer": issuer,
        "client_id": "console",
        "client_secret_file": "secret",
        "name": "Example",
        **changes,
    }
    lines = ["[oidc]", *(f'{key} = "{value}"' for key, value in table.items())]
    lines += ['scopes = ["openid", "email", "groups"]']
    for rule in (
        'email = "olga@example.org"\nrole = "operator"',
        'email = "unverified@example.org"\nrole = "operator"',
        'subject = "vera"\nrole = "viewer"',
        f'group = "fleet leads"\nrole = "operator"\nfleet = "{fleet}"',
        'group = "lookers"\nrole = "viewer"',
    ):
        lines += ["[[oidc.allowed]]", rule]
    (state / "console.toml").write_text("\n".join(lines) + "\n")


class Clock:
    """The console's, which a test can put forward. ahead: seconds."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Scene:
    """A console that trusts the provider."""

    def __init__(self, folder: Path, issuer: str) -> None:
        self.console = Console(folder)
        make_run(self.console.runs / "first")
        self.fleet = make_server(self.console.runs).path
        written(folder / "state", issuer, self.fleet)
        self.clock = Clock()
        trusted = trusted_provider(folder / "state", lambda path: fleet_id(Path(path)))
        assert trusted is not None
        self.app = build_app(
            self.console.store,
            self.console.operations,
            hosts=frozenset({HOST}),
            provider=ProviderLogin(trusted, self.clock),
        )

    def browser(self) -> Browser:
        return Browser(self.app)

    def outcome(self) -> tuple[str, str]:
        """(who, outcome) of the latest login."""
        entry = next(one for one in self.console.store.audit_entries() if one.action == "log in")
        return entry.account, entry.outcome


@pytest.fixture
def scene(tmp_path: Path, provider: Provider) -> Iterator[Scene]:
    made = Scene(tmp_path, provider.issuer)
    yield made
    made.console.close()
    made.console.store.close()


def begun(browser: Browser, after: str = "/") -> str:
    """The provider's page to which the button leads."""
    answer = browser.get(f"/login/provider?next={after}")
    assert answer.status_code == 303
    return answer.headers["location"]


def authorized(url: str, login: str) -> str:
    """Somebody logs in at the provider and consents; -> the address at the console to which it sends them."""
    with httpx.Client(trust_env=False) as client:
        for _ in range(20):
            if url.startswith(BACK):
                return url
            answer = client.get(url)
            if answer.status_code in (302, 303):
                url = urljoin(url, answer.headers["location"])
                continue
            assert answer.status_code == 200, answer.text
            (prompt,) = re.findall(r'name="prompt" value="(\w+)"', answer.text)
            (action,) = re.findall(r'<form[^>]*action="([^"]+)"', answer.text)
            answer = client.post(
                urljoin(url, action), data={"prompt": prompt, "login": login, "password": "any"}
            )
            url = urljoin(url, answer.headers["location"])
    raise AssertionError("the provider leads in a circle")


def changed(url: str, **values: str) -> str:
    """The same address with other parameters."""
    parts = urlsplit(url)
    query = {key: found[0] for key, found in parse_qs(parts.query).items()} | values
    return urlunsplit(parts._replace(query=urlencode(query)))


def came_back(browser: Browser, url: str) -> httpx.Response:
    return browser.get(url.removeprefix(f"http://{HOST}"))


def test_an_allowed_person_is_let_in_and_out(scene: Scene) -> None:
    browser = scene.browser()
    assert "Log in with Example" in browser.get("/login").text
    url = begun(browser, "/runs")
    asked = {key: found[0] for key, found in parse_qs(urlsplit(url).query).items()}
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    assert (asked["redirect_uri"], asked["client_id"]) == (BACK, "console")
    assert SECRET not in url
    entered = came_back(browser, authorized(url, "olga"))
    assert entered.status_code == 200
    assert 'content="0; url=/runs"' in entered.text
    cookies = entered.headers.get_list("set-cookie")
    (session,) = [one for one in cookies if one.startswith("penchant=") and "Max-Age=0" not in one]
    assert "HttpOnly" in session
    assert "SameSite=strict" in session
    assert scene.outcome() == ("oidc:olga@example.org", "done")
    assert browser.get("/runs/new").status_code == 200, "an operator"
    assert "oidc:olga@example.org" in browser.get("/account").text
    gone = browser.post("/logout")
    leave = browser.get(gone.headers["location"])
    assert "/session/end?client_id=console" in leave.text
    assert browser.get("/").status_code == 303


def test_roles_are_those_of_the_rules(scene: Scene) -> None:
    viewer = scene.browser()
    came_back(viewer, authorized(begun(viewer), "vera"))
    assert viewer.get("/runs").status_code == 200
    assert viewer.get("/runs/new").status_code == 403
    lead = scene.browser()
    came_back(lead, authorized(begun(lead), "lead"))
    fleet = fleet_id(scene.fleet)
    assert lead.get(f"/devices?run={fleet}").status_code == 200
    assert lead.get(f"/runs/{scene.console.id_of('first')}").status_code == 404, "no role on this machine"
    both = scene.browser()
    came_back(both, authorized(begun(both), "both"))
    assert both.get(f"/runs/{scene.console.id_of('first')}").status_code == 200
    assert both.post(f"/devices/{fleet}/tokens", {"label": "x", "days": "1"}).status_code == 303


@pytest.mark.parametrize(
    ("login", "who", "why"),
    [
        ("mallory", "oidc:mallory@example.org", "mallory@example.org has no role here"),
        ("unverified", "oidc-sub:unverified", "unverified has no role here"),
    ],
)
def test_whom_no_rule_knows_is_refused_and_it_is_on_record(
    scene: Scene, login: str, who: str, why: str
) -> None:
    browser = scene.browser()
    answer = came_back(browser, authorized(begun(browser), login))
    assert answer.status_code == 403
    assert why in answer.text
    assert scene.outcome() == (who, "refused: no rule of oidc.allowed")
    assert browser.get("/").status_code == 303
    assert all(not one.issuer for one in scene.console.store.accounts())


@pytest.mark.parametrize(
    ("tampered", "why"),
    [
        ({"nonce": "another"}, "identity token is not valid: invalid_claim nonce"),
        ({"code_challenge": "A" * 43}, "did not take its code back: invalid_grant"),
    ],
)
def test_a_login_of_another_is_not_taken(scene: Scene, tampered: dict[str, str], why: str) -> None:
    browser = scene.browser()
    answer = came_back(browser, authorized(changed(begun(browser), **tampered), "olga"))
    assert (answer.status_code, why in answer.text) == (403, True), answer.text
    assert scene.outcome()[1].startswith("refused: ")
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize(
    ("tampered", "why"),
    [
        ({"state": "0" * 64}, "wrong state"),
        ({"state": ""}, "wrong state"),
        ({"iss": "https://evil.example"}, "wrong issuer"),
        ({"code": "made-up"}, "did not take its code back: invalid_grant"),
        ({"code": ""}, "sent no code"),
        ({"error": "access_denied"}, "The provider refused: access_denied"),
    ],
)
def test_an_answer_that_was_changed_is_not_taken(scene: Scene, tampered: dict[str, str], why: str) -> None:
    browser = scene.browser()
    answer = came_back(browser, changed(authorized(begun(browser), "olga"), **tampered))
    assert (answer.status_code, why in answer.text) == (403, True), answer.text
    assert browser.get("/").status_code == 303


def test_an_answer_counts_once_and_in_the_browser_that_asked(scene: Scene) -> None:
    browser, other = scene.browser(), scene.browser()
    url = authorized(begun(browser), "olga")
    stranger = came_back(other, url)
    assert (stranger.status_code, "began elsewhere" in stranger.text) == (403, True)
    begun(other)
    assert came_back(other, url).status_code == 403, "its own login has another state"
    kept = dict(browser.client.cookies)
    assert came_back(browser, url).status_code == 200
    again = scene.browser()
    again.client.cookies.update(kept)
    repeated = came_back(again, url)
    assert (repeated.status_code, "used already" in repeated.text) == (403, True)


def test_a_token_that_is_past_its_time_is_refused(scene: Scene) -> None:
    browser = scene.browser()
    url = authorized(begun(browser), "olga")
    scene.clock.ahead = 500.0  # it is good for 60 seconds
    answer = came_back(browser, url)
    assert (answer.status_code, "identity token is not valid: expired_token" in answer.text) == (403, True), (
        answer.text
    )
    url = authorized(begun(browser), "olga")
    scene.clock.ahead = 1200.0
    answer = came_back(browser, url)
    assert (answer.status_code, "took too long" in answer.text) == (403, True)


def test_a_provider_that_calls_itself_otherwise_is_none(tmp_path: Path, provider: Provider) -> None:
    made = Scene(tmp_path, provider.issuer.replace("localhost", "127.0.0.1"))
    answer = made.browser().get("/login/provider")
    assert (answer.status_code, "calls itself otherwise" in answer.text) == (502, True)
    made.console.store.close()


def test_a_provider_that_is_not_there_leaves_the_password(tmp_path: Path) -> None:
    made = Scene(tmp_path, f"http://localhost:{free_port()}")
    browser = made.browser()
    answer = browser.get("/login/provider")
    assert (answer.status_code, "can’t be reached" in answer.text) == (502, True)
    assert browser.login("olga").status_code == 303
    made.console.store.close()


def test_nothing_secret_is_shown_kept_or_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    browser = scene.browser()
    url = authorized(begun(browser), "olga")
    came_back(browser, url)
    (code,) = parse_qs(urlsplit(url).query)["code"]
    shown = "".join(browser.get(path).text for path in ("/", "/audit", "/account"))
    store = scene.console.store.directory
    kept = b"".join(path.read_bytes() for path in store.glob("console.db*"))
    for secret in (SECRET, code, browser.client.cookies["penchant"]):
        assert secret not in shown + caplog.text
        assert secret.encode() not in kept


def test_in_chromium_from_another_site(tmp_path: Path, provider: Provider) -> None:
    """Cookies, content policy and redirects are the browser's to judge here."""
    state, runs, port = tmp_path / "state", tmp_path / "runs", provider.console
    runs.mkdir()
    make_run(runs / "first")
    written(state, provider.issuer, make_server(tmp_path).path)
    words = [
        *PROGRAM,
        "console",
        str(runs),
        str(tmp_path / "server"),
        "--port",
        str(port),
        "--state",
        str(state),
    ]
    with running(words, tmp_path / "console.log") as process, chromium() as started:
        wait_for("the console", lambda: listens(port), 120)
        me = Operator(started, Served(f"http://127.0.0.1:{port}", tmp_path, process))
        page = me.page
        me.go("/runs")
        me.picture("provider-login")
        me.check("a login page with a provider")
        page.get_by_role("link", name="Log in with Example").click()
        page.locator("input[name=login]").fill("olga")
        page.locator("input[name=password]").fill("any")
        page.get_by_role("button").click()
        page.get_by_role("button", name="Continue").click()
        expect(page).to_have_url(f"http://127.0.0.1:{port}/runs")
        expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
        me.said.clear()  # what it says of the provider's own pages
        me.asked.clear()
        me.go("/account")
        me.picture("provider-account")
        me.check("the account of a provider")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_text("Log out of Example as well")).to_be_visible()
        assert me.said == []
    assert SECRET not in (tmp_path / "console.log").read_text()
