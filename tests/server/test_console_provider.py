"""Whom a provider's settings let in, and which of its tokens are believed; a real one is in tests/system."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey
from support.console_scene import Browser, Console

from penchant.common.errors import ConfigError, ConsoleError, UsageError
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.at_once import HTTPError
from penchant.server.console.forms import secure_form
from penchant.server.console.provider_login import FAILED_SECONDS, LOGIN_SECONDS, BegunLogin, ProviderLogin
from penchant.server.console.provider_settings import (
    Allowed,
    ProviderSettings,
    TrustedProvider,
    VouchedPerson,
    trusted_provider,
)
from penchant.server.console.requests import LOGINS
from penchant.server.console.rights import ROLES, Rights, Role

ISSUER = "https://id.example.org"
BACK = "https://console.example.org/login/provider/back"
KEY, OTHER = (RSAKey.generate_key(2048, {"kid": kid}) for kid in ("one", "other"))
SAID = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/keys",
    "userinfo_endpoint": f"{ISSUER}/me",
    "authorization_response_iss_parameter_supported": True,
}
RULES = (Allowed("email", "olga@example.org", "operator"),)


class Clock:
    now = time.time()

    def __call__(self) -> float:
        return self.now


class Played(ProviderLogin):
    """A provider's answers without a provider. token: what it gives for a code; person: its userinfo."""

    def __init__(self, clock: Clock, **changes: Any) -> None:
        super().__init__(TrustedProvider(ProviderSettings(ISSUER, "console"), RULES, "hush"), clock)
        self.said = {**SAID, **changes}
        self.keys: Any = KeySet([KEY]).as_dict(private=False)
        self.token: dict[str, Any] = {}
        self.person: dict[str, Any] = {"sub": "1", "email": "olga@example.org", "email_verified": True}

    def _asked(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        kinds = {"keys": self.keys, "me": self.person}
        return kinds.get(url.rpartition("/")[2], self.said)

    def _token(self, code: str, verifier: str, back: str) -> Mapping[str, Any]:
        return self.token


@pytest.fixture
def clock() -> Clock:
    return Clock()


def finished(
    played: Played, clock: Clock, *, key: Any = KEY, alg: str = "RS256", **changes: Any
) -> VouchedPerson:
    """A login to its end, with an identity token that has these claims; None leaves one out."""
    _, kept = played.begin(BACK, "/runs")
    begun = played.begun(kept)
    assert begun is not None
    now = int(clock.now)
    right = {"iss": ISSUER, "aud": "console", "sub": "1", "iat": now, "exp": now + 60}
    claims = {**right, "nonce": played._made(begun, "nonce"), **changes}
    token = jwt.encode(
        {"alg": alg, **({"kid": key.kid} if key.kid else {})},
        {name: value for name, value in claims.items() if value is not None},
        key,
        algorithms=[alg],
    )
    played.token = {"id_token": token, "access_token": "a"}
    return played.finish(begun, {"state": played._made(begun, "state"), "code": "c", "iss": ISSUER}, BACK)


def test_a_right_token_names_the_person(clock: Clock) -> None:
    assert finished(Played(clock), clock) == VouchedPerson("1", "olga@example.org", frozenset())
    told = finished(Played(clock), clock, email="vera@example.org", email_verified=True, groups=["a", 1])
    assert told == VouchedPerson("1", "vera@example.org", frozenset({"a"}))


@pytest.mark.parametrize("verified", [False, None, "true", 1])
def test_an_address_that_is_not_verified_is_none(clock: Clock, verified: object) -> None:
    played = Played(clock)
    played.person = {"sub": "1", "email": "olga@example.org", "email_verified": verified}
    person = finished(played, clock)
    assert (person.email, person.account) == ("", "oidc-sub:1")
    assert played.provider.rights_of(person) is None


@pytest.mark.parametrize("verified_in_the_token", ["none said", False])
def test_no_answer_vouches_for_the_address_of_another(clock: Clock, verified_in_the_token: object) -> None:
    """The token names the address of somebody else; the userinfo says that one's own is verified."""
    played = Played(clock)
    played.person = {"sub": "1", "email": "me@example.org", "email_verified": True}
    said = {} if verified_in_the_token == "none said" else {"email_verified": verified_in_the_token}
    person = finished(played, clock, email="olga@example.org", **said)
    assert person.email == ("me@example.org" if verified_in_the_token == "none said" else "")
    assert played.provider.rights_of(person) is None


def test_a_word_of_the_token_vouches_for_no_address_of_the_userinfo(clock: Clock) -> None:
    played = Played(clock)
    played.person = {"sub": "1", "email": "olga@example.org"}
    assert finished(played, clock, email_verified=True).email == ""


@pytest.mark.parametrize(
    "subject",
    ["", "alice\n", " alice", "alice\ufe0f", "al\u202eice", "a\x00", "x" * 256, 7, ["7"]],
    ids=ascii,
)
def test_a_subject_that_may_be_taken_for_another_is_refused(clock: Clock, subject: object) -> None:
    played = Played(clock)
    played.person = {"sub": subject, "email": "olga@example.org", "email_verified": True}
    with pytest.raises(HTTPError, match=r"sub|identity token") as refused:
        finished(played, clock, sub=subject)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "email", ["olga@example.org\n", "ol\u200bga@example.org", "o" * 256, 7, None], ids=ascii
)
def test_an_address_that_may_be_taken_for_another_is_none(clock: Clock, email: object) -> None:
    played = Played(clock)
    played.person = {"sub": "1", "email": email, "email_verified": True}
    assert finished(played, clock).email == ""


