"""A device joins with a token: the whole way in one process, and every way in that must stay shut."""

from __future__ import annotations

import json
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

from penchant.client.agent.agent import Agent
from penchant.client.agent.owner import member_identity
from penchant.client.device import joining
from penchant.client.device.current_agent import CurrentAgent
from penchant.client.device.device import Device
from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.errors import (
    CertificateError,
    CodecError,
    ConfigError,
    DeviceError,
    EnrolmentError,
    EnrolmentPending,
    JournalError,
    MembershipError,
    OlderList,
    TokenError,
    UsageError,
)
from penchant.common.membership.enrolment import (
    Answer,
    JoinReply,
    JoinRequest,
    LeaveNotice,
    NamedRequest,
    request,
)
from penchant.common.membership.identity import MemberList
from penchant.common.membership.join_token import JoinToken, Terms
from penchant.common.network import Budget
from penchant.common.wire.codec import decode, encode
from penchant.common.wire.messages import Abort, AbortCode, Hello, Status
from penchant.deploy.cli import authority as authority_cli
from penchant.deploy.fleet import recorded_acts
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import PendingDecision, attend
from penchant.deploy.fleet.declined_request import SAID_MOST, DeclinedRequest
from penchant.deploy.fleet.enrolment import EnrolmentRegistry, hand_out, request_revocation
from penchant.deploy.fleet.enrolment_service import build_service
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.fleet.shared_folder import SharedFolder

DAY = 86400


@dataclass
class Nodes:
    """Stands for the SuperLink: which keys may connect."""

    known: dict[int, bytes] = field(default_factory=dict)
    up: bool = True
    last: int = 2**63  # Flower's ids fill 64 bits

    def register(self, public_key: bytes, name: str) -> int:
        self._answer()
        self.last += 1
        self.known[self.last] = public_key
        return self.last

    def unregister(self, node: int) -> None:
        self._answer()
        self.known.pop(node, None)

    def _answer(self) -> None:
        if not self.up:
            raise JournalError("the SuperLink is silent")


@dataclass
class Fleet:
    """A server with its service, and an authority, on one disk."""

    server_directory: ServerDirectory
    authority_store: AuthorityStore
    nodes: Nodes
    moment: float
    seen: list[tuple[str, bytes]] = field(default_factory=list)  # (path, body) of what devices sent

    def connect(self, address: str, context: ssl.SSLContext | None) -> httpx.Client:
        """As `joining.https`, straight into the service; the pinned CA is what the token's digest says."""
        service = build_service(self.server_directory, self.nodes, clock=lambda: self.moment, collect=False)
        client = TestClient(service, base_url=f"http://{address}", raise_server_exceptions=False)

        def note(request: httpx.Request) -> None:
            self.seen.append((request.url.path, request.read()))

        client.event_hooks["request"] = [note]
        return client  # type: ignore[return-value]

    def token(self, name: str = "kitchen") -> JoinToken:
        return hand_out(self.server_directory.path, name, time.time() + DAY)

    def attend(self, *, grant: bool | None = True) -> list[str]:
        return attend(
            self.authority_store,
            self.server_directory.requests,
            self.server_directory.answers,
            lambda decision: grant,
        )

    def join(self, home: Path, token: JoinToken) -> int:
        return joining.join(Device(home), token, home / "node", home / "agent.sock", self.connect)

    def enrol(self, home: Path, token: JoinToken) -> int:
        with pytest.raises(EnrolmentPending):
            self.join(home, token)
        self.attend()
        return self.join(home, token)

    def post(self, body: bytes) -> httpx.Response:
        with self.connect("fleet.example:8443", None) as client:
            return client.post("/enrol/join", content=body)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    authority_store = AuthorityStore.init(tmp_path / "authority")
    settings = ServerSettings(addresses=("fleet.example",))
    server_directory = ServerDirectory.create(
        tmp_path / "server", settings, authority_store.authority.public_key, authority_store.latest()
    )
    return Fleet(server_directory, authority_store, Nodes(), time.time())


# --- the token ------------------------------------------------------------------------------------


def test_a_token_is_one_line_that_holds_all_that_is_trusted(fleet: Fleet) -> None:
    token = fleet.token()
    text = token.text()
    assert (len(text.split()), len(text) < 300) == (1, True)
    again = JoinToken.read(f" {text[:40]}\n{text[40:]} ", time.time())  # as mail wraps it
    assert again == token
    assert token.terms.ca == fleet.server_directory.ca_digest
    assert token.terms.authority == fleet.authority_store.digest
    assert token.terms.address == "fleet.example:8443"
    assert repr(token).count("private") == 0
    assert token.private.hex() not in repr(token)


def test_a_damaged_token_is_refused_before_anything_is_asked(fleet: Fleet) -> None:
    text = fleet.token().text()
    for at in range(len("penchant1_"), len(text), 7):
        other = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(TokenError, match="damaged"):
            JoinToken.read(other, time.time())
    for bad in ("", "penchant1_", text[:-5], text + "AA", "penchant2_" + text[10:], "penchant1_" + "é" * 40):
        with pytest.raises(TokenError):
            JoinToken.read(bad, time.time())


