"""The owner's page against others: other users of the machine, other pages of the browser, hostile texts."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import socket
import stat
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.device_api_scene import motions, new_device, running
from support.device_page_scene import HOST, OwnerAtPage, opened
from typer.testing import CliRunner

from penchant.client.device.device import Device
from penchant.common.data.preferences import Preference
from penchant.deploy.cli.device import app as device_app
from penchant.deploy.device_page.app import ACTIONS, PAGES, UPLOADS, build_page
from penchant.deploy.device_page.entrance import MOST_SECONDS, Entrance
from penchant.deploy.device_page.link_file import LinkFile
from penchant.deploy.device_page.safe_text import SHOWN_MOST, excerpt, safe_markdown
from penchant.deploy.device_page.serving import page_server
from penchant.deploy.device_page.uploads import UPLOAD_MOST

HOSTILE = (
    "<script>alert(1)</script>",
    "<svg onload=alert(1)><use href='http://evil.example/x#y'/></svg>",
    "![steal](http://evil.example/x.png)",
    "![steal](data:image/svg+xml;base64,PHN2Zy8+)",
    "<img src=x onerror=alert(1)>",
    "[go](javascript:alert(1)) [go](data:text/html,x) [go](vbscript:x)",
    "<style>body{display:none}</style><link rel=stylesheet href=//evil.example>",
    "<form action=http://evil.example><input name=csrf></form>",
    "</div></main></body><iframe src=http://evil.example>",
    '<a href="x" onclick="alert(1)">x</a>',
    "[x](https://a.example 'onmouseover=alert(1)')",
    "<math><mtext><style><img src=x onerror=alert(1)></style></mtext></math>",
    "[next](/choices) [close](../close) [x](//evil.example) [keys](#keys) [q](?q=1) [f](file:///etc/passwd)",
    "[x](java&#1;script:alert(1)) [x](&#106;avascript:alert(1)) <javascript:alert(1)>",
    "[x][a]\n\n[a]: javascript:alert(1)",
)


@pytest.fixture(scope="module")
def device(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Device:
    return new_device(tmp_path_factory.mktemp("page") / "device", tiny_model("bert"), [])


@pytest.fixture(scope="module")
def owner(device: Device) -> Iterator[OwnerAtPage]:
    device.record(motions(6))
    with opened(device, motions(12)) as found:
        yield found


def every_address(owner: OwnerAtPage) -> list[tuple[str, str]]:
    return [
        *(("GET", f"{owner.entrance.root}{path}") for path, _ in PAGES),
        *(("POST", f"{owner.entrance.root}{path}") for path, _ in (*ACTIONS, *UPLOADS)),
        ("POST", f"{owner.entrance.root}/close"),
    ]


def count(device: Device) -> int:
    return len(device.store)


# --- who is let in --------------------------------------------------------------------------------------


def test_a_link_works_once_and_in_one_browser(owner: OwnerAtPage, device: Device) -> None:
    other = OwnerAtPage(owner.app, owner.entrance, enter=False)
    assert owner.entrance.link == ""
    for path in ("/enter/", "/enter/x", "/enter/None", f"/enter/{owner.entrance.csrf}"):
        assert other.client.get(path).status_code in (403, 404)
    fresh = Entrance()
    link = fresh.link.rsplit("/", 1)[1]
    assert fresh.admit("x") is None
    token = fresh.admit(link)
    assert token is not None
    assert fresh.admit(link) is None
    assert fresh.knows(f"{fresh.cookie}={token}")


def test_who_is_idle_too_long_is_let_in_no_more_and_use_puts_the_end_off() -> None:
    now = [0.0]
    entrance = Entrance(60.0, lambda: now[0])
    token = entrance.admit(entrance.link.rsplit("/", 1)[1])
    ours = f"{entrance.cookie}={token}"
    for now[0] in (50.0, 100.0, 160.0):
        assert entrance.knows(ours)
    now[0] = 215.0
    assert not entrance.knows(f"{entrance.cookie}=x")  # a stranger's try is no use of it
    now[0] = 221.0
    assert entrance.over
    assert not entrance.knows(ours)
    unused = Entrance(60.0, lambda: now[0])
    now[0] = 300.0
    assert unused.admit(unused.link.rsplit("/", 1)[1]) is None


def test_a_page_that_nobody_uses_ends_but_not_in_the_middle_of_training(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.deploy.device_page.app.IDLE_LOOK", 0.01)
    now, end, closed = [0.0], threading.Event(), threading.Event()
    monkeypatch.setattr(Device, "train", lambda *_: end.wait(60) and device.report(judged=False))
    entrance = Entrance(60.0, lambda: now[0])
    app = build_page(device, motions(3), entrance, hosts=frozenset({HOST}), close=closed.set)
    owner = OwnerAtPage(app, entrance)
    with owner.client:
        owner.ready()
        owner.post("/model/train")
        now[0] = 61.0
        assert owner.get().status_code == 403
        assert not closed.wait(0.3)
        end.set()
        assert closed.wait(60)


def test_looking_where_the_link_leads_uses_nothing_up(device: Device) -> None:
    entrance = Entrance()
    app = build_page(device, motions(3), entrance, hosts=frozenset({HOST}), close=lambda: None)
    browser = OwnerAtPage(app, entrance, enter=False)
    assert browser.client.head(entrance.link).status_code == 405
    assert browser.client.get(entrance.link).status_code == 200


def test_without_the_cookie_nothing_is_shown_done_or_read(owner: OwnerAtPage, device: Device) -> None:
    stranger = OwnerAtPage(owner.app, owner.entrance, enter=False)
    before = count(device)
    for method, path in every_address(owner):
        for cookie in ("", f"{owner.entrance.cookie}=x", "penchant=x; a=b", f"{owner.entrance.cookie}="):
            answer = stranger.client.request(
                method,
                path,
                headers={"cookie": cookie},
                data={"csrf": owner.entrance.csrf} if method == "POST" else None,
            )
            assert answer.status_code == 403, path
            assert "motion" not in answer.text
            assert owner.entrance.csrf not in answer.text
    assert count(device) == before


def test_the_cookie_is_for_one_address_that_nobody_can_guess(device: Device) -> None:
    entrance = Entrance()
    app = build_page(device, motions(3), entrance, hosts=frozenset({HOST}), close=lambda: None)
    browser = OwnerAtPage(app, entrance, enter=False)
    said = browser.client.get(entrance.link).headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert f"path={entrance.root.lower()}" in said
    assert len(entrance.root) > 20
    assert browser.client.get("/").status_code == 404  # it tells nobody where it is
    assert entrance.root not in browser.client.get("/").text


def test_cookies_of_other_programs_on_this_machine_do_not_shut_the_owner_out() -> None:
    entrance = Entrance()
    token = entrance.admit(entrance.link.rsplit("/", 1)[1])
    ours = f"{entrance.cookie}={token}"
    for others in (
        "a[b]=1",
        '{"json": 1}',
        "=",
        "x",
        f"{entrance.cookie}=evil",
        f"{entrance.cookie}",
        "é=\x00",
    ):
        assert entrance.knows(f"{others}; {ours}")
        assert entrance.knows(f"{ours}; {others}")
        assert not entrance.knows(others)
    assert not entrance.knows(f"other-{ours}")


def test_a_foreign_name_for_this_address_is_refused(owner: OwnerAtPage, device: Device) -> None:
    before = count(device)
    for method, path in every_address(owner):
        for host in ("evil.example:8766", "127.0.0.1", "127.0.0.1:80", "localhost:1", "169.254.0.1:8766", ""):
            assert owner.client.request(method, path, headers={"host": host}).status_code == 421
    assert count(device) == before


def test_pages_of_others_reach_nothing(owner: OwnerAtPage, device: Device) -> None:
    """Not by a form, and not by a link to a page either; another port of this machine is another page."""
    before = count(device)
    foreign = (
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    )
    for method, path in every_address(owner):
        for headers in foreign:
            form = {"csrf": owner.entrance.csrf} if method == "POST" else None
            assert owner.client.request(method, path, headers=headers, data=form).status_code == 403
    assert count(device) == before


def test_a_form_without_its_token_does_nothing(owner: OwnerAtPage, device: Device) -> None:
    before = count(device)
    for path, _ in ACTIONS:
        for csrf in ("", "x", owner.entrance.csrf[:-1]):
            answer = owner.client.post(f"{owner.entrance.root}{path}", data={"csrf": csrf, "say": "first"})
            assert answer.status_code == 403
            assert "Nothing was done" in answer.text
    rows = b'{"prompt": "p", "chosen": "a", "rejected": "b"}'
    assert owner.upload("a.jsonl", rows, csrf="x").status_code == 403
    assert count(device) == before


def test_no_answer_may_be_kept_framed_or_run_scripts_of_others(owner: OwnerAtPage) -> None:
    for path in ("/", "/ask", "/choices", "/model", "/fleet", "/nowhere"):
        headers = owner.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http:" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        page = owner.get(path).text
        assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
        assert re.findall(r"\son\w+=|style=", page) == []


# --- a cookie that somebody else has a copy of ------------------------------------------------------------


def thief_at(owner: OwnerAtPage) -> OwnerAtPage:
    """Another browser, with a copy of all that the owner's browser has."""
    thief = OwnerAtPage(owner.app, owner.entrance, enter=False)
    thief.client.cookies.update(owner.client.cookies)
    return thief


