"""The gateway's configuration, the server's certificates, and what keeps its processes up."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from penchant.common.errors import ConfigError, EnrolmentError, GatewayError, UsageError
from penchant.deploy.fleet import gateway, processes, quickstart
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.certificates import KeyAndCertificate, ca_digest, days_left, issue, make_ca
from penchant.deploy.fleet.health import ailing
from penchant.deploy.fleet.log_files import LogKeeping
from penchant.deploy.fleet.processes import gateway_state
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.fleet.supervisor import ChildProcess, supervise
from penchant.deploy.flower.superlink import FLEET_PATHS, supernode_command
from penchant.deploy.run_directory import claim


@pytest.fixture
def server_directory(tmp_path: Path) -> ServerDirectory:
    authority_store = AuthorityStore.init(tmp_path / "authority")
    settings = ServerSettings(addresses=("fleet.example", "192.0.2.7", "2001:db8::1"), port=8443)
    return ServerDirectory.create(
        tmp_path / "server", settings, authority_store.authority.public_key, authority_store.latest()
    )


@pytest.fixture
def nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has its stream module built in, where there may be none: real ones are in tests/system."""
    program = tmp_path / "bin" / "nginx"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'configure arguments: --with-stream' >&2\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


# --- what passes ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("nginx")
def test_the_gateway_passes_what_a_supernode_asks_for_and_four_paths_of_ours(
    server_directory: ServerDirectory,
) -> None:
    text = gateway.configuration(server_directory)
    passed = dict(re.findall(r"location = (\S+) \{.*?proxy_pass (\S+);", text, re.S))
    ways = dict.fromkeys(FLEET_PATHS, "superlink") | {"push-object": "$way", "push-messages": "$way"}
    fleet = {f"/v1/fleet/{name}": f"https://{way}/v1/fleet/{name}" for name, way in ways.items()}
    ours = {f"/enrol/{name}": f"http://enrolment/enrol/{name}" for name in ("ca", "join", "release", "leave")}
    # each to a fixed address: no path that a client wrote is passed on
    assert passed == fleet | ours | {"/signed": "http://check/check"}
    assert re.findall(r"location ([^=\s]\S*) \{(.*?)\}", text) == [
        ("@again", " return 503; "),
        ("/", " return 404; "),
    ]
    assert text.count("error_page 500 502 =503 @again;") == len(FLEET_PATHS)
    assert "control" not in re.sub(r"#.*", "", text)
    front = server_directory.path / "gateway" / "front.sock"
    assert re.findall(r"listen ([^\s;]+)", text) == ["0.0.0.0:8443", f"unix:{front}"]


def test_the_paths_are_those_of_flowers_own_client() -> None:
    """A version of Flower that asks for more, or less, is noticed here."""
    from flwr.supernode import fleet_http_client

    asked = {
        node.value.removeprefix("/v1/fleet/")
        for node in ast.walk(ast.parse(inspect.getsource(fleet_http_client)))
        if isinstance(node, ast.Constant) and str(node.value).startswith("/v1/fleet/")
    }
    assert asked - set(FLEET_PATHS) == {"register-node", "unregister-node"}  # a node that enrols itself
    assert set(FLEET_PATHS) <= asked


@pytest.mark.usefixtures("nginx")
def test_a_name_that_would_change_the_configuration_is_refused(tmp_path: Path) -> None:
    for bad in ("a b", "a;", "a{", "-a", "", "a\nb", "$host"):
        with pytest.raises(ConfigError):
            ServerSettings(addresses=(bad,))
        with pytest.raises(ConfigError):
            ServerSettings(addresses=("a",), listen=bad)
    with pytest.raises(ConfigError, match="name a host"):
        ServerSettings()
    with pytest.raises(ConfigError, match="user"):
        ServerSettings(addresses=("a",), user="root; ")
    authority_store = AuthorityStore.init(tmp_path / "authority")
    odd = ServerDirectory.create(
        tmp_path / "a;b",
        ServerSettings(addresses=("a",)),
        authority_store.authority.public_key,
        authority_store.latest(),
    )
    with pytest.raises(GatewayError, match="plainer"):
        gateway.configuration(odd)


def test_without_nginx_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(GatewayError, match="apt-get install nginx-light"):
        gateway.find_nginx()


# --- certificates ---------------------------------------------------------------------------------