_SUBJECTS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255)


@settings(deadline=None, derandomize=True, database=None)
@given(_SUBJECTS, _SUBJECTS, st.booleans(), st.booleans())
def test_two_people_have_one_account_only_by_one_address(
    one: str, other: str, first_has_address: bool, second_has_address: bool
) -> None:
    people = [
        VouchedPerson("s", text) if address else VouchedPerson(text)
        for text, address in ((one, first_has_address), (other, second_has_address))
    ]
    same = (one, first_has_address) == (other, second_has_address)
    assert (people[0].account == people[1].account) == same
    assert all(len(person.account) <= 100 for person in people)


def test_a_subject_that_reads_like_an_address_takes_no_name_of_one(tmp_path: Path) -> None:
    store = ConsoleStore(tmp_path)
    squatter, boss = VouchedPerson("boss@example.org"), VouchedPerson("9", "boss@example.org")
    for person in (squatter, boss):
        assert store.let_in(person.account, ISSUER, person.subject, Rights("viewer"))
    assert [one.name for one in store.accounts()] == ["oidc-sub:boss@example.org", "oidc:boss@example.org"]
    store.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": ["console", "another"]},
        {"aud": ["console", "another"], "azp": "another"},
        {"aud": None},
        {"sub": None},
        {"exp": None},
        {"exp": 1},
        {"exp": "soon"},
        {"iat": 9_999_999_999},
        {"nonce": "another"},
        {"nonce": None},
        {"key": OTHER},
        {"key": OctKey.import_key("hush" * 8), "alg": "HS256"},
    ],
    ids=lambda changes: ", ".join(name if name == "key" else f"{name}={changes[name]}" for name in changes),
)
def test_a_token_that_is_not_right_is_refused_in_one_line(clock: Clock, changes: dict[str, Any]) -> None:
    with pytest.raises(HTTPError, match=r"identity token (is not valid|can’t be read)") as refused:
        finished(Played(clock), clock, **changes)
    assert "\n" not in str(refused.value)
    assert refused.value.status == 403


def test_a_token_without_a_signature_is_refused(clock: Clock) -> None:
    played = Played(clock)
    _, kept = played.begin(BACK, "/")
    begun = played.begun(kept)
    for token in ("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.", "a.b.c", "", "x"):
        played.token = {"id_token": token}
        with pytest.raises(HTTPError, match="identity token"):
            played._claims(played.token, played._made(begun, "nonce"))


def test_keys_that_were_changed_are_asked_for_again(clock: Clock) -> None:
    played = Played(clock)
    finished(played, clock)
    played.keys = KeySet([OTHER]).as_dict(private=False)
    with pytest.raises(HTTPError):
        finished(played, clock, key=OTHER)  # not more often than once a minute
    clock.now += 61
    assert finished(played, clock, key=OTHER).subject == "1"


def test_two_people_in_one_answer_are_nobody(clock: Clock) -> None:
    played = Played(clock)
    played.person = {"sub": "2", "email": "olga@example.org", "email_verified": True}
    with pytest.raises(HTTPError, match="two people"):
        finished(played, clock)


@pytest.mark.parametrize("kept", ["", "x", ".", "e30=.00", "é.é"])
def test_what_the_browser_kept_is_ours_or_nothing(clock: Clock, kept: str) -> None:
    assert Played(clock).begun(kept) is None


