"""Codes of an app and for recovery: right ones once, within the limits of logging in."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.console_scene import PASSWORD, Browser, Console, form_of, make_run, text_of

from penchant.common.errors import UsageError
from penchant.server.console import accounts, second_factor
from penchant.server.console.forms import secure_form

RFC_KEY = b"12345678901234567890"


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    made = Console(tmp_path)
    make_run(made.runs / "first")
    yield made
    made.store.close()


class Clock:
    """The store's time, which only a test moves: a code is used once, so that another takes another step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        monkeypatch.setattr(accounts, "time", self)

    def time(self) -> float:
        return self.now

    def code(self, key: bytes) -> str:
        """The app's next code."""
        self.now += second_factor.STEP_SECONDS
        return app_code(key, self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def app_code(key: bytes, now: float) -> str:
    return second_factor._totp(key).generate(int(now)).decode()


def set_up(browser: Browser, clock: Clock) -> tuple[bytes, list[str]]:
    """Through the pages; -> the key, and the recovery codes."""
    browser.post("/account/second-factor")
    page = browser.get("/account").text
    (shown,) = re.findall(r'<code id="secret">(\w+)</code>', page)
    key = base64.b32decode(shown)
    assert 'class="qr"' in page
    assert browser.post("/account/second-factor/confirm", {"code": clock.code(key)}).status_code == 303
    page = browser.get("/account").text
    (codes,) = re.findall(r'<code id="codes"[^>]*>([^<]+)</code>', page)
    return key, codes.split()


def half(browser: Browser, name: str = "olga") -> None:
    """The password is right, and a code is asked for."""
    answer = browser.login(name)
    assert answer.status_code == 200
    assert "The code that your app shows now" in answer.text
    assert browser.get("/").status_code == 303, "nobody is in by the password alone"


def send(browser: Browser, code: str) -> int:
    token = browser.client.cookies["penchant-form"]
    return browser.client.post("/login/code", data={"csrf": secure_form(token), "code": code}).status_code


# RFC 6238, appendix B, of eight digits: the last six are the code of six
@pytest.mark.parametrize(
    ("moment", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
    ],
)
def test_the_codes_are_those_of_the_rfc(moment: int, code: str) -> None:
    assert app_code(RFC_KEY, moment) == code
    assert second_factor.step_of(RFC_KEY, code, moment) == moment // 30
    assert second_factor.step_of(RFC_KEY, f"{code[:3]} {code[3:]}", moment) == moment // 30
    assert second_factor.step_of(RFC_KEY, code, moment + 30) == moment // 30
    assert second_factor.step_of(RFC_KEY, code, moment - 30) == moment // 30
    assert second_factor.step_of(RFC_KEY, code, moment + 61) is None


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "١٢٣٤٥٦", "2" * 5000])
def test_what_is_no_code_is_none(code: str) -> None:
    assert second_factor.step_of(RFC_KEY, code, 59) is None


def test_an_app_reads_the_key_the_account_and_the_usual_numbers() -> None:
    assert second_factor.uri(RFC_KEY, "olga") == (
        "otpauth://totp/penchant:olga?digits=6&secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
        "&algorithm=SHA1&issuer=penchant&period=30"
    )


def test_what_a_password_alone_has_opened_is_over_once_a_code_is_asked_for(
    console: Console, clock: Clock
) -> None:
    other, vera, own = console.browser("olga"), console.browser("vera"), console.browser("olga")
    set_up(own, clock)
    assert own.get("/runs/new").status_code == 200
    assert other.get("/runs/new").headers["location"].startswith("/login")
    assert vera.get("/runs").status_code == 200


def test_a_code_is_asked_for_from_then_on_and_lets_in_once(console: Console, clock: Clock) -> None:
    key, codes = set_up(console.browser("olga"), clock)
    assert (len(codes), len(set(codes))) == (10, 10)
    browser, code = console.browser(), clock.code(key)
    half(browser)
    assert send(browser, code) == 303
    assert browser.get("/").status_code == 200
    other = console.browser()
    half(other)
    assert send(other, code) == 401, "used"
    assert send(other, clock.code(key)) == 303
    assert console.browser("vera").get("/").status_code == 200, "an account of its own"


def test_a_recovery_code_lets_in_once_however_it_is_typed(console: Console, clock: Clock) -> None:
    _, codes = set_up(console.browser("olga"), clock)
    for typed, status in ((codes[0].lower().replace("-", " "), 303), (codes[0], 401), (codes[1], 303)):
        browser = console.browser()
        half(browser)
        assert send(browser, typed) == status
    assert console.store.recovery_codes_left("olga") == 8
    assert "8 recovery codes left" in text_of(browser.get("/account").text)