def nobody_is_let_in(*browsers: OwnerAtPage) -> None:
    for browser in browsers:
        for method, path in every_address(browser):
            form = {"csrf": browser.entrance.csrf} if method == "POST" else None
            answer = browser.client.request(method, path, data=form)
            assert answer.status_code == 403, path
            assert "motion" not in answer.text


def page_of(device: Device, entrance: Entrance, close: Callable[[], object] = lambda: None) -> OwnerAtPage:
    app = build_page(device, motions(3), entrance, hosts=frozenset({HOST}), close=lambda: bool(close()))
    return OwnerAtPage(app, entrance)


def test_a_stolen_cookie_is_worth_nothing_once_the_page_is_closed(device: Device) -> None:
    """Until then it is all that the owner has: nothing else tells two browsers apart."""
    closed: list[bool] = []
    owner, before = page_of(device, Entrance(), lambda: closed.append(True)), count(device)
    thief = thief_at(owner)
    assert thief.get("/model").status_code == 200
    assert owner.post("/close").status_code == 200
    assert closed == [True]
    nobody_is_let_in(thief, owner)
    assert count(device) == before


def test_a_stolen_cookie_or_link_is_worth_nothing_once_another_page_is_opened(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.deploy.device_page.app.IDLE_LOOK", 0.01)
    files = [LinkFile(tmp_path) for _ in range(3)]
    first, unused, second = (Entrance(is_newest=lambda file=file: file.is_newest) for file in files)
    closed = threading.Event()
    files[0].write(first.link)
    owner = page_of(device, first, closed.set)
    thief, before = thief_at(owner), count(device)
    assert thief.get("/model").status_code == 200
    files[1].write(unused.link)
    nobody_is_let_in(thief, owner)
    link = unused.link.rsplit("/", 1)[1]
    files[2].write(second.link)
    assert unused.admit(link) is None
    with owner.client:
        assert closed.wait(60), "the earlier page ends by itself"
    again = page_of(device, second)
    assert again.get("/model").status_code == 200
    again.client.cookies.clear()
    again.client.cookies.update(owner.client.cookies)
    nobody_is_let_in(again)
    assert count(device) == before
    for earlier in files[:2]:
        earlier.remove()
    assert files[2].is_newest, "an earlier page that ends leaves the newest one's link alone"
    files[2].remove()
    assert second.over
    assert not list(tmp_path.iterdir())


def test_a_stolen_cookie_that_is_used_on_and_on_ends_all_the_same(device: Device) -> None:
    now = [0.0]
    owner = page_of(device, Entrance(3600.0, lambda: now[0]))
    thief = thief_at(owner)
    while now[0] + 1800 < MOST_SECONDS:
        now[0] += 1800.0
        assert thief.get("/model").status_code == 200
    now[0] = MOST_SECONDS + 1
    nobody_is_let_in(thief, owner)


def test_a_stolen_cookie_is_worth_nothing_after_an_hour_without_use(device: Device) -> None:
    now = [0.0]
    owner = page_of(device, Entrance(3600.0, lambda: now[0]))
    thief = thief_at(owner)
    now[0] = 3601.0
    nobody_is_let_in(thief, owner)


# --- hostile texts --------------------------------------------------------------------------------------


def harmless(html: str) -> None:
    tags = set(re.findall(r"<\s*/?\s*([a-zA-Z!?][\w-]*)", html))
    assert tags <= {
        "a", "blockquote", "br", "code", "del", "em", "hr", "li", "ol", "p", "pre", "s", "strong",
        "table", "tbody", "td", "th", "thead", "tr", "ul",
    }  # fmt: skip
    for tag in re.findall(r"<[a-z][^>]*>", html):
        for name, value in re.findall(r'([\w-]+)="([^"]*)"', tag):
            assert name in ("href", "rel", "target"), tag
            assert name != "href" or value.startswith(("http://", "https://", "mailto:")), tag


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_markdown_becomes_harmless(text: str) -> None:
    for shape in (text, f"# {text}", f"- {text}", f"> {text}", f"| a |\n|---|\n| {text} |", f"**{text}**"):
        harmless(str(safe_markdown(shape)))


def test_hostile_texts_do_nothing_on_any_page(device: Device) -> None:
    texts = [Preference(f"{text} {n}", f"a {text}", f"b {text}") for n, text in enumerate(HOSTILE)]
    device.record(texts, "file <b>x</b>")
    with opened(device, [Preference(f"ask {p.prompt}", p.chosen, p.rejected) for p in texts]) as owner:
        forms = [f"/choices/edit?choice={mark.hex()}" for mark, _ in device.store.all_marked()]
        for path in ("/", "/choices", "/choices?q=%3Cscript%3E", "/model", *forms):
            page = owner.get(path).text
            for sign in (
                "alert(1)</script>",
                "<svg onload",
                "<img",
                "<iframe",
                "<style",
                "<form action=http",
            ):
                assert sign not in page, (path, sign)
            assert 'href="javascript' not in page
        for _ in texts:
            page = owner.say("first")
            assert "<img" not in page
            assert "<svg onload" not in page
        owner.finished()
    for row in device.store.recorded():
        if row.preference not in motions(6):
            device.store.remove(row.preference)


@pytest.mark.parametrize("mark", ["\u202e", "&#x202e;", "&#8238;", "<http://a.example/%E2%80%AE>"])
def test_marks_that_turn_the_writing_round_are_left_out_however_they_are_written(mark: str) -> None:
    for shape in ("abc {}def", "# {}", "[{}](https://a.example)", "| {} |\n|---|\n| {} |", "**{}**", "`{}`"):
        assert "\u202e" not in safe_markdown(shape.replace("{}", mark)), shape


def test_nothing_that_is_chosen_between_is_left_unseen() -> None:
    """A definition of a reference shows nothing of itself."""
    assert "the rest" in safe_markdown('[a]: https://a.example "the rest"')


def test_a_small_table_is_one_and_no_text_makes_a_huge_one() -> None:
    assert "<td>1</td>" in safe_markdown("| a | b |\n|---|---|\n| 1 | 2 |")
    html = safe_markdown("|a" * 400 + "\n" + "|-" * 400 + "\n" + "b\n" * 8000)
    assert "<td>" not in html
    assert len(html) < 2 * SHOWN_MOST


def test_marks_that_turn_the_writing_round_are_left_out_and_joiners_stay() -> None:
    assert "\u202e" not in safe_markdown("abc\u202edef\x00\x1b[31m")
    assert "\u200c" in safe_markdown("می\u200cخواهم")
    assert excerpt("a\n b\u202e" + "c" * 500, 20) == "a b" + "c" * 16 + "…"


@pytest.mark.parametrize(
    "text",
    ["[" * 50_000, ">" * 50_000, "*a_" * 20_000, "`" * 50_000, "| a " * 12_000, "- " * 30_000, "a" * 10**6],
)
def test_texts_that_are_made_to_be_slow_are_shown_in_a_moment(text: str) -> None:
    began = time.process_time()
    html = str(safe_markdown(text))
    assert time.process_time() - began < 10
    assert "characters more" in html
    assert len(html) < 40 * SHOWN_MOST


# --- huge and odd inputs --------------------------------------------------------------------------------


def test_files_are_bounded_and_nothing_of_a_bad_one_is_recorded(
    owner: OwnerAtPage, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penchant.deploy.device_page.views.choices.ROWS_MOST", 1000)
    before = count(device)
    row = b'{"prompt": "p", "chosen": "new", "rejected": "b"}\n'
    deep = b'{"prompt": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    for name, data, status in (
        ("a.jsonl", b"x" * (UPLOAD_MOST + 1), 413),
        ("a.jsonl.gz", b"\x1f\x8b", 422),
        ("a.jsonl.gz", gzip.compress(b" " * (65 << 20)), 422),
        ("a.parquet", b"PAR1", 422),
        ("../../etc/passwd", b"root", 422),
        ("a.exe", row, 422),
        ("a.jsonl", b"", 422),
        ("a.jsonl", b"\xff\xfe", 422),
        ("a.jsonl", deep, 422),
        ("a.jsonl", row + b"{}\n", 422),
        ("a.csv", b"a,b\n1,2\n", 422),
        ("a.json", b"[" * 100_000, 422),
        ("a.jsonl", row + b"1\n" * 2000, 422),
        ("a.csv", b"prompt,chosen,rejected" + b",x" * 100_000 + b"\n" + b"p,a,b\n" * 900, 422),
    ):
        answer = owner.upload(name, data)
        assert answer.status_code == status, (name, answer.text[-2000:])
    assert count(device) == before


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/x-www-form-urlencoded", b"csrf=x", 415),
        ("multipart/form-data", b"", 415),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", b"--b--", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--", 400),
        ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\nx', 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n",
            413,
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" * 1000 + b"--b--", 400),
        ("multipart/form-data; boundary=" + "b" * 100, b"", 415),
    ],
)
def test_odd_forms_with_files_are_refused(owner: OwnerAtPage, kind: str, body: bytes, status: int) -> None:
    answer = owner.client.post(
        f"{owner.entrance.root}/choices/import", content=body, headers={"content-type": kind}
    )
    assert answer.status_code == status