def test_a_login_has_ten_minutes_and_belongs_to_one_process(clock: Clock) -> None:
    played = Played(clock)
    _, kept = played.begin(BACK, "/")
    assert played.begun(kept) is not None
    assert Played(clock).begun(kept) is None
    clock.now += LOGIN_SECONDS + 1
    assert played.begun(kept) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": f"{ISSUER}/"},
        {"authorization_endpoint": "http://id.example.org/auth"},
        {"authorization_endpoint": None},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
    ids=str,
)
def test_a_provider_that_says_something_else_of_itself_is_not_asked(
    clock: Clock, changes: dict[str, Any]
) -> None:
    with pytest.raises(HTTPError) as refused:
        Played(clock, **changes).begin(BACK, "/")
    assert refused.value.status == 502


# --- who has which role ---------------------------------------------------------------------------


def test_of_several_rules_the_one_that_allows_most_counts() -> None:
    rules = (
        Allowed("group", "all", "viewer"),
        Allowed("group", "leads", "operator", "north-1"),
        Allowed("subject", "1", "none", "south-1"),
        Allowed("email", "Olga@Example.org", "operator"),
    )
    trusted = TrustedProvider(ProviderSettings(ISSUER, "console"), rules)
    person = VouchedPerson("1", "olga@example.org", frozenset({"all", "leads"}))
    assert trusted.rights_of(person) == Rights("operator", {"north-1": "operator", "south-1": "none"})
    assert trusted.rights_of(VouchedPerson("2", "", frozenset({"all"}))) == Rights("viewer", {})
    assert trusted.rights_of(VouchedPerson("1")) is None, "none is no role"
    assert trusted.rights_of(VouchedPerson("")) is None


@pytest.mark.parametrize(
    ("rule", "email", "holds"),
    [
        ("Olga@Example.org", "oLGA@example.ORG", True),
        ("boss@strasse.example", "boss@straße.example", False),
        ("boss@example.org", "bo\u017fs@example.org", False),
        ("kim@example.org", "\u212aim@example.org", False),
        ("ünal@example.org", "Ünal@example.org", False),
        ("ünal@example.org", "ünal@EXAMPLE.org", True),
    ],
)
def test_only_the_case_of_a_to_z_is_no_difference_of_addresses(rule: str, email: str, holds: bool) -> None:
    assert Allowed("email", rule, "operator").holds(VouchedPerson("1", email)) == holds


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["subject", "email", "group"]), st.text(max_size=3), st.sampled_from(ROLES))
    ),
    st.text(max_size=3),
    st.text(max_size=3),
    st.frozensets(st.text(max_size=3), max_size=3),
)
def test_nobody_has_more_than_a_rule_about_them_gives(
    rules: list[tuple[str, str, Role]], subject: str, email: str, groups: frozenset[str]
) -> None:
    allowed = tuple(Allowed(*rule) for rule in rules)
    trusted = TrustedProvider(ProviderSettings(ISSUER, "console"), allowed)
    person = VouchedPerson(subject, email, groups)
    rights = trusted.rights_of(person)
    about = [rule.role for rule in allowed if rule.holds(person)]
    most = max(about, key=ROLES.index, default="none")
    assert (rights.elsewhere if rights else "none") == most


def test_an_account_belongs_to_one_subject(tmp_path: Path) -> None:
    store = ConsoleStore(tmp_path)
    person = VouchedPerson("1", "olga@example.org")
    token = store.let_in(person.account, ISSUER, "1", Rights("operator", {"north-1": "none"}))
    session = store.session(token)
    assert session is not None
    assert session.account.rights == Rights("operator", {"north-1": "none"})
    assert store.session(
        store.let_in(person.account, ISSUER, "1", Rights("viewer"))
    ).account.rights == Rights("viewer")
    with pytest.raises(ConsoleError, match="was somebody else's before"):
        store.let_in(person.account, ISSUER, "2", Rights("operator"))
    assert store.login(person.account, "", store.place_of(person.account, "10.0.0.1")) is None
    for change in (
        lambda: store.passwd(person.account, "correct horse battery"),
        lambda: store.give_role(person.account, "operator", {}),
        lambda: store.reset_second_factor(person.account),
    ):
        with pytest.raises(UsageError, match=f"is an account of {ISSUER}"):
            change()
    store.close()


# --- at the console -------------------------------------------------------------------------------


class Vouching(Played):
    """A provider that vouches for `who`, whatever is asked."""

    who = VouchedPerson("1", "olga@example.org")

    def finish(self, begun: BegunLogin | None, answer: Mapping[str, str], back: str) -> VouchedPerson:
        return self.who


