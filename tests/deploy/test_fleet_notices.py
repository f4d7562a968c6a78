"""Notices beyond this machine: each once when it begins and once when it ends, by webhook and mail."""

from __future__ import annotations

import email
import hashlib
import hmac
import json
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.fleet_directory import make_server
from support.receivers import MailServer, WebServer, serving

from penchant.common.errors import ConfigError, DeliveryError, MembershipError
from penchant.deploy.cli.main import main
from penchant.deploy.fleet import notice_channels
from penchant.deploy.fleet.certificates import KeyAndCertificate, issue, make_ca
from penchant.deploy.fleet.fleet_watch import FleetLook
from penchant.deploy.fleet.notice_channels import NoticeEvent, channels_of
from penchant.deploy.fleet.notice_settings import NoticeSettings
from penchant.deploy.fleet.notifier import NOTICES, Notifier
from penchant.deploy.fleet.server_directory import SETTINGS, ServerDirectory
from penchant.server.monitoring.alerts import Notice

SECRET = "a secret of webhooks"
DOWN = Notice("bad", "The gateway is closed", "Bring it up.", "", "gateway")
SOON = Notice("warn", "Member list 3 expires in 5 d", "Publish.", "", "member_list")
PAST = Notice("bad", "Member list 3 has expired", "Publish.", "", "member_list")


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    with serving(server):
        yield server


class Watch:
    """A fleet of which the test says what needs attention."""

    def __init__(self) -> None:
        self.notices: tuple[Notice, ...] = ()
        self.fault: Exception | None = None

    def look(self) -> Any:
        if self.fault is not None:
            raise self.fault
        return FleetLook(None, self.notices, ())  # type: ignore[arg-type]


class Channel:
    """Keeps what it is sent, unless it refuses."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.refuses = False
        self.breaks: BaseException | None = None
        self.got: list[NoticeEvent] = []
        self.tries = 0

    def send(self, event: NoticeEvent) -> None:
        self.tries += 1
        if self.breaks is not None:
            raise self.breaks
        if self.refuses:
            raise DeliveryError(f"{self.name} refuses")
        self.got.append(event)

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(event.event, event.title) for event in self.got]


class Scene:
    """A notifier whose clock the test turns."""

    def __init__(self, server: ServerDirectory, *channels: Channel) -> None:
        self.server, self.channels, self.now, self.watch = server, channels, 1000.0, Watch()
        self.restart()

    def restart(self) -> None:
        self.notifier = Notifier(self.server, self.watch, self.channels, clock=lambda: self.now)  # type: ignore[arg-type]

    def after(self, seconds: float, *notices: Notice) -> None:
        """Time passes, then this is what there is."""
        self.now += seconds
        self.watch.notices = notices
        self.notifier.step()


@pytest.fixture
def server(tmp_path: Path) -> ServerDirectory:
    return make_server(tmp_path)


# --- once when it begins, once when it ends ---------------------------------------------------------


def test_a_notice_is_told_once_when_it_lasts_and_once_when_it_is_gone(server: ServerDirectory) -> None:
    channel = Channel()
    scene = Scene(server, channel)
    scene.after(0, DOWN)
    assert channel.told == []  # it may be a restart
    for _ in range(5):
        scene.after(120, DOWN)
    assert channel.told == [("begins", "The gateway is closed")]
    scene.after(10)
    scene.after(10, DOWN)
    scene.after(10)
    assert len(channel.told) == 1
    for _ in range(5):
        scene.after(120)
    assert channel.told == [("begins", "The gateway is closed"), ("ends", "The gateway is closed")]


def test_what_comes_and_goes_at_once_is_never_told(server: ServerDirectory) -> None:
    channel = Channel()
    scene = Scene(server, channel)
    for _ in range(20):
        scene.after(60, DOWN)
        scene.after(60)
    assert channel.told == []


def test_what_gets_worse_is_told_and_not_called_over(server: ServerDirectory) -> None:
    channel = Channel()
    scene = Scene(server, channel)
    for notice in (SOON, SOON, PAST, PAST):
        scene.after(120, notice)
    assert channel.told == [("begins", SOON.title), ("changes", PAST.title)]


def test_a_restart_repeats_and_loses_nothing(server: ServerDirectory) -> None:
    channel = Channel()
    scene = Scene(server, channel)
    channel.refuses = True
    scene.after(0, DOWN)
    scene.after(120, DOWN)
    assert channel.tries == 1
    channel.refuses = False
    scene.restart()
    scene.after(60, DOWN)
    assert channel.told == [("begins", DOWN.title)]
    scene.restart()
    for _ in range(3):
        scene.after(120, DOWN)
    assert len(channel.got) == 1


def test_a_fleet_that_cant_be_seen_has_mended_nothing(server: ServerDirectory) -> None:
    channel = Channel()
    scene = Scene(server, channel)
    scene.after(0, DOWN)
    scene.after(120, DOWN)
    scene.watch.fault = MembershipError("the list is damaged")
    scene.after(120)
    scene.after(120)
    assert channel.told == [("begins", DOWN.title), ("begins", "The server's directory can't be read")]


def test_a_way_out_that_fails_is_tried_again_ever_later_and_holds_no_other_up(
    server: ServerDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    fails, works = Channel("fails"), Channel("works")
    scene = Scene(server, fails, works)
    fails.refuses = True
    scene.after(0, DOWN, SOON)
    scene.after(120, DOWN, SOON)
    assert (len(works.got), fails.tries) == (2, 1)  # what was first stays first
    moments = []
    for _ in range(40):
        before = fails.tries
        scene.after(10, DOWN, SOON)
        moments += [scene.now] * (fails.tries - before)
    pauses = [after - before for before, after in pairwise(moments)]
    assert pauses == sorted(pauses)
    assert 3 <= len(moments) <= 5
    fails.refuses = False
    scene.after(3600, DOWN, SOON)
    assert sorted(event.topic for event in fails.got) == ["gateway", "member_list"]
    assert "fails refuses; tried again in 15 s" in caplog.text


def test_a_way_out_that_breaks_is_a_failed_try_of_it_alone(
    server: ServerDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises: the others get theirs once, and its own waits for its next turn."""
    breaks, works = Channel("breaks"), Channel("works")
    scene = Scene(server, breaks, works)
    breaks.breaks = UnicodeEncodeError("ascii", SECRET, 0, 1, "no")
    scene.after(0, DOWN, SOON)
    for _ in range(2):
        scene.after(120, DOWN, SOON)
        scene.after(10, DOWN, SOON)
    assert (len(works.got), breaks.tries) == (2, 2)
    assert "breaks fails: UnicodeEncodeError; tried again in 30 s" in caplog.text
    assert SECRET not in caplog.text
    breaks.breaks = None
    scene.restart()
    scene.after(120, DOWN, SOON)
    assert (len(works.got), len(breaks.got)) == (2, 2)