def test_keys_and_codes_are_shown_once_and_recovery_codes_kept_as_hashes(
    console: Console, clock: Clock
) -> None:
    browser = console.browser("olga")
    _, codes = set_up(browser, clock)
    assert codes[0] not in browser.get("/account").text
    kept = b"".join(path.read_bytes() for path in console.store.directory.glob("console.db*"))
    for code in codes:
        assert code.encode() not in kept
        assert second_factor.plain(code).encode() not in kept
    assert codes[0] not in browser.get("/audit").text


def test_codes_are_guessed_no_faster_than_passwords(console: Console, clock: Clock) -> None:
    """The right password in between doesn't begin the count anew."""
    key, _ = set_up(console.browser("olga"), clock)
    browser = console.browser()
    half(browser)
    looked_at = [send(browser, "000000") for _ in range(accounts.TRIES + 2)]
    assert looked_at == [401] * (accounts.TRIES - 1) + [429] * 3
    assert send(browser, app_code(key, clock.now + second_factor.STEP_SECONDS)) == 429
    assert console.browser().login("olga").status_code == 429
    assert console.outcomes("log in").count("refused: wrong code") == accounts.TRIES - 1


def test_a_half_login_ends_by_itself_with_the_password_and_in_another_browser(
    console: Console, clock: Clock
) -> None:
    key, _ = set_up(console.browser("olga"), clock)
    browser = console.browser()
    half(browser)
    clock.now += accounts.CODE_SECONDS
    assert send(browser, clock.code(key)) == 403
    half(browser)
    console.store.passwd("olga", "another long password")
    assert send(browser, clock.code(key)) == 403
    console.store.passwd("olga", PASSWORD)
    half(browser)
    token = browser.client.cookies["penchant-half"]
    assert console.store.session(token) is None, "half a login is no session"


def test_a_wrong_code_sets_up_nothing_and_the_key_stays(console: Console, clock: Clock) -> None:
    browser = console.browser("olga")
    browser.post("/account/second-factor")
    (before,) = re.findall(r'<code id="secret">(\w+)</code>', browser.get("/account").text)
    refused = browser.post("/account/second-factor/confirm", {"code": "000000"})
    assert refused.status_code == 422
    assert before in refused.text
    assert not console.store.has_second_factor("olga")
    assert console.outcomes("set a second factor") == ["refused: wrong code"]
    other = console.browser("olga")
    assert other.post("/account/second-factor/confirm", {"code": "000000"}).status_code == 410


def test_who_takes_it_away_must_have_a_code(console: Console, clock: Clock) -> None:
    browser = console.browser("olga")
    key, _ = set_up(browser, clock)
    assert browser.post("/account/second-factor").status_code == 409
    assert browser.post("/account/second-factor/remove", {"code": "000000"}).status_code == 422
    assert browser.post("/account/second-factor/remove", {"code": clock.code(key)}).status_code == 303
    assert console.browser().login("olga").status_code == 303


def test_taking_it_away_is_limited_as_logging_in(console: Console, clock: Clock) -> None:
    browser = console.browser("olga")
    set_up(browser, clock)
    wrong = [
        browser.post("/account/second-factor/remove", {"code": "000000"}) for _ in range(accounts.TRIES + 1)
    ]
    assert [answer.status_code for answer in wrong] == [422] * accounts.TRIES + [429]


def test_the_owner_of_the_machine_resets_it(console: Console, clock: Clock) -> None:
    open_one = console.browser("olga")
    set_up(open_one, clock)
    console.store.reset_second_factor("olga")
    assert open_one.get("/").status_code == 303, "logged out"
    assert console.browser().login("olga").status_code == 303
    with pytest.raises(UsageError, match="olga has no second factor"):
        console.store.reset_second_factor("olga")


def test_a_form_that_a_login_interrupted_survives_the_code(console: Console, clock: Clock) -> None:
    key, _ = set_up(console.browser("olga"), clock)
    browser = console.browser()
    answer = browser.login("olga", **{"kept.name": "what I wrote", "next": "/runs/new"})
    assert 'name="kept.name" value="what I wrote"' in answer.text
    sent = form_of(answer.text, "/login/code") | {"code": clock.code(key)}
    assert browser.client.post("/login/code", data=sent).headers["location"] == "/runs/new"
    assert "what I wrote" in browser.get("/runs/new").text