def by_provider(console: Console) -> tuple[Browser, int]:
    """A new browser that logs in by the provider, and with which status."""
    browser = console.browser()
    browser.get("/login/provider")
    return browser, browser.get("/login/provider/back").status_code


@pytest.fixture
def vouching(clock: Clock) -> Vouching:
    return Vouching(clock)


@pytest.fixture
def let_in(tmp_path: Path, vouching: Vouching) -> Iterator[Console]:
    made = Console(tmp_path, provider=vouching)
    yield made
    made.store.close()


def test_who_is_refused_has_no_session_of_before(let_in: Console, vouching: Vouching) -> None:
    first, status = by_provider(let_in)
    assert (status, first.get("/runs").status_code) == (200, 200)
    vouching.who = VouchedPerson("1")  # the address is verified no more
    assert by_provider(let_in)[1] == 403
    assert first.get("/runs").status_code == 303


@pytest.mark.parametrize("address", ["free", "somebody else's"])
def test_who_comes_with_another_address_is_out_under_the_one_before(
    let_in: Console, vouching: Vouching, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    rule = Allowed("email", "olga@new.example", "viewer")
    monkeypatch.setattr(vouching, "_provider", replace(vouching.provider, allowed=(*RULES, rule)))
    first, _ = by_provider(let_in)
    if address != "free":
        vouching.who = VouchedPerson("2", "olga@new.example")
        other, _ = by_provider(let_in)
    vouching.who = VouchedPerson("1", "olga@new.example")
    second, status = by_provider(let_in)
    assert first.get("/runs").status_code == 303
    assert status == (200 if address == "free" else 403)
    assert (second if address == "free" else other).get("/runs").status_code == 200, "theirs goes on"


def test_a_provider_that_answers_nobody_keeps_nobody_from_a_password(
    let_in: Console, vouching: Vouching, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> tuple[str, str]:
        began.release()
        assert go.wait(60)
        raise HTTPError("The provider can’t be reached (ConnectTimeout).", status=502)

    monkeypatch.setattr(vouching, "begin", slow)
    networks = iter(f"198.51.100.{n}" for n in range(100))
    monkeypatch.setattr("penchant.server.console.entrance.address_of", lambda request: next(networks))
    with ThreadPoolExecutor(LOGINS) as pool:
        answers = [pool.submit(let_in.browser().get, "/login/provider") for _ in range(LOGINS)]
        try:
            assert all(began.acquire(timeout=60) for _ in range(LOGINS))
            assert let_in.browser().get("/login/provider").status_code == 503
            assert let_in.browser().login("olga").status_code == 303
        finally:
            go.set()
    assert {answer.result().status_code for answer in answers} == {502}


@pytest.mark.parametrize("error", [httpx2.ConnectTimeout, httpx2.ConnectError, httpx2.ReadTimeout])
def test_a_provider_that_is_not_reached_is_not_asked_again_at_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, error: type[httpx2.HTTPError]
) -> None:
    asked = []

    def silent(self: httpx2.Client, url: str, **_: object) -> None:
        asked.append(url)
        raise error("nothing")

    monkeypatch.setattr(httpx2.Client, "get", silent)
    login = ProviderLogin(TrustedProvider(ProviderSettings(ISSUER, "console"), RULES), clock)
    for times in (1, 1, 2):
        clock.now += FAILED_SECONDS / 2 + 0.1
        with pytest.raises(HTTPError, match=f"can’t be reached \\({error.__name__}\\)") as refused:
            login.begin(BACK, "/")
        assert (refused.value.status, refused.value.retry_after) == (502, FAILED_SECONDS)
        assert len(asked) == times


# --- the settings ---------------------------------------------------------------------------------

GOOD = """
[oidc]
issuer = "https://id.example.org"
client_id = "console"
client_secret_file = "secret"
[[oidc.allowed]]
email = "olga@example.org"
role = "operator"
[[oidc.allowed]]
group = "leads"
role = "viewer"
fleet = "/srv/north"
"""


def read(folder: Path, text: str) -> TrustedProvider | None:
    (folder / "secret").write_text("hush\n")
    (folder / "secret").chmod(0o600)
    (folder / "console.toml").write_text(text)
    (folder / "console.toml").chmod(0o644)
    return trusted_provider(folder, lambda path: f"id of {path}")


def test_settings_say_who_may_come_and_a_secret_is_never_shown(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert found is not None
    assert found.secret == "hush"
    assert "hush" not in repr(found)
    assert found.allowed[1] == Allowed("group", "leads", "viewer", "id of /srv/north")
    assert found.settings.scopes == ("openid", "email")


def test_without_settings_there_is_no_provider(tmp_path: Path) -> None:
    assert trusted_provider(tmp_path, str) is None
    assert read(tmp_path, "") is None


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("[oidc]", "[odic]", "unknown keys"),
        ("https://id.example.org", "http://id.example.org", "oidc.issuer must be an https"),
        ("https://id.example.org", "https://id.example.org?a=b", "oidc.issuer must be"),
        ("https://id.example.org", "", "oidc.issuer must be"),
        ('client_id = "console"', "", "oidc.client_id is missing"),
        ('client_id = "console"', "client_id = 3", "oidc.client_id"),
        ('client_id = "console"', 'client_id = "console"\nsecret = "hush"', "into a file of its own"),
        ('client_id = "console"', 'client_id = "console"\nclient_secret = "hush"', "into a file of its own"),
        ('client_id = "console"', 'client_id = "console"\nother = 1', "other"),
        (
            'client_id = "console"',
            'client_id = "console"\nscopes = ["email"]',
            "oidc.scopes must have openid",
        ),
        ('client_id = "console"', 'client_id = "console"\nname = "<b>"', "oidc.name"),
        ('client_id = "console"', 'client_id = "console"\nca_file = "secret"', "oidc.ca_file"),
        ('"secret"', '"nothing"', "can't read"),
        ('role = "operator"', 'role = "admin"', "rule 1: role is one of"),
        ('role = "operator"', "", "rule 1: role is one of"),
        ('email = "olga@example.org"', "", "rule 1 must have one of subject, email, group"),
        ('email = "olga@example.org"', 'email = "o"\nsubject = "1"', "rule 1 must have one of"),
        ('email = "olga@example.org"', 'email = "o"\nfleets = "1"', "rule 1 has unknown keys: fleets"),
        ('email = "olga@example.org"', "email = 3", "rule 1 must be a table of texts"),
        ("[oidc]", "[oidc", "is not TOML"),
    ],
)
def test_wrong_settings_are_refused_by_name_without_the_secret(
    tmp_path: Path, before: str, after: str, why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, GOOD.replace(before, after, 1))
    assert why in str(refused.value)
    assert "hush" not in str(refused.value)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    read(tmp_path, GOOD)
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others; chmod 600"):
        trusted_provider(tmp_path, str)