def test_an_end_between_two_deliveries_repeats_none(server: ServerDirectory) -> None:
    first, second = Channel("first"), Channel("second")
    scene = Scene(server, first, second)
    scene.after(0, DOWN)
    second.breaks = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        scene.after(120, DOWN)
    second.breaks = None
    scene.restart()
    scene.after(10, DOWN)
    assert (len(first.got), len(second.got)) == (1, 1)


def test_who_is_told_to_stop_leaves_the_rest_for_the_next_time(server: ServerDirectory) -> None:
    stop = threading.Event()

    class Stops(Channel):
        def send(self, event: NoticeEvent) -> None:
            super().send(event)
            stop.set()

    first, second = Stops("first"), Channel("second")
    scene = Scene(server, first, second)
    scene.after(0, DOWN)
    scene.now += 120
    scene.notifier.run(stop)
    assert (len(first.got), len(second.got)) == (1, 0)
    scene.restart()
    scene.after(10, DOWN)
    assert (len(first.got), len(second.got)) == (1, 1)


def test_what_nobody_takes_for_three_days_is_given_up(server: ServerDirectory) -> None:
    channel = Channel()
    scene = Scene(server, channel)
    channel.refuses = True
    scene.after(0, DOWN)
    scene.after(120, DOWN)
    scene.after(3 * 86400, DOWN)
    assert json.loads((server.path / NOTICES).read_text())["waiting"] == []


def test_a_damaged_file_is_begun_anew(server: ServerDirectory, caplog: pytest.LogCaptureFixture) -> None:
    (server.path / NOTICES).write_text('{"open": 3}')
    channel = Channel()
    scene = Scene(server, channel)
    assert "is begun anew" in caplog.text
    scene.after(0, DOWN)
    scene.after(120, DOWN)
    assert len(channel.got) == 1


def test_names_of_people_stay_here(server: ServerDirectory) -> None:
    channel = Channel()
    scene = Scene(server, channel)
    unused = Notice("warn", "1 invitation end", "Not used: Olga.", "", "invitations", "Nobody has.")
    scene.after(0, unused)
    scene.after(120, unused)
    assert [event.text for event in channel.got] == ["Nobody has."]
    assert "Olga" not in (server.path / NOTICES).read_text()


# --- webhooks ---------------------------------------------------------------------------------------

EVENT = NoticeEvent("0a", "begins", "gateway", "bad", "The gateway is closed", "Bring it up.", "x:1", 5.0)


