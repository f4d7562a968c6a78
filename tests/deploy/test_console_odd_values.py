"""Whatever an address or a form of the console holds is answered in words, never by a page that broke."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from support.console_scene import CHEAP, HOST, PASSWORD, Browser
from support.fleet_directory import make_served_run, make_server

from penchant.deploy.console import local
from penchant.deploy.console.local import OperationsOnThisMachine
from penchant.deploy.fleet.enrolment import hand_out
from penchant.deploy.fleet.run_checks import fleet_defaults
from penchant.deploy.fleet.run_queue import RunQueue
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.console.accounts import ConsoleStore
from penchant.server.console.app import ACTIONS, PAGES, build_app

ODD = (
    "9" * 18,
    "9223372036854775808",
    "-1",
    "٣",
    "\0\u202e",
    "{0}{} %s '; -- <b>" + "a" * 2000,
    "nan",
    "../../etc/passwd",
    "9999-12-31",
    "release-99999999999999999999",
)
KEYS = (
    *("before", "begin_with", "from", "name", "notices", "order", "outcome", "page", "q", "revoke", "run"),
    *("state", "tokens", "first", "last", "account", "action", "day", "to", "files"),
)
FIELDS = (
    *("at", "begin_with", "called", "canary", "days", "every", "held", "label", "member", "name", "number"),
    *("place", "release", "round", "tag", "tags", "token", "turn", "where", "why", "confirm", "code"),
)


@dataclass
class Place:
    """A console over a fleet with a run, another that waits, and a token."""

    server: ServerDirectory
    browser: Browser
    fleet: str
    run: str
    token: str

    def path(self, pattern: str, odd: str = "") -> str:
        """The address of a page or an act; odd: what stands in place of its last part that may vary."""
        ids = self.fleet if pattern.startswith(("/devices", "/queue", "/releases")) else self.run
        ids = self.run if pattern == "/releases/{id}/{round}.zip" else ids
        given = {"id": ids, "file": "accuracy.csv", "token": self.token, "member": "1", "round": "9"}
        last = next((name for name in reversed(given) if f"{{{name}}}" in pattern), "")
        if odd and last:
            given[last] = quote(odd, safe="")
        return pattern.format(**given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What a run is resumed with answers at once: the odd values are not for it."""
    folder = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local, "PROGRAM", [sys.executable, "-c", "raise SystemExit('no SuperLink')"])
        yield from console_over(folder)


def console_over(folder: Path) -> Iterator[Place]:
    server = make_server(folder)
    make_served_run(server, "one")
    RunQueue(server).add(fleet_defaults(3), "olga")
    token = hand_out(server.path, "kitchen", time.time() + 3600)
    store = ConsoleStore(folder / "state", CHEAP)
    store.add("olga", "operator", PASSWORD)
    operations = OperationsOnThisMachine([server.path], store)
    browser = Browser(build_app(store, operations, hosts=frozenset({HOST})), "olga")
    (run,) = operations.locations()
    yield Place(server, browser, operations.fleets()[0].id, run.id, token.name)
    store.close()


@pytest.mark.parametrize("pattern", [pattern for pattern, *_ in PAGES])
def test_an_address_with_odd_values_is_answered_in_words(place: Place, pattern: str) -> None:
    addresses = [place.path(pattern), *(place.path(pattern, odd) for odd in ODD if "{" in pattern)]
    if "{" not in pattern:
        addresses += [f"{pattern}?{key}={quote(odd)}" for key in KEYS for odd in ODD[:1]]
        addresses += [f"{pattern}?" + "&".join(f"{key}={quote(odd)}" for key in KEYS) for odd in ODD[1:]]
    for address in addresses:
        answer = place.browser.get(address)
        assert answer.status_code < 500, (address, answer.text[:300])


@pytest.mark.parametrize("pattern", [pattern for pattern, *_ in ACTIONS])
def test_a_form_with_odd_values_is_answered_in_words(place: Place, pattern: str) -> None:
    csrf = place.browser.token()
    for odd in ODD:
        sent = {"csrf": csrf, "sure": "yes", **dict.fromkeys(FIELDS, odd)}
        for path in {place.path(pattern), place.path(pattern, odd)}:
            answer = place.browser.client.post(path, data=sent)
            assert answer.status_code < 500, (path, odd, answer.text[:300])