@pytest.mark.parametrize("name", ["console.toml", "secret", "ca.pem"])
@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o622, 0o777])
def test_what_gives_roles_is_not_taken_where_others_can_write_it(
    tmp_path: Path, name: str, mode: int
) -> None:
    (tmp_path / "ca.pem").write_text("")
    read(tmp_path, GOOD)
    text = GOOD.replace('"secret"', '"secret"\nca_file = "ca.pem"') if name == "ca.pem" else GOOD
    (tmp_path / "console.toml").write_text(text)
    (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError, match=rf"{name} can be written by others; chmod go-w"):
        trusted_provider(tmp_path, str)


def test_a_folder_in_which_everybody_can_write_gives_no_roles(tmp_path: Path) -> None:
    read(tmp_path, GOOD)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by everybody; chmod o-w"):
        trusted_provider(tmp_path, str)


@pytest.mark.parametrize(
    ("mode", "taken"), [(0o600, 1), (0o400, 1), (0o640, 1), (0o440, 1), (0o604, 0), (0o601, 0)]
)
def test_the_secret_is_for_its_owner_and_at_most_its_group(tmp_path: Path, mode: int, taken: int) -> None:
    read(tmp_path, GOOD)
    (tmp_path / "secret").chmod(mode)
    if taken:
        assert trusted_provider(tmp_path, str) is not None
        return
    with pytest.raises(ConfigError, match="can be read by others; chmod 600"):
        trusted_provider(tmp_path, str)


def test_rules_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"oidc\.allowed is empty"):
        read(tmp_path, GOOD.partition("[[")[0])


def test_what_was_written_survives_a_login_by_the_provider_in_another_tab(tmp_path: Path) -> None:
    console = Console(tmp_path)
    browser = console.browser("olga")  # as if it had come by the provider, meanwhile
    form = {"csrf": secure_form("x"), "kept.name": "what I wrote", "next": "/runs/new"}
    browser.client.cookies.set("penchant-form", "x")
    assert browser.client.post("/login", data=form).headers["location"] == "/runs/new"
    assert "what I wrote" in browser.get("/runs/new").text
    console.store.close()