def test_a_webhook_is_signed_json(tmp_path: Path, web: WebServer) -> None:
    settings = NoticeSettings(webhooks=(f"http://127.0.0.1:{web.port}/hook",), webhook_secret="hook.secret")
    server = make_server(tmp_path, notices=settings)
    (server.path / "hook.secret").write_text(SECRET + "\n")
    (channel,) = channels_of(server)
    channel.send(EVENT)
    ((path, headers, body),) = web.got
    said = json.loads(body)
    assert (path, headers["content-type"]) == ("/hook", "application/json")
    assert {k: said[k] for k in ("version", "id", "event", "topic", "kind", "title", "detail", "at")} == {
        "version": 1, "id": "0a", "event": "begins", "topic": "gateway", "kind": "bad",
        "title": "The gateway is closed", "detail": "Bring it up.", "at": 5.0,
    }  # fmt: skip
    assert said["text"] == "[penchant x:1] The gateway is closed. Bring it up."
    signed = f"{headers['x-penchant-timestamp']}.".encode() + body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["x-penchant-signature"] == f"sha256={expected}"
    assert SECRET.encode() not in body


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_is_not_taken_says_so_without_its_url(
    status: int, tmp_path: Path, web: WebServer
) -> None:
    url = f"http://127.0.0.1:{web.port}/T0KEN"
    (channel,) = channels_of(make_server(tmp_path, notices=NoticeSettings(webhooks=(url,))))
    web.status = status
    with pytest.raises(DeliveryError, match=f"HTTP {status}") as refused:
        channel.send(EVENT)
    assert "T0KEN" not in str(refused.value)


def test_nobody_there_is_said_without_the_url(tmp_path: Path) -> None:
    (channel,) = channels_of(
        make_server(tmp_path, notices=NoticeSettings(webhooks=("http://127.0.0.1:9/T0KEN",)))
    )
    with pytest.raises(DeliveryError, match="can't be reached") as refused:
        channel.send(EVENT)
    assert "T0KEN" not in str(refused.value)


@pytest.mark.parametrize("what", ["body", "head"])
def test_an_answer_without_end_holds_nobody_up(
    what: str, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice_channels, "SEND_SECONDS", 1.0)
    (channel,) = channels_of(
        make_server(tmp_path, notices=NoticeSettings(webhooks=(f"http://127.0.0.1:{web.port}/hook",)))
    )
    web.drips = what
    threading.Timer(8.0, setattr, (web, "drips", "")).start()
    began = time.monotonic()
    if what == "body":
        channel.send(EVENT)  # its status is all that counts
    else:
        with pytest.raises(DeliveryError, match="can't be reached: TimeoutError"):
            channel.send(EVENT)
    assert time.monotonic() - began < 5
    web.drips = ""