def test_certificates_hold_the_names_and_verify_under_their_ca_alone(
    server_directory: ServerDirectory, tmp_path: Path
) -> None:
    leaf = x509.load_pem_x509_certificate(server_directory.tls.gateway.certificate.read_bytes())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "2001:db8::1"]
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(server_directory.ca))
    with pytest.raises(ValueError, match=r"subject name|Issuer"):
        leaf.verify_directly_issued_by(
            x509.load_pem_x509_certificate(server_directory.tls.loopback_ca.certificate.read_bytes())
        )


@pytest.mark.parametrize(("name", "good"), [("fleet.example", True), ("192.0.2.7", True), ("other", False)])
def test_a_client_that_pins_the_ca_checks_names(
    server_directory: ServerDirectory, name: str, good: bool
) -> None:
    client = ssl.create_default_context(cadata=server_directory.ca.decode())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(server_directory.tls.gateway.certificate, server_directory.tls.gateway.key)
    assert _handshake(client, server, name) is good
    stranger = ssl.create_default_context(cafile=str(server_directory.tls.loopback_ca.certificate))
    assert not _handshake(stranger, server, name)


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bool:
    """TLS between two buffers; whether the client takes the server for `name`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
            if side is here:
                return True
    return False


def test_a_renewed_certificate_has_a_new_key_and_the_same_ca(server_directory: ServerDirectory) -> None:
    before, digest = server_directory.tls.gateway.key.read_bytes(), server_directory.ca_digest
    server_directory.renew()
    assert server_directory.tls.gateway.key.read_bytes() != before
    assert server_directory.ca_digest == digest
    assert 396 < days_left(server_directory.tls.gateway.certificate) < 398
    assert (
        days_left(server_directory.tls.gateway.certificate, now=datetime.now(UTC) + timedelta(days=400)) < 0
    )
    server_directory.tls.ca.key.unlink()  # kept off the server
    with pytest.raises(UsageError, match="bring the CA's key back"):
        server_directory.renew()


def test_a_ca_is_never_replaced_and_its_key_must_fit(tmp_path: Path) -> None:
    one, other = (KeyAndCertificate(tmp_path / f"{n}.pem", tmp_path / f"{n}.key") for n in "ab")
    make_ca(one, "one")
    make_ca(other, "other")
    with pytest.raises(UsageError, match="exists already"):
        make_ca(one, "one")
    with pytest.raises(UsageError, match="not the key of"):
        issue(
            KeyAndCertificate(one.certificate, other.key),
            KeyAndCertificate(tmp_path / "x", tmp_path / "y"),
            ("a",),
        )
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="not a certificate"):
        ca_digest(b"junk")


# --- processes are kept up ------------------------------------------------------------------------

SLEEPER = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\tZ" not in Path(f"/proc/{pid}/status").read_text().replace(" ", "\t")


def wait_for(true: object, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_dies_is_started_again_and_all_of_it_stops(tmp_path: Path) -> None:
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    parts = [ChildProcess(log.stem, SLEEPER, log, ready=lambda log=log: bool(pids(log))) for log in logs]
    stop, up = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: supervise(parts, stop=stop, announce=up.set))
    thread.start()
    assert up.wait(300)
    os.kill(pids(logs[0])[0], signal.SIGKILL)
    wait_for(lambda: len(pids(logs[0])) == 2)
    stop.set()
    thread.join(120)
    assert [len(pids(log)) for log in logs] == [2, 1]
    assert not any(alive(pid) for log in logs for pid in pids(log))


def test_a_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    program = "import time\nfor n in range(10**9): print(n, flush=True); time.sleep(0.001)"
    stop, log = threading.Event(), tmp_path / "a.log"
    part, logs = ChildProcess("a", [sys.executable, "-c", program], log), LogKeeping(most=1000, kept=2)
    thread = threading.Thread(target=lambda: supervise([part], stop=stop, logs=logs))
    thread.start()
    wait_for((tmp_path / "a.log.2").exists)
    stop.set()
    thread.join(120)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    kept = [path.read_text().split() for path in (tmp_path / "a.log.2", tmp_path / "a.log.1", log)]
    lines = [int(line) for part in kept for line in part]
    assert lines == list(range(lines[0], lines[0] + len(lines)))  # none is lost, none stands twice
    assert all(sum(len(line) + 1 for line in part) <= 1000 for part in kept)


def test_what_can_not_be_started_ends_the_rest(tmp_path: Path) -> None:
    good = ChildProcess(
        "good", SLEEPER, tmp_path / "good.log", ready=lambda: bool(pids(tmp_path / "good.log"))
    )
    ends = ChildProcess("bad", [sys.executable, "-c", "exit(3)"], tmp_path / "bad.log", ready=lambda: False)
    with pytest.raises(GatewayError, match="bad ended with 3"):
        supervise([good, ends], stop=threading.Event())
    assert not alive(pids(tmp_path / "good.log")[0])
    slow = ChildProcess("slow", SLEEPER, tmp_path / "slow.log", ready=lambda: False)
    with pytest.raises(GatewayError, match="not ready after"):
        supervise([slow], stop=threading.Event(), ready_seconds=0.5)


def test_what_is_ready_beside_another_and_has_ended_is_not_up(tmp_path: Path) -> None:
    """As `server up` beside a server that is up: the port answers, and the process was refused."""
    log, said = tmp_path / "a.log", threading.Event()
    program = "import os; print(os.getpid(), flush=True); exit(3)"

    def ready() -> bool:
        wait_for(lambda: pids(log))
        os.waitid(os.P_PID, pids(log)[0], os.WEXITED | os.WNOWAIT)  # it has ended by then
        return True

    part = ChildProcess("a", [sys.executable, "-c", program], log, ready=ready)
    with pytest.raises(GatewayError, match="a ended with 3 when it was started"):
        supervise([part], stop=threading.Event(), announce=said.set)
    assert not said.is_set()


def test_a_server_that_is_up_is_not_brought_up_again(server_directory: ServerDirectory) -> None:
    with claim(server_directory.path, processes.LOCK):
        for again in (processes.up, processes.refuse_up):
            with pytest.raises(UsageError, match=r"server is up already; stop it first") as refused:
                again(server_directory)
            assert "\n" not in str(refused.value)


def test_a_fleet_that_is_up_is_not_brought_up_again(server_directory: ServerDirectory) -> None:
    fleet, said = server_directory.path.parent, list[str]()
    (fleet / "device-1").mkdir()
    with (
        claim(fleet, quickstart.LOCK),
        pytest.raises(UsageError, match=r"is up already, or just coming up; stop that one first"),
        quickstart.live_again(fleet, said.append),
    ):
        pass
    with (
        claim(server_directory.path, processes.LOCK),  # its server alone, by `server up`
        pytest.raises(UsageError, match=r"server is up already; stop it first"),
        quickstart.live_again(fleet, said.append),
    ):
        pass
    assert said == []


def test_a_log_that_is_removed_begins_anew_and_stops_nothing(tmp_path: Path) -> None:
    program = "import time\nfor n in range(10**9): print(n, flush=True); time.sleep(0.01)"
    stop, up, log = threading.Event(), threading.Event(), tmp_path / "a.log"
    part = ChildProcess("a", [sys.executable, "-c", program], log, ready=log.exists)
    thread = threading.Thread(target=lambda: supervise([part], stop=stop, announce=up.set))
    thread.start()
    assert up.wait(300)
    log.unlink()
    wait_for(log.exists)
    log.rename(tmp_path / "rotated")
    wait_for(log.exists)
    assert thread.is_alive()
    stop.set()
    thread.join(120)


def test_a_process_that_can_not_be_started_again_does_not_end_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    stop, up = threading.Event(), threading.Event()
    parts = [
        ChildProcess("a", SLEEPER, tmp_path / "a.log"),
        ChildProcess("b", [sys.executable, "-c", "import time; time.sleep(1)"], folder / "b.log"),
    ]
    thread = threading.Thread(target=lambda: supervise(parts, stop=stop, announce=up.set))
    thread.start()
    assert up.wait(300)
    (folder / "b.log").unlink()
    folder.rmdir()
    wait_for(lambda: "can't start b" in caplog.text)
    assert thread.is_alive()
    folder.mkdir()
    wait_for((folder / "b.log").exists)  # it is tried again
    stop.set()
    thread.join(120)


def test_a_process_whose_end_is_final_ends_all_with_the_reason(tmp_path: Path) -> None:
    final = EnrolmentError("revoked")
    ends = ChildProcess("a", [sys.executable, "-c", "exit(1)"], tmp_path / "a.log", over=lambda: final)
    other = ChildProcess("b", SLEEPER, tmp_path / "b.log", ready=lambda: bool(pids(tmp_path / "b.log")))
    with pytest.raises(EnrolmentError, match="revoked"):
        supervise([other, ends], stop=threading.Event())
    wait_for(lambda: not alive(pids(tmp_path / "b.log")[0]))


# --- who holds the port ---------------------------------------------------------------------------


class Answering:
    """A program at a port of this machine, with a certificate, or without TLS."""

    def __init__(self, pair: KeyAndCertificate | None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._context = None
        if pair is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pair.certificate, pair.key)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection, suppress(OSError):
                    if self._context is not None:
                        self._context.wrap_socket(connection, server_side=True).recv(1)
                    connection.sendall(b"nothing of TLS")

    def close(self) -> None:
        self._socket.close()


def at_port(server_directory: ServerDirectory, port: int) -> ServerDirectory:
    path = server_directory.path / "server.toml"
    text = re.sub(r"(?m)^(listen|port) = .*$", "", path.read_text(encoding="utf-8"))
    path.write_text(f'{text}\nlisten = "127.0.0.1"\nport = {port}\n', encoding="utf-8")
    return ServerDirectory(server_directory.path)


@pytest.mark.parametrize(
    ("who", "state"),
    [("ours", "open"), ("ours, past its date", "open"), ("another fleet", "foreign"), ("no TLS", "foreign")],
)
def test_a_port_that_something_else_holds_is_not_called_open(
    server_directory: ServerDirectory, tmp_path: Path, who: str, state: str
) -> None:
    pair = KeyAndCertificate(tmp_path / "leaf.pem", tmp_path / "leaf.key")
    ca = server_directory.tls.ca
    if who == "another fleet":
        ca = KeyAndCertificate(tmp_path / "ca.pem", tmp_path / "ca.key")
        make_ca(ca, "another")
    long_ago = datetime.now(UTC) - timedelta(days=400) if "past" in who else None
    issue(ca, pair, ("fleet.example",), now=long_ago)
    answering = Answering(None if who == "no TLS" else pair)
    try:
        assert gateway_state(at_port(server_directory, answering.port)) == state
    finally:
        answering.close()


def test_what_says_nothing_at_the_port_is_silent_and_not_called_another_program(
    server_directory: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a gateway that was stopped: the system still lets callers in."""
    monkeypatch.setattr(processes, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        quiet = at_port(server_directory, listening.getsockname()[1])
        assert gateway_state(quiet) == "silent"
        assert ailing(quiet, ["gateway"]) == ["gateway: does not answer"]


def test_nothing_at_the_port_is_a_closed_gateway(server_directory: ServerDirectory) -> None:
    assert gateway_state(at_port(server_directory, 9)) == "closed"


def test_a_server_does_not_start_on_a_port_that_is_taken(
    server_directory: ServerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "ENDING_SECONDS", 0.3)
    answering = Answering(None)
    try:
        with pytest.raises(GatewayError, match=rf"another program listens at 127\.0\.0\.1:{answering.port}"):
            processes.up(at_port(server_directory, answering.port))
    finally:
        answering.close()


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from penchant.deploy.fleet.supervisor import ChildProcess, supervise\n"
        f"supervise([ChildProcess('a', {SLEEPER!r}, Path({str(tmp_path / 'a.log')!r}))])"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        wait_for(lambda: pids(tmp_path / "a.log"))
        process.kill()
    wait_for(lambda: not alive(pids(tmp_path / "a.log")[0]))


def test_parts_that_need_nobody_are_started_and_ended_together(tmp_path: Path) -> None:
    """The first is ready only once the second runs, and does not end before the second was told to."""

    def part(name: str, other: str) -> ChildProcess:
        program = (
            "import pathlib, signal, sys, time\n"
            f"place = pathlib.Path({str(tmp_path)!r})\n"
            f"def end(*_): (place / '{name}.told').touch()\n"
            "signal.signal(signal.SIGTERM, end)\n"
            f"(place / '{name}.runs').touch()\n"
            f"while not (place / '{other}.told').exists() or not (place / '{name}.told').exists():\n"
            "    time.sleep(0.05)\n"
        )
        return ChildProcess(
            name, [sys.executable, "-c", program], None, ready=(tmp_path / f"{other}.runs").exists
        )

    stop = threading.Event()
    parts = [part("a", "b"), part("b", "a")]
    thread = threading.Thread(
        target=supervise, args=(parts,), kwargs={"stop": stop, "announce": stop.set, "together": True}
    )
    thread.start()
    thread.join()
    assert (tmp_path / "a.told").exists()
    assert (tmp_path / "b.told").exists()


def test_a_relay_looks_as_often_as_it_is_told() -> None:
    files = Path("agent.sock"), Path("ca.pem"), Path("node.key")
    assert supernode_command("fleet.example:8443", *files, look=1.5)[-2:] == ["--look", "1.5"]
    assert "--look" not in supernode_command("fleet.example:8443", *files)