def test_a_file_is_taken_byte_for_byte(owner: OwnerAtPage, device: Device) -> None:
    text = "line\r\n--b\rno boundary\n\u2028é"
    row = json.dumps({"prompt": "exact", "chosen": text, "rejected": "b"}, ensure_ascii=False)
    assert owner.upload("a.jsonl", row.encode()).status_code == 303
    (made,) = [r.preference for r in device.store.recorded() if r.preference.prompt == "exact"]
    assert made.chosen == text
    device.store.remove(made)


def test_a_form_that_is_too_long_is_not_read_on(owner: OwnerAtPage) -> None:
    assert owner.post("/model/rank", {"prompt": "p", "responses": "x" * 750_000}).status_code == 413


def test_nothing_of_the_owners_texts_is_logged(
    owner: OwnerAtPage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret text")

    with caplog.at_level(logging.DEBUG):
        monkeypatch.setattr(Device, "rank", broken)
        answer = owner.post("/model/rank", {"prompt": "the secret text", "responses": "a"})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        owner.get("/choices?q=the+secret+text")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("penchant")]
    assert ours == ["POST: RuntimeError"]


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_listens_on_loopback_and_hands_the_link_over_in_a_file(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = new_device(tmp_path / "device", tiny_model("bert"), [])
    seen: dict[str, object] = {}

    class Served:
        def run(self, sockets: list[object]) -> None:
            seen["address"] = sockets[0].getsockname()  # type: ignore[attr-defined]
            file = device.directory / LinkFile.NAME
            seen["mode"] = stat.S_IMODE(os.stat(file).st_mode)
            seen["file"] = file.read_text()
            sockets[0].close()  # type: ignore[attr-defined]

    monkeypatch.setattr("penchant.deploy.device_page.serving.page_server", lambda *_: Served())
    monkeypatch.setattr("webbrowser.open", lambda url: seen.update(url=url))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    done = CliRunner().invoke(device_app, ["open", "--home", str(device.directory)])
    assert done.exit_code == 0, done.output
    (link,) = re.findall(r"http://127\.0\.0\.1:\d+/enter/\S+", done.output)
    assert seen["address"][0] == "127.0.0.1"  # type: ignore[index]
    assert seen["mode"] == 0o600
    assert link in str(seen["file"])
    assert str(seen["url"]).startswith("file://")  # the link is on no command line
    assert link.rsplit("/", 1)[1] not in str(seen["url"])
    assert not (device.directory / LinkFile.NAME).exists()
    assert CliRunner().invoke(device_app, ["open", "--host", "0.0.0.0"]).exit_code == 2


@pytest.mark.parametrize("ended", [signal.SIGTERM, signal.SIGHUP])
def test_a_page_that_is_ended_leaves_no_link_behind(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: signal.Signals
) -> None:
    device = new_device(tmp_path / "device", tiny_model("bert"), [])
    file = device.directory / LinkFile.NAME
    seen: list[bool] = []

    class Served:
        def run(self, sockets: list[socket.socket]) -> None:
            seen.append(file.exists())
            with sockets[0]:
                signal.raise_signal(ended)

    monkeypatch.setattr("penchant.deploy.device_page.serving.page_server", lambda *_: Served())
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(ended, lambda *_: pytest.fail("the command listens itself"))
        done = CliRunner().invoke(device_app, ["open", "--no-browser", "--home", str(device.directory)])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert done.exit_code == 128 + ended
    assert seen == [True]
    assert not file.exists()


def test_a_real_server_answers_and_closes(device: Device) -> None:
    entrance = Entrance()
    hosts: set[str] = set()
    server = page_server(device, motions(3), entrance, hosts)  # type: ignore[arg-type]
    with running(server) as url:
        hosts.add(url.removeprefix("http://"))
        server.config.app.user_middleware[0].kwargs["hosts"] = hosts  # type: ignore[union-attr]
        with urllib.request.urlopen(f"{url}{entrance.link}") as answer:
            assert answer.status == 200
            assert "server" not in {name.lower() for name in answer.headers}
            cookie = answer.headers["set-cookie"].partition(";")[0]
        form = f"csrf={entrance.csrf}".encode()
        asked = urllib.request.Request(f"{url}{entrance.root}/close", form, {"cookie": cookie})
        with urllib.request.urlopen(asked) as answer:
            assert "Nothing listens any more" in answer.read().decode()
        end = time.monotonic() + 120
        while not server.should_exit and time.monotonic() < end:
            time.sleep(0.02)
        assert server.should_exit