def test_a_token_ends(fleet: Fleet) -> None:
    text = fleet.token().text()
    with pytest.raises(TokenError, match="past its date"):
        JoinToken.read(text, time.time() + DAY)
    for moment in (time.time() - 1, time.time() + 100 * DAY):
        with pytest.raises(UsageError, match="90 days"):
            hand_out(fleet.server_directory.path, "kitchen", moment)


def test_the_server_keeps_no_token_that_could_be_stolen(fleet: Fleet) -> None:
    token = fleet.token()
    for path in fleet.server_directory.path.rglob("*"):
        if path.is_file():
            assert token.private not in path.read_bytes(), path


# --- a token is taken back ------------------------------------------------------------------------


def test_a_withdrawn_token_lets_nobody_in(fleet: Fleet, tmp_path: Path) -> None:
    token, other = fleet.token(), fleet.token("cellar")
    registry = EnrolmentRegistry(fleet.server_directory)
    registry.withdraw(token.name)
    with pytest.raises(EnrolmentError, match="no such token"):
        fleet.join(tmp_path / "device", token)
    assert [row.token for row in registry.enrolments()] == [other.name]
    assert list(fleet.server_directory.requests.iterdir()) == []
    for name in (token.name, "", "nothing"):
        with pytest.raises(UsageError, match="there is no token"):
            registry.withdraw(name)


def test_a_request_is_denied_before_the_authority_has_answered(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token()
    with pytest.raises(EnrolmentPending):
        fleet.join(tmp_path / "device", token)
    registry = EnrolmentRegistry(fleet.server_directory)
    registry.withdraw(token.name)
    assert list(fleet.server_directory.requests.glob("*.request")) == []  # the authority is asked no more
    with pytest.raises(EnrolmentError, match="no such token"):
        fleet.join(tmp_path / "device", token)
    assert registry.enrolments() == []


def test_an_answer_to_a_denied_request_lets_nobody_in(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token()
    with pytest.raises(EnrolmentPending):
        fleet.join(tmp_path / "device", token)
    fleet.attend()  # it was quicker
    registry = EnrolmentRegistry(fleet.server_directory)
    registry.withdraw(token.name)
    registry.collect(fleet.nodes)
    assert fleet.nodes.known == {}
    with pytest.raises(EnrolmentError, match="no such token"):
        fleet.join(tmp_path / "device", token)


def test_a_member_is_revoked_and_not_withdrawn(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token()
    number = fleet.enrol(tmp_path / "device", token)
    with pytest.raises(UsageError, match=f"member {number} joined with token"):
        EnrolmentRegistry(fleet.server_directory).withdraw(token.name)
    assert fleet.join(tmp_path / "device", token) == number


# --- a device joins -------------------------------------------------------------------------------


def test_a_device_joins(fleet: Fleet, tmp_path: Path) -> None:
    home, token = tmp_path / "device", fleet.token()
    with pytest.raises(EnrolmentPending, match="has not answered"):
        fleet.join(home, token)
    (waiting,) = EnrolmentRegistry(fleet.server_directory).enrolments()
    assert (waiting.state, waiting.name, waiting.member) == ("waiting", "kitchen", None)
    with pytest.raises(EnrolmentPending, match=waiting.fingerprint):  # what both sides compare
        fleet.join(home, token)
    assert fleet.attend() == ["member 1: kitchen"]
    assert fleet.join(home, token) == 1
    assert fleet.join(home, token) == 1  # again: nothing happens
    device, node = Device(home), SuperNodeFiles.read(home / "node")
    assert device.member == 1
    assert node.superlink == "fleet.example:8443"
    assert node.ca.read_bytes() == fleet.server_directory.ca
    assert stat.S_IMODE(node.key.stat().st_mode) == 0o600
    assert node.key.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY")
    (enrolled,) = EnrolmentRegistry(fleet.server_directory).enrolments()
    assert (enrolled.state, enrolled.member, [enrolled.node]) == ("enrolled", 1, list(fleet.nodes.known))
    assert (
        list(fleet.server_directory.requests.iterdir())
        == list(fleet.server_directory.answers.iterdir())
        == []
    )
    (only,) = {body for path, body in fleet.seen if path == "/enrol/join"}  # the same request each time
    assert JoinRequest.decode(only).node_key in fleet.nodes.known.values()


def test_private_keys_stay_on_the_device(fleet: Fleet, tmp_path: Path) -> None:
    home, token = tmp_path / "device", fleet.token()
    fleet.enrol(home, token)
    secrets = [token.private, token.private.hex().encode(), member_identity(Device(home)).private]
    sent = b"".join(body for _, body in fleet.seen)
    kept = b"".join(p.read_bytes() for p in fleet.server_directory.path.rglob("*") if p.is_file())
    for secret in secrets:
        assert secret not in sent + kept


def test_what_the_authority_leaves_undecided_stays_out_and_waits(fleet: Fleet, tmp_path: Path) -> None:
    home, token, asked = tmp_path / "device", fleet.token(), []
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)

    def later(decision: PendingDecision) -> None:
        asked.append(decision)

    assert (
        attend(fleet.authority_store, fleet.server_directory.requests, fleet.server_directory.answers, later)
        == []
    )
    assert [(m.kind, m.what) for m in asked] == [("enrol", "kitchen")]
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    assert fleet.nodes.known == {}
    fleet.attend()
    assert fleet.join(home, token) == 1


def test_the_owner_of_a_device_that_the_authority_declines_is_told(fleet: Fleet, tmp_path: Path) -> None:
    home, token = tmp_path / "device", fleet.token()
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    assert fleet.attend(grant=False) == ["the request of kitchen is declined"]
    assert fleet.attend() == []  # it is settled, before the server has looked and after
    with pytest.raises(EnrolmentError, match="the authority declined; ask the operator for another token"):
        fleet.join(home, token)
    registry = EnrolmentRegistry(fleet.server_directory)
    (row,) = registry.enrolments()
    assert (row.state, row.name, row.member) == ("declined", "kitchen", None)
    folders = (fleet.server_directory.requests, fleet.server_directory.answers)
    assert [list(folder.iterdir()) for folder in folders] == [[], []]
    other = fleet.token()  # the same device, better known by now
    assert fleet.enrol(home, other) == 1
    registry.withdraw(token.name)
    assert [row.state for row in registry.enrolments()] == ["enrolled"]


def test_who_is_a_member_is_not_declined_afterwards(fleet: Fleet, tmp_path: Path) -> None:
    home, token = tmp_path / "device", fleet.token()
    number = fleet.enrol(home, token)
    late = fleet.server_directory.answers / f"{token.name}.declined"
    late.write_bytes(b"the authority declined")
    EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)
    assert fleet.join(home, token) == number
    assert not late.exists()  # it is put aside


def test_an_authority_on_a_stick(fleet: Fleet, tmp_path: Path) -> None:
    """Requests and answers are files: they may be carried, late and more than once."""
    home, token = tmp_path / "device", fleet.token("ein Gerät")
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    (file,) = fleet.server_directory.requests.iterdir()
    answer = fleet.authority_store.issue(NamedRequest.decode(file.read_bytes()).request)
    for _ in range(2):
        (fleet.server_directory.answers / "whatever.answer").write_bytes(answer.encode())
        EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)
    assert fleet.join(home, token) == 1
    assert list(fleet.server_directory.answers.iterdir()) == []