def test_the_environment_sends_no_notice_another_way(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login olga password T0KEN\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    settings = NoticeSettings(webhooks=(f"http://127.0.0.1:{web.port}/hook",))
    (channel,) = channels_of(make_server(tmp_path, notices=settings))
    channel.send(EVENT)
    assert "authorization" not in web.got[0][1]


# --- mail -------------------------------------------------------------------------------------------


def mail_settings(port: int, **changes: Any) -> NoticeSettings:
    given = {"smtp_host": "localhost", "smtp_port": port, "mail_from": "fleet@example.org"}
    return NoticeSettings(**{**given, "mail_to": ("ops@example.org", "olga@example.org"), **changes})


def test_mail_goes_by_starttls_with_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = KeyAndCertificate(tmp_path / "ca.pem", tmp_path / "ca.key")
    leaf = KeyAndCertificate(tmp_path / "leaf.pem", tmp_path / "leaf.key")
    make_ca(ca, "mail")
    issue(ca, leaf, ("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.certificate, leaf.key)
    mail = MailServer(context)
    with serving(mail):
        settings = mail_settings(mail.port, smtp_user="fleet", smtp_password="mail.secret")
        server = make_server(tmp_path, notices=settings)
        (server.path / "mail.secret").write_text(SECRET)
        (channel,) = channels_of(server)
        with pytest.raises(DeliveryError, match="SSLCertVerificationError"):
            channel.send(EVENT)  # a certificate that nobody vouches for
        assert (mail.logins, mail.mails) == ([], [])
        monkeypatch.setenv("SSL_CERT_FILE", str(ca.certificate))
        channel.send(EVENT)
    assert mail.logins == [f"\0fleet\0{SECRET}"]
    (text,) = mail.mails
    message = email.message_from_string(text)
    assert message["Subject"] == "[penchant x:1] The gateway is closed"
    assert message["To"] == "ops@example.org, olga@example.org"
    assert "Bring it up." in str(message.get_payload())


def test_mail_that_is_refused_says_so_without_secrets(tmp_path: Path) -> None:
    mail = MailServer()
    with serving(mail):
        settings = mail_settings(
            mail.port, smtp_security="none", smtp_user="fleet", smtp_password="mail.secret"
        )
        server = make_server(tmp_path, notices=settings)
        (server.path / "mail.secret").write_text(SECRET)
        (channel,) = channels_of(server)
        mail.refuses = True
        with pytest.raises(DeliveryError, match="mail by localhost fails: SMTPRecipientsRefused") as refused:
            channel.send(EVENT)
    assert SECRET not in repr(refused.value)
    assert "olga" not in str(refused.value)


def test_a_password_that_mail_cant_send_is_said_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mail = MailServer()
    with serving(mail):
        settings = mail_settings(mail.port, smtp_security="none", smtp_user="u", smtp_password="mail.secret")
        server = make_server(tmp_path, notices=settings)
        (server.path / "mail.secret").write_text("schlüssel")
        assert notify(monkeypatch, server.path, "--test") == 1
    assert capsys.readouterr().err == "mail by localhost fails: UnicodeEncodeError\n"


def test_a_mail_server_whose_name_is_none_is_said(tmp_path: Path) -> None:
    settings = mail_settings(25, smtp_host="mail..example.org")
    (channel,) = channels_of(make_server(tmp_path, notices=settings))
    with pytest.raises(DeliveryError, match="fails: Unicode"):
        channel.send(EVENT)


# --- settings and the command -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"webhooks": ("http://example.org/T0KEN",)}, "must begin with https"),
        ({"webhooks": ("ftp://example.org/T0KEN",)}, "must begin with https"),
        ({"webhooks": ("https://[T0KEN",)}, "not a URL"),
        ({"smtp_host": "mail.example.org"}, "mail_from and mail_to"),
        (
            {"smtp_host": "m", "mail_from": "a@b", "mail_to": ("no\r\nBcc: x@y",)},
            "not a mail address",
        ),
        ({"smtp_host": "m", "mail_from": "a@b", "mail_to": ("a@b",), "smtp_user": "x"}, "belong together"),
        ({"smtp_host": "m", "mail_from": "a@b", "mail_to": ("a@b",), "smtp_security": "none"}, "beyond this"),
    ],
)
def test_settings_that_cant_work_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        NoticeSettings(**wrong)
    assert "T0KEN" not in str(refused.value)


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = mail_settings(25, webhooks=("https://example.org/hook",), after_seconds=0)
    server = make_server(tmp_path, notices=settings)
    assert ServerDirectory(server.path).settings.notices == settings
    assert "[notices]" in (server.path / SETTINGS).read_text()
    assert server.settings.signals


def test_a_secret_that_is_missing_is_said(tmp_path: Path) -> None:
    settings = NoticeSettings(webhooks=("https://example.org",), webhook_secret="hook.secret")
    server = make_server(tmp_path, notices=settings)
    with pytest.raises(ConfigError, match="holds no secret"):
        channels_of(server)
    (server.path / "hook.secret").write_text("short")
    with pytest.raises(ConfigError, match="fewer than 16") as refused:
        channels_of(server)
    assert "short" not in str(refused.value)


def notify(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["penchant", "server", "notify", *map(str, words)])
    with pytest.raises(SystemExit) as leave:
        main()
    return int(leave.value.code or 0)


def test_a_test_notice_says_which_way_works(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = (f"http://127.0.0.1:{web.port}/hook", "http://127.0.0.1:9/hook")
    server = make_server(tmp_path, notices=NoticeSettings(webhooks=urls))
    assert notify(monkeypatch, server.path, "--test") == 1
    out, err = capsys.readouterr()
    assert out == "webhook 1 (127.0.0.1): sent\n"
    assert err == "webhook 2 (127.0.0.1) can't be reached: ConnectError\n"
    assert json.loads(web.got[0][2])["event"] == "test"


def test_whom_nobody_is_named_is_told_so(
    server: ServerDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notify(monkeypatch, server.path, "--test") == 2
    assert "names nobody to tell" in capsys.readouterr().err
    assert notify(monkeypatch, server.path) == 0
    assert "! The gateway is closed. " in capsys.readouterr().out


def test_secrets_are_in_no_log(tmp_path: Path, web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"http://127.0.0.1:{web.port}/T0KEN"
    settings = NoticeSettings(webhooks=(url,), webhook_secret="hook.secret", after_seconds=0)
    server = make_server(tmp_path, notices=settings)
    (server.path / "hook.secret").write_text(SECRET)
    web.status = 500
    watch = Watch()
    watch.notices = (DOWN,)
    Notifier(server, watch, channels_of(server)).step()  # type: ignore[arg-type]
    assert len(web.got) == 1
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("penchant")]
    assert ours == ["webhook 1 (127.0.0.1) answers HTTP 500; tried again in 15 s"]
    assert SECRET not in caplog.text