def test_a_node_is_registered_before_its_device_hears_the_answer(fleet: Fleet, tmp_path: Path) -> None:
    home, token = tmp_path / "device", fleet.token()
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    fleet.attend()
    fleet.nodes.up = False
    with pytest.raises(EnrolmentPending):  # it could not connect
        fleet.join(home, token)
    fleet.nodes.up = True
    assert fleet.join(home, token) == 1


def test_a_device_that_has_left_joins_with_new_keys(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "device"
    fleet.enrol(home, fleet.token())
    first = SuperNodeFiles.read(home / "node").key.read_bytes()
    other = fleet.token()
    with pytest.raises(UsageError, match="leave"):
        fleet.join(home, other)
    Device(home).leave()
    assert fleet.enrol(home, other) == 2
    assert SuperNodeFiles.read(home / "node").key.read_bytes() != first


def test_a_running_agent_answers_as_the_member_that_its_owner_became(fleet: Fleet, tmp_path: Path) -> None:
    home, told = tmp_path / "device", list[int]()
    fleet.enrol(home, fleet.token())
    agent = CurrentAgent(Device(home), told.append)
    ask = encode(Hello(bytes(16), ()))
    assert decode(agent.answer("status", ask), Status).member == 1
    Device(home).leave()  # by another process, as the next lines are
    assert decode(agent.answer("status", ask), Abort).code is AbortCode.POLICY
    assert fleet.enrol(home, fleet.token()) == 2
    assert decode(agent.answer("status", ask), Abort).code is AbortCode.POLICY  # what was begun has ended
    assert told == [2]
    assert decode(agent.answer("status", ask), Status).member == 2


def test_an_agent_that_can_not_become_another_yet_tries_again(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "device"
    fleet.enrol(home, fleet.token())
    device = Device(home)
    agent, make, left = CurrentAgent(device), device.agent, [DeviceError("the disk is full")]

    def full_at_first() -> Agent:
        if left:
            raise left.pop()
        return make()

    monkeypatch.setattr(device, "agent", full_at_first)
    Device(home).leave()
    fleet.enrol(home, fleet.token())
    ask = encode(Hello(bytes(16), ()))
    for _ in range(2):
        assert decode(agent.answer("status", ask), Abort).code is AbortCode.POLICY
    assert decode(agent.answer("status", ask), Status).member == 2


# --- ways in that stay shut -----------------------------------------------------------------------


def test_a_token_is_used_once(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token()
    fleet.enrol(tmp_path / "device", token)
    with pytest.raises(EnrolmentError, match="another device"):
        fleet.join(tmp_path / "thief", token)
    assert Device(tmp_path / "thief").member is None


def test_a_token_that_was_not_used_in_time_is_refused_by_the_server(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token()
    fleet.moment = time.time() + 2 * DAY  # the device's own clock is behind
    with pytest.raises(EnrolmentError, match="past its date"):
        fleet.join(tmp_path / "device", token)
    assert list(fleet.server_directory.requests.iterdir()) == []


def test_a_token_that_was_used_in_time_may_wait_for_the_authority(fleet: Fleet, tmp_path: Path) -> None:
    home, token = tmp_path / "device", fleet.token()
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    fleet.moment = time.time() + 20 * DAY
    fleet.attend()
    assert fleet.join(home, token) == 1


def test_a_token_of_another_server_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    stranger = JoinToken.create(fleet.token().terms)
    with pytest.raises(EnrolmentError, match="no such token"):
        fleet.join(tmp_path / "device", stranger)


@pytest.mark.parametrize("changed", ["address", "expires", "authority"])
def test_a_token_whose_terms_were_changed_is_refused_by_the_server(
    fleet: Fleet, tmp_path: Path, changed: str
) -> None:
    """Someone on the way rewrote it, checksum and all: the request is over what the device was told."""
    token = fleet.token()
    value = {"address": "evil.example:1", "expires": token.terms.expires + DAY, "authority": bytes(32)}[
        changed
    ]
    forged = JoinToken(replace(token.terms, **{changed: value}), token.private)
    with pytest.raises(EnrolmentError, match="token was changed"):
        fleet.join(tmp_path / "device", JoinToken.read(forged.text(), time.time()))


def test_another_server_at_the_tokens_address_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """Nothing is sent to a server whose CA does not have the token's digest."""
    token = fleet.token()
    forged = JoinToken(replace(token.terms, ca=bytes(32)), token.private)
    with pytest.raises(EnrolmentError, match="do not go on"):
        fleet.join(tmp_path / "device", forged)
    assert [path for path, _ in fleet.seen] == ["/enrol/ca"]
    assert not (tmp_path / "device" / "node").exists()


@pytest.mark.parametrize("size", [20_000, 2_000_000])
def test_whoever_answers_can_not_fill_the_device(fleet: Fleet, tmp_path: Path, size: int) -> None:
    taken = []

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for _ in range(size // 1000):
                taken.append(1000)
                yield b"x" * 1000

    def flood(address: str, context: ssl.SSLContext | None) -> httpx.Client:
        transport = httpx.MockTransport(lambda asked: httpx.Response(200, stream=Endless()))
        return httpx.Client(base_url="https://x", transport=transport)

    home = tmp_path / "device"
    with pytest.raises(EnrolmentError, match="too long"):
        joining.join(Device(home), fleet.token(), home / "node", home / "agent.sock", flood)
    assert sum(taken) < 100_000


def test_an_answer_of_another_authority_is_refused_by_the_device(fleet: Fleet, tmp_path: Path) -> None:
    """The server lies: it has the request certified by an authority of its own."""
    home, token, other = tmp_path / "device", fleet.token(), AuthorityStore.init(tmp_path / "other")
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    forged = other.issue(
        NamedRequest.decode(next(fleet.server_directory.requests.iterdir()).read_bytes()).request
    )

    def lying(address: str, context: ssl.SSLContext | None) -> httpx.Client:
        def respond(asked: httpx.Request) -> httpx.Response:
            good = (
                fleet.server_directory.ca
                if asked.url.path == "/enrol/ca"
                else JoinReply(forged.encode()).encode()
            )
            return httpx.Response(200, content=good)

        return httpx.Client(base_url="https://x", transport=httpx.MockTransport(respond))

    with pytest.raises(CertificateError, match="a different authority"):
        joining.join(Device(home), token, home / "node", home / "agent.sock", lying)
    assert Device(home).member is None


def test_a_foreign_answer_at_the_server_is_put_aside(fleet: Fleet, tmp_path: Path) -> None:
    home, token, other = tmp_path / "device", fleet.token(), AuthorityStore.init(tmp_path / "other")
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    asked = NamedRequest.decode(next(fleet.server_directory.requests.iterdir()).read_bytes()).request
    (fleet.server_directory.answers / "a.answer").write_bytes(other.issue(asked).encode())
    (fleet.server_directory.answers / "b.answer").write_bytes(b"junk")
    (fleet.server_directory.answers / "c.answer").write_bytes(
        fleet.authority_store.issue(request(bytes(range(32)))).encode()
    )
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    assert sorted(p.name for p in fleet.server_directory.answers.iterdir()) == [
        "a.answer.refused", "b.answer.refused", "c.answer.refused",
    ]  # fmt: skip
    assert fleet.nodes.known == {}


def test_a_replayed_request_enrols_nobody_else(fleet: Fleet, tmp_path: Path) -> None:
    """Who has the bytes of a request gets what it got: a certificate for a key that they don't have."""
    home, token = tmp_path / "device", fleet.token()
    fleet.enrol(home, token)
    body = next(body for path, body in fleet.seen if path == "/enrol/join")
    reply = JoinReply.decode(fleet.post(body).content)
    assert Answer.decode(reply.answer, fleet.authority_store.digest).certificate.member == 1
    assert len(EnrolmentRegistry(fleet.server_directory).enrolments()) == len(fleet.nodes.known) == 1


def test_a_used_identity_or_node_key_is_refused_with_another_token(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    sent = JoinRequest.decode(next(body for path, body in fleet.seen if path == "/enrol/join"))
    again = fleet.token().sign(sent.asked, sent.node_key)
    assert fleet.post(again.encode()).status_code == 403
    stolen = fleet.token().sign(request(bytes([9]) * 32), sent.node_key)
    assert fleet.post(stolen.encode()).status_code == 403
    assert len(fleet.nodes.known) == 1


def test_tampered_requests_are_refused_in_one_line(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(EnrolmentPending):
        fleet.join(tmp_path / "device", fleet.token())
    body = next(body for path, body in fleet.seen if path == "/enrol/join")
    for at in range(0, len(body), 9):
        bad = fleet.post(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        assert bad.status_code in (400, 403), at
        assert len(json.loads(bad.content)["error"].splitlines()) == 1
    assert fleet.post(body + b"\0").status_code == 400
    assert fleet.post(b"").status_code == 400
    assert fleet.post(bytes(100_000)).status_code == 413
    assert len(EnrolmentRegistry(fleet.server_directory).enrolments()) == 1


@given(st.binary(max_size=800))
def test_no_bytes_break_the_reading_of_requests_and_replies(data: bytes) -> None:
    for read in (JoinRequest.decode, JoinReply.decode, NamedRequest.decode):
        with suppress(CodecError, CertificateError):
            assert read(data).encode() == data


@given(st.text(max_size=400), st.booleans())
def test_no_text_breaks_the_reading_of_tokens(text: str, prefixed: bool) -> None:
    with pytest.raises(TokenError):
        JoinToken.read("penchant1_" * prefixed + text, 0.0)


@pytest.mark.parametrize("pem", [b"", b"junk", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"])
def test_a_node_key_that_is_none_is_refused(fleet: Fleet, pem: bytes) -> None:
    said = fleet.post(fleet.token().sign(request(bytes([3]) * 32), pem).encode())
    assert (said.status_code, "PEM" in said.json()["error"]) == (403, True)


def test_there_is_nothing_else_to_be_called(fleet: Fleet) -> None:
    with fleet.connect("x", None) as client:
        for path in ("/", "/docs", "/openapi.json", "/enrol/", "/enrol/join/", "/enrol/members"):
            assert client.get(path, follow_redirects=False).status_code in (404, 307), path
        assert client.get("/enrol/join").status_code == 405
        assert client.post("/enrol/ca").status_code == 405


def test_each_address_has_a_budget(fleet: Fleet) -> None:
    moment = [0.0]
    budget = Budget(60, clock=lambda: moment[0])
    assert [budget.spend("a") for _ in range(31)] == [True] * 30 + [False]
    assert budget.spend("b")
    moment[0] = 1.0
    assert [budget.spend("a"), budget.spend("a")] == [True, False]
    with fleet.connect("x", None) as client:
        codes = [client.get("/enrol/ca", headers={"X-Real-IP": "1.2.3.4"}).status_code for _ in range(31)]
        assert codes == [200] * 30 + [429]
        assert client.get("/enrol/ca", headers={"X-Real-IP": "1.2.3.5"}).status_code == 200


# --- revocation -----------------------------------------------------------------------------------


def test_a_revoked_member_is_out_at_the_server(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token()
    fleet.enrol(tmp_path / "device", token)
    path = request_revocation(fleet.server_directory.path, 1, "lost")
    assert fleet.attend(grant=None) == []
    assert fleet.attend() == ["member 1 is revoked"]
    EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)
    assert fleet.nodes.known == {}
    assert not path.exists()
    assert [e.state for e in EnrolmentRegistry(fleet.server_directory).enrolments()] == ["out"]
    body = next(body for path, body in fleet.seen if path == "/enrol/join")
    assert fleet.post(body).status_code == 403
    with pytest.raises(UsageError, match="no member 1"):
        request_revocation(fleet.server_directory.path, 1)


def test_a_revocation_that_the_authority_declines_is_on_record(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    path = request_revocation(fleet.server_directory.path, 1, "lost")
    assert fleet.attend(grant=False) == ["the revocation of member 1 is declined"]
    EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)
    assert not path.exists()  # nobody waits for it
    assert fleet.server_directory.membership().holds(1)
    acts: list[recorded_acts.Act] = []
    recorded_acts.take(fleet.server_directory.path, acts.append)
    ((by, action, member, outcome),) = [(a.account, a.action, a.target, a.outcome) for a in acts]
    assert (by, action, member) == ("the authority", "revoke a member", "1")
    assert outcome == "refused: the authority declined"
    request_revocation(fleet.server_directory.path, 1, "lost, really")  # and asked for once more
    assert fleet.attend() == ["member 1 is revoked"]


@contextmanager
def only_reading(answers: Path) -> Iterator[None]:
    """Inside, nothing in the authority's folder can be changed, as where it belongs to another user."""
    remove, set_aside = SharedFolder.remove, SharedFolder.set_aside
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            SharedFolder, "remove", lambda folder, name: folder.path != answers and remove(folder, name)
        )
        patched.setattr(
            SharedFolder, "set_aside", lambda folder, name: folder.path != answers and set_aside(folder, name)
        )
        yield


def audit(fleet: Fleet) -> list[tuple[str, str, str]]:
    """(action, target, outcome) of what is new on record."""
    acts: list[recorded_acts.Act] = []
    recorded_acts.take(fleet.server_directory.path, acts.append)
    return [(act.action, act.target, act.outcome) for act in acts]


DECLINED = ("revoke a member", "1", "refused: the authority declined")


def test_what_was_declined_can_be_asked_once_more_where_the_server_only_reads_answers(
    fleet: Fleet, tmp_path: Path
) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    server, registry = fleet.server_directory, EnrolmentRegistry(fleet.server_directory)
    for reason in ("lost", "lost, really"):
        request_revocation(server.path, 1, reason)
        assert fleet.attend(grant=False) == ["the revocation of member 1 is declined"]
        with only_reading(server.answers):
            registry.collect(fleet.nodes)
        assert revocations(fleet) == []
        assert [path.name for path in server.answers.iterdir()] == ["revoke-1.declined"]
        assert fleet.attend() == []  # the authority clears up
        assert list(server.answers.iterdir()) == []
        registry.collect(fleet.nodes)


@pytest.mark.parametrize("reason", ["lost", "stolen"])
def test_a_decline_is_about_one_request_and_no_later_one_of_that_member(
    fleet: Fleet, tmp_path: Path, reason: str
) -> None:
    """The second one, for the same reason or another, comes before the authority looks again; the server is
    started anew."""
    fleet.enrol(tmp_path / "device", fleet.token())
    server, registry = fleet.server_directory, EnrolmentRegistry(fleet.server_directory)
    request_revocation(server.path, 1, "lost")
    fleet.attend(grant=False)
    with only_reading(server.answers):
        registry.collect(fleet.nodes)
        assert audit(fleet) == [DECLINED]
        request_revocation(server.path, 1, reason)
        for again in (registry, EnrolmentRegistry(server)):
            again.collect(fleet.nodes)
            assert revocations(fleet) == [{"member": 1, "why": reason}]
            assert audit(fleet) == []  # nobody decided anything
    assert fleet.attend(grant=None) == []
    assert [path.name for path in server.answers.iterdir()] == ["revoke-1.declined"]  # the old one
    assert fleet.attend(grant=False) == ["the revocation of member 1 is declined"]
    with only_reading(server.answers):
        registry.collect(fleet.nodes)
        assert audit(fleet) == [DECLINED]  # the second time, too
        request_revocation(server.path, 1, reason)
    assert fleet.attend() == ["member 1 is revoked"]
    with only_reading(server.answers):
        EnrolmentRegistry(server).collect(fleet.nodes)
    assert not server.membership().holds(1)
    assert (revocations(fleet), audit(fleet)) == ([], [])


def test_an_owner_who_leaves_after_a_declined_revocation_is_revoked(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    server = fleet.server_directory
    request_revocation(server.path, 1, "lost")
    fleet.attend(grant=False)
    with only_reading(server.answers):
        EnrolmentRegistry(server).collect(fleet.nodes)
        leave(fleet, tmp_path / "device")
        EnrolmentRegistry(server).collect(fleet.nodes)
        assert revocations(fleet) == [{"member": 1, "why": "its owner left the fleet"}]
    assert fleet.attend() == ["member 1 is revoked"]


def test_a_device_that_was_declined_may_come_again_where_the_server_only_reads_answers(
    fleet: Fleet, tmp_path: Path
) -> None:
    home, token, server = tmp_path / "device", fleet.token(), fleet.server_directory
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    assert fleet.attend(grant=False) == ["the request of kitchen is declined"]
    with only_reading(server.answers):
        with pytest.raises(EnrolmentError, match="the authority declined"):
            fleet.join(home, token)
        other = fleet.token()
        with pytest.raises(EnrolmentPending):  # before the authority looks again
            fleet.join(home, other)
        EnrolmentRegistry(server).collect(fleet.nodes)
    states = {row.token: row.state for row in EnrolmentRegistry(server).enrolments()}
    assert states == {token.name: "declined", other.name: "waiting"}
    assert fleet.attend() == ["member 1: kitchen"]
    with only_reading(server.answers):
        assert fleet.join(home, other) == 1


def test_a_decline_that_names_another_request_lets_a_device_wait(fleet: Fleet, tmp_path: Path) -> None:
    home, token, server = tmp_path / "device", fleet.token(), fleet.server_directory
    with pytest.raises(EnrolmentPending):
        fleet.join(home, token)
    said = DeclinedRequest.of("the authority declined", b"another request")
    for ending in ("declined", "request.rejected"):
        (server.answers / f"{token.name}.{ending}").write_bytes(said.encode())
        EnrolmentRegistry(server).collect(fleet.nodes)
    assert [row.state for row in EnrolmentRegistry(server).enrolments()] == ["waiting"]
    assert list(server.answers.iterdir()) == []
    assert fleet.attend() == ["member 1: kitchen"]


def test_an_earlier_version_s_decline_is_about_an_earlier_version_s_request_alone(
    fleet: Fleet, tmp_path: Path
) -> None:
    """It names no request: of those that carry no nonce there was one, as far as the server knows. The
    authority asks once more."""
    fleet.enrol(tmp_path / "device", fleet.token())
    server = fleet.server_directory
    (server.requests / "revoke-1.json").write_bytes(b'{"member": 1, "why": "lost"}')
    (server.answers / "revoke-1.declined").write_bytes(b"the authority declined")
    assert fleet.attend(grant=None) == []
    with only_reading(server.answers):
        EnrolmentRegistry(server).collect(fleet.nodes)
        assert (revocations(fleet), audit(fleet)) == ([], [DECLINED])
        request_revocation(server.path, 1, "stolen")
        EnrolmentRegistry(server).collect(fleet.nodes)
        assert (revocations(fleet), audit(fleet)) == ([{"member": 1, "why": "stolen"}], [])
    assert fleet.attend() == ["member 1 is revoked"]


def test_what_could_not_be_read_once_is_read_the_next_time(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    server, path = fleet.server_directory, fleet.server_directory.requests / "revoke-1.json"
    for junk in (b"{", bytes(100_000)):  # read, and too large to be
        path.write_bytes(junk)
        (line,) = fleet.attend()
        assert line.startswith("revoke-1.json is refused: ")
        assert fleet.attend() == []  # once
        with only_reading(server.answers):
            EnrolmentRegistry(server).collect(fleet.nodes)
            path.unlink(missing_ok=True)
            request_revocation(server.path, 1, "lost")
            EnrolmentRegistry(server).collect(fleet.nodes)
            assert revocations(fleet) == [{"member": 1, "why": "lost"}]
        assert fleet.attend(grant=False) == ["the revocation of member 1 is declined"]
        with only_reading(server.answers):
            EnrolmentRegistry(server).collect(fleet.nodes)
    assert fleet.attend() == []
    assert list(server.answers.iterdir()) == []  # nothing is left of what is gone


@given(st.text(), st.one_of(st.none(), st.binary(max_size=9)))
def test_what_is_said_of_a_request_names_it(why: str, asked: bytes | None) -> None:
    said = DeclinedRequest.of(why, asked)
    assert len(said.encode()) <= SAID_MOST
    assert DeclinedRequest.decode(said.encode()) == said
    assert not said.is_about(b"another request", once=False)
    if asked is not None:
        assert said.is_about(asked, once=False)


def leave(fleet: Fleet, home: Path) -> LeaveNotice:
    device = Device(home)
    notice, server = device.leave_notice(), joining.KnownServer.of(home / "node")
    device.leave()
    joining.tell_server(notice, server, fleet.connect)
    return notice


def revocations(fleet: Fleet) -> list[dict[str, object]]:
    """What the server asks for, without what makes each request another one."""
    asked = [json.loads(path.read_text()) for path in fleet.server_directory.requests.glob("revoke-*")]
    return [{key: value for key, value in one.items() if key != "nonce"} for one in asked]


def test_who_leaves_tells_the_server_which_asks_the_authority(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    leave(fleet, tmp_path / "device")
    assert revocations(fleet) == [{"member": 1, "why": "its owner left the fleet"}]
    assert fleet.attend() == ["member 1 is revoked"]
    EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)
    assert fleet.nodes.known == {}
    assert revocations(fleet) == []


def test_a_repeated_notice_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    request_revocation(fleet.server_directory.path, 1, "lost")
    body = leave(fleet, tmp_path / "device").encode()
    registry = EnrolmentRegistry(fleet.server_directory)
    assert registry.left(body) == 1
    assert revocations(fleet) == [{"member": 1, "why": "lost"}]  # the first reason stays
    fleet.attend()
    registry.collect(fleet.nodes)
    assert fleet.enrol(tmp_path / "device", fleet.token()) == 2
    assert registry.left(body) == 1  # the old key's: the device that joined again stays
    assert revocations(fleet) == []
    assert fleet.server_directory.membership().holds(2)


def test_an_owner_who_leaves_after_a_revocation_is_told_of_nothing_left_to_do(
    fleet: Fleet, tmp_path: Path
) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    request_revocation(fleet.server_directory.path, 1, "lost")
    fleet.attend()
    EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)
    leave(fleet, tmp_path / "device")  # without an error: there is nothing to tell the authority
    assert revocations(fleet) == []


def test_nobody_else_can_say_that_a_member_left(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "first", fleet.token())
    fleet.enrol(tmp_path / "second", fleet.token("hall"))
    registry = EnrolmentRegistry(fleet.server_directory)
    first, second = (Device(tmp_path / name).leave_notice() for name in ("first", "second"))
    other_fleet = LeaveNotice.of(member_identity(Device(tmp_path / "first")), bytes(32))
    stranger = LeaveNotice(request(bytes(range(32))).public_key, first.signature)
    for notice in (replace(first, public_key=second.public_key), other_fleet, stranger):
        with pytest.raises(CertificateError, match="not signed by the member that it names"):
            registry.left(notice.encode())
    for body in (b"", first.encode() + b"0", first.encode()[:-1], request(bytes(range(32))).encode()):
        with fleet.connect("fleet.example:8443", None) as client:
            assert client.post("/enrol/leave", content=body).status_code in (400, 413)
    assert revocations(fleet) == []


def test_a_server_that_can_not_be_told_keeps_nobody(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "device"
    fleet.enrol(home, fleet.token())

    def nowhere(address: str, context: ssl.SSLContext | None) -> httpx.Client:
        raise httpx.ConnectError("no route")

    notice = Device(home).leave_notice()
    assert Device(home).leave() == 1
    with pytest.raises(
        EnrolmentError, match=r"can't reach the server at fleet\.example:8443 \(ConnectError\)"
    ):
        joining.tell_server(notice, joining.KnownServer.of(home / "node"), nowhere)
    with pytest.raises(ConfigError, match="join a fleet with a token first"):
        joining.KnownServer.of(tmp_path)
    with pytest.raises(UsageError, match="in no fleet"):
        Device(home).leave_notice()


def test_older_and_foreign_lists_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    old = fleet.authority_store.latest()
    fleet.enrol(tmp_path / "device", fleet.token())
    with pytest.raises(OlderList):
        fleet.server_directory.take_members(old)
    with pytest.raises(MembershipError, match="not signed"):
        fleet.server_directory.take_members(AuthorityStore.init(tmp_path / "other").latest())
    current = fleet.server_directory.membership().number
    (fleet.server_directory.answers / "members.list").write_bytes(old)
    EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)  # a copy that arrives late: no offence
    assert fleet.server_directory.membership().number == current
    assert list(fleet.server_directory.answers.iterdir()) == []


def test_a_list_that_has_ended_is_replaced_by_a_newer_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time() + 40 * DAY
    monkeypatch.setattr("time.time", lambda: later)
    with pytest.raises(MembershipError, match="past its date"):
        fleet.server_directory.membership()
    newer = fleet.authority_store.publish()
    assert (
        fleet.server_directory.take_members(newer)
        == MemberList.decode(newer).number
        == fleet.server_directory.membership().number
    )


def test_the_authority_publishes_before_its_list_ends(fleet: Fleet) -> None:
    assert fleet.attend() == []
    soon = time.time() + 24 * DAY
    (line,) = attend(
        fleet.authority_store,
        fleet.server_directory.requests,
        fleet.server_directory.answers,
        lambda m: True,
        now=soon,
    )
    assert "about to end" in line
    assert (fleet.server_directory.answers / "members.list").exists()


def test_nodes_come_back_after_the_superlink_lost_its_record(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    fleet.nodes.known.clear()
    registry = EnrolmentRegistry(fleet.server_directory)
    registry.recheck_nodes()
    registry.collect(fleet.nodes)
    assert len(fleet.nodes.known) == 1


def test_a_revocation_while_the_service_was_down_is_not_forgotten(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "device", fleet.token())
    fleet.server_directory.take_members(fleet.authority_store.revoke(1))
    registry = EnrolmentRegistry(fleet.server_directory)
    registry.recheck_nodes()
    registry.collect(fleet.nodes)
    assert fleet.nodes.known == {}


# --- the server's directory -----------------------------------------------------------------------


def test_a_servers_directory_is_made_once_and_checked_first(fleet: Fleet, tmp_path: Path) -> None:
    key, members = fleet.authority_store.authority.public_key, fleet.authority_store.latest()
    settings = ServerSettings(addresses=("fleet.example",))
    with pytest.raises(UsageError, match="in use"):
        ServerDirectory.create(fleet.server_directory.path, settings, key, members)
    for bad in ((b"short", members), (bytes(32), members)):
        with pytest.raises((UsageError, MembershipError)):
            ServerDirectory.create(tmp_path / "new", settings, *bad)
    assert not (tmp_path / "new").exists()
    for path in (fleet.server_directory.secret, *fleet.server_directory.tls.folder.glob("*.key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_terms_are_what_the_signature_is_over(fleet: Fleet) -> None:
    terms = Terms("a:1", bytes(32), bytes(32), 5)
    assert JoinToken.create(terms) != JoinToken.create(terms)


def test_who_watches_is_asked_once_and_declines_only_by_a_second_word(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnrolmentPending):
        fleet.join(tmp_path / "device", fleet.token())
    folders = (
        "--requests",
        str(fleet.server_directory.requests),
        "--answers",
        str(fleet.server_directory.answers),
    )
    words = ["attend", str(tmp_path / "authority"), *folders, "--watch", "3"]
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("penchant.deploy.cli.authority.time.sleep", sleep)
    later = CliRunner().invoke(authority_cli.app, words, input="n\nn\n")
    assert later.output.count("Does the device's owner see the same fingerprint") == 1  # in three looks
    assert later.output.count("it is left undecided") == 1
    assert [row.state for row in EnrolmentRegistry(fleet.server_directory).enrolments()] == ["waiting"]
    declined = CliRunner().invoke(authority_cli.app, words, input="n\ny\n")
    assert declined.output.count("Decline it for good? Its owner is told, and needs another token") == 1
    assert declined.output.count("the request of kitchen is declined") == 1
    EnrolmentRegistry(fleet.server_directory).collect(fleet.nodes)
    assert [row.state for row in EnrolmentRegistry(fleet.server_directory).enrolments()] == ["declined"]


def test_who_watches_is_asked_about_another_revocation_of_a_member_who_was_left_undecided(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fleet.server_directory
    fleet.enrol(tmp_path / "device", fleet.token())
    path = request_revocation(server.path, 1, "lost")
    folders = ("--requests", str(server.requests), "--answers", str(server.answers))
    reasons = iter(("", "stolen"))

    def sleep(seconds: float) -> None:
        reason = next(reasons, None)
        if reason is None:
            raise KeyboardInterrupt
        if reason:
            path.unlink()
            request_revocation(server.path, 1, reason)

    monkeypatch.setattr("penchant.deploy.cli.authority.time.sleep", sleep)
    words = ["attend", str(tmp_path / "authority"), *folders, "--watch", "3"]
    said = CliRunner().invoke(authority_cli.app, words, input="n\nn\nn\nn\n").output
    assert said.count("Revoke it?") == 2
    assert said.index("lost") < said.index("stolen")
